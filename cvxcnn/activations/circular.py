"""Circular networks, whose filters are as long as the images: programs over spectra, and neurons read off them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..patches.geometry import PatchGeometry
from ..patches.patches import Patches
from ..penalties import DensePenalty, Penalty
from ..penalties.spectra import FrequencyPenalty, SpectraPenalty
from ..pricing.loop import PricedSolution
from ..program.cones import Cones
from ..program.fourier import CircularGatedDesign, CircularReluProgram, FourierDesign, Frequencies, spectral_patches
from ..program.problem import Problem
from ..program.program import Program
from .base import Activation, Shapes
from .neurons import Neurons
from .whole import WholeActivation

__all__ = ["CircularLinear", "CircularNeurons", "CircularRelu", "CircularReluNeurons", "factored", "joined"]

# Singular values below this share of the largest are rounding.
_NEGLIGIBLE = 1e-12


def _shift(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return by how many places torch's circular convolution of full length begins before the image."""
    return (shape[-2] - 1) // 2, (shape[-1] - 1) // 2


def joined(filters: Tensor, weights: Tensor) -> Tensor:
    """Return U_i w_i, what images are multiplied by, of filters (m, C, H, W) and weights (m, H, W) of places.

    Examples
    --------
    >>> joined(torch.tensor([[[[0.0, 1.0, 0.0]]]]), torch.tensor([[[4.0, 5.0, 6.0]]])).tolist()
    [[[[4.0, 5.0, 6.0]]]]
    """
    frequencies = Frequencies(*filters.shape[-2:])
    spectra = frequencies.analysed(filters) * frequencies.analysed(weights)[:, None]
    back = tuple(-places for places in _shift(filters.shape))
    return frequencies.synthesised(spectra).roll(back, (-2, -1))


