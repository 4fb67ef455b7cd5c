"""Working sets over patterns and over constraint rows, for the ReLU program (Eq. 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import SolverError
from ..program.cones import Cones
from ..program.program import Program
from .algebra.cone_lasso import ConeLasso
from .base import Outcome, Solver, Status
from .needs import Needs

__all__ = ["ConeWorkingSet"]

Array = np.ndarray

# Rounds without progress after which there will be none.
_STALLED = 10
# Solves over a working set, each with more rows, before other cones are looked at again.
_TIGHTENINGS = 3


@dataclass
class _Group:
    """One active (block, cell): its features, the constraint rows seen so far, and its current weights."""

    block: int
    cell: int
    features: Array
    rows: Array
    weights: Array
    normals: Array = field(default_factory=lambda: np.zeros((0, 0)))
    idle: int = 0


@dataclass
class _Output:
    """The part of the program that belongs to one output."""

    target: Array
    groups: dict[tuple[int, int], _Group] = field(default_factory=dict)
    prediction: Array = field(default_factory=lambda: np.zeros(0))
    objective: float = 0.0
    bound: float = 0.0
    done: bool = False


class _Taken:
    """What the last projections took away of each column of A^T nu: minus a sum of normals, with multipliers >= 0.

    So is any multiple of it, and a vector without the best of them is no shorter than its projection.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.away = np.zeros(shape)

    def bounds(self, values: Array) -> Array:
        """Return no less than the lengths of the projections of columns, shape (blocks, cells, outputs)."""
        squares, taken = np.square(values).sum(axis=2), np.square(self.away).sum(axis=2)
        along = np.maximum((values * self.away).sum(axis=2), 0.0)
        less = np.divide(along**2, taken, out=np.zeros_like(taken), where=taken > 0)
        result: Array = np.sqrt(np.maximum(squares - less, 0.0))
        return result

    def refresh(self, chosen: Array, values: Array, points: Array) -> None:
        """Take note of about the projections of chosen columns."""
        fresh = chosen & (values != points).any(axis=2)
        self.away = np.where(fresh[:, :, None], values - points, self.away)


