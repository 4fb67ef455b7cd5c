"""A proved answer to the pricing problem of ReLU filters: branch and bound on the sphere of directions.

With coefficients C_k = P_ck nu_jo of the distinct patches x_k, the responses of a unit filter u are

    A(u) = sum_k C_k (x_k . u)_+,   one number for each (cell, output),

and the dual of Eq. 1 needs max_u ||A(u)||. The sphere is covered by cones of r edges, r the rank of the patches. On
a cone most patches keep their sign and are linear; each of the others is bounded there by two linear functions. What
is lost is quadratic in the width of the cone, and so is the fall of ||A|| around a maximum: halving cones until each
bound is low enough takes a number of them that grows with r exponentially but with the accuracy only logarithmically.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import as_int
from ..core.threads import coarse_threads
from ..errors import InputError
from ..patches.patches import Patches
from ..penalties import DensePenalty, GroupPenalty, Penalty

__all__ = ["ResponseBound", "bound_responses"]

# A bound is made of a few sums over at most N patches, those in one direction added up first, whose terms add up to at
# most S = sum_k ||C_k|| ||x_k|| in absolute value, divided by a cosine that is at least _LEAST_COSINE; each sum is
# wrong by at most N roundings of S. A bisection moves u by a few roundings, and there are far fewer than 1000, one
# inside the other.
_ROUNDING = 100 * torch.finfo(torch.float64).eps  # times (N + 1000) S
_LEAST_COSINE = 0.1
# Undecided (cone, patch) pairs worked on at once: their values stay in a processor's cache.
_PAIRS_AT_ONCE = 1 << 16
# Bytes of cones that wait, from which on the newest go first (depth first), so that few are added.
_WAITING_BYTES = 1 << 29
# Largest rank of the patches: the first cones are 2^rank orthants.
_MAX_RANK = 12
# Steps that improve the linear bounds of the concave patches, for the cones that they may close.
_TANGENT_STEPS = 4


@dataclass(frozen=True)
class ResponseBound:
    """How large the dual norm of a filter's responses can be, over all unit filters.

    Attributes
    ----------
    upper : Tensor, shape (outputs,)
        Proved: no unit filter has a dual norm above it. For the penalty "dense" all entries are the same number.
    best : Tensor, shape (outputs,)
        Attained at ``argmax``.
    argmax : Tensor, shape (outputs, d)
        Unit filters (zero where every response is).
    regions : int
        Cones bounded.
    complete : bool
        Whether ``upper`` is within the tolerance of the larger one of ``best`` and the floor.
    seconds : float
    """

    upper: Tensor
    best: Tensor
    argmax: Tensor
    regions: int
    complete: bool
    seconds: float


class _Cones(NamedTuple):
    """B cones {sum_i lambda_i g_i, lambda >= 0} in R^r, each with the up to K patches that change sign in it."""

    corners: Tensor  # (B, r, r), unit g_i in the rows
    linear: Tensor  # (B, r, m), sum of x_k C_k^T over the patches that are active in the whole cone
    patches: Tensor  # (B, K), indices of the undecided patches, then -1
    values: Tensor  # (B, K, r), x_k . g_i, then 0
    upper: Tensor  # (B,)
    edge: Tensor  # (B,), the pair of corners to bisect between

    def take(self, chosen: Tensor) -> _Cones:
        """Return the cones with these indices, in this order, with no more columns than they need."""
        patches = self.patches[chosen]
        width = int((patches >= 0).sum(dim=1).max()) if patches.numel() else 0
        return _Cones(
            self.corners[chosen],
            self.linear[chosen],
            patches[:, :width],
            self.values[:, :width][chosen],
            self.upper[chosen],
            self.edge[chosen],
        )

    def n_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self)

    def n_pairs(self) -> int:
        return len(self.upper) * (self.patches.shape[1] + self.corners.shape[1])


def _joined(parts: list[_Cones]) -> _Cones:
    if len(parts) == 1:
        return parts[0]
    width = max(part.patches.shape[1] for part in parts)
    columns = [width - part.patches.shape[1] for part in parts]
    padded = [
        part._replace(patches=F.pad(part.patches, (0, more), value=-1), values=F.pad(part.values, (0, 0, 0, more)))
        for part, more in zip(parts, columns, strict=True)
    ]
    return _Cones(*(torch.cat(same) for same in zip(*padded, strict=True)))


def _sums(rows: Tensor, weights: Tensor) -> Tensor:
    """Return sum_k rows_ki weights_kj for each cone, shape (B, r, m)."""
    return rows.transpose(1, 2) @ weights


def _steepest(corners: Tensor, heights: Tensor) -> Tensor:
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


def _height_over(corners: Tensor, heights: Tensor, weights: Tensor) -> Tensor:
    """Return a bound of heights . lambda over ||sum_i lambda_i g_i|| <= 1, lambda >= 0; any weights >= 0 give one.

    With the unit vector m along sum_i weights_i g_i and all m . g_i > 0,

        sum_i lambda_i h_i <= max_i (h_i / m . g_i)_+ * sum_i lambda_i m . g_i <= max_i (h_i / m . g_i)_+.
    """
    middle = F.normalize((weights.unsqueeze(1) @ corners).squeeze(1), dim=1)
    cosines = (corners @ middle.unsqueeze(2)).squeeze(2)
    ratio = (heights / cosines.clamp_min(_LEAST_COSINE)).amax(dim=1).clamp_min(0.0)
    return torch.where((cosines >= _LEAST_COSINE).all(dim=1), ratio, math.inf)


class _Tree:
    """Branch and bound of max_u ||sum_k C_k (x_k . u)_+|| over unit u for one set of coefficients.

    ``points`` has shape (N, r), rank r; ``coefficients`` (N, m).
    """

    def __init__(self, points: Tensor, coefficients: Tensor) -> None:
        # The zero patch comes last, for the index -1.
        self.points = F.pad(points, (0, 0, 0, 1))
        self.coefficients = F.pad(coefficients, (0, 0, 0, 1))
        self.lengths = self.coefficients.norm(dim=1)
        self.edges = list(combinations(range(points.shape[1]), 2))
        self.best = 0.0
        self.argmax = points.new_zeros(points.shape[1])
        self.waiting: list[_Cones] = []
        self.closed = 0.0  # largest bound of the cones that need no bisection

    def evaluate(self, directions: Tensor) -> Tensor:
        """Return ||A(u)|| of unit directions (count, r), and keep the best."""
        responses = (directions @ self.points.T).relu_() @ self.coefficients
        norms: Tensor = responses.norm(dim=1)
        if len(norms) and float(norms.max()) > self.best:
            self.best, self.argmax = float(norms.max()), directions[norms.argmax()]
        return norms

    def roots(self) -> Iterator[_Cones]:
        """Yield the 2^r orthants, some at a time."""
        count, rank = len(self.points) - 1, self.points.shape[1]
        signs = torch.tensor(list(product((1.0, -1.0), repeat=rank)), device=self.points.device).to(self.points)
        for some in torch.split(signs, max(1, 8 * _PAIRS_AT_ONCE // count)):
            yield _Cones(
                torch.diag_embed(some),
                self.points.new_zeros(len(some), rank, self.coefficients.shape[1]),
                torch.arange(count, device=self.points.device).expand(len(some), -1),
                self.points[:-1] * some.unsqueeze(1),
                self.points.new_full((len(some),), math.inf),
                torch.zeros(len(some), dtype=torch.long, device=self.points.device),
            )

    def bisect(self, cones: _Cones) -> _Cones:
        """Return both halves of each cone, cut through the middle of its edge."""
        each = torch.arange(len(cones.upper), device=cones.upper.device)
        ends = torch.tensor(self.edges, device=each.device)[cones.edge]
        middle = F.normalize(cones.corners[each, ends[:, 0]] + cones.corners[each, ends[:, 1]], dim=1)
        heights = (self.points[cones.patches] @ middle.unsqueeze(2)).squeeze(2)
        halves = _Cones(*(torch.cat([part, part]) for part in cones))
        for end, which in zip(ends.unbind(dim=1), (each, each + len(each)), strict=True):
            halves.corners[which, end] = middle
            halves.values[which, :, end] = heights
        return halves

    def settle(self, cones: _Cones) -> _Cones:
        """Return the cones with the patches that have one sign in all of a cone moved to its linear part."""
        active = cones.values.amin(dim=2) >= 0
        undecided = ~active & (cones.values.amax(dim=2) > 0)
        owners, columns = (active & (cones.patches >= 0)).nonzero(as_tuple=True)
        moved = cones.patches[owners, columns]
        products = self.points[moved].unsqueeze(2) * self.coefficients[moved].unsqueeze(1)
        linear = cones.linear.index_add(0, owners, products)
        places = undecided.cumsum(dim=1) - 1
        owners, columns = undecided.nonzero(as_tuple=True)
        places = places[owners, columns]
        width = int(places.max()) + 1 if len(places) else 0
        patches = cones.patches.new_full((len(cones.upper), width), -1)
        patches[owners, places] = cones.patches[owners, columns]
        values = cones.values.new_zeros(len(cones.upper), width, cones.values.shape[2])
        values[owners, places] = cones.values[owners, columns]
        return cones._replace(linear=linear, patches=patches, values=values)

    def close(self, cones: _Cones, level: float) -> _Cones:
        """Bound cones; return those above the level, with the edge to bisect.

        For a unit W and theta_k in [0, 1], (x_k . u)_+ = theta_k x_k . u + eps_k(u), where eps_k is convex and
        non-negative, hence between 0 and its interpolation from the corners, sum_i lambda_i e_ki. So

            W . A(u) <= sum_i lambda_i (W . S_i + sum_k (W . C_k)_+ e_ki),   S_i = (L + sum_k theta_k C_k x_k^T) g_i.

        ||A(u)|| is W . A(u) at W = A(u) / ||A(u)||, which in a small cone is near one W_0 wherever ||A(u)|| exceeds
        the level: at most ``spread`` away. With s_k = 1[W_0 . C_k > 0], then,

            (W . C_k)_+ <= s_k W . C_k + min(||C_k||, (spread ||C_k|| - |W_0 . C_k|)_+).
        """
        terms = _Terms(self, cones, level)
        ones = torch.ones_like(terms.heights)
        cones = cones._replace(upper=torch.fmin(cones.upper, _height_over(cones.corners, terms.heights, ones)))
        above = self._note_closed(cones.upper, level)
        if not len(above):
            return cones.take(above)
        terms, cones = terms.take(above), cones.take(above)
        upper, weights = terms.lowered(cones)
        best = (weights[upper.argmax()] @ cones.corners[upper.argmax()]).unsqueeze(0)
        self.evaluate(F.normalize(best, dim=1))
        edge = terms.worst_edges(cones, level)
        hopeful = ((upper > level) & (terms.relaxed(cones, weights) <= level)).nonzero().squeeze(1)
        if len(hopeful):
            terms, few, weights = terms.take(hopeful), cones.take(hopeful), weights[hopeful]
            lowest = upper[hopeful]
            for step in range(_TANGENT_STEPS):
                terms.turn(few, weights, 2 / (step + 3))
                turned, weights = terms.lowered(few)
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

    def push(self, cones: _Cones) -> None:
        """Let cones wait, sorted into two parts, so that the better half can go first."""
        order = cones.upper.argsort(descending=True)
        for part in order.tensor_split(2 if cones.n_pairs() > _PAIRS_AT_ONCE // 8 else 1):
            if len(part):
                self.waiting.append(cones.take(part))

    def pop(self, newest: bool) -> _Cones:
        """Return waiting cones: the newest, or about as many of the highest bounds as are worked on at once."""
        parts, pairs = [], 0
        while self.waiting and pairs < _PAIRS_AT_ONCE // 2:
            last = len(self.waiting) - 1
            index = last if newest else max(range(last + 1), key=lambda i: float(self.waiting[i].upper[0]))
            parts.append(self.waiting.pop(index))
            pairs += parts[-1].n_pairs()
        return _joined(parts)

    def highest(self) -> float:
        """Return the largest bound of a waiting cone."""
        return max((float(cones.upper[0]) for cones in self.waiting), default=0.0)


class _Terms:
    """The linear bounds of ||A(u)|| on cones; see ``_Tree.close`` for the symbols."""

    def __init__(self, tree: _Tree, cones: _Cones, level: float) -> None:
        self.edges = tree.edges
        values = cones.values
        self.coefficients = tree.coefficients[cones.patches]
        self.lengths = tree.lengths[cones.patches]
        self.positive = values.clamp_min(0.0)
        self.widths = values.abs().sum(dim=2).clamp_min(1e-300)
        self.shares = self.positive.sum(dim=2) / self.widths  # theta
        base = cones.corners @ cones.linear
        # sum_k C_k e_ki is what the interpolations are above the secants.
        secants = base + _sums(values, self.coefficients * self.shares.unsqueeze(2))
        halves = 0.5 * (secants + base + _sums(self.positive, self.coefficients))
        toward = halves.sum(dim=1)
        # Where the sum vanishes any unit vector will do.
        toward[:, 0] += (toward == 0).all(dim=1).to(toward)
        self.toward = F.normalize(toward, dim=1)  # W_0
        along = (self.coefficients @ self.toward.unsqueeze(2)).squeeze(2)
        self.rising = (along > 0).to(values)  # s_k
        spread = self._spread(cones, along, secants, halves, level).unsqueeze(1)
        self.doubt = (spread * self.lengths - along.abs()).clamp_min(0.0).minimum(self.lengths)
        self.convex = base + _sums(self.positive, self.coefficients * self.rising.unsqueeze(2))
        self._update(values)

    def _excess(self, values: Tensor, weights: Tensor) -> Tensor:
        """Return sum_k weights_k e_ki with e_ki = (x_k . g_i)_+ - theta_k x_k . g_i >= 0; shape (B, r)."""
        above = _sums(self.positive, weights.unsqueeze(2)) - _sums(values, (weights * self.shares).unsqueeze(2))
        return above.squeeze(2)

    def _spread(self, cones: _Cones, along: Tensor, secants: Tensor, halves: Tensor, level: float) -> Tensor:
        """Return how far from W_0 the direction of A(u) is, at most, where ||A(u)|| exceeds the level; shape (B,)."""
        low = (secants @ self.toward.unsqueeze(2)).squeeze(2) + self._excess(cones.values, along.clamp_max(0.0))
        forward = (low >= 0).all(dim=1)  # then W_0 . A(u) >= 0
        far = self.toward.new_full((len(forward),), 2.0)
        if self.coefficients.shape[2] == 1:
            return torch.where(forward, 0.0, far)
        across = halves - (halves @ self.toward.unsqueeze(2)) * self.toward.unsqueeze(1)
        lengths = (self.lengths.square() - along.square()).clamp_min(0.0).sqrt()
        reach = across.norm(dim=2) + 0.5 * self._excess(cones.values, lengths).clamp_min(0.0)
        sine = _height_over(cones.corners, reach, torch.ones_like(reach)) / level
        # |W - W_0| = 2 sin(angle / 2), below 1.5 up to a right angle.
        chord = sine * (2 / (1 + (1 - sine.square()).clamp_min(0.0).sqrt())).sqrt()
        return torch.where(forward, torch.where(sine < 0.99, chord, 1.5), far)

    def _update(self, values: Tensor) -> None:
        concave = self.coefficients * (self.shares * (1 - self.rising)).unsqueeze(2)
        self.vectors = self.convex + _sums(values, concave)
        doubts = self._excess(values, self.doubt).clamp_min(0.0)
        self.heights = self.vectors.norm(dim=2) + doubts
        self.along = (self.vectors @ self.toward.unsqueeze(2)).squeeze(2) + doubts

    def take(self, chosen: Tensor) -> _Terms:
        """Return the terms of the cones with these indices, with as many columns as ``_Cones.take`` leaves."""
        taken = object.__new__(_Terms)
        width = int((self.lengths[chosen] > 0).sum(dim=1).max()) if self.lengths.numel() else 0
        for name, value in vars(self).items():
            by_patch = name in ("coefficients", "lengths", "positive", "widths", "shares", "rising", "doubt")
            part = value if name == "edges" else (value[:, :width] if by_patch else value)[chosen]
            setattr(taken, name, part)
        return taken

    def lowered(self, cones: _Cones) -> tuple[Tensor, Tensor]:
        """Return bounds (B,), and weights (B, r) of the unit vectors where they are about attained."""
        weights = _steepest(cones.corners, self.along)
        upper = torch.fmin(cones.upper, _height_over(cones.corners, self.heights, weights))
        return upper, weights / (weights.unsqueeze(1) @ cones.corners).norm(dim=2)

    def relaxed(self, cones: _Cones, weights: Tensor) -> Tensor:
        """Return about what the bound would be at sum_i weights_i g_i with the best theta there; shape (B,)."""
        heights = (cones.values @ weights.unsqueeze(2)).clamp_min(0.0) * (1 - self.rising).unsqueeze(2)
        value = weights.unsqueeze(1) @ self.convex + _sums(heights, self.coefficients)
        norms: Tensor = value.squeeze(1).norm(dim=1)
        return norms

    def turn(self, cones: _Cones, weights: Tensor, step: float) -> None:
        """Move theta towards what is best at sum_i weights_i g_i, a step of Frank and Wolfe's method."""
        active = (cones.values @ weights.unsqueeze(2)).squeeze(2) > 0
        self.shares = self.shares + step * (1 - self.rising) * (active.to(self.shares) - self.shares)
        self._update(cones.values)

    def worst_edges(self, cones: _Cones, level: float) -> Tensor:
        """Return the edge of each cone that costs its bound most, shape (B,)."""
        # Of a patch that changes sign on an edge: its interpolation minus itself, about where it is zero.
        weights = self.lengths * (0.5 + 0.5 * self.rising) / self.widths
        crossing = _sums(self.positive, weights.unsqueeze(2) * (self.positive - cones.values))
        gram = cones.corners @ cones.corners.transpose(1, 2)
        across = self.vectors - (self.vectors @ self.toward.unsqueeze(2)) * self.toward.unsqueeze(1)
        turned = (across.unsqueeze(1) - across.unsqueeze(2)).square().sum(dim=3)
        costs = crossing + crossing.transpose(1, 2) + 0.25 * level * (1 - gram) + 0.125 * turned / level
        return torch.stack([costs[:, i, j] for i, j in self.edges], dim=1).argmax(dim=1)


