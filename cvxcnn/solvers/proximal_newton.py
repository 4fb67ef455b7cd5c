"""Proximal Newton steps for losses other than the squared one: a weighted least-squares program each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..losses import SquaredLoss
from ..penalties import GroupPenalty
from ..program.design import ScaledDesign, StackedDesign
from ..program.program import Program
from .algebra.gram import FeatureForm
from .base import Outcome, Solver, Status
from .cone_working_set import ConeWorkingSet
from .fista import Fista, accelerated
from .needs import Needs
from .semismooth_newton import SemismoothNewton, minimised
from .spectral_cones import SpectralCones
from .working_set import WorkingSet

__all__ = ["ProximalNewton"]

# Every program has one that takes it.
_INNER: tuple[type[Solver], ...] = (WorkingSet, ConeWorkingSet, SemismoothNewton, Fista, SpectralCones)
# The least curvature of a separable model, which falls while whole steps are taken and rises when none is: flat tails
# would make steps as long as they are uncertain.
_FLOOR, _LEAST_FLOOR, _FLOOR_FACTOR = 1e-4, 1e-12, 10.0
# A model is solved to this share of the gap; when its minimum is no better than the point, closer so many times.
_SHARE, _CLOSER, _ATTEMPTS = 0.1, 1e-2, 4
# Of a penalty that can't be stacked: features of a model up to so many bytes, and iterations on it before the next.
_FEATURE_BYTES = 1 << 30
_PROXIMAL_ITERATIONS = 2000
_FINEST = 1e-13


class ProximalNewton(Solver):
    """Replace the loss by its quadratic model at the current point, solve that program, search along the line.

    The model 1/2 ||R (f' - f) - t||^2 of the loss is a program for the working-set solver of its kind, started
    where the last one ended; convergence is quadratic. A separable loss has one model an output; softmax has one
    for all, in which outputs are stacked. With a penalty whose groups can't be, as the nuclear one, models are solved
    by its proximal map; with features of more than 1 GiB the Hessian is then replaced by one number an image, and
    convergence is linear.

    Parameters
    ----------
    tol : float
        Relative duality gap.
    max_iter : int or None
        Quadratic programs; default 300.

    Notes
    -----
    Source: Lee, Sun & Saunders 2014, Proximal Newton-type methods for minimizing composite functions.
    """

    name = "proximal_newton"
    needs = Needs(quadratic=False)

    def run(self, program: Program, start: Tensor | None, report: Callable[[int, float, float], None]) -> Outcome:
        weights = program.zeros() if start is None else start.clone()
        prediction = program.design.predict(weights)
        objective = program.objective(weights, prediction)
        limit = self.max_iter or 300
        floor, share, failed = _FLOOR, _SHARE, 0
        for iteration in range(limit + 1):
            dual = program.dual_point(prediction)
            bound = program.dual_bound(prediction)
            report(iteration, objective, bound)
            if program.gap(objective, bound) <= 0.5 * self.tol:
                return Outcome(weights, iteration)
            if iteration == limit:
                break
            target = self._minimise_model(program, weights, prediction, dual, share * (objective - bound), floor)
            aim = program.design.predict(target)
            step, moved = 1.0, False
            while step > 1e-6:
                trial = torch.lerp(weights, target, step)
                trial_prediction = torch.lerp(prediction, aim, step)
                trial_objective = program.objective(trial, trial_prediction)
                # Near the optimum the objective no longer tells two points apart, but the bound still does.
                even = trial_objective <= objective + program.rounding
                if trial_objective < objective or (even and program.dual_bound(trial_prediction) > bound):
                    weights, prediction, objective, moved = trial, trial_prediction, trial_objective, True
                    break
                step /= 2
            if moved:
                floor = max(floor / _FLOOR_FACTOR, _LEAST_FLOOR) if step == 1.0 else min(floor * _FLOOR_FACTOR, 1.0)
                share, failed = _SHARE, 0
                continue
            floor, share, failed = min(floor * _FLOOR_FACTOR**2, 1.0), share * _CLOSER, failed + 1
            if failed == _ATTEMPTS:
                return Outcome(weights, iteration, Status.INACCURATE)
        return Outcome(weights, limit, Status.ITERATION_LIMIT)

    def _minimise_model(
        self, program: Program, weights: Tensor, prediction: Tensor, dual: Tensor, gap: float, floor: float
    ) -> Tensor:
        """Return the minimum of the quadratic model, to this gap."""
        root, remainder = program.loss.model(prediction, program.targets)
        if program.loss.separable:
            least = root.new_ones(1) if program.loss.weights is None else program.loss.weights.to(root)[:, None]
            root = root.maximum((floor * least).sqrt())
            remainder = dual / root
        penalty = program.penalty
        if program.loss.separable and penalty.separable:
            target = torch.empty_like(weights)
            for output in range(program.n_outputs):
                part = slice(output, output + 1)
                scale, fitted, rest = root[:, part], prediction[:, part], remainder[:, part]
                start = weights[..., part].contiguous()
                target[..., part] = self._solve(program, scale, fitted, rest, start, gap / program.n_outputs)
            return target
        factor = torch.diag_embed(root) if program.loss.separable else root
        if penalty.stackable:
            design = StackedDesign(program.design, factor, penalty.separable)
            aim = self._aim(factor, prediction, remainder).reshape(-1, 1)
            stacked = penalty if penalty.group_axes is None else GroupPenalty()
            model = replace(program, design=design, targets=aim, loss=SquaredLoss(), penalty=stacked)
            return design.unstack(self._run(model, design.stack(weights), gap))
        columns = program.design.n_blocks * program.design.n_cells * program.design.rows
        if 8 * len(prediction) * columns <= _FEATURE_BYTES:
            aim = self._aim(factor, prediction, remainder)
            form = FeatureForm(program.design.matrix(), aim, program.design.shape(program.n_outputs), factor)
            tol = max(gap / form.gap(penalty, program.reg, weights)[0], _FINEST)
            if penalty.smooth:
                return minimised(form, penalty, program.reg, tol, weights).weights.to(weights)
            solved = accelerated(form, penalty, program.reg, tol, weights, _PROXIMAL_ITERATIONS)
            return solved.weights.to(weights)
        # Its solver takes one weight an image: the largest of the Hessian's diagonal, or its trace.
        scale = root.amax(dim=1, keepdim=True) if program.loss.separable else root.norm(dim=(1, 2))[:, None]
        return self._solve(program, scale, prediction, dual / scale, weights, gap)

    @staticmethod
    def _aim(factor: Tensor, prediction: Tensor, remainder: Tensor) -> Tensor:
        """Return the targets of a model's prediction R f', shape (n, outputs)."""
        return torch.einsum("nop,np->no", factor, prediction) + remainder

    def _solve(
        self, program: Program, scale: Tensor, prediction: Tensor, remainder: Tensor, start: Tensor, gap: float
    ) -> Tensor:
        design = ScaledDesign(program.design, scale[:, 0])
        model = replace(program, design=design, targets=scale * prediction + remainder, loss=SquaredLoss())
        return self._run(model, start, gap)

    @staticmethod
    def _run(model: Program, start: Tensor, gap: float) -> Tensor:
        # The tolerance of a solver is relative to its own objective.
        accuracy = max(gap / model.objective(start), _FINEST)
        solver = next(s for s in (kind(tol=accuracy) for kind in _INNER) if s.refusal(model) is None and s.suits(model))
        return solver.run(model, start, lambda *_: None).weights
