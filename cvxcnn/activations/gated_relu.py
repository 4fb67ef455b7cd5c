"""Gated neurons 1[x . g >= 0] (x . z): a convex program without cones, whose optimum is below that of the ReLU one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..patches.activity import active
from ..patches.geometry import PatchGeometry
from ..patches.patches import Patches
from ..patches.pooling import pooling
from ..penalties import Penalty
from ..pricing.gate_master import GateMaster
from ..pricing.loop import PricedSolution
from ..pricing.options import PricingOptions
from ..pricing.solve import solve_priced
from ..program.cones import Cones
from ..program.problem import Problem
from ..program.program import Program, relu_program
from ..program.units import unit_rows
from ..solvers import Callback
from .base import Activation, Shapes
from .neurons import Neurons, convolution, read_neurons

__all__ = ["GatedConv", "GatedNeurons", "GatedRelu"]


@dataclass(frozen=True)
class GatedNeurons(Neurons):
    """Gated neurons f_jo = sum_ic sum_k P_ck 1[x_jk . g_i >= 0] (x_jk . z_ico) + b_o.

    ``filters`` are their gates at unit length, or one of zeros if there is none, whose ReLU maps are handed on;
    ``readout`` is zero.

    Attributes
    ----------
    gates : Tensor, shape (P, d)
        g_i.
    weights : Tensor, shape (P, cells, d, outputs)
        z_ico.
    """

    gates: Tensor
    weights: Tensor

    @classmethod
    def of(cls, gates: Tensor, weights: Tensor, intercept: Tensor) -> GatedNeurons:
        """Return neurons with these gates and weights."""
        filters = unit_rows(gates) if len(gates) else gates.new_zeros(1, gates.shape[1])
        readout = weights.new_zeros(len(filters), weights.shape[1], weights.shape[3])
        return cls(filters, readout, intercept, gates, weights)

    def __len__(self) -> int:
        return len(self.gates)

    def predict(self, patches: Patches) -> Tensor:
        if not len(self.gates):
            return patches.like.new_zeros(patches.n_images, self.weights.shape[3]) + self.intercept
        return patches.gated_prediction(self.gates, self.weights) + self.intercept

    def norms(self) -> Tensor:
        """Return how much each filter contributes, shape (m,): ||z_i||."""
        lengths: Tensor = (self.weights if len(self.gates) else self.readout).flatten(1).norm(dim=1)
        return lengths

    def effects(self) -> Tensor | None:
        return None

    def to_module(
        self, geometry: PatchGeometry, image_shape: tuple[int, int, int], *, intercept: bool
    ) -> nn.Sequential:
        gates, weights = self.gates, self.weights
        if not len(gates):
            gates, weights = self.filters, weights.new_zeros(1, *weights.shape[1:])
        count, cells, dim, outputs = weights.shape
        channels, height, width = image_shape
        filters = weights.permute(0, 1, 3, 2).reshape(-1, dim)
        # Map (gate, cell, output) is read in its own cell by its own output, with weight one.
        selection = torch.einsum("ce,op->ocpe", torch.eye(cells), torch.eye(outputs)).reshape(outputs, -1)
        linear = nn.Linear(count * selection.shape[1], outputs, bias=intercept).to(weights)
        with torch.no_grad():
            linear.weight.copy_(selection.repeat(1, count))
            if intercept:
                linear.bias.copy_(self.intercept)
        return nn.Sequential(
            GatedConv(convolution(gates, geometry, channels), convolution(filters, geometry, channels)),
            pooling(geometry, geometry.map_shape((height, width)), weights),
            nn.Flatten(),
            linear,
        )

    @classmethod
    def layer_names(cls, number: int) -> list[str]:
        return [f"gated{number}"]

    def state(self) -> dict[str, Tensor]:
        gated = {"gated_vectors": self.gates, "gated_weights": self.weights, "gated_intercept": self.intercept}
        return {**super().state(), **gated}


class GatedRelu(Activation):
    """f_jo = sum_ic sum_k P_ck 1[x_jk . g_i >= 0] (x_jk . z_ico)."""

    name = "gated_relu"
    penalties = ("dense", "group", "nuclear")
    networks = "gated"
    ordinary = False
    contribution = "the norm of a gate's weights as a share of the sum of all. The pictures are the gates."

    def program_penalty(self, penalty: str, pairs: int | None = None) -> str:
        if penalty != "dense":
            return penalty
        # Neurons that feed everything are a nuclear norm. A matrix of one column has one norm, and the programs of the
        # group penalty have faster solvers.
        return "group" if pairs == 1 else "nuclear"

    def program(self, problem: Problem, gates: Tensor) -> Program:
        return problem.over_gates(gates)

    def unpriced(self, problem: Problem) -> Program:
        return problem.over_gates(problem.patches.like.new_zeros(0, problem.patches.dim))

    def price(
        self,
        problem: Problem,
        *,
        tol: float,
        start: Tensor | None,
        generator: torch.Generator,
        options: PricingOptions,
        callback: Callback | None,
    ) -> PricedSolution:
        return solve_priced(
            problem, GateMaster, tol=tol, start=start, generator=generator, options=options, callback=callback
        )

    def read(self, program: Program, weights: Tensor, intercepts: Tensor | None) -> Neurons:
        used = weights.flatten(1).any(dim=1)
        if intercepts is None:
            intercepts = program.intercepts(program.design.predict(weights))
        return GatedNeurons.of(program.design.vectors[used], weights[used], intercepts.to(weights))

    def eq1(self, neurons: Neurons, program: Program) -> float | None:
        return None

    def shapes(self, dim: int, cells: int, outputs: int) -> Shapes:
        gated: Shapes = {"gated_vectors": ("P", dim), "gated_weights": ("P", cells, dim, outputs)}
        return {**super().shapes(dim, cells, outputs), **gated, "gated_intercept": (outputs,)}

    def from_state(self, state: Mapping[str, Tensor]) -> Neurons:
        filters, gates, weights = state["filters"], state["gated_vectors"], state["gated_weights"]
        if len(filters) != max(1, len(gates)):
            raise ValueError(f"{len(filters)} filters for {len(gates)} gates")
        return GatedNeurons(filters, state["readout"], state["gated_intercept"], gates, weights)

    def blocks(self, gates: int, penalty: Penalty) -> tuple[int, bool]:
        return gates, True

    def decompose(self, neurons: Neurons, problem: Problem) -> Neurons:
        """Return ReLU neurons with the same outputs: each z = a - b is split into two vectors in its gate's cone."""
        if not isinstance(neurons, GatedNeurons):
            raise InputError(f"decompose is for gated neurons; got {type(neurons).__name__}.")
        doubled = decomposed_weights(Cones(problem.patches, neurons.gates), neurons.weights)
        program = relu_program(problem.patches, neurons.gates, problem.targets, problem.reg)
        found = read_neurons(program, doubled)
        return Neurons(found.filters, found.readout, neurons.intercept)


