"""Pricing: find the filters that a ReLU block lacks, add them, and bound its distance to the global optimum.

The dual of Eq. 1, with any number of neurons, is (squared loss shown)

    max_nu  nu . y - 1/2 ||nu||^2   subject to   max_{||u|| <= 1}  || nu^T pooled (R u)_+ ||  <=  lam

Solve over the filters at hand, search the sphere for a u whose response breaks the constraint, add it,
improve all filters locally, repeat. What the search finds is evidence, not proof: the bound that comes with
it is valid if no u is worse than the worst one found.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .arrangements import GaussianGates, PatchGates, distinct
from .baseline import train_baseline
from .certificate import Certificate, Proof, prove
from .checks import as_int, is_number, scalar
from .cones import Cones
from .design import GatedDesign
from .errors import InputError
from .losses import Loss, SquaredLoss
from .patches import Patches
from .penalties import DensePenalty, Penalty
from .program import Program, filter_program, gated_program, relative_gap
from .search import FilterSearch, GateSearch, Search, thinned
from .solvers import Progress, get_solver
from .solvers.working_set import WorkingSet
from .units import Units, unit_rows

__all__ = [
    "PricedGates",
    "PricedSolution",
    "PricingOptions",
    "global_bound",
    "searched_reg_max",
    "solve_priced",
    "solve_priced_gates",
]

logger = logging.getLogger(__name__)

# Filters whose cosine exceeds this are taken for one and the same when new ones are chosen.
_SAME_DIRECTION = 0.99
# While the worst direction violates by more than this factor, searches are cut short: the local improvement
# that follows moves every filter anyway.
_NEARLY = 1.1
# The ascent of a search works on at most this many patches: it takes about a hundred passes over them. Of larger
# sets, it begins with the best of so many starts for each that is climbed from, and with cosines below this.
_SEARCH_PATCHES = 1 << 18
_POOL = 8
_DIVERSE = 0.9
# Patches that those starts are whitened by.
_WHITENED_PATCHES = 1 << 13
# The local improvement works on at most this many, and the ordinary training before the first round too.
_IMPROVE_PATCHES = 1 << 19
# A proof looks at every patch in every region of the sphere.
_PROOF_PATCHES = 1 << 15
# No smaller gap can be asked for: it is what the proof's own rounding costs.
_LEAST_GAP = 1e-9
# Relative gap of the first solve over gates, and that of the next ones as a share of the gap over all gates.
_ROUGH = 1e-2
_SHARE = 0.1
# Filters shorter than this share of the longest are left out.
_NEGLIGIBLE = 1e-6
# Minibatch steps of the ordinary training that pricing begins with.
_INITIAL_STEPS = 1000


@dataclass(frozen=True)
class PricingOptions:
    """How hard to search.

    Parameters
    ----------
    starts : int
        Random starts of each search, half Gaussian and half data patches; the bound that is
        reported at the end comes from three times as many. Above 262,144 patches, climbing is on every second to
        fourth patch of as many images as make that number, from the best of eight times as many starts, which are
        whitened patches too; what is found is scored on all patches.
    ascent_steps : int
        Steps of the local ascent from each start.
    additions : int
        Filters added in a round, at most.
    improvement_steps : int
        L-BFGS steps on Eq. 1 between rounds, on half a million patches at most.
    initial_filters : int
        Neurons of the short ordinary training that the first filters come from (ReLU filters only).
    max_rounds : int
        Rounds of search and improvement.
    time_limit : float
        Seconds after which no new round is begun.
    gap : float
        Relative gap to the bound over all filters to stop at, at least 1e-9.
    prove_up_to : int
        Patch dimension (bias included) up to which the last bound of a ReLU block is proved, by branch and bound
        over the whole sphere, if there are at most 32,768 patches; otherwise, or with 0, it is searched. Dimension 4
        takes seconds to a minute, 5 takes minutes, 6 was not closed in five.
    neighbours : int
        For ReLU blocks with ``penalty="group"``: end with Eq. 2 over the patterns of the filters found and of this
        many neighbours of each, across the hyperplanes nearest to it; 0 ends with the filters themselves.
    """

    starts: int = 128
    ascent_steps: int = 60
    additions: int = 32
    improvement_steps: int = 60
    initial_filters: int = 128
    max_rounds: int = 40
    time_limit: float = float("inf")
    gap: float = 1e-4
    prove_up_to: int = 4
    neighbours: int = 0

    def __post_init__(self) -> None:
        least = {"starts": 0, "ascent_steps": 1, "additions": 1, "improvement_steps": 1, "initial_filters": 1}
        for name, low in {**least, "max_rounds": 1, "prove_up_to": 0, "neighbours": 0}.items():
            object.__setattr__(self, name, as_int(name, getattr(self, name), low))
        # Both may be infinite: no limit, and no search for more.
        time_limit, gap = scalar(self.time_limit), scalar(self.gap)
        if time_limit != math.inf and not is_number(time_limit, above=0):
            raise InputError(f"time_limit must be a positive number of seconds; got {self.time_limit!r}.")
        if gap != math.inf and not (is_number(gap) and gap >= _LEAST_GAP):
            raise InputError(f"gap must be a number >= {_LEAST_GAP:g}, above what rounding costs; got {self.gap!r}.")
        object.__setattr__(self, "time_limit", float(time_limit))
        object.__setattr__(self, "gap", float(gap))


@dataclass(frozen=True)
class PricedGates(PricingOptions):
    """Gates or filters found by the optimisation itself: ``gates="priced"`` with its search options.

    Solve, search the unit ball for a u with |nu^T sum_k (X_k u)_+| > lam, add it, repeat until none is found; for
    gated programs, for a gate whose gradient sum_k X_k^T D_k nu is longer than lam. The patches alone don't
    determine these gates, so this is no ``GateSampler``: a block finds them while it solves.

    Parameters and errors are those of ``PricingOptions``.

    Examples
    --------
    >>> from cvxcnn import ConvexConvBlock
    >>> images = torch.linspace(-1, 1, 90, dtype=torch.float64).view(10, 3, 3)
    >>> block = ConvexConvBlock(
    ...     kernel_size=2, padding=0, pool_cells=1, bias=False, gates=PricedGates(starts=16, gap=0.01), reg=0.1
    ... )
    >>> block.fit(images, images.mean(dim=(1, 2))).certificate_.kind  # patches of 4 numbers are few enough for a proof
    'proved'
    """


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
    n_searched : int
        Starts of the search that gave ``global_bound``.
    proved : bool
        Whether ``global_bound`` holds for all filters without exception.
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
    n_searched: int
    rounds: int
    seconds: float
    history: list[Progress] = field(default_factory=list)
    converged: bool = True
    proved: bool = False

    @property
    def certificate(self) -> Certificate:
        """Both bounds, and how sure the one over all filters is."""
        kind, n_searched = ("proved", 0) if self.proved else ("searched", self.n_searched)
        return Certificate(self.objective, self.dual_bound, self.global_bound, kind, n_searched)


def best_directions(values: Tensor, filters: Tensor, floor: float, count: int, same: float = _SAME_DIRECTION) -> Tensor:
    """Return the indices of the best filters above a floor whose cosines are below ``same``, at most ``count``."""
    order = torch.argsort(values, descending=True)
    order = order[values[order] > floor]
    cosines = filters[order] @ filters[order].T
    chosen: list[int] = []
    for position in range(len(order)):
        if len(chosen) == count:
            break
        if not chosen or float(cosines[position, chosen].max()) < same:
            chosen.append(position)
    return order[torch.tensor(chosen, dtype=torch.long, device=order.device)]


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


def _dual_norms(penalty: Penalty, correlation: Tensor) -> Tensor:
    """Return the largest dual norm of each direction, shape (m,)."""
    norms = penalty.dual_norms(correlation)
    return norms.flatten(1).amax(dim=1) if penalty.separable else norms


def _diverse_starts(search: Search, count: int, generator: torch.Generator) -> Tensor:
    """Return the best of many starts that differ in direction, unit, at most ``count``; half are whitened patches.

    From large images most random starts climb to the same few directions, and climbing is what costs: these start
    higher, apart from each other, and need fewer steps.
    """
    pool = search.starts(_POOL * count // 2, generator)
    some, _ = thinned(search.patches, _WHITENED_PATCHES, generator)
    with suppress(InputError):  # patches that don't vary can't be whitened
        drawn = PatchGates(quantile=0.5).sample(some, _POOL * count // 2, generator)
        pool = torch.cat([pool, F.normalize(drawn, dim=1)])
    scores = _dual_norms(search.penalty, search.correlation(pool))
    return pool[best_directions(scores, pool, 0.0, count, _DIVERSE)]


def _priced(search: Search, program: Program, found: Tensor, dual: Tensor) -> tuple[Tensor, float]:
    """Return the dual norm / reg of each found direction (m,), and the bound at the best multiple of ``dual``."""
    centred = program.centre(program.targets)
    if not len(found):
        return dual.new_zeros(0), program.loss.dual_value(dual, centred, dual.new_ones(dual.shape[1]))
    correlation = search.correlation(found)
    scores = _dual_norms(program.penalty, correlation)
    largest = program.penalty.largest_scale(correlation, program.reg)
    # Directions that were not searched may reach reg; a larger multiple than 1 would need them not to.
    bound = program.loss.dual_value(dual, centred, largest.clamp_max(1.0))
    return scores / program.reg, bound


def _search_for(program: Program, patches: Patches, dual: Tensor) -> Search:
    gated = isinstance(program.design, GatedDesign)
    return (GateSearch if gated else FilterSearch)(patches, dual, program.penalty)


def _check_search(options: PricingOptions) -> None:
    """Raise InputError if there would be no search, so that no bound is called searched without one."""
    if options.starts < 1:
        raise InputError('gates="priced" needs a search: starts must be at least 1; got 0.')


def _find(
    program: Program, quick: Patches, dual: Tensor, starts: int, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """Search all directions at a dual point; return (directions, scores / reg, bound over all gates).

    The ascent sees about ``_SEARCH_PATCHES`` patches, drawn anew each time; what it finds is scored on all.
    """
    few, rows = thinned(quick, _SEARCH_PATCHES, generator)
    search = _search_for(program, few, dual[rows])
    if few is quick:
        points = search.starts(starts, generator)
    else:
        points, steps = _diverse_starts(search, starts, generator), steps // 3 + 1
    found = F.normalize(search.ascend(points, steps).to(dual), dim=1)
    # Vectors in use are stationary, or nearly; they are priced, not moved.
    found = torch.cat([found, program.design.vectors])
    scores, bound = _priced(_search_for(program, program.design.patches, dual), program, found, dual)
    return found, scores, bound


class Priced(NamedTuple):
    """What a round's search, and its proof if there was one, found at a dual point."""

    directions: Tensor  # (m, d), unit
    scores: Tensor  # (m,), dual norm / reg
    bound: float
    n_searched: int
    proved: bool


