"""The "dense" penalty: one Euclidean norm for each block, over its cells, rows and outputs together."""

from __future__ import annotations

from .base import Penalty

__all__ = ["DensePenalty"]


class DensePenalty(Penalty):
    """Omega(w) = sum_j ||w_j||_F: with unit filters u_j, Eq. 1 of the network whose neurons feed everything.

    For a neuron (u, w), lam/2 (||u||^2 + ||w||^2) >= lam ||u|| ||w||, with equality when balanced.
    """

    name = "dense"
    group_axes = ()
