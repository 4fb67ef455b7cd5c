"""How the responses of a feature map are pooled into cells; a new pooling is one class and one entry here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .cells import cell_bounds
from .poolers import LargestPooler, Pooler, TiledPooler, WeightedPooler

if TYPE_CHECKING:
    from .geometry import PatchGeometry

__all__ = [
    "POOLINGS",
    "BilinearPooling",
    "CellSum",
    "CellWeights",
    "MaxPooling",
    "MeanPooling",
    "Pooling",
    "SumPooling",
    "cell_bounds",
    "get_pooling",
    "pooling",
]


class Pooling(ABC):
    """How a grid of cells is made of feature maps; a new one defines ``weights`` and is entered in ``POOLINGS``.

    A linear pooling is its weights, and what rounding may add to a program is measured by weights that are not
    negative. One that isn't linear, as ``MaxPooling``, has a ``pooler`` of its own, and its ``weights`` refuse.

    Attributes
    ----------
    name : str
        That ``pooling=`` takes.
    averages : bool
        Whether equal responses are pooled to the same number, however many places a cell has.
    linear : bool
        Whether there are weights.

    Examples
    --------
    >>> class FirstPooling(Pooling):
    ...     name = "first"
    ...     averages = True
    ...
    ...     def weights(self, map_shape, cells, dtype=torch.float64, device="cpu"):
    ...         rows, columns = (
    ...             torch.eye(side, dtype=dtype, device=device)[[start for start, _ in cell_bounds(side, cells)]]
    ...             for side in map_shape
    ...         )
    ...         return torch.kron(rows, columns)
    >>> FirstPooling().module((2, 4), 2, torch.ones(1))(torch.arange(8.0).view(1, 1, 2, 4)).tolist()
    [[[[0.0, 2.0], [4.0, 6.0]]]]
    """

    name: str
    averages: bool
    linear: bool = True

    @abstractmethod
    def weights(
        self,
        map_shape: tuple[int, int],
        cells: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return the weights P_ck of the K places of a map in its cells, shape (cells * cells, K), none negative.

        A pooling that has none, because it isn't linear, raises InputError and says what can be used instead.

        Parameters
        ----------
        map_shape : (int, int)
            H' and W' of the maps; K = H' W'.
        cells : int
            The grid is ``cells`` x ``cells``.
        dtype : torch.dtype
        device : torch.device or str
        """

    def pooler(
        self, map_shape: tuple[int, int], cells: int, scale: float, dtype: torch.dtype, device: torch.device
    ) -> Pooler:
        """Return what pools responses, in the dtype and on the device of theirs, and multiplies them by a scale."""
        weights = (scale * self.weights(map_shape, cells)).to(device, dtype)
        size = _even(map_shape, cells)
        if size is None or self.constant(size[0] * size[1]) is None:
            return WeightedPooler(weights)
        return TiledPooler(weights, map_shape, cells)

    def constant(self, places: int) -> float | None:
        """Return the weight that every place has in a cell of so many; None if they differ in theirs."""
        return None

    def module(self, map_shape: tuple[int, int], cells: int, like: Tensor) -> nn.Module:
        """Return the module that pools (n, m, H', W') maps to (n, m, cells, cells), for numbers that are like these."""
        return CellWeights(self.weights(map_shape, cells, like.dtype, like.device))


