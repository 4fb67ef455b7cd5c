"""A ReLU block at its weights: value, Jacobian products, gradient and curvature of Eq. 1, as sums over patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..core.threads import map_items
from ..losses import Loss
from ..patches.patches import Patches
from .kernels import filter_jacobian

__all__ = ["BlockPoint", "Direction"]

Direction = tuple[Tensor, Tensor]
"""A change of filters (m, d) and readout (m, C, o)."""


@dataclass(frozen=True)
class _Piece:
    """Some images: their patches (b, K, d), which responses are positive (b, K, m), and pooled responses (b, C, m)."""

    rows: slice
    patches: Tensor
    active: Tensor
    pooled: Tensor


def _piece(rows: slice, chunk: Tensor, filters: Tensor, pool: Tensor) -> _Piece:
    responses = chunk @ filters.T
    return _Piece(rows, chunk, responses > 0, pool @ responses.relu())


class BlockPoint:
    """Eq. 1 at the neurons of a block that aren't zero, in float64.

        loss(f, Y) + reg/2 sum_i (|u_i|^2 + |w_i|^2),   f_jo = sum_ic w_ico sum_k P_ck (x_jk . u_i)_+ + b_o

    Parameters
    ----------
    patches : Patches
        Of the training images, float64.
    targets : Tensor, shape (n, o)
    filters : Tensor, shape (m, d)
    readout : Tensor, shape (m, C, o)
    reg : float
    loss : Loss
    intercept : Tensor, shape (o,), optional
        b, which is kept as it is.
    sparse : bool
        Whether entries of the readout that are zero are no weights (``penalty="group"``).

    Attributes
    ----------
    residual : Tensor, shape (n, o)
        The gradient of the loss in the outputs: f - Y for the squared loss; minus the dual point nu.
    outputs : Tensor, shape (n, o)
        Without the intercept.
    """

    def __init__(
        self,
        patches: Patches,
        targets: Tensor,
        filters: Tensor,
        readout: Tensor,
        reg: float,
        loss: Loss,
        intercept: Tensor | None = None,
        *,
        sparse: bool = False,
    ) -> None:
        alive = filters.any(dim=1) & readout.flatten(1).any(dim=1)
        self.patches = patches.astype(torch.float64)
        self.pool = self.patches.pool
        self.filters, self.readout = filters[alive].double(), readout[alive].double()
        self.targets = targets.double()
        self.reg, self.loss = float(reg), loss
        self.intercept = self.targets.new_zeros(targets.shape[1]) if intercept is None else intercept.double()
        self.mask = (self.readout != 0).double() if sparse else None
        self.outputs = self.predict(self.filters, self.readout)
        self.residual = -loss.dual_point(self.outputs + self.intercept, self.targets)
        self._pieces: list[_Piece] | None = None
        self._roots = loss.model(self.outputs + self.intercept, self.targets)[0]

    @property
    def n_weights(self) -> int:
        """The number of weights of the neurons that aren't zero."""
        of_readout = self.readout.numel() if self.mask is None else int(self.mask.sum())
        return self.filters.numel() + of_readout

    @property
    def weights(self) -> Direction:
        """The filters and the readout."""
        return self.filters, self.readout

    def pieces(self) -> list[_Piece]:
        """Return the images in pieces."""
        if self._pieces is None:
            parts = self.patches.chunks(len(self.filters))
            self._pieces = [_piece(*part, self.filters, self.pool) for part in parts]
        return self._pieces

    def predict(self, filters: Tensor, readout: Tensor) -> Tensor:
        """Return the outputs (n, o) of other weights, without the intercept."""
        features = self.patches.relu_features(filters)
        return torch.einsum("ncm,mco->no", features, readout)

    def value(self, filters: Tensor, readout: Tensor) -> float:
        """Return Eq. 1 of other weights."""
        squares = float(filters.square().sum() + readout.square().sum())
        outputs = self.predict(filters, readout) + self.intercept
        return float(self.loss.tensor(outputs, self.targets)) + 0.5 * self.reg * squares

    @cached_property
    def objective(self) -> float:
        """Eq. 1 at the point."""
        return self.value(self.filters, self.readout)

    def features(self) -> Tensor:
        """Return the pooled responses h, shape (n, C, m)."""
        return torch.cat([piece.pooled for piece in self.pieces()])

    def _masked(self, readout: Tensor) -> Tensor:
        return readout if self.mask is None else readout * self.mask

    def masked(self, direction: Direction) -> Direction:
        """Return a direction without the entries that are no weights."""
        return direction[0], self._masked(direction[1])

    def pull(self, upstream: Tensor) -> Direction:
        """Return J^T upstream, the gradient of <f, upstream> for (n, o) numbers."""

        def work(piece: _Piece) -> Direction:
            return _pulled(piece, self.readout, self.pool, upstream[piece.rows])

        return self.masked(_total(map_items(work, self.pieces(), self.pool.device), self.weights))

    def push(self, direction: Direction) -> Tensor:
        """Return J direction, shape (n, o): how the outputs change."""
        filters, readout = self.masked(direction)

        def work(piece: _Piece) -> Tensor:
            return _pushed(piece, self.readout, self.pool, filters, readout)[1]

        parts = map_items(work, self.pieces(), self.pool.device)
        return torch.cat(parts) if parts else torch.zeros_like(self.outputs)

    def value_and_gradient(self, filters: Tensor, readout: Tensor) -> tuple[float, Direction]:
        """Return Eq. 1 and its plain gradient at other weights of these neurons."""
        readout = self._masked(readout)

        def work(kept: _Piece) -> tuple[float, Direction]:
            piece = _piece(kept.rows, kept.patches, filters, self.pool)
            outputs = torch.einsum("bcm,mco->bo", piece.pooled, readout) + self.intercept
            targets = self.targets[piece.rows]
            loss = self.loss.rows(piece.rows)
            upstream = -loss.dual_point(outputs, targets)
            return float(loss.tensor(outputs, targets)), _pulled(piece, readout, self.pool, upstream)

        parts = map_items(work, self.pieces(), self.pool.device)
        squares = float(filters.square().sum() + readout.square().sum())
        by_filter, by_readout = _total([part for _, part in parts], (filters, readout))
        value = sum(part for part, _ in parts) + 0.5 * self.reg * squares
        return value, self.masked((by_filter + self.reg * filters, by_readout + self.reg * readout))

    @cached_property
    def gradient(self) -> Direction:
        """The plain gradient of Eq. 1, with slope 0 at kinks, as torch's."""
        by_filter, by_readout = self.pull(self.residual)
        return by_filter + self.reg * self.filters, by_readout + self.reg * self.readout

    @cached_property
    def _single(self) -> list[tuple[_Piece, Tensor, Tensor]]:
        """The pieces in float32, with their residuals and the roots of the loss's Hessian."""
        return [
            (_Piece(p.rows, p.patches.float(), p.active.float(), p.pooled.float()),
             self.residual[p.rows].float(), self._roots[p.rows].float())
            for p in self.pieces()
        ]  # fmt: skip

    def curvature(self, direction: Direction) -> Direction:
        """Return the Hessian of Eq. 1, with the active responses as they are, times a direction, to float32."""
        filters, readout = (part.float() for part in (direction[0], self._masked(direction[1])))
        weights, pool = self.readout.float(), self.pool.float()

        def work(part: tuple[_Piece, Tensor, Tensor]) -> Direction:
            piece, residual, roots = part
            moved, changes = _pushed(piece, weights, pool, filters, readout)
            bent = _bent(roots, changes)
            upstream = torch.einsum("mco,bo->bcm", weights, bent) + torch.einsum("mco,bo->bcm", readout, residual)
            incoming = (pool.T @ upstream).mul_(piece.active)
            by_readout = torch.einsum("bcm,bo->mco", piece.pooled, bent)
            by_readout += torch.einsum("bcm,bo->mco", moved, residual)
            return incoming.flatten(0, 1).T @ piece.patches.flatten(0, 1), by_readout

        by_filter, by_readout = _total(map_items(work, self._single, pool.device), (filters, readout))
        by_filter, by_readout = by_filter.double(), by_readout.double()
        return self.masked((by_filter + self.reg * direction[0], by_readout + self.reg * direction[1]))

    def jacobian(self, images: int) -> Tensor:
        """Return J of the first images, shape (images * o, n weights): rows image-major."""
        parts = []
        outputs = self.readout.shape[2]
        for piece in self.pieces():
            count = min(images - piece.rows.start, len(piece.patches))
            if count <= 0:
                break
            of_filters = filter_jacobian(piece.patches[:count], piece.active[:count], self.readout, self.pool)
            pooled = piece.pooled[:count].transpose(1, 2).flatten(1)  # (b, m C)
            of_readout = torch.einsum("bq,op->boqp", pooled, torch.eye(outputs).to(pooled))
            of_readout = of_readout.reshape(count * outputs, -1)
            if self.mask is not None:
                of_readout = of_readout[:, self.mask.flatten() > 0]
            parts.append(torch.cat([of_filters, of_readout], dim=1))
        return torch.cat(parts)

    def flatten(self, direction: Direction) -> Tensor:
        """Return a direction as one vector."""
        return torch.cat([direction[0].flatten(), direction[1].flatten()])

    def unflatten(self, vector: Tensor) -> Direction:
        """Return a vector as a direction."""
        count = self.filters.numel()
        return vector[:count].view_as(self.filters), vector[count:].view_as(self.readout)


