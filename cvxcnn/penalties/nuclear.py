"""The "nuclear" penalty: the sum of singular values of each block's d x (cells * outputs) matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Penalty
from .slopes import ProxSlope, SingularSlope

__all__ = ["NuclearPenalty"]


class NuclearPenalty(Penalty):
    """Omega(Z) = sum_i ||Z_i||_*, exact for the gated network whose neurons feed every (cell, output).

    Source: Sahiner et al. 2021, Vector-output ReLU Neural Network Problems are Copositive Programs.
    """

    name = "nuclear"
    spectral = True

    @staticmethod
    def matrices(weights: Tensor) -> Tensor:
        """Return the blocks as matrices, (blocks, rows, cells * outputs)."""
        return weights.transpose(1, 2).flatten(2)

    def value(self, weights: Tensor) -> float:
        return float(torch.linalg.svdvals(self.matrices(weights)).sum())

    def prox(self, weights: Tensor, step: float) -> Tensor:
        blocks, cells, rows, outputs = weights.shape
        left, values, right = torch.linalg.svd(self.matrices(weights), full_matrices=False)
        shrunk: Tensor = (left * (values - step).clamp_min(0.0).unsqueeze(-2)) @ right
        return shrunk.view(blocks, rows, cells, outputs).transpose(1, 2).contiguous()

    def linearised(self, weights: Tensor, step: float) -> tuple[Tensor, ProxSlope]:
        _, cells, _, outputs = weights.shape
        left, values, right = torch.linalg.svd(self.matrices(weights), full_matrices=True)
        after, count = (values - step).clamp_min(0.0), values.shape[-1]
        shrunk = (left[..., :count] * after.unsqueeze(-2)) @ right[..., :count, :]
        slope = SingularSlope(left, right.mT, values, after)
        return shrunk.view(*shrunk.shape[:2], cells, outputs).transpose(1, 2).contiguous(), slope

    def dual_norms(self, correlation: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.svdvals(self.matrices(correlation)).amax(dim=1)
        return norms

    def expression(self, weights: Any, shape: tuple[int, int, int, int]) -> Any:
        import cvxpy as cp

        blocks, cells, rows, _ = shape
        size = cells * rows
        total = 0
        for block in range(blocks):
            part = weights[block * size : (block + 1) * size]
            total = total + cp.normNuc(cp.hstack([part[cell * rows : (cell + 1) * rows] for cell in range(cells)]))
        return total
