"""Local maxima of the pricing problem of ReLU filters, to the last digit.

With coefficients C_k of the patches x_k, the responses of a unit filter u are A(u) = sum_k C_k (x_k . u)_+, one number
for each (cell, output), and ||A|| is to be maximised. Along W = A(u) / ||A(u)|| a patch has the coefficient
c_k = W . C_k, and sum_k c_k (x_k . u)_+ is a difference of two convex functions: patches with c_k > 0 and those with
c_k < 0. Replacing the first by their tangent at u leaves a concave function below it that touches it at u. Its maximum
over the unit ball,

    u' along a - sum_k mu_k x_k  of least length,   0 <= mu_k <= |c_k|,   a = sum_{c_k > 0} c_k D_k x_k,

is no lower (the convex-concave procedure, Yuille & Rangarajan 2003). Only patches near the hyperplane of u have a mu
strictly between its limits, so that the least-squares problem is small, and a maximum on a ridge, where patches change
sign, is met exactly and not approached in ever shorter steps.
"""

from __future__ import annotations

from copy import copy

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..core.threads import map_items
from ..patches.patches import Patches
from .winner_climb import WinnerClimb

__all__ = ["climbed"]

Floats = NDArray[np.float64]

# A patch is taken to lie on the ridge if |x . u| is below this times |x|.
_ON_RIDGE = 1e-8
# Of one step: times that patches which changed sign are added to the ridge, and how many there may be for each entry of
# a patch before the step is halved.
_RIDGE_ROUNDS = 12
_RIDGE_PATCHES = 8
_HALVINGS = 8
# A step that gains less than this, relative to the value, is the last.
_GAIN = 1e-12
_PROJECTIONS = 60
# Lengths of its steps that are tried: where none is lower, steps that move one multiplier at a time end it sooner.
_LENGTHS = (1.0, 0.5, 0.25, 0.125)
# Directions that climb together; threads share the groups (benchmarks/RESULTS.md).
_TOGETHER = 4
# A multiplier whose limit costs no more than this, relative to the largest slope, may stay there.
_PULL = 1e-14


def _nearest(normals: Floats, vector: Floats, most: Floats, start: Floats) -> Floats:
    """Return mu with 0 <= mu <= most that makes ||vector - normals^T mu|| smallest, by projected Newton steps.

    ``start`` is a guess between the limits.

    Source: Bertsekas 1982, Projected Newton Methods for Optimization Problems with Simple Constraints.
    """
    gram, linear = normals @ normals.T, normals @ vector
    ridge = 1e-13 * float(np.trace(gram))
    gram[np.diag_indices(len(gram))] += ridge
    weights = start
    value = 0.5 * weights @ gram @ weights - linear @ weights
    for _ in range(_PROJECTIONS):
        slope = gram @ weights - linear
        free = ~((weights <= 0.0) & (slope >= 0.0)) & ~((weights >= most) & (slope <= 0.0))
        if not free.any():
            break
        step = np.zeros_like(weights)
        step[free] = np.linalg.solve(gram[np.ix_(free, free)], -slope[free])
        for length in _LENGTHS:
            trial = np.minimum(np.maximum(weights + length * step, 0.0), most)
            lower = 0.5 * trial @ gram @ trial - linear @ trial
            if lower < value:
                break
        else:
            break
        weights, value = trial, lower
    return _finished(gram, linear, most, weights)


def _finished(gram: Floats, linear: Floats, most: Floats, weights: Floats) -> Floats:
    """Return the minimum from weights near it: Newton steps that multipliers near a limit cut short may not end there.

    One multiplier leaves its limit at a time, the one that gains most, and stops at another if it meets it.
    Source: Stark & Parker 1995, Bounded-Variable Least-Squares: an Algorithm and Applications.
    """
    free = (weights > 0.0) & (weights < most)
    for _ in range(4 * len(most) + 1):
        while free.any():
            slope = gram[free] @ weights - linear[free]
            step = np.linalg.solve(gram[np.ix_(free, free)], -slope)
            limit = np.where(step > 0, most[free], 0.0)
            room = np.divide(limit - weights[free], step, out=np.full_like(step, np.inf), where=step != 0)
            share = min(1.0, float(room.min()))
            weights[free] += share * step
            if share == 1.0:
                break
            stopped = np.flatnonzero(free)[room <= share]
            weights[stopped] = limit[room <= share]
            free[stopped] = False
        slope = gram @ weights - linear
        pull = np.where(free, 0.0, np.where(weights <= 0.0, -slope, slope))
        last = int(pull.argmax())
        if pull[last] <= _PULL * float(np.abs(linear).max()):
            break
        free[last] = True
    return weights


