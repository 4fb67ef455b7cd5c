"""Problems that several tests share: images, targets and patches, the same for a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from cvxcnn.patches import Patches, PatchGeometry


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int | torch.Generator = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return independent standard normal numbers; those that come next, where a generator is given."""
    generator = seed if isinstance(seed, torch.Generator) else seeded(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def noise_arrays(
    n: int, side: int | tuple[int, int], *, channels: int = 1, outputs: int = 1, mean: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return normal images (n, H, W), or (n, channels, H, W), and targets (n,), or (n, outputs), of this mean."""
    random = np.random.default_rng(seed)
    sides = side if isinstance(side, tuple) else (side, side)
    images = random.normal(size=(n, *sides) if channels == 1 else (n, channels, *sides))
    return images, random.normal(size=n if outputs == 1 else (n, outputs)) + mean


def noise_tensors(
    n: int, side: int | tuple[int, int], *, channels: int = 1, outputs: int = 1, seed: int | torch.Generator = 0
) -> tuple[Tensor, Tensor]:
    """Return normal images (n, channels, H, W) and targets (n, outputs)."""
    generator = seed if isinstance(seed, torch.Generator) else seeded(seed)
    sides = side if isinstance(side, tuple) else (side, side)
    return normal(n, channels, *sides, seed=generator), normal(n, outputs, seed=generator)


def noise_patches(
    n: int,
    side: int,
    *,
    channels: int = 1,
    seed: int | torch.Generator = 0,
    dtype: torch.dtype = torch.float64,
    **geometry: Any,
) -> Patches:
    """Return the patches of normal images, 3 x 3 ones unless the geometry says otherwise."""
    return Patches(normal(n, channels, side, side, seed=seed, dtype=dtype), PatchGeometry(**geometry))


def noise_problem(
    n: int, side: int, *, channels: int = 1, outputs: int = 1, seed: int = 0, **geometry: Any
) -> tuple[Patches, Tensor]:
    """Return the patches of normal images, and normal targets."""
    images, targets = noise_tensors(n, side, channels=channels, outputs=outputs, seed=seed)
    return Patches(images, PatchGeometry(**geometry)), targets


def dual_problem(
    seed: int,
    kernel: tuple[int, int],
    outputs: int = 1,
    cells: int = 1,
    *,
    n: int = 8,
    bias: bool = False,
    size: tuple[int, int] | None = None,
) -> tuple[Patches, Tensor]:
    """Return patches, averaged in cells, and a dual point, for which pricing looks for the worst direction.

    Images are as large as gives cells of two patches a side, unless ``size`` is given.
    """
    images, dual = noise_tensors(n, size or (kernel[0] + cells, kernel[1] + cells), outputs=outputs, seed=seed)
    return Patches(images, PatchGeometry(kernel, pool_cells=cells, pooling="mean", bias=bias)), dual


def digits(count: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Return the first digits of so many classes, images (count, 8, 8) of pixels in [0, 1], and their labels."""
    images, labels = load_digits(n_class=classes, return_X_y=True)
    return images[:count].reshape(-1, 8, 8) / 16, labels[:count]


def two_digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first threes and eights, images (count, 8, 8) and targets 1 and -1."""
    images, labels = digits(1797)
    chosen = np.flatnonzero((labels == 3) | (labels == 8))[:count]
    return images[chosen], np.where(labels[chosen] == 3, 1.0, -1.0)
