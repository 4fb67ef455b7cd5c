"""The search at one dual point: where it starts, what it found, which maxima it climbed to, and what that bounds."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arrangements import PatchGates
from ..core.distributed import all_sum
from ..errors import InputError
from ..patches.patches import Patches
from ..program.program import Program
from .certificate import Certificate, networks_of
from .maxima import SAME_DIRECTION, Maxima, best_directions, expected_unseen
from .search import SEARCHES, GateSearch, Search, thinned

__all__ = ["Exploration", "Worst", "networks_in", "objection"]

# Climbed directions whose cosine exceeds this are one maximum.
_SAME_MAXIMUM = 1 - 1e-6
# An ascent that ended this near to a maximum, by the cosine, is not climbed on from.
_AT_MAXIMUM = 1 - 1e-3
# The ascent of a search works on at most this many patches: it takes some eighty passes over them. Of larger
# sets, it begins with the best of so many starts for each that is climbed from, and with cosines below this.
_SEARCH_PATCHES = 1 << 18
_POOL = 8
_DIVERSE = 0.9
# Patches that those starts are whitened by.
_WHITENED_PATCHES = 1 << 13
# Maxima below this share of the highest count as one: they don't decide a bound. Those above are climbed to the end,
# in float64, at most so many of a batch of starts, and for each (cell, output) that is separate, in so many steps. From
# filters that are below the 16 highest ends of their ascents climbs take most of the time, and none led highest
# (benchmarks/RESULTS.md).
_RELEVANT = 0.9
_CLIMBED, _CLIMBED_FILTERS, _CLIMBED_EACH = 32, 16, 4
_CLIMB_STEPS = 40
# Patches' numbers up to which all of these are climbed from, after each batch of starts; of more patches the fewer, but
# four, once, and in an eighth of the steps; and numbers from which on none is.
_CLIMB_EASY, _CLIMB_NUMBERS, _CLIMBED_LEAST = 1 << 18, 1 << 26, 4
# Of the starts of further batches of a search for gates, so many are near so many maxima, at these distances.
_NEAR_MAXIMA, _PARENTS = 0.75, 8
_NEAREST, _FARTHEST = 0.03, 0.6


class Worst(NamedTuple):
    """What a search, and its proof if there was one, found at a dual point; a bound of nan if there was no search."""

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
        kind = "searched" if self.n_searched else "none"
        return Certificate(
            objective,
            sampled_bound,
            self.bound,
            kind,
            self.n_searched,
            networks,
            self.n_distinct,
            self.expected_unseen,
        )


def networks_in(program: Program) -> str:
    """Return which networks a program is exact for: a key of ``certificate.NETWORKS``."""
    pairs = program.design.patches.n_cells * program.n_outputs
    return networks_of(program.design.networks, program.penalty.separable, pairs)


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
    scores = search.penalty.group_norms(search.correlation(pool)).flatten(1).amax(dim=1)
    return pool[best_directions(scores, pool, 0.0, count, _DIVERSE)]


def _kind_of_search(program: Program) -> type[Search]:
    return SEARCHES[program.design.directions_are]


def objection(program: Program) -> str | None:
    """Return why the worst direction of a program can't be searched for, with the remedy, or None if it can."""
    if _kind_of_search(program).knows(program.penalty, program.design.patches.n_cells * program.n_outputs):
        return None
    return (
        f"there is no search over all gates for penalty {program.penalty.name!r}, whose program is that of no kind of "
        'network that is known. Use a number of gates, or penalty="group" or "dense".'
    )


def _search_for(program: Program, patches: Patches, dual: Tensor) -> Search:
    return _kind_of_search(program)(patches, dual, program.penalty)


