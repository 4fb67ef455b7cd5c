"""Designs: the features that a program's weights multiply, never stored for all blocks at once.

A design maps weights of shape (blocks, cells, rows, outputs) to predictions (n, outputs) for the images of this
process. Three kinds: gated patches (rows = d), the same with both signs (the ReLU program), and ReLU responses
(rows = 1); any of them with each image scaled, or with the outputs stacked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from ..core.products import adjoint_product
from ..patches.patches import Patches

__all__ = ["Design", "FilterDesign", "GatedDesign", "KeptDesign", "ScaledDesign", "SignedGatedDesign", "StackedDesign"]


# Features of so many bytes are held at once where a sum over images is formed in parts.
PART_BYTES_CPU = 1 << 27
PART_BYTES_GPU = 1 << 30
# Features up to this many bytes are kept where a path needs them again and again.
KEPT_BYTES = 1 << 30


class Design(ABC):
    """A linear map from weights (blocks, cells, rows, outputs) to predictions (n, outputs).

    Parameters
    ----------
    patches : Patches
        The training patches.
    vectors : Tensor, shape (blocks, d)
        One gate or one filter for each block.
    """

    rows: int
    directions_are: ClassVar[str] = "filters"
    """What pricing looks for where there are not enough of them: an entry of ``pricing.search.SEARCHES``."""
    networks: ClassVar[str] = "all"
    """The kind of networks that it is of: "all" or "gated" (``pricing.certificate.NETWORKS``)."""
    rows_per_image: int = 1
    """Rows of the prediction that an image has."""

    def __init__(self, patches: Patches, vectors: Tensor) -> None:
        self.patches = patches
        self.vectors = vectors
        self.n_blocks = len(vectors)
        self.n_cells = patches.n_cells

    @property
    def directions(self) -> Tensor:
        """The gates or filters, each once, shape (P, d)."""
        return self.vectors

    @abstractmethod
    def columns(self, blocks: Tensor) -> Tensor:
        """Return the features of these blocks, shape (n, len(blocks), cells, rows)."""

    def on(self, patches: Patches) -> Design:
        """Return this design on other images."""
        raise TypeError(f"a {type(self).__name__} belongs to its images")

    def subset(self, images: slice) -> Design:
        """Return this design on consecutive images, which it shares."""
        return self.on(self.patches.subset(images))

    def constant(self) -> Tensor:
        """Return what an intercept of one adds to the prediction, shape (n,)."""
        return self.patches.like.new_ones(self.patches.n_images)

    def parts(self) -> Iterator[tuple[slice, Design]]:
        """Yield (rows of the prediction, design of their images), as many as have features of ``PART_BYTES``."""
        total = self.patches.n_images
        most = PART_BYTES_CPU if self.patches.images.device.type == "cpu" else PART_BYTES_GPU
        width = self.n_blocks * self.n_cells * self.rows * self.rows_per_image * self.patches.like.element_size()
        largest = max(1, most // max(width, 1))
        for start in range(0, total, largest):
            stop = min(start + largest, total)
            rows = slice(start * self.rows_per_image, stop * self.rows_per_image)
            yield rows, self if stop - start == total else self.subset(slice(start, stop))

    def matrix(self) -> Tensor:
        """Return the features of all blocks as a matrix, shape (n, blocks * cells * rows)."""
        return self.columns(torch.arange(self.n_blocks, device=self.vectors.device)).flatten(1)

    @abstractmethod
    def predict(self, weights: Tensor) -> Tensor:
        """Return the prediction (n, outputs) of weights for all blocks."""

    @abstractmethod
    def correlate(self, dual: Tensor) -> Tensor:
        """Return the adjoint, sum_j features_j nu_j, shape (blocks, cells, rows, outputs)."""

    def mass(self, dual: Tensor) -> Tensor:
        """Return sum_jk |nu_jo| P_ck ||x_jk||, shape (cells, outputs): A^T nu can't be longer."""
        return self.patches.lengths().T @ dual.double().abs()

    def double(self) -> Design:
        """Return this design in float64."""
        return type(self)(self.patches.astype(torch.float64), self.vectors.double())

    def shape(self, outputs: int) -> tuple[int, int, int, int]:
        """Return the shape of the weights."""
        return self.n_blocks, self.n_cells, self.rows, outputs


