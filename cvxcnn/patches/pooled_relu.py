"""Pooled ReLU responses that torch can differentiate in the filters, a chunk of images at a time."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .patches import Patches

__all__ = ["LargestReLU", "PooledReLU", "Spare"]

# Responses up to this many bytes are kept for the backward pass; larger ones are computed again.
KEPT_BYTES = 1 << 28
# Those to patches of so few numbers only up to this many: to read more of them back costs more than their products.
_FEW_NUMBERS, _KEPT_OF_FEW = 32, 1 << 23


class Spare:
    """Memory that one pass over the patches leaves to the next: the system clears each page of what is taken afresh."""

    def __init__(self) -> None:
        self._memory: list[Tensor] = []

    def take(self, entries: int, like: Tensor) -> Tensor:
        """Return at least so many numbers of any value, shape (entries or more,)."""
        with suppress(IndexError):  # nothing there, or another thread was first
            memory = self._memory.pop()
            if memory.numel() >= entries and memory.dtype == like.dtype:
                return memory
        return like.new_empty(entries)

    def leave(self, memory: Tensor) -> None:
        """Take back what nothing reads any more, unless it is more than short patches need."""
        if memory.nbytes <= _KEPT_OF_FEW and not self._memory:
            self._memory.append(memory)


class PooledReLU(torch.autograd.Function):
    """Pooled ReLU responses with a backward pass that keeps them unpooled, or nothing when that is too much.

    A mask of the active ones would be a quarter of that, but to write and to apply it costs more than all the rest.
    """

    @staticmethod
    def forward(ctx: Any, filters: Tensor, patches: Patches) -> Tensor:
        count = len(filters)
        entries = patches.n_images * patches.n_patches * count
        most = KEPT_BYTES if patches.dim > _FEW_NUMBERS else min(KEPT_BYTES, _KEPT_OF_FEW)
        keep = ctx.needs_input_grad[0] and entries * filters.element_size() <= most
        ctx.save_for_backward(filters)
        ctx.patches = patches
        pooled = patches.like.new_empty(patches.n_images, patches.n_cells, count)
        if not ctx.needs_input_grad[0] and patches.convolves(count):
            return patches.convolved(filters.detach(), pooled)
        ctx.kept = patches.spare.take(entries, pooled) if keep else None
        kept = ctx.kept[:entries].view(patches.n_images, -1, count) if keep and entries else None
        weights = filters.detach().T.contiguous()

        def work(share: slice) -> None:
            for rows, chunk in patches.chunks(count, share):
                flat = chunk.reshape(-1, patches.dim)
                out = None if kept is None else kept[rows].view(-1, count)
                responses = torch.mm(flat, weights, out=out).relu_().view(len(chunk), -1, count)
                torch.matmul(patches.pool, responses, out=pooled[rows])

        if count:
            patches.map_shares(work)
        return pooled

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor, None]:
        (filters,) = ctx.saved_tensors
        patches: Patches = ctx.patches
        count = len(filters)
        # Slopes are written over what was kept, so that a second pass backward computes it again.
        memory, ctx.kept = ctx.kept, None
        entries = patches.n_images * patches.n_patches * count
        kept = memory[:entries].view(patches.n_images, -1, count) if memory is not None and entries else None
        weights = filters.detach().T.contiguous()
        # Sums over (cell, output) hand down slopes whose filters lie far apart.
        upstream = upstreams[0].contiguous()

        def work(share: slice) -> Tensor:
            gradient = torch.zeros_like(weights)
            for rows, chunk in patches.chunks(count, share):
                responses = chunk @ weights if kept is None else kept[rows]
                slopes = patches.pooler.spread(upstream[rows], responses)
                gradient.addmm_(chunk.flatten(0, 1).T, slopes.flatten(0, 1))
            return gradient

        gradient = sum(patches.map_shares(work), torch.zeros_like(weights)).T
        if memory is not None:
            patches.spare.leave(memory)
        return gradient, None


class LargestReLU(torch.autograd.Function):
    """Max-pooled ReLU responses with a backward pass that keeps the winners, or nothing when that is too much."""

    @staticmethod
    def forward(ctx: Any, filters: Tensor, patches: Patches) -> Tensor:
        count = len(filters)
        shape = (patches.n_images, patches.n_cells, count)
        pooled = patches.like.new_empty(shape)
        if not ctx.needs_input_grad[0] and patches.convolves(count):
            return patches.convolved(filters.detach(), pooled)
        keep = ctx.needs_input_grad[0] and pooled.numel() * torch.int32.itemsize <= KEPT_BYTES
        ctx.save_for_backward(filters)
        ctx.patches = patches
        ctx.winners = winners = torch.empty(shape if keep else (0, 0, 0), dtype=torch.int32, device=filters.device)
        weights = filters.detach().T.contiguous()

        def work(share: slice) -> None:
            for rows, chunk in patches.chunks(count, share):
                largest, places = patches.pooler.pool((chunk @ weights).relu_())
                pooled[rows] = largest
                if keep:
                    winners[rows] = places.int()

        if count:
            patches.map_shares(work)
        return pooled

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor, None]:
        (filters,) = ctx.saved_tensors
        patches: Patches = ctx.patches
        kept: Tensor = ctx.winners
        weights = filters.detach().T.contiguous()

        def work(share: slice) -> Tensor:
            gradient = torch.zeros_like(weights)
            for rows, chunk in patches.chunks(len(filters), share):
                winners = kept[rows] if kept.numel() else patches.pooler.pool((chunk @ weights).relu_())[1]
                slopes = patches.pooler.spread(upstreams[0][rows], winners)
                gradient.addmm_(chunk.flatten(0, 1).T, slopes.flatten(0, 1))
            return gradient

        return sum(patches.map_shares(work), torch.zeros_like(weights)).T, None
