"""From a task to a fit: over fixed gates, or over gates that are priced."""

from .fit import fit, over, share_of
from .fixed import OverFixedGates
from .priced import OverPricedGates
from .task import DTYPES, Fit, Task
from .whole import OverAllNeurons

__all__ = ["DTYPES", "Fit", "OverAllNeurons", "OverFixedGates", "OverPricedGates", "Task", "fit", "over", "share_of"]
