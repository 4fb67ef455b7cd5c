"""Working sets for programs without cones: group lasso over the few groups that are ever active."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..losses import SquaredLoss
from ..penalties import GroupPenalty, NuclearPenalty
from ..program import Program
from .base import Outcome, Solver, Status
from .newton import group_lasso

__all__ = ["WorkingSet"]


class _Columns:
    """The features and the Gram matrix of the groups that have ever entered, grown as they do."""

    def __init__(self, program: Program, cell_groups: bool) -> None:
        self.program = program
        self.cell_groups = cell_groups
        design = program.design
        self.cells = design.n_cells if cell_groups else 1
        self.size = design.rows if cell_groups else design.rows * design.n_cells
        self.place = np.full(design.n_blocks * self.cells, -1)
        self.members: list[int] = []
        self.targets = program.centre(program.targets)
        self.features = self.targets.new_zeros(len(self.targets), 0)
        self.gram = np.zeros((0, 0))
        self.linear = np.zeros((0, program.n_outputs))

    def add(self, groups: np.ndarray) -> None:
        """Compute the features of groups that are not there yet."""
        fresh = groups[self.place[groups] < 0]
        if not len(fresh):
            return
        blocks = torch.as_tensor(fresh // self.cells, device=self.targets.device)
        columns = self.program.columns(blocks)
        if self.cell_groups:
            index = torch.arange(len(fresh), device=columns.device)
            columns = columns[:, index, torch.as_tensor(fresh % self.cells, device=columns.device)]
        columns = columns.reshape(len(columns), -1)
        corner = (self.features.T @ columns).cpu().double().numpy()
        square = (columns.T @ columns).cpu().double().numpy()
        self.gram = np.block([[self.gram, corner], [corner.T, square]])
        self.linear = np.vstack([self.linear, (columns.T @ self.targets).cpu().double().numpy()])
        self.features = torch.cat([self.features, columns], dim=1)
        self.place[fresh] = len(self.members) + np.arange(len(fresh))
        self.members.extend(fresh.tolist())

    def rows(self, groups: np.ndarray) -> np.ndarray:
        """Return the rows of the Gram matrix that belong to groups."""
        result: np.ndarray = (self.place[groups][:, None] * self.size + np.arange(self.size)).ravel()
        return result


class WorkingSet(Solver):
    """Active sets over groups, each small group lasso solved to machine precision by Newton steps.

    Start from nothing (or from the groups of the start); find the groups whose dual constraint the current
    residual breaks; add the worst; solve; drop the idle; repeat until no group of the whole program breaks
    its constraint by more than the tolerance allows, which is the certificate.

    Parameters
    ----------
    tol : float
        Relative duality gap over all groups.
    max_iter : int or None
        Rounds; default 200.

    Notes
    -----
    Memory: n * (active groups) * (group size) for the features, and the square of the second factor for
    the Gram matrix; independent of the number of gates.
    """

    name = "working_set"

    def refusal(self, program: Program) -> str | None:
        if program.cones is not None:
            return 'the cones need solver="cone_working_set".'
        if isinstance(program.penalty, NuclearPenalty):
            return 'the nuclear penalty has no fixed groups. Use solver="fista".'
        if not isinstance(program.loss, SquaredLoss):
            return f'it needs loss="squared"; got {program.loss.name!r}. Use solver="auto".'
        return None

    def run(self, program: Program, start: Tensor | None, report: Callable[[int, float, float], None]) -> Outcome:
        separable = isinstance(program.penalty, GroupPenalty)
        columns = _Columns(program, separable)
        weights = program.zeros() if start is None else start.clone()
        # Separable programs are solved output by output over shared features; others as one.
        parts = [[o] for o in range(program.n_outputs)] if separable else [list(range(program.n_outputs))]
        limit = self.max_iter or 200
        prediction = program.design.predict(weights)
        best_gap, stalled = float("inf"), 0
        for iteration in range(limit + 1):
            correlation = program.correlate(program.dual_point(prediction))
            objective = program.objective(weights, prediction)
            bound = program.dual_bound(prediction, correlation)
            report(iteration, objective, bound)
            target = self.tol * max(1.0, abs(objective))
            if objective - bound <= 0.5 * target:
                return Outcome(weights, iteration)
            # A round that adds groups may widen the gap, but not many in a row.
            stalled = 0 if objective - bound < 0.9 * best_gap else stalled + 1
            best_gap = min(best_gap, objective - bound)
            if iteration == limit or stalled == 10:
                break
            norms = program.penalty.dual_norms(correlation).cpu().double().numpy()
            for outputs in parts:
                scores = norms[:, :, outputs[0]].ravel() if separable else norms
                self._improve(program, columns, weights, scores, outputs, 0.1 * target / len(parts))
            prediction = program.design.predict(weights)
        return Outcome(weights, iteration, Status.INACCURATE if stalled == 10 else Status.ITERATION_LIMIT)

    def _improve(
        self, program: Program, columns: _Columns, weights: Tensor, scores: np.ndarray, outputs: list[int], tol: float
    ) -> None:
        """Add the groups that violate most, solve over the working set, and write the weights back."""
        groups_view = weights[..., outputs].flatten(0, 1) if columns.cell_groups else weights
        active = groups_view.flatten(1).any(dim=1).cpu().numpy()
        broken = np.flatnonzero((scores > program.reg) & ~active)
        most = max(10, int(active.sum()))
        broken = broken[np.argsort(-scores[broken])[:most]]
        groups = np.concatenate([np.flatnonzero(active), broken])
        if not len(groups):
            return
        columns.add(groups)
        rows = columns.rows(groups)
        index = torch.as_tensor(groups, device=weights.device)
        values = groups_view[index].reshape(len(rows), len(outputs)).cpu().double().numpy()
        solution = group_lasso(
            columns.gram[np.ix_(rows, rows)],
            columns.linear[rows][:, outputs],
            float(columns.targets[:, outputs].square().sum()),
            columns.size,
            program.reg,
            values,
            tol=tol,
        )
        fresh = torch.from_numpy(solution).to(weights)
        if columns.cell_groups:
            weights[index // columns.cells, index % columns.cells, :, outputs[0]] = fresh.view(len(groups), -1)
        else:
            weights[index] = fresh.view(len(groups), *weights.shape[1:])
