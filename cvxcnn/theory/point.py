"""A trained block at its weights: value, Jacobian products, gradient and curvature of Eq. 1, as sums over patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..core.threads import map_items
from ..losses import Loss
from ..ordinary.network import rectified
from ..patches.patches import Patches
from .kernels import filter_kernel

__all__ = ["BlockPoint", "Direction"]

Direction = tuple[Tensor, Tensor]
"""A change of filters (m, d) and readout (m, C, o)."""


@dataclass(frozen=True)
class _Piece:
    """Some images: their patches (b, K, d), slopes of the responses (b, K, m), and pooled responses (b, C, m).

    Slopes are of ReLUs whether the response is positive, and of softplus neurons sigmoids.
    """

    rows: slice
    patches: Tensor
    active: Tensor
    pooled: Tensor


def _piece(rows: slice, chunk: Tensor, filters: Tensor, pool: Tensor, softplus: float | None) -> _Piece:
    responses = chunk @ filters.T
    active = responses > 0 if softplus is None else torch.sigmoid(softplus * responses)
    return _Piece(rows, chunk, active, pool @ rectified(responses, softplus))


class BlockPoint:
    """Eq. 1 at the neurons of a block that aren't zero, in float64.

        loss(f, Y) + reg/2 sum_i (|u_i|^2 + |w_i|^2),   f_jo = sum_ic w_ico sum_k P_ck (x_jk . u_i)_+ + b_o

    or with softplus neurons log(1 + exp(zeta t)) / zeta in the place of ReLUs (t)_+.

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
    softplus : float, optional
        zeta; ReLUs if it is not given.

    Attributes
    ----------
    residual : Tensor, shape (n, o)
        The gradient of the loss in the outputs: f - Y for the squared loss; minus the dual point nu.
    outputs : Tensor, shape (n, o)
        Without the intercept.
    pieces : list
        The images in pieces.
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
        softplus: float | None = None,
    ) -> None:
        alive = filters.any(dim=1) & readout.flatten(1).any(dim=1)
        self.patches = patches.astype(torch.float64)
        self.pool = self.patches.pool
        self.filters, self.readout = filters[alive].double(), readout[alive].double()
        self.targets = targets.double()
        self.reg, self.loss, self.softplus = float(reg), loss, softplus
        self.intercept = self.targets.new_zeros(targets.shape[1]) if intercept is None else intercept.double()
        self.mask = (self.readout != 0).double() if sparse else None
        parts = self.patches.chunks(max(1, len(self.filters)))
        self.pieces = [_piece(*part, self.filters, self.pool, softplus) for part in parts]
        self.outputs = torch.einsum("ncm,mco->no", self.features(), self.readout)
        self.residual = -loss.dual_point(self.outputs + self.intercept, self.targets)
        self._roots = loss.model(self.outputs + self.intercept, self.targets)[0]

    def at(self, filters: Tensor, readout: Tensor) -> BlockPoint:
        """Return the point of other weights of these neurons."""
        return BlockPoint(
            self.patches, self.targets, filters, readout, self.reg, self.loss, self.intercept,
            sparse=self.mask is not None, softplus=self.softplus,
        )  # fmt: skip

    @property
    def n_weights(self) -> int:
        """The number of weights of the neurons that aren't zero."""
        of_readout = self.readout.numel() if self.mask is None else int(self.mask.sum())
        return self.filters.numel() + of_readout

    @property
    def weights(self) -> Direction:
        """The filters and the readout."""
        return self.filters, self.readout

    def predict(self, filters: Tensor, readout: Tensor) -> Tensor:
        """Return the outputs (n, o) of other weights, without the intercept."""

        def work(piece: _Piece) -> Tensor:
            pooled = self.pool @ rectified(piece.patches @ filters.T, self.softplus)
            return torch.einsum("bcm,mco->bo", pooled, readout)

        return torch.cat(map_items(work, self.pieces, self.pool.device))

    def _value(self, outputs: Tensor, filters: Tensor, readout: Tensor) -> float:
        """Return Eq. 1 of weights whose outputs, without the intercept, are known."""
        squares = float(filters.square().sum() + readout.square().sum())
        return float(self.loss.tensor(outputs + self.intercept, self.targets)) + 0.5 * self.reg * squares

    def value(self, filters: Tensor, readout: Tensor) -> float:
        """Return Eq. 1 of other weights."""
        return self._value(self.predict(filters, readout), filters, readout)

    def values_along(self, direction: Direction, steps: Sequence[float]) -> list[float]:
        """Return Eq. 1 at some steps along a direction, in two products with the patches, for any number of steps."""
        moved = [(self.filters + step * direction[0], self.readout + step * direction[1]) for step in steps]

        def work(piece: _Piece) -> Tensor:
            here, change = (piece.patches @ filters.T for filters in (self.filters, direction[0]))
            return torch.stack([
                torch.einsum("bcm,mco->bo", self.pool @ rectified(here + step * change, self.softplus), readout)
                for step, (_, readout) in zip(steps, moved, strict=True)
            ])  # fmt: skip

        outputs = torch.cat(map_items(work, self.pieces, self.pool.device), dim=1)
        return [self._value(found, *weights) for found, weights in zip(outputs, moved, strict=True)]

    @cached_property
    def objective(self) -> float:
        """Eq. 1 at the point."""
        return self._value(self.outputs, self.filters, self.readout)

    def features(self) -> Tensor:
        """Return the pooled responses h, shape (n, C, m)."""
        return torch.cat([piece.pooled for piece in self.pieces])

    def _masked(self, readout: Tensor) -> Tensor:
        return readout if self.mask is None else readout * self.mask

    def masked(self, direction: Direction) -> Direction:
        """Return a direction without the entries that are no weights."""
        return direction[0], self._masked(direction[1])

    def pull(self, upstream: Tensor) -> Direction:
        """Return J^T upstream, the gradient of <f, upstream> for (n, o) numbers."""

        def work(piece: _Piece) -> Direction:
            return _pulled(piece, self.readout, self.pool, upstream[piece.rows])

        return self.masked(_total(map_items(work, self.pieces, self.pool.device), self.weights))

    def push(self, direction: Direction) -> Tensor:
        """Return J direction, shape (n, o): how the outputs change."""
        filters, readout = self.masked(direction)

        def work(piece: _Piece) -> Tensor:
            moved = self.pool @ (piece.patches @ filters.T).mul_(piece.active)
            return _moved_outputs(piece, self.readout, moved, readout)

        parts = map_items(work, self.pieces, self.pool.device)
        return torch.cat(parts) if parts else torch.zeros_like(self.outputs)

    def value_and_gradient(self, filters: Tensor, readout: Tensor, *, single: bool = False) -> tuple[float, Direction]:
        """Return Eq. 1 and its plain gradient at other weights of these neurons; ``single``: of products in float32."""
        readout = self._masked(readout)
        dtype = torch.float32 if single else torch.float64
        near, far, pool = filters.to(dtype), readout.to(dtype), self.pool.to(dtype)

        def work(kept: _Piece) -> tuple[float, Direction]:
            piece = _piece(kept.rows, kept.patches, near, pool, self.softplus)
            outputs = torch.einsum("bcm,mco->bo", piece.pooled, far).double() + self.intercept
            targets = self.targets[piece.rows]
            loss = self.loss.rows(piece.rows)
            upstream = -loss.dual_point(outputs, targets).to(dtype)
            return float(loss.tensor(outputs, targets)), _pulled(piece, far, pool, upstream)

        pieces = [piece for piece, *_ in self._single] if single else self.pieces
        parts = map_items(work, pieces, self.pool.device)
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
            for p in self.pieces
        ]  # fmt: skip

    def curvature(self, direction: Direction) -> Direction:
        """Return the Hessian of Eq. 1, with the active responses as they are, times a direction, to float32."""
        filters, readout = (part.float() for part in (direction[0], self._masked(direction[1])))
        weights, pool = self.readout.float(), self.pool.float()

        def work(part: tuple[_Piece, Tensor, Tensor]) -> Direction:
            piece, residual, roots = part
            change = piece.patches @ filters.T
            moved = pool @ (change * piece.active)
            bent = _bent(roots, _moved_outputs(piece, weights, moved, readout))
            upstream = torch.einsum("mco,bo->bcm", weights, bent) + torch.einsum("mco,bo->bcm", readout, residual)
            incoming = (pool.T @ upstream).mul_(piece.active)
            if self.softplus is not None:
                # The slope s of softplus has the slope zeta s (1 - s), and that of ReLUs none.
                slopes = self.softplus * piece.active * (1 - piece.active)
                incoming += (pool.T @ torch.einsum("mco,bo->bcm", weights, residual)) * slopes.mul_(change)
            by_readout = torch.einsum("bcm,bo->mco", piece.pooled, bent)
            by_readout += torch.einsum("bcm,bo->mco", moved, residual)
            return incoming.flatten(0, 1).T @ piece.patches.flatten(0, 1), by_readout

        by_filter, by_readout = _total(map_items(work, self._single, pool.device), (filters, readout))
        by_filter, by_readout = by_filter.double(), by_readout.double()
        return self.masked((by_filter + self.reg * direction[0], by_readout + self.reg * direction[1]))

    def kernel(self, images: int) -> Tensor:
        """Return the tangent kernel J J^T of the first images, shape (images * o, images * o), image-major."""
        some = self.pieces[: 1 + sum(piece.rows.stop < images for piece in self.pieces)]
        patches, active, pooled = (
            torch.cat([getattr(piece, name) for piece in some])[:images] for name in ("patches", "active", "pooled")
        )
        kernel = filter_kernel(patches, active, self.readout, self.pool)
        # Readouts feed one output each: a block on the diagonal for it.
        blocks = kernel.view(len(patches), -1, len(patches), self.targets.shape[1])
        for output in range(self.targets.shape[1]):
            weights = pooled if self.mask is None else pooled * self.mask[:, :, output].T
            blocks[:, output, :, output] += weights.flatten(1) @ pooled.flatten(1).T
        return kernel

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


def _moved_outputs(piece: _Piece, weights: Tensor, moved: Tensor, readout: Tensor) -> Tensor:
    """Return how outputs (b, o) of a piece change with its pooled responses and with the readout."""
    return torch.einsum("bcm,mco->bo", moved, weights) + torch.einsum("bcm,mco->bo", piece.pooled, readout)


def _total(parts: Sequence[Direction], like: Direction) -> Direction:
    """Return the sum of directions."""
    by_filter, by_readout = torch.zeros_like(like[0]), torch.zeros_like(like[1])
    for filters, readout in parts:
        by_filter += filters
        by_readout += readout
    return by_filter, by_readout
