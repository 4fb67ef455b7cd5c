"""A stack whose layers' predictions are added, or averaged over mirror images, as one torch module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["StackedCNN"]


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
