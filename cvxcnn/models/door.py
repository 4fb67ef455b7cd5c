"""What users give by mistake: caught where it comes in, and not again where blocks hand maps to each other."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from torch import Tensor

from ..data.layout import check_layout

__all__ = ["check_given", "warn_of_labels"]


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
