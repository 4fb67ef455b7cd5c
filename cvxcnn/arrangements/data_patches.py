"""Gates that are whitened patches of the images themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..core.checks import as_flag, as_int, as_number, is_number
from ..core.distributed import gather_rows, rank, row_counts
from ..core.products import gram_of
from ..core.threads import map_items
from ..errors import InputError
from ..patches.patches import Patches
from .base import GateSampler, check_count

__all__ = ["PatchGates", "whitening"]

# Patches that gates, covariance and thresholds are taken from: all of them up to this number, or this many numbers.
POOL_PATCHES = 1 << 16
POOL_ENTRIES = 1 << 25
# Of a larger set, at least this many come from one image, so that few images are unfolded.
PATCHES_PER_IMAGE = 16
# Responses at once for the thresholds.
RESPONSE_ENTRIES = 1 << 22


def _pool(patches: Patches, generator: torch.Generator) -> Tensor:
    """Return all patches if they are few, otherwise a random choice of them, shape (N, d), float64.

    They are those of one process with all images: each one draws from all, and extracts what it holds.
    """
    most = min(POOL_PATCHES, max(1, POOL_ENTRIES // patches.dim))
    counts = row_counts(patches.images)
    if sum(counts) * patches.n_patches <= most:
        return gather_rows(patches.unfold()).flatten(0, 1).to(torch.float64)
    per_image = max(min(PATCHES_PER_IMAGE, patches.n_patches), math.ceil(most / sum(counts)))
    device = patches.images.device
    drawn = torch.randperm(sum(counts), generator=generator)[: math.ceil(most / per_image)]
    positions = torch.randint(patches.n_patches, (len(drawn), per_image), generator=generator)
    own = drawn - sum(counts[: rank()])
    held = ((own >= 0) & (own < counts[rank()])).nonzero().flatten()
    places = positions[held].to(device).flatten()
    pool = patches.take(own[held].to(device).repeat_interleave(per_image), places).view(-1, per_image, patches.dim)
    order = torch.argsort(gather_rows(held)).to(device)
    return gather_rows(pool)[order].flatten(0, 1)[:most].to(torch.float64)


def whitening(rows: Tensor, eps: float = 0.03, dims: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the mean mu and the ZCA matrix W = (S + eps * tr(S)/d * I)^(-1/2) of a set of patches.

    S is the covariance, divided by the number of patches: W (x - mu) has covariance I as eps goes to 0.
    Adding a share of the mean variance keeps directions in which natural patches hardly vary from
    drowning the others (Thiry et al. 2021, arXiv:2101.07528). With ``dims`` they are left out altogether: W = V
    diag(...) V^T, with V the ``dims`` leading eigenvectors of S alone.

    Parameters
    ----------
    rows : Tensor, shape (N, d)
        Float patches, without the constant that ``bias`` appends.
    eps : float
        Regularisation, > 0, as a share of the mean variance of an entry.
    dims : int, optional
        Rank of W, at least 1; all d where there are no more.

    Returns
    -------
    (Tensor, Tensor), shapes (d,) and (d, d)

    Raises
    ------
    InputError
        If all patches are equal.

    Examples
    --------
    >>> mean, root = whitening(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]]), eps=1e-9)
    >>> mean.tolist(), root.diag().round(decimals=6).tolist()
    ([1.0, 2.0], [1.0, 0.5])
    """
    eps, dims = as_number("eps", eps), None if dims is None else as_int("dims", dims)
    mean = rows.mean(0)
    centred = rows - mean
    values, vectors = torch.linalg.eigh(gram_of(centred) / len(rows))
    variance = values.clamp_min(0).mean()
    if not variance > 0 or bool((rows == rows[0]).all()):
        raise InputError(
            f"all {len(rows)} patches are equal, so they can't be whitened. "
            "Check that the images are not constant, or use Gaussian gates."
        )
    # Eigenvalues ascend: the leading directions come last.
    first = 0 if dims is None else max(0, len(values) - dims)
    kept = vectors[:, first:]
    return mean, (kept * (values[first:].clamp_min(0) + eps * variance).rsqrt()) @ kept.T