def decomposed_weights(cones: Cones, weights: Tensor) -> Tensor:
    """Return weights (2 P, cells, d, outputs) of the ReLU program with the gated weights' outputs.

    Source: Mishkin, Sahiner & Pilanci 2022, cone decomposition.
    """
    positive, negative = weights.clone(), torch.zeros_like(weights)
    values = weights.cpu().double().numpy()
    for gate, cell, output in (weights.norm(dim=2) > 0).nonzero().tolist():
        first, second = cones.decompose(gate, values[gate, cell, :, output])
        positive[gate, cell, :, output] = torch.from_numpy(first).to(weights)
        negative[gate, cell, :, output] = torch.from_numpy(second).to(weights)
    return torch.cat([positive, negative])


class GatedConv(nn.Module):
    """Gated convolution 1[x . g_i >= 0] (x . z): not a ReLU network, and it says so. ``activity`` decides the gate.

    Parameters
    ----------
    gates, filters : nn.Conv2d
        ``filters`` has a multiple of the channels of ``gates``; consecutive ones share a gate.
    """

    def __init__(self, gates: nn.Conv2d, filters: nn.Conv2d) -> None:
        super().__init__()
        self.gates = gates
        self.filters = filters

    def forward(self, images: Tensor) -> Tensor:
        """Return gated responses, one map a filter."""
        repeats = self.filters.out_channels // self.gates.out_channels
        responses: Tensor = self.filters(images)
        opened = self._opened(images).transpose(1, 2).repeat_interleave(repeats, dim=1)
        return responses * opened.view_as(responses)

    def _opened(self, images: Tensor) -> Tensor:
        """Return the patterns, shape (n, K, P), decided as they are for the program."""
        gates = self.gates
        # Never a word, as a Conv2d's may be.
        padding = gates.padding if isinstance(gates.padding, tuple) else (0, 0)
        patches = F.unfold(images, gates.kernel_size, padding=padding, stride=gates.stride).transpose(1, 2)
        vectors = gates.weight.flatten(1)
        if gates.bias is not None:
            patches = F.pad(patches, (0, 1), value=1.0)
            vectors = torch.cat([vectors, gates.bias[:, None]], dim=1)
        return active(patches, vectors)
