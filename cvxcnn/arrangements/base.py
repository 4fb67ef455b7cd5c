"""Gates, their activation patterns, and what every gate sampler shares.

A gate g in R^d cuts the patches x_jk by a hyperplane through the origin; its pattern
D(g)_jk = 1[x_jk . g >= 0] is all that the convex program sees of it, so positive multiples of a gate are
the same gate, and so are any two gates with the same pattern. With max pooling the pattern of a gate is which patch
wins in each cell, if one is active.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.checks import as_int
from ..core.distributed import all_sum, broadcast, rank, size
from ..core.products import adjoint_product
from ..errors import InputError
from ..patches.activity import active
from ..patches.patches import Patches

__all__ = ["GateSampler", "Gates", "distinct", "draw_distinct", "patterns"]

# Rounds of drawing after which a sampler that keeps repeating itself is taken at what it gave.
MAX_ROUNDS = 10
# A fingerprint is this many sums of random integers below 2^24, one integer a patch: the sum over a chunk stays
# below 2^53, so float64 holds it exactly, and two patterns share all five with probability 2^-120.
FINGERPRINT_SUMS = 5
FINGERPRINT_SEED = 20061479
# Most gates differ on the first images, of about so many patches; only those that don't, or are active on none of them,
# are compared on all.
FIRST_PATCHES = 1 << 14
# Most responses of one image, K times the gates taken at once.
RESPONSES_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class Gates:
    """Gate vectors whose patterns differ, and what was dropped to make them so.

    Parameters
    ----------
    vectors : Tensor, shape (P, d)
        One gate a row, with the bias entry last.
    n_duplicates, n_zero : int
        Gates dropped because an earlier one has the same pattern, and because they are active on no patch.
    complete : bool
        Whether these are all the patterns that the patches have, but for the one active on no patch.
    """

    vectors: Tensor
    n_duplicates: int = 0
    n_zero: int = 0
    complete: bool = False

    def __len__(self) -> int:
        return len(self.vectors)


class GateSampler(ABC):
    """How gates are chosen; a sampler is a frozen dataclass, so that it compares, copies and prints by its settings.

    A new one defines ``sample`` and has a field ``count``, the number of gates that it is asked for.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from cvxcnn.patches import PatchGeometry
    >>> @dataclass(frozen=True)
    ... class BinaryGates(GateSampler):
    ...     count: int = 100
    ...
    ...     def sample(self, patches, count, generator):
    ...         bits = torch.randint(2, (count, patches.dim), generator=generator)
    ...         return (2 * bits - 1).to(patches.like)
    >>> patches = Patches(torch.eye(4).view(1, 1, 4, 4), PatchGeometry(kernel_size=2))
    >>> BinaryGates(5).draw(patches, torch.Generator().manual_seed(0)).vectors.shape
    torch.Size([5, 4])
    """

    count: int

    @abstractmethod
    def sample(self, patches: Patches, count: int, generator: torch.Generator) -> Tensor:
        """Return ``count`` gates, shape (count, d), in the dtype and on the device of the patches.

        Their patterns may repeat. ``generator`` is a CPU generator on every device, so that a seed means the
        same gates everywhere.
        """

    def draw(self, patches: Patches, generator: torch.Generator, targets: Tensor | None = None) -> Gates:
        """Return up to ``count`` gates of distinct patterns; see ``draw_distinct``.

        ``targets`` (n, outputs) are there for samplers that choose by them (``SupervisedGates``).
        """
        return draw_distinct(self.sample, patches, self.count, generator)


def check_count(count: Any, name: str = "count", of: str = "gates") -> int:
    """Return ``count`` as an int >= 1, or raise InputError."""
    return as_int(name, count, 1, f"the number of {of}")


def check_vectors(vectors: Tensor, patches: Patches) -> Tensor:
    """Return gate vectors in the dtype and on the device of the patches, or raise InputError."""
    if vectors.ndim != 2 or len(vectors) == 0:
        raise InputError(
            f"gates must be a non-empty (P, d) array, one gate a row; got shape {tuple(vectors.shape)}. "
            "Write a single gate as g[None, :]."
        )
    if vectors.shape[1] != patches.dim:
        kernel, channels = patches.kernel, patches.images.shape[1]
        length = f"{channels} * {kernel[0]} * {kernel[1]}"
        if patches.geometry.bias:
            length += " + 1 for the bias, whose entry comes last"
        else:
            length += ", without an entry for the bias because bias=False"
        raise InputError(
            f"gates have {vectors.shape[1]} entries each but the patches have {patches.dim} "
            f"(channels * kernel height * kernel width = {length})."
        )
    converted = vectors.detach().to(patches.like)
    if vectors.is_complex() or not torch.isfinite(converted).all():
        raise InputError("gates must be finite real numbers; some entries are not. Remove those rows.")
    return converted


def patterns(patches: Patches, vectors: Tensor) -> Tensor:
    """Return the activation patterns D(g)_jk = 1[x_jk . g >= 0], zero up to rounding counting as zero.

    Parameters
    ----------
    patches : Patches
        n images with K patches each.
    vectors : Tensor, shape (P, d)
        Gate vectors.

    Returns
    -------
    Tensor of bool, shape (P, n, K)

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> patches = Patches(torch.tensor([[[[1.0, 0.0, -2.0]]]]), PatchGeometry(kernel_size=1))
    >>> patterns(patches, torch.tensor([[3.0], [-1.0]])).int().tolist()
    [[[1, 1, 0]], [[0, 1, 1]]]
    """
    vectors = check_vectors(vectors, patches)
    found = torch.empty(
        len(vectors), patches.n_images, patches.n_patches, dtype=torch.bool, device=patches.images.device
    )
    for rows, chunk in patches.chunks(len(vectors)):
        found[:, rows] = active(chunk, vectors).permute(2, 0, 1)
    return found


def _fingerprints(patches: Patches, vectors: Tensor, seed: int = FINGERPRINT_SEED) -> Tensor:
    """Return one fingerprint a gate, equal for equal patterns and zero for no active patch; (P, 5) int64, on the CPU.

    Zero patches are left out: they are active for every gate and contribute nothing. Calls with equally many
    gates and the same seed can be compared with each other.
    """
    device = patches.images.device
    width = max(1, min(len(vectors), RESPONSES_AT_ONCE // patches.n_patches))
    prints = torch.zeros(len(vectors), FINGERPRINT_SUMS, dtype=torch.int64, device=device)
    for start in range(0, len(vectors), width):
        block = vectors[start : start + width]
        # Every block meets the same chunks, hence the same weights.
        generator = torch.Generator().manual_seed(seed)
        for _, chunk in patches.chunks(width):
            flat, patterns = patches.pooler.patterns(chunk, block)
            weights = torch.randint(1, 1 << 24, (len(flat), FINGERPRINT_SUMS), generator=generator)
            weights = weights.to(device, torch.float64) * (flat != 0).any(1, keepdim=True)
            prints[start : start + width] += adjoint_product(patterns.to(torch.float64), weights).to(torch.int64)
    return prints.cpu()


def _n_first(patches: Patches) -> int:
    return max(1, FIRST_PATCHES // patches.n_patches)


def _first_prints(patches: Patches, vectors: Tensor) -> Tensor:
    """Return the fingerprints on the first images, shape (P, 5), the same in every process."""
    if rank():  # another process sees to it
        return broadcast(torch.empty(len(vectors), FINGERPRINT_SUMS, dtype=torch.int64))
    count = _n_first(patches)
    few = patches.n_images <= count
    first = patches if few else patches.subset(torch.arange(count, device=patches.images.device))
    return broadcast(_fingerprints(first, vectors))


def _all_prints(patches: Patches, vectors: Tensor, prints: Tensor) -> Tensor:
    """Return the fingerprints on the first images, and on all images where those leave a doubt; (P, 5) or (P, 10).

    Rows are equal for equal patterns, and zero for gates that are active on no patch of any process.
    """
    if size() == 1 and patches.n_images <= _n_first(patches):
        return prints
    _, inverse = torch.unique(prints, dim=0, return_inverse=True)
    # A vector that is there twice has one pattern: no doubt, and no pass over all images.
    _, same = torch.unique(vectors.cpu(), dim=0, return_inverse=True)
    counts = torch.bincount(torch.unique(torch.stack([inverse, same]), dim=1)[0])
    doubtful = (counts[inverse] > 1) | (prints[:, 0] == 0)
    further = torch.zeros_like(prints)
    if doubtful.any():
        # Weights of its own in each process: the sums are then those of one pattern over the images of all.
        chosen = vectors[doubtful.to(vectors.device)]
        further[doubtful] = all_sum(_fingerprints(patches, chosen, FINGERPRINT_SEED + 1 + rank()))
    return torch.cat([prints, further], dim=1)


def _select(prints: Tensor, most: int) -> tuple[Tensor, int, int]:
    """Return the rows of the first ``most`` new patterns, and the duplicates and zeros met on the way to them."""
    count = len(prints)
    _, inverse = torch.unique(prints, dim=0, return_inverse=True)
    order = torch.arange(count)
    first = torch.full((count,), count).scatter_reduce(0, inverse, order, "amin")[inverse] == order
    zero = ~prints.any(dim=1)
    kept = (first & ~zero).nonzero().flatten()[:most]
    seen = int(kept[-1]) + 1 if len(kept) == most else count
    n_zero = int(zero[:seen].sum())
    return kept, seen - len(kept) - n_zero, n_zero


def distinct(patches: Patches, vectors: Tensor) -> Gates:
    """Return the gates whose pattern is new and active on some patch, in the order given.

    Patterns are compared over the first images, and those that are equal there over all n * K patches, of all
    processes, by fingerprints that are summed chunk by chunk, in memory that does not grow with n; two different
    patterns pass for equal with probability 2^-120.

    Parameters
    ----------
    patches : Patches
        n images with K patches each.
    vectors : Tensor, shape (P, d)
        Gate vectors.

    Raises
    ------
    InputError
        If the vectors have the wrong shape or are not finite.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> patches = Patches(torch.tensor([[[[1.0, 2.0]]]]), PatchGeometry(kernel_size=1))
    >>> gates = distinct(patches, torch.tensor([[1.0], [3.0], [-1.0]]))
    >>> gates.vectors.tolist(), gates.n_duplicates, gates.n_zero
    ([[1.0]], 1, 1)
    """
    vectors = check_vectors(vectors, patches)
    prints = _all_prints(patches, vectors, _first_prints(patches, vectors))
    kept, n_duplicates, n_zero = _select(prints, len(vectors))
    return Gates(vectors[kept.to(vectors.device)], n_duplicates, n_zero)


def draw_distinct(
    sample: Callable[[Patches, int, torch.Generator], Tensor],
    patches: Patches,
    count: int,
    generator: torch.Generator,
) -> Gates:
    """Return ``count`` gates of distinct patterns, drawing again for those that repeat or are never active.

    It gives up, with fewer gates, after a round that brings nothing new or after ten rounds. Several processes take
    what the sampler gives in the first.

    Parameters
    ----------
    sample : callable
        ``sample(patches, count, generator)`` returns gates, shape (count, d).
    patches : Patches
        n images with K patches each.
    count : int
        Gates wanted, >= 1.
    generator : torch.Generator
        CPU generator.
    """
    vectors = patches.like.new_empty(0, patches.dim)
    prints = torch.empty(0, FINGERPRINT_SUMS, dtype=torch.int64)
    reached = -1
    for _ in range(MAX_ROUNDS):
        drawn = check_vectors(sample(patches, count, generator), patches)
        if len(drawn) != count:
            raise InputError(f"a gate sampler returned {len(drawn)} gates where {count} were asked for.")
        drawn = broadcast(drawn)
        vectors = torch.cat([vectors, drawn])
        prints = torch.cat([prints, _first_prints(patches, drawn)])
        kept, n_duplicates, n_zero = _select(_all_prints(patches, vectors, prints), count)
        if len(kept) in (count, reached):
            break
        reached = len(kept)
    return Gates(vectors[kept.to(vectors.device)], n_duplicates, n_zero)
