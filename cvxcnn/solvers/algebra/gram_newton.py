"""Group lasso over a Gram matrix of thousands of columns: splitting finds the support, Newton steps do the rest.

Factors of the matrix are what costs, so there are few of them. One serves dozens of steps of the alternating direction
method of multipliers (Boyd et al. 2011, section 6.4), whose own W is nearly feasible for the dual problem long before
its sparse twin Z is; a Newton step on the support of Z then ends it. All of it is on the Gram matrix's device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from ...core.threads import all_threads
from .newton import GramQuadratic, group_lasso

__all__ = ["GramLasso"]

logger = logging.getLogger(__name__)

# The ridge that a start from nothing begins with, relative to the mean of diag A^T A.
_RIDGE = 0.01
# Of the splitting: the weight of ||W_g - Z_g||^2 in multiples of reg / ||W_g||, which norms are never taken to be below
# in multiples of their mean, and how far beyond W each step goes. Chosen on 768 filters over 20,000 MNIST images: with
# weights of 1, 0.4, 0.2 and 0.1 it took over 100, about 70, 40 and fewer than 40 steps to a gap of 3e-4.
_COUPLING, _LEAST_NORM, _BEYOND = 0.1, 0.2, 1.8
# Its steps on one factor, at most, and how many to the next look at the gap.
_STEPS, _LOOK = 40, 5
# Newton steps on one support, and the share of the gap that each must leave less than; rounds too, where exact steps
# can take their place.
_NEWTON_STEPS, _SHRINKS = 4, 0.3
# A round that leaves more than such a share of the gap is the last: rounding has the last word.
_STALLS = 0.9
# Where fewer groups than one in so many aren't zero, their products are taken apart.
_FEW = 4
# Rows that are copied at once.
_ROWS_AT_ONCE = 512
# Conjugate gradients of a Newton step, and what they stop at relative to the right side.
_CG_STEPS, _CG_TOL = 16, 1e-3
_EPS = 0.5 * float(torch.finfo(torch.float64).eps)
# Columns from which all threads are worth their meetings.
_LARGE = 2000
# Up to so many active columns, what these steps leave is left to exact ones.
_DIRECT_COLUMNS = 2000

# The gap, the weights, and A^T A times them.
_State = tuple[float, Tensor, Tensor]


class GramLasso:
    """The objective 1/2 ||A W - Y||^2 + reg sum_g ||W_g||_F at a point W that moves, from A^T A and A^T Y.

    Parameters
    ----------
    gram : Tensor, shape (q, q), float64
        A^T A.
    linear : Tensor, shape (q, outputs)
        A^T Y.
    squared_norm : float
        ||Y||^2.
    size : int
        Rows of W that make a group.
    reg : float
        > 0.

    Attributes
    ----------
    weights : Tensor, shape (q, outputs)
    norms : Tensor, shape (q / size,)
        ||W_g||.
    objective, gap : float
        The gap is to the best multiple of the residual, absolute.
    """

    def __init__(self, gram: Tensor, linear: Tensor, squared_norm: float, size: int, reg: float) -> None:
        self.gram, self.linear, self.squared_norm = gram, linear, squared_norm
        self.size, self.reg = size, reg
        self.n_groups = len(gram) // size
        self._set(torch.zeros_like(linear), torch.zeros_like(linear))

    def minimise(self, start: Tensor, tol: float, rounds: int) -> Tensor:
        """Return the minimum, found from ``start`` to a relative gap of ``tol`` in so many rounds at most."""
        with all_threads() if len(self.gram) >= _LARGE else nullcontext():
            self.move_to(start)
            if self.gap > self._allowed(tol):
                if not bool(start.any()):
                    self._ridge_start()
                self._descend(tol, rounds)
        allowed = self._allowed(tol)
        if self.gap <= allowed or not self._few(self.weights):
            return self.weights
        # Its Newton steps are exact, at the price of an inverse.
        quadratic = GramQuadratic(self.gram.cpu().numpy(), self.linear.cpu().numpy(), self.squared_norm, self.size)
        quadratic.move_to(self.weights.cpu().numpy())
        return torch.from_numpy(group_lasso(quadratic, self.reg, tol=allowed)).to(self.linear)

    def _allowed(self, tol: float) -> float:
        """Return the gap that a relative one is at this point; no objective is known to below its rounding."""
        allowed: float = tol * max(self.objective, _EPS * self.squared_norm)
        return allowed

    def _few(self, weights: Tensor) -> bool:
        """Return whether exact steps cost little."""
        return int(self._lengths(weights).count_nonzero()) * self.size <= _DIRECT_COLUMNS

    def _descend(self, tol: float, rounds: int) -> None:
        for round_ in range(rounds):
            before = self._state()
            sparse = self._split(tol)
            if sparse is None:
                break  # features that repeat each other at a tiny reg
            dense, ended = self._state(), self._ended(sparse, tol)
            # Of points that are good enough, the one with zeros.
            best = ended if _gap(ended) <= self._allowed(tol) else min(before, dense, ended, key=_gap)
            self._set(*best[1:])
            logger.debug("round %d: objective %.6g, gap %.2e", round_, self.objective, self.gap)
            if self.gap <= self._allowed(tol):
                break
            if self.gap > _SHRINKS * _gap(before) and self._few(sparse):
                self.move_to(sparse)
                break
            if self.gap > _STALLS * _gap(before):
                break

    def _ended(self, sparse: Tensor, tol: float) -> _State:
        """Return the best point that Newton steps on the support of a sparse W lead to."""
        self.move_to(sparse)
        best = self._state()
        few = self._few(sparse)
        for _ in range(_NEWTON_STEPS if bool(sparse.any()) else 0):
            step, gap = self.newton_step(_CG_STEPS), self.gap
            if step is None:
                break
            self.move_to(self.weights + step)
            best = min(best, self._state(), key=_gap)
            # Where it costs little, the last step squares the error once more.
            if self.gap > _SHRINKS * gap or (self.gap <= self._allowed(tol) and not few):
                break
        return best

    def move_to(self, weights: Tensor) -> None:
        """Set the point."""
        self._set(weights, self._product(weights))

    def _product(self, weights: Tensor) -> Tensor:
        """Return A^T A W."""
        gram, groups = self.gram, weights.reshape(-1, self.size * weights.shape[1]).any(dim=1)
        if _FEW * int(groups.sum()) < len(groups):
            used = groups.repeat_interleave(self.size).nonzero().flatten()
            gram, weights = gram[used], weights[used]
        # This way round it is three times as fast on a CPU: rows of the matrix lie together.
        product: Tensor = (weights.T @ gram).T
        return product

    def _set(self, weights: Tensor, product: Tensor) -> None:
        self.weights, self.product = weights, product
        self.norms, self.pulls = self._lengths(weights), self.linear - product
        inner, fitted = (weights * self.linear).sum(), (weights * self.pulls).sum()
        longest = self._lengths(self.pulls).max()
        numbers = torch.stack([inner, fitted, self.norms.sum(), longest]).tolist()
        residual = max(self.squared_norm - numbers[0] - numbers[1], 0.0)
        penalty = self.reg * numbers[2]
        self.objective = 0.5 * residual + penalty
        scale = min((residual + numbers[1]) / max(residual, 1e-300), self.reg / max(numbers[3], 1e-300))
        scale = max(0.0, scale)
        self.gap = 0.5 * residual * (1 - scale) ** 2 + penalty - scale * numbers[1]

    def _state(self) -> _State:
        """Return the gap, and what ``_set`` needs to come back to this point."""
        return self.gap, self.weights, self.product

    def _lengths(self, values: Tensor) -> Tensor:
        lengths: Tensor = values.reshape(self.n_groups, -1).norm(dim=1)
        return lengths

    def _per_row(self, values: Tensor) -> Tensor:
        """Return a number a group as a column, one for each of its rows."""
        return values.repeat_interleave(self.size)[:, None]

    def _ridge_start(self) -> None:
        """Move to the minimum of the quadratic plus a ridge, if it has one."""
        ridge = torch.full_like(self.linear[:, 0], _RIDGE * max(float(self.gram.diagonal().mean()), 1e-300))
        factor = _factor(self.gram.clone(), ridge)
        if factor is not None:
            self.move_to(_apply(factor, self.linear))

    def _split(self, tol: float) -> Tensor | None:
        """Move to a W of a relative gap of ``tol``, or nearly; return a sparse Z near it, None if there is no factor.

        With weights c_g, multipliers V and over-relaxation b,

            W = (G + diag(c))^-1 (A^T Y + c Z - V),   M = V + c (Z + b (W - Z)),
            Z_g <- (1 - reg / ||M_g||)_+ M_g / c_g,   V <- M - c Z,

        so that ||V_g|| <= reg, and A^T (Y - A W) = V + c (W - Z) of the old V and Z costs nothing.
        """
        if not bool(self.norms.any()):
            return None
        # A mean that many groups near zero don't change.
        typical = float(self.norms.square().sum() / self.norms.sum())
        coupling = self._per_row(_COUPLING * self.reg / self.norms.clamp_min(_LEAST_NORM * typical))
        factor = _factor(self.gram.clone(), coupling[:, 0])
        if factor is None:
            return None
        sparse = self.weights
        multipliers = self.pulls * self._per_row((self.reg / self._lengths(self.pulls)).clamp_max(1.0))
        for step in range(1, _STEPS + 1):
            dense = _apply(factor, self.linear + coupling * sparse - multipliers)
            ahead = coupling * (dense - sparse)
            pulls, moved = multipliers + ahead, multipliers + coupling * sparse + _BEYOND * ahead
            kept = self._per_row((1 - self.reg / self._lengths(moved).clamp_min(1e-300)).clamp_min(0.0))
            sparse, multipliers = moved * kept / coupling, moved * (1 - kept)
            if step % _LOOK == 0:
                self._set(dense, self.linear - pulls)
                if self.gap <= self._allowed(tol):
                    break
        self.move_to(self.weights)
        return sparse

    def newton_step(self, steps: int) -> Tensor | None:
        """Return a truncated Newton step on the support, zero elsewhere; None if the system is singular.

        The Hessian is M - reg sum_g u_g u_g^T / ||W_g||, M = G + reg diag(1 / ||W_g||). Woodbury's identity leaves the
        system diag(||W_g|| / reg) - U^T M^-1 U, whose eigenvalues relative to its first term are in (0, 1]. ``steps``
        conjugate gradients on it lead from the reweighted step, which is short and safe, towards Newton's.
        """
        support = self.norms > 0
        rows = support.repeat_interleave(self.size).nonzero().flatten()
        norms = self._per_row(self.norms[support])
        units = self.weights[rows] / norms
        factor = _factor(_part(self.gram, rows), (self.reg / norms)[:, 0])
        if factor is None:
            return None
        roots = (self.reg / self.norms[support]).sqrt()
        scaled = units * (self.reg / norms).sqrt()

        def spread(along: Tensor) -> Tensor:
            return _apply(factor, scaled * self._per_row(along))

        def radial(values: Tensor) -> Tensor:
            return (scaled * values).reshape(len(roots), -1).sum(dim=1)

        short = _apply(factor, self.pulls[rows] - self.reg * units)
        along = _conjugate_gradients(lambda values: values - radial(spread(values)), radial(short), steps)
        step = torch.zeros_like(self.weights)
        step[rows] = short + spread(along)
        return step if bool(torch.isfinite(step).all()) else None


def _gap(state: _State) -> float:
    return state[0]


def _part(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return a copy of some rows and columns of a matrix, and no other copies on the way."""
    if len(rows) == len(matrix):
        return matrix.clone()
    part = matrix.new_empty(len(rows), len(rows))
    for some, out in zip(torch.split(rows, _ROWS_AT_ONCE), torch.split(part, _ROWS_AT_ONCE), strict=True):
        torch.index_select(matrix[some], 1, rows, out=out)
    return part


def _factor(matrix: Tensor, diagonal: Tensor) -> Tensor | None:
    """Return the lower Cholesky factor of a symmetric matrix plus a diagonal, in its place; None if there is none."""
    matrix.diagonal().add_(diagonal)
    # By columns, as LAPACK has it: no copy is made.
    columns = matrix.T
    info = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(columns, out=(columns, info))
    return None if int(info) else columns


def _apply(factor: Tensor, right: Tensor) -> Tensor:
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return solution.contiguous()


def _conjugate_gradients(system: Callable[[Tensor], Tensor], right: Tensor, steps: int) -> Tensor:
    """Return x with system(x) = right, as far as so many steps lead."""
    solution, residual = torch.zeros_like(right), right
    direction, square = residual, float(residual @ residual)
    limit = _CG_TOL**2 * square
    for _ in range(steps):
        image = system(direction)
        curvature = float(direction @ image)
        if square <= limit or curvature <= 0:
            break
        solution = solution + square / curvature * direction
        residual = residual - square / curvature * image
        previous, square = square, float(residual @ residual)
        direction = residual + square / previous * direction
    return solution
