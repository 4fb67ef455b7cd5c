"""Linear neurons x . u: what a network gives without a nonlinearity, and so what its ReLU adds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..patches.geometry import PatchGeometry
from ..patches.patches import Patches
from ..program.lifts import LinearDesign
from ..program.problem import Problem
from ..program.program import Program
from .neurons import Neurons, balanced, convolution
from .whole import WholeActivation

__all__ = ["Linear", "LinearNeurons"]

# Singular values below this share of the largest are rounding.
_NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class LinearNeurons(Neurons):
    """Linear neurons f_jo = sum_ic w_ico sum_k P_ck x_jk . u_i + b_o; ``filters`` and ``readout`` are u and w."""

    def predict(self, patches: Patches) -> Tensor:
        weights = torch.einsum("id,ico->cdo", self.filters, self.readout)
        return LinearDesign(patches).predict(weights.unsqueeze(0)) + self.intercept

    def maps(
        self, patches: Patches, kept: Tensor | None = None, then: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        return patches.linear_maps(self.filters if kept is None else self.filters[kept], then)

    def map_modules(
        self, geometry: PatchGeometry, channels: int, kept: Tensor, number: int
    ) -> OrderedDict[str, nn.Module]:
        return OrderedDict([(f"conv{number}", convolution(self.filters[kept], geometry, channels))])

    def to_module(
        self, geometry: PatchGeometry, image_shape: tuple[int, int, int], *, intercept: bool
    ) -> nn.Sequential:
        module = super().to_module(geometry, image_shape, intercept=intercept)
        return nn.Sequential(OrderedDict((name, part) for name, part in module.named_children() if name != "relu"))

    @staticmethod
    def layer_names(number: int) -> list[str]:
        return [f"conv{number}"]


class Linear(WholeActivation):
    """f_jo = sum_ic w_ico sum_k P_ck x_jk . u_i.

        min loss(f, y) + lam ||[z_co]||_*,   f_jo = sum_c z_co . sum_k P_ck x_jk

    is Eq. 1 of neurons that feed every (cell, output), by the singular value decomposition of the d x (cells * outputs)
    matrix; with the group penalty, lam sum_co ||z_co||, that of neurons that feed one each.

    Notes
    -----
    Source: Ergen & Pilanci 2021, Implicit Convex Regularizers of CNN Architectures, section 3 (linear CNNs).
    """

    name = "linear"
    penalties = ("dense", "group", "nuclear")
    networks = "linear"

    def program_penalty(self, penalty: str, pairs: int | None = None) -> str:
        if penalty != "dense":
            return penalty
        # A matrix of one column has one norm.
        return "group" if pairs == 1 else "nuclear"

    def unpriced(self, problem: Problem) -> Program:
        return Program(
            LinearDesign(problem.patches), problem.targets, problem.reg, problem.penalty, problem.loss,
            intercept=problem.intercept,
        )  # fmt: skip

    def read(self, program: Program, weights: Tensor, intercepts: Tensor | None) -> Neurons:
        intercept = weights.new_zeros(weights.shape[3])
        if program.intercept:
            found = program.intercepts(program.design.predict(weights)) if intercepts is None else intercepts
            intercept = found.to(weights)
        _, cells, _, outputs = weights.shape
        matrix = weights[0].transpose(0, 1).flatten(1)
        if program.penalty.separable:
            lengths = matrix.norm(dim=0)
            used = lengths.nonzero().flatten()
            directions = (matrix[:, used] / lengths[used]).T
            readout = torch.diag_embed(lengths)[used]
        else:
            left, values, right = torch.linalg.svd(matrix, full_matrices=False)
            kept = values > _NEGLIGIBLE * values.max()
            directions, readout = left.T[kept], (values[:, None] * right)[kept]
        found = balanced(directions, readout.view(-1, cells, outputs), intercept)
        return LinearNeurons(found.filters, found.readout, found.intercept)

    def eq1(self, neurons: Neurons, program: Program) -> float | None:
        exact = program.double()
        kept = replace(neurons, **{name: value.double() for name, value in neurons.state().items()})
        squares = float(kept.filters.square().sum() + kept.readout.square().sum())
        return exact.loss.value(kept.predict(exact.design.patches), exact.targets) + 0.5 * program.reg * squares

    def from_state(self, state: Mapping[str, Tensor]) -> Neurons:
        return LinearNeurons(state["filters"], state["readout"], state["intercept"])
