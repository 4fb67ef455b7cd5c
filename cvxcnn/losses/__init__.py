"""Losses: value, dual point, and dual value; a third loss is one new file and one entry here."""

from __future__ import annotations

from ..errors import InputError
from .base import Loss
from .squared import SquaredLoss

__all__ = ["LOSSES", "Loss", "SquaredLoss", "get_loss"]

LOSSES: dict[str, type[Loss]] = {"squared": SquaredLoss}


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
