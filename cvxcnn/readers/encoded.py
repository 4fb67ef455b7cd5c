"""Encoded images (JPEG, PNG, ...), for the formats that hold them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .raw import DAMAGED, reading

__all__ = ["EncodedImages", "decode_all"]


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Images that stay encoded where they are until some of them are asked for: ``images[rows]``.

    Parameters
    ----------
    count : int
    origin : str
        The file they come from, for error messages.
    contents : callable
        Takes rows, ascending, and yields the origin and the bytes of each.
    """

    count: int
    origin: str
    contents: Callable[[NDArray[np.int64]], Iterable[tuple[str, bytes]]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (n,)."""
        return (self.count,)

    def __getitem__(self, rows: NDArray[np.int64] | EllipsisType) -> NDArray[np.uint8]:
        """Return images as one (len(rows), C, h, w) array."""
        wanted = np.arange(self.count)[rows]
        images = decode_all(self.contents(wanted))
        if len(images) != len(wanted):
            raise DataError(f"{self.origin} has {len(images)} images where {len(wanted)} were announced. {DAMAGED}")
        return images


def _decode(content: bytes) -> NDArray[np.uint8]:
    """Return an encoded image as (h, w) when it is grey and as (h, w, 3) otherwise; transparency is dropped."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata beside good pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"it has more than 8 bits a channel (mode {image.mode})")
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"), dtype=np.uint8)


def decode_all(contents: Iterable[tuple[str, bytes]]) -> NDArray[np.uint8]:
    """Return encoded images, each with its origin, as one (n, C, h, w) array; grey ones among colour become colour."""
    images: list[NDArray[np.uint8]] = []
    for origin, content in contents:
        with reading(origin, "Mend the image, save it again as an 8-bit PNG or JPEG, or take it out."):
            image = _decode(content)
        if images and image.shape[:2] != images[0].shape[:2]:
            (height, width), (h, w) = images[0].shape[:2], image.shape[:2]
            raise DataError(
                f"The images of a data set must have one size: {origin} is {h} x {w}, "
                f"those before it are {height} x {width}. Resize or crop them to one size."
            )
        images.append(image)
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in images]
        return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
    return np.stack(images)[:, None]
