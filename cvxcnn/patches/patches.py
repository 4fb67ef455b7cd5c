"""Images to patches, and the three linear and ReLU maps on patches that every program needs.

Symbols follow the mathematics of the package: n images, K patches per image, patch length
d = C * kh * kw (+ 1 with ``bias``), x_jk patch k of image j, pooling cells c = 1..a*a. All work runs in
chunks of images that fit a processor's cache, so that no array of n * K * filters entries is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.threads import map_shares
from .activity import softly_active
from .geometry import PatchGeometry
from .pooled_relu import LargestReLU, PooledReLU, Spare
from .poolers import WeightedPooler
from .pooling import get_pooling

__all__ = ["Patches"]

# Unfolded patches up to this many bytes are kept; larger ones are unfolded again for each chunk.
CACHE_BYTES = 2 << 30
# Entries of the largest temporary of a chunk: about the second-level cache of a CPU core in float32.
CHUNK_ENTRIES_CPU = 1 << 18
CHUNK_ENTRIES_GPU = 1 << 28
# From this many products an image on, images are convolved one at a time: the responses of one fill the cache.
CONVOLUTION_PRODUCTS = 1 << 20
# Responses of one image that are pooled together, where each filter's lie together: of more the system takes the memory
# back after each image and clears it for the next, which takes twice as long as the convolution.
_POOLED_ENTRIES = 1 << 19
# Images whose maps are made at once on a GPU.
_IMAGES_GPU = 256
# Images whose patches are measured at once.
_IMAGES_MEASURED = 1024
# Images that single patches are taken of at once.
_IMAGES_TAKEN = 256
# A thread is not worth waking for fewer patches.
_SHARE_PATCHES = 1024

Result = TypeVar("Result")


def _sides(padding: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return padding (height, width) as ``F.pad`` takes it; ``F.avg_pool2d`` pads by half a kernel at most."""
    return padding[1], padding[1], padding[0], padding[0]


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
    pooler : Pooler
        What pools responses into cells.
    spare : Spare
        Memory that passes over the patches leave to each other.
    like : Tensor, shape (0,)
        Of the dtype and on the device of the patches, for ``like.new_zeros(...)`` and ``.to(like)``.

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
        self.like = torch.empty(0, dtype=self.dtype, device=images.device)
        self.pooler = get_pooling(geometry.pooling).pooler(
            self.map_shape, geometry.pool_cells, scale, self.dtype, images.device
        )
        self._cached: Tensor | None = None
        self._lengths: Tensor | None = None
        self._keeps = True
        self.spare = Spare()

    @property
    def pool(self) -> Tensor:
        """The pooling weights P_ck, shape (n_cells, K); all that assumes them is for linear pooling alone.

        Raises
        ------
        InputError
            If the pooling is not linear.
        """
        if not isinstance(self.pooler, WeightedPooler):
            return get_pooling(self.geometry.pooling).weights(self.map_shape, self.geometry.pool_cells)
        return self.pooler.weights

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

    def _views(self, images: Tensor) -> Tensor:
        """Return what the kernel sees of images at each place, shape (b, C, H', W', kernel), a view of them padded."""
        padded = F.pad(images, _sides(self.padding)) if any(self.padding) else images
        return padded.unfold(2, self.kernel[0], self.stride[0]).unfold(3, self.kernel[1], self.stride[1])

    def _columns(self, images: Tensor) -> Tensor:
        """Return the patches of images without the bias, shape (b, d, K)."""
        if self.kernel == self.stride == (1, 1) and self.padding == (0, 0):
            return images.flatten(2)  # each pixel is a patch, so nothing is copied
        length = self.dim - self.geometry.bias
        return self._views(images).permute(0, 1, 4, 5, 2, 3).reshape(len(images), length, self.n_patches)

    def _unfold(self, images: Tensor) -> Tensor:
        # One copy of a view: F.unfold makes two more, and on a GPU goes image by image.
        views = self._views(images.to(self.dtype)).permute(0, 2, 3, 1, 4, 5)
        patches = self.like.new_empty(*views.shape[:3], self.dim)
        if self.geometry.bias:
            patches[..., -1] = 1.0
        patches[..., : self.dim - self.geometry.bias].view(views.shape).copy_(views)
        return patches.flatten(1, 2)

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
        """Return single patches, shape (count, d): patch ``places[i]`` of image ``images[i]``, and no others."""
        rows, inverse = torch.unique(images, return_inverse=True)
        taken = self.like.new_empty(len(images), self.dim)
        if self.geometry.bias:
            taken[:, -1] = 1.0
        across = self.map_shape[1]
        for start in range(0, len(rows), _IMAGES_TAKEN):
            own = ((inverse >= start) & (inverse < start + _IMAGES_TAKEN)).nonzero().flatten()
            views = self._views(self.images[rows[start : start + _IMAGES_TAKEN]])
            where = places[own]
            found = views[inverse[own] - start, :, where // across, where % across]
            taken[own, : self.dim - self.geometry.bias] = found.flatten(1).to(self.dtype)
        return taken

    def lengths(self) -> Tensor:
        """Return the pooled lengths sum_k P_ck ||x_jk||, shape (n, cells), float64: what rounding is measured by.

        Of max pooling the largest of a cell.
        """
        if self._lengths is None:
            kernel = self.kernel[0] * self.kernel[1]
            parts = []
            for images in torch.split(self.images, _IMAGES_MEASURED):
                # Precise enough in float32 where images are no wider, in one pass over them.
                wide = torch.promote_types(images.dtype, torch.float32)
                squares = torch.linalg.vector_norm(images, dim=1, keepdim=True, dtype=wide).double().square()
                means = F.avg_pool2d(F.pad(squares, _sides(self.padding)), self.kernel, self.stride)
                lengths = (kernel * means + float(self.geometry.bias)).sqrt().flatten(1)
                parts.append(self._pooled_lengths(lengths))
            self._lengths = torch.cat(parts) if parts else self.like.new_zeros(0, self.n_cells, dtype=torch.float64)
        return self._lengths

    def _pooled_lengths(self, lengths: Tensor) -> Tensor:
        """Return lengths (b, K) pooled like responses, in float64."""
        if isinstance(self.pooler, WeightedPooler):
            return lengths @ self.pooler.weights.double().T
        return self.pooler.pool(lengths.unsqueeze(2))[0].squeeze(2)

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
        return self.n_images * self.n_patches * self.dim * self.like.element_size()

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

        With max pooling max_{k in c} (x_jk . u_i)_+; at a tie its slope is that of the first of the largest.

        Parameters
        ----------
        filters : Tensor, shape (m, d)
            One filter u_i a row, with the bias last.

        Returns
        -------
        Tensor, shape (n, cells, m)
        """
        function = PooledReLU if self.pooler.linear else LargestReLU
        pooled: Tensor = function.apply(filters, self)  # type: ignore[no-untyped-call]
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
        kernels = flat.view(len(filters), self.images.shape[1], *self.kernel).contiguous(memory_format=self._order())

        def respond(rows: slice) -> Tensor:
            images = self.images[rows].to(self.dtype)
            if self.dtype == torch.float32:
                responses = F.conv2d(images, kernels, bias, self.stride, self.padding)
                return responses.relu_() if rectify else responses
            products = flat @ self._columns(images)
            products = products if bias is None else products.add_(bias[:, None])
            return products.relu_() if rectify else products

        return respond

    def _order(self) -> torch.memory_format:
        """Return how responses lie in memory: of grey images those of a place together, which is far faster there."""
        grey = self.images.shape[1] == 1 and self.images.device.type == "cpu"
        return torch.channels_last if grey and self.dtype == torch.float32 else torch.contiguous_format

    def convolved(self, filters: Tensor, pooled: Tensor) -> Tensor:
        """Write the pooled ReLU responses into ``pooled`` (n, cells, m), one image at a time, and return it."""
        count, (height, width), cells = len(filters), self.map_shape, self.geometry.pool_cells
        planes = self._order() == torch.contiguous_format
        tiled = height % cells == 0 and width % cells == 0 and planes
        weight = get_pooling(self.geometry.pooling).constant(self.n_patches // cells**2) if tiled else None
        parts = max(1, -(-count * self.n_patches // _POOLED_ENTRIES)) if planes else 1
        most = max(1, -(-count // parts))
        pieces = [
            (slice(first, first + most), self._responses(filters[first : first + most]))
            for first in range(0, count, most)
        ]

        def pool(responses: Tensor) -> Tensor:
            if weight is None:
                return self.pooler.pool(responses.flatten(2).transpose(1, 2))[0][0]
            tiles = responses.view(-1, cells, height // cells, cells, width // cells)
            return tiles.sum(dim=(2, 4)).flatten(1).T.mul_(self.scale * weight)

        def work(share: slice) -> None:
            for row in range(share.start, share.stop):
                for piece, respond in pieces:
                    pooled[row, :, piece] = pool(respond(slice(row, row + 1)))

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
        maps = self.like.new_empty(self.n_images, count, self.n_patches)

        def work(share: slice) -> None:
            for rows, chunk in self.chunks(count, share):
                responses = chunk @ filters.T
                maps[rows] = (responses.relu_() if rectify else responses).transpose(1, 2)

        self.map_shares(work)
        return maps.view(self.n_images, *shape)

    def gated_features(self, gates: Tensor) -> Tensor:
        """Return phi = sum_k P_ck 1[x_jk . g_i >= 0] x_jk, shape (n, P, cells, d).

        With max pooling that of the winner of g_i in each cell, if one is active (``activity.winning``).
        """
        features = self.like.new_empty(self.n_images, len(gates), self.n_cells, self.dim)

        def work(share: slice) -> None:
            for rows, chunk in self.chunks(len(gates), share):
                for cell, (places, weights, pattern) in enumerate(self.pooler.parts(chunk, gates)):
                    weighted = chunk[:, places] * weights[:, None]
                    features[rows, :, cell] = pattern.to(chunk.dtype).transpose(1, 2) @ weighted

        self.map_shares(work)
        return features

    def gated_correlation(self, gates: Tensor, dual: Tensor, sharpness: Tensor | None = None) -> Tensor:
        """Return the adjoint of the gated features, sum_jk P_ck D_jk x_jk nu_jo, shape (P, cells, d, outputs).

        Parameters
        ----------
        gates : Tensor, shape (P, d)
            Gate vectors.
        dual : Tensor, shape (n, outputs)
            Dual point nu, most often the residual y - f.
        sharpness : Tensor, shape (P,), optional
            Of patterns with soft edges (``softly_active``), for unit gates and linear pooling.
        """
        outputs = dual.shape[1]

        def work(share: slice) -> Tensor:
            total = self.like.new_zeros(self.n_cells, self.dim, len(gates), outputs)
            for rows, chunk in self.chunks(len(gates) * outputs, share):
                if sharpness is None:
                    parts = self.pooler.parts(chunk, gates)
                else:
                    soft = softly_active(chunk, gates, sharpness)
                    parts = [
                        (places, weights[places], soft[:, places])
                        for places, weights in zip(self.pooler.members(), self.pool, strict=True)
                    ]
                for cell, (places, weights, pattern) in enumerate(parts):
                    weighted = weights[None, :, None] * dual[rows].unsqueeze(1)
                    spread = pattern.to(chunk.dtype).unsqueeze(-1) * weighted.unsqueeze(2)
                    flat = chunk[:, places].flatten(0, 1)
                    total[cell] += (flat.T @ spread.flatten(0, 1).flatten(1)).view_as(total[cell])
            return total

        shares = self.map_shares(work)
        return sum(shares[1:], shares[0]).permute(2, 0, 1, 3).contiguous()

    def gated_prediction(self, gates: Tensor, weights: Tensor) -> Tensor:
        """Return f_jo = sum_ikc P_ck D_jk^i x_jk . z_ico, shape (n, outputs), for weights (P, cells, d, outputs)."""
        count, cells, dim, outputs = weights.shape
        columns = weights.permute(1, 2, 0, 3).reshape(cells, dim, count * outputs)
        prediction = self.like.new_empty(self.n_images, outputs)

        def work(share: slice) -> None:
            for rows, chunk in self.chunks(count * cells * outputs, share):
                total = chunk.new_zeros(len(chunk), outputs)
                for cell, (places, pooled, pattern) in enumerate(self.pooler.parts(chunk, gates)):
                    linear = (chunk[:, places] @ columns[cell]).view(len(chunk), len(places), count, outputs)
                    total += torch.einsum("bkp,bkpo,k->bo", pattern.to(chunk.dtype), linear, pooled)
                prediction[rows] = total

        self.map_shares(work)
        return prediction
