"""Penalties: their groups, or value, prox and dual norm; a new penalty is one new file and one entry here."""

from __future__ import annotations

from ..errors import InputError
from .base import Penalty
from .dense import DensePenalty
from .group import GroupPenalty
from .nuclear import NuclearPenalty

__all__ = ["PENALTIES", "DensePenalty", "GroupPenalty", "NuclearPenalty", "Penalty", "get_penalty"]

PENALTIES: dict[str, type[Penalty]] = {"group": GroupPenalty, "nuclear": NuclearPenalty, "dense": DensePenalty}


def get_penalty(name: str) -> Penalty:
    """Return the penalty of that name.

    Raises
    ------
    InputError
        If there is none.
    """
    if name not in PENALTIES:
        raise InputError(f"penalty must be one of {sorted(PENALTIES)}; got {name!r}.")
    return PENALTIES[name]()
