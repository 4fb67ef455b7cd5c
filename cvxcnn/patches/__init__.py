"""Images to patches, and the linear and ReLU maps on them; which patches a gate is active on."""

from .patches import Patches, PatchGeometry

__all__ = ["PatchGeometry", "Patches"]