class _Climb:
    """Some directions at once, each with the (cell, output) that it keeps to if there are pairs.

    What is known of each patch has a row for each direction, so that some of the directions are a few long copies.
    """

    def __init__(self, patches: Patches, dual: Tensor, pairs: Tensor | None) -> None:
        self.points = patches.unfold().flatten(0, 1).double()
        self.lengths = torch.linalg.vector_norm(self.points, dim=1)
        self.pool, self.dual, self.pairs = patches.pool.double(), dual.double(), pairs
        self.n_images = patches.n_images
        # Of the patches on a ridge, mu / |c|, which hardly changes from one solve to the next.
        self.shares: Tensor | None = None

    def value(self, directions: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ||A(u)|| (m,), W (m, cells, outputs) and the responses (m, N) of directions (m, d)."""
        responses = directions @ self.points.T
        active = responses.clamp_min(0.0).view(len(directions), self.n_images, -1)
        sums = (self.dual.T @ active @ self.pool.T).transpose(1, 2)
        if self.pairs is not None:
            sums = sums * self.pairs[which].view_as(sums)
        norms = torch.linalg.vector_norm(sums.flatten(1), dim=1)
        return norms, sums / norms.clamp_min(1e-300).view(-1, 1, 1), responses

    def step(self, directions: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return the directions after a step, and their values before it."""
        values, toward, responses = self.value(directions, which)
        coefficients = (self.dual @ toward.transpose(1, 2) @ self.pool).flatten(1)  # c, (m, N)
        concave = coefficients < 0
        on = responses > 0
        ridge = concave & (responses.abs() <= _ON_RIDGE * self.lengths)
        most = _RIDGE_PATCHES * self.points.shape[1]
        trial = directions.clone()
        shares = on.double()
        if self.shares is not None:
            shares = torch.where(ridge, self.shares[which], shares)
        still = torch.arange(len(directions), device=directions.device)
        for _ in range(_RIDGE_ROUNDS):
            trial[still] = self._over_ridge(coefficients, on, ridge, shares, still)
            free, side = (concave & ~ridge)[still], on[still]
            changed = free & ((trial[still] @ self.points.T > 0) != side)
            few = most - ridge[still].sum(dim=1)
            # Far from a maximum a step crosses too many: a shorter one of the same concave function is no lower either.
            for _ in range(_HALVINGS):
                long = (changed.sum(dim=1) > few).nonzero().flatten()
                if not len(long):
                    break
                rows = still[long]
                trial[rows] = F.normalize(0.5 * (trial[rows] + directions[rows]), dim=1)
                changed[long] = free[long] & ((trial[rows] @ self.points.T > 0) != side[long])
            changed &= (changed.sum(dim=1) <= few)[:, None]
            more = changed.any(dim=1)
            if not more.any():
                break
            still = still[more]
            ridge[still] |= changed[more]
        if self.shares is None:
            self.shares = shares
        else:
            self.shares[which] = shares
        return trial, values

    def _over_ridge(self, coefficients: Tensor, on: Tensor, ridge: Tensor, shares: Tensor, which: Tensor) -> Tensor:
        """Return the best directions over their ridges of those with these indices, and keep their multipliers."""
        base = (coefficients * (on & ~ridge))[which] @ self.points
        for row, index in enumerate(which.tolist()):
            places = ridge[index].nonzero().flatten()
            if not len(places):
                continue
            normals, most = self.points[places].cpu().numpy(), -coefficients[index, places].cpu().numpy()
            # The side that a patch is on tells the limit that its multiplier is probably at.
            taken = _nearest(normals, base[row].cpu().numpy(), most, most * shares[index, places].cpu().numpy())
            shares[index, places] = torch.from_numpy(taken / most).to(shares)
            base[row] -= torch.from_numpy(taken @ normals).to(base)
        return F.normalize(base, dim=1)


def climbed(patches: Patches, dual: Tensor, directions: Tensor, steps: int, pairs: Tensor | None = None) -> Tensor:
    """Return unit filters at local maxima of ||sum_jk nu_j P_k (x_jk . u)_+||, none lower than the one it began with.

    Parameters
    ----------
    patches : Patches
    dual : Tensor, shape (n, outputs)
        nu.
    directions : Tensor, shape (m, d)
        Unit filters to begin with.
    steps : int
        Most steps of each.
    pairs : Tensor, shape (m, cells * outputs), optional
        One-hot: the response that each filter is to make large by itself, as the "group" penalty asks for.

    Notes
    -----
    In float64, over all patches: about 8 n K (d + 4 m) bytes, of the m directions that climb at once, four in each
    thread; and 6 n K d operations for each direction a step.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> patches = Patches(torch.tensor([[[[3.0, 4.0]]], [[[0.0, -5.0]]]]), PatchGeometry(kernel_size=(1, 2)))
    >>> climbed(patches, torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0, 0.0]]), 10).mul(5).round().tolist()
    [[3.0, 4.0]]
    """
    climb = (_Climb if patches.pooler.linear else WinnerClimb)(patches, dual, pairs)
    begin = F.normalize(directions.double(), dim=1)
    together = _TOGETHER if begin.device.type == "cpu" else max(len(begin), 1)
    groups = torch.split(torch.arange(len(begin), device=begin.device), together)

    def reached(rows: Tensor) -> Tensor:
        some = copy(climb)
        some.pairs = None if pairs is None else pairs[rows]
        return _reached(some, begin[rows], steps)

    return torch.cat(map_items(reached, groups, begin.device))


def _reached(climb: _Climb | WinnerClimb, best: Tensor, steps: int) -> Tensor:
    """Return where each of some directions leads to."""
    which = torch.arange(len(best), device=best.device)
    going = which
    for _ in range(steps):
        if not len(going):
            break
        trial, values = climb.step(best[going], going)
        reached = climb.value(trial, going)[0]
        # On a smooth part the steps are those of a power method: longer ones of the same direction often gain more.
        turn, length = trial - best[going], 2.0
        while length < 1e3:
            longer = F.normalize(best[going] + length * turn, dim=1)
            higher = climb.value(longer, going)[0]
            better = higher > reached
            if not better.any():
                break
            trial, reached = torch.where(better[:, None], longer, trial), torch.where(better, higher, reached)
            length *= 2.0
        risen = reached > values
        best[going] = torch.where(risen[:, None], trial, best[going])
        going = going[reached > values * (1 + _GAIN)]
    return best
