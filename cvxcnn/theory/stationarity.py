"""Whether a trained block is a stationary point of Eq. 1, and of what kind: kinks, curvature, descent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from scipy.optimize import minimize
from torch import Tensor

from .point import BlockPoint, Direction

__all__ = ["Curvature", "Stationarity", "curvature", "stationarity"]

# A patch is near a kink if |x . u| is at most this share of |x||u|.
KINK_TOLERANCES = (1e-5, 1e-4, 1e-3)
# Directions of patches that agree to so many digits are one patch: they cross a kink together.
_SAME_DIGITS = 9
_LBFGS_STEPS = 300
_LANCZOS_STEPS = 48
_DESCENT_STEPS = 30
# Of the norm of the weights: how far descent is tried.
_STEPS = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1)


@dataclass(frozen=True)
class Stationarity:
    """How far a block is from a stationary point of Eq. 1; all gradients relative to reg times the norm of the weights.

    Attributes
    ----------
    plain : float
        Norm of torch's gradient, which takes slope 0 at kinks.
    clarke : float
        Norm of the smallest element found of Clarke's subdifferential, with slopes in [0, 1] for patches near kinks.
    plain_worst, clarke_worst : float
        The largest of the gradients in a filter, relative to reg |u_i|.
    readout : float
        Of the gradient in the readout alone, which is smooth.
    tolerance : float
        Within which of a kink patches counted as near, as a share of |x||u|.
    near : int
        Distinct (neuron, patch) pairs that did.
    by_tolerance : dict of float to float
        ``clarke`` at other tolerances.
    """

    plain: float
    clarke: float
    plain_worst: float
    clarke_worst: float
    readout: float
    tolerance: float
    near: int
    by_tolerance: dict[float, float]


def stationarity(point: BlockPoint, tolerances: Sequence[float] = KINK_TOLERANCES) -> Stationarity:
    """Return how far a block is from a stationary point of Eq. 1, by the plain gradient and by Clarke's.

    For each neuron: min over s in [0, 1]^N of |g_i + sum_n (s_n - s_n^0) c_n x_n|, with the N distinct patches x_n
    near its kink, c_n their slopes, and s^0 what the plain gradient takes. Patches that are multiples of each other
    share their s; for others that depend on each other the set is larger than Clarke's, so that a small number is
    necessary for a stationary point, and not sufficient.

    Parameters
    ----------
    point : BlockPoint
    tolerances : sequence of float
        Rising shares of |x||u|; the last one counts.

    Examples
    --------
    >>> from ..losses import get_loss
    >>> from ..patches.geometry import PatchGeometry
    >>> from ..patches.patches import Patches
    >>> patches = Patches(torch.tensor([[[[1.0]]], [[[-1.0]]]]).double(), PatchGeometry(1))
    >>> one, targets = torch.ones(1, 1).double(), torch.tensor([[3.0], [1.0]]).double()
    >>> point = BlockPoint(patches, targets, one * 2**0.5, one.view(1, 1, 1) * 2**0.5, 1.0, get_loss("squared"))
    >>> stationarity(point).plain < 1e-12  # f = 2 at the first image: 2 - 3 + reg = 0
    True
    """
    scale = point.reg * float(torch.sqrt(point.filters.square().sum() + point.readout.square().sum()))
    lengths = point.reg * point.filters.norm(dim=1)
    by_filter, by_readout = point.gradient
    readout = float(by_readout.norm())
    plain = by_filter.norm(dim=1)
    found, near = {}, 0
    smallest = plain
    kinks = _kinks(point, max(tolerances))
    starts: list[Tensor | None] = [None] * len(kinks)
    for tolerance in tolerances:
        values = []
        near = 0
        for neuron, kink in enumerate(kinks):
            chosen = kink.distance <= tolerance
            near += int(chosen.sum())
            value, starts[neuron] = kink.smallest(by_filter[neuron], chosen, starts[neuron])
            values.append(value)
        smallest = torch.tensor(values, dtype=torch.float64)
        found[tolerance] = _share(math.hypot(float(smallest.norm()), readout), scale)
    return Stationarity(
        plain=_share(math.hypot(float(plain.norm()), readout), scale),
        clarke=found[tolerances[-1]],
        plain_worst=_share(plain.cpu(), lengths.cpu()),
        clarke_worst=_share(smallest, lengths.cpu()),
        readout=_share(readout, point.reg * float(point.readout.norm())),
        tolerance=tolerances[-1],
        near=near,
        by_tolerance=found,
    )


def _share(value: float | Tensor, scale: float | Tensor) -> float:
    """Return the largest value / scale; NaN without neurons or without reg."""
    values, scales = (torch.as_tensor(part, dtype=torch.float64).flatten() for part in (value, scale))
    return float((values / scales).max()) if len(values) and bool((scales > 0).all()) else math.nan


def _kinks(point: BlockPoint, tolerance: float) -> list[_Kinks]:
    """Return the patches near the kink of each neuron; softplus neurons have none."""
    if point.softplus is not None:
        nothing = point.filters[:0]
        return [_Kinks(nothing, nothing, nothing[:, 0])] * len(point.filters)
    lengths = point.filters.norm(dim=1)
    images, places, neurons, slopes, now, distances = ([] for _ in range(6))
    for piece in point.pieces:
        sizes = piece.patches.norm(dim=2)
        responses = (piece.patches @ point.filters.T).abs()
        limits = sizes[:, :, None] * lengths
        found = ((responses <= tolerance * limits) & (limits > 0)).nonzero(as_tuple=True)
        image, place, neuron = found
        upstream = torch.einsum("mco,bo->bcm", point.readout, point.residual[piece.rows])
        images.append(image + piece.rows.start)
        places.append(place)
        neurons.append(neuron)
        slopes.append((point.pool.T @ upstream)[found])
        now.append(piece.active[found].double())
        distances.append(responses[found] / limits[found])
    every = [torch.cat(parts) for parts in (images, places, neurons, slopes, now, distances)]
    patches = point.patches.unfold()
    kinks = []
    for number in range(len(point.filters)):
        image, place, slope, state, distance = (part[every[2] == number] for part in (every[0], every[1], *every[3:]))
        kinks.append(_Kinks.of(patches[image, place], slope, state, distance))
    return kinks


@dataclass(frozen=True)
class _Kinks:
    """The distinct patches near a neuron's kink.

    ``moves`` (N, d) is what a slope of one adds to the gradient, ``taken`` (N, d) what the plain gradient takes of it,
    ``distance`` (N,) the distance from the kink.
    """

    moves: Tensor
    taken: Tensor
    distance: Tensor

    @classmethod
    def of(cls, patches: Tensor, slopes: Tensor, now: Tensor, distance: Tensor) -> _Kinks:
        """Merge patches of one direction, which cross the kink together and have one slope."""
        if not len(patches):
            return cls(patches, patches, distance)
        # Three projections tell directions apart as well as all of their entries do.
        projections = torch.randn(patches.shape[1], 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        sizes = patches.norm(dim=1, keepdim=True)
        keys = ((patches / sizes) @ projections.to(patches)).round(decimals=_SAME_DIGITS)
        distinct, index = torch.unique(keys, dim=0, return_inverse=True)
        count = len(distinct)
        nothing = patches.new_zeros(count, patches.shape[1])
        moves = nothing.index_add(0, index, slopes[:, None] * patches)
        taken = nothing.index_add(0, index, (slopes * now)[:, None] * patches)
        nearest = patches.new_zeros(count).scatter_reduce(0, index, distance, "amin", include_self=False)
        return cls(moves, taken, nearest)

    def smallest(self, gradient: Tensor, chosen: Tensor, start: Tensor | None) -> tuple[float, Tensor]:
        """Return the smallest norm of the gradient that slopes in [0, 1] of the chosen patches give, and all slopes."""
        squares = self.moves.square().sum(dim=1)
        now = ((self.taken * self.moves).sum(dim=1) / squares.clamp_min(1e-300)).clamp(0.0, 1.0)
        slopes = now if start is None else start.clone()
        plain = float(gradient.norm())
        if not bool(chosen.any()) or plain == 0:
            return plain, slopes
        matrix = self.moves[chosen].cpu().numpy() / plain
        fixed = (gradient - self.taken[chosen].sum(dim=0)).cpu().numpy() / plain

        def half_square(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            rest = fixed + values @ matrix
            return 0.5 * float(rest @ rest), matrix @ rest

        found = minimize(
            half_square, slopes[chosen].cpu().numpy(), jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * len(matrix),
            options={"maxiter": _LBFGS_STEPS, "maxfun": 2 * _LBFGS_STEPS, "maxcor": 20, "ftol": 0.0, "gtol": 1e-7},
        )  # fmt: skip
        slopes[chosen] = torch.from_numpy(np.clip(found.x, 0.0, 1.0)).to(slopes)
        return min(plain, plain * math.sqrt(2 * float(found.fun))), slopes


@dataclass(frozen=True)
class Curvature:
    """The Hessian of Eq. 1 on the piece of the weights that a block is in, and how far Eq. 1 falls from there.

    Attributes
    ----------
    smallest, largest : float
        Lanczos' values after some steps, relative to reg: ``smallest`` is the curvature of a direction, and so at least
        the smallest eigenvalue; a negative one is certain. NaN without weights.
    fall : float
        By what share Eq. 1 falls along that direction, at the best of several steps both ways, crossing kinks as they
        come. At a kink the piece may curve downwards where Eq. 1 rises.
    descent : float
        By what share Eq. 1 falls in some steps of L-BFGS, which takes it for smooth.
    clarke_after : float
        ``Stationarity.clarke`` at the end of these steps; NaN if it wasn't asked for.
    """

    smallest: float
    largest: float
    fall: float
    descent: float
    clarke_after: float = math.nan


def curvature(point: BlockPoint, seed: int = 0, *, after: bool = False) -> Curvature:
    """Return the smallest curvature that Lanczos finds on Hessian-vector products, and how far Eq. 1 falls.

    Parameters
    ----------
    point : BlockPoint
    seed : int
        Of the vector that Lanczos starts from.
    after : bool
        Whether to look for the smallest Clarke gradient at the end of the descent too.

    Notes
    -----
    The Hessian is of the piece of Eq. 1 on which no response changes its sign. Cost: 48 products, 12 values, and 30
    steps of descent, each two or three passes over the patches.
    """
    if not point.n_weights or not point.objective > 0 or not point.reg > 0:
        return Curvature(math.nan, math.nan, 0.0, 0.0)
    start = torch.from_numpy(np.random.default_rng(seed).normal(size=point.flatten(point.weights).numel()))
    # Entries that are no weights must be in no direction.
    start = point.flatten(point.masked(point.unflatten(start.to(point.filters))))
    smallest, largest, direction = _lanczos(point, start / start.norm())
    fall = _fall(point, direction) if smallest < 0 else 0.0
    end = _descended(point)
    descent = max(0.0, 1.0 - end.objective / point.objective)
    clarke = stationarity(end).clarke if after else math.nan
    return Curvature(smallest / point.reg, largest / point.reg, fall, descent, clarke)


def _lanczos(point: BlockPoint, start: Tensor) -> tuple[float, float, Tensor]:
    """Return the extreme values of Lanczos' method, and the direction of the smallest.

    Our own, since libraries give nothing back where it hasn't converged, and the smallest value is certain long before.
    """
    basis, diagonal, beside = [start], [], []
    for _ in range(min(_LANCZOS_STEPS, point.n_weights)):
        image = point.flatten(point.curvature(point.unflatten(basis[-1])))
        diagonal.append(float(image @ basis[-1]))
        span = torch.stack(basis)
        for _ in range(2):  # once more for what rounding has left
            image = image - span.T @ (span @ image)
        rest = float(image.norm())
        if rest <= 1e-10 * max(map(abs, diagonal)):
            break
        beside.append(rest)
        basis.append(image / rest)
    values, vectors = eigh_tridiagonal(np.array(diagonal), np.array(beside[: len(diagonal) - 1]))
    direction = torch.stack(basis[: len(diagonal)]).T @ torch.from_numpy(vectors[:, 0].copy()).to(start)
    return float(values[0]), float(values[-1]), direction / direction.norm()


def _fall(point: BlockPoint, direction: Tensor) -> float:
    """Return by what share Eq. 1 falls along a unit direction, at the best of some steps."""
    size = float(point.flatten(point.weights).norm())
    lowest = min(
        point.values_along(point.unflatten(direction), [sign * t * size for t in _STEPS for sign in (-1.0, 1.0)])
    )
    return max(0.0, (point.objective - lowest) / point.objective)


def _descended(point: BlockPoint) -> BlockPoint:
    """Return where some steps of L-BFGS lead, found in float32; the point is in float64."""

    def weights(vector: NDArray[np.float64]) -> Direction:
        return point.unflatten(torch.from_numpy(vector.copy()).to(point.filters))

    def function(vector: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, gradient = point.value_and_gradient(*weights(vector), single=True)
        return value / point.objective, np.asarray(point.flatten(gradient).cpu().numpy()) / point.objective

    start = point.flatten(point.weights).cpu().numpy()
    found = minimize(
        function,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _DESCENT_STEPS, "maxfun": 3 * _DESCENT_STEPS // 2},
    )
    return point.at(*point.masked(weights(found.x)))
