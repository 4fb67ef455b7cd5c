"""The "dense" penalty: one Euclidean norm for each block, over its cells, rows and outputs together."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Penalty

__all__ = ["DensePenalty"]


class DensePenalty(Penalty):
    """Omega(w) = sum_j ||w_j||_F: with unit filters u_j, Eq. 1 of the network whose neurons feed everything.

    For a neuron (u, w), lam/2 (||u||^2 + ||w||^2) >= lam ||u|| ||w||, with equality when balanced.
    """

    name = "dense"
    separable = False

    def value(self, weights: Tensor) -> float:
        return float(weights.flatten(1).norm(dim=1).sum())

    def prox(self, weights: Tensor, step: float) -> Tensor:
        norms: Tensor = weights.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return weights * (1 - step / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min(0.0)

    def dual_norms(self, correlation: Tensor) -> Tensor:
        norms: Tensor = correlation.flatten(1).norm(dim=1)
        return norms
