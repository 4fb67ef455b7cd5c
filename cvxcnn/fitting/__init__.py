"""From a task to a fit: over fixed gates, or over gates that are priced."""
