"""The direction that breaks the dual constraint most: searched for, climbed to, or bounded; and the bound that follows.

At a dual point nu the bound over all networks is the dual value of its best multiple that is feasible for every
direction. A search tells of the directions that it met; how many it is likely to have missed, the number of its starts
that ended at the same ones tells (Boender & Rinnooy Kan 1987, Bayesian Stopping Rules for Multistart Global
Optimization Methods).
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..patches.patches import Patches
from ..program.program import Program
from ..program.units import Units
from .exploration import Exploration, Worst, networks_in, objection
from .maxima import best_directions
from .options import LEAST_GAP, PricingOptions
from .proof import Proof, prove

__all__ = [
    "Worst",
    "best_directions",
    "check_search",
    "check_searchable",
    "global_bound",
    "networks_in",
    "searched_reg_max",
    "worst_direction",
]

logger = logging.getLogger(__name__)

# A proof looks at every patch in every region of the sphere.
_PROOF_PATCHES = 1 << 15
# A search goes on until it expects to have missed fewer maxima than this, or until its budget ends: three times
# ``starts``, or more, up to so many times, as long as the ascents cost no more than so many multiplications.
# Chosen by benchmarks/calibration.py: with 0.5 for filters, one bound in ten of small problems was false. Gates have so
# many maxima that fewer are out of reach.
_UNSEEN = {"filters": 0.05, "gates": 0.5}
_BATCHES = 3
_MORE = ((16, 4e10),)
_MORE_FILTERS = (*_MORE, (64, 1e10))


def check_search(options: PricingOptions) -> None:
    """Raise InputError if there would be no search, so that no bound is called searched without one."""
    if options.starts < 1:
        raise InputError("pricing needs a search: starts must be at least 1; got 0.")


def check_searchable(program: Program) -> None:
    """Raise InputError if the worst direction of a program can't be searched for."""
    reason = objection(program)
    if reason is not None:
        raise InputError(reason)