class SumPooling(Pooling):
    """Each cell adds its responses."""

    name = "sum"
    averages = False

    def weights(
        self,
        map_shape: tuple[int, int],
        cells: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return ones for the places of each cell."""
        rows, columns = (_members(side, cells) for side in map_shape)
        return torch.kron(rows, columns).to(device, dtype)

    def constant(self, places: int) -> float:
        """Return one."""
        return 1.0

    def module(self, map_shape: tuple[int, int], cells: int, like: Tensor) -> nn.Module:
        """Return an average pooling without its division; ``CellSum`` where cells are not of one size."""
        size = _even(map_shape, cells)
        if size is not None:
            return nn.AvgPool2d(size, divisor_override=1)
        height, width = (_members(side, cells).sum(dim=1) for side in map_shape)
        return CellSum(cells, torch.outer(height, width).to(like))


class MeanPooling(Pooling):
    """Each cell averages its responses."""

    name = "mean"
    averages = True

    def weights(
        self,
        map_shape: tuple[int, int],
        cells: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return one over a cell's number of places for each of them."""
        members = (_members(side, cells) for side in map_shape)
        rows, columns = (axis / axis.sum(dim=1, keepdim=True) for axis in members)
        return torch.kron(rows, columns).to(device, dtype)

    def constant(self, places: int) -> float:
        """Return one over the number of places."""
        return 1.0 / places

    def module(self, map_shape: tuple[int, int], cells: int, like: Tensor) -> nn.Module:
        """Return torch's own average pooling."""
        size = _even(map_shape, cells)
        return nn.AdaptiveAvgPool2d(cells) if size is None else nn.AvgPool2d(size)


class BilinearPooling(Pooling):
    """Each cell averages with weights that fall linearly from its centre to the centres of its neighbours.

        P_ck = h_c(k) / sum_l h_c(l)

    with h_c the hat that ``F.interpolate`` spreads a one in cell c to with ``mode="bilinear"``. So output weights vary
    continuously over the map in place of jumping from cell to cell, and a response that moves by a pixel counts nearly
    the same. (Pooling that overlaps: Krizhevsky, Sutskever & Hinton 2012; with smooth weights: Mairal, Koniusz,
    Harchaoui & Schmid 2014, arXiv:1406.3332.)

    Examples
    --------
    >>> weights = BilinearPooling().weights((4, 4), 2).view(2, 2, 4, 4)
    >>> weights[0, 0].sum(dim=0).tolist(), weights[0, 1].sum(dim=0).tolist()  # two cells of the first row
    ([0.5, 0.375, 0.125, 0.0], [0.0, 0.125, 0.375, 0.5])
    """

    name = "bilinear"
    averages = True

    def weights(
        self,
        map_shape: tuple[int, int],
        cells: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return the shares of the places in each cell, which add up to one."""
        rows, columns = (_interpolated(side, cells) for side in map_shape)
        return torch.kron(rows, columns).to(device, dtype)


class MaxPooling(Pooling):
    """Each cell takes its largest response: that of the winner among its patches, another for every filter.

    A filter u responds in cell c with max_{k in c} (x_jk . u)_+. That is homogeneous and convex in u like a sum of
    ReLUs, and linear where pattern and winners stay what they are, so that filters are priced, and Eq. 2 holds, as for
    sums (Ergen & Pilanci 2021, Implicit Convex Regularizers of CNN Architectures).
    """

    name = "max"
    averages = True
    linear = False

    def weights(
        self,
        map_shape: tuple[int, int],
        cells: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Raise InputError: there are none."""
        raise InputError(
            'pooling="max" is not linear and has no weights of the places of a map, which what was asked for is '
            'computed with. Use pooling="mean", "sum" or "bilinear".'
        )

    def pooler(
        self, map_shape: tuple[int, int], cells: int, scale: float, dtype: torch.dtype, device: torch.device
    ) -> Pooler:
        """Return the pooler of winners."""
        return LargestPooler(map_shape, cells, scale, device)

    def module(self, map_shape: tuple[int, int], cells: int, like: Tensor) -> nn.Module:
        """Return torch's own max pooling."""
        size = _even(map_shape, cells)
        return nn.AdaptiveMaxPool2d(cells) if size is None else nn.MaxPool2d(size)


POOLINGS: dict[str, type[Pooling]] = {
    pooling.name: pooling for pooling in (MeanPooling, SumPooling, BilinearPooling, MaxPooling)
}


def get_pooling(name: str) -> Pooling:
    """Return the pooling of that name.

    Raises
    ------
    InputError
        If there is none.
    """
    if not isinstance(name, str) or name not in POOLINGS:
        *others, last = (f'"{known}"' for known in POOLINGS)
        raise InputError(f"pooling must be {', '.join(others)} or {last}; got {name!r}.")
    return POOLINGS[name]()


def pooling(geometry: PatchGeometry, map_shape: tuple[int, int], like: Tensor) -> nn.Module:
    """Return the module that pools (n, m, H', W') maps into cells, a standard one where there is one."""
    return get_pooling(geometry.pooling).module(map_shape, geometry.pool_cells, like)


class CellSum(nn.Module):
    """Sum of each feature map over a grid of cells, for maps whose sides are not multiples of the grid.

    Parameters
    ----------
    cells : int
        The grid is ``cells`` x ``cells``, cut as by ``nn.AdaptiveAvgPool2d``.
    sizes : Tensor, shape (cells, cells)
        Positions in each cell.
    """

    def __init__(self, cells: int, sizes: Tensor) -> None:
        super().__init__()
        self.cells = cells
        self.sizes: Tensor
        self.register_buffer("sizes", sizes)

    def forward(self, maps: Tensor) -> Tensor:
        """Return (n, m, cells, cells) sums of (n, m, H', W') maps."""
        return F.adaptive_avg_pool2d(maps, self.cells) * self.sizes


class CellWeights(nn.Module):
    """Weighted sums of each feature map over a square grid of cells.

    Parameters
    ----------
    weights : Tensor, shape (cells * cells, K)
        Of the places of a map in each cell.
    """

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.cells = round(len(weights) ** 0.5)
        self.weights: Tensor
        self.register_buffer("weights", weights)

    def forward(self, maps: Tensor) -> Tensor:
        """Return (n, m, cells, cells) sums of (n, m, H', W') maps."""
        return (maps.flatten(2) @ self.weights.T).view(*maps.shape[:2], self.cells, self.cells)


def _members(length: int, cells: int) -> Tensor:
    """Return which places of one axis are in which of its cells, (cells, length) of zeros and ones."""
    members = torch.zeros(cells, length, dtype=torch.float64)
    for cell, (start, stop) in enumerate(cell_bounds(length, cells)):
        members[cell, start:stop] = 1.0
    return members


def _interpolated(length: int, cells: int) -> Tensor:
    """Return the share of each place of one axis in each of its cells, (cells, length): hats around their centres."""
    places = (torch.arange(length, dtype=torch.float64) + 0.5) * (cells / length) - 0.5
    distances = (places.clamp(0, cells - 1) - torch.arange(cells, dtype=torch.float64)[:, None]).abs()
    hats = (1.0 - distances).clamp_min(0.0)
    return hats / hats.sum(dim=1, keepdim=True)


def _even(map_shape: tuple[int, int], cells: int) -> tuple[int, int] | None:
    """Return height and width of the cells if they are all of one size, and don't overlap."""
    height, width = map_shape
    return None if height % cells or width % cells else (height // cells, width // cells)
