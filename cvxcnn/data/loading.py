"""Training and test images by the name of a data set, or by the path of its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.checks import is_number
from ..core.text import did_you_mean
from ..errors import DataError, InputError
from .images import ImageSet, split
from .readers import RawSplit, encode_labels, read, reader_of, reading, to_pixels
from .readers.cifar10 import CIFAR10_CLASSES

__all__ = ["NAMED", "is_in_no_parts", "load_data", "load_rows"]

Choice = Callable[[str, NDArray[np.int64], int], NDArray[np.int64]]
Agreement = Callable[[tuple[int, int, int], str], tuple[int, int, int]]

# Data sets that are no paths.
NAMED = ("digits", "cifar10")
SPLITS = ("train", "test")
# The digits' test images are the same in every run, whatever its seed.
DIGITS_TEST_FRACTION = 0.2
DIGITS_SPLIT_SEED = 0


def load_data(source: str | os.PathLike[str], *, test_fraction: float | None = None) -> tuple[ImageSet, ImageSet]:
    """Return the training and the test set of a named data set, or of files.

    Parameters
    ----------
    source : str or path
        ``"digits"``: scikit-learn's 1,797 digits of 8 x 8 pixels, every fifth one set apart for testing by a stratified
        draw of fixed seed 0 (1,437 and 360 images).
        ``"cifar10"``: the folder named by the environment variable ``CVXCNN_DATA`` (it, or a folder ``cifar10`` in
        it), or else ``data/cifar10`` of the working directory.
        Otherwise a path: a folder with ``train*.parquet`` and ``test*.parquet`` in the Hugging Face layout, or one
        that has them in ``data``; an
        ``.npz`` file with ``x_train, y_train, x_test, y_test``; a folder with the IDX files of MNIST; a folder with
        the CIFAR-10 binary or python batches, or one of its two official ``.tar.gz``; or a folder of images as
        ``train/<class>/`` and ``test/<class>/``, with those in folders of a class; or a folder of images as
        ``<class>/<image>``.
    test_fraction : float, optional
        In (0, 1), for ``<class>/<image>`` alone: the share of each class that becomes test images, 0.2 by default.
        What is in the files decides which: the same ones wherever they lie and whatever they are called.

    Returns
    -------
    train, test : ImageSet
        With the same classes and image shape. 8-bit pixels are divided by 255, 16-bit ones by 65,535; floats must lie
        in [0, 1], and those beyond it by rounding are taken for its ends.

    Raises
    ------
    DataError
        If files are missing, unreadable, damaged, empty, or don't fit together, or images have no label: -1 (but where
        labels are -1 and 1), nothing, or a word for it.
    InputError
        If ``test_fraction`` is given for a data set that has test images of its own, or can't be set apart.

    Warns
    -----
    DataWarning
        Of files, columns and arrays that are not used. Hidden ones aren't mentioned (names that begin with a dot,
        Thumbs.db, desktop.ini, @eaDir, __MACOSX), nor are README, LICENSE, CITATION and pages.

    Notes
    -----
    An image file is read as a viewer shows it: turned as its orientation says, what is transparent laid over white,
    palettes and CMYK as RGB. Animations, files of several pages and floating-point pixels are refused.

    Examples
    --------
    >>> train, test = load_data("digits")
    >>> len(train), len(test), train.image_shape
    (1437, 360, (1, 8, 8))
    """
    return load_rows(source, lambda _, labels, __: np.arange(len(labels)), lambda shape, _: shape, test_fraction)


def is_in_no_parts(source: str | os.PathLike[str]) -> bool:
    """Return whether a data set has no test images of its own: images in folders of their classes.

    Raises
    ------
    DataError
        If the path can't be looked at.
    """
    if source in NAMED:
        return False
    with reading(source, "Check the path."):
        found = reader_of(Path(source).expanduser())
    return found is not None and found.splits


def load_rows(
    source: str | os.PathLike[str], choose: Choice, agree: Agreement, test_fraction: float | None = None
) -> tuple[ImageSet, ImageSet]:
    """Return some of the images of ``load_data``: the others are not decoded, where the format allows it.

    Parameters
    ----------
    source : str or path
    choose : callable
        Takes "train" or "test", the labels of that split and the number of classes, and returns the rows to keep,
        ascending.
    agree : callable
        Takes the shape of the images that were kept, and where they come from, and returns the shape that they are to
        have: grey images become as many equal channels.
    """
    if test_fraction is not None and not is_number(test_fraction, above=0, below=1):
        raise InputError(f"test_fraction must lie strictly between 0 and 1; got {test_fraction!r}.")
    if source in NAMED and test_fraction is not None:
        raise InputError(
            f"test_fraction is for images in folders of their classes; {source} has test images. Leave it out."
        )
    if source == "digits":
        whole = _load_digits()
        train, test = (
            part.subset(choose(which, part.labels, len(part.classes)))
            for which, part in zip(SPLITS, whole, strict=True)
        )
        return train, test
    if source == "cifar10":
        return _load_files(read(_find_cifar10()), "cifar10", choose, agree)
    with reading(source, "Check the path."):
        path = Path(source).expanduser().resolve()
        name = path.stem if path.is_file() else path.name
        near = "" if path.exists() else did_you_mean(os.fspath(source), NAMED)
    if near:
        raise DataError(f"There is no data set at {path}{near}")
    return _load_files(read(path, test_fraction), name, choose, agree)


def _load_digits() -> tuple[ImageSet, ImageSet]:
    from sklearn.datasets import load_digits  # here, because it brings half of scikit-learn

    digits = load_digits()
    images = digits.images[:, None] / 16.0
    labels = digits.target.astype(np.int64)
    whole = ImageSet(images, labels, tuple(map(str, digits.target_names)), "digits")
    train, test = split(labels, DIGITS_TEST_FRACTION, DIGITS_SPLIT_SEED)
    return whole.subset(train), whole.subset(test)


def _find_cifar10() -> Path:
    root = os.environ.get("CVXCNN_DATA")
    candidates = [Path(root).expanduser() / "cifar10", Path(root).expanduser()] if root else [Path("data", "cifar10")]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DataError(
        f"CIFAR-10 isn't at {candidates[-1]}"
        + (" (from CVXCNN_DATA)" if root else "")
        + ". Give its folder by --data PATH, or by the environment variable CVXCNN_DATA."
    )


def _load_files(
    raw: tuple[RawSplit, RawSplit], name: str, choose: Choice, agree: Agreement
) -> tuple[ImageSet, ImageSet]:
    indices, classes = encode_labels(*raw)
    if name == "cifar10" and classes == tuple("0123456789"):
        classes = CIFAR10_CLASSES
    sets = []
    for which, part, labels in zip(SPLITS, raw, indices, strict=True):
        rows = choose(which, labels, len(classes))
        images = to_pixels(part, rows)
        channels, _, _ = agree((images.shape[1], images.shape[2], images.shape[3]), part.origin)
        if channels != images.shape[1]:
            images = np.repeat(images, channels, axis=1)
        sets.append(ImageSet(images, labels[rows], classes, name))
    train, test = sets
    if train.image_shape != test.image_shape:
        raise DataError(
            f"{raw[0].origin} has images of shape {train.image_shape}, {raw[1].origin} of {test.image_shape}. "
            "Training and test images must have one shape: resize or crop them."
        )
    kinds = [getattr(part.images, "dtype", np.dtype(np.uint8)) for part in raw]
    if kinds[0].kind != kinds[1].kind:
        raise DataError(
            f"{raw[0].origin} has pixels of dtype {kinds[0]}, {raw[1].origin} of {kinds[1]}, so that their scales may "
            "differ. Save both alike."
        )
    return train, test
