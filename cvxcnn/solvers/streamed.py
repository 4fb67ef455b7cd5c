"""Group lasso for many images: one pass over them for the Gram form, which alone is then solved, one to judge."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.distributed import broadcast
from ..penalties import Penalty
from ..program.program import Evaluation, Program, relative_gap
from .algebra.gram import GramForm, judge
from .algebra.gram_newton import GramLasso
from .base import Outcome, Solver
from .fista import accelerated
from .needs import Needs
from .semismooth_newton import minimised

__all__ = ["Streamed", "path", "solve_form"]

logger = logging.getLogger(__name__)

# Float64 passes at most: a judge, and one more for each correction of the Gram form.
_PASSES = 3
# Exact steps end at a gap relative to an objective that they may begin far from.
_ATTEMPTS = 4
# Rounds of splitting and Newton steps.
_ROUNDS = 100


class Streamed(Solver):
    """One pass over the images for the Gram form, a group lasso on it, and one pass to judge the answer.

    Parameters
    ----------
    tol : float
        Relative duality gap, in the end judged over the images in float64.
    max_iter : int or None
        Rounds of the group lasso, or iterations of FISTA for a penalty without fixed groups; None for their
        defaults.
    form : GramForm or None
        The program's own Gram form, if it is known already.

    Notes
    -----
    Memory, with q = blocks * cells * rows: 8 q^2 bytes for the Gram matrix, as much again for a factor, and 2^27
    bytes of features, independent of the number of images. The features are computed twice: in the program's
    dtype for the Gram form, and in float64 for the judge, whose seconds count; once more in float64 where the gap on
    the Gram form is small but on the images isn't, because the form was summed in float32; and where that doesn't help,
    or the form itself is too coarse to be solved, the form is summed once more in float64.
    """

    name = "streamed"
    needs = Needs(quadratic=True, cones=False)
    shares_images = True

    def __init__(self, tol: float = 1e-6, max_iter: int | None = None, form: GramForm | None = None) -> None:
        super().__init__(tol, max_iter)
        self.form = form
        self._judged: tuple[Tensor, Evaluation] | None = None

    def reg_max(self, program: Program) -> float:
        """Return the smallest reg at which zero weights are optimal; the Gram form is kept for ``solve``."""
        self.form = GramForm.of(program.unweighted()) if self.form is None else self.form
        return self.form.reg_max(program.penalty)

    def intercepts(self, program: Program, weights: Tensor) -> Tensor:
        form = GramForm.of(program.unweighted()) if self.form is None else self.form
        return form.intercepts(weights).to(weights)

    def run(self, program: Program, start: Tensor | None, report: Callable[[int, float, float], None]) -> Outcome:
        form = GramForm.of(program) if self.form is None else self.form
        limit, coarse = self.max_iter or _ROUNDS, program.targets.dtype != torch.float64
        for iteration in range(1, _PASSES + 1):
            solution = solve_form(form, program.penalty, program.reg, 0.5 * self.tol, start, limit)
            weights = broadcast(solution.to(program.targets))
            final, correlation = judge(program, weights)
            self._judged = weights, final
            report(iteration, final.objective, final.dual_bound)
            if final.relative_gap <= self.tol or iteration == _PASSES:
                break
            rounded, believed = self._gap_on(form, program, weights)
            if rounded > self.tol and coarse and self._gap_on(form, program, solution)[0] <= self.tol:
                logger.info("relative gap %.2e once weights are rounded to float32: use float64", rounded)
                break
            if rounded <= self.tol and (iteration == 1 or not coarse):
                # The Gram form is rounded too coarsely for this tolerance. With the judge's A^T nu in the place of its
                # own it is right at this point, and nearly so at its neighbours.
                logger.info("relative gap %.2e on the images: the Gram form is corrected", final.relative_gap)
                form = replace(form, linear=form.linear + (correlation - believed).view_as(form.linear))
            elif coarse:
                logger.info("relative gap %.2e: the Gram form is summed once more, in float64", final.relative_gap)
                del form
                self.form = None  # two of them may not fit
                form = self.form = GramForm.of(program, exact=True)
                coarse = False
            else:
                break
            # What solves a form that is far off is no better a start than any other.
            start = weights if rounded <= self.tol else start
        return Outcome(weights, iteration)

    def _gap_on(self, form: GramForm, program: Program, weights: Tensor) -> tuple[float, Tensor]:
        """Return the relative gap of weights on a Gram form, and their A^T nu there."""
        objective, bound, correlation = form.gap(program.penalty, program.reg, weights)
        return relative_gap(objective, bound, form.rounding), correlation

    def passed(self, program: Program, start: Tensor | None) -> Tensor:
        self.form = GramForm.of(program) if self.form is None else self.form
        limit = self.max_iter or _ROUNDS
        weights = solve_form(self.form, program.penalty, program.reg, 0.5 * self.tol, start, limit)
        return broadcast(weights.to(program.targets))

    def judge(self, program: Program, weights: Tensor) -> Evaluation:
        if self._judged is not None and torch.equal(self._judged[0], weights):
            return self._judged[1]
        return judge(program, weights)[0]


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
        Limit; a round is dozens of splitting steps on one factor and a few Newton steps, or, for a penalty
        without fixed groups, a proximal step or an iteration of FISTA.
    """
    if penalty.smooth and form.shape[0] == 1:
        return minimised(form, penalty, reg, tol, start, None if rounds == _ROUNDS else rounds).weights
    if penalty.group_axes is None:
        return accelerated(form, penalty, reg, tol, start, None if rounds == _ROUNDS else rounds).weights
    _, cells, rows, outputs = form.shape
    solution = torch.zeros_like(form.linear) if start is None else start.to(form.linear).reshape(form.linear.shape)
    size = rows if "cell" in penalty.group_axes else cells * rows
    parts = [[output] for output in range(outputs)] if penalty.separable else [list(range(outputs))]
    for _ in range(_ATTEMPTS):
        objective, bound, _ = form.gap(penalty, reg, solution.view(form.shape))
        if objective - bound <= tol * max(objective, form.rounding):
            break
        fresh = []
        for part in parts:
            squared_norm = float(form.squared_norm[part].sum())
            lasso = GramLasso(form.gram, form.linear[:, part], squared_norm, size, reg)
            fresh.append(lasso.minimise(solution[:, part], 0.9 * tol, rounds))
        solution = torch.cat(fresh, dim=1)
    return solution.view(form.shape)


def path(form: GramForm, penalty: Penalty, regs: Sequence[float], tol: float) -> list[Tensor]:
    """Return the solutions for several regs over one Gram form, each started from the one before; best from the top."""
    found: list[Tensor] = []
    for reg in regs:
        found.append(solve_form(form, penalty, reg, tol, found[-1] if found else None))
    return found
