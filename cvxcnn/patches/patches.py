"""Images to patches, and the three linear and ReLU maps on patches that every program needs.

Symbols follow the mathematics of the package: n images, K patches per image, patch length
d = C * kh * kw (+ 1 with ``bias``), x_jk patch k of image j, pooling cells c = 1..a*a. All work runs in
chunks of images that fit a processor's cache, so that no array of n * K * filters entries is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.threads import map_shares
from .activity import active, softly_active
from .geometry import PatchGeometry
from .pooling import get_pooling

__all__ = ["Patches"]

# Unfolded patches up to this many bytes are kept; larger ones are unfolded again for each chunk.
CACHE_BYTES = 2 << 30
# Responses up to this many bytes are kept for the backward pass; larger ones are computed again.
KEPT_BYTES = 1 << 28
# Entries of the largest temporary of a chunk: about the second-level cache of a CPU core in float32.
CHUNK_ENTRIES_CPU = 1 << 18
CHUNK_ENTRIES_GPU = 1 << 28
# From this many products an image on, images are convolved one at a time: the responses of one fill the cache.
CONVOLUTION_PRODUCTS = 1 << 20
# Images whose maps are made at once on a GPU.
_IMAGES_GPU = 256
# Images whose patches are measured at once.
_IMAGES_MEASURED = 1024
# A thread is not worth waking for fewer patches.
_SHARE_PATCHES = 1024

Result = TypeVar("Result")


def _sides(padding: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return padding (height, width) as ``F.pad`` takes it; ``F.avg_pool2d`` pads by half a kernel at most."""
    return padding[1], padding[1], padding[0], padding[0]


class _PooledReLU(torch.autograd.Function):
    """Pooled ReLU responses with a backward pass that keeps them unpooled, or nothing when that is too much.

    A mask of the active ones would be a quarter of that, but to write and to apply it costs more than all the rest.
    """

    @staticmethod
    def forward(ctx: Any, filters: Tensor, patches: Patches) -> Tensor:
        count = len(filters)
        entries = patches.n_images * patches.n_patches * count
        keep = ctx.needs_input_grad[0] and entries * filters.element_size() <= KEPT_BYTES
        ctx.save_for_backward(filters)
        ctx.patches = patches
        pooled = patches.pool.new_empty(patches.n_images, patches.n_cells, count)
        if not ctx.needs_input_grad[0] and patches.convolves(count):
            return patches.convolved(filters.detach(), pooled)
        shape = (patches.n_images, patches.n_patches, count) if keep else (0, 0, 0)
        ctx.kept = kept = filters.new_empty(shape)
        weights = filters.detach().T.contiguous()

        def work(share: slice) -> None:
            for rows, chunk in patches.chunks(count, share):
                flat = chunk.reshape(-1, patches.dim)
                out = kept[rows].view(-1, count) if keep else None
                responses = torch.mm(flat, weights, out=out).relu_().view(len(chunk), -1, count)
                torch.matmul(patches.pool, responses, out=pooled[rows])

        if count:
            patches.map_shares(work)
        return pooled

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor, None]:
        (filters,) = ctx.saved_tensors
        patches: Patches = ctx.patches
        kept: Tensor = ctx.kept
        count = len(filters)
        weights = filters.detach().T.contiguous()
        spread = patches.pool.T.contiguous()

        def work(share: slice) -> Tensor:
            gradient = torch.zeros_like(weights)
            for rows, chunk in patches.chunks(count, share):
                flat = chunk.reshape(-1, patches.dim)
                incoming = torch.matmul(spread, upstreams[0][rows]).reshape(-1, count)
                responses = kept[rows].view(-1, count) if kept.numel() else flat @ weights
                gradient.addmm_(flat.T, torch.ops.aten.threshold_backward(incoming, responses, 0))
            return gradient

        return sum(patches.map_shares(work), torch.zeros_like(weights)).T, None


