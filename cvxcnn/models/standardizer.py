"""Channels of images shifted and scaled to mean 0 and standard deviation 1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.distributed import all_sum, size
from ..errors import InputError

__all__ = ["Standardizer"]


@dataclass(frozen=True)
class Standardizer:
    """Each channel shifted and scaled to mean 0 and standard deviation 1 over the training images.

    Attributes
    ----------
    mean, scale : Tensor, shape (C,)
        A channel that is constant keeps scale 1.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, images: Tensor, weights: Tensor | None = None) -> Standardizer:
        """Return the standardizer of images (n, C, H, W), weighted or not; of those of all processes together."""
        return cls.of_parts([images], weights)

    @classmethod
    def of_parts(cls, parts: Iterable[Tensor], weights: Tensor | None = None) -> Standardizer:
        """Return the standardizer of images that are given in parts; of weights (n,) of all of them, if given."""
        shift, seen, count, total, squares = None, 0, 0.0, torch.zeros(()), torch.zeros(())
        for part in parts:
            if shift is None:
                # Moments about a value near the mean: no digits are lost where it is large beside the deviation.
                shift = all_sum(part.mean(dim=(0, 2, 3)).double()) / size()
                total, squares = torch.zeros_like(shift), torch.zeros_like(shift)
                dtype = part.dtype
            centred = part.double() - shift[:, None, None]
            # Of each image and channel.
            own, own_squares = centred.sum(dim=(2, 3)), centred.square().sum(dim=(2, 3))
            if weights is not None:
                beside = weights[seen : seen + len(part), None].to(own)
                own, own_squares = own * beside, own_squares * beside
            number = float(len(part) if weights is None else weights[seen : seen + len(part)].sum())
            seen, count = seen + len(part), count + number * part.shape[2] * part.shape[3]
            total += own.sum(dim=0)
            squares += own_squares.sum(dim=0)
        if shift is None:
            raise InputError("there are no images to standardize.")
        sums = all_sum(torch.stack([total, squares, torch.full_like(shift, count)]))
        offset = sums[0] / sums[2]
        mean, scale = shift + offset, (sums[1] / sums[2] - offset.square()).clamp_min(0.0).sqrt()
        scale = torch.where(scale > 1e-12 * mean.abs(), scale, torch.ones_like(scale))
        return cls(mean.to(dtype), scale.to(dtype))

    def __call__(self, images: Tensor) -> Tensor:
        """Return standardized images."""
        return (images - self.mean[:, None, None]) / self.scale[:, None, None]

    def to_torch(self) -> nn.Conv2d:
        """Return the same as a 1 x 1 convolution with a group a channel; its parameters ask for no gradient."""
        count = len(self.mean)
        # A convolution of its own: folded into the next one it would be wrong at the zeros of its padding.
        layer = nn.Conv2d(count, count, 1, groups=count).to(self.mean).requires_grad_(False)
        layer.weight.copy_((1 / self.scale).view_as(layer.weight))
        if layer.bias is not None:
            layer.bias.copy_(-self.mean / self.scale)
        return layer
