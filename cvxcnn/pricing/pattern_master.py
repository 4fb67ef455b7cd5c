"""Pricing of patterns: the ReLU program (Eq. 2) over the patterns of priced filters and of their neighbours.

A filter found by pricing lies in the cone of its pattern. Eq. 2 over that pattern moves it to the best place in the
cone, which a group lasso over the filter itself can't; a neighbour's pattern lets it cross into the next cone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arrangements import distinct
from ..arrangements.neighbours import BEYOND, hyperplanes, neighbours
from ..program.program import Program
from ..solvers import get_solver
from .loop import Master, Point
from .separation import Worst, best_directions

__all__ = ["PatternMaster"]

# A gate this near to a hyperplane has a pattern that rounding decides, so it is moved off by about BEYOND.
_UNDECIDED = 1e-10


def _decided(normals: Tensor, gates: Tensor, generator: torch.Generator) -> Tensor:
    """Return the gates, those that lie on a hyperplane moved off it at random."""
    noise = torch.randn(gates.shape, generator=generator, dtype=torch.float64).to(gates)
    near = (normals @ gates.T).abs().amin(dim=0) < _UNDECIDED
    return F.normalize(gates + BEYOND * noise * near[:, None], dim=1)


class PatternMaster(Master):
    """Eq. 2 over patterns, from filters that were priced; ``GroupPenalty``.

    Solve over the patterns; add those of the directions that break the dual constraint, and of the neighbours of the
    neurons; until no pattern is new.
    """

    def over(self, directions: Tensor) -> Program:
        return self.problem.over_patterns(directions)

    def first(self, start: Tensor | None, last: bool) -> Point:
        patches = self.problem.patches
        start = patches.like.new_zeros(0, patches.dim) if start is None else start
        self.normals = hyperplanes(patches)
        program = self.over(self._grown(start[:0], start))
        return self._solved(program, program.zeros())

    def _grown(self, gates: Tensor, directions: Tensor) -> Tensor:
        """Return gates, then the patterns of directions and of their neighbours that are new."""
        decided = _decided(self.normals, directions, self.generator)
        around = neighbours(self.normals, decided, self.options.neighbours)
        return distinct(self.problem.patches, torch.cat([gates, decided, around])).vectors

    def _solved(self, program: Program, start: Tensor) -> Point:
        solved = get_solver("auto", program, tol=self.tol).solve(program, start=start)
        return Point(program, solved.weights, program.design.predict(solved.weights), solved.objective)

    def grown(self, point: Point, met: Worst, converged: bool, last: bool) -> Point | None:
        if converged:
            return None
        # Gates in use come first, so that a pattern found again is dropped and not its twin in use.
        known = point.program.design.directions
        signed = point.weights.view(2, len(known), *point.weights.shape[1:])
        used = signed.flatten(2).any(dim=2).any(dim=0)
        gates, signed = known[used], signed[:, used]
        blocks, cells, outputs = signed.flatten(0, 1).norm(dim=2).nonzero(as_tuple=True)
        neurons = F.normalize(signed.flatten(0, 1)[blocks, cells, :, outputs], dim=1)
        added = met.directions[best_directions(met.scores, met.directions, 1 + 1e-9, self.options.additions)]
        merged = self._grown(gates, torch.cat([neurons, added]))
        if len(distinct(self.problem.patches, torch.cat([known, merged])).vectors) == len(known):
            return None
        start = torch.cat([signed, signed.new_zeros(2, len(merged) - len(gates), *signed.shape[2:])], dim=1)
        return self._solved(self.over(merged), start.flatten(0, 1))
