"""Pricing of patterns: the ReLU program (Eq. 2) over the patterns of priced filters and of their neighbours.

A filter found by pricing lies in the cone of its pattern. Eq. 2 over that pattern moves it to the best place in the
cone, which a group lasso over the filter itself can't; a neighbour's pattern lets it cross into the next cone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arrangements import distinct
from ..arrangements.neighbours import BEYOND, hyperplanes, neighbours
from ..losses import Loss, SquaredLoss
from ..patches.patches import Patches
from ..penalties import GroupPenalty, Penalty
from ..pricing.options import PricingOptions
from ..pricing.separation import best_directions, worst_direction
from ..program.program import Program, relative_gap, relu_program
from ..solvers import Progress, get_solver
from .priced import PricedSolution, in_units, solve_priced

__all__ = ["solve_priced_patterns"]

# A gate this near to a hyperplane has a pattern that rounding decides, so it is moved off by about BEYOND.
_UNDECIDED = 1e-10


def _decided(normals: Tensor, gates: Tensor, generator: torch.Generator) -> Tensor:
    """Return the gates, those that lie on a hyperplane moved off it at random."""
    noise = torch.randn(gates.shape, generator=generator, dtype=torch.float64).to(gates)
    near = (normals @ gates.T).abs().amin(dim=0) < _UNDECIDED
    return F.normalize(gates + BEYOND * noise * near[:, None], dim=1)


@in_units
def solve_priced_patterns(
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
    """Minimise Eq. 2 over the patterns that pricing finds: filters first, then their patterns and neighbours.

    Solve over the patterns; add those of the directions that break the dual constraint, and of the neighbours of the
    neurons; repeat until the gap over all patterns is small or no pattern is new.

    Same parameters and result as ``solve_priced``, with the group penalty; ``filters`` are the gates.
    """
    began = time.perf_counter()
    options = options or PricingOptions()
    generator = generator or torch.Generator().manual_seed(0)
    first = solve_priced(
        patches, targets, reg, penalty=GroupPenalty(), loss=loss, intercept=intercept, tol=tol, start=start,
        generator=generator, options=options, callback=callback,
    )  # fmt: skip
    if not len(first.filters):
        return first
    quick = patches.astype(torch.float32)
    normals = hyperplanes(patches)
    history = list(first.history)

    def over(gates: Tensor) -> Program:
        return relu_program(patches, gates, targets, reg, loss=loss or SquaredLoss(), intercept=intercept)

    def grown(gates: Tensor, directions: Tensor) -> Tensor:
        """Return gates, then the patterns of directions and of their neighbours that are new."""
        decided = _decided(normals, directions, generator)
        around = neighbours(normals, decided, options.neighbours)
        return distinct(patches, torch.cat([gates, decided, around])).vectors

    program = over(grown(first.filters[:0], first.filters))
    weights = program.zeros()
    for rounds in range(options.max_rounds + 1):
        last = rounds == options.max_rounds or time.perf_counter() - began > options.time_limit
        solved = get_solver("auto", program, tol=tol).solve(program, start=weights)
        dual = program.dual_point(program.design.predict(solved.weights))
        enough = None if last else solved.objective * (1 - options.gap)
        worst = worst_direction(program, quick, dual, options, generator, enough=enough)
        found, scores, bound = worst.directions, worst.scores, worst.bound
        seconds = time.perf_counter() - began
        history.append(Progress(first.rounds + 1 + rounds, seconds, solved.objective, bound))
        if callback is not None:
            callback(history[-1])
        converged = relative_gap(solved.objective, bound) <= options.gap
        # Gates in use come first, so that a pattern found again is dropped and not its twin in use.
        count = len(program.design.vectors) // 2
        signed = solved.weights.view(2, count, *solved.weights.shape[1:])
        used = signed.flatten(2).any(dim=2).any(dim=0)
        gates, signed = program.design.vectors[:count][used], signed[:, used]
        if converged or last:
            break
        blocks, cells, outputs = signed.flatten(0, 1).norm(dim=2).nonzero(as_tuple=True)
        neurons = F.normalize(signed.flatten(0, 1)[blocks, cells, :, outputs], dim=1)
        added = found[best_directions(scores, found, 1 + 1e-9, options.additions)]
        merged = grown(gates, torch.cat([neurons, added]))
        known = distinct(patches, torch.cat([program.design.vectors[:count], merged])).vectors
        if len(known) == count:
            break
        program = over(merged)
        weights = torch.cat([signed, signed.new_zeros(2, len(merged) - len(gates), *signed.shape[2:])], dim=1)
        weights = weights.flatten(0, 1)
    final = program.double().evaluate(solved.weights.double())
    return replace(
        first, filters=program.design.vectors[:count], weights=solved.weights, program=program,
        objective=final.objective, dual_bound=final.dual_bound, global_bound=min(bound, final.objective),
        worst=worst,
        rounds=first.rounds + 1 + rounds, seconds=time.perf_counter() - began, history=history,
        converged=converged,
    )  # fmt: skip
