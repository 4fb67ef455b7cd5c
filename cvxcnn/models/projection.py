"""Patches of feature maps through their leading principal directions: what a deep block sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.distributed import all_sum
from ..core.products import gram_of
from ..errors import InputError
from ..patches.geometry import PatchGeometry
from ..patches.patches import Patches

__all__ = ["PatchPCA"]


def _principal(rows: Tensor, count: int, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return weights (count', d) and bias (count',) of the leading principal components of rows (N, d).

    ``importance`` (N,) is how much each row counts; None for all the same.

    They are scaled together, so that their mean variance is 1, and their relative sizes are kept: a direction in which
    patches hardly vary stays small.
    """
    rows = rows.to(torch.float64)
    root = rows.new_ones(len(rows), 1) if importance is None else importance.to(rows)[:, None].sqrt()
    total = all_sum(root.square().sum().view(1))
    mean = all_sum((rows * root.square()).sum(dim=0)) / total
    centred = (rows - mean) * root
    values, vectors = torch.linalg.eigh(all_sum(gram_of(centred)) / total)
    order = torch.argsort(values, descending=True)[:count]
    values, vectors = values[order].clamp_min(0.0), vectors[:, order]
    # The sign of an eigenvector is the library's choice; the largest entry is made positive.
    peaks = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    vectors = vectors * torch.where(peaks < 0, -1.0, 1.0)
    scale = values.mean().sqrt()
    if not scale > 1e-12 * mean.abs().max():
        raise InputError("all feature maps are constant, so they have no principal directions. Use a smaller reg.")
    weights = (vectors / scale).T.contiguous()
    return weights, -(weights @ mean)


@dataclass(frozen=True)
class PatchPCA:
    """Two fixed convolutions: maps to their principal channels, and patches of those to their principal directions.

        z_jk = V (patch_k(C m_j + c)) + b

    with the rows of C and V orthogonal and of one length each. A block with 1 x 1 filters on z is a block with filters
    in the span of V on the maps m; without the other directions, filters that are drawn at random from whitened
    patches are not dominated by noise.

    Attributes
    ----------
    channels : Tensor, shape (a, C)
    channel_bias : Tensor, shape (a,)
    directions : Tensor, shape (b, a, kh, kw)
    bias : Tensor, shape (b,)
    padding : (int, int)
        Zeros around the principal channels, which are centred, so that zero is their mean.
    """

    channels: Tensor
    channel_bias: Tensor
    directions: Tensor
    bias: Tensor
    padding: tuple[int, int]

    @classmethod
    def of(
        cls,
        maps: Tensor,
        count: int,
        kernel: tuple[int, int],
        padding: tuple[int, int],
        generator: torch.Generator,
        patches: int = 1 << 16,
        weights: Tensor | None = None,
    ) -> PatchPCA:
        """Return the projection of a sample of maps (n, C, H, W) to ``count`` channels and ``count`` directions.

        Parameters
        ----------
        maps : Tensor
            Of some of the training images; of this process's share, if there are several.
        count : int
            Channels and directions that are kept, at most.
        kernel, padding : (int, int)
            Of the patches.
        generator : torch.Generator
            Chooses the patches, on the CPU.
        patches : int
            As many patches are looked at, at most.
        weights : Tensor, shape (n,), optional
            How much each image counts.

        Raises
        ------
        InputError
            If the maps are constant.
        """
        dtype = maps.dtype
        each = None if weights is None else weights.repeat_interleave(maps.shape[2] * maps.shape[3])
        channels, shift = _principal(maps.permute(0, 2, 3, 1).flatten(0, 2), count, each)
        reduced = F.conv2d(maps.double(), channels[:, :, None, None], shift)
        sample = Patches(reduced, PatchGeometry(kernel, 1, padding))
        # The same places in every image: the choice doesn't depend on which process has which images.
        total = int(all_sum(torch.tensor([len(maps)], device=maps.device)))
        chosen = torch.randperm(sample.n_patches, generator=generator)[: max(1, patches // total)].to(maps.device)
        images = torch.arange(len(maps), device=maps.device)
        rows = sample.take(images.repeat_interleave(len(chosen)), chosen.repeat(len(maps)))
        each = None if weights is None else weights.repeat_interleave(len(chosen))
        directions, bias = _principal(rows, count, each)
        shaped = directions.view(len(directions), len(channels), *kernel)
        return cls(channels.to(dtype), shift.to(dtype), shaped.to(dtype), bias.to(dtype), padding)

    def __call__(self, maps: Tensor) -> Tensor:
        """Return the projected patches of maps (n, C, H, W), shape (n, b, H', W')."""
        reduced = F.conv2d(maps, self.channels[:, :, None, None], self.channel_bias)
        return F.conv2d(reduced, self.directions, self.bias, padding=self.padding)

    @property
    def n_directions(self) -> int:
        """Number of channels of what is given."""
        return len(self.directions)

    @property
    def geometry(self) -> PatchGeometry:
        """Kernel and padding of the patches."""
        return PatchGeometry((self.directions.shape[2], self.directions.shape[3]), 1, self.padding)

    def to_torch(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        """Return the two convolutions, whose parameters ask for no gradient."""
        count, given = self.channels.shape
        first = nn.Conv2d(given, count, 1).to(self.channels).requires_grad_(False)
        kernel = (int(self.directions.shape[2]), int(self.directions.shape[3]))
        second = nn.Conv2d(count, len(self.directions), kernel, padding=self.padding).to(self.directions)
        first.weight.copy_(self.channels[:, :, None, None])
        second.requires_grad_(False).weight.copy_(self.directions)
        for layer, bias in ((first, self.channel_bias), (second, self.bias)):
            if layer.bias is not None:
                layer.bias.copy_(bias)
        return first, second