def price(
    program: Program,
    quick: Patches,
    dual: Tensor,
    objective: float,
    options: PricingOptions,
    generator: torch.Generator,
    last: bool,
    rough: bool,
) -> Priced:
    """Search at a dual point; a bound that is kept is searched twice, and proved where patches are small."""
    steps = options.ascent_steps // 3 + 1 if rough else options.ascent_steps
    found, scores, bound = _find(program, quick, dual, options.starts, steps, generator)
    if not last and relative_gap(objective, bound) > options.gap:
        return Priced(found, scores, bound, options.starts, False)
    proof = _prove(program, dual, found, scores, options)
    if proof is not None:
        # What the search missed is among these, and goes into the next round like the rest.
        found, scores = torch.cat([found, proof.directions]), torch.cat([scores, proof.scores])
        return Priced(found, scores, proof.bound, options.starts, True)
    more, more_scores, more_bound = _find(program, quick, dual, 2 * options.starts, options.ascent_steps, generator)
    found, scores = torch.cat([found, more]), torch.cat([scores, more_scores])
    return Priced(found, scores, min(bound, more_bound), 3 * options.starts, False)


def _prove(program: Program, dual: Tensor, found: Tensor, scores: Tensor, options: PricingOptions) -> Proof | None:
    """Return a proved bound over all filters, ten times as tight as the gap asked for, or None if there is none."""
    patches = program.design.patches
    if patches.dim > options.prove_up_to or patches.n_images * patches.n_patches > _PROOF_PATCHES:
        return None
    return prove(
        program, dual, found[scores.topk(min(len(scores), 64)).indices], tol=max(0.1 * options.gap, _LEAST_GAP)
    )


