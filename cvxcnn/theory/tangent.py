"""What the tangent kernel of a trained block says: the rate of its loss, and the kernel ridge that it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .point import BlockPoint

__all__ = ["Tangent", "tangent"]

# Rows of the Jacobian whose kernel is taken apart.
_MOST_ROWS = 1000
# The step of the measured rate, as a share of the one at which gradient descent becomes unstable.
_STEP = 1e-3


@dataclass(frozen=True)
class Tangent:
    """The tangent kernel K = J J^T of a block, K of size (n o) x (n o), as far as products with it tell.

    Attributes
    ----------
    rate : float
        2 r.K r / |r|^2: by the theory the rate of -log |r|^2 under gradient flow of the squared loss; NaN for others.
    rate_measured : float
        The same from one small gradient step; it differs where kinks are crossed.
    rank_bound : int
        m (d + C o - 1), or less; m (d + C o) of softplus neurons, which have no scale to share. If it is below n o, the
        smallest eigenvalue of K is 0, and no rate is guaranteed.
    rows : int
        n o.
    ridge_error : float
        |K nu - 2 reg f| / |2 reg f|: 0 at a stationary point, where for the squared loss f = K (K + 2 reg)^{-1} Y is
        kernel ridge with the block's own tangent kernel. NaN for softplus neurons, as the next: f is then no
        homogeneous function of the weights.
    objective_error : float
        |Eq. 1 - (|Y|^2 - |f|^2) / 2| / Eq. 1, 0 at a stationary point; NaN for other losses than the squared one.
    degrees_of_freedom : float
        tr K (K + 2 reg)^{-1}, of the first ``images`` images alone.
    condition : float
        Of their part of K, the largest eigenvalue by the smallest, which is no more than the condition number of K;
        infinite if rounding hides the smallest.
    images : int
    """

    rate: float
    rate_measured: float
    rank_bound: int
    rows: int
    ridge_error: float
    objective_error: float
    degrees_of_freedom: float
    condition: float
    images: int


def tangent(point: BlockPoint, largest: float = math.nan) -> Tangent:
    """Return what the tangent kernel of a block says, without a matrix of all images.

    Parameters
    ----------
    point : BlockPoint
    largest : float
        About the largest eigenvalue of K, for the size of the measured step; without it, none is measured.

    Notes
    -----
    Cost: four passes over the patches, and the kernel of up to 1000 rows.
    """
    residual, count = point.residual, len(point.filters)
    outputs = residual.shape[1]
    images = min(len(residual), max(1, _MOST_ROWS // outputs))
    by_residual = point.pull(residual)
    image = -point.push(by_residual)
    f, root = point.outputs, _root(point)
    rate = measured = objective_error = math.nan
    # The loss at its kernel ridge has no intercept: it is taken off the targets.
    targets = point.targets - point.intercept
    homogeneous = point.softplus is None
    if point.loss.quadratic and bool(residual.any()):
        square = 2 * point.loss.value(f + point.intercept, point.targets)
        rate = 2 * float(sum(part.square().sum() for part in by_residual)) / square
        measured = _measured(point, by_residual, square, largest)
        if homogeneous:
            ridge = 0.5 * float((root * targets).square().sum() - (root * f).square().sum())
            objective_error = abs(point.objective - ridge) / point.objective
    sizes = 2 * point.reg * f
    ridge_error = math.nan
    if homogeneous and bool(sizes.any()):
        ridge_error = float((root * (image - sizes)).norm() / (root * sizes).norm())
    degrees_of_freedom, condition = _spectrum(point, images)
    return Tangent(
        rate=rate,
        rate_measured=measured,
        rank_bound=min(point.n_weights - (count if homogeneous else 0), residual.numel()),
        rows=residual.numel(),
        ridge_error=ridge_error,
        objective_error=objective_error,
        degrees_of_freedom=degrees_of_freedom,
        condition=condition,
        images=images,
    )


def _root(point: BlockPoint) -> Tensor:
    """Return the roots of the weights of images, (n, 1), by which outputs and targets are those of a loss without."""
    weights = point.loss.weights
    return torch.ones_like(point.targets[:, :1]) if weights is None else weights.to(point.targets)[:, None].sqrt()


def _measured(point: BlockPoint, gradient: tuple[Tensor, Tensor], square: float, largest: float) -> float:
    """Return the rate of -log |r|^2 in one small gradient step of the loss."""
    if not largest > 0:
        return math.nan
    step = _STEP / largest
    moved = point.predict(point.filters - step * gradient[0], point.readout - step * gradient[1]) + point.intercept
    after = 2 * point.loss.value(moved, point.targets)
    return math.log(square / after) / step


def _spectrum(point: BlockPoint, images: int) -> tuple[float, float]:
    """Return the degrees of freedom and the condition number of the kernel of the first images."""
    if not point.reg > 0 or not len(point.filters):
        return math.nan, math.nan
    root = _root(point)[:images].repeat_interleave(point.targets.shape[1], dim=0)
    values = torch.linalg.eigvalsh(root * point.kernel(images) * root.T).clamp_min(0.0)
    # Eigenvalues of products are known to so much alone.
    rounding = 10 * len(values) * torch.finfo(torch.float64).eps * float(values.max())
    hidden = len(values) > point.n_weights or float(values.min()) <= rounding
    condition = math.inf if hidden else float(values.max() / values.min())
    return float((values / (values + 2 * point.reg)).sum()), condition
