"""What a block costs before it is solved: operations, seconds and bytes, and which solver that speaks for.

With n images, K patches an image of d entries, P blocks (gates or filters), c cells, r rows (1 for filters, d for
gates), o outputs, q = P c r columns, and p processes that share the images, a process does about

============  ================================================  ===================================================
what          operations                                        bytes beside the images
============  ================================================  ===================================================
features F    2 n/p K P d; for gates 2 n/p K P c d more;        2^27 at a time (2^30 on a GPU)
              2 n/p K r without gates
streamed      F + n/p q (q + 1024) + algebra, F in float64      8 q^2 for the Gram matrix, 8 q^2 for a factor, and
                                                                8 q^2 more where p > 1
working set   24 F, 2 F in float64, and algebra or, where       n/p q numbers, twice
              outputs are solved apart, 2400 o n/p q
algebra       4 q^3 / 3 + 240 o q^2 in float64; o times         included above
              4 q^3 / 3 + 240 q^2 where outputs are apart;
              1000 o q^2 without gates
semismooth    streamed, and F, and F in float64                 those of streamed
============  ================================================  ===================================================

An operation in float64 counts for two. The working set is taken to end with all groups in it, after 12 rounds; the
streamed solver to take 4 Cholesky factors, and 60 steps with one of them. Problems differ, so seconds are right to a
factor of two or three; bytes are upper bounds.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..core import distributed
from ..core.threads import map_items
from ..patches.geometry import PatchGeometry
from ..patches.patches import CACHE_BYTES
from ..program.design import PART_BYTES_CPU, PART_BYTES_GPU, GatedDesign
from ..program.lifts import WholeDesign
from ..program.program import Program

__all__ = ["Cost", "Size", "matmul_rate", "memory_here", "predict_memory", "prefers_streamed"]

logger = logging.getLogger(__name__)

_ROUNDS_WORKING_SET = 12
# Factors of the Gram matrix, and steps with one of them: of 256 to 1,536 filters 3 to 5 and 40 to 80 were needed.
_FACTORS, _STEPS = 4, 60
_GRAM_ROWS = 1024
# Products with the Gram matrix, of programs without gates.
_PRODUCTS = 500
# Below so many operations, some seconds, the working set is not worth leaving: it may need far fewer than all groups.
_LEAST_OPERATIONS = 1e12
_PROBE_SIDE = 1024


@dataclass(frozen=True)
class Cost:
    """Operations, those in float64 counted twice, and peak bytes beside the interpreter's own."""

    operations: float
    bytes: int


