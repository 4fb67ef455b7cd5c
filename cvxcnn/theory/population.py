"""Population risks of one-filter CNNs on Gaussian images, with their critical points, and images drawn to match.

The images have k patches that do not overlap, independent standard normal. All risks come from two expectations over
standard normal x and independent x', with t the angle between u and v:

    E (u.x)_+ (v.x)_+  = |u||v| (sin t + (pi - t) cos t) / 2 pi,     E (u.x)_+ (v.x')_+ = |u||v| / 2 pi

and are written as sums of terms that vanish at the teacher, so that no digits are lost there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.arrays import Array, as_double, as_given
from ..core.checks import as_flag, as_int, is_number
from ..core.plainly import plainly
from ..core.seeds import check_seed, seed_of
from ..errors import InputError
from .angles import angle, shortfall

__all__ = [
    "CriticalPoint",
    "SpuriousPoint",
    "critical_points",
    "gaussian_risk",
    "planted_gaussian",
    "population_risk",
    "population_risk_gradient",
    "spurious_minimum",
    "two_layer_population_risk",
]


def _pair(filter: Any, teacher: Any) -> tuple[Tensor, Tensor]:
    target = as_double("teacher", teacher, ("d",))
    return as_double("filter", filter, (len(target),)), target


def _constants(patches: Any, mean: Any) -> tuple[int, float, float, float]:
    """Return k, beta, gamma, and what the risk of a sum over patches is multiplied by."""
    count = as_int("patches", patches)
    beta = (count**2 - count) / (2 * math.pi)
    return count, beta, beta + count / 2, 1 / count**2 if as_flag("mean", mean) else 1.0


@plainly
def population_risk(filter: Any, teacher: Any, patches: int, mean: bool = False) -> float:
    """Return E (f - f*)^2 of a one-layer CNN f = sum_k (w . x_k)_+ on Gaussian images, against a teacher w*.

        gamma (|w| - |w*|)^2 + k |w||w*| (pi - sin t - (pi - t) cos t) / pi,  gamma = (k^2 - k) / 2 pi + k / 2

    Parameters
    ----------
    filter, teacher : array-like, shape (d,)
        w and w*.
    patches : int
        k >= 1, the patches of an image, which do not overlap.
    mean : bool
        Whether f averages over the patches, which divides the risk by k^2.

    Returns
    -------
    float
        Not negative, zero at the teacher alone (if that is not zero), exact to rounding of its own size.

    Raises
    ------
    InputError
        If shapes differ or numbers are not finite.

    Notes
    -----
    Source: Brutzkus & Globerson 2017, Section 4, there without the constant gamma |w*|^2, so that the printed risk is
    negative at the teacher. A factor 1/2 in front of the square is not in it.

    Examples
    --------
    >>> population_risk([1.0, 0.0], [1.0, 0.0], patches=3)
    0.0
    >>> round(population_risk([0.0], [2.0], patches=2), 12) == round(4 * (1 + 1 / math.pi), 12)  # E f*^2
    True
    """
    w, target = _pair(filter, teacher)
    count, _, gamma, factor = _constants(patches, mean)
    length, length_star = w.norm(), target.norm()
    along = gamma * (length - length_star).square()
    across = count * length * length_star * shortfall(angle(w, target)) / math.pi
    return float(factor * (along + across))


@plainly
def population_risk_gradient(filter: Any, teacher: Any, patches: int, mean: bool = False) -> Array:
    """Return the gradient of ``population_risk`` in the filter.

        2 gamma w - 2 beta |w*| w/|w| - (k / pi) (|w*| sin t w/|w| + (pi - t) w*)

    Parameters
    ----------
    filter, teacher, patches, mean
        As for ``population_risk``; the filter is not zero, where there is no gradient.

    Returns
    -------
    ndarray or Tensor, shape (d,), float64

    Raises
    ------
    InputError
        If the filter is zero, shapes differ or numbers are not finite.

    Examples
    --------
    >>> bool(abs(population_risk_gradient([1.0, 0.0], [1.0, 0.0], patches=3)).max() < 1e-12)
    True
    """
    w, target = _pair(filter, teacher)
    count, beta, gamma, factor = _constants(patches, mean)
    length, length_star = w.norm(), target.norm()
    if not length > 0:
        raise InputError("the risk has no gradient at filter 0. Start from another filter.")
    theta = angle(w, target)
    unit = w / length
    turned = length_star * theta.sin() * unit + (math.pi - theta) * target
    gradient = 2 * gamma * w - 2 * beta * length_star * unit - count / math.pi * turned
    return as_given(factor * gradient, filter, teacher)


@dataclass(frozen=True)
class CriticalPoint:
    """A point where the population risk has no descent direction of first order, or no gradient.

    Attributes
    ----------
    filter : ndarray or Tensor, shape (d,)
    kind : str
        "global minimum", "local maximum", "degenerate saddle", "spurious local minimum" or "not differentiable".
    risk : float
    """

    filter: Array
    kind: str
    risk: float


@plainly
def critical_points(teacher: Any, patches: int, mean: bool = False) -> list[CriticalPoint]:
    """Return the critical points of ``population_risk``: all that there are, for a teacher that is not zero.

    The teacher itself, the global minimum; zero, where the risk is not differentiable, a local maximum for k > 1; and
    for k > 1  -c w*, c = (k^2 - k) / (k^2 + (pi - 1) k): a degenerate saddle for d >= 2, where the risk falls in third
    order across, and a spurious local minimum for d = 1, where there is no across.

    Parameters
    ----------
    teacher : array-like, shape (d,)
        Not zero.
    patches : int
        k.
    mean : bool
        As for ``population_risk``; it changes the risks alone.

    Raises
    ------
    InputError
        If the teacher is zero or not finite.

    Notes
    -----
    Source: Brutzkus & Globerson 2017, Section 4, which doesn't tell d = 1 apart.

    Examples
    --------
    >>> [point.kind for point in critical_points([1.0, 0.0], patches=4)]
    ['global minimum', 'local maximum', 'degenerate saddle']
    """
    target = as_double("teacher", teacher, ("d",))
    count, *_ = _constants(patches, mean)
    if not bool(target.any()):
        raise InputError("teacher must not be zero: zero filters alone have its risk then.")
    share = (count**2 - count) / (count**2 + (math.pi - 1) * count)
    opposite = "degenerate saddle" if len(target) > 1 else "spurious local minimum"
    found = [
        (target, "global minimum"),
        (torch.zeros_like(target), "local maximum" if count > 1 else "not differentiable"),
        *([(-share * target, opposite)] if count > 1 else []),
    ]
    return [CriticalPoint(as_given(w, teacher), kind, population_risk(w, target, count, mean)) for w, kind in found]


def _two_layers(filter: Any, readout: Any, teacher_filter: Any, teacher_readout: Any) -> tuple[Tensor, ...]:
    w_star = as_double("teacher_filter", teacher_filter, ("d",))
    a_star = as_double("teacher_readout", teacher_readout, ("k",))
    return as_double("filter", filter, (len(w_star),)), as_double("readout", readout, (len(a_star),)), w_star, a_star


@plainly
def two_layer_population_risk(
    filter: Any, readout: Any, teacher_filter: Any, teacher_readout: Any, normalised: bool = False
) -> float:
    """Return E (f - f*)^2 of f = sum_k a_k (w . x_k)_+ on Gaussian images, against a teacher (w*, a*).

    With b = |w| a, b* = |w*| a* and t the angle between w and w*:

        (pi - 1)/2pi |b - b*|^2 + (1.b - 1.b*)^2 / 2pi + (b.b*) (pi - sin t - (pi - t) cos t) / pi

    Parameters
    ----------
    filter, teacher_filter : array-like, shape (d,)
        w and w*.
    readout, teacher_readout : array-like, shape (k,)
        a and a*, a number a patch.
    normalised : bool
        Whether the network has w / |w| in place of w, as in the source; the teacher is as given.

    Returns
    -------
    float

    Raises
    ------
    InputError
        If shapes differ, numbers are not finite, or a filter of zero is to be normalised.

    Notes
    -----
    Source: Du, Lee, Tian, Poczos & Singh 2018, with 1/2 in front and the normalised filter; its last term lacks 1/2pi
    in print.

    Examples
    --------
    >>> two_layer_population_risk([2.0, 0.0], [1.0, -1.0], [1.0, 0.0], [2.0, -2.0])
    0.0
    """
    w, a, w_star, a_star = _two_layers(filter, readout, teacher_filter, teacher_readout)
    length = w.norm()
    if as_flag("normalised", normalised):
        if not length > 0:
            raise InputError("a filter of zero can't be normalised. Give another, or normalised=False.")
        length = torch.ones_like(length)
    b, b_star = length * a, w_star.norm() * a_star
    apart = b - b_star
    same = (math.pi - 1) / (2 * math.pi) * apart.square().sum() + apart.sum().square() / (2 * math.pi)
    return float(same + (b @ b_star) * shortfall(angle(w, w_star)) / math.pi)


@dataclass(frozen=True)
class SpuriousPoint:
    """The stationary point opposite to a teacher.

    Attributes
    ----------
    filter : ndarray or Tensor, shape (d,)
        -w* / |w*|.
    readout : ndarray or Tensor, shape (k,)
    risk : float
        ``two_layer_population_risk`` there.
    is_minimum : bool
        Whether it is a local minimum, which depends on the teacher.
    """

    filter: Array
    readout: Array
    risk: float
    is_minimum: bool


@plainly
def spurious_minimum(teacher_filter: Any, teacher_readout: Any) -> SpuriousPoint:
    """Return the spurious stationary point of ``two_layer_population_risk`` with a filter of norm one.

        w = -w*/|w*|,  a = (11^T + (pi - 1) I)^{-1} (11^T - I) |w*| a*

    With s = (1.a*)^2 / k it is a local minimum if and only if s (k - 1) / (k + pi - 1) < (|a*|^2 - s) / (pi - 1), that
    is, a . a* < 0.

    Parameters
    ----------
    teacher_filter : array-like, shape (d,)
        Not zero.
    teacher_readout : array-like, shape (k,)

    Raises
    ------
    InputError
        If the teacher's filter is zero or numbers are not finite.

    Notes
    -----
    Source: Du, Lee, Tian, Poczos & Singh 2018; the condition is derived here. For d = 1 there is no direction across,
    and the point is a minimum whatever the readout.

    Examples
    --------
    >>> spurious_minimum([1.0, 0.0], [1.0, -1.0]).is_minimum, spurious_minimum([1.0, 0.0], [1.0, 1.0]).is_minimum
    (True, False)
    """
    w_star = as_double("teacher_filter", teacher_filter, ("d",))
    a_star = as_double("teacher_readout", teacher_readout, ("k",))
    length = w_star.norm()
    if not length > 0:
        raise InputError("teacher_filter must not be zero.")
    count, total = len(a_star), a_star.sum()
    # (11^T + (pi - 1) I)^{-1} by Sherman and Morrison: on the mean, and on what is across.
    level = (count - 1) / (count + math.pi - 1) * total / count
    readout = length * (level - (a_star - total / count) / (math.pi - 1))
    filter = -w_star / length
    square = float(total.square() / count)
    across = float(a_star.square().sum()) - square
    is_minimum = len(w_star) == 1 or square * (count - 1) / (count + math.pi - 1) < across / (math.pi - 1)
    given = teacher_filter, teacher_readout
    risk = two_layer_population_risk(filter, readout, w_star, a_star)
    return SpuriousPoint(as_given(filter, *given), as_given(readout, *given), risk, is_minimum)


@plainly
def gaussian_risk(filters: Any, readout: Any, teacher_filters: Any, teacher_readout: Any) -> float:
    """Return E (f - f*)^2 of two networks f = sum_ik a_ik (u_i . x_k)_+ on Gaussian images: no test set is needed.

    With g(u, v) = |u||v| (sin t + (pi - t) cos t) / 2pi and t the angle between u and v,

        <f, f*> = sum_ij (A A*^T)_ij g(u_i, u*_j) + ((A 1)_i (A* 1)_j - (A A*^T)_ij) |u_i||u*_j| / 2pi

    and the risk is <f, f> - 2 <f, f*> + <f*, f*>: in contrast to the risks of one filter it is exact to rounding of
    <f*, f*> only.

    Parameters
    ----------
    filters, teacher_filters : array-like, shapes (m, d) and (m*, d)
        Without a bias.
    readout, teacher_readout : array-like, shapes (m, k) and (m*, k)
        What each neuron's response on each patch is multiplied by: a block's readout w_ic times its pooling P_ck.

    Raises
    ------
    InputError
        If shapes don't fit or numbers are not finite.

    Examples
    --------
    >>> round(gaussian_risk([[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 1.0]], [[1.0, 1.0]]), 10)
    1.3633802276
    >>> round(population_risk([1.0, 0.0], [0.0, 1.0], patches=2), 10)
    1.3633802276
    """
    u_star = as_double("teacher_filters", teacher_filters, ("m*", "d"))
    a_star = as_double("teacher_readout", teacher_readout, (len(u_star), "k"))
    u = as_double("filters", filters, ("m", u_star.shape[1]))
    a = as_double("readout", readout, (len(u), a_star.shape[1]))
    # One network, whose norm is the risk.
    every, weights = torch.cat([u, u_star]), torch.cat([a, -a_star])
    lengths = every.norm(dim=1)
    same = weights @ weights.T
    sums = weights.sum(dim=1)
    theta = angle(every[:, None], every[None])
    own = (math.pi - shortfall(theta)) / (2 * math.pi)
    terms = same * own + (torch.outer(sums, sums) - same) / (2 * math.pi)
    return float(lengths @ terms @ lengths)


@plainly
def planted_gaussian(
    n: int,
    teacher: Any,
    patches: int,
    *,
    readout: Any = None,
    noise: float = 0.0,
    random_state: int | None = 0,
) -> tuple[Tensor, Tensor]:
    """Draw Gaussian images of k patches that do not overlap, and the outputs of a planted one-filter network.

    Parameters
    ----------
    n : int
        Images.
    teacher : array-like, shape (d,)
        w*.
    patches : int
        k; the images are a row of d numbers a patch, in a grid of patches if k is a square, one below the other if not.
    readout : array-like, shape (k,), optional
        a*; ones if not given.
    noise : float
        Standard deviation of normal noise on the targets.
    random_state : int or None

    Returns
    -------
    images : Tensor, shape (n, 1, rows, d k / rows), float64
        Blocks of ``kernel_size=(1, d)``, ``stride=(1, d)``, ``padding=0``, ``bias=False``, ``pooling="sum"`` see these
        patches.
    targets : Tensor, shape (n,), float64
        sum_k a*_k (w* . x_k)_+, with noise.

    Raises
    ------
    InputError
        If an argument can't be used.

    Examples
    --------
    >>> images, targets = planted_gaussian(5, [1.0, -1.0, 2.0], patches=4)
    >>> images.shape, targets.shape
    (torch.Size([5, 1, 2, 6]), torch.Size([5]))
    """
    w_star = as_double("teacher", teacher, ("d",)).cpu()
    count, number = as_int("patches", patches), as_int("n", n, 1, "images")
    a_star = torch.ones(count, dtype=torch.float64)
    if readout is not None:
        a_star = as_double("readout", readout, (count,)).cpu()
    if not is_number(noise) or noise < 0:
        raise InputError(f"noise must be a number >= 0; got {noise!r}.")
    check_seed(random_state)
    generator = torch.Generator().manual_seed(seed_of(random_state))
    side = math.isqrt(count)
    rows = side if side**2 == count else count
    shape = (number, 1, rows, count // rows * len(w_star))
    images = torch.randn(shape, generator=generator, dtype=torch.float64)
    targets = (images.view(number, count, len(w_star)) @ w_star).relu() @ a_star
    return images, targets + noise * torch.randn(number, generator=generator, dtype=torch.float64)
