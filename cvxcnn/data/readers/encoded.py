"""Encoded images (JPEG, PNG, ...), for the formats that hold them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from .raw import DAMAGED, reading

__all__ = ["EncodedImages", "check_kinds", "decode_all"]

# Of 16 bits.
_WHITE = 65535
# The tag of metadata that says how an image is to be turned, and how Pillow's transpose does that: left to right, by
# half, top to bottom, over the diagonal, a quarter to the right, over the other diagonal, a quarter to the left.
_ORIENTATION = 0x0112
_TURNS: dict[Any, int] = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
_REMEDY = "Mend the image, save it again as an 8-bit PNG or JPEG, or take it out."


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

    def __getitem__(self, rows: NDArray[np.int64] | EllipsisType) -> NDArray[Any]:
        """Return images as one (len(rows), C, h, w) array."""
        wanted = np.arange(self.count)[rows]
        images = decode_all(self.contents(wanted))
        if len(images) != len(wanted):
            raise DataError(f"{self.origin} has {len(images)} images where {len(wanted)} were announced. {DAMAGED}")
        return images


def _decode(content: bytes) -> NDArray[Any]:
    """Return an encoded image as a viewer shows it, (h, w) when it is grey and (h, w, 3) otherwise.

    It is turned as its orientation says. What is transparent is laid over white; palettes, CMYK and the like become
    RGB, by Pillow's formulas and without colour profiles. Pixels are uint8, or uint16 of grey ones with 16 bits.
    Refused are animations and files of several pages, of which a part would be left out, and pixels without a scale:
    floats, and integers beyond 16 bits. (Of a camera's MPO, viewers show the first picture, and so does this.)
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata beside good pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content)) as file:
            frames = getattr(file, "n_frames", 1)
            if frames > 1 and file.format != "MPO":
                raise ValueError(f"it has {frames} frames or pages, and one image is expected")
            file.load()
            turn = _TURNS.get(file.getexif().get(_ORIENTATION))
            image: Image.Image = file if turn is None else file.transpose(Image.Transpose(turn))
        if image.mode.startswith("F"):
            raise ValueError("it has floating-point pixels, whose scale isn't known")
        if image.mode.startswith("I"):
            return _sixteen_bits(np.asarray(image), image.info.get("transparency"))
        grey = image.mode in ("1", "L", "LA", "La")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("L" if grey else "RGB"), dtype=np.uint8)


def _sixteen_bits(pixels: NDArray[Any], transparent: Any) -> NDArray[np.uint16]:
    """Return grey pixels of 16 bits, which Pillow may give as wider integers; those of one value may be transparent."""
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > _WHITE:
        raise ValueError(f"it has more than 16 bits a channel: pixels from {low} to {high}")
    shown = pixels if transparent is None else np.where(pixels == transparent, _WHITE, pixels)
    return shown.astype(np.uint16)


def check_kinds(paths: Iterable[Path]) -> None:
    """Raise DataError for what is no image at first sight: some may not be decoded, and would not be missed.

    What is no file is none; of files, the first bytes are read where the name doesn't end as an image's.
    """
    from PIL import Image

    usual = Image.registered_extensions()
    for path in paths:
        with reading(path, _REMEDY):
            if not path.is_file():
                raise ValueError("there is no file")
            if path.suffix.lower() not in usual:
                Image.open(path).close()


def decode_all(contents: Iterable[tuple[str, bytes]]) -> NDArray[Any]:
    """Return encoded images, each with its origin, as one (n, C, h, w) array; grey ones among colour become colour.

    It is uint8, or float64 in [0, 1] if some have 16 bits.
    """
    images: list[NDArray[Any]] = []
    for origin, content in contents:
        with reading(origin, _REMEDY):
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
    if any(image.dtype == np.uint16 for image in images):
        # 257 = 65535 / 255: the same numbers as in a data set of 8 bits.
        images = [(image if image.dtype == np.uint16 else 257.0 * image) / _WHITE for image in images]
    stacked = np.stack(images)
    return stacked[:, None] if stacked.ndim == 3 else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
