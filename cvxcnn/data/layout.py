"""The order of the axes of images: channels come first, and what looks otherwise is refused, never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import InputError

__all__ = ["check_layout", "check_same_shape", "looks_channels_last"]


def looks_channels_last(shape: Sequence[int]) -> bool:
    """Return whether three sides (a, b, c) are those of an image (h, w, c) rather than (c, h, w).

    They are where c < b and either a == b, a square only if channels come last, or c <= 4 < a: pictures have four
    channels at most. All other sides are (c, h, w); of (3, 3, 3) nothing can be told. Of sides that look so, neither
    (c, a, b) does, the channels moved, nor (a, c, b), height and width exchanged.

    Examples
    --------
    >>> [looks_channels_last(shape) for shape in ((8, 8, 3), (32, 48, 1), (64, 64, 13))]
    [True, True, True]
    >>> [looks_channels_last(shape) for shape in ((3, 8, 8), (10, 4, 4), (3, 50, 1), (5, 1, 1), (8, 3, 8))]
    [False, False, False, False, False]
    """
    first, second, third = shape
    return third < second and (first == second or third <= 4 < first)


def _shape(images: Any) -> tuple[int, ...]:
    """Return the shape of an array, or of lists by their first entries."""
    if isinstance(images, (list, tuple)):
        return (len(images), *(_shape(images[0]) if images else ()))
    return tuple(getattr(images, "shape", ()))


def check_layout(images: Any) -> None:
    """Raise InputError if an array, a tensor or nested lists of images look like (n, h, w, c)."""
    shape = _shape(images)
    if len(shape) == 4 and looks_channels_last(shape[1:]):
        height, width, channels = shape[1:]
        raise InputError(
            f"images must be (n, c, h, w), channels first; got {shape}, which looks like {channels} channels of "
            f"{height} x {width} pixels that come last. Pass np.moveaxis(images, -1, 1). If they are {height} channels "
            f"of {width} x {channels} pixels indeed, exchange height and width: images.swapaxes(2, 3)."
        )


def check_same_shape(found: Sequence[int], fitted: Sequence[int], what: str) -> None:
    """Raise InputError if images (n, c, h, w) of shape ``found`` are not of the sides (c, h, w) that were fitted."""
    if tuple(found[1:]) == tuple(fitted):
        return
    remedy = ""
    if tuple(found[1:]) == (*fitted[1:], fitted[0]):
        remedy = " Their channels come last: pass np.moveaxis(images, -1, 1)."
    elif found[1] == 1 and (found[0], *found[2:]) in (tuple(fitted), (*fitted[1:], fitted[0])):
        remedy = " One image needs a first axis of length 1, and its channels before its height: (1, c, h, w)."
    raise InputError(
        f"images must have the shape that the {what} was fitted on, {tuple(fitted)} (c, h, w); "
        f"got {tuple(found[1:])}.{remedy}"
    )
