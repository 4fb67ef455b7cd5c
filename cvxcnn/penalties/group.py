"""The "group" penalty: every (block, cell, output) has a Euclidean norm of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Penalty

__all__ = ["GroupPenalty"]


class GroupPenalty(Penalty):
    """Omega(z) = sum_{i,c,o} ||z_ico||, exact for a network whose neurons feed one (cell, output) each.

    Source: Ergen & Pilanci 2021, Theorem 2.1, one program for each output.
    """

    name = "group"
    separable = True

    def value(self, weights: Tensor) -> float:
        return float(weights.norm(dim=2).sum())

    def prox(self, weights: Tensor, step: float) -> Tensor:
        norms: Tensor = weights.norm(dim=2, keepdim=True)
        return weights * (1 - step / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min(0.0)

    def dual_norms(self, correlation: Tensor) -> Tensor:
        norms: Tensor = correlation.norm(dim=2)
        return norms