def worst_direction(
    program: Program,
    quick: Patches,
    dual: Tensor,
    options: PricingOptions,
    generator: torch.Generator,
    *,
    enough: float | None = None,
    rough: bool = False,
) -> Worst:
    """Return what breaks the dual constraint most at a dual point, and the bound over all directions that follows.

    Parameters
    ----------
    program : Program
        Of any dtype; directions are scored, and the bound is taken, in float64.
    quick : Patches
        The patches in the dtype of the ascent.
    dual : Tensor, shape (n, outputs), float64
        nu.
    options : PricingOptions
    generator : torch.Generator
    enough : float, optional
        A bound below this is not kept: the search is then one batch of starts, without a climb or a proof.
    rough : bool
        Whether the ascents of that batch are cut short.

    Raises
    ------
    InputError
        If the search doesn't know the penalty's dual norm, or the dual point isn't in float64.
    """
    check_searchable(program)
    exact = program.double()
    if dual.dtype != torch.float64:
        # Constraints that it keeps in float32, a mean or a sum of zero, it breaks in float64 by more than bounds may.
        raise InputError(f"dual must be a dual point in float64, as program.double() gives it; got {dual.dtype}.")
    separation = Exploration(exact, dual, quick, generator)
    used = separation.add(F.normalize(exact.design.vectors, dim=1))
    steps = options.ascent_steps
    found = separation.look(options.starts, steps // 3 + 1 if rough else steps)
    climbs = separation.climbs()
    if climbs and separation.gated:
        # Filters in use are stationary, or nearly; from gates in use a way may lead higher, and gates found are seldom
        # at a maximum before they are climbed from.
        separation.climb(torch.cat([used, found]))
        found = found[:0]
    if enough is not None and separation.bound() < enough:
        return separation.result()
    proof = _prove(exact, separation, options)
    if proof is not None:
        # What the search missed is among these, and goes into the next round like the rest.
        directions = torch.cat([separation.directions, proof.directions])
        scores = torch.cat([separation.scores(), proof.scores])
        return Worst(directions, scores, proof.bound, options.starts, proved=True)
    budget = options.starts * _BATCHES
    # The highest gates are near others, which must be known before they are looked for.
    least = budget if separation.gated else 0
    cost = separation.cost(steps)
    kind = program.design.directions_are
    limits = _MORE_FILTERS if kind == "filters" else _MORE
    budget = max(budget, *(min(options.starts * batches, int(most / cost)) for batches, most in limits))
    unseen = _UNSEEN.get(kind, 0.0)
    each = climbs and (separation.easy() or separation.gated)
    while True:
        if each:
            separation.climb(found)
            found = found[:0]
        left = budget - separation.n_searched
        if left <= 0 or (each and separation.n_searched >= least and separation.unseen() < unseen):
            break
        if enough is not None and separation.bound() < enough:
            break
        # As many as there were: a start costs less the more there are. Those for gates begin near what was found.
        more = 2 * options.starts if separation.gated else max(2 * options.starts, separation.n_searched)
        found = torch.cat([found, separation.look(min(left, more), steps)])
    if climbs and not each:
        separation.climb(found)
    result = separation.result()
    logger.info(
        "search: %d starts, %d distinct maxima, %.2g more expected, worst %.6f",
        result.n_searched,
        result.n_distinct,
        result.expected_unseen,
        float(result.scores.max()) if len(result.scores) else 0.0,
    )
    return result


def _prove(program: Program, separation: Exploration, options: PricingOptions) -> Proof | None:
    """Return a proved bound over all filters, ten times as tight as the gap asked for, or None if there is none."""
    patches = program.design.patches
    if patches.dim > options.prove_up_to or patches.n_images * patches.n_patches > _PROOF_PATCHES:
        return None
    scores = separation.scores()
    candidates = separation.directions[scores.topk(min(len(scores), 64)).indices]
    return prove(program, separation.dual, candidates, tol=max(0.1 * options.gap, LEAST_GAP))


def in_units_of(program: Program, units: Units) -> Program:
    """Return the same program with images, targets and reg in other units; gates and cones have none."""
    if units == Units():
        return program
    design = program.design.on(units.scaled(program.design.patches))
    return replace(
        program, design=design, targets=program.targets / units.targets, reg=program.reg / units.reg,
        loss=program.loss.in_unit(units.importance),
    )  # fmt: skip


def global_bound(program: Program, weights: Tensor, options: PricingOptions, generator: torch.Generator) -> Worst:
    """Return the search at a solution of a program over some gates, with its lower bound over ALL gates.

    Of a penalty whose dual norm the search doesn't know no bound is claimed: it is nan, and the certificate "none".

    Parameters
    ----------
    program : Program
    weights : Tensor, shape (blocks, cells, rows, outputs)
        Its solution; the dual point is that of its prediction.
    options : PricingOptions
        ``starts`` and ``ascent_steps`` of the search, and ``prove_up_to``.
    generator : torch.Generator
    """
    check_search(options)
    if objection(program) is not None:
        vectors = program.design.vectors
        return Worst(vectors[:0].double(), vectors.new_zeros(0).double(), float("nan"), n_searched=0)
    program = program.double()
    units = Units.of(program.design.patches, program.targets, program.loss)
    program, weights = in_units_of(program, units), weights.double() / units.weights
    dual = program.dual_point(program.design.predict(weights))
    quick = program.design.patches.astype(torch.float32)
    worst = worst_direction(program, quick, dual, options, generator)
    return worst._replace(bound=worst.bound * units.objective)


def searched_reg_max(program: Program, options: PricingOptions, generator: torch.Generator) -> float:
    """Return the largest dual norm at zero weights that a search finds: the reg from which the solution is zero.

    ``program`` has reg 1 and may have no gates at all.
    """
    check_search(options)
    check_searchable(program)
    program = program.double()
    units = Units.of(program.design.patches, program.targets, program.loss)
    program = in_units_of(program, units)
    dual = program.dual_point(torch.zeros_like(program.targets))
    separation = Exploration(program, dual, program.design.patches.astype(torch.float32), generator)
    found = separation.look(options.starts, options.ascent_steps)
    if separation.climbs():
        separation.climb(found)
    return float(separation.scores().max()) * program.reg * units.reg
