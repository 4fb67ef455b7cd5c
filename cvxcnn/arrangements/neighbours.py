"""Neighbours of a gate: what lies across the hyperplanes of patches that are nearest to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..patches.patches import Patches

__all__ = ["BEYOND", "hyperplanes", "neighbours"]

# A neighbour lies this far beyond the hyperplane that it is across, in units of the unit sphere.
BEYOND = 1e-6


def hyperplanes(patches: Patches) -> Tensor:
    """Return the unit normals, distinct patches scaled to length 1, shape (N, d).

    With max pooling also the differences of the patches of a cell.
    """
    rows = torch.unique(patches.pooler.boundaries(patches.unfold()), dim=0)
    return F.normalize(rows[rows.any(dim=1)], dim=1)


def neighbours(normals: Tensor, gates: Tensor, count: int) -> Tensor:
    """Return, for each gate, gates across each of the ``count`` hyperplanes nearest to it.

    Parameters
    ----------
    normals : Tensor, shape (N, d)
        Unit normals of the hyperplanes.
    gates : Tensor, shape (m, d)
        Unit rows.
    count : int

    Returns
    -------
    Tensor, shape (min(count, N) * m, d)
        Unit rows: the gates mirrored at a hyperplane, and a little further.

    Examples
    --------
    >>> neighbours(torch.tensor([[0.6, 0.8], [0.0, 1.0]]), torch.tensor([[1.0, 0.1]]), 1).sign()
    tensor([[ 1., -1.]])
    """
    margins = normals @ gates.T
    nearest = margins.abs().topk(min(count, len(normals)), dim=0, largest=False).indices
    chosen = margins.gather(0, nearest)
    steps = 2 * chosen + torch.where(chosen >= 0, BEYOND, -BEYOND)
    moved = gates - steps[..., None] * normals[nearest]
    return F.normalize(moved.flatten(0, 1), dim=1)
