"""What passes between the layers of a stack while it is trained, and what a block makes of images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .block import ConvexConvBlock

__all__ = ["Seen", "Stage", "mirrored", "twice"]


def mirrored(images: Tensor) -> Tensor:
    """Return images (n, C, H, W), each followed by its mirror image: an order that all processes have in common."""
    return torch.stack([images, images.flip(3)], dim=1).flatten(0, 1)


def twice(rows: Tensor) -> Tensor:
    """Return what belongs to images (n, ...) for each and a copy of it beside it."""
    return rows.repeat_interleave(2, dim=0)


@dataclass(frozen=True)
class Stage:
    """What a block was fitted on.

    Attributes
    ----------
    inputs : Tensor, shape (n, C, H, W)
        With ``mirror``, each image is followed by its mirror image.
    targets : Tensor, shape (n, outputs)
        What was left to fit: with ``residual``, the targets minus ``offset``.
    offset : Tensor, shape (n, outputs)
        The predictions of the layers before; zero without ``residual``.
    prediction : Tensor, shape (n, outputs)
        The block's own; zero before it is fitted.
    weights : Tensor or None, shape (n,)
        Of the images, if they have some.
    """

    inputs: Tensor
    targets: Tensor
    offset: Tensor
    prediction: Tensor
    weights: Tensor | None = None

    @classmethod
    def first(cls, images: Tensor, targets: Tensor, weights: Tensor | None = None, *, mirror: bool) -> Stage:
        """Return the first stage of a set of images: with ``mirror``, mirror images follow."""
        if mirror:
            images, targets, weights = mirrored(images), twice(targets), None if weights is None else twice(weights)
        zero = torch.zeros_like(targets)
        return cls(images, targets, zero, zero, weights)

    def after(self, block: ConvexConvBlock, prediction: Tensor | None = None) -> Stage:
        """Return the stage with the prediction of its block, which is made here if it isn't known."""
        found = block.outputs(self.inputs) if prediction is None else prediction
        return replace(self, prediction=found.to(self.targets))

    def remainder(self) -> Stage:
        """Return what the block leaves to fit."""
        return replace(self, targets=self.targets - self.prediction, offset=self.offset + self.prediction)


@dataclass(frozen=True)
class Seen:
    """What a block makes of images.

    Attributes
    ----------
    inputs : Tensor, shape (n, C, H, W)
        Its input; with ``mirror``, each image is followed by its mirror image.
    offset, outputs : ndarray, shape (n, outputs)
        The stack's predictions before it (zero without ``residual``) and with it.
    """

    inputs: Tensor
    offset: np.ndarray
    outputs: np.ndarray
