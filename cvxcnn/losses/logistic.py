"""Logistic loss, log(1 + exp(-y f)) for y = -1 or +1: a sum over images and outputs, not a mean."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .base import SUM_ROUNDING, Loss

__all__ = ["LogisticLoss"]


def _entropy(shares: Tensor) -> Tensor:
    """Return -a log a - (1 - a) log(1 - a), 0 at both ends."""
    total: Tensor = torch.special.entr(shares) + torch.special.entr(1 - shares)
    return total


class LogisticLoss(Loss):
    """The loss log(1 + exp(-y f)), each output a two-class problem of its own.

    Its dual point is nu = y a with a = 1 / (1 + exp(y f)), and its dual value the sum of the entropies
    -a log a - (1 - a) log(1 - a).

    Examples
    --------
    >>> round(LogisticLoss().value(torch.zeros(2, 1), torch.tensor([[1.0], [-1.0]])), 6)  # 2 log 2
    1.386294
    """

    name = "logistic"

    def check_targets(self, targets: Tensor) -> None:
        if not bool((targets.abs() == 1).all()):
            raise InputError(
                'loss="logistic" needs targets of -1 and +1; got others, '
                f"such as {float(targets[targets.abs() != 1][0]):g}. Recode the classes, as in 2 * (labels == 1) - 1."
            )

    def tensor(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return F.softplus(-targets * prediction).sum()

    def dual_point(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return targets * torch.sigmoid(-targets * prediction)

    def dual_value(self, dual: Tensor, targets: Tensor, largest: Tensor) -> float:
        shares = dual * targets
        # Entropy is concave in the multiple, and rises while the shares are below one half: bisect its slope.
        tiny = torch.finfo(shares.dtype).tiny
        high = (1 / shares.amax(dim=0).clamp_min(tiny)).minimum(largest.to(shares))
        low = torch.zeros_like(high)
        for _ in range(60):
            middle = 0.5 * (low + high)
            slope = (shares * torch.special.logit((middle * shares).clamp(tiny, 1.0))).sum(dim=0)
            low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
        value = float(_entropy((low * shares).clamp(0.0, 1.0)).sum())
        # 1 - a is rounded too.
        return value - SUM_ROUNDING * (value + shares.numel())

    def model(self, prediction: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        root = (torch.sigmoid(prediction) * torch.sigmoid(-prediction)).clamp_min(1e-12).sqrt()
        return root, self.dual_point(prediction, targets) / root

    def expression(self, prediction: Any, targets: Any) -> Any:
        import cvxpy as cp

        return cp.sum(cp.logistic(-cp.multiply(targets, prediction)))