class GatedDesign(Design):
    """Gated patches phi = sum_k P_ck D_jk^i x_jk; a block is a gate."""

    directions_are = "gates"
    networks = "gated"

    def __init__(self, patches: Patches, gates: Tensor) -> None:
        super().__init__(patches, gates)
        self.rows = patches.dim

    def on(self, patches: Patches) -> GatedDesign:
        return GatedDesign(patches, self.vectors)

    def columns(self, blocks: Tensor) -> Tensor:
        return self.patches.gated_features(self.vectors[blocks])

    def predict(self, weights: Tensor) -> Tensor:
        active = weights.flatten(1).any(dim=1).nonzero().flatten()
        if not len(active):
            return weights.new_zeros(self.patches.n_images, weights.shape[-1])
        return self.patches.gated_prediction(self.vectors[active], weights[active])

    def correlate(self, dual: Tensor) -> Tensor:
        return self.patches.gated_correlation(self.vectors, dual)


class SignedGatedDesign(Design):
    """Gated patches with both signs: blocks 0..P-1 are the v_i of the ReLU program, P..2P-1 its w_i."""

    def __init__(self, patches: Patches, gates: Tensor) -> None:
        super().__init__(patches, torch.cat([gates, gates]))
        self.n_gates = len(gates)
        self.rows = patches.dim
        self._unsigned = GatedDesign(patches, gates)

    @property
    def directions(self) -> Tensor:
        return self.vectors[: self.n_gates]

    def double(self) -> SignedGatedDesign:
        return SignedGatedDesign(self.patches.astype(torch.float64), self.directions.double())

    def on(self, patches: Patches) -> SignedGatedDesign:
        return SignedGatedDesign(patches, self.directions)

    def signs(self, blocks: Tensor) -> Tensor:
        """Return +1 for blocks of positive output weight and -1 for the others, float, shape (len(blocks),)."""
        return torch.where(blocks < self.n_gates, 1.0, -1.0).to(self.vectors)

    def columns(self, blocks: Tensor) -> Tensor:
        features = self._unsigned.columns(blocks % self.n_gates)
        return features * self.signs(blocks)[:, None, None]

    def predict(self, weights: Tensor) -> Tensor:
        return self._unsigned.predict(weights[: self.n_gates] - weights[self.n_gates :])

    def correlate(self, dual: Tensor) -> Tensor:
        correlation = self._unsigned.correlate(dual)
        return torch.cat([correlation, -correlation])


class FilterDesign(Design):
    """Pooled ReLU responses h = sum_k P_ck (x_jk . u_i)_+ of given filters; a block is a filter.

    A design of other responses, which have to be homogeneous, overrides ``responses``.
    """

    rows = 1

    @staticmethod
    def responses(patches: Patches, filters: Tensor) -> Tensor:
        """Return the pooled responses (n, cells, m) of filters (m, d), differentiable in them."""
        return patches.relu_features(filters)

    def on(self, patches: Patches) -> FilterDesign:
        return type(self)(patches, self.vectors)

    def columns(self, blocks: Tensor) -> Tensor:
        return self.responses(self.patches, self.vectors[blocks]).transpose(1, 2).unsqueeze(-1)

    def predict(self, weights: Tensor) -> Tensor:
        active = weights.flatten(1).any(dim=1)
        used = type(self)(self.patches, self.vectors[active])
        prediction = weights.new_empty(self.patches.n_images, weights.shape[-1])
        for rows, part in used.parts():
            features = self.responses(part.patches, used.vectors)
            prediction[rows] = torch.einsum("ncm,mco->no", features, weights[active, :, 0])
        return prediction

    def correlate(self, dual: Tensor) -> Tensor:
        total = dual.new_zeros(self.n_blocks, self.n_cells, dual.shape[1])
        for rows, part in self.parts():
            total += torch.einsum("ncm,no->mco", self.responses(part.patches, self.vectors), dual[rows])
        return total.unsqueeze(2)


class KeptDesign(Design):
    """Another design with its features kept as one matrix: a path multiplies by them hundreds of times."""

    def __init__(self, design: Design, features: Tensor | None = None) -> None:
        super().__init__(design.patches, design.vectors)
        self.design = design
        self.rows = design.rows
        every = torch.arange(design.n_blocks, device=design.vectors.device)
        self.features = design.columns(every) if features is None else features

    @property
    def directions(self) -> Tensor:
        return self.design.directions

    def subset(self, images: slice) -> KeptDesign:
        return KeptDesign(self.design.subset(images), self.features[images])

    @staticmethod
    def fits(design: Design) -> bool:
        """Return whether the features are few enough to be kept."""
        entries = design.patches.n_images * design.n_blocks * design.n_cells * design.rows
        return entries * design.vectors.element_size() <= KEPT_BYTES

    def columns(self, blocks: Tensor) -> Tensor:
        return self.features[:, blocks]

    def predict(self, weights: Tensor) -> Tensor:
        return self.features.flatten(1) @ weights.flatten(0, 2)

    def correlate(self, dual: Tensor) -> Tensor:
        return adjoint_product(self.features.flatten(1), dual).view(self.shape(dual.shape[1]))

    def double(self) -> Design:
        return self.design.double()


