"""What users give by mistake: caught where it comes in, and not again where blocks hand maps to each other."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.distributed import all_sum
from ..data.checks import check_weights
from ..data.layout import check_layout
from ..errors import InputError

__all__ = ["check_given", "warn_of_labels", "weighing"]


def warn_of_labels(targets: Any, loss: Any) -> None:
    """Warn of integer class labels where numbers are to be fitted; -1 and +1 are numbers as good as labels."""
    if isinstance(targets, Tensor):
        targets = None if targets.is_floating_point() else targets.detach().cpu().numpy()
    try:
        values = np.asarray(targets)
    except (TypeError, ValueError, RuntimeError):  # what can't be an array is refused where targets are read
        return
    if loss != "squared" or values.dtype.kind not in "biu" or values.size != len(np.atleast_1d(values)):
        return
    found = np.unique(values).astype(np.int64)
    numbered = np.array_equal(found - found[:1], np.arange(len(found)))
    if len(found) > 1 and not np.isin(found, (-1, 1)).all() and (numbered or 2 * len(found) <= values.size):
        warnings.warn(
            f"targets are {len(found)} different integers, which are fitted as numbers by the squared loss. "
            "If they are class labels, use ConvexCNNClassifier, or one_hot(labels, n_classes); if not, pass floats.",
            UserWarning,
            stacklevel=5,
        )


def check_given(images: Any, targets: Any, loss: Any) -> None:
    """Refuse images whose layout isn't known, and warn of targets that look like labels."""
    check_layout(images)
    warn_of_labels(targets, loss)


Targets = TypeVar("Targets", Tensor, NDArray[Any])


def weighing(images: Tensor, targets: Targets, weights: Any) -> tuple[Tensor, Targets, Tensor | None]:
    """Return images, targets and their weights, float64, without images of weight zero; None for equal weights of 1.

    Parameters
    ----------
    images : Tensor, shape (n, ...)
    targets : Tensor or array, shape (n, ...)
    weights : array-like, shape (n,), or None
        As a user gives them.

    Raises
    ------
    InputError
        If they are no weights of these images.

    Examples
    --------
    >>> weighing(torch.ones(2, 1, 1, 1), torch.tensor([[5.0], [6.0]]), [0, 3])[1:]
    (tensor([[6.]]), tensor([3.], dtype=torch.float64))
    """
    if weights is None:
        return images, targets, None
    known = check_weights(weights, len(images), device=images.device)
    # Asked of all processes, which have weights together or not at all.
    if not bool(all_sum((known != 1).sum())):
        return images, targets, None
    kept = known > 0
    if bool(all_sum((~kept).all().to(torch.int64))):
        raise InputError(
            "sample_weight is zero for all images of a process, which has nothing to do. Share the images in another "
            "way, or use fewer processes."
        )
    if bool(kept.all()):
        return images, targets, known
    chosen: Any = kept.cpu().numpy() if isinstance(targets, np.ndarray) else kept
    return images[kept], targets[chosen], known[kept]
