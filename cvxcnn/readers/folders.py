"""Folders of images: train/<class>/<any name> and test/<class>/<any name>."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DataError
from .encoded import decode_all
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
        images = decode_all((str(p), p.read_bytes()) for p in paths)
    return RawSplit(images, np.array([p.parent.name for p in paths]), str(folder))


def read(folder: Path) -> tuple[RawSplit, RawSplit]:
    """Return the raw training and test split; DataError if they can't be read."""
    return _read_split(folder / "train"), _read_split(folder / "test")
