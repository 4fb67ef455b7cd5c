"""What the programs and solvers need of a penalty."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["Penalty"]


class Penalty(ABC):
    """A norm Omega of weights of shape (blocks, cells, rows, outputs); a block is one gate or one filter.

    ``rows`` is the patch length d for weights on gated patches, and 1 for weights on ReLU responses.
    """

    name: str
    separable: bool
    """Whether Omega is a sum over outputs, so that squared loss splits into one program an output."""

    @abstractmethod
    def value(self, weights: Tensor) -> float:
        """Return Omega(weights)."""

    @abstractmethod
    def prox(self, weights: Tensor, step: float) -> Tensor:
        """Return argmin_v 1/2 ||v - weights||^2 + step * Omega(v)."""

    @abstractmethod
    def dual_norms(self, correlation: Tensor) -> Tensor:
        """Return the dual norm of each group of A^T nu: (blocks, cells, outputs) if separable, else (blocks,)."""

    def largest_scale(self, correlation: Tensor, reg: float, rounding: Tensor | None = None) -> Tensor:
        """Return, for each output, the largest s with dual norm of s * A^T nu at most ``reg``; shape (outputs,).

        Parameters
        ----------
        correlation : Tensor, shape (blocks, cells, rows, outputs)
            A^T nu.
        reg : float
        rounding : Tensor, shape (cells, outputs), optional
            How long the error of each column of A^T nu may be; then s is right for every such error. A dual norm that
            is not separable must be at most the Frobenius norm, as that of every penalty here is.
        """
        if not len(correlation):
            return correlation.new_full((correlation.shape[-1],), float("inf"))  # no group, no constraint
        norms = self.dual_norms(correlation)
        if rounding is not None:
            if not self.separable:
                rounding = rounding.norm()
            elif rounding.shape[0] != norms.shape[1]:  # groups that have several cells
                rounding = rounding.norm(dim=0)
            norms = norms + rounding.to(norms)
        peak = norms.amax(dim=(0, 1)) if self.separable else norms.amax().expand(correlation.shape[-1])
        return reg / peak.clamp_min(torch.finfo(peak.dtype).tiny)
