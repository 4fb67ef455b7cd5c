"""Angles between vectors, and the expectations of ReLU neurons that depend on them, without loss of digits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["angle", "chords", "pair_angles", "shortfall"]

# Below it pi - sin t - (pi - t) cos t is a sum of its series; above it rounding is less than its last digit.
_SMALL = 1e-2


def angle(first: Tensor, second: Tensor) -> Tensor:
    """Return the angles in [0, pi] between vectors (..., d), shape (...): a right angle to a zero vector.

    From the chords, since the arc cosine loses half of the digits near 0 and pi, where critical points are.

    Examples
    --------
    >>> float(angle(torch.tensor([1.0, 1e-12], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)))
    1e-12
    """
    lengths, others = first.norm(dim=-1, keepdim=True), second.norm(dim=-1, keepdim=True)
    # Each scaled by the other's length: no division, and zero vectors give 0 and 0.
    one, other = first * others, second * lengths
    chord, sum_chord = (one - other).norm(dim=-1), (one + other).norm(dim=-1)
    defined = (chord > 0) | (sum_chord > 0)
    return torch.where(defined, 2 * torch.atan2(chord, sum_chord), math.pi / 2)


def chords(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return |x - y| and |x + y| for the directions x and y of all rows of (p, d) and (q, d), each of shape (p, q)."""
    one, other = (torch.nn.functional.normalize(rows, dim=1, eps=1e-300) for rows in (first, second))
    exact = "donot_use_mm_for_euclid_dist"  # products lose half of the digits of a small distance
    chord = torch.cdist(one, other, compute_mode=exact)
    return chord, torch.cdist(one, -other, compute_mode=exact)


def pair_angles(first: Tensor, second: Tensor) -> Tensor:
    """Return the angles between all rows of (p, d) and (q, d), shape (p, q), in memory of p q numbers."""
    return 2 * torch.atan2(*chords(first, second))


def shortfall(theta: Tensor) -> Tensor:
    """Return pi - sin t - (pi - t) cos t >= 0, which vanishes at t = 0.

    (pi - shortfall) / 2 pi is E (u.x)_+ (v.x)_+ of unit vectors u and v at the angle t and standard normal x.

    Examples
    --------
    >>> shortfall(torch.tensor([0.0, math.pi], dtype=torch.float64)).tolist() == [0.0, math.pi]
    True
    """
    # pi (1 - cos t) - (sin t - t cos t): both parts vanish, the second in third order.
    squares = theta.square()
    series = theta * squares * (1 / 3 - squares * (1 / 30 - squares / 840))
    odd = torch.where(theta < _SMALL, series, theta.sin() - theta * theta.cos())
    return 2 * math.pi * (theta / 2).sin().square() - odd
