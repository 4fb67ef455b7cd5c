"""Pricing of gates: the gated program, solved as exactly as what is missing makes worth while."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arrangements import GaussianGates, distinct
from ..program.program import Program, relative_gap
from ..solvers import get_solver
from .loop import Master, Point
from .separation import Worst

__all__ = ["GateMaster"]

# Gates to begin with, drawn at random.
_FIRST_GATES = 20
# Relative gap of the first solve, and that of the next ones as a share of the gap over all gates.
_ROUGH = 1e-2
_SHARE = 0.1


class GateMaster(Master):
    """The gated program over gates."""

    def over(self, directions: Tensor) -> Program:
        return self.problem.over_gates(directions)

    def first(self, start: Tensor | None, last: bool) -> Point:
        patches = self.problem.patches
        if start is None or not len(start):
            start = GaussianGates(1).sample(patches, _FIRST_GATES, self.generator)
        self.accuracy = self.tol if last else max(self.tol, _ROUGH)
        program = self.over(distinct(patches, start).vectors)
        return self._solved(program, program.zeros())

    def _solved(self, program: Program, start: Tensor) -> Point:
        solved = get_solver("auto", program, tol=self.accuracy).solve(program, start=start)
        return Point(program, solved.weights, program.design.predict(solved.weights), solved.objective)

    def grown(self, point: Point, met: Worst, converged: bool, last: bool) -> Point | None:
        used = self.finished(point)
        gates, weights = used.program.design.vectors, used.weights
        order = torch.argsort(met.scores, descending=True)
        order = order[met.scores[order] > 1 + 1e-9][: 4 * self.options.additions]
        # Active gates come first, so that a pattern found again is dropped and not its twin in use.
        merged = gates
        if len(order):
            found = met.directions[order].to(self.problem.targets)
            merged = distinct(self.problem.patches, torch.cat([gates, found])).vectors
            merged = merged[: len(gates) + self.options.additions]
        ended = converged or len(merged) == len(gates)
        if ended and self.accuracy <= self.tol:
            return None
        # While gates are missing, a small share of the gap is accuracy enough.
        gap = relative_gap(point.objective, met.bound)
        self.accuracy = self.tol if ended or last else max(self.tol, _SHARE * gap)
        start = torch.cat([weights, weights.new_zeros(len(merged) - len(gates), *weights.shape[1:])])
        return self._solved(self.over(merged), start)

    def finished(self, point: Point) -> Point:
        active = point.weights.flatten(1).any(dim=1)
        program = self.over(point.program.design.vectors[active])
        return Point(program, point.weights[active], point.prediction, point.objective)
