"""Squared loss, 1/2 ||f - y||^2: a sum over images and outputs, not a mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.distributed import all_sum
from .base import SUM_ROUNDING, Loss

__all__ = ["SquaredLoss", "parabola"]


def parabola(linear: Tensor, terms: Tensor, square: Tensor, largest: Tensor) -> float:
    """Return the largest s nu.y - s^2/2 ||nu||^2 over s in [0, largest], summed over outputs, less its rounding.

    Parameters
    ----------
    linear, terms, square : Tensor, shape (outputs,)
        nu.y, the sum of the absolute values of its terms, and ||nu||^2.
    largest : Tensor, shape (outputs,)
    """
    # The concave parabola peaks at linear / square, and does not rise where nu is zero.
    peak = torch.where(square > 0, linear / square, 0.0).clamp_min(0.0)
    best = peak.minimum(largest.to(peak))
    half = 0.5 * best.square() * square
    return float((best * linear - half - SUM_ROUNDING * (best * terms + half)).sum())


class SquaredLoss(Loss):
    """The loss 1/2 ||f - y||^2, with dual value nu . y - 1/2 ||nu||^2.

    Examples
    --------
    >>> import torch
    >>> SquaredLoss().value(torch.zeros(2, 1), torch.tensor([[3.0], [4.0]]))
    12.5
    """

    name = "squared"
    quadratic = True

    def terms(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (prediction - targets).square().sum(dim=1)

    def dual_point(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return targets - prediction

    def dual_terms(self, dual: Tensor, targets: Tensor) -> Tensor:
        return dual * targets - 0.5 * dual.square()

    def dual_value(self, dual: Tensor, targets: Tensor, largest: Tensor) -> float:
        products = dual * targets
        sums = torch.stack([products.sum(dim=0), products.abs().sum(dim=0), dual.square().sum(dim=0)])
        linear, terms, square = all_sum(sums)
        return parabola(linear, terms, square, largest)

    def model(self, prediction: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(prediction), targets - prediction

    def expression(self, prediction: Any, targets: Any) -> Any:
        import cvxpy as cp

        return 0.5 * cp.square(prediction - targets)
