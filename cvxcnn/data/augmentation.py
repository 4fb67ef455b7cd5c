"""Copies of images that are shifted by a few pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.checks import as_int

__all__ = ["moved", "shifted"]


def shifted(images: Tensor, seed: int, first: int = 0, fraction: float = 0.125) -> Tensor:
    """Return a copy of each image that is shifted by some pixels, uniformly in both directions.

    What comes into view repeats the edge. The shift of an image depends on the seed and on its number alone.

    Parameters
    ----------
    images : Tensor, shape (n, C, H, W)
    seed : int
        >= 0.
    first : int
        Number of the first image.
    fraction : float
        Of the sides, the largest shift; in (0, 1). It is one pixel at least.

    Examples
    --------
    >>> shifted(torch.ones(2, 1, 4, 4), seed=0).shape
    torch.Size([2, 1, 4, 4])
    """
    seed, first = as_int("seed", seed, 0), as_int("first", first, 0)
    most = [max(1, int(float(fraction) * side)) for side in images.shape[2:]]
    copies = torch.empty_like(images)
    for index, image in enumerate(images):
        draw = np.random.default_rng((seed, first + index))
        down, right = (int(draw.integers(-m, m + 1)) for m in most)
        copies[index] = moved(image, down, right)
    return copies


def moved(images: Tensor, down: int, right: int) -> Tensor:
    """Return what comes into view of images (..., H, W) from so many pixels further down and to the right.

    Beyond the edge, the edge is repeated.

    Examples
    --------
    >>> moved(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), down=1, right=0).tolist()
    [[3.0, 4.0], [3.0, 4.0]]
    """
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) + down).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + right).clamp(0, width - 1)
    return images[..., rows, :][..., columns]
