"""Squared loss, 1/2 ||f - y||^2: a sum over images and outputs, not a mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..distributed import all_sum
from .base import Loss

__all__ = ["SquaredLoss"]


class SquaredLoss(Loss):
    """The loss 1/2 ||f - y||^2, with dual value nu . y - 1/2 ||nu||^2.

    Examples
    --------
    >>> import torch
    >>> SquaredLoss().value(torch.zeros(2, 1), torch.tensor([[3.0], [4.0]]))
    12.5
    """

    name = "squared"

    def tensor(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (prediction - targets).square().sum()

    def dual_point(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return targets - prediction

    def dual_value(self, dual: Tensor, targets: Tensor, largest: Tensor) -> float:
        linear, square = all_sum(torch.stack([(dual * targets).sum(dim=0), dual.square().sum(dim=0)]))
        # The concave parabola s * linear - s^2 / 2 * square peaks at linear / square.
        best = (linear / square.clamp_min(1e-300)).clamp_min(0.0).minimum(largest)
        return float((best * linear - 0.5 * best.square() * square).sum())

    def model(self, prediction: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(prediction), targets - prediction

    def expression(self, prediction: Any, targets: Any) -> Any:
        import cvxpy as cp

        return 0.5 * cp.sum_squares(prediction - targets)
