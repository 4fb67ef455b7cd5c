"""Whether features can fit any targets: rank decisions that are never wrong, and a softplus without a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import Array, as_double, as_given
from ..core.checks import as_flag, as_number
from ..core.plainly import plainly

__all__ = ["Expressivity", "expressivity", "softplus"]


@dataclass(frozen=True)
class Expressivity:
    """Whether features of n images, with a constant beside them, have rank n, so that a readout fits any targets.

    Attributes
    ----------
    decision : {"full", "deficient", "undecided"}
        "full" if the smallest singular value is far above rounding; "deficient" only for a reason that is no rounding.
    reason : str
        In words.
    log10_determinant : float
        log10 det(F F^T) of F = [h, 1], from singular values; -inf where it is zero for a structural reason.
    largest, smallest : float
        Of the n singular values of F; ``smallest`` is 0 if there are fewer columns than rows.
    threshold : float
        Above which ``smallest`` proves the rank: 10 (n + p) eps |F|.
    needed_width : int
        Features that are needed at least: n - 1 with a bias, n without.
    """

    decision: str
    reason: str
    log10_determinant: float
    largest: float
    smallest: float
    threshold: float
    needed_width: int


@plainly
def expressivity(features: Any, bias: bool = True) -> Expressivity:
    """Decide whether the features of n images have rank n, with a constant beside them.

    ``det([h, 1][h, 1]^T) != 0`` if and only if rank [h, 1] = n; then some readout of these features fits any targets.

    Parameters
    ----------
    features : array-like, shape (n, m) or (n, ...)
        h: of a block its pooled responses, (n, C, m); all axes but the first are features.
    bias : bool
        Whether the readout has a bias: the constant 1 is a feature.

    Returns
    -------
    Expressivity

    Raises
    ------
    InputError
        If features are not finite numbers.

    Notes
    -----
    Source: Kawaguchi & Sun 2021, who ask for a width of n, where n - 1 is enough. For an analytic activation (softplus,
    sigmoid) full rank at one set of weights proves it for almost all; for ReLU and max pooling it is of these weights
    alone. Smooth features of inputs of few dimensions are so nearly dependent that it often can't be decided: twelve
    points on a line have been seen with s_min / s_max = 3e-12. Cost: n p min(n, p) operations.

    Examples
    --------
    >>> expressivity([[1.0], [2.0]]).decision, expressivity([[1.0], [1.0]]).decision, expressivity([[1.0]] * 3).reason
    ('full', 'deficient', '2 columns are fewer than 3 images')
    """
    sides = tuple(f"side {axis}" for axis in range(1, max(2, np.ndim(features))))
    h = as_double("features", features, ("n", *sides)).flatten(1)
    columns = torch.cat([h, h.new_ones(len(h), 1)], dim=1) if as_flag("bias", bias) else h
    return decided(columns, singular_values(columns), bias=bool(bias))


def singular_values(matrix: Tensor) -> Tensor:
    """Return the singular values of a matrix, the largest first.

    Of the triangle of its QR decomposition, which has the same: several times as fast for matrices that are far from
    square, and as exact. Its Gram matrix would have the squares, and half of the digits.

    Examples
    --------
    >>> singular_values(torch.tensor([[3.0, 0.0, 4.0]]))
    tensor([5.])
    """
    if not min(matrix.shape):
        return matrix.new_zeros(0)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    values: Tensor = torch.linalg.svdvals(torch.linalg.qr(tall, mode="r").R)
    return values


def decided(columns: Tensor, values: Tensor, *, bias: bool) -> Expressivity:
    """Return ``expressivity`` of all columns (n, p), the constant's too, whose singular values are known."""
    n, p = columns.shape
    largest = float(values.max()) if len(values) else 0.0
    smallest = float(values.min()) if p >= n and n else 0.0
    threshold = 10 * (n + p) * torch.finfo(torch.float64).eps * float(columns.norm())
    distinct = len(torch.unique(columns, dim=0)) if n else 0
    decision, reason = "full", f"the smallest singular value {smallest:.3g} is above rounding, {threshold:.3g}"
    if p < n:
        decision, reason = "deficient", f"{p} columns are fewer than {n} images"
    elif distinct < n:
        decision, reason = "deficient", f"{n - distinct} of {n} images have the features of another one"
    elif not smallest > threshold:
        decision = "undecided"
        reason = f"the smallest singular value {smallest:.3g} may be rounding, which is up to {threshold:.3g}"
    logarithm = -math.inf
    if decision != "deficient" and smallest > 0:
        logarithm = 2 * float(values.log10().sum())
    return Expressivity(decision, reason, logarithm, largest, smallest, threshold, max(0, n - int(bias)))


@plainly
def softplus(z: Any, zeta: Any = 1.0) -> Array:
    """Return log(1 + exp(zeta z)) / zeta, an analytic activation that tends to the ReLU as zeta grows.

    Parameters
    ----------
    z : array-like
    zeta : float
        Positive.

    Returns
    -------
    ndarray or Tensor, float64
        A tensor, with its gradient, for a tensor.

    Raises
    ------
    InputError
        If zeta isn't a positive number.

    Notes
    -----
    torch's own returns z above a threshold and is 2e-9 / zeta off there; this one is exact to rounding.

    Examples
    --------
    >>> float(softplus(25.0)) - 25.0 > 0, float(softplus(1000.0)), float(softplus(-1000.0))
    (True, 1000.0, 0.0)
    """
    sharpness = as_number("zeta", zeta)
    values = z.double() if isinstance(z, torch.Tensor) else torch.as_tensor(np.asarray(z, dtype=np.float64))
    found = torch.logaddexp(sharpness * values, torch.zeros_like(values)) / sharpness
    return as_given(found, z)