@dataclass(frozen=True)
class Size:
    """The numbers that a program's cost depends on.

    Attributes
    ----------
    images, patches, dim : int
        n over all processes, K, d.
    pixels : int
        Numbers in an image, over its channels.
    blocks, cells, rows, outputs : int
        P, c, r, o.
    gated : bool
        Whether features are gated patches rather than ReLU responses.
    separable : bool
        Whether outputs are solved apart, as for penalty="group".
    whole : bool
        Whether there are no gates. ``semismooth_newton`` is then what ``streamed`` is compared with: it solves the same
        Gram matrix, but looks at the images twice more.
    itemsize, image_itemsize : int
        Bytes of a number in features and in images.
    processes : int
    device : str
        "cpu" or "cuda".

    Examples
    --------
    >>> size = Size.of_block(100_000, (3, 32, 32), PatchGeometry(5, 1, 2, "mean", 2, True), blocks=1000, outputs=10)
    >>> size.columns, size.patches, size.dim
    (4000, 1024, 76)
    """

    images: int
    patches: int
    dim: int
    pixels: int
    blocks: int
    cells: int
    rows: int
    outputs: int
    gated: bool
    separable: bool
    whole: bool = False
    itemsize: int = 4
    image_itemsize: int = 4
    processes: int = 1
    device: str = "cpu"

    @property
    def columns(self) -> int:
        """q = P c r."""
        return self.blocks * self.cells * self.rows

    @classmethod
    def of(cls, program: Program) -> Size:
        """Return the size of a program; every process of a group has to call it."""
        design, patches = program.design, program.design.patches
        images = distributed.all_sum(torch.tensor(float(patches.n_images), device=patches.images.device))
        return cls(
            images=int(images),
            patches=patches.n_patches,
            dim=patches.dim,
            pixels=patches.images[:1].numel() or 1,
            blocks=design.n_blocks,
            cells=design.n_cells,
            rows=design.rows,
            outputs=program.n_outputs,
            gated=isinstance(design, GatedDesign),
            separable=program.penalty.separable,
            whole=isinstance(design, WholeDesign),
            itemsize=patches.like.element_size(),
            image_itemsize=patches.images.element_size(),
            processes=distributed.size(),
            device=patches.images.device.type,
        )

    @classmethod
    def of_block(
        cls,
        images: int,
        image_shape: tuple[int, int, int],
        geometry: PatchGeometry,
        *,
        blocks: int,
        outputs: int,
        gated: bool = False,
        separable: bool = False,
        itemsize: int = 4,
        image_itemsize: int | None = None,
        processes: int = 1,
        device: str = "cpu",
    ) -> Size:
        """Return the size of a block's program of so many ``blocks`` before there is one."""
        channels, height, width = image_shape
        kernel = geometry.sizes()[0]
        map_shape = geometry.map_shape((height, width))
        dim = channels * kernel[0] * kernel[1] + int(geometry.bias)
        return cls(
            images=images,
            patches=map_shape[0] * map_shape[1],
            dim=dim,
            pixels=channels * height * width,
            blocks=blocks,
            cells=geometry.pool_cells**2,
            rows=dim if gated else 1,
            outputs=outputs,
            gated=gated,
            separable=separable,
            itemsize=itemsize,
            image_itemsize=itemsize if image_itemsize is None else image_itemsize,
            processes=processes,
            device=torch.device(device).type,
        )

    def _features(self) -> float:
        """Operations for the features of a process's images once."""
        if self.whole:
            return 2.0 * self.images / self.processes * self.patches * self.rows
        responses = 2.0 * self.images / self.processes * self.patches * self.blocks * self.dim
        return responses * (1 + self.cells) if self.gated else responses

    def _images(self) -> int:
        """Bytes of a process's images and targets, and of patches that are kept."""
        own = -(-self.images // self.processes)
        patches = own * self.patches * self.dim * self.itemsize
        kept = patches if patches <= CACHE_BYTES else 0
        return own * (self.pixels * self.image_itemsize + 2 * self.outputs * 8) + kept

    def _double(self) -> float:
        """What an operation in float64 counts for."""
        return 2.0 if self.itemsize < 8 else 1.0

    def _algebra(self) -> float:
        """Operations of the group lasso on a Gram matrix, all groups active, or of Newton's method without gates."""
        if self.whole:
            return 2.0 * self._double() * _PRODUCTS * self.outputs * self.columns**2
        q, right = float(self.columns), 1 if self.separable else self.outputs
        solves = self.outputs if self.separable else 1
        return self._double() * solves * (_FACTORS * q**3 / 3 + 4 * _STEPS * right * q**2)

    def _part(self) -> int:
        """Bytes of the features of a part of the images, with the copies that are made on the way."""
        return 4 * (PART_BYTES_CPU if self.device == "cpu" else PART_BYTES_GPU)

    def streamed(self) -> Cost:
        """Return the cost of one pass for the Gram form, its solution, and one float64 pass."""
        q, own = float(self.columns), self.images / self.processes
        products = own * q * (q + min(q, _GRAM_ROWS))
        operations = self._features() * (1 + self._double()) + products + self._algebra()
        matrices = 2 if self.processes == 1 else 3
        return Cost(operations, int(matrices * 8 * q**2) + self._images() + self._part())

    def working_set(self) -> Cost:
        """Return the cost of a working set whose groups are all active in the end, or of semismooth Newton."""
        if self.whole:
            streamed = self.streamed()
            return Cost(streamed.operations + self._features() * (1 + self._double()), streamed.bytes)
        numbers = float(self.images) / self.processes * self.columns
        algebra = 200.0 * _ROUNDS_WORKING_SET * self.outputs * numbers
        if not self.separable:
            algebra = numbers * self.columns * self._double() + self._algebra()
        operations = 2 * self._features() * (_ROUNDS_WORKING_SET + self._double()) + algebra
        return Cost(operations, int(2 * numbers * self.itemsize) + self._images() + self._part())


def predict_memory(size: Size, solver: str = "auto") -> int:
    """Return the peak bytes of a process that solves a block of this size, beside those of the interpreter.

    An upper bound, for solvers "working_set" and "streamed" and for the one of them that "auto" takes.

    Examples
    --------
    >>> size = Size.of_block(100_000, (3, 32, 32), PatchGeometry(5, 1, 2, "mean", 2, True), blocks=1000, outputs=10)
    >>> round(predict_memory(size, "streamed") / 2**30, 1), round(predict_memory(size, "working_set") / 2**30, 1)
    (1.9, 4.6)
    """
    if solver == "streamed" or (solver == "auto" and prefers_streamed(size)):
        return size.streamed().bytes
    return size.working_set().bytes


def memory_here(device: str = "cpu") -> int:
    """Return the bytes of this machine's memory, or of a GPU's."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 1 << 62


def prefers_streamed(size: Size) -> bool:
    """Return whether one pass and a Gram matrix are cheaper than a working set, and fit this machine."""
    streamed, working_set = size.streamed(), size.working_set()
    if working_set.operations < _LEAST_OPERATIONS or streamed.bytes > memory_here(size.device):
        return False
    if size.whole and 2 * size.images <= size.columns:
        return False  # features are the smaller matrix
    return streamed.operations < working_set.operations or working_set.bytes > memory_here(size.device)


def choose(program: Program) -> bool:
    """Return ``prefers_streamed`` of a program, and log what both would cost where that is more than seconds."""
    size = Size.of(program)
    chosen = prefers_streamed(size)
    costs = {"streamed": size.streamed(), "working_set": size.working_set()}
    if min(cost.operations for cost in costs.values()) >= _LEAST_OPERATIONS:
        rate = matmul_rate(size.device, torch.float32 if size.itemsize < 8 else torch.float64)
        for name, cost in costs.items():
            logger.info(
                "%s%s: about %.2g operations, %.0f s at %.0f Gflop/s, %.2f GiB",
                name,
                " (chosen)" if (name == "streamed") == chosen else "",
                cost.operations,
                cost.operations / rate,
                rate / 1e9,
                cost.bytes / 2**30,
            )
    return chosen


@lru_cache(maxsize=4)
def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Return the operations a second of matrix products here, from a probe of a tenth of a second or so."""
    target = torch.device(device)
    matrix = torch.ones(_PROBE_SIDE, _PROBE_SIDE, dtype=dtype, device=target)
    repeats = range(4 if target.type == "cpu" else 64)

    def run() -> float:
        began = time.perf_counter()
        map_items(lambda _: matrix @ matrix, repeats, target)
        if target.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    run()  # the first use of a library loads it
    return 2.0 * _PROBE_SIDE**3 * len(repeats) / run()
