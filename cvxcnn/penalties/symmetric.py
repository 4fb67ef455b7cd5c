"""The "symmetric" penalty: the sum of absolute eigenvalues of each (block, cell, output)'s packed symmetric matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.symmetric import packed, unpacked
from .base import Penalty
from .slopes import ProxSlope, SymmetricSlope

__all__ = ["SymmetricPenalty"]

# Eigenvalues are computed to so many roundings of the matrix's norm for each row (Anderson et al. 1999, LAPACK Users'
# Guide, section 4.7: a modest function of the size, of which the size is a safe one).
_EIGENVALUE_ROUNDINGS = 2.0


class SymmetricPenalty(Penalty):
    """Omega(Z) = sum_ico ||Z_ico||_*, exact for quadratic neurons that feed one (cell, output) each.

    ``rows`` are d (d + 1) / 2 numbers, the matrix ``packed``; the dual norm is the largest absolute eigenvalue.

    Source: Bartan & Pilanci 2021, Neural Spectrahedra and Semidefinite Lifts.

    Examples
    --------
    >>> weights = packed(torch.diag(torch.tensor([3.0, -4.0]))).view(1, 1, 3, 1)
    >>> SymmetricPenalty().value(weights), SymmetricPenalty().dual_norms(weights)
    (7.0, tensor([[[4.]]]))
    """

    name = "symmetric"

    @property
    def separable(self) -> bool:
        return True

    @property
    def stackable(self) -> bool:
        return True

    @staticmethod
    def matrices(weights: Tensor) -> Tensor:
        """Return the matrices, (blocks, cells, outputs, d, d)."""
        return unpacked(weights.transpose(-1, -2))

    def value(self, weights: Tensor) -> float:
        return float(torch.linalg.eigvalsh(self.matrices(weights)).abs().sum())

    def prox(self, weights: Tensor, step: float) -> Tensor:
        values, vectors = torch.linalg.eigh(self.matrices(weights))
        return self._of(vectors, _shrunk(values, step))

    def linearised(self, weights: Tensor, step: float) -> tuple[Tensor, ProxSlope]:
        values, vectors = torch.linalg.eigh(self.matrices(weights))
        after = _shrunk(values, step)
        return self._of(vectors, after), SymmetricSlope(vectors, values, after)

    @staticmethod
    def _of(vectors: Tensor, values: Tensor) -> Tensor:
        weights: Tensor = packed(vectors * values.unsqueeze(-2) @ vectors.mT).transpose(-1, -2).contiguous()
        return weights

    def dual_norms(self, correlation: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.eigvalsh(self.matrices(correlation)).abs().amax(dim=-1)
        return norms

    def group_norms(self, correlation: Tensor) -> Tensor:
        return self.dual_norms(correlation)

    def largest_scale(self, correlation: Tensor, reg: float, rounding: Tensor | None = None) -> Tensor:
        lengths = torch.linalg.vector_norm(correlation, dim=2)
        side = self.matrices(correlation[:, :1, :, :1]).shape[-1]
        # An error of a matrix moves no eigenvalue by more than its Frobenius norm.
        errors = _EIGENVALUE_ROUNDINGS * side * torch.finfo(lengths.dtype).eps * lengths
        norms = self.dual_norms(correlation) + errors + (0.0 if rounding is None else rounding.to(lengths))
        scale: Tensor = reg / norms.amax(dim=(0, 1)).clamp_min(torch.finfo(norms.dtype).tiny)
        return scale

    def expression(self, weights: Any, shape: tuple[int, int, int, int]) -> Any:
        import cvxpy as cp

        blocks, cells, rows, outputs = shape
        # Entry k of a packed vector is in these places of the d x d matrix, each divided by its scale.
        basis = unpacked(torch.eye(rows, dtype=torch.float64)).flatten(1).numpy()
        side = round(basis.shape[1] ** 0.5)
        total: Any = 0
        for part in range(blocks * cells):
            for output in range(outputs):
                entries = basis.T @ weights[part * rows : (part + 1) * rows, output]
                total = total + cp.normNuc(cp.reshape(entries, (side, side), order="F"))
        return total


def _shrunk(values: Tensor, step: float) -> Tensor:
    return values.sign() * (values.abs() - step).clamp_min(0.0)