def factored(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return filters (m, C, H, W) and weights (m, o, H, W) whose ``joined`` images add up to these, at least decay.

    sum_i ||u_i||^2 = sum_i ||w_i||^2 = |F z|_1 / sqrt(d), with the sum of the singular values of a frequency's
    (C x o) matrix in the place of the absolute value. m is the largest rank; there is one pair at least.

    Parameters
    ----------
    images : Tensor, shape (o, C, H, W)

    Examples
    --------
    >>> u, w = factored(torch.tensor([[[[2.0, 2.0]]]]))  # one frequency, the mean: F z = (2 sqrt 2, 0)
    >>> float(u.square().sum()), float(w.square().sum())
    (2.0, 2.0)
    """
    frequencies = Frequencies(*images.shape[-2:])
    spectra = frequencies.analysed(images.roll(_shift(images.shape), (-2, -1)))
    matrices = spectra.permute(2, 1, 0)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    # Vectors of a real matrix must be real.
    real = frequencies.counts == 1
    left_real, _, right_real = torch.linalg.svd(matrices[real].real, full_matrices=False)
    left[real], right[real] = left_real.to(left), right_real.to(right)
    roots = torch.where(values > _NEGLIGIBLE * values.max(), values, 0.0).sqrt()
    rank = max(1, int((roots > 0).sum(dim=1).max()))
    filters = (left * roots[:, None]).permute(2, 1, 0)[:rank]
    weights = (right * roots[:, :, None]).permute(1, 2, 0)[:rank]
    return frequencies.synthesised(filters), frequencies.synthesised(weights)


def _convolution(filters: Tensor) -> nn.Conv2d:
    count, channels, *kernel = filters.shape
    layer = nn.Conv2d(channels, count, (kernel[0], kernel[1]), padding="same", padding_mode="circular", bias=False).to(
        filters
    )
    with torch.no_grad():
        layer.weight.copy_(filters)
    return layer


def _linear(weight: Tensor, intercept: Tensor, free: bool) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=free).to(weight)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if free:
            layer.bias.copy_(intercept)
    return layer


def _intercepts(program: Program, weights: Tensor, intercepts: Tensor | None) -> Tensor:
    if not program.intercept:
        return weights.new_zeros(weights.shape[3])
    found = program.intercepts(program.design.predict(weights)) if intercepts is None else intercepts
    return found.to(weights)


@dataclass(frozen=True)
class CircularNeurons(Neurons):
    """Circular linear neurons f_jo = sum_i x_j U_i w_io + b_o.

    Attributes
    ----------
    filters : Tensor, shape (m, C * H * W)
    readout : Tensor, shape (m, H * W, outputs)
        A weight for each place of a map.
    """

    def spectra(self, image_shape: tuple[int, int, int]) -> Tensor:
        """Return |F (U_i w_i)| of each neuron, (m, H, W), over channels and outputs together; F is unitary."""
        return _sizes(self.filters.view(-1, *image_shape), self.readout.permute(0, 2, 1))

    def predict(self, patches: Patches) -> Tensor:
        shape = patches.images.shape[1:]
        filters = self.filters.view(-1, *shape)
        kernels = [
            joined(filters, self.readout[..., output].reshape(-1, *shape[1:])).sum(dim=0)
            for output in range(self.readout.shape[2])
        ]
        return patches.unfold()[:, 0] @ torch.stack(kernels, dim=-1).flatten(0, 2) + self.intercept

    def to_module(
        self, geometry: PatchGeometry, image_shape: tuple[int, int, int], *, intercept: bool
    ) -> nn.Sequential:
        weight = self.readout.permute(2, 0, 1).flatten(1)
        parts: list[tuple[str, nn.Module]] = [
            ("conv", _convolution(self.filters.view(-1, *image_shape))),
            ("flatten", nn.Flatten()),
            ("linear", _linear(weight, self.intercept, intercept)),
        ]
        return nn.Sequential(OrderedDict(parts))


@dataclass(frozen=True)
class CircularReluNeurons(Neurons):
    """Circular ReLU neurons f_jo = sum_i s_io (x_j U_i w_i)_+ + b_o, ||u_i|| = 1.

    Attributes
    ----------
    filters : Tensor, shape (m, C * H * W)
    readout : Tensor, shape (m, 1, outputs)
        s.
    hidden : Tensor, shape (m, H * W)
        w, a weight for each place of a map.
    """

    hidden: Tensor

    def decay(self) -> float:
        return 0.5 * float(self.hidden.square().sum() + self.readout.square().sum())

    def norms(self) -> Tensor:
        """Return how much each neuron contributes, shape (m,): ||u_i|| ||w_i|| ||s_i||."""
        sizes: Tensor = super().norms() * self.hidden.norm(dim=1)
        return sizes

    def spectra(self, image_shape: tuple[int, int, int]) -> Tensor:
        """Return |F (U_i w_i)| of each neuron, (m, H, W), over channels together; F is unitary."""
        return _sizes(self.filters.view(-1, *image_shape), self.hidden[:, None])

    def predict(self, patches: Patches) -> Tensor:
        shape = patches.images.shape[1:]
        kernels = joined(self.filters.view(-1, *shape), self.hidden.view(-1, *shape[1:])).flatten(1)
        return (patches.unfold()[:, 0] @ kernels.T).relu() @ self.readout[:, 0] + self.intercept

    def to_module(
        self, geometry: PatchGeometry, image_shape: tuple[int, int, int], *, intercept: bool
    ) -> nn.Sequential:
        count, places = len(self.filters), image_shape[1:]
        # Each map has weights of its own for its places: a convolution in as many groups, of one place.
        hidden = nn.Conv2d(count, count, places, groups=count, bias=False).to(self.hidden)
        with torch.no_grad():
            hidden.weight.copy_(self.hidden.view(count, 1, *places))
        parts: list[tuple[str, nn.Module]] = [
            ("conv", _convolution(self.filters.view(-1, *image_shape))),
            ("hidden", hidden),
            ("relu", nn.ReLU()),
            ("flatten", nn.Flatten()),
            ("linear", _linear(self.readout[:, 0].T, self.intercept, intercept)),
        ]
        return nn.Sequential(OrderedDict(parts))

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "hidden": self.hidden}


def _sizes(filters: Tensor, weights: Tensor) -> Tensor:
    """Return sqrt(d) |F u_i| |F w_i| of filters (m, C, H, W) and weights (m, o, H * W), shape (m, H, W)."""
    weights = weights.reshape(*weights.shape[:2], *filters.shape[-2:])
    sizes = [torch.linalg.vector_norm(torch.fft.fft2(part, norm="ortho"), dim=1) for part in (filters, weights)]
    together: Tensor = sizes[0] * sizes[1] * math.sqrt(filters.shape[-1] * filters.shape[-2])
    return together


class CircularLinear(WholeActivation):
    """f_jo = sum_i x_j U_i w_io with circular convolutions U_i of full-length filters.

        min loss(f, y) + lam / sqrt(d) |F z|_1,   f_j = x_j . z

    is Eq. 1, lam/2 sum_i (||u_i||^2 + ||w_i||^2), of any number of filters. For several channels |F z|_1 is a sum over
    frequencies of Euclidean norms, and for several channels and outputs of nuclear norms.

    Notes
    -----
    Source: Ergen & Pilanci 2021, Implicit Convex Regularizers of CNN Architectures.
    """

    name = "circular"
    penalties = ("dense",)
    networks = "circular"

    def unpriced(self, problem: Problem) -> Program:
        patches, frequencies = spectral_patches(problem.patches)
        several = problem.patches.images.shape[1] > 1 and problem.targets.shape[1] > 1
        penalty: Penalty = SpectraPenalty() if several else DensePenalty()
        design = FourierDesign(patches, frequencies)
        return Program(design, problem.targets, problem.reg, penalty, problem.loss, intercept=problem.intercept)

    def read(self, program: Program, weights: Tensor, intercepts: Tensor | None) -> Neurons:
        design: Any = program.design
        images = design.frequencies.images(weights.squeeze(1).permute(2, 0, 1).flatten(1))
        filters, places = factored(images)
        readout = places.flatten(2).transpose(1, 2).contiguous()
        return CircularNeurons(filters.flatten(1), readout, _intercepts(program, weights, intercepts))

    def from_state(self, state: Mapping[str, Tensor]) -> Neurons:
        return CircularNeurons(state["filters"], state["readout"], state["intercept"])


class CircularRelu(Activation):
    """f_jo = sum_i s_io (x_j U_i w_i)_+ with ||u_i|| <= 1, neuron i feeding one output.

        min loss(sum_i D_i X (v_i - w_i), y) + lam sum_i (N(v_i) + N(w_i)),   N(v) = |F v|_1 / sqrt(d)
        subject to (2 D_i - I) X v_i >= 0, (2 D_i - I) X w_i >= 0

    is Eq. 1, lam/2 sum_i (||w_i||^2 + s_i^2), over the patterns D_i that the gates give: N(v) is the least ||w|| that
    makes v = U w with ||u|| <= 1.

    Notes
    -----
    Source: Ergen & Pilanci 2021, Implicit Convex Regularizers of CNN Architectures.
    """

    name = "circular_relu"
    penalties = ("group",)
    networks = "circular_relu"

    def program(self, problem: Problem, gates: Tensor) -> Program:
        patches, frequencies = spectral_patches(problem.patches)
        # Gates are images, whose responses are those of their weights over spectra.
        vectors = frequencies.weights(gates.to(patches.like).view(-1, *problem.patches.images.shape[1:]))
        return CircularReluProgram(
            CircularGatedDesign(patches, vectors, frequencies), problem.targets, problem.reg,
            FrequencyPenalty(len(frequencies)), problem.loss, Cones(patches, vectors), problem.intercept,
        )  # fmt: skip

    def unpriced(self, problem: Problem) -> Program:
        return self.program(problem, problem.patches.like.new_zeros(0, problem.patches.dim))

    def price(self, problem: Problem, **options: Any) -> PricedSolution:
        raise InputError("gates of circular networks are not priced. Use a number of gates, or EnumeratedGates().")

    def read(self, program: Program, weights: Tensor, intercepts: Tensor | None) -> Neurons:
        design: Any = program.design
        outputs = weights.shape[3]
        blocks, _, places = weights.norm(dim=2).nonzero(as_tuple=True)
        columns = weights[blocks, 0, :, places]
        # A convolution needs a channel; a neuron of zeros is the zero function.
        images = design.frequencies.images(columns if len(columns) else weights.new_zeros(1, weights.shape[2]))
        filters, hidden, readout = (
            images.new_zeros(len(images), *shape) for shape in (images.shape[1:], images.shape[2:], (1, outputs))
        )
        for number, (block, output) in enumerate(zip(blocks.tolist(), places.tolist(), strict=True)):
            own, spread = factored(images[number : number + 1])
            filters[number], hidden[number] = own[0] / own.norm(), spread[0, 0]
            readout[number, 0, output] = spread.norm() if block < design.n_gates else -spread.norm()
        return CircularReluNeurons(
            filters.flatten(1), readout, _intercepts(program, weights, intercepts), hidden.flatten(1)
        )

    def blocks(self, gates: int, penalty: Penalty) -> tuple[int, bool]:
        return 2 * gates, True

    def shapes(self, dim: int, cells: int, outputs: int) -> Shapes:
        return {**super().shapes(dim, 1, outputs), "hidden": ("m", cells)}

    def from_state(self, state: Mapping[str, Tensor]) -> Neurons:
        return CircularReluNeurons(state["filters"], state["readout"], state["intercept"], state["hidden"])