def global_bound(
    program: Program, weights: Tensor, options: PricingOptions, generator: torch.Generator
) -> tuple[float, bool]:
    """Return the lower bound over ALL gates at a solution of a program over some, and whether it is proved.

    Parameters
    ----------
    program : Program
    weights : Tensor, shape (blocks, cells, rows, outputs)
        Its solution; the dual point is that of its prediction.
    options : PricingOptions
        ``starts`` and ``ascent_steps`` of the search, and ``prove_up_to``.
    generator : torch.Generator
    """
    units = Units.of(program.design.patches, program.targets, program.loss)
    program, weights = _in_units(program, units), weights / units.weights
    prediction = program.design.predict(weights)
    dual = program.dual_point(prediction)
    quick = program.design.patches.astype(torch.float32)
    found, scores, bound = _find(program, quick, dual, options.starts, options.ascent_steps, generator)
    proof = _prove(program, dual, found, scores, options)
    if proof is not None:
        return proof.bound * units.objective, True
    return min(bound, program.dual_bound(prediction)) * units.objective, False


def searched_reg_max(program: Program, options: PricingOptions, generator: torch.Generator) -> float:
    """Return the largest dual norm at zero weights that a search finds: the reg from which the solution is zero.

    ``program`` has reg 1 and may have no gates at all.
    """
    _check_search(options)
    units = Units.of(program.design.patches, program.targets, program.loss)
    program = _in_units(program, units)
    dual = program.dual_point(torch.zeros_like(program.targets))
    quick = program.design.patches.astype(torch.float32)
    _, scores, _ = _find(program, quick, dual, options.starts, options.ascent_steps, generator)
    return float(scores.max()) * program.reg * units.reg


