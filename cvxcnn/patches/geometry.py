"""How images are cut into patches, and into how many cells their feature maps are pooled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..core.checks import as_flag, as_int, is_int
from ..errors import InputError
from .pooling import get_pooling

__all__ = ["PatchGeometry"]


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    pair: Any = value if isinstance(value, (tuple, list)) or np.ndim(value) == 1 else (value, value)
    if len(pair) != 2 or not all(is_int(side, least) for side in pair):
        raise InputError(f"{name} must be an int >= {least} or a pair of them; got {value!r}.")
    return int(pair[0]), int(pair[1])


@dataclass(frozen=True)
class PatchGeometry:
    """How images are cut into patches and how feature maps are pooled into cells.

    Parameters
    ----------
    kernel_size : int or (int, int)
        Height and width of a patch, in pixels.
    stride : int or (int, int)
        Step between patches, in pixels.
    padding : int or (int, int)
        Zeros added on each side, in pixels.
    pooling : {"mean", "sum", "bilinear", "max"}
        Whether a cell adds its patches' responses, averages them or takes the largest; or the name of another one in
        ``POOLINGS``.
    pool_cells : int
        Each feature map is pooled into a ``pool_cells`` x ``pool_cells`` grid, cut as by
        ``torch.nn.AdaptiveAvgPool2d`` (neighbouring cells overlap where the side is not a multiple).
    bias : bool
        Append a constant 1 to every patch.

    Raises
    ------
    InputError
        If a value is out of its range.

    Examples
    --------
    >>> PatchGeometry(kernel_size=3, padding=1).map_shape((8, 8))
    (8, 8)
    """

    kernel_size: int | tuple[int, int] = 3
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 0
    pooling: str = "sum"
    pool_cells: int = 1
    bias: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel_size", _pair("kernel_size", self.kernel_size, 1))
        object.__setattr__(self, "stride", _pair("stride", self.stride, 1))
        object.__setattr__(self, "padding", _pair("padding", self.padding, 0))
        get_pooling(self.pooling)
        object.__setattr__(self, "pool_cells", as_int("pool_cells", self.pool_cells))
        object.__setattr__(self, "bias", as_flag("bias", self.bias))

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        # __post_init__ has made pairs of them; this tells the type checker.
        return (
            _pair("kernel_size", self.kernel_size, 1),
            _pair("stride", self.stride, 1),
            _pair("padding", self.padding, 0),
        )

    def map_shape(self, image_shape: tuple[int, int]) -> tuple[int, int]:
        """Return the (H', W') of the feature maps of images of height and width ``image_shape``."""
        kernel, stride, padding = self.sizes()
        sides = []
        for size, k, s, p in zip(image_shape, kernel, stride, padding, strict=True):
            if k > size + 2 * p:
                raise InputError(
                    f"kernel_size {kernel} is larger than the padded image: images are {tuple(image_shape)}, "
                    f"padding is {padding}. Use a smaller kernel or more padding."
                )
            sides.append((size + 2 * p - k) // s + 1)
        if self.pool_cells > min(sides):
            raise InputError(
                f"pool_cells={self.pool_cells} needs feature maps of at least that side; they are "
                f"{sides[0]} x {sides[1]}. Use fewer cells or more padding."
            )
        return sides[0], sides[1]

    def pool_matrix(self, image_shape: tuple[int, int]) -> Tensor:
        """Return the (cells, K) float64 matrix that pools the K responses of one image into its cells."""
        return get_pooling(self.pooling).weights(self.map_shape(image_shape), self.pool_cells)