class ScaledDesign(Design):
    """Another design's features with those of image j multiplied by scale_j: weighted least squares."""

    def __init__(self, design: Design, scale: Tensor) -> None:
        super().__init__(design.patches, design.vectors)
        self.unscaled = design
        self.scale = scale
        self.rows = design.rows

    def subset(self, images: slice) -> ScaledDesign:
        return ScaledDesign(self.unscaled.subset(images), self.scale[images])

    def double(self) -> ScaledDesign:
        return ScaledDesign(self.unscaled.double(), self.scale.double())

    def constant(self) -> Tensor:
        return self.scale.to(self.patches.like)

    def columns(self, blocks: Tensor) -> Tensor:
        return self.unscaled.columns(blocks) * self.scale[:, None, None, None]

    def predict(self, weights: Tensor) -> Tensor:
        return self.unscaled.predict(weights) * self.scale[:, None]

    def correlate(self, dual: Tensor) -> Tensor:
        return self.unscaled.correlate(dual * self.scale[:, None])

    def mass(self, dual: Tensor) -> Tensor:
        return self.unscaled.mass(dual * self.scale[:, None])


class StackedDesign(Design):
    """Another design's outputs as one column, root_j f_j stacked over images: predictions (n * outputs, 1).

    Weights are regrouped so that the group penalty of the new ones is the penalty of the old ones: a cell is a
    (cell, output) for a separable penalty, and there is one cell of cells * rows * outputs rows for the dense one.

    Parameters
    ----------
    design : Design
    root : Tensor, shape (n, outputs, outputs)
    separable : bool
    """

    def __init__(self, design: Design, root: Tensor, separable: bool) -> None:
        super().__init__(design.patches, design.vectors)
        self.unstacked = design
        self.root = root
        self.separable = separable
        outputs = root.shape[2]
        self.rows_per_image = root.shape[1]
        self.n_cells = design.n_cells * outputs if separable else 1
        self.rows = design.rows if separable else design.n_cells * design.rows * outputs

    def subset(self, images: slice) -> StackedDesign:
        return StackedDesign(self.unstacked.subset(images), self.root[images], self.separable)

    def double(self) -> StackedDesign:
        return StackedDesign(self.unstacked.double(), self.root.double(), self.separable)

    def stack(self, weights: Tensor) -> Tensor:
        """Return weights (blocks, cells, rows, outputs) in this design's order."""
        weights = weights.transpose(2, 3) if self.separable else weights
        return weights.reshape(len(weights), self.n_cells, self.rows, 1)

    def unstack(self, weights: Tensor) -> Tensor:
        """Return the inverse of ``stack``."""
        _, cells, rows, outputs = self.unstacked.shape(self.root.shape[2])
        if self.separable:
            return weights.view(-1, cells, outputs, rows).transpose(2, 3).contiguous()
        return weights.view(-1, cells, rows, outputs)

    def columns(self, blocks: Tensor) -> Tensor:
        columns = self.unstacked.columns(blocks)
        order = "nbcr,nop->nobcpr" if self.separable else "nbcr,nop->nobcrp"
        stacked = torch.einsum(order, columns, self.root)
        return stacked.reshape(-1, len(blocks), self.n_cells, self.rows)

    def predict(self, weights: Tensor) -> Tensor:
        prediction = self.unstacked.predict(self.unstack(weights))
        return torch.einsum("nop,np->no", self.root, prediction).reshape(-1, 1)

    def correlate(self, dual: Tensor) -> Tensor:
        spread = torch.einsum("nop,no->np", self.root, dual.view(self.root.shape[:2]))
        return self.stack(self.unstacked.correlate(spread))

    def mass(self, dual: Tensor) -> Tensor:
        spread = torch.einsum("nop,no->np", self.root.abs(), dual.abs().view(self.root.shape[:2]))
        mass = self.unstacked.mass(spread)
        return mass.reshape(-1, 1) if self.separable else mass.norm().view(1, 1)
