"""File formats of data sets: each turns one layout on disk into raw images and labels.

A new format is one file here with ``recognises(path)``, which knows it by what is there, and ``read(path)``, which
returns the raw training and test split, and one line in ``READERS``. Nothing here unpickles, and a file that can't be
read is a ``DataError``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import DataError, InputError
from . import cifar10, cifar10_archive, cifar10_python, class_folders, folders, idx, npz, parquet
from .raw import RawSplit, encode_labels, reading, to_pixels

__all__ = ["READERS", "RawSplit", "Reader", "encode_labels", "read", "reader_of", "reading", "to_pixels"]


@dataclass(frozen=True)
class Reader:
    """One file format: what it looks like, in words and as a test, and how it is read.

    ``splits`` says that its files are in no parts: ``read`` takes the share of the test images too.
    """

    layout: str
    recognises: Callable[[Path], bool]
    read: Callable[..., tuple[RawSplit, RawSplit]]
    splits: bool = False


READERS = (
    Reader(
        "a folder with train*.parquet and test*.parquet, or one with that as data/", parquet.recognises, parquet.read
    ),
    Reader("an .npz file with x_train, y_train, x_test and y_test", npz.recognises, npz.read),
    Reader("a folder with the four IDX files of MNIST", idx.recognises, idx.read),
    Reader("a folder with the CIFAR-10 binary batches", cifar10.recognises, cifar10.read),
    Reader(
        "a folder with the CIFAR-10 python batches, data_batch_1 to 5 and test_batch",
        cifar10_python.recognises,
        cifar10_python.read,
    ),
    Reader("one of the two official .tar.gz of CIFAR-10", cifar10_archive.recognises, cifar10_archive.read),
    Reader("a folder of images as train/<class>/<image> and test/<class>/<image>", folders.recognises, folders.read),
    Reader(
        "a folder of images as <class>/<image>, a share of which become test images",
        class_folders.recognises,
        class_folders.read,
        splits=True,
    ),
)
"""The formats that ``read`` knows, tried in this order."""


def reader_of(path: Path) -> Reader | None:
    """Return the reader that recognises what is at a path; None if none does.

    Raises
    ------
    DataError
        If it can't be looked at.
    """
    with reading(path, "Check the path and its permissions."):
        return next((reader for reader in READERS if reader.recognises(path)), None)


def read(path: Path, test_fraction: float | None = None) -> tuple[RawSplit, RawSplit]:
    """Return the raw (training, test) split of the data set at ``path``, its format found by content.

    Parameters
    ----------
    path : Path
    test_fraction : float, optional
        Of images that are in no parts, those that become test images.

    Raises
    ------
    DataError
        If nothing is there, no reader knows the layout, or its reader can't read it.
    InputError
        If a fraction is given, and the data set has test images of its own; or none can be set apart.
    """
    with reading(path, "Check the path and its permissions."):
        if not path.exists():
            raise DataError(f"There is no data set at {path}. {_remedy()}")
    reader = reader_of(path)
    if reader is None:
        raise DataError(f"{path} is not a data set that can be read. {_remedy()}")
    if test_fraction is None:
        return reader.read(path)
    if not reader.splits:
        raise InputError(
            f"test_fraction is for images in folders of their classes alone; {path} has test images of its own. "
            "Leave it out."
        )
    return reader.read(path, test_fraction)


def _remedy() -> str:
    return 'Give "digits", "cifar10", or the path of ' + "; or ".join(reader.layout for reader in READERS) + "."
