"""Group lasso for many images: one pass over them for the Gram form, which alone is then solved, one to judge."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from ..losses import SquaredLoss
from ..penalties import GroupPenalty, NuclearPenalty, Penalty
from ..program import Evaluation, Program
from .base import Outcome, Solver
from .fista import accelerated
from .gram import GramForm, judge
from .newton import Descent, GramQuadratic, group_lasso

__all__ = ["Streamed", "path", "solve_form"]

logger = logging.getLogger(__name__)

Array = np.ndarray

# The tolerance is relative to an objective that the start may be far from.
_ATTEMPTS = 4
# Reweighted ridge systems that a start from nothing begins with. The first takes norms of so many times
# reg / (mean of diag A^T A), and none takes norms below this share of the largest.
_REWEIGHTINGS = 3
_START = 100.0
_LEAST_NORM = 1e-8
# Sweeps of exact block updates before each truncated Newton step; both are cheap beside its factor.
_SWEEPS = 5
# Conjugate gradients of a Newton step, at least and at most; what they stop at relative to the right side.
_CG_STEPS = (4, 64)
_CG_TOL = 1e-3
# The longest step, in multiples of Newton's.
_LONGEST = 4.0
# Up to so many active columns, what these steps leave is left to exact ones.
_DIRECT_COLUMNS = 2000
# Rounds of sweeps and a step.
_ROUNDS = 100


class Streamed(Solver):
    """One pass over the images for the Gram form, a group lasso on it, and one pass to judge the answer.

    Parameters
    ----------
    tol : float
        Relative duality gap, in the end judged over the images in float64.
    max_iter : int or None
        Rounds of the group lasso, or iterations of FISTA for the nuclear penalty; None for their defaults.
    form : GramForm or None
        The program's own Gram form, if it is known already.

    Notes
    -----
    Memory, with q = blocks * cells * rows: 8 q^2 bytes for the Gram matrix, as much again for a factor, and 2^27
    bytes of features, independent of the number of images. The features are computed twice: in the program's
    dtype for the Gram form, and in float64 for the judge.
    """

    name = "streamed"
    shares_images = True

    def __init__(self, tol: float = 1e-6, max_iter: int | None = None, form: GramForm | None = None) -> None:
        super().__init__(tol, max_iter)
        self.form = form

    def refusal(self, program: Program) -> str | None:
        if program.cones is not None:
            return 'it knows no cones. Use solver="cone_working_set", or activation="gated_relu".'
        if not isinstance(program.loss, SquaredLoss):
            return f'it needs loss="squared"; got {program.loss.name!r}. Use solver="auto".'
        return None

    def run(self, program: Program, start: Tensor | None, report: Callable[[int, float, float], None]) -> Outcome:
        form = GramForm.of(program) if self.form is None else self.form
        if isinstance(program.penalty, NuclearPenalty):
            weights = accelerated(
                form, program.penalty, program.reg, 0.5 * self.tol, start, self.max_iter, report
            ).weights
        else:
            weights = solve_form(form, program.penalty, program.reg, 0.5 * self.tol, start, self.max_iter or _ROUNDS)
        objective, bound, _ = form.gap(program.penalty, program.reg, weights)
        report(1, objective, bound)
        return Outcome(weights.to(program.targets), 1)

    def judge(self, program: Program, weights: Tensor) -> Evaluation:
        return judge(program, weights)


def solve_form(
    form: GramForm, penalty: Penalty, reg: float, tol: float, start: Tensor | None = None, rounds: int = _ROUNDS
) -> Tensor:
    """Return weights (blocks, cells, rows, outputs), float64, that solve a Gram form to a relative gap of ``tol``.

    Parameters
    ----------
    form : GramForm
    penalty : Penalty
    reg : float
        > 0.
    tol : float
        Relative duality gap, of the Gram form.
    start : Tensor, shape (blocks, cells, rows, outputs), optional
        A point to start from, the solution of a neighbouring reg for one.
    rounds : int
        Limit; a round is a few sweeps of exact block updates and a truncated Newton step.
    """
    if isinstance(penalty, NuclearPenalty):
        return accelerated(form, penalty, reg, tol, start).weights
    _, cells, rows, outputs = form.shape
    gram, linear = form.gram.cpu().numpy(), form.linear.cpu().numpy()
    norms = form.squared_norm.cpu().numpy()
    begin = np.zeros_like(linear) if start is None else start.double().cpu().numpy().reshape(linear.shape).copy()
    separable = isinstance(penalty, GroupPenalty)
    size = rows if separable else cells * rows
    parts = [[output] for output in range(outputs)] if separable else [list(range(outputs))]
    solution, spectra = begin, None
    for _ in range(_ATTEMPTS):
        point = torch.from_numpy(solution).to(form.linear).view(form.shape)
        objective, bound, _ = form.gap(penalty, reg, point)
        # Absolute, and divided among the outputs that are solved apart.
        accuracy = tol * max(1.0, abs(objective))
        if objective - bound <= accuracy:
            break
        fresh = np.empty_like(solution)
        for part in parts:
            quadratic = _LargeQuadratic(gram, linear[:, part], float(norms[part].sum()), size, spectra)
            spectra = quadratic.spectra
            fresh[:, part] = _solve(quadratic, reg, solution[:, part], 0.9 * accuracy / len(parts), rounds)
        solution = fresh
    return torch.from_numpy(solution).to(form.linear).view(form.shape)


def path(form: GramForm, penalty: Penalty, regs: Sequence[float], tol: float) -> list[Tensor]:
    """Return the solutions for several regs over one Gram form, each started from the one before; best from the top."""
    found: list[Tensor] = []
    for reg in regs:
        found.append(solve_form(form, penalty, reg, tol, found[-1] if found else None))
    return found


class _LargeQuadratic(GramQuadratic):
    """The quadratic of thousands of columns: steps from one Cholesky factor each."""

    def move_to(self, weights: Array) -> None:
        self.weights, self.product = weights.copy(), self.gram @ weights

    def change(self, rows: slice, delta: Array) -> None:
        self.weights[rows] += delta
        # Rows of a symmetric matrix lie together, its columns don't.
        self.product += self.gram[rows].T @ delta

    def reweight(self, reg: float, norms: Array) -> None:
        """Move to the minimum of the quadratic plus reg/2 sum_g ||W_g||^2 / norms_g, above ours up to a constant."""
        factor = _factor(self.gram.copy(), np.repeat(reg / norms, self.size))
        self.move_to(_apply(factor, self.linear))

    def newton_step(self, descent: Descent, steps: int) -> Array:
        """Return a truncated Newton step on the support, zero elsewhere.

        The Hessian is M - reg sum_g u_g u_g^T / ||W_g||, M = G + reg diag(1 / ||W_g||). Woodbury's identity leaves the
        system diag(||W_g|| / reg) - U^T M^-1 U, whose eigenvalues relative to its first term are in (0, 1]. ``steps``
        conjugate gradients on it lead from the reweighted step, which is short and safe, towards Newton's.
        """
        support = np.flatnonzero(descent.norms > 0)
        rows, norms, size = self.rows(support), descent.norms[support], self.size
        units = self.weights[rows] / np.repeat(norms, size)[:, None]
        factor = _factor(self.gram[np.ix_(rows, rows)], np.repeat(descent.reg / norms, size))
        roots = np.sqrt(descent.reg / norms)

        def spread(along: Array) -> Array:
            return _apply(factor, units * np.repeat(roots * along, size)[:, None])

        def radial(values: Array) -> Array:
            result: Array = roots * (units * values).reshape(len(support), -1).sum(axis=1)
            return result

        short = _apply(factor, descent.pulls[rows] - descent.reg * units)
        along = _conjugate_gradients(lambda values: values - radial(spread(values)), radial(short), steps)
        step = np.zeros_like(self.weights)
        step[rows] = short + spread(along)
        return step

    def move_along(self, step: Array, reg: float) -> float:
        """Move to the minimum of the objective on the ray of a step, up to ``_LONGEST``; return how far that was."""
        image = self.gram @ step
        groups, steps = self.weights.reshape(self.n_groups, -1), step.reshape(self.n_groups, -1)
        moving = steps.any(axis=1)
        groups, steps = groups[moving], steps[moving]
        inner, square = (groups * steps).sum(axis=1), (steps * steps).sum(axis=1)
        length = (groups * groups).sum(axis=1)
        curvature, slope = float(np.vdot(step, image)), float(np.vdot(step, self.product - self.linear))
        low, high = 0.0, _LONGEST
        for _ in range(40):
            middle = 0.5 * (low + high)
            norms = np.sqrt(np.maximum(length + middle * (2 * inner + middle * square), 1e-300))
            derivative = slope + middle * curvature + reg * float(((inner + middle * square) / norms).sum())
            low, high = (middle, high) if derivative < 0 else (low, middle)
        self.weights += low * step
        self.product += low * image
        return low


def _factor(matrix: Array, diagonal: Array) -> Array:
    """Return the Cholesky factor of a matrix plus a diagonal, in its place."""
    np.einsum("ii->i", matrix)[:] += diagonal
    factor: Array
    factor, info = linalg.lapack.dpotrf(matrix.T, lower=1, overwrite_a=1, clean=0)
    if info:
        raise linalg.LinAlgError("the matrix is not positive definite")
    return factor


def _apply(factor: Array, right: Array) -> Array:
    solution: Array = linalg.lapack.dpotrs(factor, right, lower=1)[0]
    return solution


def _conjugate_gradients(system: Callable[[Array], Array], right: Array, steps: int) -> Array:
    """Return x with system(x) = right, as far as so many steps lead."""
    solution, residual = np.zeros_like(right), right.copy()
    direction, square = residual, float(residual @ residual)
    limit = _CG_TOL**2 * square
    for _ in range(steps):
        image = system(direction)
        curvature = float(direction @ image)
        if square <= limit or curvature <= 0:
            break
        solution += square / curvature * direction
        residual = residual - square / curvature * image
        previous, square = square, float(residual @ residual)
        direction = residual + square / previous * direction
    return solution


def _solve(quadratic: _LargeQuadratic, reg: float, weights: Array, tol: float, rounds: int) -> Array:
    """Minimise over a quadratic from ``weights``, to an absolute gap."""
    quadratic.move_to(weights)
    if not weights.any():
        norms = np.full(quadratic.n_groups, _START * reg / max(float(np.diagonal(quadratic.gram).mean()), 1e-300))
        for _ in range(_REWEIGHTINGS):
            quadratic.reweight(reg, norms)
            norms = np.maximum(quadratic.norms(quadratic.weights), _LEAST_NORM * norms.max())
    descent = Descent(quadratic, reg)
    steps = _CG_STEPS[0]
    for round_ in range(rounds):
        objective = descent.objective
        for _ in range(_SWEEPS):
            descent.sweep()
        quadratic.move_to(quadratic.weights)
        descent.refresh()
        logger.debug("round %d: objective %.6g, gap %.2e", round_, descent.objective, descent.gap)
        if descent.gap <= tol or not descent.norms.any():
            break
        try:
            length = quadratic.move_along(quadratic.newton_step(descent, steps), reg)
        except linalg.LinAlgError:
            break  # features that repeat each other at a tiny reg: the sweeps that follow don't mind
        steps = min(2 * steps, _CG_STEPS[1]) if length > 0.8 else max(steps // 2, _CG_STEPS[0])
        descent.refresh()
        if objective - descent.objective <= 1e-15 * max(abs(objective), 0.5 * quadratic.squared_norm):
            break
    active = int((descent.norms > 0).sum()) * quadratic.size
    # Its Newton steps are exact, at the price of an inverse.
    return group_lasso(quadratic, reg, tol=tol) if active <= _DIRECT_COLUMNS else quadratic.weights
