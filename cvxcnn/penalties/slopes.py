"""The derivative of a spectral proximal map, by a square root: what Newton's method needs of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..core.symmetric import packed, unpacked

__all__ = ["ProxSlope", "SingularSlope", "SymmetricSlope"]

# Eigenvalues that differ by less than this share of the largest count as equal.
_EQUAL = 1e-12


class ProxSlope(ABC):
    """A generalised derivative J = S S^T of a proximal map at a point; eigenvalues of J are in [0, 1].

    ``up`` is S and ``down`` its transpose, on weights (batch, blocks, cells, rows, outputs) and coordinates of the same
    shape. With an eigenvalue (or singular value) decomposition of the point, J multiplies the coordinates in its basis
    by divided differences (p_i - p_j) / (l_i - l_j) of the values before (l) and after (p).

    Sources: Lewis & Sendov 2001, Twice differentiable spectral functions; Jiang, Sun & Toh 2014, A partial
    proximal point algorithm for nuclear norm regularized matrix least squares problems.
    """

    @abstractmethod
    def up(self, coordinates: Tensor) -> Tensor:
        """Return S c."""

    @abstractmethod
    def down(self, weights: Tensor) -> Tensor:
        """Return S^T w."""

    def columns(self, cell: int, output: int) -> tuple[Tensor, Tensor] | None:
        """Return which coordinates (a,) of a cell and output count, and their S, (rows, a); None if cells are mixed."""
        return None


def _divided(values: Tensor, after: Tensor) -> Tensor:
    """Return (p_i - p_j) / (l_i - l_j) of vectors (..., r), as (..., r, r); where l_i = l_j, whether p_i isn't zero."""
    gaps = values.unsqueeze(-1) - values.unsqueeze(-2)
    equal = gaps.abs() <= _EQUAL * values.abs().amax(dim=-1)[..., None, None]
    kept = (after != 0).to(values)
    limits = torch.maximum(kept.unsqueeze(-1), kept.unsqueeze(-2))
    ratios = (after.unsqueeze(-1) - after.unsqueeze(-2)) / torch.where(equal, 1.0, gaps)
    return torch.where(equal, limits, ratios).clamp(0.0, 1.0)


class SymmetricSlope(ProxSlope):
    """Of the map l -> p of the eigenvalues of a symmetric matrix for each (block, cell, output), packed in its rows.

    Parameters
    ----------
    vectors : Tensor, shape (blocks, cells, outputs, d, d)
        Eigenvectors, in columns.
    values, after : Tensor, shape (blocks, cells, outputs, d)
        l and p.
    """

    def __init__(self, vectors: Tensor, values: Tensor, after: Tensor) -> None:
        self.vectors = vectors
        self.roots = _divided(values, after).sqrt()

    def up(self, coordinates: Tensor) -> Tensor:
        inner = self.roots * unpacked(coordinates.transpose(-1, -2))
        return packed(self.vectors @ inner @ self.vectors.mT).transpose(-1, -2)

    def down(self, weights: Tensor) -> Tensor:
        inner = self.vectors.mT @ unpacked(weights.transpose(-1, -2)) @ self.vectors
        return packed(self.roots * inner).transpose(-1, -2)

    def columns(self, cell: int, output: int) -> tuple[Tensor, Tensor] | None:
        vectors, roots = self.vectors[0, cell, output], self.roots[0, cell, output]
        rows, columns = torch.triu_indices(len(roots), len(roots), device=roots.device)
        places = roots[rows, columns].nonzero().flatten()
        left, right = vectors.T[rows[places]], vectors.T[columns[places]]
        # A packed entry beyond the diagonal is of a matrix with two entries of 1 / sqrt(2).
        scale = roots[rows, columns][places]
        scale = torch.where((rows == columns)[places], 0.5 * scale, math.sqrt(0.5) * scale)
        products = left[:, :, None] * right[:, None, :]
        return places, packed(scale[:, None, None] * (products + products.mT)).T


class SingularSlope(ProxSlope):
    """Of the map l -> p of the singular values of each block's matrix, rows x (cells * outputs).

    In the bases of singular vectors a direction is split into halves (h_ij + h_ji) / sqrt(2) and
    (h_ij - h_ji) / sqrt(2), which J multiplies by divided differences and by (p_i + p_j) / (l_i + l_j); what is beyond
    the square part, by p_i / l_i.

    Parameters
    ----------
    left : Tensor, shape (blocks, rows, rows)
    right : Tensor, shape (blocks, cells * outputs, cells * outputs)
        Singular vectors, in columns.
    values, after : Tensor, shape (blocks, min(rows, cells * outputs))
        l and p.
    """

    def __init__(self, left: Tensor, right: Tensor, values: Tensor, after: Tensor) -> None:
        self.left, self.right = left, right
        rows, columns = left.shape[-1], right.shape[-1]
        side = min(rows, columns)
        sums = values.unsqueeze(-1) + values.unsqueeze(-2)
        ratios = (after.unsqueeze(-1) + after.unsqueeze(-2)) / torch.where(sums > 0, sums, 1.0)
        # Above the diagonal the symmetric half, below it the other.
        square = _divided(values, after).triu() + ratios.tril(-1)
        beyond = torch.where(values > 0, after / torch.where(values > 0, values, 1.0), 0.0)
        weights = left.new_zeros(len(left), rows, columns)
        weights[:, :side, :side] = square
        weights[:, :side, side:] = beyond.unsqueeze(2)
        weights[:, side:, :side] = beyond.unsqueeze(1)
        self.roots, self.side = weights.sqrt(), side

    def _halves(self, matrices: Tensor) -> Tensor:
        """Return matrices with their square part in halves; the map is its own inverse and transpose."""
        square = matrices[..., : self.side, : self.side]
        upper, lower = square.triu(1), square.tril(-1).mT
        halves = torch.diag_embed(square.diagonal(dim1=-2, dim2=-1)) + ((upper + lower) + (upper - lower).mT) / 2**0.5
        mixed = matrices.clone()
        mixed[..., : self.side, : self.side] = halves
        return mixed

    def up(self, coordinates: Tensor) -> Tensor:
        *_, cells, _, outputs = coordinates.shape
        inner = self._halves(self.roots * coordinates.transpose(-3, -2).flatten(-2))
        return _weights(self.left @ inner @ self.right.mT, cells, outputs)

    def down(self, weights: Tensor) -> Tensor:
        *_, cells, _, outputs = weights.shape
        inner = self.left.mT @ weights.transpose(-3, -2).flatten(-2) @ self.right
        return _weights(self.roots * self._halves(inner), cells, outputs)


def _weights(matrices: Tensor, cells: int, outputs: int) -> Tensor:
    """Return matrices (..., rows, cells * outputs) as weights (..., cells, rows, outputs)."""
    return matrices.reshape(*matrices.shape[:-1], cells, outputs).transpose(-3, -2)
