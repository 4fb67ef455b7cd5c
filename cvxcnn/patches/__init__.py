"""Images to patches, and the linear and ReLU maps on them; which patches a gate is active on; pooling into cells."""

from .geometry import PatchGeometry
from .patches import Patches
from .pooling import POOLINGS, Pooling

__all__ = ["POOLINGS", "PatchGeometry", "Patches", "Pooling"]
