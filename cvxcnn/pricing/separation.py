"""The direction that breaks the dual constraint most: searched for, climbed to, or bounded; and the bound that follows.

At a dual point nu the bound over all networks is the dual value of its best multiple that is feasible for every
direction. A search tells of the directions that it met; how many it is likely to have missed, the number of its starts
that ended at the same ones tells (Boender & Rinnooy Kan 1987, Bayesian Stopping Rules for Multistart Global
Optimization Methods).
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arrangements import PatchGates
from ..core.distributed import all_sum
from ..errors import InputError
from ..patches.patches import Patches
from ..penalties import Penalty
from ..program.design import GatedDesign
from ..program.program import Program
from ..program.units import Units
from .certificate import Certificate, networks_of
from .options import LEAST_GAP, PricingOptions
from .proof import Proof, prove
from .search import FilterSearch, GateSearch, Search, thinned

__all__ = ["Worst", "best_directions", "check_search", "global_bound", "searched_reg_max", "worst_direction"]

logger = logging.getLogger(__name__)

# Filters whose cosine exceeds this are taken for one and the same when new ones are chosen, or starts to climb from.
_SAME_DIRECTION = 0.99
# Climbed directions whose cosine exceeds this are one maximum.
_SAME_MAXIMUM = 1 - 1e-6
# An ascent that ended this near to a maximum, by the cosine, is not climbed on from.
_AT_MAXIMUM = 1 - 1e-3
# The ascent of a search works on at most this many patches: it takes about a hundred passes over them. Of larger
# sets, it begins with the best of so many starts for each that is climbed from, and with cosines below this.
_SEARCH_PATCHES = 1 << 18
_POOL = 8
_DIVERSE = 0.9
# Patches that those starts are whitened by.
_WHITENED_PATCHES = 1 << 13
# A proof looks at every patch in every region of the sphere.
_PROOF_PATCHES = 1 << 15
# Maxima below this share of the highest count as one: they don't decide a bound. Those above are climbed to the end,
# in float64, at most so many of a batch of starts, and for each (cell, output) that is separate, in so many steps.
_RELEVANT = 0.9
_CLIMBED, _CLIMBED_EACH = 32, 4
_CLIMB_STEPS = 40
# Patches' numbers up to which all of these are climbed from, after each batch of starts; of more patches the fewer, but
# four, once, and in an eighth of the steps; and numbers from which on none is.
_CLIMB_EASY, _CLIMB_NUMBERS, _CLIMBED_LEAST = 1 << 18, 1 << 26, 4
# Of the starts of further batches of a search for gates, so many are near so many maxima, at these distances.
_NEAR_MAXIMA, _PARENTS = 0.75, 8
_NEAREST, _FARTHEST = 0.03, 0.6
# A search goes on until it expects to have missed fewer maxima than this, or until its budget ends: three times
# ``starts``, or more, up to 16 times, as long as the ascents cost no more than so many multiplications.
_UNSEEN = 0.5
_BATCHES, _MOST_BATCHES = 3, 16
_CHEAP = 4e10


class Worst(NamedTuple):
    """What a search, and its proof if there was one, found at a dual point."""

    directions: Tensor  # (m, d), unit, float64
    scores: Tensor  # (m,), dual norm / reg
    bound: float
    n_searched: int
    n_distinct: int = 0
    expected_unseen: float = float("nan")
    proved: bool = False

    def certificate(self, program: Program, objective: float, sampled_bound: float) -> Certificate:
        """Return the certificate of a solution of ``program`` at the dual point."""
        networks = networks_in(program)
        if self.proved:
            return Certificate(objective, sampled_bound, self.bound, "proved", networks=networks)
        return Certificate(
            objective,
            sampled_bound,
            self.bound,
            "searched",
            self.n_searched,
            networks,
            self.n_distinct,
            self.expected_unseen,
        )


def networks_in(program: Program) -> str:
    """Return which networks a program is exact for: a key of ``certificate.NETWORKS``."""
    gated = isinstance(program.design, GatedDesign)
    pairs = program.design.patches.n_cells * program.n_outputs
    return networks_of("gated" if gated else "all", program.penalty.separable, pairs)


def best_directions(
    values: Tensor,
    filters: Tensor,
    floor: float,
    count: int,
    same: float = _SAME_DIRECTION,
    kinds: Tensor | None = None,
) -> Tensor:
    """Return the indices of the best filters above a floor whose cosines are below ``same``, at most ``count``.

    Filters of different ``kinds`` (m,) are different whatever their cosine.
    """
    order = torch.argsort(values, descending=True)
    order = order[values[order] > floor]
    cosines = filters[order] @ filters[order].T
    if kinds is not None:
        cosines = torch.where(kinds[order][:, None] == kinds[order], cosines, -1.0)
    chosen: list[int] = []
    for position in range(len(order)):
        if len(chosen) == count:
            break
        if not chosen or float(cosines[position, chosen].max()) < same:
            chosen.append(position)
    return order[torch.tensor(chosen, dtype=torch.long, device=order.device)]


def expected_unseen(n_starts: int, n_distinct: int) -> float:
    """Return how many maxima are expected to have been missed by random starts that met ``n_distinct`` of them.

    w (N - 1) / (N - w - 2) maxima are expected in all, for N starts and w distinct maxima, every number of maxima and
    every share of the starts being equally likely beforehand (Boender & Rinnooy Kan 1987, equation 15).

    Examples
    --------
    >>> expected_unseen(102, 4), expected_unseen(5, 4)
    (0.20833333333333304, inf)
    """
    rest = n_starts - n_distinct - 2
    return n_distinct * (n_starts - 1) / rest - n_distinct if rest > 0 else float("inf")


def check_search(options: PricingOptions) -> None:
    """Raise InputError if there would be no search, so that no bound is called searched without one."""
    if options.starts < 1:
        raise InputError("pricing needs a search: starts must be at least 1; got 0.")


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


def _search_for(program: Program, patches: Patches, dual: Tensor) -> Search:
    gated = isinstance(program.design, GatedDesign)
    return (GateSearch if gated else FilterSearch)(patches, dual, program.penalty)


@dataclass
class _Maxima:
    """Directions that stand for a maximum, by their indices, and the (cell, output) that each of them makes large."""

    indices: Tensor
    kinds: Tensor

    def add(self, indices: Tensor, kinds: Tensor) -> None:
        """Add some."""
        self.indices, self.kinds = torch.cat([self.indices, indices]), torch.cat([self.kinds, kinds])


@dataclass
class _Separation:
    """The search at one dual point of a float64 program: what it found so far, each direction scored on all patches."""

    program: Program
    dual: Tensor
    quick: Patches
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.search = _search_for(self.program, self.program.design.patches, self.dual)
        self.gated = isinstance(self.search, GateSearch)
        self.rounding = self.program.correlation_rounding(all_sum(self.program.design.mass(self.dual)))
        self.directions = self.dual.new_zeros(0, self.program.design.patches.dim)
        self.largest = torch.full_like(self.dual[0], float("inf"))
        self.norms: Tensor | None = None
        self.n_searched = 0
        nothing = torch.zeros(0, dtype=torch.long, device=self.dual.device)
        self.maxima, self.others = _Maxima(nothing, nothing), _Maxima(nothing, nothing)

    def add(self, directions: Tensor) -> Tensor:
        """Score directions and keep them; return their indices."""
        first = len(self.directions)
        if not len(directions):
            return torch.zeros(0, dtype=torch.long, device=directions.device)
        self.directions = torch.cat([self.directions, directions])
        correlation = self.search.correlation(directions)
        penalty, reg = self.program.penalty, self.program.reg
        self.largest = self.largest.minimum(penalty.largest_scale(correlation, reg, self.rounding))
        norms = penalty.dual_norms(correlation) / reg
        self.norms = norms if self.norms is None else torch.cat([self.norms, norms])
        return torch.arange(first, len(self.directions), device=directions.device)

    def scores(self) -> Tensor:
        """Return the dual norm / reg of each direction, the largest one if there are several."""
        if self.norms is None:
            return self.dual.new_zeros(0)
        return self.norms.flatten(1).amax(dim=1) if self.norms.ndim > 1 else self.norms

    def bound(self) -> float:
        """Return the dual value at the best multiple that no direction found makes infeasible."""
        centred = self.program.centre(self.program.targets)
        # Directions that were not searched may reach reg; a larger multiple than 1 would need them not to.
        return self.program.loss.dual_value(self.dual, centred, self.largest.clamp_max(1.0))

    def look(self, starts: int, steps: int) -> Tensor:
        """Ascend from random starts and keep what is found; return the indices.

        The ascent sees about ``_SEARCH_PATCHES`` patches, drawn anew each time.
        """
        few, rows = thinned(self.quick, _SEARCH_PATCHES, self.generator)
        search = _search_for(self.program, few, self.dual[rows])
        if few is self.quick:
            points = search.starts(starts, self.generator)
            if self.gated:
                points = self._near_maxima(points)
        else:
            points, steps = _diverse_starts(search, starts, self.generator), steps // 3 + 1
        self.n_searched += starts
        return self.add(F.normalize(search.ascend(points, steps).to(self.dual), dim=1))

    def _near_maxima(self, points: Tensor) -> Tensor:
        """Return starts of which most are moved to the best maxima of their (cell, output), at some distance.

        Gates have so many maxima that those from anywhere are seldom among the highest, which lie near each other.
        """
        known = self.maxima.indices
        if self.norms is None or not len(known):
            return points
        norms = self.norms[known].flatten(1) if self.norms.ndim > 1 else self.norms[known, None]
        count = int(_NEAR_MAXIMA * len(points))
        turns = torch.randn(count, points.shape[1], generator=self.generator, dtype=torch.float64).to(points)
        lengths = torch.rand(count, 1, generator=self.generator, dtype=torch.float64).to(points)
        turns = F.normalize(turns, dim=1) * _NEAREST * (_FARTHEST / _NEAREST) ** lengths
        for kind in range(norms.shape[1]):  # as the search deals them out
            rows = torch.arange(kind, count, norms.shape[1], device=points.device)
            own = (self.maxima.kinds == kind).nonzero().flatten()
            if not len(own):
                continue
            best = own[best_directions(norms[own, kind], self.directions[known[own]], 0.0, _PARENTS, _SAME_MAXIMUM)]
            parents = self.directions[known[best]].to(points)
            points[rows] = F.normalize(parents[torch.arange(len(rows)) % len(best)] + turns[rows], dim=1)
        return points

    def climb(self, found: Tensor) -> None:
        """Climb from the distinct best of some directions found, and note which maxima that makes."""
        if self.norms is None or not len(found):
            return
        points = self.directions[found]
        pairs = None
        if self.program.penalty.separable:
            # Every output has a multiple of its own, which its largest (cell, output) decides.
            by_output = self.norms[found]
            values, cells = by_output.max(dim=1)
            outputs = torch.arange(by_output.shape[2], device=found.device).expand_as(cells)
            kinds = (cells * by_output.shape[2] + outputs).flatten()
            floor = _RELEVANT * values.amax(dim=0).clamp_min(1.0)
            values = torch.where(values > floor, values, 0.0).flatten()
            points = points.repeat_interleave(by_output.shape[2], dim=0)
            n_pairs = by_output.shape[1] * by_output.shape[2]
            chosen = best_directions(self._new(values, points, kinds), points, 0.0, len(points), kinds=kinds)
            count = self._climbs_from(max(_CLIMBED, _CLIMBED_EACH * n_pairs))
            pairs = F.one_hot(kinds, n_pairs).to(points)
        else:
            values = self.norms[found]
            lowest = _RELEVANT * max(1.0, float(values.max()))
            kinds = torch.zeros_like(values, dtype=torch.long)
            chosen = best_directions(self._new(values, points, kinds), points, lowest, len(points))
            count = self._climbs_from(_CLIMBED)
        steps = _CLIMB_STEPS if self.easy() else _CLIMB_STEPS // 8
        chosen, left = chosen[:count], chosen[count:]
        reached = self.search.climb(points[chosen], steps, None if pairs is None else pairs[chosen])
        self.maxima.add(self.add(reached), kinds[chosen])
        # Near maxima as they are; where they are told apart more coarsely, they are not counted twice.
        places = left if points.shape[0] == len(found) else left // self.dual.shape[1]
        self.others.add(found[places], kinds[left])

    def _new(self, values: Tensor, points: Tensor, kinds: Tensor) -> Tensor:
        """Return the values, zero for points that have reached, or nearly, a maximum that is known."""
        known = self.maxima
        if self.gated or not len(known.indices):
            return values
        cosines = points @ self.directions[known.indices].T
        met = ((cosines > _AT_MAXIMUM) & (kinds[:, None] == known.kinds)).any(dim=1)
        return torch.where(met, 0.0, values)

    def _numbers(self) -> int:
        patches = self.program.design.patches
        return patches.n_images * patches.n_patches * patches.dim

    def _climbs_from(self, count: int) -> int:
        """Return how many directions are climbed from, of so many if the patches were few."""
        return max(_CLIMBED_LEAST, min(count, count * _CLIMB_EASY // max(self._numbers(), 1)))

    def n_distinct(self) -> int:
        """Return how many distinct maxima near the highest were met, the others counting as one."""
        scores = self.scores()
        floor = _RELEVANT * max(1.0, float(scores.max()))
        count = 1
        for maxima, same in ((self.maxima, _SAME_MAXIMUM), (self.others, _SAME_DIRECTION)):
            some = maxima.indices
            count += len(best_directions(scores[some], self.directions[some], floor, len(some), same, maxima.kinds))
        return count

    def unseen(self) -> float:
        """Return how many maxima near the highest are expected to have been missed."""
        distinct = self.n_distinct()
        # Starts that lead to gates of about the same direction are not climbed from one by one, and tell nothing new.
        told = len(self.maxima.indices) + len(self.others.indices)
        return expected_unseen(told if self.gated else self.n_searched, distinct)

    def cost(self, steps: int) -> float:
        """Return about how many multiplications the ascent from one start takes."""
        patches = self.quick
        seen = min(patches.n_images * patches.n_patches, _SEARCH_PATCHES)
        return 2.0 * seen * patches.dim * steps

    def climbs(self) -> bool:
        """Return whether there are few enough patches to climb on all of them, and what is climbed is known."""
        # A separable penalty of other groups than (cell, output) says no more of them than their dual norms.
        known = self.norms is None or self.norms.ndim == 1 or self.norms.shape[1] == self.program.design.n_cells
        return known and self._numbers() <= _CLIMB_NUMBERS

    def easy(self) -> bool:
        """Return whether there are so few patches that climbs cost little beside the ascents."""
        return self._numbers() <= _CLIMB_EASY

    def result(self) -> Worst:
        """Return what was found so far."""
        distinct, unseen = (self.n_distinct(), self.unseen()) if len(self.maxima.indices) else (0, float("nan"))
        return Worst(self.directions, self.scores(), self.bound(), self.n_searched, distinct, unseen)


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
    dual : Tensor, shape (n, outputs)
        nu.
    options : PricingOptions
    generator : torch.Generator
    enough : float, optional
        A bound below this is not kept: the search is then one batch of starts, without a climb or a proof.
    rough : bool
        Whether the ascents of that batch are cut short.
    """
    exact = program.double()
    separation = _Separation(exact, dual.double(), quick, generator)
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
    budget = max(budget, min(options.starts * _MOST_BATCHES, int(_CHEAP / separation.cost(steps))))
    each = climbs and (separation.easy() or separation.gated)
    while True:
        if each:
            separation.climb(found)
            found = found[:0]
        left = budget - separation.n_searched
        if left <= 0 or (each and separation.n_searched >= least and separation.unseen() < _UNSEEN):
            break
        if enough is not None and separation.bound() < enough:
            break
        found = torch.cat([found, separation.look(min(left, 2 * options.starts), steps)])
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


def _prove(program: Program, separation: _Separation, options: PricingOptions) -> Proof | None:
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
    return replace(program, design=design, targets=program.targets / units.targets, reg=program.reg / units.reg)


def global_bound(program: Program, weights: Tensor, options: PricingOptions, generator: torch.Generator) -> Worst:
    """Return the search at a solution of a program over some gates, with its lower bound over ALL gates.

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
    program = program.double()
    units = Units.of(program.design.patches, program.targets, program.loss)
    program = in_units_of(program, units)
    dual = program.dual_point(torch.zeros_like(program.targets))
    separation = _Separation(program, dual, program.design.patches.astype(torch.float32), generator)
    found = separation.look(options.starts, options.ascent_steps)
    if separation.climbs():
        separation.climb(found)
    return float(separation.scores().max()) * program.reg * units.reg
