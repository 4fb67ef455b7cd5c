"""What every reader returns, and how it becomes pixels in [0, 1] and class indices."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

__all__ = ["RawSplit", "encode_labels", "files", "first_bytes", "reading", "to_pixels"]

DAMAGED = "The file may be damaged or cut short: get it again."


class Undecoded(Protocol):
    """Images that are read and decoded when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (n,): the rest isn't known yet."""

    def __getitem__(self, rows: NDArray[np.int64] | EllipsisType) -> NDArray[np.uint8]:
        """Return the images of some rows, which ascend."""


@dataclass(frozen=True, eq=False)
class RawSplit:
    """Images and labels as a file holds them.

    Parameters
    ----------
    images : array, shape (n, h, w) or (n, C, h, w), or Undecoded
        Any dtype; not yet scaled.
    labels : array, shape (n,)
        Integers or strings.
    origin : str
        The file they come from, for error messages.
    names : tuple of str, optional
        ``names[i]`` is the name of label i; without it the labels' own values are the names.
    """

    images: NDArray[Any] | Undecoded
    labels: NDArray[Any]
    origin: str
    names: tuple[str, ...] | None = None


@contextmanager
def reading(path: object, remedy: str = DAMAGED) -> Iterator[None]:
    """Turn whatever a parser raises on bad bytes into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    # Parsers of damaged bytes raise nearly anything (zlib.error, struct.error, KeyError, ArrowInvalid, MemoryError).
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"Can't read {path}: {reason.rstrip('.')}. {remedy}") from error


def files(folder: Path) -> list[Path]:
    """Return the visible files of a folder, sorted by name; none of anything else."""
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")) if folder.is_dir() else []


def first_bytes(path: Path, count: int) -> bytes:
    """Return the first bytes of a file, decompressed when it is gzip; none of a damaged one."""
    with path.open("rb") as file:
        start = file.read(count)
    if start[:2] != b"\x1f\x8b":
        return start
    try:
        with gzip.open(path) as file:
            return file.read(count)
    except (OSError, EOFError, zlib.error):
        return b""


def to_pixels(raw: RawSplit, rows: NDArray[np.int64] | EllipsisType = ...) -> NDArray[np.float64]:
    """Return raw images, all or those of some rows, which ascend, as (n, C, H, W) numbers in [0, 1]."""
    images = raw.images[rows]
    if images.ndim not in (3, 4) or images.size == 0:
        raise DataError(
            f"Images of {raw.origin} must be (n, c, h, w), (n, h, w, c) or (n, h, w), and not empty; "
            f"they are {images.shape}. Reshape them."
        )
    if images.dtype.kind not in "bf" and images.dtype != np.uint8:
        raise DataError(
            f"Images of {raw.origin} have dtype {images.dtype}. Save pixels as uint8 (0 to 255) or as floats in [0, 1]."
        )
    pixels = np.ascontiguousarray(images if images.ndim == 4 else images[:, None], dtype=np.float64)
    if images.dtype == np.uint8:
        pixels /= 255.0
    bad = pixels.size - int(np.isfinite(pixels).sum())
    if bad:
        raise DataError(f"Images of {raw.origin} hold {bad} NaN or infinite values. Remove or replace them.")
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > 1:
        raise DataError(
            f"Float images of {raw.origin} must lie in [0, 1]; they range from {low:g} to {high:g}. "
            "Rescale them, or save them as uint8."
        )
    return pixels


def encode_labels(train: RawSplit, test: RawSplit) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    """Return the class indices of both splits, and the class names: those given, or else the training labels."""
    for part in (train, test):
        labels = part.labels
        if labels.ndim != 1 or labels.shape != part.images.shape[:1]:
            raise DataError(
                f"{part.origin} has labels of shape {labels.shape} for images of shape {part.images.shape}. "
                "Save one label an image."
            )
        if labels.dtype.kind not in "biuU":
            raise DataError(f"Labels of {part.origin} have dtype {labels.dtype}. Save integers or strings.")
    if (train.labels.dtype.kind == "U") != (test.labels.dtype.kind == "U"):
        raise DataError(
            f"{train.origin} has labels of dtype {train.labels.dtype}, {test.origin} of {test.labels.dtype}. "
            "Save both as integers or both as strings."
        )
    if test.names != train.names:
        raise DataError(
            f"{train.origin} and {test.origin} name different classes: {train.names} and {test.names}. "
            "Take both files from one data set."
        )
    # The values that labels take, in the order of the classes.
    values = np.unique(train.labels) if train.names is None else np.arange(len(train.names))
    if len(values) < 2:
        raise DataError(f"{train.origin} has fewer than two classes ({len(values)}). Add images of another class.")
    indices = []
    for part in (train, test):
        unknown = np.setdiff1d(part.labels, values)
        if len(unknown):
            raise DataError(
                f"{part.origin} has labels outside the {len(values)} classes of {train.origin}: "
                f"{', '.join(map(str, unknown[:5]))}. Take out the images without a label (often -1), and those "
                "of classes without training images."
            )
        indices.append(np.searchsorted(values, part.labels).astype(np.int64))
    return indices, train.names or tuple(map(str, values))
