"""Sets of labelled images, their classes as targets, and which of them are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..core.checks import as_int, is_int, is_number
from ..errors import InputError
from .checks import check_destination, check_labels
from .layout import check_layout

__all__ = ["ImageSet", "limit", "limited_rows", "one_hot", "split"]


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
    check_destination(dtype, device)
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
    from sklearn.model_selection import train_test_split  # here, because it brings half of scikit-learn

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
    >>> from cvxcnn.data import load_data
    >>> train, _ = load_data("digits")
    >>> np.bincount(limit(train, 20, seed=0).labels)
    array([2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """
    return image_set.subset(limited_rows(image_set.labels, len(image_set.classes), n, seed))


def limited_rows(labels: NDArray[np.int64], n_classes: int, n: int, seed: int, name: str = "n") -> NDArray[np.int64]:
    """Return the rows that ``limit`` keeps, ascending; errors call their number by a name."""
    if not is_int(n):
        raise InputError(f"{name} must be an int; got {n!r}.")
    count = int(n)
    if not n_classes <= count <= len(labels):
        raise InputError(
            f"{name} must be from {n_classes} (one image a class) to {len(labels)} (all there are); got {n}."
        )
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
