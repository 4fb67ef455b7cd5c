"""The Gram form of squared-loss programs: memory independent of the number of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributed import all_sum
from ..program import Program

__all__ = ["GramForm"]


@dataclass
class GramForm:
    """A^T A, A^T Y and ||Y||^2 of a program: all that squared loss needs.

    Attributes
    ----------
    gram : Tensor, shape (q, q), q = blocks * cells * rows
    linear : Tensor, shape (q, outputs)
    squared_norm : Tensor, shape (outputs,)
        ||y_o||^2 of each output.
    shape : tuple
        Shape of the weights.
    """

    gram: Tensor
    linear: Tensor
    squared_norm: Tensor
    shape: tuple[int, int, int, int]

    @classmethod
    def of(cls, program: Program, blocks: Tensor | None = None) -> GramForm:
        """Return the Gram form of a program, or of some of its blocks."""
        design = program.design
        index = torch.arange(design.n_blocks, device=program.targets.device) if blocks is None else blocks
        columns = program.columns(index).flatten(1)
        targets = program.centre(program.targets)
        shape = (len(index), design.n_cells, design.rows, program.n_outputs)
        gram, linear = all_sum(columns.T @ columns), all_sum(columns.T @ targets)
        return cls(gram, linear, all_sum(targets.square().sum(dim=0)), shape)

    def gap(self, program: Program, weights: Tensor) -> tuple[float, float, Tensor]:
        """Return objective, dual bound and A^T nu of weights (blocks, cells, rows, outputs), without images."""
        flat = weights.reshape(len(self.gram), -1)
        product = self.gram @ flat
        correlation = (self.linear - product).view(self.shape)
        inner, square = (flat * self.linear).sum(dim=0), (flat * product).sum(dim=0)
        residual = (self.squared_norm - 2 * inner + square).clamp_min(0.0)
        objective = 0.5 * float(residual.sum()) + program.reg * program.penalty.value(weights)
        largest = program.penalty.largest_scale(correlation, program.reg)
        linear = self.squared_norm - inner
        best = (linear / residual.clamp_min(1e-300)).clamp_min(0.0).minimum(largest)
        return objective, float((best * linear - 0.5 * best.square() * residual).sum()), correlation
