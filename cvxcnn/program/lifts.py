"""Designs without gates: every neuron of a kind at once, as one linear map from a matrix for each cell and output.

A program over them is the whole network: its dual constraint is that of every filter there is.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ..core.products import adjoint_product
from ..core.symmetric import packed
from ..patches.patches import Patches
from .design import Design

__all__ = ["LinearDesign", "QuadraticDesign", "WholeDesign"]


class WholeDesign(Design):
    """One block, which is no gate or filter: features are pooled numbers of the patches themselves."""

    networks: ClassVar[str]

    def __init__(self, patches: Patches) -> None:
        super().__init__(patches, patches.pool.new_zeros(1, patches.dim))
        self.rows = self.rows_of(patches.dim)
        self._sizes: Tensor | None = None

    @staticmethod
    @abstractmethod
    def rows_of(dim: int) -> int:
        """Return how many numbers there are of a patch of ``dim``."""

    @abstractmethod
    def _pooled(self, chunk: Tensor) -> Tensor:
        """Return the features (b, cells, rows) of patches (b, K, d)."""

    @abstractmethod
    def _lengths(self, chunk: Tensor) -> Tensor:
        """Return the length (b, K) of what is pooled of each patch."""

    @property
    def directions(self) -> Tensor:
        return self.vectors[:0]

    def on(self, patches: Patches) -> WholeDesign:
        return type(self)(patches)

    def double(self) -> WholeDesign:
        return type(self)(self.patches.astype(torch.float64))

    def columns(self, blocks: Tensor) -> Tensor:
        patches = self.patches
        features = patches.pool.new_empty(patches.n_images, 1, self.n_cells, self.rows)

        def work(share: slice) -> None:
            for rows, chunk in patches.chunks(patches.dim, share):
                features[rows, 0] = self._pooled(chunk)

        patches.map_shares(work)
        return features[:, blocks]

    def predict(self, weights: Tensor) -> Tensor:
        prediction = weights.new_empty(self.patches.n_images, weights.shape[-1])
        for rows, part in self.parts():
            prediction[rows] = part.matrix() @ weights.flatten(0, 2)
        return prediction

    def correlate(self, dual: Tensor) -> Tensor:
        total = dual.new_zeros(self.n_cells * self.rows, dual.shape[1])
        for rows, part in self.parts():
            total += adjoint_product(part.matrix(), dual[rows])
        return total.view(self.shape(dual.shape[1]))

    def mass(self, dual: Tensor) -> Tensor:
        if self._sizes is None:
            parts = [self._lengths(chunk).double() for _, chunk in self.patches.chunks(1)]
            lengths = torch.cat(parts) if parts else self.patches.pool.new_zeros(0, self.patches.n_patches).double()
            self._sizes = lengths @ self.patches.pool.double().abs().T
        mass: Tensor = self._sizes.T @ dual.double().abs()
        return mass


class QuadraticDesign(WholeDesign):
    """Pooled products Q_jc = sum_k P_ck x_jk x_jk^T, ``packed``: f_jo = sum_c <Z_co, Q_jc>."""

    networks = "quadratic"

    @staticmethod
    def rows_of(dim: int) -> int:
        return dim * (dim + 1) // 2

    def _pooled(self, chunk: Tensor) -> Tensor:
        cells = []
        for weights in self.patches.pool:
            places = weights.nonzero().flatten()
            own = chunk.index_select(1, places)
            cells.append(packed((own * weights[places][:, None]).transpose(1, 2) @ own))
        return torch.stack(cells, dim=1)

    def _lengths(self, chunk: Tensor) -> Tensor:
        return chunk.square().sum(dim=2)


class LinearDesign(WholeDesign):
    """Pooled patches sum_k P_ck x_jk: f_jo = sum_c z_co . sum_k P_ck x_jk."""

    networks = "linear"

    @staticmethod
    def rows_of(dim: int) -> int:
        return dim

    def _pooled(self, chunk: Tensor) -> Tensor:
        return self.patches.pool @ chunk

    def _lengths(self, chunk: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(chunk, dim=2)
        return lengths
