"""Squared loss as matrices: the Gram form, of a size independent of the number of images, or features of a few."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.distributed import all_sum, size
from ...core.products import add_gram, adjoint_product, mirror_upper
from ...errors import SolverError
from ...losses.squared import parabola
from ...penalties import Penalty
from ...program.design import Design
from ...program.program import Evaluation, Program

__all__ = ["FeatureForm", "GramForm", "judge"]

logger = logging.getLogger(__name__)

# Images whose products are summed in the program's dtype: of longer sums float32 keeps too little, on a GPU above all.
_SUMMED_IMAGES = 4096
# Rows of a Hessian's factor up to which its largest eigenvalue is computed, not bounded.
_EXACT_ROWS = 1000
# Images and columns whose products are compared with float64 before a pass in lower precision, and the most they may
# differ by.
_CHECKED_IMAGES, _CHECKED_COLUMNS = 32, 1024
_MOST_DIFFERENCE = 1e-3


@dataclass
class GramForm:
    """A^T A, A^T Y and ||Y||^2 of a program, in float64: all that squared loss needs.

    Attributes
    ----------
    gram : Tensor, shape (q, q), q = blocks * cells * rows
    linear : Tensor, shape (q, outputs)
    squared_norm : Tensor, shape (outputs,)
        ||y_o||^2 of each output.
    shape : tuple
        Shape of the weights.
    feature_means, target_means : Tensor, shapes (q,) and (outputs,)
        What an intercept has taken out of features and targets; zero without one.
    """

    gram: Tensor
    linear: Tensor
    squared_norm: Tensor
    shape: tuple[int, int, int, int]
    feature_means: Tensor
    target_means: Tensor

    @property
    def rounding(self) -> float:
        """``Program.rounding``."""
        return 0.5 * torch.finfo(self.squared_norm.dtype).eps * float(self.squared_norm.sum())

    @classmethod
    def of(cls, program: Program, *, exact: bool = False) -> GramForm:
        """Return the Gram form of a program without weights of images in one pass over its images.

        Features of a few thousand images are multiplied in the program's dtype, or with ``exact`` in float64, and the
        products summed in float64 over parts and processes: memory q^2 numbers and 2^27 bytes of features, whatever n.
        For an intercept, features are taken relative to their mean over the first part, and the rest of the mean is
        taken out of the sums: sum (a - m)(b - m') = sum a b - n m m'; of ``program.design.constant()`` c, which is one
        mostly, c m and |c|^2 take the place of m and n.

        Raises
        ------
        SolverError
            If products of the first images differ from those of float64 by more than 1e-3.
        """
        design, targets = program.design, program.targets
        shape = design.shape(program.n_outputs)
        count = shape[0] * shape[1] * shape[2]
        if targets.dtype != torch.float64 and not exact:
            _check_precision(design)
        constant = design.constant().to(targets)
        gram = targets.new_zeros(count, count, dtype=torch.float64)
        linear = gram.new_zeros(count, program.n_outputs)
        sums, shift = gram.new_zeros(count), None
        for rows, part in design.parts():
            features = part.matrix()
            if program.intercept:
                along = constant[rows, None]
                if shift is None:
                    number = all_sum(along.double().square().sum())
                    shift = (all_sum((features * along).sum(dim=0, dtype=torch.float64)) / number).to(features)
                features -= along * shift
                sums += (features * along).sum(dim=0, dtype=torch.float64)
            for some in _few(len(features)):
                few, wanted = features[some], targets[rows][some]
                few, wanted = (few.double(), wanted.double()) if exact else (few, wanted)
                add_gram(gram, few)
                linear += adjoint_product(few, wanted)
        values = targets.double()
        squared_norm = all_sum(values.square().sum(dim=0))
        gram, linear, sums = all_sum(gram), all_sum(linear), all_sum(sums)
        feature_means, target_means = sums, torch.zeros_like(squared_norm)
        if program.intercept and shift is not None:
            number = all_sum(constant.double().square().sum())
            feature_means = shift.double() + sums / number
            target_means = all_sum((values * constant[:, None]).sum(dim=0)) / number
            gram.addr_(sums, sums, alpha=-1.0 / float(number))
            linear -= sums[:, None] * target_means
            squared_norm = squared_norm - number * target_means.square()
        mirror_upper(gram)
        return cls(gram, linear, squared_norm, shape, feature_means, target_means)

    def product(self, flat: Tensor) -> Tensor:
        """Return A^T A W for W (q, outputs)."""
        # This way round it is twice as fast on a CPU: rows of the matrix lie together.
        result: Tensor = (flat.T @ self.gram).T
        return result

    def steepness(self) -> float:
        """Return the largest eigenvalue of A^T A."""
        return float(torch.linalg.eigvalsh(self.gram)[-1]) if len(self.gram) else 0.0

    def intercepts(self, weights: Tensor) -> Tensor:
        """Return the optimal intercept (outputs,) for weights (blocks, cells, rows, outputs)."""
        return self.target_means - self.feature_means @ weights.to(self.linear).reshape(len(self.gram), -1)

    def reg_max(self, penalty: Penalty) -> float:
        """Return the smallest reg at which zero weights are optimal."""
        return float(penalty.dual_norms(self.linear.view(self.shape)).max())

    def gap(self, penalty: Penalty, reg: float, weights: Tensor) -> tuple[float, float, Tensor]:
        """Return objective, dual bound and A^T nu of weights (blocks, cells, rows, outputs), without images."""
        flat = weights.to(self.linear).reshape(len(self.gram), -1)
        product = self.product(flat)
        correlation = (self.linear - product).view(self.shape)
        inner, square = (flat * self.linear).sum(dim=0), (flat * product).sum(dim=0)
        residual = (self.squared_norm - 2 * inner + square).clamp_min(0.0)
        objective = 0.5 * float(residual.sum()) + reg * penalty.value(weights)
        largest = penalty.largest_scale(correlation, reg)
        linear = self.squared_norm - inner
        return objective, parabola(linear, linear.abs(), residual, largest), correlation


class FeatureForm:
    """1/2 sum_j ||R_j f_j - t_j||^2, f = A W, by the features A of fewer images than columns, in float64.

    Parameters
    ----------
    features : Tensor, shape (n, q)
        A.
    targets : Tensor, shape (n, outputs)
        t.
    shape : tuple
        Shape of the weights.
    roots : Tensor, shape (n, outputs, outputs), optional
        R_j; the identity by default.
    """

    def __init__(
        self, features: Tensor, targets: Tensor, shape: tuple[int, int, int, int], roots: Tensor | None = None
    ) -> None:
        self.features, self.targets = features.double(), targets.double()
        self.shape, self.roots = shape, None if roots is None else roots.double()
        self.linear = adjoint_product(self.features, self._adjoint(self.targets))
        self.squared_norm = self.targets.square().sum()

    @staticmethod
    def suits(program: Program) -> bool:
        """Return whether features are the smaller matrix, all of them in this process."""
        blocks, cells, rows, _ = program.design.shape(program.n_outputs)
        return size() == 1 and 2 * len(program.targets) <= blocks * cells * rows

    @classmethod
    def of(cls, program: Program) -> FeatureForm:
        """Return the form of a program of squared loss."""
        features = program.centre(program.design.matrix())
        return cls(features, program.centre(program.targets), program.design.shape(program.n_outputs))

    @property
    def rounding(self) -> float:
        """``Program.rounding``."""
        return 0.5 * torch.finfo(torch.float64).eps * float(self.squared_norm)

    def _forward(self, prediction: Tensor) -> Tensor:
        return prediction if self.roots is None else torch.einsum("nop,np->no", self.roots, prediction)

    def _adjoint(self, values: Tensor) -> Tensor:
        return values if self.roots is None else torch.einsum("nop,no->np", self.roots, values)

    def product(self, flat: Tensor) -> Tensor:
        """Return the Hessian times W (q, outputs)."""
        return adjoint_product(self.features, self._adjoint(self._forward(self.features @ flat)))

    def steepness(self) -> float:
        """Return the largest eigenvalue of the Hessian."""
        features = self.features
        if self.roots is not None and self.roots.shape[:2].numel() > _EXACT_ROWS:
            # A bound: each image's part of the Hessian by its norm alone.
            features = features * torch.linalg.matrix_norm(self.roots, ord=2)[:, None]
        kernel = features @ features.T if len(features) <= features.shape[1] else features.T @ features
        if self.roots is not None and self.roots.shape[:2].numel() <= _EXACT_ROWS:
            count = self.roots.shape[:2].numel()
            kernel = features @ features.T
            kernel = torch.einsum("jk,jop,kqp->jokq", kernel, self.roots, self.roots).reshape(count, count)
        return float(torch.linalg.eigvalsh(kernel)[-1]) if len(kernel) else 0.0

    def gap(self, penalty: Penalty, reg: float, weights: Tensor) -> tuple[float, float, Tensor]:
        """Return objective, dual bound and A^T nu of weights; the bound is that of one multiple for all outputs."""
        flat = weights.to(self.linear).reshape(self.linear.shape)
        dual = self.targets - self._forward(self.features @ flat)
        correlation = adjoint_product(self.features, self._adjoint(dual)).view(self.shape)
        square, linear = dual.square().sum(), (dual * self.targets).sum()
        largest = penalty.largest_scale(correlation, reg).min()
        objective = 0.5 * float(square) + reg * penalty.value(weights)
        return objective, parabola(linear, linear.abs(), square, largest), correlation


def _few(images: int) -> list[slice]:
    """Return slices of images that are few enough to be summed over in any dtype."""
    return [slice(start, start + _SUMMED_IMAGES) for start in range(0, images, _SUMMED_IMAGES)]


def _check_precision(design: Design) -> None:
    """Raise SolverError unless products of the first images agree with float64."""
    images = slice(0, min(_CHECKED_IMAGES, design.patches.n_images))
    if not design.n_blocks or not images.stop:
        return
    part = design.subset(images)
    single, double = part.matrix(), part.double().matrix()
    # Some columns against all: a second matrix of the size of the Gram matrix would double the memory.
    exact = double[:, :_CHECKED_COLUMNS].T @ double
    difference = float(
        ((single[:, :_CHECKED_COLUMNS].T @ single).double() - exact).norm() / exact.norm().clamp_min(1e-300)
    )
    logger.info("products of %d images differ from float64 by %.1e, relative", images.stop, difference)
    if not difference <= _MOST_DIFFERENCE:
        raise SolverError(
            f"products of features in {str(single.dtype).removeprefix('torch.')} differ from those in float64 by "
            f'{difference:.1e}, relative; at most {_MOST_DIFFERENCE:.0e} is useful. Use dtype="float64", or scale the '
            "images to about one."
        )


def judge(program: Program, weights: Tensor) -> tuple[Evaluation, Tensor]:
    """Return ``program.double().evaluate(weights)`` and A^T nu, in one float64 pass over the images instead of two.

    Squared loss, no cones. An image's part of f, of nu = y - f and of A^T nu needs no other image; with an intercept,
    A^T (nu - mean nu) = A^T nu - (A^T 1) mean nu, so its mean is taken out at the end, but for that of the first part,
    which leaves numbers of the size of nu. (For 1 the program has ``design.constant()``.)

    Parameters
    ----------
    program : Program
    weights : Tensor, shape (blocks, cells, rows, outputs)
        Any weights; features are computed again, in float64, and every sum is in float64.
    """
    flat = weights.double().reshape(-1, program.n_outputs)
    correlation, sums, first = torch.zeros_like(flat), flat.new_zeros(len(flat)), None
    # Of each output: sums of nu^2, nu y, |nu y|, nu and y.
    moments, mass = flat.new_zeros(5, program.n_outputs), flat.new_zeros(program.design.n_cells, program.n_outputs)
    design = program.design.double()
    constant = design.constant().double()
    prediction = flat.new_empty(len(program.targets), program.n_outputs)
    for rows, part in design.parts():
        features, targets, along = part.matrix(), program.targets[rows].double(), constant[rows, None]
        prediction[rows] = features @ flat
        dual = targets - prediction[rows]
        if program.intercept:
            if first is None:
                first = all_sum((dual * along).sum(dim=0)) / all_sum(along.square().sum())
            dual -= along * first
        products = dual * targets
        moments += torch.stack([dual.square(), products, products.abs(), dual * along, targets * along]).sum(dim=1)
        correlation += adjoint_product(features, dual)
        mass += part.mass(dual)
        if program.intercept:
            sums += (features * along).sum(dim=0)
    correlation, moments = all_sum(correlation), all_sum(moments)
    square, linear, terms, duals, values = moments
    intercepts = torch.zeros_like(duals)
    if program.intercept:
        number = all_sum(constant.square().sum())
        intercepts = duals / number
        correlation = correlation - all_sum(sums)[:, None] * intercepts
        square, linear = square - duals.square() / number, linear - duals * values / number
        terms = terms + (duals * values / number).abs()
        intercepts = intercepts if first is None else intercepts + first
    rounding = program.correlation_rounding(all_sum(mass))
    largest = program.penalty.largest_scale(correlation.view(weights.shape), program.reg, rounding)
    objective = 0.5 * float(square.sum()) + program.reg * program.penalty.value(weights.double())
    prediction += constant[:, None] * intercepts
    bound = parabola(linear, terms, square, largest)
    evaluation = Evaluation(objective, bound, 0.0, intercepts, program.rounding, prediction)
    return evaluation, correlation.view(weights.shape)
