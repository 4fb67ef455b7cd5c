"""Losses: value, dual point, dual value and curvature; another loss is one new file and one entry here."""

from __future__ import annotations

from torch import Tensor

from ..errors import InputError
from .base import Loss
from .logistic import LogisticLoss
from .softmax import SoftmaxLoss
from .squared import SquaredLoss
from .weighted import Weighted

__all__ = ["LOSSES", "LogisticLoss", "Loss", "SoftmaxLoss", "SquaredLoss", "Weighted", "get_loss"]

LOSSES: dict[str, type[Loss]] = {loss.name: loss for loss in (SquaredLoss, LogisticLoss, SoftmaxLoss)}


def get_loss(name: str, weights: Tensor | None = None) -> Loss:
    """Return the loss of that name, with weights of images (n,) if there are any.

    Raises
    ------
    InputError
        If there is none.
    """
    if name not in LOSSES:
        raise InputError(f"loss must be one of {sorted(LOSSES)}; got {name!r}.")
    loss = LOSSES[name]()
    return loss if weights is None else Weighted(loss, weights)
