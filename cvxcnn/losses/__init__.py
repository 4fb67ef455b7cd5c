"""Losses: value, dual point, dual value and curvature; another loss is one new file and one entry here."""

from __future__ import annotations

from ..errors import InputError
from .base import Loss
from .logistic import LogisticLoss
from .softmax import SoftmaxLoss
from .squared import SquaredLoss

__all__ = ["LOSSES", "LogisticLoss", "Loss", "SoftmaxLoss", "SquaredLoss", "get_loss"]

LOSSES: dict[str, type[Loss]] = {loss.name: loss for loss in (SquaredLoss, LogisticLoss, SoftmaxLoss)}


def get_loss(name: str) -> Loss:
    """Return the loss of that name.

    Raises
    ------
    InputError
        If there is none.
    """
    if name not in LOSSES:
        raise InputError(f"loss must be one of {sorted(LOSSES)}; got {name!r}.")
    return LOSSES[name]()
