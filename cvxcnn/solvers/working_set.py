"""Working sets for programs without cones: group lasso over the few groups that are ever active."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.products import adjoint_product
from ..program.design import GatedDesign
from ..program.program import Program
from .algebra.gram_newton import GramLasso
from .algebra.newton import GramQuadratic, Quadratic, group_lasso
from .algebra.newton_cg import DenseFeatures, FeatureQuadratic, Features, MaskedFeatures
from .base import Outcome, Solver, Status
from .needs import Needs

__all__ = ["WorkingSet"]

# Up to this many columns the Gram matrix and its factors are cheaper than conjugate gradients, for features that are
# a matrix and for those that are masks and patches (measured at 1,000 images of 30 pixels).
_GRAM_COLUMNS = 1500
_GRAM_COLUMNS_MASKED = 300
# Groups that enter at once, at least (twice the active ones, if that is more), and the share of the gap that a working
# set is solved to: the fastest of some pairs at 1,000 images and 100 gates, and at 10,000 and 500.
_ENTERING, _SHARE = 20, 0.03
# Columns from which splitting on one factor takes less time than sweeps and inverses, which groups with several outputs
# need, and its rounds at most.
_SPLIT_COLUMNS, _SPLIT_ROUNDS = 160, 20


class _Columns:
    """The features of the groups that have ever entered, grown as they do, and the quadratics over some of them."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.cell_groups = "cell" in (program.penalty.group_axes or ())
        design = program.design
        self.cells = design.n_cells if self.cell_groups else 1
        self.size = design.rows if self.cell_groups else design.rows * design.n_cells
        self.place = np.full(design.n_blocks * self.cells, -1)
        self.n_members = 0
        self.targets = program.centre(program.targets)
        # Single patches stay apart from their masks: together they would be the size of a patch times larger.
        self.masked = isinstance(design, GatedDesign) and design.patches.n_patches == 1 and not program.intercept
        self.features = self.targets.new_zeros(len(self.targets), 0)
        self.masks = np.zeros((len(self.targets), 0))
        self.gram: np.ndarray | None = np.zeros((0, 0))
        self.linear = np.zeros((0, program.n_outputs))
        self.values, self.vectors = np.zeros((0, self.size)), np.zeros((0, self.size, self.size))

    def add(self, groups: np.ndarray) -> None:
        """Compute the features of groups that are not there yet."""
        fresh = groups[self.place[groups] < 0]
        if not len(fresh):
            return
        self.place[fresh] = self.n_members + np.arange(len(fresh))
        self.n_members += len(fresh)
        limit = _GRAM_COLUMNS_MASKED if self.masked else _GRAM_COLUMNS
        if self.gram is not None and self.n_members * self.size > limit and self.program.penalty.separable:
            self.gram = None
        if self.masked:
            self._add_masks(fresh)
        if self.gram is not None or not self.masked:
            self._add_features(fresh)

    def _add_masks(self, fresh: np.ndarray) -> None:
        design = self.program.design
        index = torch.as_tensor(fresh, device=self.targets.device)
        responses = design.patches.unfold()[:, 0] @ design.vectors[index].T
        self.masks = np.hstack([self.masks, (responses >= 0).cpu().double().numpy()])
        if self.gram is None:
            features = self._factored(slice(None))
            grams = np.stack([features.group_gram(group) for group in range(len(self.values), self.n_members)])
            self._add_spectra(grams)

    def _add_features(self, fresh: np.ndarray) -> None:
        blocks = torch.as_tensor(fresh // self.cells, device=self.targets.device)
        columns = self.program.columns(blocks)
        if self.cell_groups:
            index = torch.arange(len(fresh), device=columns.device)
            columns = columns[:, index, torch.as_tensor(fresh % self.cells, device=columns.device)]
        columns = columns.reshape(len(columns), -1)
        self.features = torch.cat([self.features, columns], dim=1)
        if self.gram is None:
            shaped = columns.view(len(columns), len(fresh), self.size).transpose(0, 1)
            shaped = shaped.double()
            self._add_spectra((shaped.transpose(1, 2) @ shaped).cpu().numpy())
            return
        # Summed in float32, A^T A of patches that nearly repeat each other isn't even positive semidefinite.
        columns = columns.double()
        fresh_rows = self.features.double().T @ columns
        old = len(self.gram)
        corner, square = (part.cpu().numpy() for part in (fresh_rows[:old], fresh_rows[old:]))
        self.gram = np.block([[self.gram, corner], [corner.T, square]])
        self.linear = np.vstack([self.linear, adjoint_product(columns, self.targets.double()).cpu().numpy()])
        count = np.arange(len(fresh))
        self._add_spectra(square.reshape(len(fresh), self.size, len(fresh), self.size)[count, :, count, :])

    def _add_spectra(self, grams: np.ndarray) -> None:
        values, vectors = np.linalg.eigh(grams)
        self.values = np.concatenate([self.values, values])
        self.vectors = np.concatenate([self.vectors, vectors])

    def _factored(self, members: Any) -> Features:
        if self.masked:
            patches = self.program.design.patches.unfold()[:, 0].cpu().double().numpy()
            return MaskedFeatures(patches, np.ascontiguousarray(self.masks[:, members]))
        values = self.features.cpu().double().numpy().reshape(len(self.targets), self.n_members, self.size)
        return DenseFeatures(np.ascontiguousarray(values[:, members]))

    def quadratic(self, groups: np.ndarray, outputs: list[int]) -> Quadratic:
        """Return the smooth part of the program over groups and outputs."""
        members = self.place[groups]
        spectra = self.values[members], self.vectors[members]
        if self.gram is None:
            target = self.targets[:, outputs[0]].cpu().double().numpy()
            return FeatureQuadratic(self._factored(members), target, spectra)
        rows = (members[:, None] * self.size + np.arange(self.size)).ravel()
        squared_norm = float(self.targets[:, outputs].double().square().sum())
        gram, linear = self.gram[np.ix_(rows, rows)], self.linear[np.ix_(rows, outputs)]
        return GramQuadratic(gram, linear, squared_norm, self.size, spectra)


def _minimum(quadratic: Quadratic, reg: float, tol: float) -> np.ndarray:
    """Return the minimum of a quadratic plus reg sum_g ||W_g||, from where it is, to an absolute gap of ``tol``."""
    if (
        not isinstance(quadratic, GramQuadratic)
        or min(quadratic.linear.shape) == 1
        or len(quadratic.gram) < _SPLIT_COLUMNS
    ):
        return group_lasso(quadratic, reg, tol=tol)
    gram, linear, start = (torch.from_numpy(part) for part in (quadratic.gram, quadratic.linear, quadratic.weights))
    lasso = GramLasso(gram, linear, quadratic.squared_norm, quadratic.size, reg)
    lasso.move_to(start)
    # The objective falls from here, so that what is allowed relative to it does too.
    return lasso.minimise(start, tol / max(lasso.objective, 1e-300), _SPLIT_ROUNDS).numpy()


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
    Memory: n * (active groups) * (group size) for the features, and up to 1,500 columns their Gram matrix;
    independent of the number of gates. Above that (300 columns where an image is a single patch), Newton systems
    are solved by conjugate gradients. Features of single patches are kept as masks and patches.
    """

    name = "working_set"
    needs = Needs(quadratic=True, cones=False, groups=True)

    def run(self, program: Program, start: Tensor | None, report: Callable[[int, float, float], None]) -> Outcome:
        separable = program.penalty.separable
        columns = _Columns(program)
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
            target = self.tol * max(objective, program.rounding)
            if objective - bound <= 0.5 * target:
                return Outcome(weights, iteration)
            # A round that adds groups may widen the gap, but not many in a row.
            stalled = 0 if objective - bound < 0.9 * best_gap else stalled + 1
            best_gap = min(best_gap, objective - bound)
            if iteration == limit or stalled == 10:
                break
            norms = program.penalty.group_norms(correlation).cpu().double().numpy()
            for outputs in parts:
                scores = norms[:, :, outputs[0]].ravel()
                # While groups are still missing, a share of the gap is accuracy enough.
                accuracy = _SHARE * max(target, objective - bound) / len(parts)
                self._improve(program, columns, weights, scores, outputs, accuracy)
            prediction = program.design.predict(weights)
        return Outcome(weights, iteration, Status.INACCURATE if stalled == 10 else Status.ITERATION_LIMIT)

    def _improve(
        self, program: Program, columns: _Columns, weights: Tensor, scores: np.ndarray, outputs: list[int], tol: float
    ) -> None:
        """Add the groups that violate most, solve over the working set, and write the weights back."""
        groups_view = weights[..., outputs]
        groups_view = groups_view.flatten(0, 1) if columns.cell_groups else groups_view
        active = groups_view.flatten(1).any(dim=1).cpu().numpy()
        broken = np.flatnonzero((scores > program.reg) & ~active)
        most = max(_ENTERING, 2 * int(active.sum()))
        broken = broken[np.argsort(-scores[broken])[:most]]
        groups = np.concatenate([np.flatnonzero(active), broken])
        if not len(groups):
            return
        columns.add(groups)
        quadratic = columns.quadratic(groups, outputs)
        index = torch.as_tensor(groups, device=weights.device)
        if active.any():
            quadratic.move_to(groups_view[index].reshape(-1, len(outputs)).cpu().double().numpy())
        solution = _minimum(quadratic, program.reg, tol)
        fresh = torch.from_numpy(solution).to(weights).view(len(groups), *groups_view.shape[1:])
        places = (index // columns.cells, index % columns.cells) if columns.cell_groups else (index,)
        if program.penalty.separable:
            weights[(*places, ..., outputs[0])] = fresh[..., 0]
        else:
            weights[places] = fresh
