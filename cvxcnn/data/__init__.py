"""Images and labels in, checked once; which of them are held out; what they are known by."""

from .augmentation import shifted
from .checks import check_images, check_labels, check_present, check_targets
from .hold_out import held_out
from .images import ImageSet, limit, one_hot, split
from .loading import load_data

__all__ = [
    "ImageSet",
    "check_images",
    "check_labels",
    "check_present",
    "check_targets",
    "held_out",
    "limit",
    "load_data",
    "one_hot",
    "shifted",
    "split",
]
