"""Which directions are one and the same maximum, and how many maxima a search has probably missed.

Source: Boender & Rinnooy Kan 1987, Bayesian Stopping Rules for Multistart Global Optimization Methods.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Maxima", "best_directions", "expected_unseen"]

# Filters whose cosine exceeds this are taken for one and the same when new ones are chosen, or starts to climb from.
SAME_DIRECTION = 0.99


def best_directions(
    values: Tensor,
    filters: Tensor,
    floor: float,
    count: int,
    same: float = SAME_DIRECTION,
    kinds: Tensor | None = None,
) -> Tensor:
    """Return the indices of the best filters above a floor whose cosines are below ``same``, at most ``count``.

    Filters of different ``kinds`` (m,) are different whatever their cosine.
    """
    order = torch.argsort(values, descending=True)
    order = order[values[order] > floor]
    cosines = filters[order] @ filters[order].T
    if kinds is not None:
        cosines = torch.where(kinds[order][:, None] == kinds[order], cosines, -1.0)
    chosen: list[int] = []
    for position in range(len(order)):
        if len(chosen) == count:
            break
        if not chosen or float(cosines[position, chosen].max()) < same:
            chosen.append(position)
    return order[torch.tensor(chosen, dtype=torch.long, device=order.device)]


def expected_unseen(n_starts: int, n_distinct: int) -> float:
    """Return how many maxima are expected to have been missed by random starts that met ``n_distinct`` of them.

    w (N - 1) / (N - w - 2) maxima are expected in all, for N starts and w distinct maxima, every number of maxima and
    every share of the starts being equally likely beforehand (Boender & Rinnooy Kan 1987, equation 15).

    Examples
    --------
    >>> expected_unseen(102, 4), expected_unseen(5, 4)
    (0.20833333333333304, inf)
    """
    rest = n_starts - n_distinct - 2
    return n_distinct * (n_starts - 1) / rest - n_distinct if rest > 0 else float("inf")


@dataclass
class Maxima:
    """Directions that stand for a maximum, by their indices, and the (cell, output) that each of them makes large."""

    indices: Tensor
    kinds: Tensor

    def add(self, indices: Tensor, kinds: Tensor) -> None:
        """Add some."""
        self.indices, self.kinds = torch.cat([self.indices, indices]), torch.cat([self.kinds, kinds])
