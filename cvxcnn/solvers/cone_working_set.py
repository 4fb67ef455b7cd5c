"""Working sets over patterns and over constraint rows, for the ReLU program (Eq. 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import SolverError
from ..program.cones import NEARLY, Cones
from ..program.program import Program
from .algebra.cone_lasso import ConeLasso
from .base import Outcome, Solver, Status
from .needs import Needs

__all__ = ["ConeWorkingSet"]

Array = np.ndarray
Key = tuple[int, int]

# Rounds without progress after which there will be none.
_STALLED = 10
# Triples that enter at once, at least; as many as are active, if that is more.
_ENTERING = 10
# The share of the gap that a working set is solved to. Above that of the objective, cones are what is missing; below,
# so many solves over a working set are followed by one with more rows.
_SHARE, _WIDE, _TIGHTENINGS = 0.1, 0.1, 2
# A row is violated below this, relative to its length and that of the weights.
_VIOLATED = 1e-9


@dataclass
class _Group:
    """One active (block, cell): features, constraint rows seen so far, weights, and normals of the face they are on."""

    gate: int
    features: Array
    rows: Array
    weights: Array
    normals: Array
    idle: int = 0


class _Part:
    """The part of the program that belongs to one output, and its working set.

    Attributes
    ----------
    objective, bound : float
        At the last point that was judged; the objective is above the bound only if weights are in their cones.
    done : bool
        Whether they are, and the gap is small enough.
    grew : bool
        Whether rows were added when it was judged.
    """

    def __init__(self, program: Program, cones: Cones, target: Array, tol: float, start: Tensor | None) -> None:
        self.program, self.cones, self.target, self.tol = program, cones, target, tol
        self.groups: dict[Key, _Group] = {}
        self.prediction = np.zeros_like(target)
        self.objective = self.bound = 0.0
        self.done, self.grew = False, True
        if start is not None:
            values = start.cpu().double().numpy()
            nothing = np.zeros(0, dtype=int)
            self._enter({(block, cell): nothing for block, cell in np.argwhere(values.any(axis=2)).tolist()})
            for key, group in self.groups.items():
                group.weights = values[key]
                slack = self.cones.slack(group.gate, group.weights) / self.cones.row_lengths(group.gate)
                group.rows = np.flatnonzero(slack < _VIOLATED * np.linalg.norm(group.weights))
                self.prediction = self.prediction + group.features @ group.weights

    def judge(self, dual: Array, output: int, values: Array, lengths: Array) -> None:
        """Set objective and bound at the residual nu; let in the cones that it breaks, if that is needed.

        Parameters
        ----------
        dual : ndarray, shape (n,)
        output : int
            Which of them this is.
        values : ndarray, shape (blocks, cells, d, outputs)
            A^T nu.
        lengths : ndarray, shape (blocks, cells)
            No less than the lengths of its projections.
        """
        peak, broken = self._scanned(values, output, lengths)
        square, linear, reg = float(dual @ dual), float(dual @ self.target), self.program.reg
        scale = max(0.0, min(linear / max(square, 1e-300), reg / max(peak, 1e-300)))
        self.objective = 0.5 * square + reg * sum(float(np.linalg.norm(g.weights)) for g in self.groups.values())
        self.bound = scale * linear - 0.5 * scale**2 * square
        self.grew = self._tightened()
        self.done = not self.grew and self.objective - self.bound <= 4 * _SHARE * self._target()
        if not self.done:
            self._enter(broken)

    def _target(self) -> float:
        return self.tol * max(self.objective, self.program.rounding)

    def _scanned(self, values: Array, output: int, lengths: Array) -> tuple[float, dict[Key, Array]]:
        """Return no less than the longest projection, and some triples of longer ones than reg with the rows touched.

        The longest columns first, and no more of them than are wanted.
        """
        reg, wanted = self.program.reg, max(_ENTERING, sum(bool(group.weights.any()) for group in self.groups.values()))
        order = np.argwhere(lengths > NEARLY * reg)
        order = order[np.argsort(-lengths[tuple(order.T)])]
        peak = min(NEARLY * reg, float(lengths.max(initial=0.0)))
        broken: list[tuple[float, Key, Array]] = []
        for block, cell in order.tolist():
            if len(broken) == 2 * wanted:
                peak = max(peak, float(lengths[block, cell]))
                break
            point, touched = self.cones.project_column(values, (block, cell, output), NEARLY * reg)
            length = float(np.linalg.norm(point))
            peak = max(peak, length)
            if length > reg:
                broken.append((length, (block, cell), touched))
        broken.sort(key=lambda item: -item[0])
        return peak, {key: touched for _, key, touched in broken[:wanted]}

    def _enter(self, broken: dict[Key, Array]) -> None:
        """Let triples in with some rows, or add these rows."""
        fresh = [key for key in broken if key not in self.groups]
        for key in broken.keys() & self.groups.keys():
            self.groups[key].rows = np.union1d(self.groups[key].rows, broken[key])
        if not fresh:
            return
        blocks = sorted({block for block, _ in fresh})
        index = torch.as_tensor(blocks, device=self.program.targets.device)
        columns = self.program.columns(index).cpu().double().numpy()
        dim = columns.shape[3]
        for block, cell in fresh:
            features = np.ascontiguousarray(columns[:, blocks.index(block), cell])
            gate, rows = block % len(self.cones.gates), broken[block, cell]
            self.groups[block, cell] = _Group(gate, features, rows, np.zeros(dim), np.zeros((0, dim)))

    def _tightened(self) -> bool:
        """Add the rows that current weights violate; drop groups that stay idle; return whether any was added."""
        added = False
        for key, group in list(self.groups.items()):
            if not group.weights.any():
                group.idle += 1
                if group.idle > 2:
                    del self.groups[key]
                continue
            group.idle = 0
            lengths = self.cones.row_lengths(group.gate) * np.linalg.norm(group.weights)
            relative = self.cones.slack(group.gate, group.weights) / lengths
            violated = np.flatnonzero(relative < -_VIOLATED)
            if len(violated):
                violated = violated[~np.isin(violated, group.rows)]
                worst = violated[np.argsort(relative[violated])[: 2 * len(group.weights)]]
                group.rows = np.union1d(group.rows, worst)
                added = added or bool(len(worst))
        return added

    def solve(self) -> None:
        """Solve over the working set, adding rows that the solution violates."""
        # Outside their cones weights may be below the bound.
        gap = abs(self.objective - self.bound)
        again = 0 if gap > _WIDE * self.objective else _TIGHTENINGS
        while self.groups:
            self._solve_once(_SHARE * max(gap, self._target()))
            # What the last solution violates is found where it is judged.
            if not again or not self._tightened():
                return
            again -= 1

    def _solve_once(self, tol: float) -> None:
        groups, rows = list(self.groups.values()), []
        for group in groups:
            lengths = self.cones.row_lengths(group.gate)[group.rows]
            rows.append(self.cones.normals(group.gate, group.rows) / lengths[:, None])
        features, touched = np.stack([group.features for group in groups]), [group.normals for group in groups]
        lasso = ConeLasso(features, self.target, rows, touched, self.program.reg)
        solution = lasso.minimised(np.stack([group.weights for group in groups]), tol)
        for place, group in enumerate(groups):
            group.weights, group.normals = solution[place], lasso.faces.normals(place)
        self.prediction = lasso.predict(solution)


class ConeWorkingSet(Solver):
    """Exact solver of the ReLU program that touches only the cones and rows that matter.

    For the current residual nu, project A_i^T nu on cone i (most gates are ruled out by bounds of its length);
    add the (gate, cell, sign) triples whose projection is longer than reg, with the rows that it touches;
    solve the small program over them by semismooth Newton steps; add violated rows; drop idle triples. No cone of
    the program is left unchecked at the end, which is the certificate.

    Parameters
    ----------
    tol : float
        Relative duality gap over all cones of the program.
    max_iter : int or None
        Rounds; default 100.

    Notes
    -----
    Memory: the distinct patches, n * d numbers for each active triple, and d for each (gate, cell, sign, output).
    Outputs are solved one after another (the penalty is separable).
    """

    name = "cone_working_set"
    needs = Needs(quadratic=True, cones=True, groups=True)
    outside_cones = True

    def run(self, program: Program, start: Tensor | None, report: Callable[[int, float, float], None]) -> Outcome:
        cones = program.cones
        if cones is None:  # refused before; this tells the type checker
            raise SolverError("no cones")
        weights = program.zeros()
        targets = program.centre(program.targets).cpu().double().numpy()
        parts = [
            _Part(program, cones, target, self.tol, None if start is None else start[..., output])
            for output, target in enumerate(targets.T)
        ]
        limit = self.max_iter or 100
        least, stalled = float("inf"), 0
        for iteration in range(limit + 1):
            self._judge(program, cones, parts)
            objective, bound = sum(part.objective for part in parts), sum(part.bound for part in parts)
            # Outside their cones weights may be below the bound.
            report(iteration, objective, min(bound, objective))
            # A round that adds cones may widen the gap, but not many in a row.
            grew = any(part.grew for part in parts if not part.done)
            stalled = 0 if grew or objective - bound < 0.9 * least else stalled + 1
            least = least if grew else min(least, objective - bound)
            if all(part.done for part in parts) or iteration == limit or stalled == _STALLED:
                break
            for part in parts:
                if not part.done:
                    part.solve()
        for output, part in enumerate(parts):
            for (block, cell), group in part.groups.items():
                weights[block, cell, :, output] = torch.from_numpy(group.weights).to(weights)
        stopped = Status.INACCURATE if stalled == _STALLED else Status.ITERATION_LIMIT
        if all(part.done for part in parts):
            stopped = Status.OPTIMAL
        return Outcome(weights, iteration, stopped)

    @staticmethod
    def _judge(program: Program, cones: Cones, parts: list[_Part]) -> None:
        """Judge the parts that aren't done; most projections are known to be short without being found."""
        duals = np.stack([part.target - part.prediction for part in parts], axis=1)
        correlation = program.correlate(torch.from_numpy(duals).to(program.targets))
        values = correlation.cpu().double().numpy()
        lengths = cones.lengths_up_to(values, NEARLY * program.reg, ~np.array([part.done for part in parts]))
        for output, part in enumerate(parts):
            if not part.done:
                part.judge(duals[:, output], output, values, lengths[..., output])