def _bent(roots: Tensor, changes: Tensor) -> Tensor:
    """Return the Hessian of the loss, of which R^T R is made, times a change of the outputs."""
    if roots.ndim == 2:
        return roots.square() * changes
    bent: Tensor = (roots.transpose(1, 2) @ (roots @ changes.unsqueeze(2))).squeeze(2)
    return bent


def _pulled(piece: _Piece, readout: Tensor, pool: Tensor, upstream: Tensor) -> Direction:
    """Return the gradient of <f, upstream> of a piece."""
    incoming = (pool.T @ torch.einsum("mco,bo->bcm", readout, upstream)).mul_(piece.active)
    by_filter = incoming.flatten(0, 1).T @ piece.patches.flatten(0, 1)
    return by_filter, torch.einsum("bcm,bo->mco", piece.pooled, upstream)


def _pushed(piece: _Piece, weights: Tensor, pool: Tensor, filters: Tensor, readout: Tensor) -> tuple[Tensor, Tensor]:
    """Return how pooled responses (b, C, m) and outputs (b, o) of a piece change with filters and readout."""
    moved = pool @ (piece.patches @ filters.T).mul_(piece.active)
    return moved, torch.einsum("bcm,mco->bo", moved, weights) + torch.einsum("bcm,mco->bo", piece.pooled, readout)


def _total(parts: Sequence[Direction], like: Direction) -> Direction:
    """Return the sum of directions."""
    by_filter, by_readout = torch.zeros_like(like[0]), torch.zeros_like(like[1])
    for filters, readout in parts:
        by_filter += filters
        by_readout += readout
    return by_filter, by_readout
