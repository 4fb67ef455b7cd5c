"""What every room rests on: threads, processes, what is a number, seeds, torch's own state."""
