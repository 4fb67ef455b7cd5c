"""How the responses of the places of a map are pooled into cells, and how slopes in the cells lead back to them.

A linear pooling is a matrix of weights P_ck. Max pooling has none: which place of a cell counts, its winner, is another
for every image and filter, so that all that assumes weights must refuse it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .activity import active, winning
from .cells import cell_bounds

__all__ = ["LargestPooler", "Pooler", "TiledPooler", "WeightedPooler"]


def _let_through(slopes: Tensor, responses: Tensor) -> Tensor:
    """Return the slopes where responses are positive, and zero elsewhere, in the memory of the responses."""
    passed: Tensor = torch.ops.aten.threshold_backward.grad_input(slopes, responses, 0, grad_input=responses)
    return passed


class Pooler(ABC):
    """Pools rectified responses (b, K, m) of the K places of a map into its cells, (b, cells, m)."""

    linear: ClassVar[bool]
    """Whether the pooled responses are a matrix times the responses, whatever these are."""

    @abstractmethod
    def pool(self, responses: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled responses, and what ``spread`` needs to know of them."""

    @abstractmethod
    def spread(self, slopes: Tensor, trace: Tensor) -> Tensor:
        """Return slopes (b, K, m) in the responses before their ReLU, of slopes (b, cells, m) in the pooled ones.

        They may be written over the trace: memory that is taken afresh costs as much as a product with short patches.
        """

    @abstractmethod
    def members(self) -> list[Tensor]:
        """Return the places of each cell, which are all that it sees."""

    @abstractmethod
    def cell(self, cell: int) -> Pooler:
        """Return what pools the places of one cell, given alone and in order, into it."""

    @abstractmethod
    def parts(self, chunk: Tensor, gates: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return (places, weights, pattern) of each cell, on which its pooled responses are linear in the filter.

        A filter u with the pattern of a gate has the response sum_k weights_k pattern_jk x_jk . u there.

        Parameters
        ----------
        chunk : Tensor, shape (b, K, d)
            Patches.
        gates : Tensor, shape (P, d)

        Returns
        -------
        list of (Tensor of int, shape (k,), Tensor, shape (k,), Tensor of bool, shape (b, k, P))
        """

    @abstractmethod
    def patterns(self, chunk: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Return all that a program sees of gates: patches (N, d), and which of them are on for a gate, bool (N, P)."""

    @abstractmethod
    def boundaries(self, chunk: Tensor) -> Tensor:
        """Return normals (N, d) of the hyperplanes that bound the patterns of patches (b, K, d)."""


class WeightedPooler(Pooler):
    """Weighted sums, by ``weights`` (cells, K)."""

    linear = True

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def pool(self, responses: Tensor) -> tuple[Tensor, Tensor]:
        return self.weights @ responses, responses

    def spread(self, slopes: Tensor, trace: Tensor) -> Tensor:
        # Responses are positive exactly where the ReLU lets a slope through.
        return _let_through(self.weights.T @ slopes, trace)

    def members(self) -> list[Tensor]:
        return [weights.nonzero().flatten() for weights in self.weights]

    def cell(self, cell: int) -> Pooler:
        return WeightedPooler(self.weights[cell : cell + 1, self.weights[cell].nonzero().flatten()])

    def parts(self, chunk: Tensor, gates: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        patterns = active(chunk, gates)
        return [
            (places, weights[places], patterns[:, places])
            for places, weights in zip(self.members(), self.weights, strict=True)
        ]

    def patterns(self, chunk: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        flat = chunk.flatten(0, 1)
        return flat, active(flat, gates)

    def boundaries(self, chunk: Tensor) -> Tensor:
        return chunk.flatten(0, 1)


class TiledPooler(WeightedPooler):
    """Sums over cells of one size that don't overlap, all places with the same weight.

    Parameters
    ----------
    weights : Tensor, shape (cells * cells, K)
    map_shape : (int, int)
        H' and W', multiples of ``cells``.
    cells : int
        The grid is ``cells`` x ``cells``.

    Examples
    --------
    >>> pooler = TiledPooler(torch.tensor([[2.0, 2.0]]), (1, 2), 1)
    >>> pooler.spread(torch.tensor([[[3.0]]]), torch.tensor([[[1.0], [0.0]]])).flatten().tolist()
    [6.0, 0.0]
    """

    def __init__(self, weights: Tensor, map_shape: tuple[int, int], cells: int) -> None:
        super().__init__(weights)
        self.tiles = (cells, map_shape[0] // cells, cells, map_shape[1] // cells)
        self.weight = weights.amax()

    def spread(self, slopes: Tensor, trace: Tensor) -> Tensor:
        # Places read the slope of their cell where it lies: a product with the weights costs as much as all the rest.
        cells, count = self.tiles[0], slopes.shape[2]
        inside = trace.view(-1, *self.tiles, count)
        of_cells = (slopes * self.weight).view(-1, cells, 1, cells, 1, count).expand_as(inside)
        return _let_through(of_cells, inside).view_as(trace)


class LargestPooler(Pooler):
    """The largest response of each cell, times a scale; of equal ones the first.

    Parameters
    ----------
    map_shape : (int, int)
        H' and W'.
    cells : int
        The grid is ``cells`` x ``cells``.
    scale : float
    device : torch.device

    Examples
    --------
    >>> pooler = LargestPooler((1, 4), 1, 1.0, torch.device("cpu"))
    >>> pooled, winners = pooler.pool(torch.tensor([[[0.0], [2.0], [3.0], [0.0]]]))
    >>> pooled.item(), pooler.spread(torch.tensor([[[5.0]]]), winners).flatten().tolist()
    (3.0, [0.0, 0.0, 5.0, 0.0])
    """

    linear = False

    def __init__(self, map_shape: tuple[int, int], cells: int, scale: float, device: torch.device) -> None:
        self.map_shape, self.cells, self.scale = map_shape, cells, scale
        # Which of its places a cell has is a question of each axis alone, as ``cell_bounds`` cuts it.
        places = torch.arange(map_shape[0] * map_shape[1], device=device).view(map_shape)
        self._members = [
            places[top:bottom, left:right].flatten()
            for top, bottom in cell_bounds(map_shape[0], cells)
            for left, right in cell_bounds(map_shape[1], cells)
        ]

    def pool(self, responses: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled responses, and the place (b, cells, m) of each winner, -1 where there is none."""
        maps = responses.view(len(responses), *self.map_shape, responses.shape[2]).permute(0, 3, 1, 2)
        largest, places = F.adaptive_max_pool2d(maps, self.cells, return_indices=True)
        pooled, winners = (values.flatten(2).transpose(1, 2) for values in (largest, places))
        return pooled * self.scale, winners.masked_fill(pooled <= 0, -1)

    def spread(self, slopes: Tensor, trace: Tensor) -> Tensor:
        spread = slopes.new_zeros(len(slopes), self.map_shape[0] * self.map_shape[1], slopes.shape[2])
        return spread.scatter_add_(1, trace.long().clamp_min(0), self.scale * slopes * (trace >= 0))

    def members(self) -> list[Tensor]:
        return self._members

    def cell(self, cell: int) -> Pooler:
        height, width = (
            bounds[index][1] - bounds[index][0]
            for bounds, index in zip(
                (cell_bounds(side, self.cells) for side in self.map_shape), divmod(cell, self.cells), strict=True
            )
        )
        return LargestPooler((height, width), 1, self.scale, self._members[0].device)

    def parts(self, chunk: Tensor, gates: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return the winners of each cell as patterns: at most one place of each image and gate is on."""
        return [
            (places, chunk.new_full((len(places),), self.scale), winning(chunk[:, places], gates))
            for places in self._members
        ]

    def patterns(self, chunk: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patches cell by cell, and the winners among them."""
        cells = [chunk[:, places] for places in self._members]
        patterns = [winning(cell, gates).flatten(0, 1) for cell in cells]
        return torch.cat([cell.flatten(0, 1) for cell in cells]), torch.cat(patterns)

    def boundaries(self, chunk: Tensor) -> Tensor:
        """Return the patches, and the differences of those of one cell, where a winner gives way to another."""
        rows = [chunk.flatten(0, 1)]
        for places in self._members:
            first, second = torch.triu_indices(len(places), len(places), 1, device=chunk.device)
            rows.append((chunk[:, places[first]] - chunk[:, places[second]]).flatten(0, 1))
        return torch.cat(rows)
