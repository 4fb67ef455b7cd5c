"""The convex programs, their objective and dual bound.

One form serves all of them: weights of shape (blocks, cells, rows, outputs), a design that multiplies
them, a loss, a penalty, and, for the ReLU program (Eq. 2), a cone for each block:

    minimise  loss(design(weights), targets) + reg * penalty(weights)   subject to  weights_i in cone_i
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.checks import is_number
from ..core.distributed import all_mean, all_sum, size
from ..errors import InputError
from ..losses import Loss, SquaredLoss, Weighted
from ..patches.patches import Patches
from ..penalties import GroupPenalty, Penalty
from .cones import NEARLY, Cones, cones_of
from .design import Design, FilterDesign, GatedDesign, ScaledDesign, SignedGatedDesign

__all__ = [
    "Evaluation",
    "Program",
    "filter_program",
    "gated_program",
    "relative_gap",
    "relu_program",
]

_EPSILON = torch.finfo(torch.float64).eps
# Half a machine epsilon, six times.
_ROUNDING = 6 * 0.5 * _EPSILON


def relative_gap(objective: float, bound: float, floor: float = 0.0) -> float:
    """Return (objective - bound) / max(|objective|, floor): the same whatever the unit of targets and reg.

    Parameters
    ----------
    objective, bound : float
    floor : float
        What rounding leaves of a difference, ``Program.rounding``: an objective below it can't be told from zero.

    Returns
    -------
    float
        0 where objective and bound are equal, be they zero.

    Examples
    --------
    >>> relative_gap(10.0, 9.0), relative_gap(4e-30, 2e-30), relative_gap(0.0, 0.0)
    (0.1, 0.5, 0.0)
    """
    if objective == bound:
        return 0.0
    scale = max(abs(objective), floor)
    return (objective - bound) / scale if scale else math.copysign(math.inf, objective - bound)


def _beside(weights: Tensor, values: Tensor) -> Tensor:
    """Return weights (n,) in the shape of values (n, ...)."""
    return weights.to(values).view(-1, *[1] * (values.ndim - 1))


@dataclass(frozen=True)
class Evaluation:
    """What we recompute, in float64, from weights that a solver returned."""

    objective: float
    dual_bound: float
    violation: float
    intercepts: Tensor | None = field(default=None, compare=False)
    """The optimal intercept (outputs,) for the weights."""
    rounding: float = 0.0
    """``Program.rounding``."""
    prediction: Tensor | None = field(default=None, compare=False)
    """What the weights and the intercept predict for this process's images, where the judge has it; (n, outputs)."""

    @property
    def relative_gap(self) -> float:
        """(objective - dual_bound) / |objective|, or / ``rounding`` where that is more."""
        return relative_gap(self.objective, self.dual_bound, self.rounding)


