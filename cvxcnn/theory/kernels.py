"""Tangent kernels of ReLU CNN blocks: of a block as it is, and of one that is infinitely wide.

Both are matrices over all images of all processes; each process computes a share of them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..core.distributed import all_sum, gather_rows, rank, shard, size
from ..core.plainly import plainly
from ..errors import InputError
from .angles import pair_angles, shortfall
from .arrays import Array, as_double, as_given, check_bytes

__all__ = ["PARTS", "block_ntk", "infinite_gram"]

PARTS = ("both", "filters", "readout")
# Numbers of the largest temporary.
_ENTRIES = 1 << 24


def _check_part(part: Any) -> None:
    if not isinstance(part, str) or part not in PARTS:
        raise InputError(f'part must be "both", "filters" or "readout"; got {part!r}.')


def _given_patches(patches: Any, pool: Any, device: str | None) -> tuple[Tensor, Tensor]:
    """Return patches (n, K, d) of all processes, and the pooling weights (C, K): one cell that adds all by default."""
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
    Cost: m n K d + m (n o)^2 d operations, 8 (n o)^2 bytes and 128 MiB. The rank is at most m (d + C o - 1).

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
            jacobian = filter_jacobian(every, responses > 0, w[chosen], weights)
            kernel.addmm_(jacobian, jacobian.T)
        if part != "filters":
            pooled = (weights @ responses.relu()).flatten(1)
            kernel += torch.kron(pooled @ pooled.T, torch.eye(outputs).to(kernel))
    return as_given(all_sum(kernel), patches, filters, readout)


def filter_jacobian(patches: Tensor, active: Tensor, readout: Tensor, pool: Tensor) -> Tensor:
    """Return df/du, shape (n o, b d), of b neurons.

    Parameters
    ----------
    patches : Tensor, shape (n, K, d)
    active : Tensor, shape (n, K, b), bool
        Whether the response is positive.
    readout : Tensor, shape (b, C, o)
    pool : Tensor, shape (C, K)
    """
    n, _, count = active.shape
    outputs, dim = readout.shape[2], patches.shape[2]
    slopes = torch.einsum("bco,ck->kbo", readout, pool)
    jacobian = patches.new_empty(n, outputs, count, dim)
    for neuron in range(count):
        masked = active[:, :, neuron, None] * patches  # (n, K, d)
        jacobian[:, :, neuron] = slopes[:, neuron].T @ masked
    return jacobian.reshape(n * outputs, count * dim)


@plainly
def infinite_gram(
    patches: Any, pool: Any = None, part: str = "both", *, device: str | None = None, memory: float | None = None
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
    device : str, optional
        Where to compute; where the patches are by default.
    memory : float, optional
        GiB that may be used.

    Returns
    -------
    ndarray or Tensor, shape (n, n), float64
        Symmetric, of the images of all processes, in each of them; every output has this kernel.

    Raises
    ------
    InputError
        If shapes don't fit, numbers are not finite, or more memory is needed than allowed.

    Notes
    -----
    Source: Du, Zhai, Poczos & Singh 2018 for K = 1; with pooling cells derived here. Its smallest eigenvalue is zero
    where one image of a single patch is a positive multiple of another, and where pairs x and -x outnumber d. Cost:
    (n K)^2 d operations, 8 n^2 bytes and 512 MiB.

    Examples
    --------
    >>> infinite_gram([[[1.0, 0.0]], [[-1.0, 0.0]]], part="filters").tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    _check_part(part)
    every, weights = _given_patches(patches, pool, device)
    n, places, dim = every.shape
    check_bytes(f"the Gram matrix of {n} images", 8 * n**2 + 4 * 8 * _ENTRIES, memory, "Give fewer images.")
    own = shard(n, rank(), size())
    flat, lengths = every.reshape(-1, dim), every.norm(dim=2)
    side = max(1, math.isqrt(_ENTRIES) // places)
    starts = range(own.start, own.stop, side)
    rows = every.new_zeros(own.stop - own.start, n)
    for start in starts:
        mine = slice(start, min(start + side, own.stop))
        some = every[mine]
        for first in range(0, n, side):
            other = slice(first, min(first + side, n))
            theirs = flat[first * places : other.stop * places]
            theta = pair_angles(some.reshape(-1, dim), theirs)
            values = torch.zeros_like(theta)
            if part != "readout":
                values += (some.reshape(-1, dim) @ theirs.T) * (math.pi - theta)
            if part != "filters":
                values += torch.outer(lengths[mine].flatten(), lengths[other].flatten()) * (math.pi - shortfall(theta))
            shaped = values.view(len(some), places, -1, places) / (2 * math.pi)
            half = torch.einsum("ck,akbl->cabl", weights, shaped)
            rows[mine.start - own.start : mine.stop - own.start, other] = torch.einsum("cl,cabl->ab", weights, half)
    gram = gather_rows(rows)
    return as_given((gram + gram.T) / 2, patches)
