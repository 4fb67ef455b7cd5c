"""Quadratic neurons (x . u)^2: a symmetric matrix for each cell and output, whose eigenvectors are the filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.symmetric import packed, unpacked
from ..errors import InputError
from ..patches.patches import Patches
from ..penalties.symmetric import SymmetricPenalty
from ..program.decay import Decay
from ..program.lifts import QuadraticDesign
from ..program.problem import Problem
from ..program.program import Program
from .neurons import Neurons
from .whole import WholeActivation

__all__ = ["Quadratic", "QuadraticNeurons", "Square"]

# Patches of more numbers are refused: the features of 50,000 images would be d (d + 1) / 2 > 20,000 a cell.
_LARGEST_DIM = 200
# Eigenvalues below this share of the largest are rounding.
_NEGLIGIBLE = 1e-12


class Square(nn.Module):
    """The square of each number, where a ReLU network has its ReLU.

    Examples
    --------
    >>> Square()(torch.tensor([-3.0, 2.0]))
    tensor([9., 4.])
    """

    def forward(self, values: Tensor) -> Tensor:
        """Return the squares."""
        return values.square()


@dataclass(frozen=True)
class QuadraticNeurons(Neurons):
    """Quadratic neurons f_jo = sum_ic w_ico sum_k P_ck (x_jk . u_i)^2 + b_o, filters u and readout w."""

    response = ("square", Square)

    def predict(self, patches: Patches) -> Tensor:
        weights = torch.einsum("ia,ib,ico->coab", self.filters, self.filters, self.readout)
        return QuadraticDesign(patches).predict(packed(weights).transpose(1, 2).unsqueeze(0)) + self.intercept

    def maps(
        self, patches: Patches, kept: Tensor | None = None, then: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        def squared(maps: Tensor) -> Tensor:
            return maps.square() if then is None else then(maps.square())

        return patches.linear_maps(self.filters if kept is None else self.filters[kept], squared)

    def norms(self) -> Tensor:
        """Return how much each neuron contributes, shape (m,): ||u_i||^2 ||w_i||."""
        sizes: Tensor = self.filters.square().sum(dim=1) * self.readout.flatten(1).norm(dim=1)
        return sizes

    def decay(self) -> float:
        # The path norm is the least of every decay, and no other is moved less by rounding.
        return float(self.norms().sum())


class Quadratic(WholeActivation):
    """f_jo = sum_ic w_ico sum_k P_ck (x_jk . u_i)^2, neuron i feeding one (cell, output).

        min loss(f, y) + lam sum_co ||Z_co||_*,   f_jo = sum_c <Z_co, sum_k P_ck x_jk x_jk^T>

    is exact for lam times the decays of ``program.decay``: Z = sum_i l_i q_i q_i^T gives neurons along q_i.

    Parameters
    ----------
    decay : str, (p, q) or None
        How the size of a neuron is shared between u and w; (4, 2) for None.

    Notes
    -----
    Source: Bartan & Pilanci 2021, Neural Spectrahedra and Semidefinite Lifts: Global Convex Optimization of Polynomial
    Activation Neural Networks in Fully Polynomial-Time.
    """

    name = "quadratic"
    penalties = ("group",)
    networks = "quadratic"
    contribution = (
        "the square of the norm of the filter times that of its output weight, as a share of the sum over all. The "
        "class is the one whose output the filter moves."
    )

    def __init__(self, decay: Any = None) -> None:
        self.decay = Decay.of(decay)

    def refusal(self, penalty: str) -> str:
        if penalty == "group":
            return ""
        return (
            f"penalty={penalty!r} has no convex program for quadratic neurons: one filter for all cells and outputs is "
            'a tensor problem. Use penalty="group".'
        )

    def unpriced(self, problem: Problem) -> Program:
        dim = problem.patches.dim
        if dim > _LARGEST_DIM:
            raise InputError(
                f"quadratic neurons on patches of {dim} numbers need {dim * (dim + 1) // 2} features a cell; "
                f"at most {_LARGEST_DIM} numbers are taken. Project them, LayerwiseCNN(project=60) or --project 60, "
                "or use smaller ones."
            )
        return Program(
            QuadraticDesign(problem.patches), problem.targets, problem.reg, SymmetricPenalty(), problem.loss,
            intercept=problem.intercept,
        )  # fmt: skip

    def read(self, program: Program, weights: Tensor, intercepts: Tensor | None) -> Neurons:
        intercept = weights.new_zeros(weights.shape[3])
        if program.intercept:
            found = program.intercepts(program.design.predict(weights)) if intercepts is None else intercepts
            intercept = found.to(weights)
        values, vectors = torch.linalg.eigh(unpacked(weights[0].double().transpose(1, 2)))
        sizes = values.abs()
        cells, outputs, places = (sizes > _NEGLIGIBLE * sizes.max()).nonzero(as_tuple=True)
        directions = vectors[cells, outputs, :, places]
        filters, amounts = self.decay.balanced(directions, values[cells, outputs, places])
        readout = filters.new_zeros(len(filters), *values.shape[:2])
        readout[torch.arange(len(filters), device=cells.device), cells, outputs] = amounts
        if not len(filters):
            # A convolution needs a channel; a neuron of zeros is the zero function.
            filters, readout = filters.new_zeros(1, vectors.shape[-1]), filters.new_zeros(1, *values.shape[:2])
        return QuadraticNeurons(filters.to(weights), readout.to(weights), intercept)

    def from_state(self, state: Mapping[str, Tensor]) -> Neurons:
        return QuadraticNeurons(state["filters"], state["readout"], state["intercept"])
