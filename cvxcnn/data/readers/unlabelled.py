"""Images without labels: one image, a folder of images, or an array in an .npz or .npy file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from .encoded import check_kinds, decode_all
from .folders import files_within
from .npz import _channels_first
from .raw import RawSplit, first_bytes, reading, to_pixels

__all__ = ["array_names", "read_images"]

# The array of an .npz file that holds the images, where there are several.
IMAGE_ARRAYS = ("images", "x", "x_test")
_PLAIN = "Save a plain array with numpy.save or numpy.savez_compressed; object arrays are never read."


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays in an .npz file; none of anything else."""
    with reading(path, _PLAIN):
        if not path.is_file() or first_bytes(path, 2) != b"PK":
            return []
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return list(archive.files)


def read_images(path: Path) -> tuple[NDArray[np.float64], list[str]]:
    """Return images (n, C, H, W) in [0, 1], and a name for each: its file's, below the folder, or its index.

    Raises
    ------
    DataError
        If there are none, or they can't be read.
    """
    with reading(path, "Check the path and its permissions."):
        if not path.exists():
            raise DataError(f"There are no images at {path}. Check the path.")
        paths = files_within(path) if path.is_dir() else [path]
        if not paths:
            raise DataError(f"{path} holds no images. Put image files into it, all of one size.")
        start = first_bytes(path, 6) if path.is_file() else b""
    if start.startswith((b"PK", b"\x93NUMPY")):
        images = _channels_first(_array(path))
        return to_pixels(RawSplit(images, np.zeros(0), str(path))), [str(row) for row in range(len(images))]
    if path.is_dir():
        check_kinds(paths)
    with reading(path, "Check the path and its permissions."):
        encoded = [(str(p), p.read_bytes()) for p in paths]
    names = [p.relative_to(path).as_posix() if p != path else p.name for p in paths]
    return to_pixels(RawSplit(decode_all(encoded), np.zeros(0), str(path))), names


def _array(path: Path) -> NDArray[np.generic]:
    names = array_names(path)
    with reading(path, _PLAIN), path.open("rb") as file:
        # Closed by the archive; a single array is no archive.
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        name = names[0] if len(names) == 1 else next((name for name in IMAGE_ARRAYS if name in names), None)
        if name is None:
            raise DataError(
                f"{path} has the arrays {', '.join(names) or '(none)'}. Name that of the images {IMAGE_ARRAYS[0]}."
            )
        return np.asarray(loaded[name])
