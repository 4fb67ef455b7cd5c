"""One .npz file with the arrays x_train, y_train, x_test and y_test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ..layout import looks_channels_last
from .mapped import map_member
from .raw import RawSplit, first_bytes, reading, warn_of_unused

NAMES = ("x_train", "y_train", "x_test", "y_test")


def _channels_first(images: NDArray[Any]) -> NDArray[Any]:
    """Return images as (n, C, h, w) that look like (n, h, w, C)."""
    if images.ndim == 4 and looks_channels_last(images.shape[1:]):
        return images.transpose(0, 3, 1, 2)
    return images


def read(path: Path) -> tuple[RawSplit, RawSplit]:
    """Return the raw training and test split; DataError if they can't be read."""
    arrays = {}
    with reading(path, "Save plain arrays with numpy.savez_compressed; object arrays are never read."):
        if first_bytes(path, 2) != b"PK":
            raise ValueError("it is not a zip archive")
        # Opened here: numpy leaves a file that it opened itself open when the archive is bad.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for name in archive.zip.namelist():
                # Nothing is extracted, so such a path does no harm; but no such file comes from numpy.
                if name.startswith("/") or ".." in name.split("/") or "\\" in name:
                    raise ValueError(f"it has a member with the path {name[:60]!r}")
            for name in NAMES:
                if name not in archive.files:
                    raise DataError(
                        f"{path} has no array {name}: it has {', '.join(archive.files) or 'none'}. "
                        "Save x_train, y_train, x_test and y_test."
                    )
                mapped = map_member(path, archive.zip, f"{name}.npy") if name.startswith("x_") else None
                arrays[name] = np.asarray(archive[name]) if mapped is None else mapped
            others = [name for name in archive.files if name not in NAMES]
    warn_of_unused(others, path, "Put images that are to be used into x_train or x_test.")
    splits = []
    for split in ("train", "test"):
        labels = arrays[f"y_{split}"]
        if labels.ndim == 2 and labels.shape[1] == 1:  # a column of labels, as Keras keeps CIFAR's
            labels = labels[:, 0]
        splits.append(RawSplit(_channels_first(arrays[f"x_{split}"]), labels, f"{path} ({split})"))
    return splits[0], splits[1]


def recognises(path: Path) -> bool:
    """Return whether the layout is there."""
    return path.is_file() and (path.suffix == ".npz" or first_bytes(path, 4) == b"PK\x03\x04")
