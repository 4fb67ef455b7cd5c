"""Tangent kernels of ReLU CNN blocks: of a block as it is, and of one that is infinitely wide.

Both are matrices over all images of all processes; each process computes a share of them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..core.arrays import Array, as_double, as_given, check_bytes
from ..core.distributed import all_sum, gather_rows, rank, shard, size
from ..core.plainly import plainly
from ..data.checks import check_destination
from ..errors import InputError
from .angles import chords

__all__ = ["PARTS", "block_ntk", "infinite_gram", "pairs_of_patches"]

PARTS = ("both", "filters", "readout")
# Numbers of the largest temporary.
_ENTRIES = 1 << 24
# Patches on a side of a block of angles, on a GPU and in a processor's cache, and bytes of both.
_SIDES = (8192, 512)
_WORKSPACE = 8 * 8 * 8192**2 if torch.cuda.is_available() else 64 << 20


def _check_part(part: Any) -> None:
    if not isinstance(part, str) or part not in PARTS:
        raise InputError(f'part must be "both", "filters" or "readout"; got {part!r}.')


def _given_patches(patches: Any, pool: Any, device: str | None) -> tuple[Tensor, Tensor]:
    """Return patches (n, K, d) of all processes, and the pooling weights (C, K): one cell that adds all by default."""
    if device is not None:
        check_destination(torch.float64, device)
    own = as_double("patches", patches, ("n", "K", "d"), None if device is None else torch.device(device))
    weights = own.new_ones(1, own.shape[1])
    if pool is not None:
        weights = as_double("pool", pool, ("C", own.shape[1]), own.device)
    return gather_rows(own), weights


@plainly
def block_ntk(
    patches: Any,
    filters: Any,
    readout: Any,
    pool: Any = None,
    part: str = "both",
    *,
    device: str | None = None,
    memory: float | None = None,
) -> Array:
    """Return the tangent kernel J J^T of a block f_jo = sum_ic w_ico sum_k P_ck (x_jk . u_i)_+.

    J has a row for each (image, output) and a column for each weight:

        df_jo/du_i = sum_kc w_ico P_ck 1[x_jk . u_i > 0] x_jk,    df_jo/dw_ico = sum_k P_ck (x_jk . u_i)_+

    Parameters
    ----------
    patches : array-like, shape (n, K, d)
        With the bias as a constant 1 at the end, if there is one; under ``process_group`` those of this process.
    filters : array-like, shape (m, d)
        u_i.
    readout : array-like, shape (m, C, o)
        w_ico.
    pool : array-like, shape (C, K), optional
        P_ck; if it is not given, one cell adds all patches.
    part : {"both", "filters", "readout"}
        Of which weights.
    device : str, optional
        Where to compute; where the patches are by default.
    memory : float, optional
        GiB that may be used.

    Returns
    -------
    ndarray or Tensor, shape (n o, n o), float64
        Image-major: row j o + c is output c of image j. Of the images of all processes, in each of them.

    Raises
    ------
    InputError
        If shapes don't fit, numbers are not finite, or more memory is needed than allowed.

    Notes
    -----
    Cost: m n K d + m n^2 min(C, o)^2 d operations, 16 (n o)^2 bytes and 128 MiB. The rank is at most m (d + C o - 1).

    Examples
    --------
    >>> block_ntk([[[1.0, 0.0]], [[0.0, 2.0]]], filters=[[1.0, 1.0]], readout=[[[3.0]]]).tolist()
    [[10.0, 2.0], [2.0, 40.0]]
    """
    _check_part(part)
    every, weights = _given_patches(patches, pool, device)
    u = as_double("filters", filters, ("m", every.shape[2]), every.device)
    w = as_double("readout", readout, (len(u), len(weights), "o"), every.device)
    n, outputs = len(every), w.shape[2]
    rows = n * outputs
    check_bytes(
        f"the tangent kernel of {n} images and {outputs} outputs", 2 * 8 * rows**2, memory,
        "Give fewer images, or more memory.",
    )  # fmt: skip
    kernel = every.new_zeros(rows, rows)
    own = torch.arange(len(u))[shard(len(u), rank(), size())]
    step = max(1, _ENTRIES // max(1, n * max(every.shape[1], outputs * every.shape[2], len(weights))))
    for some in torch.split(own, step):
        chosen = some.to(every.device)
        responses = every @ u[chosen].T  # (n, K, b)
        if part != "readout":
            kernel += filter_kernel(every, responses > 0, w[chosen], weights)
        if part != "filters":
            pooled = (weights @ responses.relu()).flatten(1)
            kernel += torch.kron(pooled @ pooled.T, torch.eye(outputs).to(kernel))
    return as_given(all_sum(kernel), patches, filters, readout)


def filter_kernel(patches: Tensor, active: Tensor, readout: Tensor, pool: Tensor) -> Tensor:
    """Return the part (n o, n o) of the tangent kernel that is of the filters of b neurons.

    With phi_ic = sum_k P_ck D_ijk x_jk of an image's cell, D the slopes, sum_i w_i^T (phi_i phi_i^T) w_i: products are
    as long as images have cells or outputs, whichever are fewer.

    Parameters
    ----------
    patches : Tensor, shape (n, K, d)
    active : Tensor, shape (n, K, b)
        Slopes of the responses: whether they are positive.
    readout : Tensor, shape (b, C, o)
    pool : Tensor, shape (C, K)
    """
    n, _, count = active.shape
    cells, outputs = readout.shape[1:]
    kernel = patches.new_zeros(n * outputs, n * outputs)
    for neuron in range(count):
        features = pool @ (active[:, :, neuron, None] * patches)  # (n, C, d)
        weights = readout[neuron]
        if outputs <= cells:
            jacobian = (weights.T @ features).flatten(0, 1)
            kernel.addmm_(jacobian, jacobian.T)
            continue
        flat = features.flatten(0, 1)
        half = ((flat @ flat.T).view(-1, cells) @ weights).view(n, cells, n * outputs)
        kernel += (weights.T @ half).view(n * outputs, n * outputs)
    return kernel


@plainly
def infinite_gram(
    patches: Any,
    pool: Any = None,
    part: str = "both",
    *,
    others: Any = None,
    dtype: str = "float64",
    device: str | None = None,
    memory: float | None = None,
) -> Array:
    """Return the tangent kernel of an infinitely wide ReLU CNN block with standard normal filters.

    With t the angle of two patches, g(x, y) = |x||y| (sin t + (pi - t) cos t) / 2 pi, and readouts of random signs:

        filters: sum_ckl P_ck P_cl x_ik.x_jl (pi - t) / 2 pi,    readout: sum_ckl P_ck P_cl g(x_ik, x_jl)

    It is the limit of ``block_ntk`` divided by m. In ``sklearn.kernel_ridge.KernelRidge(kernel="precomputed")`` it is
    the infinitely wide network of the same architecture, trained to the end.

    Parameters
    ----------
    patches : array-like, shape (n, K, d)
        With the bias as a constant 1 at the end, if there is one; under ``process_group`` those of this process.
    pool : array-like, shape (C, K), optional
        P_ck; if it is not given, one cell adds all patches.
    part : {"both", "filters", "readout"}
        Of which weights.
    others : array-like, shape (q, K, d), optional
        Patches of other images, all of them in every process: the kernel is then between those images (rows) and these,
        as a prediction needs it.
    dtype : {"float64", "float32"}
        Of the angles; "float32" is a few times as fast, and right to about 1e-7 of the largest entry.
    device : str, optional
        Where to compute; where the patches are by default.
    memory : float, optional
        GiB that may be used.

    Returns
    -------
    ndarray or Tensor, shape (n, n) or (q, n), float64
        Of the images of all processes, in each of them; every output has this kernel. Symmetric without ``others``.

    Raises
    ------
    InputError
        If shapes don't fit, numbers are not finite, or more memory is needed than allowed.

    Notes
    -----
    Source: Du, Zhai, Poczos & Singh 2018 for K = 1; with pooling cells derived here. Its smallest eigenvalue is zero
    where one image of a single patch is a positive multiple of another, and where pairs x and -x outnumber d. Cost:
    an angle for each pair of patches of a cell (``pairs_of_patches``), about 100 ns on a core, and 16 n^2 bytes.

    Examples
    --------
    >>> infinite_gram([[[1.0, 0.0]], [[-1.0, 0.0]]], part="filters").tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    >>> infinite_gram([[[1.0, 0.0]], [[-1.0, 0.0]]], part="filters", others=[[[2.0, 0.0]]]).tolist()
    [[1.0, 0.0]]
    """
    _check_part(part)
    if dtype not in ("float64", "float32"):
        raise InputError(f'dtype must be "float64" or "float32"; got {dtype!r}.')
    every, weights = _given_patches(patches, pool, device)
    n, places, dim = every.shape
    rows = every if others is None else as_double("others", others, ("q", places, dim), every.device)
    check_bytes(f"the Gram matrix of {n} images", 2 * 8 * len(rows) * n + _WORKSPACE, memory, "Give fewer images.")
    own = shard(len(rows), rank(), size())
    found = every.new_zeros(own.stop - own.start, n)
    for weight in weights:
        # A pair of patches counts in the cells that have both.
        members = weight.nonzero().flatten()
        left, right = rows[:, members], every[:, members]
        side = max(1, _SIDES[every.device.type == "cpu"] // max(1, len(members)))
        for mine in _slices(own.start, own.stop, side):
            # Below the diagonal it is what is above.
            for theirs in _slices(mine.start if others is None else 0, n, side):
                block = _arc_cosine(left[mine], right[theirs], weight[members], part, dtype == "float64")
                found[mine.start - own.start : mine.stop - own.start, theirs] += block
    gram = gather_rows(found)
    if others is None:
        upper = gram.triu()
        gram = upper + upper.triu(1).T
    return as_given(gram, patches, others)


def pairs_of_patches(pool: Tensor, rows: int, columns: int | None = None) -> int:
    """Return for how many pairs of patches ``infinite_gram`` needs an angle.

    Parameters
    ----------
    pool : Tensor, shape (C, K)
    rows, columns : int
        Images; without columns, of the symmetric matrix of the rows.

    Examples
    --------
    >>> pairs_of_patches(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), 10, 20)
    1000
    """
    images = rows * (rows + 1) // 2 if columns is None else rows * columns
    return images * int((pool != 0).sum(dim=1).square().sum())


def _slices(start: int, stop: int, side: int) -> list[slice]:
    return [slice(first, min(first + side, stop)) for first in range(start, stop, side)]


def _arc_cosine(left: Tensor, right: Tensor, weight: Tensor, part: str, exact: bool) -> Tensor:
    """Return the kernel (a, b) of the patches (a, k, d) and (b, k, d) of a cell with the weights (k,)."""
    first, second = (normalize(patches.flatten(0, 1), dim=1, eps=1e-300) for patches in (left, right))
    cosine = first @ second.T
    if exact:
        chord, sum_chord = chords(first, second)
    else:  # in float64 a cosine still gives 8 digits of an angle near 0 or pi, as many as float32 has
        chord, sum_chord = ((2 - 2 * sign * cosine).clamp_min_(0.0).float().sqrt_() for sign in (1, -1))
        cosine = cosine.float()
    values = cosine.mul_(math.pi - 2 * torch.atan2(chord, sum_chord))
    if part != "filters":
        # sin t = 2 sin(t/2) cos(t/2)
        values.mul_(2.0 if part == "both" else 1.0).add_(chord.mul_(sum_chord), alpha=0.5)
    scale, other = ((weight * patches.norm(dim=2)).to(values) for patches in (left, right))
    by_place = scale[:, None] @ values.view(*scale.shape, -1)  # (a, 1, b k)
    found = (by_place.view(len(left), *other.shape) * other).sum(dim=2) / (2 * math.pi)
    gram: Tensor = found.double()
    return gram
