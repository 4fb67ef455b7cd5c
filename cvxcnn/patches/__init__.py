"""Images to patches, and the linear and ReLU maps on them; which patches a gate is active on; pooling into cells."""

from .geometry import PatchGeometry
from .patches import Patches
from .poolers import Pooler
from .pooling import POOLINGS, MaxPooling, Pooling

__all__ = ["POOLINGS", "MaxPooling", "PatchGeometry", "Patches", "Pooler", "Pooling"]
