"""From a task to a fit: over fixed gates, or over gates that are priced."""

from .fit import fit, over, share_of
from .fixed import OverFixedGates
from .priced import OverPricedGates
from .task import DTYPES, Fit, Task, check_place
from .whole import OverAllNeurons

__all__ = [
    "DTYPES",
    "Fit",
    "OverAllNeurons",
    "OverFixedGates",
    "OverPricedGates",
    "Task",
    "check_place",
    "fit",
    "over",
    "share_of",
]
