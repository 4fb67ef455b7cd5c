"""Linear bounds of the responses of filters on cones of directions; ``Tree.close`` says which."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .simplicial import SimplicialCones, height_over, largest, steepest, sums

__all__ = ["LinearBounds"]


class LinearBounds:
    """The linear bounds of ||A(u)|| on cones where it may exceed a level; see ``Tree.close`` for the symbols.

    ``coefficients`` (N + 1, m) of all responses have a zero last, for the index -1; ``lengths`` (N + 1,) are theirs.
    """

    def __init__(self, coefficients: Tensor, lengths: Tensor, cones: SimplicialCones, level: float) -> None:
        self.coefficients = coefficients[cones.patches]
        self.lengths = lengths[cones.patches]
        self.positive = largest(cones.values).clamp_min(0.0)
        middle = _piece(cones.values, cones.values.sum(dim=3))
        self.widths = middle.abs().sum(dim=2).clamp_min(1e-300)
        # theta x of the patch that is highest in the middle.
        self.below = middle * (middle.clamp_min(0.0).sum(dim=2) / self.widths).unsqueeze(2)
        base = cones.corners @ cones.linear
        # sum_k C_k e_ki is what the interpolations are above the secants.
        secants = base + sums(self.below, self.coefficients)
        halves = 0.5 * (secants + base + sums(self.positive, self.coefficients))
        toward = halves.sum(dim=1)
        # Where the sum vanishes any unit vector will do.
        toward[:, 0] += (toward == 0).all(dim=1).to(toward)
        self.toward = F.normalize(toward, dim=1)  # W_0
        along = (self.coefficients @ self.toward.unsqueeze(2)).squeeze(2)
        self.rising = (along > 0).to(along)  # s_k
        spread = self._spread(cones, along, secants, halves, level).unsqueeze(1)
        self.doubt = (spread * self.lengths - along.abs()).clamp_min(0.0).minimum(self.lengths)
        self.convex = base + sums(self.positive, self.coefficients * self.rising.unsqueeze(2))
        self._update()

    def _excess(self, weights: Tensor) -> Tensor:
        """Return sum_k weights_k e_ki with e_ki = (x_k . g_i)_+ - theta_k x_k . g_i >= 0; shape (B, r)."""
        above = sums(self.positive, weights.unsqueeze(2)) - sums(self.below, weights.unsqueeze(2))
        return above.squeeze(2)

    def _spread(self, cones: SimplicialCones, along: Tensor, secants: Tensor, halves: Tensor, level: float) -> Tensor:
        """Return how far from W_0 the direction of A(u) is, at most, where ||A(u)|| exceeds the level; shape (B,)."""
        low = (secants @ self.toward.unsqueeze(2)).squeeze(2) + self._excess(along.clamp_max(0.0))
        forward = (low >= 0).all(dim=1)  # then W_0 . A(u) >= 0
        far = self.toward.new_full((len(forward),), 2.0)
        if self.coefficients.shape[2] == 1:
            return torch.where(forward, 0.0, far)
        across = halves - (halves @ self.toward.unsqueeze(2)) * self.toward.unsqueeze(1)
        lengths = (self.lengths.square() - along.square()).clamp_min(0.0).sqrt()
        reach = across.norm(dim=2) + 0.5 * self._excess(lengths).clamp_min(0.0)
        sine = height_over(cones.corners, reach, torch.ones_like(reach)) / level
        # |W - W_0| = 2 sin(angle / 2), below 1.5 up to a right angle.
        chord = sine * (2 / (1 + (1 - sine.square()).clamp_min(0.0).sqrt())).sqrt()
        return torch.where(forward, torch.where(sine < 0.99, chord, 1.5), far)

    def _update(self) -> None:
        self.vectors = self.convex + sums(self.below, self.coefficients * (1 - self.rising).unsqueeze(2))
        doubts = self._excess(self.doubt).clamp_min(0.0)
        self.heights = self.vectors.norm(dim=2) + doubts
        self.along = (self.vectors @ self.toward.unsqueeze(2)).squeeze(2) + doubts

    def take(self, chosen: Tensor) -> LinearBounds:
        """Return the terms of the cones with these indices, with as many columns as ``SimplicialCones.take`` leaves."""
        taken = object.__new__(LinearBounds)
        width = int((self.lengths[chosen] > 0).sum(dim=1).max()) if self.lengths.numel() else 0
        for name, value in vars(self).items():
            by_patch = name in ("coefficients", "lengths", "positive", "widths", "below", "rising", "doubt")
            setattr(taken, name, (value[:, :width] if by_patch else value)[chosen])
        return taken

    def lowered(self, cones: SimplicialCones) -> tuple[Tensor, Tensor]:
        """Return bounds (B,), and weights (B, r) of the unit vectors where they are about attained."""
        weights = steepest(cones.corners, self.along)
        upper = torch.fmin(cones.upper, height_over(cones.corners, self.heights, weights))
        return upper, weights / (weights.unsqueeze(1) @ cones.corners).norm(dim=2)

    def relaxed(self, cones: SimplicialCones, weights: Tensor) -> Tensor:
        """Return about what the bound would be at sum_i weights_i g_i with the best theta there; shape (B,)."""
        heights = largest(_at(cones.values, weights)).clamp_min(0.0) * (1 - self.rising)
        heights = heights.unsqueeze(2)
        value = weights.unsqueeze(1) @ self.convex + sums(heights, self.coefficients)
        norms: Tensor = value.squeeze(1).norm(dim=1)
        return norms

    def turn(self, cones: SimplicialCones, weights: Tensor, step: float) -> None:
        """Move theta towards what is best at sum_i weights_i g_i, a step of Frank and Wolfe's method."""
        heights = _at(cones.values, weights)
        piece = _piece(cones.values, heights) * (largest(heights) > 0).unsqueeze(2)
        self.below = self.below + step * (1 - self.rising).unsqueeze(2) * (piece - self.below)
        self._update()

    def worst_edges(self, cones: SimplicialCones, edges: list[tuple[int, int]], level: float) -> Tensor:
        """Return the edge of each cone that costs its bound most, shape (B,)."""
        weights = self.lengths * (0.5 + 0.5 * self.rising)
        gram = cones.corners @ cones.corners.transpose(1, 2)
        across = self.vectors - (self.vectors @ self.toward.unsqueeze(2)) * self.toward.unsqueeze(1)
        turned = (across.unsqueeze(1) - across.unsqueeze(2)).square().sum(dim=3)
        costs = 0.25 * level * (1 - gram) + 0.125 * turned / level
        if cones.values.shape[2] == 1:
            # Of a patch that changes sign on an edge: its interpolation minus itself, about where it is zero.
            highest = largest(cones.values)
            crossing = sums(self.positive, (weights / self.widths).unsqueeze(2) * (self.positive - highest))
            costs = costs + crossing + crossing.transpose(1, 2)
            return torch.stack([costs[:, i, j] for i, j in edges], dim=1).argmax(dim=1)
        # Where one of several winners gives way to another is not known: the middle of the edge stands for it.
        each = []
        for i, j in edges:
            middle = largest(cones.values[..., i] + cones.values[..., j]).clamp_min(0.0)
            sag = self.positive[..., i] + self.positive[..., j] - middle
            each.append(costs[:, i, j] + (weights * sag).sum(dim=1))
        return torch.stack(each, dim=1).argmax(dim=1)


def _at(values: Tensor, weights: Tensor) -> Tensor:
    """Return values (B, K, w, r) at sum_i weights_i g_i, shape (B, K, w)."""
    return (values @ weights[:, None, :, None]).squeeze(3)


def _piece(values: Tensor, heights: Tensor) -> Tensor:
    """Return the values (B, K, r) of the patch of each response whose height (B, K, w) is the largest."""
    if values.shape[2] == 1:
        return values[:, :, 0]
    winners = heights.argmax(dim=2)[:, :, None, None].expand(-1, -1, 1, values.shape[3])
    return values.gather(2, winners).squeeze(2)
