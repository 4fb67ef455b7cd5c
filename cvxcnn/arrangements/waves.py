"""Gates that are waves: of one frequency each, with random phases."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..patches.patches import Patches
from .base import GateSampler, check_count

__all__ = ["WaveGates"]


@dataclass(frozen=True)
class WaveGates(GateSampler):
    """Waves cos(2 pi (k y / kh + l x / kw) + phase) of random frequencies (k, l), a normal amplitude for each channel.

    They are the extreme points of the ball |F v|_1 <= 1 of circular networks. The entry of a bias is normal.

    Parameters
    ----------
    count : int
        Number of gates, >= 1.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> patches = Patches(torch.ones(1, 1, 1, 8), PatchGeometry(kernel_size=(1, 8)))
    >>> waves = WaveGates().sample(patches, 3, torch.Generator().manual_seed(0))
    >>> (torch.fft.rfft(waves).abs() > 1e-6).sum(dim=1).tolist()
    [1, 1, 1]
    """

    count: int = 100

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", check_count(self.count))

    def sample(self, patches: Patches, count: int, generator: torch.Generator) -> Tensor:
        """Return (count, d) gates, the same ones for a seed in every dtype and on every device."""
        height, width = patches.kernel
        channels = patches.images.shape[1]
        down = torch.randint(height, (count, 1, 1), generator=generator) / height * torch.arange(height)[:, None]
        across = torch.randint(width, (count, 1, 1), generator=generator) / width * torch.arange(width)
        turns = 2 * math.pi * (down + across).double().unsqueeze(1)
        # Amplitude and phase of each channel, as a complex normal number.
        cosine, sine = torch.randn(2, count, channels, 1, 1, generator=generator, dtype=torch.float64)
        waves = (cosine * turns.cos() + sine * turns.sin()).flatten(1)
        bias = torch.randn(count, patches.dim - waves.shape[1], generator=generator, dtype=torch.float64)
        return torch.cat([waves, bias], dim=1).to(patches.like)
