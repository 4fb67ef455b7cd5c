"""Neurons: what a solved program becomes, as numbers and as a torch module."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..patches.geometry import PatchGeometry
from ..patches.patches import Patches
from ..patches.pooling import pooling
from ..program.design import FilterDesign, SignedGatedDesign
from ..program.program import Program

__all__ = ["Neurons", "balanced", "convolution", "read_neurons", "to_module"]


@dataclass(frozen=True)
class Neurons:
    """ReLU neurons f_jo = sum_ic w_ico sum_k P_ck (x_jk . u_i)_+ + b_o.

    Attributes
    ----------
    filters : Tensor, shape (m, d)
        u_i, balanced: ||u_i|| equals the norm of its output weights.
    readout : Tensor, shape (m, cells, outputs)
        w_ico.
    intercept : Tensor, shape (outputs,)
        Zero unless asked for.
    """

    filters: Tensor
    readout: Tensor
    intercept: Tensor

    design: ClassVar[type[FilterDesign]] = FilterDesign
    """What the filters respond with."""
    response: ClassVar[tuple[str, Callable[[], nn.Module]]] = ("relu", nn.ReLU)
    """The torch module that follows the convolution, and its name."""

    def __len__(self) -> int:
        return int(self.filters.any(dim=1).sum())

    def predict(self, patches: Patches) -> Tensor:
        """Return the outputs (n, outputs)."""
        return self.design(patches, self.filters).predict(self.readout.unsqueeze(2)) + self.intercept

    def maps(
        self, patches: Patches, kept: Tensor | None = None, then: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the feature maps (n, m, H', W') that are handed on, or what ``then`` makes of those of each image.

        Of the neurons with the indices ``kept``, if they are given.
        """
        return patches.relu_maps(self.filters if kept is None else self.filters[kept], then)

    def map_modules(
        self, geometry: PatchGeometry, channels: int, kept: Tensor, number: int
    ) -> OrderedDict[str, nn.Module]:
        """Return the torch modules of ``maps``, by their names in layer ``number`` of a deep network."""
        conv, (name, module) = convolution(self.filters[kept], geometry, channels), self.response
        return OrderedDict([(f"conv{number}", conv), (f"{name}{number}", module())])

    def norms(self) -> Tensor:
        """Return how much each neuron contributes, shape (m,): ||u_i|| ||w_i||."""
        lengths: Tensor = self.filters.norm(dim=1)
        sizes: Tensor = lengths * self.readout.flatten(1).norm(dim=1)
        return sizes

    def effects(self) -> Tensor | None:
        """Return how much each neuron moves each output, averaged over the cells, (m, outputs); None if unknown."""
        return self.readout.mean(dim=1)

    def to_module(
        self, geometry: PatchGeometry, image_shape: tuple[int, int, int], *, intercept: bool
    ) -> nn.Sequential:
        """Return the torch network of these neurons, on images of a shape (C, H, W)."""
        return to_module(self, geometry, image_shape, intercept=intercept)

    @classmethod
    def layer_names(cls, number: int) -> list[str]:
        """Return the names in a deep network of the modules before pooling, flatten and linear."""
        return [f"conv{number}", f"{cls.response[0]}{number}"]

    def decay(self) -> float:
        """Return what reg multiplies in Eq. 1: half the squares of filters and readout."""
        return 0.5 * float(self.filters.square().sum() + self.readout.square().sum())

    def double(self) -> Neurons:
        """Return these neurons in float64."""
        return replace(self, **{entry.name: getattr(self, entry.name).double() for entry in fields(self)})

    def state(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return {"filters": self.filters, "readout": self.readout, "intercept": self.intercept}


def balanced(directions: Tensor, readout: Tensor, intercept: Tensor) -> Neurons:
    """Share each neuron's scale evenly between filter and output weights; directions are unit vectors."""
    if not len(directions):
        # A convolution needs a channel; a neuron of zeros is the zero function.
        shape = (1, *readout.shape[1:])
        return Neurons(directions.new_zeros(1, directions.shape[1]), readout.new_zeros(shape), intercept)
    roots = readout.flatten(1).norm(dim=1).sqrt()
    return Neurons(directions * roots[:, None], readout / roots[:, None, None], intercept)


def read_neurons(program: Program, weights: Tensor, intercepts: Tensor | None = None) -> Neurons:
    """Return the ReLU network that a solution stands for: its Eq. 1 equals the program's objective.

    v_i gives u = v_i / sqrt(||v_i||) and w = +sqrt(||v_i||); w_i gives w = -sqrt(||w_i||). With the group
    penalty each neuron feeds one (cell, output); with the dense penalty it feeds them all.

    Parameters
    ----------
    program : Program
        The ReLU program over gates, or a program over unit filters.
    weights : Tensor, shape (blocks, cells, rows, outputs)
        Feasible weights.
    intercepts : Tensor, shape (outputs,), optional
        Found by a pass over the images if they are not given.
    """
    design = program.design
    intercept = weights.new_zeros(weights.shape[3])
    if program.intercept:
        intercept = program.intercepts(design.predict(weights)) if intercepts is None else intercepts.to(weights)
    if not program.penalty.separable:
        active = weights.flatten(1).any(dim=1)
        return balanced(design.vectors[active], weights[active].squeeze(2), intercept)
    blocks, cells, outputs = weights.norm(dim=2).nonzero(as_tuple=True)
    vectors = weights[blocks, cells, :, outputs]
    if isinstance(design, SignedGatedDesign):
        lengths = vectors.norm(dim=1)
        directions, amounts = vectors / lengths[:, None], lengths * design.signs(blocks)
    else:
        directions, amounts = design.vectors[blocks], vectors[:, 0]
    readout = weights.new_zeros(len(blocks), *weights.shape[1::2])
    readout[torch.arange(len(blocks), device=blocks.device), cells, outputs] = amounts
    return balanced(directions, readout, intercept)


def convolution(filters: Tensor, geometry: PatchGeometry, channels: int) -> nn.Conv2d:
    """Return a Conv2d with the given filters (m, d), the bias in the last entry if the geometry has one."""
    kernel, stride, padding = geometry.sizes()
    layer = nn.Conv2d(channels, len(filters), kernel, stride, padding, bias=geometry.bias).to(filters)
    weight = filters[:, :-1] if geometry.bias else filters
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(filters[:, -1])
    return layer


def to_module(
    neurons: Neurons, geometry: PatchGeometry, image_shape: tuple[int, int, int], *, intercept: bool
) -> nn.Sequential:
    """Return Conv2d -> ReLU (or another response) -> pooling -> Flatten -> Linear with these neurons."""
    channels, height, width = image_shape
    conv = convolution(neurons.filters, geometry, channels)
    # Channel by channel, each with its cells: the order of Flatten.
    weight = neurons.readout.permute(2, 0, 1).flatten(1)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=intercept).to(weight)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if intercept:
            linear.bias.copy_(neurons.intercept)
    name, module = neurons.response
    pool = pooling(geometry, geometry.map_shape((height, width)), weight)
    parts = [("conv", conv), (name, module()), ("pool", pool), ("flatten", nn.Flatten()), ("linear", linear)]
    return nn.Sequential(OrderedDict(parts))
