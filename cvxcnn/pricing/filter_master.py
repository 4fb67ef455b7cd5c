"""Pricing of ReLU filters: a group lasso over unit filters, improved by L-BFGS on Eq. 1 between the searches."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from ..core.distributed import row_counts
from ..ordinary import train_baseline
from ..ordinary.network import Network
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
# Of so few numbers of patches it begins with L-BFGS instead, which leads lower in no more time, with so many times the
# steps between rounds, 200 for 60. On 600 digits the gap of the default classifier fell from 1.7 to 0.4 %; with 120
# steps it is 1.0 %.
_FEW_NUMBERS, _FIRST_TIMES = 1 << 20, 10 / 3


class FilterMaster(Master):
    """The group lasso over filters; ``DensePenalty`` or ``GroupPenalty``."""

    # The local improvement that follows moves every filter anyway.
    hasty = True
    design: ClassVar[type[FilterDesign]] = FilterDesign
    """What the filters respond with."""

    def over(self, directions: Tensor) -> Program:
        return self.problem.over_filters(directions, self.design)

    def first(self, start: Tensor | None, last: bool) -> Point:
        if start is not None:
            return Point.of(*self._solved(start.to(self.problem.targets)))
        return Point.of(*self._solved(self._descended() if self._few() else self._trained()))

    def _few(self) -> bool:
        """Return whether there are so few patches that passes over all of them cost less than many small steps."""
        patches = self.problem.patches
        return patches.n_images * patches.n_patches * patches.dim <= _FEW_NUMBERS

    def _descended(self) -> Tensor:
        """Return the filters that L-BFGS on Eq. 1 leads to from as many random ones as ordinary training has."""
        problem = self.problem
        network = Network(
            self.quick, problem.targets, problem.loss, self._count(), self._connect(),
        )  # fmt: skip
        seed = int(torch.randint(1 << 31, (1,), generator=self.generator))
        filters, readout = (part.to(problem.targets) for part in network.start(seed))
        # A neuron (u, w) is the unit filter along u with the weights ||u|| w.
        weights = (filters.norm(dim=1)[:, None, None] * readout).unsqueeze(2)
        steps = round(_FIRST_TIMES * self.options.improvement_steps)
        return self._improved(self.over(unit_rows(filters)), weights, steps)[0]

    def _count(self) -> int:
        """Return how many neurons to begin with."""
        return self.options.first_filters(sum(row_counts(self.problem.targets)))

    def _connect(self) -> str:
        return "group" if self.problem.penalty.separable else "dense"

    def _trained(self) -> Tensor:
        """Return the filters of one short cycle of ordinary training, which finds most of the directions."""
        problem = self.problem
        few, rows = thinned(problem.patches, _IMPROVE_PATCHES, self.generator)
        epochs = max(1, round(_INITIAL_STEPS * 64 / max(few.n_images, 64)))
        seed = int(torch.randint(1 << 31, (1,), generator=self.generator))
        share = few.n_images / problem.patches.n_images
        trained = train_baseline(
            few, problem.targets[rows], problem.reg * share, self._count(), connect=self._connect(),
            epochs=epochs, seed=seed, loss=problem.loss.name, sample_weight=problem.loss.rows(rows).weights,
        )  # fmt: skip
        found = trained.filters.to(problem.targets)
        lengths = found.norm(dim=1)
        return found[lengths > _NEGLIGIBLE * lengths.amax()]

    def _solved(self, filters: Tensor, start: Tensor | None = None) -> tuple[Program, Tensor]:
        """Solve over filters, made unit in float64, from weights or from none; keep those with a readout."""
        filters = unit_rows(filters)
        program = self.over(filters)
        if not len(filters):
            return program, program.zeros()
        # With a coarser one than the gap over all filters, filters that it misses would be priced and never kept.
        accuracy = max(min(self.tol, _SHARE * self.options.gap), LEAST_GAP)
        weights = get_solver("auto", program, tol=accuracy).solve(program, start).weights
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
        improved, start = self._improved(program, weights, self.options.improvement_steps)
        # Nearly all of these are in use and stay so. Where many are to end, as before, Newton's method is faster from
        # nothing: it ends them one by one.
        moved, moved_weights = self._solved(improved, start)
        if moved.objective(moved_weights) > before:
            # A local step that went wrong must not raise the objective: keep the old filters beside the new.
            moved, moved_weights = self._solved(torch.cat([improved, program.design.vectors]))
        return Point.of(moved, moved_weights)

    def _improved(self, program: Program, weights: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Return neurons moved by L-BFGS on Eq. 1, balanced at first: unit filters (m, d), and the weights of each.

        Of large sets, it sees about ``_IMPROVE_PATCHES`` patches.
        """
        patches, rows = thinned(self.quick, _IMPROVE_PATCHES, self.generator)
        reg = program.reg * len(rows) / len(program.targets)
        dtype = patches.dtype
        lengths = weights.flatten(1).norm(dim=1).sqrt()
        filters = (program.design.vectors * lengths[:, None]).to(dtype)
        readout = (weights.squeeze(2) / lengths[:, None, None]).to(dtype)
        # With the group penalty a neuron keeps to the pairs that it feeds.
        mask = readout != 0
        targets, some = program.targets[rows].to(dtype), program.loss.rows(rows)
        pull = targets.new_ones(len(rows)) if some.weights is None else some.weights.to(targets)
        pull = pull / pull.sum()  # of an intercept

        def value_and_slope(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            both = torch.from_numpy(point).to(filters)
            inner = both[: filters.numel()].view_as(filters).requires_grad_()
            outer = both[filters.numel() :].view_as(readout).requires_grad_()
            # One product, whose slopes of the responses lie as these do; einsum copies both.
            columns = (outer * mask).transpose(0, 1).flatten(0, 1)
            prediction = self.design.responses(patches, inner).flatten(1) @ columns
            if program.intercept:
                prediction = prediction + pull @ (targets - prediction)
            squares = inner.square().sum() + outer.square().sum()
            loss = some.tensor(prediction, targets) + 0.5 * reg * squares
            slopes = torch.autograd.grad(loss, (inner, outer))
            slope = torch.cat([part.flatten() for part in slopes])
            return float(loss.detach()), slope.double().cpu().numpy()

        begin = torch.cat([filters.flatten(), readout.flatten()]).double().cpu().numpy()
        with torch.enable_grad():
            # Of scipy: torch's own takes a second of imports when it is first made.
            found = minimize(
                value_and_slope, begin, jac=True, method="L-BFGS-B",
                options={"maxiter": steps, "maxfun": 2 * steps, "maxcor": 20, "ftol": 1e-14, "gtol": 1e-12},
            )  # fmt: skip
        point = torch.from_numpy(found.x).to(weights)
        moved, outer = point[: filters.numel()].view_as(filters), point[filters.numel() :].view_as(readout) * mask
        lengths = moved.norm(dim=1)
        kept = torch.isfinite(moved).all(dim=1) & (lengths > _NEGLIGIBLE * lengths.nan_to_num().amax())
        return unit_rows(moved[kept]), (lengths[:, None, None] * outer)[kept].unsqueeze(2)