class Patches:
    """The patches of a set of images, and the linear and ReLU maps on them.

    Parameters
    ----------
    images : Tensor, shape (n, C, H, W)
        Float images, already checked; the patches live on their device.
    geometry : PatchGeometry
        Kernel, stride, padding, pooling, bias.
    dtype : torch.dtype or None
        What patches are computed in; None for the images' own. Images kept in a narrower type, float16 say, are
        converted chunk by chunk: rounding to that type is then part of the data.
    scale : float
        What the pooling weights are multiplied by.

    Attributes
    ----------
    n_images, n_patches, n_cells, dim : int
        n, K, number of pooling cells, and patch length d.
    pool : Tensor, shape (n_cells, K)
        Pooling weights, in the dtype and on the device of the patches.

    Notes
    -----
    Memory: n * K * d numbers are kept when they fit in 2 GiB; otherwise patches are unfolded chunk by
    chunk, and only a few MiB are held beside the images. Every method adds at most its result, and a
    chunk of 2^18 numbers (2^28 on a GPU), or the responses to one image.

    Examples
    --------
    >>> patches = Patches(torch.ones(2, 1, 4, 4), PatchGeometry(kernel_size=2, bias=True))
    >>> patches.n_patches, patches.dim
    (9, 5)
    >>> patches.relu_features(torch.ones(3, 5)).shape  # images, cells, filters
    torch.Size([2, 1, 3])
    """

    def __init__(
        self, images: Tensor, geometry: PatchGeometry, dtype: torch.dtype | None = None, scale: float = 1.0
    ) -> None:
        self.images = images
        self.geometry = geometry
        self.dtype = images.dtype if dtype is None else dtype
        self.kernel, self.stride, self.padding = geometry.sizes()
        n, channels, height, width = images.shape
        self.map_shape = geometry.map_shape((height, width))
        self.n_images = n
        self.n_patches = self.map_shape[0] * self.map_shape[1]
        self.n_cells = geometry.pool_cells**2
        self.dim = channels * self.kernel[0] * self.kernel[1] + int(geometry.bias)
        self.scale = scale
        self.pool = scale * geometry.pool_matrix((height, width)).to(images.device, self.dtype)
        self._cached: Tensor | None = None
        self._lengths: Tensor | None = None
        self._keeps = True

    def astype(self, dtype: torch.dtype) -> Patches:
        """Return the same patches in another dtype (these ones if it is theirs); images are never made wider."""
        if dtype == self.dtype:
            return self
        narrower = torch.finfo(dtype).bits < torch.finfo(self.images.dtype).bits
        return Patches(self.images.to(dtype) if narrower else self.images, self.geometry, dtype, self.scale)

    def subset(self, rows: Tensor | slice) -> Patches:
        """Return the patches of the images with these indices; a slice shares memory and keeps no patches."""
        part = Patches(self.images[rows], self.geometry, self.dtype, self.scale)
        if isinstance(rows, slice):
            part._keeps = False
            part._cached = None if self._cached is None else self._cached[rows]
        return part

    def _unfold(self, images: Tensor) -> Tensor:
        columns = F.unfold(images.to(self.dtype), self.kernel, padding=self.padding, stride=self.stride).transpose(1, 2)
        if self.geometry.bias:
            columns = F.pad(columns, (0, 1), value=1.0)
        return columns.contiguous()

    def unfold(self) -> Tensor:
        """Return all patches, shape (n, K, d): the stacked matrix R of the program, n * K * d numbers."""
        if self._cached is not None:
            return self._cached
        patches = self._unfold(self.images)
        if self._keeps and self._total_bytes() <= CACHE_BYTES:
            self._cached = patches
        return patches

    def _whole(self) -> Tensor | None:
        """Return all patches if they are kept."""
        if self._keeps and self._total_bytes() <= CACHE_BYTES:
            self.unfold()
        return self._cached

    def take(self, images: Tensor, places: Tensor) -> Tensor:
        """Return single patches, shape (count, d): patch ``places[i]`` of image ``images[i]``."""
        rows, inverse = torch.unique(images, return_inverse=True)
        return self._unfold(self.images[rows])[inverse, places]

    def lengths(self) -> Tensor:
        """Return the pooled lengths sum_k P_ck ||x_jk||, shape (n, cells), float64: what rounding is measured by."""
        if self._lengths is None:
            kernel = self.kernel[0] * self.kernel[1]
            parts = []
            for images in torch.split(self.images, _IMAGES_MEASURED):
                # Precise enough in float32 where images are no wider, in one pass over them.
                wide = torch.promote_types(images.dtype, torch.float32)
                squares = torch.linalg.vector_norm(images, dim=1, keepdim=True, dtype=wide).double().square()
                means = F.avg_pool2d(F.pad(squares, _sides(self.padding)), self.kernel, self.stride)
                lengths = (kernel * means + float(self.geometry.bias)).sqrt().flatten(1)
                parts.append(lengths @ self.pool.double().T)
            self._lengths = torch.cat(parts) if parts else self.pool.new_zeros(0, self.n_cells, dtype=torch.float64)
        return self._lengths

    def fold(self, patches: Tensor) -> Tensor:
        """Return the adjoint of ``unfold`` applied to (n, K, d) patches: images, shape (n, C, H, W).

        Defined by <unfold(images), patches> = <images, fold(patches)>; the constant that ``bias`` appends
        does not depend on the images and drops out.
        """
        columns = patches[..., :-1] if self.geometry.bias else patches
        size = (self.images.shape[2], self.images.shape[3])
        return F.fold(columns.transpose(1, 2), size, self.kernel, padding=self.padding, stride=self.stride)

    def map_shares(self, work: Callable[[slice], Result]) -> list[Result]:
        """Return ``work`` of consecutive shares of the images, one for each thread."""
        self._whole()  # once, before the threads ask for it
        least = -(-_SHARE_PATCHES // self.n_patches)
        return map_shares(work, self.n_images, self.images.device, least)

    def _total_bytes(self) -> int:
        return self.n_images * self.n_patches * self.dim * self.pool.element_size()

    def chunks(self, width: int, share: slice | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows, patches) with patches (b, K, d), sized for ``width`` responses a patch."""
        entries = CHUNK_ENTRIES_CPU if self.images.device.type == "cpu" else CHUNK_ENTRIES_GPU
        size = max(1, entries // (self.n_patches * max(width, 1)))
        whole = self._whole()
        first, last = (0, self.n_images) if share is None else (share.start, share.stop)
        for start in range(first, last, size):
            rows = slice(start, min(start + size, last))
            yield rows, whole[rows] if whole is not None else self._unfold(self.images[rows])

    def relu_features(self, filters: Tensor) -> Tensor:
        """Return the pooled ReLU responses sum_k P_ck (x_jk . u_i)_+, differentiable in the filters.

        Parameters
        ----------
        filters : Tensor, shape (m, d)
            One filter u_i a row, with the bias last.

        Returns
        -------
        Tensor, shape (n, cells, m)
        """
        pooled: Tensor = _PooledReLU.apply(filters, self)  # type: ignore[no-untyped-call]
        return pooled

    def convolves(self, count: int) -> bool:
        """Return whether responses to ``count`` filters are cheaper one image at a time than in chunks."""
        return self.images.device.type == "cpu" and count * self.n_patches * self.dim >= CONVOLUTION_PRODUCTS

    def _responses(self, filters: Tensor, rectify: bool = True) -> Callable[[slice], Tensor]:
        """Return the function that gives the (ReLU) responses of some images, shape (b, m, K) or (b, m, H', W').

        A convolution in float32, which has fast ones; a matrix product otherwise.
        """
        flat, bias = (filters[:, :-1], filters[:, -1]) if self.geometry.bias else (filters, None)
        flat = flat.contiguous()
        kernels = flat.view(len(filters), self.images.shape[1], *self.kernel)

        def respond(rows: slice) -> Tensor:
            images = self.images[rows].to(self.dtype)
            if self.dtype == torch.float32:
                responses = F.conv2d(images, kernels, bias, self.stride, self.padding)
                return responses.relu_() if rectify else responses
            products = flat @ F.unfold(images, self.kernel, padding=self.padding, stride=self.stride)
            products = products if bias is None else products.add_(bias[:, None])
            return products.relu_() if rectify else products

        return respond

    def convolved(self, filters: Tensor, pooled: Tensor) -> Tensor:
        """Write the pooled ReLU responses into ``pooled`` (n, cells, m), one image at a time, and return it."""
        count, (height, width), cells = len(filters), self.map_shape, self.geometry.pool_cells
        tiled = height % cells == 0 and width % cells == 0
        weight = get_pooling(self.geometry.pooling).constant(self.n_patches // cells**2) if tiled else None
        respond = self._responses(filters)

        def work(share: slice) -> None:
            for row in range(share.start, share.stop):
                responses = respond(slice(row, row + 1))
                if weight is not None:
                    parts = responses.view(count, cells, height // cells, cells, width // cells)
                    pooled[row] = parts.sum(dim=(2, 4)).view(count, -1).T.mul_(self.scale * weight)
                else:
                    torch.mm(self.pool, responses.view(count, -1).T, out=pooled[row])

        map_shares(work, self.n_images, self.images.device)
        return pooled

    def relu_maps(self, filters: Tensor, then: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return the unpooled ReLU responses, shape (n, m, H', W'), n * m * H' * W' numbers.

        With ``then``, a function of maps (b, m, H', W') that takes each image by itself, what it makes of them: the
        maps of all images are never there together.
        """
        return self._maps(filters, then, rectify=True)

    def linear_maps(self, filters: Tensor, then: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return the unpooled responses x_jk . u_i, as ``relu_maps`` returns their positive parts."""
        return self._maps(filters, then, rectify=False)

    def _maps(self, filters: Tensor, then: Callable[[Tensor], Tensor] | None, *, rectify: bool) -> Tensor:
        count, shape = len(filters), (len(filters), *self.map_shape)
        if count and self.n_images and (then is not None or self.convolves(count)):
            respond = self._responses(filters, rectify)

            def made(rows: slice) -> Tensor:
                maps = respond(rows).view(-1, *shape)
                return maps if then is None else then(maps)

            first = made(slice(0, 1))
            found = first.new_empty(self.n_images, *first.shape[1:])
            # One image at a time stays in a processor's cache.
            step = 1 if self.images.device.type == "cpu" else _IMAGES_GPU

            def convolve(share: slice) -> None:
                for start in range(share.start, share.stop, step):
                    rows = slice(start, min(start + step, share.stop))
                    found[rows] = made(rows)

            map_shares(convolve, self.n_images, self.images.device)
            return found
        maps = self.pool.new_empty(self.n_images, count, self.n_patches)

        def work(share: slice) -> None:
            for rows, chunk in self.chunks(count, share):
                responses = chunk @ filters.T
                maps[rows] = (responses.relu_() if rectify else responses).transpose(1, 2)

        self.map_shares(work)
        return maps.view(self.n_images, *shape)

    def gated_features(self, gates: Tensor) -> Tensor:
        """Return phi = sum_k P_ck 1[x_jk . g_i >= 0] x_jk, shape (n, P, cells, d)."""
        features = self.pool.new_empty(self.n_images, len(gates), self.n_cells, self.dim)
        members = self._members()

        def work(share: slice) -> None:
            for rows, chunk in self.chunks(len(gates), share):
                patterns = active(chunk, gates).to(chunk.dtype)
                for cell, places in enumerate(members):
                    weighted = chunk[:, places] * self.pool[cell, places][:, None]
                    features[rows, :, cell] = patterns[:, places].transpose(1, 2) @ weighted

        self.map_shares(work)
        return features

    def _members(self) -> list[Tensor]:
        """Return the patches of each cell, which are all that it sees, so that cells are worked through apart."""
        return [self.pool[cell].nonzero().flatten() for cell in range(self.n_cells)]

    def gated_correlation(self, gates: Tensor, dual: Tensor, sharpness: Tensor | None = None) -> Tensor:
        """Return the adjoint of the gated features, sum_jk P_ck D_jk x_jk nu_jo, shape (P, cells, d, outputs).

        Parameters
        ----------
        gates : Tensor, shape (P, d)
            Gate vectors.
        dual : Tensor, shape (n, outputs)
            Dual point nu, most often the residual y - f.
        sharpness : Tensor, shape (P,), optional
            Of patterns with soft edges (``softly_active``), for unit gates.
        """
        outputs = dual.shape[1]
        members = self._members()

        def work(share: slice) -> Tensor:
            total = self.pool.new_zeros(self.n_cells, self.dim, len(gates), outputs)
            for rows, chunk in self.chunks(len(gates) * outputs, share):
                if sharpness is None:
                    patterns = active(chunk, gates).to(chunk.dtype)
                else:
                    patterns = softly_active(chunk, gates, sharpness)
                for cell, places in enumerate(members):
                    weighted = self.pool[cell, places][None, :, None] * dual[rows].unsqueeze(1)
                    spread = patterns[:, places].unsqueeze(-1) * weighted.unsqueeze(2)
                    flat = chunk[:, places].flatten(0, 1)
                    total[cell] += (flat.T @ spread.flatten(0, 1).flatten(1)).view_as(total[cell])
            return total

        shares = self.map_shares(work)
        return sum(shares[1:], shares[0]).permute(2, 0, 1, 3).contiguous()

    def gated_prediction(self, gates: Tensor, weights: Tensor) -> Tensor:
        """Return f_jo = sum_ikc P_ck D_jk^i x_jk . z_ico, shape (n, outputs), for weights (P, cells, d, outputs)."""
        count, cells, dim, outputs = weights.shape
        columns = weights.permute(2, 0, 1, 3).reshape(dim, -1)
        prediction = self.pool.new_empty(self.n_images, outputs)

        def work(share: slice) -> None:
            for rows, chunk in self.chunks(count * cells * outputs, share):
                patterns = active(chunk, gates).to(chunk.dtype)
                linear = (chunk @ columns).view(*chunk.shape[:2], count, cells, outputs)
                prediction[rows] = torch.einsum("bkp,bkpco,ck->bo", patterns, linear, self.pool)

        self.map_shares(work)
        return prediction