@dataclass
class Exploration:
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
        self.maxima, self.others = Maxima(nothing, nothing), Maxima(nothing, nothing)

    def add(self, directions: Tensor) -> Tensor:
        """Score directions and keep them; return their indices."""
        first = len(self.directions)
        if not len(directions):
            return torch.zeros(0, dtype=torch.long, device=directions.device)
        self.directions = torch.cat([self.directions, directions])
        correlation = self.search.correlation(directions)
        penalty, reg = self.program.penalty, self.program.reg
        self.largest = self.largest.minimum(penalty.largest_scale(correlation, reg, self.rounding))
        norms = penalty.group_norms(correlation) / reg
        self.norms = norms if self.norms is None else torch.cat([self.norms, norms])
        return torch.arange(first, len(self.directions), device=directions.device)

    def scores(self) -> Tensor:
        """Return the dual norm / reg of each direction, the largest one if there are several."""
        if self.norms is None:
            return self.dual.new_zeros(0)
        return self.norms.flatten(1).amax(dim=1)

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
            points, steps = _diverse_starts(search, starts, self.generator), steps // 2 + 1
        self.n_searched += starts
        return self.add(F.normalize(search.ascend(points, steps).to(self.dual), dim=1))

    def _near_maxima(self, points: Tensor) -> Tensor:
        """Return starts of which most are moved to the best maxima of their (cell, output), at some distance.

        Gates have so many maxima that those from anywhere are seldom among the highest, which lie near each other.
        """
        known = self.maxima.indices
        if self.norms is None or not len(known):
            return points
        norms = self.norms[known].flatten(1)
        count = int(_NEAR_MAXIMA * len(points))
        turns = torch.randn(count, points.shape[1], generator=self.generator, dtype=torch.float64).to(points)
        lengths = torch.rand(count, 1, generator=self.generator, dtype=torch.float64).to(points)
        turns = F.normalize(turns, dim=1) * _NEAREST * (_FARTHEST / _NEAREST) ** lengths
        for kind in range(min(count, norms.shape[1])):  # as the search deals them out
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
        # Where groups are columns, every output has a multiple of its own, which its largest (cell, output) decides.
        values, cells = self.norms[found].max(dim=1)
        n_outputs = values.shape[1]
        kinds = (cells * n_outputs + torch.arange(n_outputs, device=found.device)).flatten()
        floor = _RELEVANT * values.amax(dim=0).clamp_min(1.0)
        values = torch.where(values > floor, values, 0.0).flatten()
        points = self.directions[found].repeat_interleave(n_outputs, dim=0)
        n_kinds = self.norms.shape[1] * n_outputs
        chosen = best_directions(self._new(values, points, kinds), points, 0.0, len(points), kinds=kinds)
        each = _CLIMBED_EACH * n_kinds
        count = self._climbs_from(max(_CLIMBED, each))
        # Of many patches so few are climbed from that none is to be spared.
        count = count if self.gated else min(count, max(_CLIMBED_FILTERS, each))
        pairs = F.one_hot(kinds, n_kinds).to(points) if self.program.penalty.columnwise else None
        steps = _CLIMB_STEPS if self.easy() else _CLIMB_STEPS // 8
        chosen, left = chosen[:count], chosen[count:]
        reached = self.search.climb(points[chosen], steps, None if pairs is None else pairs[chosen])
        self.maxima.add(self.add(reached), kinds[chosen])
        # Near maxima as they are; where they are told apart more coarsely, they are not counted twice.
        self.others.add(found[left // n_outputs], kinds[left])

    def _new(self, values: Tensor, points: Tensor, kinds: Tensor) -> Tensor:
        """Return the values, zero for points that have reached, or nearly, a maximum that is known and no lower."""
        known = self.maxima
        if self.norms is None or self.gated or not len(known.indices):
            return values
        heights = self.norms[known.indices].flatten(1).gather(1, known.kinds[:, None]).flatten()
        cosines = points @ self.directions[known.indices].T
        # Two maxima may be as near to each other: what is higher than a known one leads to another.
        met = (cosines > _AT_MAXIMUM) & (kinds[:, None] == known.kinds) & (values[:, None] <= heights)
        return torch.where(met.any(dim=1), 0.0, values)

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
        for maxima, same in ((self.maxima, _SAME_MAXIMUM), (self.others, SAME_DIRECTION)):
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
        """Return whether there are few enough patches to climb on all of them."""
        return self._numbers() <= _CLIMB_NUMBERS

    def easy(self) -> bool:
        """Return whether there are so few patches that climbs cost little beside the ascents."""
        return self._numbers() <= _CLIMB_EASY

    def result(self) -> Worst:
        """Return what was found so far."""
        distinct, unseen = (self.n_distinct(), self.unseen()) if len(self.maxima.indices) else (0, float("nan"))
        return Worst(self.directions, self.scores(), self.bound(), self.n_searched, distinct, unseen)
