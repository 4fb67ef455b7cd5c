"""Branch and bound over cones of directions, for one group of responses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, product

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear_bounds import LinearBounds
from .simplicial import SimplicialCones, height_over, joined, largest

__all__ = ["Tree"]

# Undecided (cone, patch) pairs worked on at once: their values stay in a processor's cache.
_PAIRS_AT_ONCE = 1 << 16
# Steps that improve the linear bounds of the concave patches, for the cones that they may close.
_TANGENT_STEPS = 4


class Tree:
    """Branch and bound of max_u ||sum_k C_k (x_k . u)_+|| over unit u for one set of coefficients.

    ``points`` has shape (N, w, r), rank r; ``coefficients`` (N, m). With w > 1 the largest (x . u)_+ of w patches takes
    the place of each (x_k . u)_+.
    """

    def __init__(self, points: Tensor, coefficients: Tensor) -> None:
        # The zero response comes last, for the index -1.
        self.points = F.pad(points, (0, 0, 0, 0, 0, 1))
        self.coefficients = F.pad(coefficients, (0, 0, 0, 1))
        self.lengths = self.coefficients.norm(dim=1)
        self.edges = list(combinations(range(points.shape[2]), 2))
        self.best = 0.0
        self.argmax = points.new_zeros(points.shape[2])
        self.waiting: list[SimplicialCones] = []
        self.closed = 0.0  # largest bound of the cones that need no bisection

    def evaluate(self, directions: Tensor) -> Tensor:
        """Return ||A(u)|| of unit directions (count, r), and keep the best."""
        heights = (directions @ self.points.flatten(0, 1).T).view(len(directions), *self.points.shape[:2])
        responses = largest(heights).clamp_min(0.0) @ self.coefficients
        norms: Tensor = responses.norm(dim=1)
        if len(norms) and float(norms.max()) > self.best:
            self.best, self.argmax = float(norms.max()), directions[norms.argmax()]
        return norms

    def roots(self) -> Iterator[SimplicialCones]:
        """Yield the 2^r orthants, some at a time."""
        count, width, rank = len(self.points) - 1, *self.points.shape[1:]
        signs = torch.tensor(list(product((1.0, -1.0), repeat=rank)), device=self.points.device).to(self.points)
        for some in torch.split(signs, max(1, 8 * _PAIRS_AT_ONCE // (count * width))):
            yield SimplicialCones(
                torch.diag_embed(some),
                self.points.new_zeros(len(some), rank, self.coefficients.shape[1]),
                torch.arange(count, device=self.points.device).expand(len(some), -1),
                self.points[:-1] * some[:, None, None],
                self.points.new_full((len(some),), math.inf),
                torch.zeros(len(some), dtype=torch.long, device=self.points.device),
            )

    def bisect(self, cones: SimplicialCones) -> SimplicialCones:
        """Return both halves of each cone, cut through the middle of its edge."""
        each = torch.arange(len(cones.upper), device=cones.upper.device)
        ends = torch.tensor(self.edges, device=each.device)[cones.edge]
        middle = F.normalize(cones.corners[each, ends[:, 0]] + cones.corners[each, ends[:, 1]], dim=1)
        heights = (self.points[cones.patches] @ middle[:, None, :, None]).squeeze(3)
        halves = SimplicialCones(*(torch.cat([part, part]) for part in cones))
        for end, which in zip(ends.unbind(dim=1), (each, each + len(each)), strict=True):
            halves.corners[which, end] = middle
            halves.values[which, :, :, end] = heights
        return halves

    def settle(self, cones: SimplicialCones) -> SimplicialCones:
        """Return the cones with the responses that are one patch's, or none's, in all of a cone taken out.

        The first join its linear part: a patch that is positive at all corners, and at none lower than another.
        """
        highest = largest(cones.values)
        leads = (cones.values >= highest.clamp_min(0.0).unsqueeze(2)).all(dim=3)
        active = leads.any(dim=2)
        undecided = ~active & (highest.amax(dim=2) > 0)
        owners, columns = (active & (cones.patches >= 0)).nonzero(as_tuple=True)
        moved, winners = cones.patches[owners, columns], leads[owners, columns].to(torch.int8).argmax(dim=1)
        products = self.points[moved, winners].unsqueeze(2) * self.coefficients[moved].unsqueeze(1)
        linear = cones.linear.index_add(0, owners, products)
        places = undecided.cumsum(dim=1) - 1
        owners, columns = undecided.nonzero(as_tuple=True)
        places = places[owners, columns]
        width = int(places.max()) + 1 if len(places) else 0
        patches = cones.patches.new_full((len(cones.upper), width), -1)
        patches[owners, places] = cones.patches[owners, columns]
        values = cones.values.new_zeros(len(cones.upper), width, *cones.values.shape[2:])
        values[owners, places] = cones.values[owners, columns]
        return cones._replace(linear=linear, patches=patches, values=values)

    def close(self, cones: SimplicialCones, level: float) -> SimplicialCones:
        """Bound cones; return those above the level, with the edge to bisect.

        For a unit W and theta_k in [0, 1], (x_k . u)_+ = theta_k x_k . u + eps_k(u), where eps_k is convex and
        non-negative, hence between 0 and its interpolation from the corners, sum_i lambda_i e_ki. With max pooling any
        convex combination of 0 and the patches of a cell takes the place of theta_k x_k. So

            W . A(u) <= sum_i lambda_i (W . S_i + sum_k (W . C_k)_+ e_ki),   S_i = (L + sum_k theta_k C_k x_k^T) g_i.

        ||A(u)|| is W . A(u) at W = A(u) / ||A(u)||, which in a small cone is near one W_0 wherever ||A(u)|| exceeds
        the level: at most ``spread`` away. With s_k = 1[W_0 . C_k > 0], then,

            (W . C_k)_+ <= s_k W . C_k + min(||C_k||, (spread ||C_k|| - |W_0 . C_k|)_+).
        """
        bounds = LinearBounds(self.coefficients, self.lengths, cones, level)
        ones = torch.ones_like(bounds.heights)
        cones = cones._replace(upper=torch.fmin(cones.upper, height_over(cones.corners, bounds.heights, ones)))
        above = self._note_closed(cones.upper, level)
        if not len(above):
            return cones.take(above)
        bounds, cones = bounds.take(above), cones.take(above)
        upper, weights = bounds.lowered(cones)
        best = (weights[upper.argmax()] @ cones.corners[upper.argmax()]).unsqueeze(0)
        self.evaluate(F.normalize(best, dim=1))
        edge = bounds.worst_edges(cones, self.edges, level)
        hopeful = ((upper > level) & (bounds.relaxed(cones, weights) <= level)).nonzero().squeeze(1)
        if len(hopeful):
            bounds, few, weights = bounds.take(hopeful), cones.take(hopeful), weights[hopeful]
            lowest = upper[hopeful]
            for step in range(_TANGENT_STEPS):
                bounds.turn(few, weights, 2 / (step + 3))
                turned, weights = bounds.lowered(few)
                lowest = torch.fmin(lowest, turned)
                if not (lowest > level).any():
                    break
            upper = upper.index_copy(0, hopeful, lowest)
        cones = cones._replace(upper=upper, edge=edge)
        return cones.take(self._note_closed(upper, level))

    def _note_closed(self, upper: Tensor, level: float) -> Tensor:
        """Return the indices of the bounds above the level, and note how high the others are."""
        above = ~(upper <= level)
        if not above.all():
            # With several responses a bound holds for values above the level, so that it proves no more than that.
            several = self.coefficients.shape[1] > 1
            self.closed = max(self.closed, level if several else float(torch.where(above, 0.0, upper).max()))
        return above.nonzero().squeeze(1)

    def push(self, cones: SimplicialCones) -> None:
        """Let cones wait, sorted into two parts, so that the better half can go first."""
        order = cones.upper.argsort(descending=True)
        for part in order.tensor_split(2 if cones.n_pairs() > _PAIRS_AT_ONCE // 8 else 1):
            if len(part):
                self.waiting.append(cones.take(part))

    def pop(self, newest: bool) -> SimplicialCones:
        """Return waiting cones: the newest, or about as many of the highest bounds as are worked on at once."""
        parts, pairs = [], 0
        while self.waiting and pairs < _PAIRS_AT_ONCE // 2:
            last = len(self.waiting) - 1
            index = last if newest else max(range(last + 1), key=lambda i: float(self.waiting[i].upper[0]))
            parts.append(self.waiting.pop(index))
            pairs += parts[-1].n_pairs()
        return joined(parts)

    def highest(self) -> float:
        """Return the largest bound of a waiting cone."""
        return max((float(cones.upper[0]) for cones in self.waiting), default=0.0)
