"""Pricing: find the filters that a ReLU block lacks, add them, and bound its distance to the global optimum.

The dual of Eq. 1, with any number of neurons, is (squared loss shown)

    max_nu  nu . y - 1/2 ||nu||^2   subject to   max_{||u|| <= 1}  || nu^T pooled (R u)_+ ||  <=  lam

Solve over the filters at hand, search the sphere for a u whose response breaks the constraint, add it,
improve all filters locally, repeat. What the search finds is evidence, not proof: the bound that comes with
it is valid if no u is worse than the worst one found.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ..arrangements import GaussianGates, distinct
from ..losses import Loss, SquaredLoss
from ..ordinary.baseline import train_baseline
from ..patches.patches import Patches
from ..penalties import DensePenalty, Penalty
from ..pricing.certificate import Certificate
from ..pricing.options import LEAST_GAP, PricedGates, PricingOptions
from ..pricing.search import thinned
from ..pricing.separation import Worst, best_directions, check_search, worst_direction
from ..program.cones import Cones
from ..program.program import Program, filter_program, gated_program, relative_gap
from ..program.units import Units, unit_rows
from ..solvers import Progress, get_solver
from ..solvers.working_set import WorkingSet

__all__ = [
    "PricedGates",
    "PricedSolution",
    "PricingOptions",
    "solve_priced",
    "solve_priced_gates",
]

logger = logging.getLogger(__name__)

# While the worst direction violates by more than this factor, searches are cut short: the local improvement
# that follows moves every filter anyway.
_NEARLY = 1.1
# The local improvement works on at most this many, and the ordinary training before the first round too.
_IMPROVE_PATCHES = 1 << 19
# Relative gap of the first solve over gates, and that of the next ones as a share of the gap over all gates.
_ROUGH = 1e-2
_SHARE = 0.1
# Filters shorter than this share of the longest are left out.
_NEGLIGIBLE = 1e-6
# Minibatch steps of the ordinary training that pricing begins with.
_INITIAL_STEPS = 1000


@dataclass(frozen=True)
class PricedSolution:
    """Unit filters, their readout, and the two certificates.

    Attributes
    ----------
    filters : Tensor, shape (m, d)
        Unit length; only those with a non-zero readout.
    weights : Tensor, shape (m, cells, rows, outputs)
    program : Program
        The convex program over ``filters``.
    objective, dual_bound : float
        Of the program over the filters found: proved.
    global_bound : float
        Over all filters, given the worst one found in the search.
    worst : Worst
        The search, or the proof, that gave ``global_bound``.
    rounds : int
    seconds : float
    history : list of Progress
        One entry a round, with the bound over all filters.
    converged : bool
        Whether the gap to ``global_bound`` reached the one asked for.
    """

    filters: Tensor
    weights: Tensor
    program: Program
    objective: float
    dual_bound: float
    global_bound: float
    worst: Worst
    rounds: int
    seconds: float
    history: list[Progress] = field(default_factory=list)
    converged: bool = True

    @property
    def certificate(self) -> Certificate:
        """Both bounds, and how sure the one over all filters is."""
        worst = self.worst._replace(bound=self.global_bound)
        return worst.certificate(self.program, self.objective, self.dual_bound)


def _improve(patches: Patches, program: Program, weights: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Return filters moved by L-BFGS on Eq. 1, from balanced neurons; shape (m, d), unit length.

    Of large sets, it sees about ``_IMPROVE_PATCHES`` patches.
    """
    patches, rows = thinned(patches, _IMPROVE_PATCHES, generator)
    reg = program.reg * len(rows) / len(program.targets)
    dtype = patches.dtype
    lengths = weights.flatten(1).norm(dim=1).sqrt()
    filters = (program.design.vectors * lengths[:, None]).to(dtype).requires_grad_()
    readout = (weights.squeeze(2) / lengths[:, None, None]).to(dtype)
    # With the group penalty a neuron keeps to the pairs that it feeds.
    mask = readout != 0
    readout = readout.requires_grad_()
    targets = program.targets[rows].to(dtype)
    optimizer = torch.optim.LBFGS(
        [filters, readout],
        max_iter=steps,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
    )

    def closure() -> float:
        optimizer.zero_grad()
        prediction = torch.einsum("ncm,mco->no", patches.relu_features(filters), readout * mask)
        if program.intercept:
            prediction = prediction + (targets - prediction).mean(dim=0)
        squares = filters.square().sum() + readout.square().sum()
        loss = program.loss.tensor(prediction, targets) + 0.5 * reg * squares
        loss.backward()
        return float(loss.detach())

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    moved = filters.detach()
    lengths = moved.norm(dim=1)
    return unit_rows(moved[torch.isfinite(moved).all(dim=1) & (lengths > _NEGLIGIBLE * lengths.nan_to_num().amax())])


