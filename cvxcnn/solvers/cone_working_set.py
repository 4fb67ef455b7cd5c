"""Working sets over patterns and over constraint rows, for the ReLU program (Eq. 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import clarabel
import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ..errors import SolverError
from ..program.cones import Cones
from ..program.program import Program
from .base import Outcome, Solver, Status
from .needs import Needs

__all__ = ["ConeWorkingSet"]

Array = np.ndarray

# Rounds without progress after which there will be none.
_STALLED = 10


@dataclass
class _Group:
    """One active (block, cell): its features, the constraint rows seen so far, and its current weights."""

    block: int
    cell: int
    features: Array
    rows: Array
    weights: Array
    idle: int = 0


@dataclass
class _Output:
    """The part of the program that belongs to one output."""

    target: Array
    groups: dict[tuple[int, int], _Group] = field(default_factory=dict)
    prediction: Array = field(default_factory=lambda: np.zeros(0))
    objective: float = 0.0
    done: bool = False


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
        limit = self.max_iter or 100
        least, stalled = float("inf"), 0
        for iteration in range(limit + 1):
            residual = np.stack([part.target - part.prediction for part in parts], axis=1)
            correlation = program.correlate(torch.from_numpy(residual).to(targets))
            values = correlation.cpu().double().numpy()
            lengths = np.linalg.norm(values, axis=2)
            objective = bound = 0.0
            for output, part in enumerate(parts):
                peak, broken = self._scan(program, cones, part, values[..., output], lengths[..., output])
                nu = residual[:, output]
                square, linear = float(nu @ nu), float(nu @ part.target)
                scale = max(0.0, min(linear / max(square, 1e-300), program.reg / max(peak, 1e-300)))
                penalty = sum(float(np.linalg.norm(g.weights)) for g in part.groups.values())
                part.objective = value = 0.5 * square + program.reg * penalty
                dual = scale * linear - 0.5 * scale**2 * square
                objective += value
                bound += dual
                open_gap = value - dual > 0.4 * self.tol * max(value, program.rounding)
                tightened = self._tighten(cones, part)
                part.done = not open_gap and not tightened
                if not part.done:
                    self._enter(program, part, broken)
            report(iteration, objective, bound)
            # A round that adds cones or rows may widen the gap, but not many in a row.
            stalled = 0 if objective - bound < 0.9 * least else stalled + 1
            least = min(least, objective - bound)
            if all(part.done for part in parts) or iteration == limit or stalled == _STALLED:
                break
            # While cones or rows are still missing, a small share of the gap is accuracy enough.
            relative = program.gap(objective, bound)
            accuracy = min(1e-3 * relative, 1e-5) if relative > 1e-5 else 1e-11
            for part in parts:
                if not part.done:
                    self._solve(program, cones, part, accuracy)
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

    def _scan(
        self, program: Program, cones: Cones, part: _Output, values: Array, lengths: Array
    ) -> tuple[float, dict[tuple[int, int], Array]]:
        """Return the longest projection, and the triples that are longer than reg with the rows they touch."""
        peak, broken = 0.0, []
        reg = program.reg
        for block, cell in np.argwhere(lengths > reg).tolist():
            vector = values[block, cell]
            point, touched = cones.project(block % len(cones.gates), vector, ceiling=reg)
            length = float(np.linalg.norm(point))
            peak = max(peak, length)
            if length > reg:
                broken.append((length, (block, cell), touched))
        peak = max(peak, min(reg, float(lengths.max(initial=0.0))))
        broken.sort(key=lambda item: -item[0])
        active = sum(bool(group.weights.any()) for group in part.groups.values())
        return peak, {key: touched for _, key, touched in broken[: max(10, active)]}

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
            part.groups[block, cell] = _Group(block, cell, features, broken[block, cell], weights)

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
            violated = np.setdiff1d(np.flatnonzero(relative < -1e-9), group.rows)
            if len(violated):
                worst = violated[np.argsort(relative[violated])[: 4 * len(group.weights)]]
                group.rows = np.union1d(group.rows, worst)
                added = True
        return added

    def _solve(self, program: Program, cones: Cones, part: _Output, accuracy: float) -> None:
        """Solve over the working set with Clarabel: variables (v_g, t_g), ||v_g|| <= t_g, rows of v_g >= 0."""
        groups = list(part.groups.values())
        if not groups:
            return
        dim = program.design.rows
        features = np.hstack([group.features for group in groups])
        count = len(groups) * dim
        # Unit scale keeps the interior-point method accurate whatever the units of the images.
        scale = max(float(np.abs(features).max()), 1e-300)
        target_scale = max(float(np.linalg.norm(part.target)), 1e-300)
        # Its tolerances are absolute, so a small objective needs smaller ones; below 1e-11 it ends nowhere.
        accuracy = max(accuracy * min(1.0, part.objective / target_scale**2), 1e-11)
        gram = features.T @ features / scale**2
        quadratic = sparse.block_diag(
            [sparse.csc_matrix(np.triu(gram)), sparse.csc_matrix((len(groups), len(groups)))], format="csc"
        )
        linear = np.concatenate(
            [
                -features.T @ part.target / (scale * target_scale),
                np.full(len(groups), program.reg / (scale * target_scale)),
            ]
        )
        rows, row_counts = [], []
        for position, group in enumerate(groups):
            gate = group.block % len(cones.gates)
            normals = cones.normals(gate, group.rows) / cones.row_lengths(gate)[group.rows, None]
            block = sparse.lil_matrix((len(group.rows), count + len(groups)))
            block[:, position * dim : (position + 1) * dim] = -normals
            rows.append(block)
            row_counts.append(len(group.rows))
        order = np.concatenate([np.r_[count + g, g * dim : (g + 1) * dim] for g in range(len(groups))]).astype(int)
        lengths = sparse.csc_matrix(
            (-np.ones(len(order)), (np.arange(len(order)), order)), shape=(len(order), count + len(groups))
        )
        constraints = sparse.vstack([*rows, lengths], format="csc")
        kinds = [clarabel.NonnegativeConeT(sum(row_counts))] if sum(row_counts) else []
        kinds += [clarabel.SecondOrderConeT(dim + 1)] * len(groups)
        settings = clarabel.DefaultSettings()
        settings.verbose = False
        settings.tol_gap_rel = settings.tol_gap_abs = settings.tol_feas = accuracy
        settings.reduced_tol_gap_rel = settings.reduced_tol_gap_abs = settings.reduced_tol_feas = max(accuracy, 1e-7)
        solver = clarabel.DefaultSolver(quadratic, linear, constraints, np.zeros(constraints.shape[0]), kinds, settings)
        answer = solver.solve()
        usable = (clarabel.SolverStatus.Solved, clarabel.SolverStatus.AlmostSolved)
        if answer.status not in usable and not np.isfinite(answer.x).all():
            raise SolverError(f"Clarabel ended with {answer.status} on a working set. Rescale images, or change reg.")
        solution = np.asarray(answer.x[:count]).reshape(len(groups), dim) * (target_scale / scale)
        norms = np.linalg.norm(solution, axis=1)
        solution[norms <= 1e-8 * norms.max(initial=0.0)] = 0.0
        for group, weights in zip(groups, solution, strict=True):
            group.weights = weights
        part.prediction = features @ solution.ravel()
