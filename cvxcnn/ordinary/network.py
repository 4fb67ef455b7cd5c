"""A Conv+ReLU+pooling+Linear block and its gradients, and the balance of its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.products import adjoint_product
from ..core.threads import map_shares
from ..losses import Loss
from ..patches.patches import CACHE_BYTES, CHUNK_ENTRIES_CPU, CHUNK_ENTRIES_GPU, Patches
from ..patches.poolers import Pooler

__all__ = ["Network", "block_features", "rebalance", "rectified"]

# Of the targets' norm, that of the outputs at the start; how it was chosen: see the notes of train_baseline.
START_SHARE = 0.1
# A thread is not worth waking for fewer images, nor for fewer multiplications.
LEAST_SHARE, LEAST_PRODUCTS = 16, 1 << 24


@dataclass(frozen=True)
class _Part:
    """Neurons that feed the same cells, and the only patches of an image that they look at."""

    neurons: slice
    cells: slice
    places: Tensor | None
    pooler: Pooler
    patches: Tensor | None


class Network:
    """Predictions and gradients of the block in the patches' dtype, a cache-sized piece of a batch at a time."""

    def __init__(
        self,
        patches: Patches,
        targets: Tensor,
        loss: Loss,
        width: int,
        connect: str,
        softplus: float | None = None,
    ) -> None:
        self.patches = patches
        self.softplus = softplus
        self.targets = targets.to(patches.like)
        self.loss = loss
        self.width = width
        self.outputs = targets.shape[1]
        cells = patches.n_cells
        in_memory = patches.n_images * patches.n_patches * patches.dim * patches.like.element_size() <= CACHE_BYTES
        if connect == "dense":
            whole = patches.unfold() if in_memory else None
            self.parts = [_Part(slice(None), slice(None), None, patches.pooler, whole)]
            self.mask = None
        else:
            self.parts = []
            for cell, places in enumerate(patches.pooler.members()[:width]):
                own = patches.unfold()[:, places] if in_memory else None
                pooler = patches.pooler.cell(cell)
                self.parts.append(_Part(slice(cell, None, cells), slice(cell, cell + 1), places, pooler, own))
            neuron = torch.arange(width, device=targets.device)
            self.mask = self.targets.new_zeros(width, cells, self.outputs)
            self.mask[neuron, neuron % cells, neuron // cells % self.outputs] = 1.0
        self.least = max(LEAST_SHARE, LEAST_PRODUCTS // max(patches.n_patches * patches.dim * width, 1))
        entries = CHUNK_ENTRIES_CPU if targets.device.type == "cpu" else CHUNK_ENTRIES_GPU
        self.piece = max(1, entries // (patches.n_patches * max(width // len(self.parts), patches.dim)))

    def _responses(self, filters: Tensor, rows: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return, for each part, its patches (b * K, d), maps, pooled responses (b, cells, m), and trace."""
        fresh = None
        found = []
        for part in self.parts:
            if part.patches is not None:
                own = part.patches[rows]
            else:
                fresh = self.patches.subset(rows).unfold() if fresh is None else fresh
                own = fresh if part.places is None else fresh[:, part.places]
            flat = own.flatten(0, 1)
            maps = rectified(flat @ filters[part.neurons].T, self.softplus).view(len(rows), own.shape[1], -1)
            found.append((flat, maps, *part.pooler.pool(maps)))
        return found

    def _columns(self, readout: Tensor, part: _Part) -> Tensor:
        """Return a part's output weights as a matrix (cells * m, outputs)."""
        return readout[part.neurons, part.cells].transpose(0, 1).reshape(-1, self.outputs)

    def predict(self, filters: Tensor, readout: Tensor) -> Tensor:
        """Return the outputs (n, outputs) of all images."""
        prediction = torch.empty_like(self.targets)
        columns = [self._columns(readout, part) for part in self.parts]
        every = torch.arange(len(prediction), device=prediction.device)

        def work(share: slice) -> None:
            for rows in torch.split(every[share], self.piece):
                found = self._responses(filters, rows)
                prediction[rows] = sum(
                    (pooled.flatten(1) @ weights for (_, _, pooled, _), weights in zip(found, columns, strict=True)),
                    torch.zeros_like(self.targets[rows]),
                )

        map_shares(work, len(prediction), prediction.device, self.least)
        return prediction

    def gradients(self, filters: Tensor, readout: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the loss, summed over these images, in the filters and the readout."""
        columns = [self._columns(readout, part) for part in self.parts]

        def work(share: slice) -> tuple[Tensor, Tensor]:
            by_filter, by_readout = torch.zeros_like(filters), torch.zeros_like(readout)
            for piece in torch.split(rows[share], self.piece):
                found = self._responses(filters, piece)
                prediction = sum(
                    (pooled.flatten(1) @ weights for (_, _, pooled, _), weights in zip(found, columns, strict=True)),
                    torch.zeros_like(self.targets[piece]),
                )
                slope = -self.loss.rows(piece).dual_point(prediction, self.targets[piece])
                for part, (flat, maps, pooled, trace), weights in zip(self.parts, found, columns, strict=True):
                    count = pooled.shape[2]
                    by_columns = adjoint_product(pooled.flatten(1), slope).view(-1, count, self.outputs)
                    by_readout[part.neurons, part.cells] += by_columns.transpose(0, 1)
                    # 1 / (1 + exp(-zeta t)) = 1 - exp(-zeta softplus(t)); softplus is positive: spread lets all by.
                    bend = None if self.softplus is None else -torch.expm1(-self.softplus * maps)
                    passed = part.pooler.spread((slope @ weights.T).view(len(piece), -1, count), trace)
                    if bend is not None:
                        passed = passed * bend
                    by_filter[part.neurons] += adjoint_product(passed.flatten(0, 1), flat)
            return by_filter, by_readout

        shares = map_shares(work, len(rows), rows.device, self.least)
        by_filter = torch.stack([share[0] for share in shares]).sum(dim=0)
        by_readout = torch.stack([share[1] for share in shares]).sum(dim=0)
        return by_filter, by_readout if self.mask is None else by_readout * self.mask

    def directions(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return random unit filters and output weights of unit norm, the group's signs alternating evenly."""
        generator = torch.Generator().manual_seed(int(seed))
        shape = (self.width, self.patches.n_cells, self.outputs)
        filters = torch.randn(self.width, self.patches.dim, generator=generator).to(self.targets)
        readout = torch.randn(shape, generator=generator).to(self.targets)
        if self.mask is not None:
            turns = torch.arange(self.width, device=readout.device) // (shape[1] * shape[2])
            readout = self.mask * (1.0 - 2.0 * (turns % 2))[:, None, None]
        filters /= filters.norm(dim=1, keepdim=True)
        readout /= readout.flatten(1).norm(dim=1)[:, None, None]
        return filters, readout

    def start(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return random balanced weights whose outputs have START_SHARE of the targets' norm."""
        filters, readout = self.directions(seed)
        ratio = float(START_SHARE * self.targets.norm() / self.predict(filters, readout).norm().clamp_min(1e-30))
        # Images or targets of zeros give no scale.
        scale = math.sqrt(ratio) if 0.0 < ratio < 1e12 else 1.0
        return filters * scale, readout * scale

    def learning_rate(self, optimizer: str, filters: Tensor) -> float:
        """Return the default peak rate for weights that start at the scale of these filters."""
        scale = float(filters[0].norm())
        if optimizer == "adam":
            return 0.11 * scale / math.sqrt(math.sqrt(self.patches.dim))
        mean_square = float(self.targets.square().sum()) / len(self.targets)
        return 8.0 * scale**2 / mean_square if mean_square > 0 else 0.1


def rectified(responses: Tensor, softplus: float | None) -> Tensor:
    """Return the ReLU of responses, in their place, or their softplus log(1 + exp(zeta t)) / zeta."""
    if softplus is None:
        return responses.relu_()
    return torch.logaddexp(responses.mul_(softplus), responses.new_zeros(())).div_(softplus)


def block_features(patches: Patches, filters: Tensor, softplus: float | None = None) -> Tensor:
    """Return the pooled responses (n, cells, m) of a block's ReLU neurons, or of its softplus ones.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> patches = Patches(torch.tensor([[[[2.0]]]]), PatchGeometry(kernel_size=1))
    >>> filters = torch.tensor([[1.0], [-1.0]])
    >>> block_features(patches, filters).tolist(), block_features(patches, filters, softplus=100.0).tolist()
    ([[[2.0, 0.0]]], [[[2.0, 0.0]]])
    """
    if softplus is None:
        return patches.relu_features(filters)
    features = filters.new_empty(patches.n_images, patches.n_cells, len(filters))
    for rows, chunk in patches.chunks(len(filters)):
        features[rows] = patches.pooler.pool(rectified(chunk @ filters.T, softplus))[0]
    return features


def rebalance(filters: Tensor, readout: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same network with ||u_i|| = ||w_i|| for every neuron, which makes the penalty least.

    (x . cu)_+ w / c = (x . u)_+ w for every c > 0, and (||cu||^2 + ||w/c||^2) / 2 is least, ||u|| ||w||, at
    c^2 = ||w|| / ||u||. A neuron with a zero side is the zero function and becomes zero on both.

    Parameters
    ----------
    filters : Tensor, shape (m, d)
    readout : Tensor, shape (m, cells, outputs)

    Examples
    --------
    >>> filters, readout = rebalance(torch.tensor([[8.0]]), torch.tensor([[[2.0]]]))
    >>> filters.item(), readout.item()
    (4.0, 4.0)
    """
    inner, outer = filters.norm(dim=1), readout.flatten(1).norm(dim=1)
    alive = (inner > 0) & (outer > 0)
    one = torch.ones_like(inner)
    factor = torch.where(alive, (outer.where(alive, one) / inner.where(alive, one)).sqrt(), 0.0)
    inverse = torch.where(alive, 1.0 / factor.where(alive, one), 0.0)
    return filters * factor[:, None], readout * inverse[:, None, None]
