"""Pricing of ReLU filters: a group lasso over unit filters, improved by L-BFGS on Eq. 1 between the searches."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..ordinary import train_baseline
from ..program.design import FilterDesign
from ..program.program import Program
from ..program.units import unit_rows
from ..solvers import get_solver
from .loop import Master, Point
from .options import LEAST_GAP
from .search import thinned
from .separation import Worst, best_directions

__all__ = ["FilterMaster"]

# The local improvement works on at most this many, and the ordinary training before the first round too.
_IMPROVE_PATCHES = 1 << 19
# Relative gap of a solve as a share of the gap over all filters.
_SHARE = 0.1
# Filters shorter than this share of the longest are left out.
_NEGLIGIBLE = 1e-6
# Minibatch steps of the ordinary training that pricing begins with.
_INITIAL_STEPS = 1000


class FilterMaster(Master):
    """The group lasso over filters; ``DensePenalty`` or ``GroupPenalty``."""

    # The local improvement that follows moves every filter anyway.
    hasty = True
    design: ClassVar[type[FilterDesign]] = FilterDesign
    """What the filters respond with."""

    def over(self, directions: Tensor) -> Program:
        return self.problem.over_filters(directions, self.design)

    def first(self, start: Tensor | None, last: bool) -> Point:
        filters = self._trained() if start is None else start.to(self.problem.targets)
        return Point.of(*self._solved(filters))

    def _trained(self) -> Tensor:
        """Return the filters of one short cycle of ordinary training, which finds most of the directions."""
        problem, options = self.problem, self.options
        few, rows = thinned(problem.patches, _IMPROVE_PATCHES, self.generator)
        epochs = max(1, round(_INITIAL_STEPS * 64 / max(few.n_images, 64)))
        seed = int(torch.randint(1 << 31, (1,), generator=self.generator))
        connect = "group" if problem.penalty.separable else "dense"
        share = few.n_images / problem.patches.n_images
        trained = train_baseline(
            few, problem.targets[rows], problem.reg * share, options.initial_filters, connect=connect, epochs=epochs,
            seed=seed, loss=problem.loss.name, sample_weight=problem.loss.rows(rows).weights,
        )  # fmt: skip
        found = trained.filters.to(problem.targets)
        lengths = found.norm(dim=1)
        return found[lengths > _NEGLIGIBLE * lengths.amax()]

    def _solved(self, filters: Tensor) -> tuple[Program, Tensor]:
        """Solve over filters, made unit in float64, and keep those with a readout."""
        filters = unit_rows(filters)
        program = self.over(filters)
        if not len(filters):
            return program, program.zeros()
        # With a coarser one than the gap over all filters, filters that it misses would be priced and never kept.
        accuracy = max(min(self.tol, _SHARE * self.options.gap), LEAST_GAP)
        weights = get_solver("auto", program, tol=accuracy).solve(program).weights
        active = weights.flatten(1).any(dim=1)
        return self.over(filters[active]), weights[active]

    def grown(self, point: Point, met: Worst, converged: bool, last: bool) -> Point | None:
        if converged:
            return None
        chosen = best_directions(met.scores, met.directions, 1 + 1e-9, self.options.additions)
        added = met.directions[chosen].to(self.problem.targets)
        program, weights = self._solved(torch.cat([point.program.design.vectors, added]))
        if not len(weights):
            # Zero is optimal over all that was found, to the accuracy of the solver.
            return Point.of(program, weights, final=True)
        before = program.objective(weights)
        improved = self._improved(program, weights)
        improved = improved.to(self.problem.targets)
        moved, moved_weights = self._solved(improved)
        if moved.objective(moved_weights) > before:
            # A local step that went wrong must not raise the objective: keep the old filters beside the new.
            moved, moved_weights = self._solved(torch.cat([improved, program.design.vectors]))
        return Point.of(moved, moved_weights)

    def _improved(self, program: Program, weights: Tensor) -> Tensor:
        """Return filters moved by L-BFGS on Eq. 1, from balanced neurons; shape (m, d), unit length.

        Of large sets, it sees about ``_IMPROVE_PATCHES`` patches.
        """
        patches, rows = thinned(self.quick, _IMPROVE_PATCHES, self.generator)
        reg = program.reg * len(rows) / len(program.targets)
        dtype = patches.dtype
        lengths = weights.flatten(1).norm(dim=1).sqrt()
        filters = (program.design.vectors * lengths[:, None]).to(dtype).requires_grad_()
        readout = (weights.squeeze(2) / lengths[:, None, None]).to(dtype)
        # With the group penalty a neuron keeps to the pairs that it feeds.
        mask = readout != 0
        readout = readout.requires_grad_()
        targets, some = program.targets[rows].to(dtype), program.loss.rows(rows)
        pull = targets.new_ones(len(rows)) if some.weights is None else some.weights.to(targets)
        pull = pull / pull.sum()  # of an intercept
        optimizer = torch.optim.LBFGS(
            [filters, readout],
            max_iter=self.options.improvement_steps,
            history_size=20,
            line_search_fn="strong_wolfe",
            tolerance_grad=1e-12,
            tolerance_change=1e-14,
        )

        def closure() -> float:
            optimizer.zero_grad()
            prediction = torch.einsum("ncm,mco->no", self.design.responses(patches, filters), readout * mask)
            if program.intercept:
                prediction = prediction + pull @ (targets - prediction)
            squares = filters.square().sum() + readout.square().sum()
            loss = some.tensor(prediction, targets) + 0.5 * reg * squares
            loss.backward()
            return float(loss.detach())

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        moved = filters.detach()
        lengths = moved.norm(dim=1)
        return unit_rows(
            moved[torch.isfinite(moved).all(dim=1) & (lengths > _NEGLIGIBLE * lengths.nan_to_num().amax())]
        )