@dataclass
class Program:
    """A convex program over fixed gates or fixed filters.

    Parameters
    ----------
    design : Design
        Features of the blocks.
    targets : Tensor, shape (n, outputs)
    reg : float
        lam > 0, as in Eq. 1: the loss is a sum over images.
    penalty : Penalty
    loss : Loss
    cones : Cones or None
        Cones of the ReLU program; block i has cone i mod P.
    intercept : bool
        An unregularised output intercept, minimised out exactly (squared loss only): features, targets
        and dual points are centred, by the weights of the images if they have some.

    Notes
    -----
    In a process group every process has the program of its own images; what sums over images here is then summed over
    all of them, for programs of squared loss without cones.
    """

    design: Design
    targets: Tensor
    reg: float
    penalty: Penalty
    loss: Loss = field(default_factory=SquaredLoss)
    cones: Cones | None = None
    intercept: bool = False
    _zero_objective: float | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not is_number(self.reg, above=0):
            raise InputError(f"reg must be a positive, finite number; got {self.reg!r}.")
        object.__setattr__(self, "reg", float(self.reg))
        self.loss.check_targets(self.targets)
        if self.intercept and not self.loss.quadratic:
            raise InputError(f'intercept=True needs loss="squared"; got {self.loss.name!r}.')
        if self.cones is not None and not self.penalty.columnwise:
            raise InputError(
                f'The ReLU program over gates needs penalty="group"; got {self.penalty.name!r}. '
                'Use penalty="dense" for filters, or activation="gated_relu".'
            )
        if size() > 1 and (self.cones is not None or not self.loss.quadratic):
            given = "the ReLU program over gates" if self.cones is not None else f"loss={self.loss.name!r}"
            raise InputError(
                f"several processes share the images only for squared loss and no cones; got {given}. Use one process, "
                'or loss="squared" with penalty="dense" for filters or activation="gated_relu".'
            )

    @property
    def n_outputs(self) -> int:
        """Number of outputs."""
        return int(self.targets.shape[1])

    @property
    def zero_objective(self) -> float:
        """The objective at zero weights."""
        if self._zero_objective is None:
            self._zero_objective = self.loss.value(torch.zeros_like(self.targets), self.centre(self.targets))
        return self._zero_objective

    @property
    def rounding(self) -> float:
        """What rounding to float64 may cost an objective: the machine epsilon, relative to that of zero weights."""
        return _EPSILON * self.zero_objective

    def gap(self, objective: float, bound: float) -> float:
        """Return the relative gap between an objective and a bound of this program."""
        return relative_gap(objective, bound, self.rounding)

    def zeros(self) -> Tensor:
        """Return zero weights."""
        return self.targets.new_zeros(self.design.shape(self.n_outputs))

    def _pulls(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return c, what an intercept of one adds to the prediction, s c of images of weights s, and c . (s c)."""
        constant = self.design.constant().to(self.targets)
        pull = constant if self.loss.weights is None else constant * self.loss.weights.to(constant)
        return constant, pull, all_sum((constant * pull).sum())

    def _means(self, values: Tensor) -> Tensor:
        """Return the intercept that is nearest to values (n, ...) in the squares of the loss."""
        if self.loss.weights is None and not isinstance(self.design, ScaledDesign):
            return all_mean(values)  # without a copy of them
        _, pull, square = self._pulls()
        return all_sum((values * _beside(pull, values)).sum(dim=0)) / square.to(values)

    def centre(self, values: Tensor) -> Tensor:
        """Return values (n, ...) minus their (weighted) mean over images if there is an intercept."""
        if not self.intercept:
            return values
        return values - _beside(self.design.constant().to(values), values) * self._means(values)

    def intercepts(self, prediction: Tensor) -> Tensor:
        """Return the optimal intercept (outputs,) for a prediction without it; zeros if not asked for."""
        if not self.intercept:
            return self.targets.new_zeros(self.n_outputs)
        return self._means(self.targets - prediction)

    def dual_point(self, prediction: Tensor) -> Tensor:
        """Return nu, minus the loss's gradient at a prediction, feasible for the intercept: c . nu = 0."""
        dual = self.loss.dual_point(prediction, self.targets)
        if not self.intercept:
            return dual
        constant, pull, square = self._pulls()
        return dual - pull[:, None] * (all_sum((constant[:, None] * dual).sum(dim=0)) / square)

    def unweighted(self) -> Program:
        """Return a program of squared loss whose images have weights as the same one without.

        1/2 sum_j s_j ||f_j - y_j||^2 is the squared loss of sqrt(s_j) f_j and sqrt(s_j) y_j, so that solvers need know
        of no weights. Weights, objective, dual value and intercept are the same. Other programs are returned as they
        are: the curvature of their loss is weighted.
        """
        if not (isinstance(self.loss, Weighted) and self.loss.quadratic):
            return self
        root = self.loss.weights.to(self.targets).sqrt()
        return replace(
            self, design=ScaledDesign(self.design, root), targets=self.targets * root[:, None], loss=self.loss.loss
        )

    def correlate(self, dual: Tensor) -> Tensor:
        """Return A^T nu of the (centred) features A, shape (blocks, cells, rows, outputs)."""
        if not self.intercept:
            return all_sum(self.design.correlate(dual))
        # Centring leaves nu a mean of some roundings, which features with a large mean multiply.
        constant, pull, square = (part.to(dual) for part in self._pulls())
        means = all_sum((constant[:, None] * dual).sum(dim=0)) / square
        both = all_sum(self.design.correlate(torch.cat([dual, pull[:, None]], dim=1)))
        return both[..., :-1] - both[..., -1:] * means

    def correlation_rounding(self, mass: Tensor) -> Tensor:
        """Return how long the error of each column of A^T nu may be in float64, shape (cells, outputs).

        ``mass`` is that of the design, over all images. Errors of N terms that are rounded independently add up to at
        most L sqrt(N) u times their absolute values, u half an eps, but for a probability of 2 exp(-L^2/2); here L = 6
        (Higham & Mary 2019, A New Approach to Probabilistic Rounding Error Analysis, Theorem 2.4).
        """
        patches = self.design.patches
        n_images = float(all_sum(mass.new_tensor(float(patches.n_images))))
        return _ROUNDING * math.sqrt(n_images * patches.n_patches + patches.dim) * mass

    def columns(self, blocks: Tensor) -> Tensor:
        """Return the (centred) features of these blocks, shape (n, len(blocks), cells, rows)."""
        return self.centre(self.design.columns(blocks))

    def cone_norm(self, block: int, vector: np.ndarray, ceiling: float) -> float:
        """Return max {a . u : Omega(u) <= 1, u in cone} of a column a of a block; below ``ceiling``, a bound of it."""
        if self.cones is None:
            return float(np.linalg.norm(vector))
        point, _ = self.cones.project(block % len(self.cones.gates), vector, ceiling=ceiling)
        return float(np.linalg.norm(point))

    def cone_norms(self, correlation: Tensor, floor: float) -> Tensor:
        """Return max {a . u : ||u|| <= 1, u in cone} for each column a of A^T nu: (blocks, cells, outputs).

        Without cones it is the dual norm of each group, as ``Penalty.group_norms`` lays them out. Values below
        ``floor`` may be replaced by an upper bound that is also below it.
        """
        norms = self.penalty.group_norms(correlation)
        if self.cones is None:
            return norms
        return self._along_cones(self.cones, correlation.cpu().numpy(), norms, floor)

    def _along_cones(self, cones: Cones, values: np.ndarray, norms: Tensor, floor: float) -> Tensor:
        """Return ``cone_norms`` of columns ``values``, whose norms without cones are given."""
        norms = torch.from_numpy(cones.lengths_up_to(values, floor)).to(norms)
        for place in (norms >= floor).nonzero().tolist():
            point, _ = cones.project_column(values, tuple(place), floor)
            norms[tuple(place)] = float(np.linalg.norm(point))
        return norms

    def dual_bound(self, prediction: Tensor, correlation: Tensor | None = None) -> float:
        """Return the dual value at the best feasible multiple of nu = -loss'(prediction).

        It bounds the program's optimum from below, whatever the prediction.
        """
        dual = self.dual_point(prediction)
        correlation = self.correlate(dual) if correlation is None else correlation
        rounding = self.correlation_rounding(all_sum(self.design.mass(dual)))
        if self.cones is None:
            largest = self.penalty.largest_scale(correlation, self.reg, rounding)
        else:
            # A norm known to be well below reg need not be exact: it only keeps the multiple of nu smaller.
            norms = self.cone_norms(correlation, self.reg * NEARLY) + rounding.to(correlation)
            largest = self.reg / norms.amax(dim=(0, 1)).clamp_min(torch.finfo(norms.dtype).tiny)
        return self.loss.dual_value(dual, self.centre(self.targets), largest)

    def objective(self, weights: Tensor, prediction: Tensor | None = None) -> float:
        """Return loss + reg * penalty; the cones are not looked at."""
        prediction = self.design.predict(weights) if prediction is None else prediction
        if self.intercept:
            prediction = prediction + _beside(self.design.constant(), prediction) * self.intercepts(prediction)
        return self.loss.value(prediction, self.targets) + self.reg * self.penalty.value(weights)

    def violation(self, weights: Tensor) -> float:
        """Return the largest violation of a cone constraint, max(0, -s_k x_k . v); 0 without cones."""
        if self.cones is None:
            return 0.0
        values = weights.cpu().double().numpy()
        worst = 0.0
        for block in weights.flatten(1).any(dim=1).nonzero().flatten().tolist():
            columns = values[block].transpose(1, 0, 2).reshape(self.design.rows, -1)
            worst = max(worst, self.cones.violation(block % len(self.cones.gates), columns))
        return worst

    def repair(self, weights: Tensor) -> Tensor:
        """Return the weights projected onto their cones (the same weights without cones)."""
        if self.cones is None:
            return weights
        repaired = weights.clone()
        values = weights.cpu().double().numpy()
        for block, cell, output in (weights.norm(dim=2) > 0).nonzero().tolist():
            point, _ = self.cones.project(block % len(self.cones.gates), values[block, cell, :, output], tol=1e-15)
            repaired[block, cell, :, output] = torch.from_numpy(point).to(weights)
        return repaired

    def double(self) -> Program:
        """Return this program in float64, in which every result is judged."""
        if self.targets.dtype == torch.float64:
            return self
        return replace(self, design=self.design.double(), targets=self.targets.double())

    def evaluate(self, weights: Tensor) -> Evaluation:
        """Return objective, dual bound and violation of weights, all recomputed here."""
        prediction = self.design.predict(weights)
        return Evaluation(
            objective=self.objective(weights, prediction),
            dual_bound=self.dual_bound(prediction),
            violation=self.violation(weights),
            intercepts=self.intercepts(prediction),
            rounding=self.rounding,
        )

    def reg_max(self) -> float:
        """Return the smallest reg at which zero weights are optimal."""
        correlation = self.correlate(self.dual_point(torch.zeros_like(self.targets)))
        norms = self.penalty.group_norms(correlation)
        if self.cones is None:
            return float(norms.max())
        peak = 0.0
        values = correlation.cpu().numpy()
        for index in torch.argsort(norms.flatten(), descending=True).tolist():
            block, cell, output = np.unravel_index(index, tuple(norms.shape))
            if norms[block, cell, output] <= peak:
                break
            peak = max(peak, self.cone_norm(block, values[block, cell, :, output], peak))
        return peak


def gated_program(patches: Patches, gates: Tensor, targets: Tensor, reg: float, **options: Any) -> Program:
    """Return the gated program over fixed gates, min loss(sum_ik D_i^k X_k z_i, y) + reg * penalty(z), no cones.

    Parameters
    ----------
    patches : Patches
        n images with K patches each.
    gates : Tensor, shape (P, d)
        Gates of distinct patterns, in the dtype and on the device of the patches.
    targets : Tensor, shape (n, outputs)
    reg : float
        lam > 0.
    **options
        ``penalty`` (group by default), ``loss`` and ``intercept`` of ``Program``.

    Raises
    ------
    InputError
        If reg is not positive and finite, or the options don't go together.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> patches = Patches(torch.tensor([[[[3.0, 4.0]]]]), PatchGeometry(kernel_size=(1, 2)))
    >>> program = gated_program(patches, torch.ones(1, 2), torch.ones(1, 1), reg=1.0)
    >>> program.design.shape(outputs=1), program.reg_max()
    ((1, 1, 2, 1), 5.0)
    """
    if not patches.pooler.linear:
        raise InputError(
            f"pooling={patches.geometry.pooling!r} has no gated program: which patch wins would be a question of the "
            'filter and not of its gate. Use activation="relu", or pooling="mean", "sum" or "bilinear".'
        )
    penalty = options.pop("penalty", None) or GroupPenalty()
    return Program(GatedDesign(patches, gates), targets, reg, penalty, **options)


def relu_program(patches: Patches, gates: Tensor, targets: Tensor, reg: float, **options: Any) -> Program:
    """Return the ReLU program (Eq. 2) over fixed gates, both signs and all cones.

    Blocks 0..P-1 of the weights are the v_i, blocks P..2P-1 the w_i. Parameters and errors are those of
    ``gated_program``; the penalty is "group".

    Notes
    -----
    Source: Ergen & Pilanci 2021, Theorem 2.1.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> patches = Patches(torch.tensor([[[[3.0, 4.0]]]]), PatchGeometry(kernel_size=(1, 2)))
    >>> program = relu_program(patches, torch.ones(1, 2), torch.ones(1, 1), reg=1.0)
    >>> program.design.shape(outputs=1), program.violation(-torch.ones(2, 1, 2, 1))
    ((2, 1, 2, 1), 7.0)
    """
    penalty = options.pop("penalty", None) or GroupPenalty()
    return Program(SignedGatedDesign(patches, gates), targets, reg, penalty, cones=cones_of(patches, gates), **options)


def filter_program(patches: Patches, filters: Tensor, targets: Tensor, reg: float, **options: Any) -> Program:
    """Return the group lasso over fixed unit filters: Eq. 1 minimised over its last layer, ||u|| ||w|| penalised.

        min loss(sum_j h_j w_j, y) + reg * penalty(w),   h_j = pooled (R u_j)_+

    ``filters`` has unit rows, shape (m, d); the other parameters and the errors are those of ``gated_program``.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> patches = Patches(torch.tensor([[[[3.0, 4.0]]]]), PatchGeometry(kernel_size=(1, 2)))
    >>> filter_program(patches, torch.tensor([[0.6, 0.8]]), torch.ones(1, 1), reg=1.0).reg_max()
    5.0
    """
    penalty = options.pop("penalty", None) or GroupPenalty()
    return Program(FilterDesign(patches, filters), targets, reg, penalty, **options)
