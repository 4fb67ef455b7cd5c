"""Weights of images by their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.checks import is_number
from ..core.distributed import all_sum
from ..errors import InputError
from .checks import check_weights

__all__ = ["by_class", "check_class_weight"]


def check_class_weight(given: Any) -> None:
    """Raise InputError unless this is None, "balanced", or weights >= 0 of classes in a dict."""
    if given is None or (isinstance(given, str) and given == "balanced"):
        return
    if not isinstance(given, Mapping):
        raise InputError(f'class_weight must be None, "balanced", or a dict from classes to weights; got {given!r}.')
    for name, weight in given.items():
        if not is_number(weight) or weight < 0:
            raise InputError(
                f"class_weight must have a finite number >= 0 for each class; got {weight!r} for {name!r}."
            )


def by_class(
    given: Any, indices: NDArray[Any], classes: Sequence[Any] | NDArray[Any], sample_weight: Any = None
) -> NDArray[np.float64] | None:
    """Return the weight of each image by its class, times its own; None if there are neither.

    "balanced" makes every class weigh the same, and all images together what they weigh without: those of class c
    n / (C n_c), with n_c of n images in c, of all processes, and C classes that have images. Images count by their own
    weights.

    Parameters
    ----------
    given : None, "balanced" or dict
        A dict has the weight of a class by its name; 1 where it has none.
    indices : array, shape (n,)
        The class of each image, as an index.
    classes : sequence
        Names of the classes.
    sample_weight : array-like, shape (n,), optional
        Weights of the images themselves, >= 0.

    Raises
    ------
    InputError
        If they are no weights, or a dict has a name that is no class in place of one that is.

    Examples
    --------
    >>> by_class("balanced", np.array([0, 0, 0, 1]), ["cat", "dog"]).round(3).tolist()
    [0.667, 0.667, 0.667, 2.0]
    >>> by_class({"dog": 5}, np.array([0, 1]), ["cat", "dog"], [1, 2]).tolist()
    [1.0, 10.0]
    """
    check_class_weight(given)
    own = None if sample_weight is None else check_weights(sample_weight, len(indices)).numpy()
    if given is None:
        return own
    weights = np.ones(len(indices)) if own is None else own
    names = list(np.asarray(classes).tolist())
    if isinstance(given, Mapping):
        found = {_plain(name): float(weight) for name, weight in given.items()}
        unknown = [name for name in found if name not in names]
        missing = [name for name in names if name not in found]
        if unknown and missing:
            raise InputError(
                f"class_weight has a weight of {unknown[0]!r}, which is no class, and none of {missing[0]!r}. "
                f"The classes are {', '.join(map(repr, names[:10]))}{', ...' if len(names) > 10 else ''}."
            )
        of_class = np.array([found.get(name, 1.0) for name in names])
    else:
        counts = _sums(indices, weights, len(names))
        present = counts > 0
        of_class = np.where(present, counts.sum() / (present.sum() * np.where(present, counts, 1.0)), 0.0)
    product: NDArray[np.float64] = weights * of_class[indices]
    return product


def _plain(name: Any) -> Any:
    return name.item() if isinstance(name, np.generic) else name


def _sums(indices: NDArray[Any], weights: NDArray[np.float64], n_classes: int) -> NDArray[np.float64]:
    """Return what the images of each class weigh together, over all processes."""
    own = torch.from_numpy(np.bincount(indices, weights, minlength=n_classes))
    return np.asarray(all_sum(own).numpy())
