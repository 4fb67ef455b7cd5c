"""Gates with independent standard normal entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..patches.patches import Patches
from .base import GateSampler, check_count

__all__ = ["GaussianGates"]


@dataclass(frozen=True)
class GaussianGates(GateSampler):
    """Gates drawn from N(0, I), the usual choice (Pilanci & Ergen 2020, arXiv:2002.10553).

    Parameters
    ----------
    count : int
        Number of gates, >= 1.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> patches = Patches(torch.ones(1, 1, 4, 4), PatchGeometry(kernel_size=2))
    >>> GaussianGates().sample(patches, 3, torch.Generator().manual_seed(0)).shape
    torch.Size([3, 4])
    """

    count: int = 100

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", check_count(self.count))

    def sample(self, patches: Patches, count: int, generator: torch.Generator) -> Tensor:
        """Return (count, d) gates, the same ones for a seed in every dtype and on every device."""
        gates = torch.randn(count, patches.dim, generator=generator, dtype=torch.float64)
        return gates.to(patches.like)
