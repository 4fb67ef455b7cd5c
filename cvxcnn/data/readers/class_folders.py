"""Folders of images without parts: <class>/<image>; which are the test images, what is in the files decides."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..hold_out import set_apart
from .folders import class_files, class_folders, split_of
from .raw import RawSplit, files, reading

__all__ = ["TEST_FRACTION", "read", "recognises"]

TEST_FRACTION = 0.2
# Folders of these names are parts of a data set, whatever their case is, and no classes.
_PARTS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}


def recognises(path: Path) -> bool:
    """Return whether the layout is there: two folders at least that hold images themselves, and no parts."""
    from PIL import Image

    folders = class_folders(path)
    if len(folders) < 2 or any(folder.name.casefold() in _PARTS for folder in folders):
        return False
    usual = Image.registered_extensions()
    return sum(any(file.suffix.lower() in usual for file in files(folder)) for folder in folders) >= 2


def read(folder: Path, test_fraction: float = TEST_FRACTION) -> tuple[RawSplit, RawSplit]:
    """Return the raw training and test split.

    Parameters
    ----------
    folder : Path
    test_fraction : float
        Of the images of each class, in (0, 1); one of each stays for training at least.

    Raises
    ------
    DataError
        If images can't be read.
    InputError
        If so small a share is no image, or so large a one leaves a class without any to train on.
    """
    paths, labels = class_files(folder)
    classes = np.unique(labels, return_inverse=True)[1].reshape(-1).astype(np.int64)
    tested = set_apart(classes, _identities(paths), test_fraction, "test_fraction")
    train, test = (
        split_of([path for path, own in zip(paths, rows, strict=True) if own], labels[rows], folder)
        for rows in (~tested, tested)
    )
    return train, test


def _identities(paths: list[Path]) -> NDArray[np.int64]:
    """Return two numbers for each file, by what is in it: the same wherever it lies and whatever it is called."""
    digests = []
    for path in paths:
        with reading(path, "Check the file and its permissions."):
            digests.append(hashlib.blake2b(path.read_bytes(), digest_size=16).digest())
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64).reshape(len(paths), 2)
