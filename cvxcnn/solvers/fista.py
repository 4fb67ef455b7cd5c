"""FISTA with adaptive restart on the Gram matrix, for programs without cones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..losses import SquaredLoss
from ..program import Program
from .base import Outcome, Solver, Status
from .gram import GramForm

__all__ = ["Fista"]

_CHECK_EVERY = 20


class Fista(Solver):
    """Accelerated proximal gradient with gradient restart, stopped by the duality gap.

    Parameters
    ----------
    tol : float
        Relative duality gap, checked every 20 iterations.
    max_iter : int or None
        Default 20,000.

    Notes
    -----
    Memory q^2 for q = blocks * cells * rows; an iteration costs one (q, q) x (q, outputs) product.
    Sources: Beck & Teboulle 2009; O'Donoghue & Candes 2015 for the restart.
    """

    name = "fista"
    shares_images = True

    def refusal(self, program: Program) -> str | None:
        if program.cones is not None:
            return 'it knows no cones. Use solver="working_set", or activation="gated_relu".'
        if not isinstance(program.loss, SquaredLoss):
            return f'it needs loss="squared"; got {program.loss.name!r}. Use solver="auto".'
        return None

    def run(self, program: Program, start: Tensor | None, report: Callable[[int, float, float], None]) -> Outcome:
        form = GramForm.of(program)
        # Lipschitz constant of the gradient; the largest eigenvalue, a little enlarged for rounding.
        steepness = float(torch.linalg.eigvalsh(form.gram)[-1]) * (1 + 1e-12) if len(form.gram) else 0.0
        weights = program.zeros() if start is None else start.clone()
        if steepness <= 0:
            return Outcome(torch.zeros_like(weights), 0)
        outputs = program.n_outputs
        point, momentum = weights, 1.0
        limit = self.max_iter or 20_000
        best, best_objective = weights, float("inf")
        for iteration in range(limit + 1):
            if iteration % _CHECK_EVERY == 0 or iteration == limit:
                objective, bound, _ = form.gap(program, weights)
                report(iteration, objective, bound)
                if objective < best_objective:
                    best, best_objective = weights, objective
                if objective - bound <= 0.5 * self.tol * max(1.0, abs(objective)):
                    return Outcome(weights, iteration)
            gradient = (form.gram @ point.reshape(-1, outputs) - form.linear).view(form.shape)
            following = program.penalty.prox(point - gradient / steepness, program.reg / steepness)
            if float(((point - following) * (following - weights)).sum()) > 0:
                momentum = 1.0
            next_momentum = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            point = following + (momentum - 1) / next_momentum * (following - weights)
            weights, momentum = following, next_momentum
        return Outcome(best, limit, Status.ITERATION_LIMIT)
