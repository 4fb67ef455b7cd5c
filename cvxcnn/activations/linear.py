"""Linear neurons x . u: what a network gives without a nonlinearity, and so what its ReLU adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..patches.patches import Patches
from ..program.lifts import LinearDesign
from ..program.problem import Problem
from ..program.program import Program
from .neurons import Neurons, balanced
from .whole import WholeActivation

__all__ = ["Linear", "LinearMaps", "LinearNeurons"]

# Singular values below this share of the largest are rounding.
_NEGLIGIBLE = 1e-12


class LinearMaps(nn.Identity):
    """Feature maps as they are, where a ReLU network has its ReLU: what explanations of a linear network are of."""


@dataclass(frozen=True)
class LinearNeurons(Neurons):
    """Linear neurons f_jo = sum_ic w_ico sum_k P_ck x_jk . u_i + b_o; ``filters`` and ``readout`` are u and w."""

    response = ("maps", LinearMaps)

    def predict(self, patches: Patches) -> Tensor:
        weights = torch.einsum("id,ico->cdo", self.filters, self.readout)
        return LinearDesign(patches).predict(weights.unsqueeze(0)) + self.intercept

    def maps(
        self, patches: Patches, kept: Tensor | None = None, then: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        return patches.linear_maps(self.filters if kept is None else self.filters[kept], then)


class Linear(WholeActivation):
    """f_jo = sum_ic w_ico sum_k P_ck x_jk . u_i.

        min loss(f, y) + lam ||[z_co]||_*,   f_jo = sum_c z_co . sum_k P_ck x_jk

    is Eq. 1 of neurons that feed every (cell, output), by the singular value decomposition of the d x (cells * outputs)
    matrix; with the group penalty, lam sum_co ||z_co||, that of neurons that feed one each.

    Notes
    -----
    Source: Ergen & Pilanci 2021, Implicit Convex Regularizers of CNN Architectures.
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
            free = program.intercepts(program.design.predict(weights)) if intercepts is None else intercepts
            intercept = free.to(weights)
        _, cells, _, outputs = weights.shape
        matrix = weights[0].transpose(0, 1).flatten(1)
        if program.penalty.separable:
            lengths = matrix.norm(dim=0)
            used = lengths.nonzero().flatten()
            directions = (matrix[:, used] / lengths[used]).T
            readout = torch.diag_embed(lengths)[used]
        else:
            left, values, right = torch.linalg.svd(matrix, full_matrices=False)
            large = values > _NEGLIGIBLE * values.max()
            directions, readout = left.T[large], (values[:, None] * right)[large]
        neurons = balanced(directions, readout.view(-1, cells, outputs), intercept)
        return LinearNeurons(neurons.filters, neurons.readout, neurons.intercept)

    def from_state(self, state: Mapping[str, Tensor]) -> Neurons:
        return LinearNeurons(state["filters"], state["readout"], state["intercept"])
