"""The "group" penalty: every (block, cell, output) has a Euclidean norm of its own."""

from __future__ import annotations

from .base import Penalty

__all__ = ["GroupPenalty"]


class GroupPenalty(Penalty):
    """Omega(z) = sum_{i,c,o} ||z_ico||, exact for a network whose neurons feed one (cell, output) each.

    Source: Ergen & Pilanci 2021, Theorem 2.1, one program for each output.
    """

    name = "group"
    group_axes = ("cell", "output")
