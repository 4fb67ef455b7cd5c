"""Images and labels, checked once: from arrays and tensors, from scikit-learn's digits, and from files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from ..core.checks import as_int, is_int, is_number
from ..errors import DataError, InputError
from .layout import check_layout
from .readers import encode_labels, read, reading, to_pixels
from .readers.cifar10 import CIFAR10_CLASSES

__all__ = [
    "ImageSet",
    "are_flat",
    "check_images",
    "check_labels",
    "check_present",
    "check_targets",
    "limit",
    "limited_rows",
    "load_data",
    "load_rows",
    "one_hot",
    "shifted",
    "split",
]

Choice = Callable[[str, NDArray[np.int64], int], NDArray[np.int64]]
Agreement = Callable[[tuple[int, int, int], str], tuple[int, int, int]]

SPLITS = ("train", "test")
# The digits' test images are the same in every run, whatever its seed.
DIGITS_TEST_FRACTION = 0.2
DIGITS_SPLIT_SEED = 0
# Numbers that are tested for NaN and infinity at once.
_TESTED_AT_ONCE = 1 << 24


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images, as they go into the networks.

    Parameters
    ----------
    images : array, shape (n, C, H, W), float64
        Pixels, in [0, 1].
    labels : array, shape (n,), int64
        Class indices.
    classes : tuple of str
        ``classes[i]`` is the name of class i.
    name : str
        Name of the data set.

    Raises
    ------
    InputError
        If shapes, dtypes or labels don't fit together.

    Examples
    --------
    >>> import numpy as np
    >>> pair = ImageSet(np.zeros((2, 1, 4, 4)), np.array([0, 1]), ("blank", "empty"), "nothing")
    >>> len(pair), pair.image_shape
    (2, (1, 4, 4))
    """

    images: NDArray[np.float64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.dtype != np.float64:
            raise InputError(f"images must be float64 of shape (n, c, h, w); got {images.dtype} {images.shape}.")
        check_layout(images)
        if labels.shape != (len(images),) or labels.dtype != np.int64:
            raise InputError(
                f"labels must be int64, one an image ({len(images)} images); got {labels.dtype} {labels.shape}."
            )
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(self.classes)):
            raise InputError(
                f"labels must be class indices 0 to {len(self.classes) - 1}; got {labels.min()} to {labels.max()}."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def subset(self, rows: ArrayLike) -> ImageSet:
        """Return the images with these indices, in this order."""
        index = np.asarray(rows)
        return ImageSet(self.images[index], self.labels[index], self.classes, self.name)


def _check_destination(dtype: torch.dtype, device: torch.device | str) -> None:
    if not dtype.is_floating_point:
        raise InputError(f"dtype must be a real floating-point type such as torch.float64; got {dtype}.")
    try:
        torch.empty(0, device=device)
    # torch raises AssertionError for a device that it was built without, RuntimeError for the rest.
    except (AssertionError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(
            f'device {str(device)!r} can\'t be used: {reason} Use "cpu", or a device that is there.'
        ) from error


def _is_missing(value: Any) -> bool:
    """Return whether an object stands for no value; NA and NaT of pandas are known by their names."""
    nan = isinstance(value, (float, np.floating)) and bool(np.isnan(value))
    return value is None or nan or type(value).__name__ in ("NAType", "NaTType")


def _count_masked(values: Any) -> int:
    if isinstance(values, np.ma.MaskedArray):
        return int(np.ma.getmaskarray(values).sum())
    return sum(map(_count_masked, values)) if isinstance(values, (list, tuple)) else 0


def check_present(name: str, values: Any) -> None:
    """Raise InputError if some values are missing: masked, or None, NA, NaT or NaN among objects.

    Parameters
    ----------
    name : str
        What they are, for the error.
    values : array, tensor, table or list
        NaN in an array of floats is left to the checks of numbers.

    Examples
    --------
    >>> check_present("labels", ["cat", None])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    cvxcnn.errors.InputError: labels must be there for every image; missing (masked, None, NA or NaN): 1. Fill ...
    """
    missing = _count_masked(values)
    if isinstance(values, (list, tuple)):
        # Not as an array: one of strings would have the string "nan".
        missing += sum(map(_is_missing, values))
    elif not isinstance(values, (Tensor, np.ma.MaskedArray)):
        array = np.asarray(values)
        missing = sum(map(_is_missing, array.flat)) if array.dtype == object else 0
    if missing:
        raise InputError(
            f"{name} must be there for every image; missing (masked, None, NA or NaN): {missing}. "
            "Fill them in, or leave those images out."
        )


def _dense(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of plain numbers: sparse and quantized ones are laid out."""
    if tensor.is_meta:
        raise InputError(f"{name} are a tensor on the meta device, which has no values. Give one with values.")
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    return (tensor if tensor.layout == torch.strided else tensor.to_dense()).detach()


def _array(name: str, values: Any, remedy: str) -> NDArray[Any]:
    """Return values of any kind as an array; numbers that are kept as objects become numbers."""

    def plain(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = _dense(name, value).cpu()
        # numpy has no bfloat16.
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()

    if _count_masked(values):
        check_present(name, values)
    try:
        array = np.asarray([plain(value) for value in values] if isinstance(values, (list, tuple)) else plain(values))
    except ValueError as error:
        raise InputError(f"{name} must form one array; got nested values of unequal lengths. {remedy}") from error
    except (TypeError, RuntimeError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise InputError(f"{name} must form one array; they can't: {reason}. {remedy}") from error
    if array.dtype == object:
        there = [value for value in array.flat if not _is_missing(value)]
        if there and all(isinstance(value, (Real, np.bool_)) for value in there):
            check_present(name, array)
            array = np.array(array.tolist())
            array = array.astype(np.float64) if array.dtype == object else array
    return array


def _numbers(name: str, values: Any, dtype: torch.dtype, device: torch.device | str, remedy: str) -> Tensor:
    """Return numeric values of any kind as a tensor without NaN and infinities."""
    _check_destination(dtype, device)
    if isinstance(values, Tensor):
        if values.is_complex():
            raise InputError(f"{name} must be real numbers; got {values.dtype}. {remedy}")
        tensor = _dense(name, values).to(device, dtype)
    else:
        array = _array(name, values, remedy)
        if array.dtype.kind not in "biuf":
            raise InputError(f"{name} must be real numbers; got dtype {array.dtype}. {remedy}")
        # torch knows neither every numpy dtype nor byte order, and warns of arrays that can't be written to.
        target = np.float64 if dtype == torch.float64 else np.float32
        with np.errstate(over="ignore"):  # reported below, as infinite values
            array = np.require(array, target, ["C", "W"])
        tensor = torch.from_numpy(array).to(device, dtype)
    # In parts: the test makes several copies of what it is given.
    parts = torch.split(tensor.reshape(-1), _TESTED_AT_ONCE)
    bad = tensor.numel() - sum(int(torch.isfinite(part).sum()) for part in parts)
    if bad:
        raise InputError(
            f"{name} must be finite; {bad} of {tensor.numel()} values are NaN or infinite as {dtype}. "
            "Remove or replace them."
        )
    return tensor


def check_images(images: Any, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
    """Return images as one checked float tensor.

    Parameters
    ----------
    images : array, tensor or nested lists, shape (n, C, H, W) or (n, H, W)
        Real numbers; integers and booleans are converted, not scaled. The result may share their memory.
    dtype : torch.dtype
        Floating-point type of the result.
    device : torch.device or str
        Where the result lives.

    Returns
    -------
    Tensor, shape (n, C, H, W)
        With C = 1 for images of shape (n, H, W).

    Raises
    ------
    InputError
        If the shape isn't one of these, the set is empty, or values are not finite real numbers.

    Examples
    --------
    >>> check_images([[[0, 1], [2, 3]]]).shape
    torch.Size([1, 1, 2, 2])
    """
    tensor = _numbers("images", images, dtype, device, "Pass pixels, shape (n, c, h, w) or (n, h, w).")
    if tensor.ndim not in (3, 4):
        remedy = "Reshape flat images first." if tensor.ndim == 2 else "One image needs a first axis of length 1."
        raise InputError(f"images must be (n, c, h, w) or (n, h, w); got {tuple(tensor.shape)}. {remedy}")
    if tensor.numel() == 0:
        raise InputError(f"images are empty: got shape {tuple(tensor.shape)}. Pass at least one image of one pixel.")
    return tensor if tensor.ndim == 4 else tensor.unsqueeze(1)


def check_targets(
    targets: Any, n_images: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Tensor:
    """Return numeric targets as one checked float tensor with a column an output.

    Parameters
    ----------
    targets : array, tensor or list, shape (n,) or (n, outputs)
        Real numbers. The result may share their memory.
    n_images : int
        The number of images they belong to.
    dtype : torch.dtype
        Floating-point type of the result.
    device : torch.device or str
        Where the result lives.

    Returns
    -------
    Tensor, shape (n, outputs)

    Raises
    ------
    InputError
        If there isn't one target an image, there are no outputs, or values are not finite real numbers.

    Examples
    --------
    >>> check_targets([1, -1, 1], 3).shape
    torch.Size([3, 1])
    """
    remedy = "Encode class labels by one_hot, or use ConvexCNNClassifier."
    tensor = _numbers("targets", targets, dtype, device, remedy)
    if tensor.ndim not in (1, 2):
        raise InputError(f"targets must be (n,) or (n, outputs); got {tuple(tensor.shape)}.")
    if len(tensor) != n_images:
        raise InputError(f"targets must be one an image; got {len(tensor)} targets for {n_images} images.")
    if tensor.numel() == 0:
        raise InputError(f"targets are empty: got shape {tuple(tensor.shape)}. Pass one output at least.")
    return tensor if tensor.ndim == 2 else tensor.unsqueeze(1)


def are_flat(targets: Any) -> bool:
    """Return whether checked targets are (n,), so that predictions are to be (n,) too.

    Examples
    --------
    >>> are_flat([0.5, 1.0]), are_flat([[0.5], [1.0]])
    (True, False)
    """
    return bool((targets if isinstance(targets, Tensor) else _array("targets", targets, "")).ndim == 1)


def check_labels(labels: Any) -> NDArray[Any]:
    """Return class labels of any kind as an array.

    Parameters
    ----------
    labels : array, tensor, table or list
        Numbers or names.

    Raises
    ------
    InputError
        If some are missing, or they are of several kinds.

    Examples
    --------
    >>> check_labels(np.array([2, 0], dtype=object))
    array([2, 0])
    """
    check_present("labels", labels)
    array = _array("labels", labels, "Pass one label an image.")
    kinds = {str if isinstance(v, str) else type(v) for v in array.flat} if array.dtype == object else set()
    if len(kinds) > 1:
        raise InputError(
            f"labels must be of one kind; got {', '.join(sorted(kind.__name__ for kind in kinds))}. "
            "Make all of them numbers, or all of them strings."
        )
    return array


def one_hot(
    labels: Any, n_classes: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the 0/1 targets of class indices.

    Parameters
    ----------
    labels : array, tensor or list, shape (n,)
        Class indices, integers from 0 to ``n_classes`` - 1.
    n_classes : int
        Number of classes, 2 or more.
    dtype : torch.dtype
        Floating-point type of the result.
    device : torch.device or str
        Where the result lives.

    Returns
    -------
    Tensor, shape (n, n_classes)
        1 in the column of the label, 0 elsewhere.

    Raises
    ------
    InputError
        If there are fewer than two classes, or labels are not class indices.

    Examples
    --------
    >>> one_hot([0, 2], 3)
    tensor([[1., 0., 0.],
            [0., 0., 1.]], dtype=torch.float64)
    """
    _check_destination(dtype, device)
    if not is_int(n_classes, 2):
        raise InputError(f"Classification needs two classes at least; got {n_classes}. Add images of another class.")
    index = check_labels(labels)
    if index.ndim != 1 or index.dtype.kind not in "biu":
        raise InputError(
            f"labels must be class indices, integers of shape (n,); got {index.dtype} {index.shape}. "
            "numpy.unique(labels, return_inverse=True) makes indices of names."
        )
    if len(index) and not (index.min() >= 0 and index.max() < n_classes):
        raise InputError(
            f"labels must be class indices 0 to {n_classes - 1}; got {index.min()} to {index.max()}. "
            "Number the classes from 0."
        )
    rows = torch.from_numpy(index.astype(np.int64)).to(device)
    return torch.nn.functional.one_hot(rows, int(n_classes)).to(dtype)


def split(labels: ArrayLike, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of a stratified random split, the same for the same seed.

    Parameters
    ----------
    labels : array, shape (n,)
        Class of each row.
    fraction : float
        Part of the rows to set apart, in (0, 1).
    seed : int
        Seed of the draw.

    Returns
    -------
    rest_rows, part_rows : array, int64
        Ascending; ``part_rows`` holds ceil(fraction * n) of the n rows.

    Raises
    ------
    InputError
        If the fraction is out of its range or a class has too few images.

    Examples
    --------
    >>> rest, part = split([0, 0, 0, 1, 1, 1], 1 / 3, seed=0)
    >>> len(rest), len(part)
    (4, 2)
    """
    groups = check_labels(labels)
    if groups.ndim != 1:
        raise InputError(f"labels must be of shape (n,); got {groups.shape}.")
    if not is_number(fraction, above=0, below=1):
        raise InputError(f"fraction must lie strictly between 0 and 1; got {fraction!r}.")
    classes, counts = np.unique(groups, return_counts=True)
    if len(classes) == 0 or counts.min() < 2:
        which = f"class {classes[counts.argmin()]} has {counts.min()}" if len(classes) else "there are none"
        raise InputError(f"A split needs two images of every class at least; {which}. Add images or drop the class.")
    part_size = int(np.ceil(float(fraction) * len(groups)))
    smaller = min(part_size, len(groups) - part_size)
    if smaller < len(classes):
        raise InputError(
            f"fraction {fraction!r} of {len(groups)} images leaves a side with {smaller}, fewer than the "
            f"{len(classes)} classes. Choose a fraction nearer to one half, or add images."
        )
    rest, part = train_test_split(
        np.arange(len(groups)), test_size=part_size, random_state=as_int("seed", seed, 0), stratify=groups
    )
    return np.sort(rest), np.sort(part)


def limit(image_set: ImageSet, n: int, seed: int) -> ImageSet:
    """Return n images, every class in its share; those for a smaller n are among those for a larger one.

    Parameters
    ----------
    image_set : ImageSet
        The images to draw from.
    n : int
        How many images, from the number of classes to ``len(image_set)``.
    seed : int
        Seed of the draw.

    Raises
    ------
    InputError
        If n is out of its range.

    Examples
    --------
    >>> train, _ = load_data("digits")
    >>> np.bincount(limit(train, 20, seed=0).labels)
    array([2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """
    return image_set.subset(limited_rows(image_set.labels, len(image_set.classes), n, seed))


def limited_rows(labels: NDArray[np.int64], n_classes: int, n: int, seed: int) -> NDArray[np.int64]:
    """Return the rows that ``limit`` keeps, ascending."""
    if not is_int(n):
        raise InputError(f"n must be an int; got {n!r}.")
    count = int(n)
    if not n_classes <= count <= len(labels):
        raise InputError(f"n must be from {n_classes} (one image a class) to {len(labels)} (all there are); got {n}.")
    # In a random order, the r-th of the m images of a class is due at (r + 1/2) / m; the first of each goes before all.
    random = np.random.default_rng(as_int("seed", seed, 0))
    shuffled = random.permutation(len(labels))
    due = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        due[members] = (np.arange(len(members)) + 0.5) / len(members)
        due[members[0]] = 0.0
    order = np.lexsort((random.random(len(labels)), due))
    return np.asarray(np.sort(order[:count]))


def shifted(images: Tensor, seed: int, first: int = 0, fraction: float = 0.125) -> Tensor:
    """Return a copy of each image that is shifted by some pixels, uniformly in both directions.

    What comes into view repeats the edge. The shift of an image depends on the seed and on its number alone.

    Parameters
    ----------
    images : Tensor, shape (n, C, H, W)
    seed : int
        >= 0.
    first : int
        Number of the first image.
    fraction : float
        Of the sides, the largest shift; in (0, 1). It is one pixel at least.

    Examples
    --------
    >>> shifted(torch.ones(2, 1, 4, 4), seed=0).shape
    torch.Size([2, 1, 4, 4])
    """
    seed, first = as_int("seed", seed, 0), as_int("first", first, 0)
    most = [max(1, int(float(fraction) * side)) for side in images.shape[2:]]
    copies = torch.empty_like(images)
    for index, image in enumerate(images):
        draw = np.random.default_rng((seed, first + index))
        down, right = (int(draw.integers(-m, m + 1)) for m in most)
        copies[index] = moved(image, down, right)
    return copies


def moved(images: Tensor, down: int, right: int) -> Tensor:
    """Return what comes into view of images (..., H, W) from so many pixels further down and to the right.

    Beyond the edge, the edge is repeated.

    Examples
    --------
    >>> moved(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), down=1, right=0).tolist()
    [[3.0, 4.0], [3.0, 4.0]]
    """
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) + down).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + right).clamp(0, width - 1)
    return images[..., rows, :][..., columns]


def load_data(source: str | os.PathLike[str]) -> tuple[ImageSet, ImageSet]:
    """Return the training and the test set of a named data set, or of files.

    Parameters
    ----------
    source : str or path
        ``"digits"``: scikit-learn's 1,797 digits of 8 x 8 pixels, every fifth one set apart for testing by a stratified
        draw of fixed seed 0 (1,437 and 360 images).
        ``"cifar10"``: the folder named by the environment variable ``CVXCNN_DATA`` (it, or a folder ``cifar10`` in
        it), or else ``data/cifar10`` of the working directory.
        Otherwise a path: a folder with ``train*.parquet`` and ``test*.parquet`` in the Hugging Face layout; an
        ``.npz`` file with ``x_train, y_train, x_test, y_test``; a folder with the IDX files of MNIST; a folder with
        the CIFAR-10 binary or python batches, or one of its two official ``.tar.gz``; or a folder of images as
        ``train/<class>/`` and ``test/<class>/``, with those in folders of a class.

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
    return load_rows(source, lambda _, labels, __: np.arange(len(labels)), lambda shape, _: shape)


def load_rows(source: str | os.PathLike[str], choose: Choice, agree: Agreement) -> tuple[ImageSet, ImageSet]:
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
    if source == "digits":
        whole = _load_digits()
        train, test = (
            part.subset(choose(split, part.labels, len(part.classes)))
            for split, part in zip(SPLITS, whole, strict=True)
        )
        return train, test
    if source == "cifar10":
        return _load_files(_find_cifar10(), "cifar10", choose, agree)
    with reading(source, "Check the path."):
        path = Path(source).expanduser().resolve()
        name = path.stem if path.is_file() else path.name
    return _load_files(path, name, choose, agree)


def _load_digits() -> tuple[ImageSet, ImageSet]:
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


def _load_files(path: Path, name: str, choose: Choice, agree: Agreement) -> tuple[ImageSet, ImageSet]:
    raw = read(path)
    indices, classes = encode_labels(*raw)
    if name == "cifar10" and classes == tuple("0123456789"):
        classes = CIFAR10_CLASSES
    sets = []
    for split, part, labels in zip(SPLITS, raw, indices, strict=True):
        rows = choose(split, labels, len(classes))
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