def _thresholds(rows: Tensor, gates: Tensor, quantile: float, tie: float) -> Tensor:
    """Return, for each gate, the value halfway between the quantile of its responses and the next larger response.

    Halfway, because a patch on the gate's hyperplane would put the gate on the boundary of its own cone. Responses
    within ``tie`` times the largest are one value.
    """
    position = min(math.ceil(quantile * len(rows)) - 1, len(rows) - 1)

    def work(few: Tensor) -> Tensor:
        # A gate's responses lie together, and numpy selects from them three times as fast as torch.
        responses = np.partition((few @ rows.T).cpu().numpy(), position, axis=1)
        lower, here, upper = responses[:, :position], responses[:, position], responses[:, position + 1 :]
        gap = tie * np.maximum(responses.max(axis=1), -responses.min(axis=1))
        above = upper.min(axis=1, initial=np.inf)
        for row in np.flatnonzero(above <= here + gap):
            above[row] = upper[row, upper[row] > here[row] + gap[row]].min(initial=np.inf)
        neighbour = np.where(np.isfinite(above), above, here)
        # Nothing is larger when the quantile is the maximum: then the maximum alone stays active.
        for row in np.flatnonzero(np.isinf(above)):
            below = lower[row, lower[row] < here[row] - gap[row]]
            neighbour[row] = below.max() if len(below) else here[row]
        return torch.from_numpy((here + neighbour) / 2).to(gates)

    return torch.cat(map_items(work, torch.split(gates, max(1, RESPONSE_ENTRIES // len(rows))), gates.device))


@dataclass(frozen=True)
class PatchGates(GateSampler):
    """Gates that are randomly drawn patches of the images, whitened.

    The gate of patch x_r is g = W^2 (x_r - mu) with the ZCA matrix W of ``whitening``, so that
    g . (x - mu) = <W (x_r - mu), W (x - mu)> is the inner product of whitened patches, though the gate acts on
    raw ones. Where patches carry a constant for the bias, the gate's last entry is minus the ``quantile`` of g . x
    over the patches: that share of them is inactive. Without it the hyperplane passes through the origin. Gates have
    unit length, not counting the last entry. Such patches serve as a dictionary in Thiry et al. 2021, arXiv:2101.07528.

    Parameters
    ----------
    count : int
        Number of gates, >= 1.
    whiten : bool
        If False, W = I: gates are centred patches.
    quantile : float
        Share of the patches on which a gate is inactive, in (0, 1). Used only with ``bias``.
    eps : float
        Regularisation of the whitening, > 0, as a share of the mean variance of a patch's entries. The default is
        between 0.01 and 0.1, where validation accuracy on CIFAR-10 is flat, 2 to 3 points above that at 0.001.
    dims : int or None
        Gates lie in the span of this many leading principal directions of the patches, not counting the bias; None,
        or a number above the length of a patch, for all of them. Used only with ``whiten``.

    Raises
    ------
    InputError
        If a setting is out of its range; when sampling, if no patch varies.

    Notes
    -----
    Patches are drawn with replacement. A constant patch has no shape and is not drawn (of patches with one entry, only
    zero ones are not). Mean, covariance and quantiles are those of all patches up to 65,536 of them (or 2^25 numbers),
    and of a random choice of that many beyond.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> images = torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    >>> patches = Patches(images, PatchGeometry(kernel_size=3, bias=True))
    >>> gates = PatchGates(quantile=0.75).sample(patches, 4, torch.Generator().manual_seed(0))
    >>> (patches.unfold() @ gates.T >= 0).float().mean((0, 1)).tolist()  # share of active patches
    [0.25, 0.25, 0.25, 0.25]
    """

    count: int = 100
    whiten: bool = True
    quantile: float = 0.7
    eps: float = 0.03
    dims: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", check_count(self.count))
        object.__setattr__(self, "whiten", as_flag("whiten", self.whiten))
        if not is_number(self.quantile, above=0, below=1):
            raise InputError(f"quantile must be a number strictly between 0 and 1; got {self.quantile!r}.")
        if not is_number(self.eps, above=0):
            raise InputError(f"eps must be a finite number > 0; got {self.eps!r}.")
        for name in ("quantile", "eps"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.dims is not None:
            object.__setattr__(self, "dims", check_count(self.dims, "dims", "principal directions"))

    def sample(self, patches: Patches, count: int, generator: torch.Generator) -> Tensor:
        """Return (count, d) gates; see the class."""
        pool = _pool(patches, generator)
        rows = pool[:, :-1] if patches.geometry.bias else pool
        varies = rows.amax(1) > rows.amin(1) if rows.shape[1] > 1 else rows[:, 0] != 0
        candidates = varies.nonzero().flatten()
        if len(candidates) == 0:
            raise InputError(
                f"none of {len(rows)} patches varies, so none can be drawn as a gate. "
                "Check that the images are not constant, or use Gaussian gates."
            )
        mean, root = whitening(rows, self.eps, self.dims)
        drawn = torch.randint(len(candidates), (count,), generator=generator).to(rows.device)
        gates = rows[candidates[drawn]] - mean
        gates = normalize(gates @ root @ root if self.whiten else gates)
        if patches.geometry.bias:
            tie = 64 * torch.finfo(patches.dtype).eps
            gates = torch.cat([gates, -_thresholds(rows, gates, self.quantile, tie)[:, None]], 1)
        return gates.to(patches.like)