def in_units(solve: Callable[..., PricedSolution]) -> Callable[..., PricedSolution]:
    """Return ``solve`` of the problem in units near one, its solution given back in the units of the problem.

    Searches, line searches and ordinary training have absolute constants, and run in float32.
    """

    @wraps(solve)
    def solved(
        patches: Patches,
        targets: Tensor,
        reg: float,
        *,
        loss: Loss | None = None,
        callback: Callable[[Progress], None] | None = None,
        **settings: Any,
    ) -> PricedSolution:
        units = Units.of(patches, targets, loss or SquaredLoss())
        if units == Units():
            return solve(patches, targets, reg, loss=loss, callback=callback, **settings)

        def restored(progress: Progress) -> Progress:
            objective, bound = progress.objective * units.objective, progress.dual_bound * units.objective
            return replace(progress, objective=objective, dual_bound=bound)

        def report(progress: Progress) -> None:
            if callback is not None:
                callback(restored(progress))

        near_one = units.scaled(patches), targets / units.targets, reg / units.reg
        found = solve(*near_one, loss=loss, callback=report, **settings)
        program = replace(found.program, design=found.program.design.on(patches), targets=targets, reg=reg)
        if found.program.cones is not None:
            program.cones = Cones(patches, found.filters)
        return replace(
            found,
            weights=found.weights * units.weights,
            program=program,
            objective=found.objective * units.objective,
            dual_bound=found.dual_bound * units.objective,
            global_bound=found.global_bound * units.objective,
            history=[restored(progress) for progress in found.history],
        )

    return solved