def _merged(patches: Patches, dual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return distinct directions (N, d) of the non-zero patches, sums of C_k (N, cells, outputs), and sums of |C_k|."""
    points = patches.unfold().flatten(0, 1).double()
    weights = torch.einsum("ck,no->nkco", patches.pool.double(), dual.double()).flatten(0, 1)
    kept = points.any(dim=1)
    points, weights = points[kept], weights[kept]
    # Scaled by the largest entry, multiples of a patch are equal to the last bit, or nearly.
    scales = points.abs().amax(dim=1)
    points, inverse = torch.unique(points / scales.unsqueeze(1), dim=0, return_inverse=True)
    zero, weights = weights.new_zeros(len(points), *weights.shape[1:]), weights * scales.view(-1, 1, 1)
    # Coefficients of patches in one direction may cancel, but not their rounding.
    return points, zero.index_add(0, inverse, weights), zero.index_add(0, inverse, weights.abs())


def _span(points: Tensor) -> Tensor:
    """Return an orthonormal basis (d, r) of the span of the points; the axes themselves if it is all of R^d."""
    dim = points.shape[1]
    if not len(points):
        return points.new_zeros(dim, 0)
    _, values, right = torch.linalg.svd(points, full_matrices=False)
    rank = int((values > 1e-12 * values[0]).sum())
    return torch.eye(dim).to(points) if rank == dim else right[:rank].T


def _check(
    patches: Patches,
    dual: Tensor,
    penalty: Penalty,
    floor: float,
    tol: float,
    candidates: Tensor | None,
    max_regions: int,
    time_limit: float,
) -> None:
    if not isinstance(penalty, (DensePenalty, GroupPenalty)):
        raise InputError(
            f'responses of ReLU filters are bounded for penalty "dense" or "group"; got {penalty.name!r}. '
            "The gates of a gated network are another pricing problem."
        )
    if dual.ndim != 2 or len(dual) != patches.n_images:
        raise InputError(
            f"dual must have shape (n, outputs) with n = {patches.n_images} images; got {tuple(dual.shape)}."
        )
    if not torch.isfinite(dual).all() or not torch.isfinite(patches.images).all():
        raise InputError("dual and images must be finite; some entries are not.")
    if not 0 <= floor < math.inf:
        raise InputError(f"floor must be a finite number >= 0; got {floor!r}.")
    if not 1e-9 <= tol < math.inf:
        raise InputError(f"tol must be a finite number >= 1e-9, above what rounding costs; got {tol!r}.")
    if candidates is not None and (candidates.ndim != 2 or candidates.shape[1] != patches.dim):
        raise InputError(
            f"candidates must have shape (m, d) with the patch length d = {patches.dim}; got {tuple(candidates.shape)}."
        )
    as_int("max_regions", max_regions)
    if not time_limit > 0:
        raise InputError(f"time_limit must be a positive number of seconds; got {time_limit!r}.")


def bound_responses(
    patches: Patches,
    dual: Tensor,
    penalty: Penalty,
    *,
    floor: float = 0.0,
    tol: float = 1e-3,
    candidates: Tensor | None = None,
    max_regions: int = 2_000_000,
    time_limit: float = math.inf,
) -> ResponseBound:
    """Return a proved bound of the dual norm of nu^T pooled (R u)_+ over ALL unit filters u.

    For the penalty "group" it bounds max_u max_c |sum_jk nu_jo P_ck (x_jk . u)_+| for each output o; for "dense"
    max_u ||nu^T pooled (R u)_+||_F. Scaled by min(1, reg / upper), nu is feasible for the dual of Eq. 1 with any
    number of neurons, so that its dual value is a proved bound of the non-convex problem.

    Parameters
    ----------
    patches : Patches
        n images; computed in float64 whatever their dtype.
    dual : Tensor, shape (n, outputs)
        nu.
    penalty : Penalty
        "dense" or "group".
    floor : float
        A value >= 0 that need not be undercut: reg, when only a violation of the dual constraint matters.
    tol : float
        Stop when ``upper`` <= (1 + tol) * max(floor, best); >= 1e-9.
    candidates : Tensor, shape (m, d), optional
        Directions that are probably good, such as the filters of the solution; they save work.
    max_regions : int
        Stop after about this many cones; ``upper`` is then what is proved so far.
    time_limit : float
        Stop after this many seconds, likewise.

    Returns
    -------
    ResponseBound

    Raises
    ------
    InputError
        If an argument is out of its range or does not fit the others, or the patches span more than 12 dimensions.

    Notes
    -----
    The number of cones grows exponentially with the rank of the patches: ranks up to 4 take seconds, 5 takes minutes.
    Rounding is covered by 2.3e-14 * (N + 1000) * sum_k ||C_k|| ||x_k|| for N patches, part of ``upper``.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> patches = Patches(torch.tensor([[[[3.0, 4.0]]], [[[0.0, -5.0]]]]), PatchGeometry(kernel_size=(1, 2)))
    >>> bound = bound_responses(patches, torch.tensor([[1.0], [-1.0]]), GroupPenalty())
    >>> [round(float(value), 3) for value in (bound.upper, bound.best)], bound.complete
    ([5.0, 5.0], True)
    """
    _check(patches, dual, penalty, floor, tol, candidates, max_regions, time_limit)
    with torch.no_grad(), coarse_threads():
        return _bound(patches, dual, penalty.separable, floor, tol, candidates, max_regions, time_limit)


def _bound(
    patches: Patches,
    dual: Tensor,
    separable: bool,
    floor: float,
    tol: float,
    candidates: Tensor | None,
    max_regions: int,
    time_limit: float,
) -> ResponseBound:
    began = time.perf_counter()
    points, weights, sizes = _merged(patches, dual)
    n_outputs = dual.shape[1]
    basis = _span(points)
    if basis.shape[1] > _MAX_RANK:
        raise InputError(
            f"responses are bounded for patches that span at most {_MAX_RANK} dimensions, whose 2^{_MAX_RANK} orthants "
            f"are cones to begin with; these span {basis.shape[1]}. Use a smaller kernel or fewer channels."
        )
    reduced = points @ basis
    missed = (points - reduced @ basis.T).norm(dim=1)
    # One tree for each (cell, output), or one for all of them: (coefficients, outputs that it bounds).
    flat, sizes = weights.flatten(1), sizes.flatten(1)
    groups = [(flat[:, i : i + 1], [i % n_outputs]) for i in range(flat.shape[1])] if separable else []
    groups = groups or [(flat, list(range(n_outputs)))]
    trees, margins = [], []
    n_patches = patches.n_images * patches.n_patches
    for index, (coefficients, _) in enumerate(groups):
        kept = coefficients.norm(dim=1) > 0
        lengths = (sizes[:, index : index + 1] if separable else sizes).norm(dim=1)
        size = (lengths * points.norm(dim=1)).sum()
        margins.append(float(_ROUNDING * (n_patches + 1000) * size + (lengths * missed).sum()))
        trees.append(_Tree(reduced[kept], coefficients[kept]))
    starts = torch.eye(basis.shape[1]).to(points)
    starts = torch.cat([starts, -starts] + ([] if candidates is None else [candidates.to(points) @ basis]))
    starts = F.normalize(starts[starts.any(dim=1)], dim=1)

    def level(output: int) -> float:
        best = max(tree.best for tree, (_, outputs) in zip(trees, groups, strict=True) if output in outputs)
        return (1 + tol) * max(floor, best)

    regions = 0
    for tree in trees:
        tree.evaluate(starts)
    for tree, (_, outputs), margin in zip(trees, groups, margins, strict=True):
        if len(tree.points) > 1:  # beside the zero patch
            for roots in tree.roots():
                regions += len(roots.upper)
                tree.push(tree.close(tree.settle(roots), max(level(outputs[0]), margin)))
    while regions < max_regions and time.perf_counter() - began < time_limit:
        levels = [max(level(outputs[0]), margin) for (_, outputs), margin in zip(groups, margins, strict=True)]
        excess = [tree.highest() / at if at else 0.0 for tree, at in zip(trees, levels, strict=True)]
        worst = max(range(len(trees)), key=excess.__getitem__)
        if excess[worst] <= 1:
            break
        tree = trees[worst]
        n_bytes = sum(cones.n_bytes() for each in trees for cones in each.waiting)
        halves = tree.bisect(tree.pop(newest=n_bytes > _WAITING_BYTES))
        regions += len(halves.upper)
        tree.push(tree.close(tree.settle(halves), levels[worst]))

    upper, best = points.new_zeros(n_outputs), points.new_zeros(n_outputs)
    argmax = points.new_zeros(n_outputs, patches.dim)
    complete = True
    for tree, (_, outputs), margin in zip(trees, groups, margins, strict=True):
        highest = max(tree.highest(), tree.closed, tree.best)
        complete = complete and highest <= max(level(outputs[0]), margin)
        for output in outputs:
            upper[output] = max(float(upper[output]), highest + margin)
            if tree.best > float(best[output]):
                best[output], argmax[output] = tree.best, basis @ tree.argmax
    return ResponseBound(upper, best, argmax, regions, complete, time.perf_counter() - began)
