"""A stack as torch modules: what its layers become, and the sum or the average of their predictions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..activations import Neurons
from ..activations.neurons import convolution
from ..errors import InputError
from .block import ConvexConvBlock
from .projection import PatchPCA
from .standardizer import Standardizer

__all__ = ["StackedCNN", "input_modules", "map_modules", "rival_head"]


class StackedCNN(nn.Module):
    """The sum of the blocks' predictions, averaged over images and their mirror images where that was asked for.

    Parameters
    ----------
    inputs : sequence of nn.Module
        What each block's input goes through: fixed convolutions.
    heads : sequence of nn.Module
        Each block's own prediction from its input.
    maps : sequence of nn.Module
        What each block but the last hands on, from its input.
    add : bool
        Whether the predictions are added; otherwise the last head alone predicts.
    mirror : bool
        Whether predictions are averaged over mirror images.
    """

    def __init__(
        self,
        inputs: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        maps: Sequence[nn.Module],
        *,
        add: bool,
        mirror: bool,
    ) -> None:
        super().__init__()
        self.inputs, self.heads, self.maps = nn.ModuleList(inputs), nn.ModuleList(heads), nn.ModuleList(maps)
        self.add, self.mirror = add, mirror

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs (n, outputs) of images (n, C, H, W)."""
        values = torch.cat([images, images.flip(3)]) if self.mirror else images
        outputs: Tensor | None = None
        for layer, (prepare, head) in enumerate(zip(self.inputs, self.heads, strict=True)):
            if layer:
                values = self.maps[layer - 1](values)
            values = prepare(values)
            if self.add or layer + 1 == len(self.heads):
                prediction: Tensor = head(values)
                outputs = prediction if outputs is None else outputs + prediction
        if outputs is None:
            raise ValueError("a stack has one head at least")
        if not self.mirror:
            return outputs
        straight, mirrored = outputs.tensor_split(2)
        return (straight + mirrored) / 2


def input_modules(standardizer: Standardizer | PatchPCA | None, number: int) -> OrderedDict[str, nn.Module]:
    """Return what the input of block ``number`` (from 1) goes through."""
    if standardizer is None:
        return OrderedDict()
    if isinstance(standardizer, Standardizer):
        return OrderedDict({f"standardize{number}": standardizer.to_torch()})
    channels, patches = standardizer.to_torch()
    return OrderedDict({f"channels{number}": channels, f"patches{number}": patches})


def map_modules(block: ConvexConvBlock, kept: Tensor, step: int, number: int) -> OrderedDict[str, nn.Module]:
    """Return what block ``number`` (from 1) hands on, from its input: the pooled maps of the neurons that are kept."""
    filters = block.neurons_.filters[kept]
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    modules[f"conv{number}"] = convolution(filters, block.geometry_, block.image_shape_[0])
    modules[f"relu{number}"] = nn.ReLU()
    if step > 1:
        modules[f"downsample{number}"] = nn.AvgPool2d(step)
    return modules


def rival_head(neurons: Neurons, block: ConvexConvBlock) -> nn.Sequential:
    """Return the network of neurons in place of a block's own.

    Raises
    ------
    InputError
        If they don't fit its inputs and outputs.
    """
    own = block.neurons_
    if neurons.filters.shape[1] != own.filters.shape[1] or neurons.readout.shape[1:] != own.readout.shape[1:]:
        raise InputError(
            f"neurons must have filters (m, {own.filters.shape[1]}) and a readout (m, {own.readout.shape[1]}, "
            f"{own.readout.shape[2]}), as the block in their place; got {tuple(neurons.filters.shape)} and "
            f"{tuple(neurons.readout.shape)}."
        )
    return neurons.to_module(block.geometry_, block.image_shape_, intercept=bool(neurons.intercept.any()))