class ConeWorkingSet(Solver):
    """Exact solver of the ReLU program that touches only the cones and rows that matter.

    For the current residual nu, project A_i^T nu on cone i (most gates are ruled out by its length alone);
    add the (gate, cell, sign) triples whose projection is longer than reg, with the rows that it touches;
    solve the small second-order cone program in Gram form; add violated rows; drop idle triples. No cone of
    the program is left unchecked at the end, which is the certificate.

    Parameters
    ----------
    tol : float
        Relative duality gap over all cones of the program.
    max_iter : int or None
        Rounds; default 100.

    Notes
    -----
    Memory: the distinct patches, and n * d numbers for each active triple; independent of the number of
    gates times patches. Outputs are solved one after another (the penalty is separable).
    """

    name = "cone_working_set"
    needs = Needs(quadratic=True, cones=True, groups=True)
    outside_cones = True

    def run(self, program: Program, start: Tensor | None, report: Callable[[int, float, float], None]) -> Outcome:
        cones = program.cones
        if cones is None:  # refused before; this tells the type checker
            raise SolverError("no cones")
        weights = program.zeros()
        targets = program.centre(program.targets)
        parts = self._parts(program, targets, start)
        limit, taken = self.max_iter or 100, _Taken(weights.shape)
        least, stalled = float("inf"), 0
        for iteration in range(limit + 1):
            residual = np.stack([part.target - part.prediction for part in parts], axis=1)
            correlation = program.correlate(torch.from_numpy(residual).to(targets))
            values = correlation.cpu().double().numpy()
            upper = taken.bounds(values)
            chosen = (upper > program.reg) & ~np.array([part.done for part in parts])
            taken.refresh(chosen, values, cones.shortened(values, chosen, program.reg))
            upper = taken.bounds(values)
            for output, part in enumerate(parts):
                if not part.done:
                    peak, broken = self._scan(program, cones, part, values[..., output], upper[..., output], taken.away[..., output])
                    self._judge(program, cones, part, residual[:, output], peak, broken)
            objective, bound = sum(part.objective for part in parts), sum(part.bound for part in parts)
            report(iteration, objective, bound)
            # A round that adds cones or rows may widen the gap, but not many in a row.
            stalled = 0 if objective - bound < 0.9 * least else stalled + 1
            least = min(least, objective - bound)
            if all(part.done for part in parts) or iteration == limit or stalled == _STALLED:
                break
            for part in parts:
                if not part.done:
                    self._solve(program, cones, part)
        for output, part in enumerate(parts):
            for group in part.groups.values():
                weights[group.block, group.cell, :, output] = torch.from_numpy(group.weights).to(weights)
        stopped = Status.INACCURATE if stalled == _STALLED else Status.ITERATION_LIMIT
        if all(part.done for part in parts):
            stopped = Status.OPTIMAL
        return Outcome(weights, iteration, stopped)

    def _parts(self, program: Program, targets: Tensor, start: Tensor | None) -> list[_Output]:
        """Return the part of each output, at the start if there is one."""
        parts = [_Output(column) for column in targets.T.cpu().double().numpy()]
        for output, part in enumerate(parts):
            part.prediction = np.zeros_like(part.target)
            if start is not None:
                self._warm_start(program, part, start[..., output])
        return parts

    def _warm_start(self, program: Program, part: _Output, start: Tensor) -> None:
        active = start.norm(dim=2).nonzero().cpu().numpy()
        self._enter(program, part, {(int(b), int(c)): np.zeros(0, dtype=int) for b, c in active})
        for (block, cell), group in part.groups.items():
            group.weights = start[block, cell].cpu().double().numpy()
            part.prediction = part.prediction + group.features @ group.weights

    def _judge(self, program: Program, cones: Cones, part: _Output, nu: Array, peak: float, broken: dict[tuple[int, int], Array]) -> None:
        """Set objective and bound of a part at its residual nu; let in the cones that nu breaks, if it isn't done."""
        square, linear = float(nu @ nu), float(nu @ part.target)
        scale = max(0.0, min(linear / max(square, 1e-300), program.reg / max(peak, 1e-300)))
        penalty = sum(float(np.linalg.norm(group.weights)) for group in part.groups.values())
        part.objective = 0.5 * square + program.reg * penalty
        part.bound = scale * linear - 0.5 * scale**2 * square
        accurate = part.objective - part.bound <= 0.4 * self.tol * max(part.objective, program.rounding)
        part.done = not self._tighten(cones, part) and accurate
        if not part.done:
            self._enter(program, part, broken)

    def _scan(
        self, program: Program, cones: Cones, part: _Output, values: Array, lengths: Array, away: Array
    ) -> tuple[float, dict[tuple[int, int], Array]]:
        """Return no less than the longest projection, and some triples of longer ones than reg with the rows touched.

        The longest columns first, and no more of them than are wanted.
        """
        reg, active = program.reg, sum(bool(group.weights.any()) for group in part.groups.values())
        wanted = max(10, active)
        order = np.flatnonzero(lengths > reg)
        order = order[np.argsort(-lengths.ravel()[order])]
        peak, broken = min(reg, float(lengths.max(initial=0.0))), []
        for count, index in enumerate(order.tolist()):
            if len(broken) >= 2 * wanted:
                peak = max(peak, float(lengths.ravel()[order[count]]))
                break
            block, cell = divmod(index, values.shape[1])
            vector = values[block, cell]
            point, touched = cones.project(block % len(cones.gates), vector, ceiling=reg)
            away[block, cell] = vector - point
            length = float(np.linalg.norm(point))
            peak = max(peak, length)
            if length > reg:
                broken.append((length, (block, cell), touched))
        broken.sort(key=lambda item: -item[0])
        return peak, {key: touched for _, key, touched in broken[:wanted]}

    def _enter(self, program: Program, part: _Output, broken: dict[tuple[int, int], Array]) -> None:
        fresh = [key for key in broken if key not in part.groups]
        for key in broken.keys() & part.groups.keys():
            part.groups[key].rows = np.union1d(part.groups[key].rows, broken[key])
        if not fresh:
            return
        blocks = sorted({block for block, _ in fresh})
        index = torch.as_tensor(blocks, device=program.targets.device)
        columns = program.columns(index).cpu().double().numpy()
        for block, cell in fresh:
            features = np.ascontiguousarray(columns[:, blocks.index(block), cell])
            weights = np.zeros(features.shape[1])
            part.groups[block, cell] = _Group(block, cell, features, broken[block, cell], weights, np.zeros((0, len(weights))))

    def _tighten(self, cones: Cones, part: _Output) -> bool:
        """Add the rows that current weights violate; drop groups that stay idle; return whether any was added."""
        added = False
        for key, group in list(part.groups.items()):
            if not group.weights.any():
                group.idle += 1
                if group.idle > 2:
                    del part.groups[key]
                continue
            group.idle = 0
            gate = group.block % len(cones.gates)
            lengths = cones.row_lengths(gate) * np.linalg.norm(group.weights)
            relative = cones.slack(gate, group.weights) / lengths
            violated = np.flatnonzero(relative < -1e-9)
            violated = violated[~np.isin(violated, group.rows)] if len(violated) else violated
            if len(violated):
                worst = violated[np.argsort(relative[violated])[: 2 * len(group.weights)]]
                group.rows = np.union1d(group.rows, worst)
                added = True
        return added

    def _solve(self, program: Program, cones: Cones, part: _Output) -> None:
        """Solve over the working set, adding rows that the solution violates."""
        # While cones are missing, a share of the gap is accuracy enough.
        tol = 0.1 * max(part.objective - part.bound, self.tol * max(part.objective, program.rounding))
        wide = part.objective - part.bound > 0.1 * part.objective
        for _ in range(1 if wide else _TIGHTENINGS):
            groups = list(part.groups.values())
            if not groups:
                return
            rows = []
            for group in groups:
                gate = group.block % len(cones.gates)
                rows.append(cones.normals(gate, group.rows) / cones.row_lengths(gate)[group.rows, None])
            features, touched = np.stack([group.features for group in groups]), [group.normals for group in groups]
            lasso = ConeLasso(features, part.target, rows, touched, program.reg)
            solution = lasso.minimised(np.stack([group.weights for group in groups]), tol)
            for place, group in enumerate(groups):
                group.weights, group.normals = solution[place], lasso.faces.normals(place)
            part.prediction = lasso.predict(solution)
            if not self._tighten(cones, part):
                return