def _in_units(program: Program, units: Units) -> Program:
    """Return the same program with images, targets and reg in other units; gates and cones have none."""
    if units == Units():
        return program
    design = program.design.on(units.scaled(program.design.patches))
    return replace(program, design=design, targets=program.targets / units.targets, reg=program.reg / units.reg)


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
    _check_search(options)

    def over(filters: Tensor) -> Program:
        return filter_program(patches, filters, targets, reg, penalty=penalty, loss=loss, intercept=intercept)

    def master(filters: Tensor) -> tuple[Program, Tensor]:
        """Solve over filters, made unit in float64, and keep those with a readout."""
        filters = unit_rows(filters)
        program = over(filters)
        if not len(filters):
            return program, program.zeros()
        # With a coarser one than the gap over all filters, filters that it misses would be priced and never kept.
        accuracy = min(tol, _SHARE * options.gap)
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
        priced = price(program, quick, dual, objective, options, generator, last, rough)
        found, scores, bound = priced.directions, priced.scores, priced.bound
        worst = float(scores.max())
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
        chosen = best_directions(scores, found, 1 + 1e-9, options.additions)
        program, weights = master(torch.cat([program.design.vectors, found[chosen]]))
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
        n_searched=priced.n_searched,
        rounds=rounds,
        seconds=time.perf_counter() - began,
        history=history,
        converged=converged,
        proved=priced.proved,
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
    _check_search(options)
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
        priced = price(program, quick, dual, solved.objective, options, generator, last, rough=False)
        scores, bound = priced.scores, priced.bound
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
        merged = distinct(patches, torch.cat([gates, priced.directions[order]])).vectors[
            : len(gates) + options.additions
        ]
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
        n_searched=priced.n_searched,
        rounds=rounds,
        seconds=time.perf_counter() - began,
        history=history,
        converged=converged,
    )
