"""Group lasso for many images: one pass over them for the Gram form, which alone is then solved, one to judge."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..losses import SquaredLoss
from ..penalties import GroupPenalty, NuclearPenalty, Penalty
from ..program import Evaluation, Program
from .base import Outcome, Solver
from .fista import accelerated
from .gram import GramForm, judge
from .newton import GramQuadratic, group_lasso

__all__ = ["Streamed", "path", "solve_form"]

logger = logging.getLogger(__name__)

Array = np.ndarray

# The tolerance is relative to an objective that the start may be far from.
_ATTEMPTS = 4
# Reweighted ridge systems at most; each costs a Cholesky factor.
_REWEIGHTINGS = 30


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
            weights = solve_form(form, program.penalty, program.reg, 0.5 * self.tol, start)
        objective, bound, _ = form.gap(program.penalty, program.reg, weights)
        report(1, objective, bound)
        return Outcome(weights.to(program.targets), 1)

    def judge(self, program: Program, weights: Tensor) -> Evaluation:
        return judge(program, weights)


def solve_form(form: GramForm, penalty: Penalty, reg: float, tol: float, start: Tensor | None = None) -> Tensor:
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
            fresh[:, part] = _solve(quadratic, reg, solution[:, part], 0.9 * accuracy / len(parts))
        solution = fresh
    return torch.from_numpy(solution).to(form.linear).view(form.shape)


def path(form: GramForm, penalty: Penalty, regs: Sequence[float], tol: float) -> list[Tensor]:
    """Return the solutions for several regs over one Gram form, each started from the one before; best from the top."""
    found: list[Tensor] = []
    for reg in regs:
        found.append(solve_form(form, penalty, reg, tol, found[-1] if found else None))
    return found


class _LargeQuadratic(GramQuadratic):
    pass


def _solve(quadratic: GramQuadratic, reg: float, weights: Array, tol: float) -> Array:
    quadratic.move_to(weights)
    return group_lasso(quadratic, reg, tol=tol)
