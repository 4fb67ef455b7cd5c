"""Units of images and targets: a program in another unit is the same program, but absolute constants see no unit.

For squared loss and patches x without a constant, Eq. 1 has two symmetries,

    targets * s, reg * s        objective * s^2, readout * s
    images * s,  reg * s        objective,       readout / s   (for unit filters)

and weights of images, weights * s, reg * s, multiply the objective by s. So what has absolute tolerances (line
searches, cvxpy's solvers, float32) gets its problem near unit scale. All factors are powers of two: nothing is rounded
on the way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses import Loss
from ..patches.patches import Patches

__all__ = ["Units", "power_of_two", "unit_rows"]


def power_of_two(value: float) -> float:
    """Return the power of two that is nearest to a positive number; 1 for zero and what is not finite.

    Examples
    --------
    >>> power_of_two(1000.0), power_of_two(0.3), power_of_two(0.0)
    (1024.0, 0.25, 1.0)
    """
    if not 0 < value < math.inf:
        return 1.0
    return 2.0 ** round(math.log2(value))


def unit_rows(vectors: Tensor) -> Tensor:
    """Return rows scaled to length 1, however short they are; rows of zeros stay so.

    Examples
    --------
    >>> unit_rows(torch.tensor([[3e-15, 4e-15], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    largest = vectors.abs().amax(dim=1, keepdim=True) if vectors.shape[1] else vectors.sum(dim=1, keepdim=True)
    scaled: Tensor = vectors / largest.where(largest > 0, 1.0)
    lengths = scaled.norm(dim=1, keepdim=True)
    rows: Tensor = scaled / lengths.where(lengths > 0, 1.0)
    return rows


@dataclass(frozen=True)
class Units:
    """What images and targets are divided by.

    Attributes
    ----------
    images, targets : float
        Powers of two. Images keep their unit where patches have a constant, which is a unit of its own, and targets
        where the loss is not the squared one.
    importance : float
        What weights of images, if they have some, are divided by.
    """

    images: float = 1.0
    targets: float = 1.0
    importance: float = 1.0

    @classmethod
    def of(cls, patches: Patches, targets: Tensor, loss: Loss) -> Units:
        """Return the units in which images and targets (n, outputs) are near one."""
        images = 1.0 if patches.geometry.bias else power_of_two(_typical(patches.images))
        importance = 1.0 if loss.weights is None else power_of_two(float(loss.weights.mean()))
        return cls(images, power_of_two(_typical(targets)) if loss.quadratic else 1.0, importance)

    @property
    def objective(self) -> float:
        """What objectives and bounds are divided by."""
        return self.targets**2 * self.importance

    @property
    def reg(self) -> float:
        """What reg, and a dual norm, is divided by."""
        return self.images * self.targets * self.importance

    @property
    def weights(self) -> float:
        """What readouts of unit filters, and weights on gated patches, are divided by."""
        return self.targets / self.images

    def scaled(self, patches: Patches) -> Patches:
        """Return patches of the images in these units; the same ones if that is their unit."""
        if self.images == 1.0:
            return patches
        return Patches(patches.images.to(patches.dtype) / self.images, patches.geometry, scale=patches.scale)


def _typical(values: Tensor) -> float:
    """Return the root of the mean square."""
    length = float(torch.linalg.vector_norm(values, dtype=torch.float64))
    return length / math.sqrt(max(values.numel(), 1))
