"""Linear bounds of the responses of filters on cones of directions; ``Tree.close`` says which."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .simplicial import SimplicialCones, height_over, steepest, sums

__all__ = ["LinearBounds"]


class LinearBounds:
    """The linear bounds of ||A(u)|| on cones where it may exceed a level; see ``Tree.close`` for the symbols.

    ``coefficients`` (N + 1, m) of all patches have a zero last, for the index -1, and ``lengths`` (N + 1,) are theirs.
    """

    def __init__(self, coefficients: Tensor, lengths: Tensor, cones: SimplicialCones, level: float) -> None:
        values = cones.values
        self.coefficients = coefficients[cones.patches]
        self.lengths = lengths[cones.patches]
        self.positive = values.clamp_min(0.0)
        self.widths = values.abs().sum(dim=2).clamp_min(1e-300)
        self.shares = self.positive.sum(dim=2) / self.widths  # theta
        base = cones.corners @ cones.linear
        # sum_k C_k e_ki is what the interpolations are above the secants.
        secants = base + sums(values, self.coefficients * self.shares.unsqueeze(2))
        halves = 0.5 * (secants + base + sums(self.positive, self.coefficients))
        toward = halves.sum(dim=1)
        # Where the sum vanishes any unit vector will do.
        toward[:, 0] += (toward == 0).all(dim=1).to(toward)
        self.toward = F.normalize(toward, dim=1)  # W_0
        along = (self.coefficients @ self.toward.unsqueeze(2)).squeeze(2)
        self.rising = (along > 0).to(values)  # s_k
        spread = self._spread(cones, along, secants, halves, level).unsqueeze(1)
        self.doubt = (spread * self.lengths - along.abs()).clamp_min(0.0).minimum(self.lengths)
        self.convex = base + sums(self.positive, self.coefficients * self.rising.unsqueeze(2))
        self._update(values)

    def _excess(self, values: Tensor, weights: Tensor) -> Tensor:
        """Return sum_k weights_k e_ki with e_ki = (x_k . g_i)_+ - theta_k x_k . g_i >= 0; shape (B, r)."""
        above = sums(self.positive, weights.unsqueeze(2)) - sums(values, (weights * self.shares).unsqueeze(2))
        return above.squeeze(2)

    def _spread(self, cones: SimplicialCones, along: Tensor, secants: Tensor, halves: Tensor, level: float) -> Tensor:
        """Return how far from W_0 the direction of A(u) is, at most, where ||A(u)|| exceeds the level; shape (B,)."""
        low = (secants @ self.toward.unsqueeze(2)).squeeze(2) + self._excess(cones.values, along.clamp_max(0.0))
        forward = (low >= 0).all(dim=1)  # then W_0 . A(u) >= 0
        far = self.toward.new_full((len(forward),), 2.0)
        if self.coefficients.shape[2] == 1:
            return torch.where(forward, 0.0, far)
        across = halves - (halves @ self.toward.unsqueeze(2)) * self.toward.unsqueeze(1)
        lengths = (self.lengths.square() - along.square()).clamp_min(0.0).sqrt()
        reach = across.norm(dim=2) + 0.5 * self._excess(cones.values, lengths).clamp_min(0.0)
        sine = height_over(cones.corners, reach, torch.ones_like(reach)) / level
        # |W - W_0| = 2 sin(angle / 2), below 1.5 up to a right angle.
        chord = sine * (2 / (1 + (1 - sine.square()).clamp_min(0.0).sqrt())).sqrt()
        return torch.where(forward, torch.where(sine < 0.99, chord, 1.5), far)

    def _update(self, values: Tensor) -> None:
        concave = self.coefficients * (self.shares * (1 - self.rising)).unsqueeze(2)
        self.vectors = self.convex + sums(values, concave)
        doubts = self._excess(values, self.doubt).clamp_min(0.0)
        self.heights = self.vectors.norm(dim=2) + doubts
        self.along = (self.vectors @ self.toward.unsqueeze(2)).squeeze(2) + doubts

    def take(self, chosen: Tensor) -> LinearBounds:
        """Return the terms of the cones with these indices, with as many columns as ``SimplicialCones.take`` leaves."""
        taken = object.__new__(LinearBounds)
        width = int((self.lengths[chosen] > 0).sum(dim=1).max()) if self.lengths.numel() else 0
        for name, value in vars(self).items():
            by_patch = name in ("coefficients", "lengths", "positive", "widths", "shares", "rising", "doubt")
            setattr(taken, name, (value[:, :width] if by_patch else value)[chosen])
        return taken

    def lowered(self, cones: SimplicialCones) -> tuple[Tensor, Tensor]:
        """Return bounds (B,), and weights (B, r) of the unit vectors where they are about attained."""
        weights = steepest(cones.corners, self.along)
        upper = torch.fmin(cones.upper, height_over(cones.corners, self.heights, weights))
        return upper, weights / (weights.unsqueeze(1) @ cones.corners).norm(dim=2)

    def relaxed(self, cones: SimplicialCones, weights: Tensor) -> Tensor:
        """Return about what the bound would be at sum_i weights_i g_i with the best theta there; shape (B,)."""
        heights = (cones.values @ weights.unsqueeze(2)).clamp_min(0.0) * (1 - self.rising).unsqueeze(2)
        value = weights.unsqueeze(1) @ self.convex + sums(heights, self.coefficients)
        norms: Tensor = value.squeeze(1).norm(dim=1)
        return norms

    def turn(self, cones: SimplicialCones, weights: Tensor, step: float) -> None:
        """Move theta towards what is best at sum_i weights_i g_i, a step of Frank and Wolfe's method."""
        active = (cones.values @ weights.unsqueeze(2)).squeeze(2) > 0
        self.shares = self.shares + step * (1 - self.rising) * (active.to(self.shares) - self.shares)
        self._update(cones.values)

    def worst_edges(self, cones: SimplicialCones, edges: list[tuple[int, int]], level: float) -> Tensor:
        """Return the edge of each cone that costs its bound most, shape (B,)."""
        # Of a patch that changes sign on an edge: its interpolation minus itself, about where it is zero.
        weights = self.lengths * (0.5 + 0.5 * self.rising) / self.widths
        crossing = sums(self.positive, weights.unsqueeze(2) * (self.positive - cones.values))
        gram = cones.corners @ cones.corners.transpose(1, 2)
        across = self.vectors - (self.vectors @ self.toward.unsqueeze(2)) * self.toward.unsqueeze(1)
        turned = (across.unsqueeze(1) - across.unsqueeze(2)).square().sum(dim=3)
        costs = crossing + crossing.transpose(1, 2) + 0.25 * level * (1 - gram) + 0.125 * turned / level
        return torch.stack([costs[:, i, j] for i, j in edges], dim=1).argmax(dim=1)
