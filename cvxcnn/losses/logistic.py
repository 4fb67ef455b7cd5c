"""Logistic loss, log(1 + exp(-y f)) for y = -1 or +1: a sum over images and outputs, not a mean."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .base import Loss

__all__ = ["LogisticLoss"]


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

    def terms(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return F.softplus(-targets * prediction).sum(dim=1)

    def dual_point(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return targets * torch.sigmoid(-targets * prediction)

    def dual_terms(self, dual: Tensor, targets: Tensor) -> Tensor:
        # Entropies are -inf of shares that are none.
        shares = dual * targets
        entropies: Tensor = torch.special.entr(shares) + torch.special.entr(1 - shares)
        return entropies

    def model(self, prediction: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        root = (torch.sigmoid(prediction) * torch.sigmoid(-prediction)).clamp_min(1e-12).sqrt()
        return root, self.dual_point(prediction, targets) / root

    def expression(self, prediction: Any, targets: Any) -> Any:
        import cvxpy as cp

        return cp.logistic(-cp.multiply(targets, prediction))
