"""FISTA with adaptive restart on the Gram matrix or the features, for programs without cones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..penalties import Penalty
from ..program.program import Program, relative_gap
from .algebra.gram import FeatureForm, GramForm
from .base import Outcome, Solver, Status
from .needs import Needs

__all__ = ["Fista", "accelerated"]

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
    Memory q^2 for q = blocks * cells * rows, and a (q, q) x (q, outputs) product an iteration; where the images n are
    half as many or fewer, n q and two products of that size.
    Sources: Beck & Teboulle 2009; O'Donoghue & Candes 2015 for the restart.
    """

    name = "fista"
    needs = Needs(quadratic=True, cones=False)
    shares_images = True

    def run(self, program: Program, start: Tensor | None, report: Callable[[int, float, float], None]) -> Outcome:
        form = FeatureForm.of(program) if FeatureForm.suits(program) else GramForm.of(program)
        outcome = accelerated(form, program.penalty, program.reg, 0.5 * self.tol, start, self.max_iter, report)
        return replace(outcome, weights=outcome.weights.to(program.targets))


def accelerated(
    form: GramForm | FeatureForm,
    penalty: Penalty,
    reg: float,
    tol: float,
    start: Tensor | None = None,
    max_iter: int | None = None,
    report: Callable[[int, float, float], None] | None = None,
) -> Outcome:
    """Minimise 1/2 ||A W - Y||^2 + reg * penalty(W) over a form, to a relative gap of ``tol``."""
    # Lipschitz constant of the gradient; the largest eigenvalue, a little enlarged for rounding.
    steepness = form.steepness() * (1 + 1e-12)
    weights = form.linear.new_zeros(form.shape) if start is None else start.to(form.linear)
    if steepness <= 0:
        return Outcome(torch.zeros_like(weights), 0)
    outputs = form.shape[3]
    point, momentum = weights, 1.0
    limit = max_iter or 20_000
    best, best_objective = weights, float("inf")
    for iteration in range(limit + 1):
        if iteration % _CHECK_EVERY == 0 or iteration == limit:
            objective, bound, _ = form.gap(penalty, reg, weights)
            if report is not None:
                report(iteration, objective, bound)
            if objective < best_objective:
                best, best_objective = weights, objective
            if relative_gap(objective, bound, form.rounding) <= tol:
                return Outcome(weights, iteration)
        gradient = (form.product(point.reshape(-1, outputs)) - form.linear).view(form.shape)
        following = penalty.prox(point - gradient / steepness, reg / steepness)
        if float(((point - following) * (following - weights)).sum()) > 0:
            momentum = 1.0
        next_momentum = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        point = following + (momentum - 1) / next_momentum * (following - weights)
        weights, momentum = following, next_momentum
    return Outcome(best, limit, Status.ITERATION_LIMIT)
