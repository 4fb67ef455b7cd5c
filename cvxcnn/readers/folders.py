"""Folders of images: train/<class>/<any name> and test/<class>/<any name>."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .encoded import EncodedImages
from .raw import RawSplit, files, reading


def _class_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")) if folder.is_dir() else []


def recognises(path: Path) -> bool:
    """Return whether the layout is there."""
    return bool(_class_folders(path / "train"))


def _read_split(folder: Path) -> RawSplit:
    with reading(folder, "Check the folder and its permissions."):
        paths = [p for group in _class_folders(folder) for p in files(group)]
        if not paths:
            raise DataError(f"{folder} holds no images. Put them there as {folder.name}/<class>/<image>.")

    def contents(rows: NDArray[np.int64]) -> Iterator[tuple[str, bytes]]:
        for row in rows:
            with reading(paths[row], "Check the file and its permissions."):
                content = paths[row].read_bytes()
            yield str(paths[row]), content

    images = EncodedImages(len(paths), str(folder), contents)
    return RawSplit(images, np.array([p.parent.name for p in paths]), str(folder))


def read(folder: Path) -> tuple[RawSplit, RawSplit]:
    """Return the raw training and test split; DataError if they can't be read."""
    return _read_split(folder / "train"), _read_split(folder / "test")
