"""What every reader returns, and how it becomes pixels in [0, 1] and class indices."""

from __future__ import annotations

import gzip
import re
import warnings
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...core.distributed import rank
from ...errors import DataError, DataWarning

__all__ = [
    "RawSplit",
    "encode_labels",
    "entries",
    "files",
    "first_bytes",
    "in_one_order",
    "reading",
    "to_pixels",
    "warn_of_others",
    "warn_of_unused",
]

DAMAGED = "The file may be damaged or cut short: get it again."

# What systems and editors leave behind.
_HIDDEN = re.compile(r"\..*|(eh)?thumbs\.db|desktop\.ini|@eadir|__macosx", re.IGNORECASE)
# What is written about a data set beside it.
_ABOUT = re.compile(r"(readme|licen[cs]e|citation)([.\-_].*)?|.*\.(md|html?)|dataset_infos\.json", re.IGNORECASE)
# What tables hold in place of a label that isn't there, and what its class is called then.
_NO_LABEL = frozenset({"", "nan", "NaN", "None", "null", "NULL", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaT"})
_UNLABELLED = ("unlabeled", "unlabelled")
# How far rounding may take floats out of [0, 1]: that of float32, which they may have been, or of their own dtype.
_ROUNDING, _ROUNDING_EPS = 1e-6, 8
_SHOWN = 5


class Undecoded(Protocol):
    """Images that are read and decoded when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (n,): the rest isn't known yet."""

    def __getitem__(self, rows: NDArray[np.int64] | EllipsisType) -> NDArray[Any]:
        """Return the images of some rows, which ascend."""


class Labelled(Protocol):
    """A part of a data set that may say what its labels are called."""

    @property
    def labels(self) -> NDArray[Any]:
        """Return the labels, (n,)."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """Return the names of the labels 0, 1, ..."""

    @property
    def origin(self) -> str:
        """Return the file, for error messages."""


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


def entries(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted by name, but what is hidden; nothing of anything else.

    Hidden are names that begin with a dot, and Thumbs.db, desktop.ini, @eaDir and __MACOSX.
    """
    return sorted(p for p in folder.iterdir() if not _HIDDEN.fullmatch(p.name)) if folder.is_dir() else []


def files(folder: Path) -> list[Path]:
    """Return the visible files of a folder, sorted by name; none of anything else."""
    return [path for path in entries(folder) if path.is_file()]


def warn_of_unused(names: Iterable[str], origin: object, remedy: str) -> None:
    """Warn of parts of a data set that aren't used, if there are any; of several processes, the first one does."""
    unused = list(names)
    if unused and rank() == 0:
        more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
        # A name may hold line breaks, and bytes that are no characters.
        shown = ", ".join(name if name.isprintable() else repr(name) for name in unused[:_SHOWN])
        warnings.warn(f"{origin} holds what is not used: {shown}{more}. {remedy}", DataWarning, stacklevel=2)


def warn_of_others(folder: Path, used: Collection[Path], known: Collection[str] = ()) -> None:
    """Warn of what a folder holds beside what is used: not of README, LICENSE, pages, and what is known by name."""
    others = [p.name for p in entries(folder) if not (p in used or p.name in known or _ABOUT.fullmatch(p.name))]
    warn_of_unused(others, folder, "Put images that are to be used among the others, and take out the rest.")


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
    # Of one's own: what is mapped can't be written to.
    pixels = np.require(images if images.ndim == 4 else images[:, None], np.float64, ["C", "W", "E"])
    if images.dtype == np.uint8:
        pixels /= 255.0
    bad = pixels.size - int(np.isfinite(pixels).sum())
    if bad:
        raise DataError(f"Images of {raw.origin} hold {bad} NaN or infinite values. Remove or replace them.")
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > 1:
        beyond = max(_ROUNDING, _ROUNDING_EPS * np.finfo(images.dtype).eps)
        if low < -beyond or high > 1 + beyond:
            raise DataError(
                f"Float images of {raw.origin} must lie in [0, 1]; they range from {low:.9g} to {high:.9g}. "
                "Rescale them, or save them as uint8."
            )
        pixels = pixels.clip(0, 1)
    return pixels


def in_one_order(parts: Sequence[Labelled]) -> list[NDArray[Any]]:
    """Return the labels of all parts as those of the first: by the names of the classes, where the order differs.

    Raises
    ------
    DataError
        If they don't name the same classes, or two classes alike in another order.
    """
    first = parts[0].names
    labels = []
    for part in parts:
        own = part.labels
        if part.names != first:
            if part.names is None or first is None or sorted(part.names) != sorted(first):
                raise DataError(
                    f"{parts[0].origin} and {part.origin} name different classes: {_shown(first)} and "
                    f"{_shown(part.names)}. Take both files from one data set."
                )
            if len(set(first)) < len(first):
                raise DataError(
                    f"{parts[0].origin} and {part.origin} name the classes in another order, and two of them alike. "
                    "Give each class a name of its own."
                )
            place = {name: index for index, name in enumerate(first)}
            places = np.array([place[name] for name in part.names])
            # Labels that stand for no class stay what they are, to be refused.
            named = (own >= 0) & (own < len(places))
            own = np.where(named, places[np.where(named, own, 0)], own)
        labels.append(own)
    return labels


def _shown(names: tuple[str, ...] | None) -> str:
    if names is None:
        return "none"
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _check_labelled(values: NDArray[Any], origin: str) -> None:
    """Raise DataError if one of the different labels without names stands for no label.

    -1 does, but where the labels are -1 and 1; so do the words that tables write for missing values, and the least of
    all integers, which NaN becomes.
    """
    found = values.tolist()
    missing = [v for v in found if isinstance(v, str) and (v.strip() in _NO_LABEL or v.casefold() in _UNLABELLED)]
    if len(found) != 2 or {str(v) for v in found} != {"-1", "1"}:
        missing += [v for v in found if str(v) == "-1"]
    if values.dtype.kind == "i":
        missing += [v for v in found if v == np.iinfo(values.dtype).min]
    if missing:
        raise DataError(
            f"{origin} has images of the label {missing[0]!r}, which stands for images without a label. "
            "Take them out, or name the class otherwise."
        )


def encode_labels(train: RawSplit, test: RawSplit) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    """Return the class indices of both splits, and the class names: those given, or else the training labels."""
    for part in (train, test):
        labels = part.labels
        if labels.ndim != 1 or labels.shape != part.images.shape[:1]:
            raise DataError(
                f"{part.origin} has labels of shape {labels.shape} for images of shape {part.images.shape}. "
                "Save one label an image."
            )
        if labels.dtype.kind == "f" and np.isnan(labels).any():
            raise DataError(
                f"{part.origin} has {int(np.isnan(labels).sum())} images whose label is NaN, which is none. Take them "
                "out, and save the labels as integers or strings."
            )
        if labels.dtype.kind not in "biuU":
            raise DataError(f"Labels of {part.origin} have dtype {labels.dtype}. Save integers or strings.")
    if (train.labels.dtype.kind == "U") != (test.labels.dtype.kind == "U"):
        raise DataError(
            f"{train.origin} has labels of dtype {train.labels.dtype}, {test.origin} of {test.labels.dtype}. "
            "Save both as integers or both as strings."
        )
    in_order = in_one_order((train, test))
    # The values that labels take, in the order of the classes.
    values = np.unique(train.labels) if train.names is None else np.arange(len(train.names))
    if train.names is None:
        _check_labelled(values, train.origin)
    if len(values) < 2:
        raise DataError(f"{train.origin} has fewer than two classes ({len(values)}). Add images of another class.")
    for part in (train, test):
        unknown = np.setdiff1d(part.labels, values)
        if len(unknown):
            raise DataError(
                f"{part.origin} has labels outside the {len(values)} classes of {train.origin}: "
                f"{', '.join(map(str, unknown[:5]))}. Take out the images without a label (often -1), and those "
                "of classes without training images."
            )
    indices = [np.searchsorted(values, own).astype(np.int64) for own in in_order]
    return indices, train.names or tuple(map(str, values))
