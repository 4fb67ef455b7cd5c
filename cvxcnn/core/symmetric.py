"""Symmetric matrices as vectors."""

from __future__ import annotations

import math
from functools import lru_cache

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
    upper, _, scale = _places(matrices.shape[-1], matrices.dtype, matrices.device)
    # Of one index, which is several times as fast as two.
    return matrices.flatten(-2).index_select(-1, upper) * scale


def unpacked(vectors: Tensor) -> Tensor:
    """Return the inverse of ``packed``.

    Examples
    --------
    >>> unpacked(packed(torch.tensor([[1.0, 2.0], [2.0, 3.0]])))
    tensor([[1., 2.],
            [2., 3.]])
    """
    side = (math.isqrt(8 * vectors.shape[-1] + 1) - 1) // 2
    _, places, scale = _places(side, vectors.dtype, vectors.device)
    return (vectors / scale).index_select(-1, places).view(*vectors.shape[:-1], side, side)


@lru_cache(maxsize=16)
def _places(side: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return where packed entries are in a flat matrix, where a flat matrix's are among the packed, and their scale."""
    rows, columns = torch.triu_indices(side, side, device=device)
    scale = torch.full((len(rows),), math.sqrt(2), dtype=dtype, device=device)
    scale[rows == columns] = 1.0
    places = torch.empty(side, side, dtype=torch.int64, device=device)
    places[rows, columns] = places[columns, rows] = torch.arange(len(rows), device=device)
    return rows * side + columns, places.flatten(), scale
