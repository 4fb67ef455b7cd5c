"""Group lasso over a Gram matrix of thousands of columns: sweeps find the support, Newton steps do the rest.

All of it is on the Gram matrix's device. A processor visits the groups one by one, each to its exact minimum; a GPU
takes them in batches, to the minimum of a majorizer, because one group is too little work for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from ...core.threads import all_threads
from .newton import Descent, GramQuadratic, group_lasso

__all__ = ["GramLasso"]

logger = logging.getLogger(__name__)

# Reweighted ridge systems that a start from nothing begins with. The first takes norms of so many times
# reg / (mean of diag A^T A), and none takes norms below this share of the largest.
_REWEIGHTINGS = 3
_START = 100.0
_LEAST_NORM = 1e-8
# Sweeps over the groups before each Newton step; both are cheap beside its factor.
_SWEEPS = 5
# Of batches: groups, and the share of its bound on a batch's curvature that the next sweep tries.
_TOGETHER = 32
_SMALLER_BOUND = 0.7
# Groups to be left out, by their length relative to the longest.
_SHORTER = (1.0, 0.1, 1e-3, 1e-6)
# Where fewer groups than one in so many aren't zero, their products are taken apart.
_FEW = 4
# Rows that are copied at once.
_ROWS_AT_ONCE = 512
# Newton iterations for the norm of a group: it is found to the last digits in far fewer.
_NORM_STEPS = 20
# Conjugate gradients of a Newton step, at least and at most; what they stop at relative to the right side.
_CG_STEPS = (4, 64)
_CG_TOL = 1e-3
# The longest step, in multiples of Newton's, and the bisections that find its length.
_LONGEST = 4.0
_BISECTIONS = 40
# Columns from which all threads are worth their meetings.
_LARGE = 2000
# Up to so many active columns, what these steps leave is left to exact ones.
_DIRECT_COLUMNS = 2000


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
    spectra : (Tensor, Tensor), optional
        Eigenvalues (groups, size) and eigenvectors of the blocks on the diagonal of A^T A; found if they are not given.
    batched : bool, optional
        Whether sweeps take groups in batches; by default off the CPU.

    Attributes
    ----------
    spectra : (Tensor, Tensor)
    weights : Tensor, shape (q, outputs)
    norms : Tensor, shape (q / size,)
        ||W_g||.
    objective, gap : float
        The gap is to the best multiple of the residual, absolute.
    """

    def __init__(
        self,
        gram: Tensor,
        linear: Tensor,
        squared_norm: float,
        size: int,
        reg: float,
        spectra: tuple[Tensor, Tensor] | None = None,
        batched: bool | None = None,
    ) -> None:
        self.gram, self.linear, self.squared_norm = gram, linear, squared_norm
        self.size, self.reg = size, reg
        self.n_groups = len(gram) // size
        if spectra is None:
            groups = torch.arange(self.n_groups, device=gram.device)
            values, vectors = torch.linalg.eigh(gram.view(self.n_groups, size, self.n_groups, size)[groups, :, groups])
            spectra = values.clamp_min(0.0), vectors
        self.spectra = spectra
        self.batched = gram.device.type != "cpu" if batched is None else batched
        self.bounds = [1.0] * -(-self.n_groups // _TOGETHER)
        self.move_to(torch.zeros_like(linear))

    def minimise(self, start: Tensor, tol: float, rounds: int) -> Tensor:
        """Return the minimum, found from ``start`` to an absolute gap of ``tol`` in so many rounds at most."""
        with all_threads() if len(self.gram) >= _LARGE else nullcontext():
            self.move_to(start)
            if not bool(start.any()):
                self._reweighted_start()
            self._descend(tol, rounds)
        active = int(self.norms.count_nonzero()) * self.size
        if self.gap <= tol or active > _DIRECT_COLUMNS:
            return self.weights
        # Its Newton steps are exact, at the price of an inverse.
        quadratic = self._quadratic()
        quadratic.move_to(self.weights.cpu().numpy())
        return torch.from_numpy(group_lasso(quadratic, self.reg, tol=tol)).to(self.linear)

    def _quadratic(self) -> GramQuadratic:
        """Return the same for numpy; on a CPU it shares the memory of the matrices."""
        gram, linear, values, vectors = (matrix.cpu().numpy() for matrix in (self.gram, self.linear, *self.spectra))
        return GramQuadratic(gram, linear, self.squared_norm, self.size, (values, vectors))

    def _descend(self, tol: float, rounds: int) -> None:
        steps = _CG_STEPS[0]
        for round_ in range(rounds):
            objective = self.objective
            self.sweep(_SWEEPS)
            logger.debug("round %d: objective %.6g, gap %.2e", round_, self.objective, self.gap)
            if self.gap <= tol or not bool(self.norms.any()):
                break
            step = self.newton_step(steps)
            if step is None:
                break  # features that repeat each other at a tiny reg
            length = self.move_along(step)
            steps = min(2 * steps, _CG_STEPS[1]) if length > 0.8 else max(steps // 2, _CG_STEPS[0])
            if objective - self.objective <= 1e-15 * max(abs(objective), 0.5 * self.squared_norm):
                break

    def move_to(self, weights: Tensor) -> None:
        """Set the point."""
        self._set(weights, self._product(weights))

    def _product(self, weights: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return A^T A W for a W that is given by some of its rows, and zero in the others."""
        gram, groups = self.gram[rows], weights.reshape(-1, self.size * weights.shape[1]).any(dim=1)
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

    def _grouped(self, values: Tensor) -> Tensor:
        return values.reshape(self.n_groups, self.size, -1)

    def _lengths(self, values: Tensor) -> Tensor:
        lengths: Tensor = values.reshape(self.n_groups, -1).norm(dim=1)
        return lengths

    def _per_row(self, values: Tensor) -> Tensor:
        """Return a number a group as a column, one for each of its rows."""
        return values.repeat_interleave(self.size)[:, None]

    def _reweighted_start(self) -> None:
        """Move to minima of the quadratic plus reg/2 sum_g ||W_g||^2 / norms_g, above ours up to a constant."""
        scale = max(float(self.gram.diagonal().mean()), 1e-300)
        norms = torch.full_like(self.norms, _START * self.reg / scale)
        for _ in range(_REWEIGHTINGS):
            if not self._reweight(norms):
                return
            norms = self.norms.clamp_min(_LEAST_NORM * float(self.norms.max()))

    def _reweight(self, norms: Tensor) -> bool:
        # A function of its own, so that no factor is left when the next is made.
        factor = _factor(self.gram.clone(), self._per_row(self.reg / norms)[:, 0])
        if factor is not None:
            self.move_to(_apply(factor, self.linear))
        return factor is not None

    def sweep(self, count: int) -> None:
        """Minimise over every group, or every batch of them, in turn; so many times."""
        weights, product = self.weights.contiguous().clone(), self.product.contiguous().clone()
        if self.batched:
            for _ in range(count):
                self._sweep_batches(weights, product)
        else:
            quadratic = self._quadratic()
            quadratic.restore((weights.numpy(), product.numpy()))
            descent = Descent(quadratic, self.reg)
            for _ in range(count):
                descent.sweep()
        # Products were updated group by group: start afresh, so that rounding doesn't add up.
        self.move_to(weights)
        if self.batched:
            self._drop()

    def _drop(self) -> None:
        """Set groups to zero whose own minimum is there: all, or the shorter ones if the objective would rise.

        A majorizer moves such a group towards zero without end.
        """
        values, vectors = self.spectra
        own = vectors @ (values[:, :, None] * (vectors.mT @ self._grouped(self.weights)))
        leaving = (self._lengths(self._grouped(self.pulls) + own) <= self.reg) & (self.norms > 0)
        if not bool(leaving.any()):
            return
        weights, product, objective = self.weights, self.product, self.objective
        for share in _SHORTER:
            leaving &= self.norms <= share * self.norms.max()
            self.move_to(weights * self._per_row((~leaving).to(weights)))
            if self.objective <= objective:
                return
            self._set(weights, product)

    def _sweep_batches(self, weights: Tensor, product: Tensor) -> None:
        """Move batch after batch to the minimum of a majorizer, in place, and adapt the bounds that it is made with.

        The majorizer has ``bound`` times the blocks on A^T A's diagonal in the place of the batch's part of it. It is
        one if the change of the weights finds no more curvature than that, and surely for a bound of the batch's size.
        """
        for batch, bound in enumerate(self.bounds):
            groups = slice(batch * _TOGETHER, min((batch + 1) * _TOGETHER, self.n_groups))
            rows = slice(groups.start * self.size, groups.stop * self.size)
            values, vectors = (part[groups] for part in self.spectra)
            before = vectors.mT @ weights[rows].reshape(len(values), self.size, -1)
            pulls = vectors.mT @ (self.linear[rows] - product[rows]).reshape(before.shape)
            while True:
                turned = self._block_minima(bound * values, before, pulls) - before
                change = (vectors @ turned).reshape(weights[rows].shape)
                found = (change * (self.gram[rows, rows] @ change)).sum()
                allowed = bound * (values[:, :, None] * turned.square()).sum()
                if bound >= len(values) or bool(found <= allowed):
                    break
                bound = min(2 * bound, float(len(values)))
            weights[rows] += change
            product += self._product(change, rows)
            self.bounds[batch] = max(1.0, _SMALLER_BOUND * bound)

    def _block_minima(self, values: Tensor, weights: Tensor, pulls: Tensor) -> Tensor:
        """Return argmin_V 1/2 tr (V - W)^T diag(values) (V - W) - tr V^T pulls + reg ||V||, a group of each batch.

        With B = pulls + diag(values) W its norm t solves sum_i ||B_i||^2 / (values_i t + reg)^2 = 1; it is 0 where
        ||B|| <= reg.
        """
        values = values.clamp_min(1e-300)
        targets = pulls + values[:, :, None] * weights
        squares = targets.square().sum(dim=2)
        lengths = squares.sum(dim=1).sqrt()
        active = lengths > self.reg
        norms = ((lengths - self.reg) / values.amax(dim=1)).where(active, 0.0)
        for _ in range(_NORM_STEPS):
            shifted = values * norms[:, None] + self.reg
            shares = squares / shifted.square()
            excess = shares.sum(dim=1)
            # Newton on excess^(-1/2) = 1, which is nearly linear in the norm, converges from the left.
            slope = (shares * values / shifted).sum(dim=1) / excess**1.5
            norms = (norms + (1 - excess**-0.5) / slope.clamp_min(1e-300)).where(active, 0.0)
        shrunk = norms[:, None] / (values * norms[:, None] + self.reg)
        return targets * shrunk[:, :, None]

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

    def move_along(self, step: Tensor) -> float:
        """Move to the minimum on the ray of a step, up to ``_LONGEST`` of it; return how far that was."""
        image = self._product(step)
        groups, steps = self._grouped(self.weights), self._grouped(step)
        inner, square = (groups * steps).sum(dim=(1, 2)), steps.square().sum(dim=(1, 2))
        lengths = groups.square().sum(dim=(1, 2))
        curvature, slope = (step * image).sum(), -(step * self.pulls).sum()
        low, high = curvature.new_zeros(()), curvature.new_full((), _LONGEST)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            norms = (lengths + middle * (2 * inner + middle * square)).clamp_min(1e-300).sqrt()
            derivative = slope + middle * curvature + self.reg * ((inner + middle * square) / norms).sum()
            falls = derivative < 0
            low, high = torch.where(falls, middle, low), torch.where(falls, high, middle)
        self._set(self.weights + low * step, self.product + low * image)
        return float(low)


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
