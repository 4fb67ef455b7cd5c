"""Symmetric matrices as vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["packed", "unpacked"]


def packed(matrices: Tensor) -> Tensor:
    """Return symmetric matrices (..., d, d) as vectors (..., d (d + 1) / 2) of the same inner products.

    They are the entries on and above the diagonal, those above it times sqrt(2).

    Examples
    --------
    >>> packed(torch.tensor([[1.0, 2.0], [2.0, 3.0]]))
    tensor([1.0000, 2.8284, 3.0000])
    """
    rows, columns, scale = _places(matrices.shape[-1], matrices)
    return matrices[..., rows, columns] * scale


def unpacked(vectors: Tensor) -> Tensor:
    """Return the inverse of ``packed``.

    Examples
    --------
    >>> unpacked(packed(torch.tensor([[1.0, 2.0], [2.0, 3.0]])))
    tensor([[1., 2.],
            [2., 3.]])
    """
    side = (math.isqrt(8 * vectors.shape[-1] + 1) - 1) // 2
    rows, columns, scale = _places(side, vectors)
    entries = vectors / scale
    matrices = vectors.new_empty(*vectors.shape[:-1], side, side)
    matrices[..., rows, columns] = entries
    matrices[..., columns, rows] = entries
    return matrices


def _places(side: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = torch.triu_indices(side, side, device=like.device)
    scale = like.new_full((len(rows),), math.sqrt(2))
    scale[rows == columns] = 1.0
    return rows, columns, scale
