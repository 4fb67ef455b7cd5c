"""Simplicial cones of directions, cut from the sphere, and bounds of what is linear on them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SimplicialCones", "height_over", "joined", "largest", "steepest", "sums"]

# A bound over a cone divides by the cosines of its edges with its middle; if one is less, there is no bound.
_LEAST_COSINE = 0.1


class SimplicialCones(NamedTuple):
    """B cones {sum_i lambda_i g_i, lambda >= 0} in R^r, each with the up to K responses that are not linear in it.

    A response is max(0, max_k x_k . u) of w patches: of one where pooling is linear, of a cell with max pooling.
    """

    corners: Tensor  # (B, r, r), unit g_i in the rows
    linear: Tensor  # (B, r, m), sum of x C^T over the responses that are one patch's in the whole cone
    patches: Tensor  # (B, K), indices of the undecided responses, then -1
    values: Tensor  # (B, K, w, r), x_k . g_i, then 0
    upper: Tensor  # (B,)
    edge: Tensor  # (B,), the pair of corners to bisect between

    def take(self, chosen: Tensor) -> SimplicialCones:
        """Return the cones with these indices, in this order, with no more columns than they need."""
        patches = self.patches[chosen]
        width = int((patches >= 0).sum(dim=1).max()) if patches.numel() else 0
        return SimplicialCones(
            self.corners[chosen],
            self.linear[chosen],
            patches[:, :width],
            self.values[:, :width][chosen],
            self.upper[chosen],
            self.edge[chosen],
        )

    def n_bytes(self) -> int:
        """Return the bytes of all parts."""
        return sum(part.numel() * part.element_size() for part in self)

    def n_pairs(self) -> int:
        """Return about how many (cone, patch) pairs there are to work on."""
        return len(self.upper) * (self.patches.shape[1] * self.values.shape[2] + self.corners.shape[1])


def joined(parts: list[SimplicialCones]) -> SimplicialCones:
    """Return the cones of all parts, one after another."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.patches.shape[1] for part in parts)
    columns = [width - part.patches.shape[1] for part in parts]
    padded = [
        part._replace(
            patches=F.pad(part.patches, (0, more), value=-1), values=F.pad(part.values, (0, 0, 0, 0, 0, more))
        )
        for part, more in zip(parts, columns, strict=True)
    ]
    return SimplicialCones(*(torch.cat(same) for same in zip(*padded, strict=True)))


def largest(values: Tensor) -> Tensor:
    """Return the largest along the patches of a response, (B, K, w, ...) to (B, K, ...)."""
    return values[:, :, 0] if values.shape[2] == 1 else values.amax(dim=2)


def sums(rows: Tensor, weights: Tensor) -> Tensor:
    """Return sum_k rows_ki weights_kj for each cone, shape (B, r, m)."""
    return rows.transpose(1, 2) @ weights


def steepest(corners: Tensor, heights: Tensor) -> Tensor:
    """Return lambda >= 0 that nearly maximises heights . lambda over ||sum_i lambda_i g_i|| <= 1; shape (B, r).

    By pivoting on the non-negative least squares problem min 1/2 ||sum_i lambda_i g_i||^2 - heights . lambda. It is
    only a proposal: bounds are computed from it, not believed.
    """
    gram = corners @ corners.transpose(1, 2)
    rank = heights.shape[1]
    eye = torch.eye(rank).to(gram)
    free = torch.ones_like(heights, dtype=torch.bool)
    slack = 1e-12 * heights.abs().amax(dim=1, keepdim=True)
    weights = torch.zeros_like(heights)
    for step in range(3 * rank):
        system = torch.where(free.unsqueeze(2) & free.unsqueeze(1), gram, eye)
        weights = torch.linalg.solve_ex(system, torch.where(free, heights, 0.0))[0]
        excess = heights - (gram @ weights.unsqueeze(2)).squeeze(2)
        wrong = torch.where(free, weights < 0, excess > slack)
        if not wrong.any():
            break
        if step >= rank:
            # Changing all at once may cycle; changing the last one alone does not.
            last = rank - 1 - wrong.flip(1).int().argmax(dim=1, keepdim=True)
            wrong = wrong & (torch.arange(rank, device=last.device) == last)
        free = free ^ wrong
    weights = torch.nan_to_num(weights, nan=0.0, posinf=0.0, neginf=0.0).clamp_min(0.0)
    return torch.where((weights > 0).any(dim=1, keepdim=True), weights, 1.0)


def height_over(corners: Tensor, heights: Tensor, weights: Tensor) -> Tensor:
    """Return a bound of heights . lambda over ||sum_i lambda_i g_i|| <= 1, lambda >= 0; any weights >= 0 give one.

    With the unit vector m along sum_i weights_i g_i and all m . g_i > 0,

        sum_i lambda_i h_i <= max_i (h_i / m . g_i)_+ * sum_i lambda_i m . g_i <= max_i (h_i / m . g_i)_+.
    """
    middle = F.normalize((weights.unsqueeze(1) @ corners).squeeze(1), dim=1)
    cosines = (corners @ middle.unsqueeze(2)).squeeze(2)
    ratio = (heights / cosines.clamp_min(_LEAST_COSINE)).amax(dim=1).clamp_min(0.0)
    return torch.where((cosines >= _LEAST_COSINE).all(dim=1), ratio, math.inf)