@in_units
def solve_priced(
    patches: Patches,
    targets: Tensor,
    reg: float,
    *,
    penalty: Penalty | None = None,
    loss: Loss | None = None,
    intercept: bool = False,
    tol: float = 1e-6,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    options: PricingOptions | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> PricedSolution:
    """Minimise Eq. 1 over any number of neurons, by pricing.

    Parameters
    ----------
    patches : Patches
        Training patches in float64.
    targets : Tensor, shape (n, outputs)
    reg : float
    penalty : Penalty
        ``DensePenalty()`` (default): every neuron feeds every (cell, output). ``GroupPenalty()``: one each.
    loss : Loss
    intercept : bool
    tol : float
        Relative gap of each group lasso over the filters at hand.
    start : Tensor, shape (m, d), optional
        Filters to begin with.
    generator : torch.Generator
        Source of the random starts.
    options : PricingOptions
    callback : callable
        Called with a ``Progress`` after each round.

    Returns
    -------
    PricedSolution
    """
    began = time.perf_counter()
    options = options or PricingOptions()
    penalty = penalty or DensePenalty()
    loss = loss or SquaredLoss()
    generator = generator or torch.Generator().manual_seed(0)
    quick = patches.astype(torch.float32)
    history: list[Progress] = []
    WorkingSet(tol=tol)  # refuses a bad tol before any work
    check_search(options)

    def over(filters: Tensor) -> Program:
        return filter_program(patches, filters, targets, reg, penalty=penalty, loss=loss, intercept=intercept)

    def master(filters: Tensor) -> tuple[Program, Tensor]:
        """Solve over filters, made unit in float64, and keep those with a readout."""
        filters = unit_rows(filters)
        program = over(filters)
        if not len(filters):
            return program, program.zeros()
        # With a coarser one than the gap over all filters, filters that it misses would be priced and never kept.
        accuracy = max(min(tol, _SHARE * options.gap), LEAST_GAP)
        weights = get_solver("auto", program, tol=accuracy).solve(program).weights
        active = weights.flatten(1).any(dim=1)
        return over(filters[active]), weights[active]

    if start is None:
        # One short cycle of ordinary training finds most of the directions; the program keeps what it needs.
        few, rows = thinned(patches, _IMPROVE_PATCHES, generator)
        epochs = max(1, round(_INITIAL_STEPS * 64 / max(few.n_images, 64)))
        seed = int(torch.randint(1 << 31, (1,), generator=generator))
        connect = "group" if penalty.separable else "dense"
        share = few.n_images / patches.n_images
        trained = train_baseline(
            few, targets[rows], reg * share, options.initial_filters, connect=connect, epochs=epochs, seed=seed,
            loss=loss.name,
        )  # fmt: skip
        found = trained.filters.to(targets)
        lengths = found.norm(dim=1)
        filters = found[lengths > _NEGLIGIBLE * lengths.amax()]
    else:
        filters = start.to(targets)
    program, weights = master(filters)
    prediction = program.design.predict(weights)
    objective = program.objective(weights, prediction)
    worst = float("inf")
    for rounds in range(options.max_rounds + 1):
        last = rounds == options.max_rounds or time.perf_counter() - began > options.time_limit
        rough = not last and worst >= _NEARLY
        dual = program.dual_point(prediction)
        enough = None if last else objective * (1 - options.gap)
        met = worst_direction(program, quick, dual, options, generator, enough=enough, rough=rough)
        bound, worst = met.bound, float(met.scores.max())
        progress = Progress(rounds, time.perf_counter() - began, objective, bound)
        history.append(progress)
        logger.info(
            "pricing round %d: objective %.6g, worst violation %.5f, gap %.2e, %d filters, %.1f s",
            rounds,
            objective,
            worst,
            relative_gap(objective, bound),
            len(weights),
            progress.seconds,
        )
        if callback is not None:
            callback(progress)
        converged = relative_gap(objective, bound) <= options.gap
        if converged or last:
            break
        chosen = best_directions(met.scores, met.directions, 1 + 1e-9, options.additions)
        program, weights = master(torch.cat([program.design.vectors, met.directions[chosen].to(targets)]))
        if not len(weights):
            break  # zero is optimal over all that was found, to the accuracy of the solver
        before = program.objective(weights)
        improved = _improve(quick, program, weights, options.improvement_steps, generator).to(targets)
        moved, moved_weights = master(improved)
        if moved.objective(moved_weights) > before:
            # A local step that went wrong must not raise the objective: keep the old filters beside the new.
            moved, moved_weights = master(torch.cat([improved, program.design.vectors]))
        program, weights = moved, moved_weights
        prediction = program.design.predict(weights)
        objective = program.objective(weights, prediction)
    final = program.double().evaluate(weights.double())
    return PricedSolution(
        filters=program.design.vectors,
        weights=weights,
        program=program,
        objective=final.objective,
        dual_bound=final.dual_bound,
        global_bound=min(bound, final.objective),
        worst=met,
        rounds=rounds,
        seconds=time.perf_counter() - began,
        history=history,
        converged=converged,
    )


@in_units
def solve_priced_gates(
    patches: Patches,
    targets: Tensor,
    reg: float,
    *,
    penalty: Penalty | None = None,
    loss: Loss | None = None,
    intercept: bool = False,
    tol: float = 1e-6,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    options: PricingOptions | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> PricedSolution:
    """Minimise the gated program over all gates, by pricing: ``solve_priced`` for gated networks.

    Same parameters and result; ``start`` and ``filters`` are gates.
    """
    began = time.perf_counter()
    options = options or PricingOptions()
    check_search(options)
    generator = generator or torch.Generator().manual_seed(0)
    quick = patches.astype(torch.float32)
    history: list[Progress] = []

    def over(gates: Tensor) -> Program:
        loss_used = loss or SquaredLoss()
        return gated_program(patches, gates, targets, reg, penalty=penalty, loss=loss_used, intercept=intercept)

    if start is None or not len(start):
        start = GaussianGates(1).sample(patches, 20, generator)
    program = over(distinct(patches, start).vectors)
    weights = program.zeros()
    accuracy = max(tol, _ROUGH)
    for rounds in range(options.max_rounds + 1):
        last = rounds == options.max_rounds or time.perf_counter() - began > options.time_limit
        accuracy = tol if last else accuracy
        solved = get_solver("auto", program, tol=accuracy).solve(program, start=weights)
        dual = program.dual_point(program.design.predict(solved.weights))
        enough = None if last else solved.objective * (1 - options.gap)
        found = worst_direction(program, quick, dual, options, generator, enough=enough)
        scores, bound = found.scores, found.bound
        history.append(Progress(rounds, time.perf_counter() - began, solved.objective, bound))
        if callback is not None:
            callback(history[-1])
        active = solved.weights.flatten(1).any(dim=1)
        gates, weights = program.design.vectors[active], solved.weights[active]
        program = over(gates)
        gap = relative_gap(solved.objective, bound)
        exact, converged = accuracy <= tol, gap <= options.gap
        order = torch.argsort(scores, descending=True)
        order = order[scores[order] > 1 + 1e-9][: 4 * options.additions]
        # Active gates come first, so that a pattern found again is dropped and not its twin in use.
        merged = gates
        if len(order):
            merged = distinct(patches, torch.cat([gates, found.directions[order].to(targets)])).vectors
            merged = merged[: len(gates) + options.additions]
        ended = converged or len(merged) == len(gates)
        if last or (ended and exact):
            break
        # While gates are missing, a small share of the gap is accuracy enough.
        accuracy = tol if ended else max(tol, _SHARE * gap)
        program = over(merged)
        weights = torch.cat([weights, weights.new_zeros(len(merged) - len(gates), *weights.shape[1:])])
    final = program.double().evaluate(weights.double())
    return PricedSolution(
        filters=program.design.vectors,
        weights=weights,
        program=program,
        objective=final.objective,
        dual_bound=final.dual_bound,
        global_bound=min(bound, final.objective),
        worst=found,
        rounds=rounds,
        seconds=time.perf_counter() - began,
        history=history,
        converged=converged,
    )
