"""Softmax cross-entropy, log sum_o exp f_o - y . f: a sum over images, not a mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .base import SUM_ROUNDING, Loss

__all__ = ["SoftmaxLoss"]


class SoftmaxLoss(Loss):
    """The multi-class loss log sum_o exp f_o - y . f, for rows y that are probabilities (one-hot classes, say).

    Its dual point is nu = y - softmax(f), and its dual value the entropy of y - nu, a row at a time.

    Examples
    --------
    >>> round(SoftmaxLoss().value(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]])), 6)  # log 3
    1.098612
    """

    name = "softmax"
    separable = False

    def check_targets(self, targets: Tensor) -> None:
        if targets.shape[1] < 2:
            raise InputError(
                f'loss="softmax" needs one column a class, two or more; got {targets.shape[1]}. '
                'Pass one-hot targets, or use loss="logistic" with targets of -1 and +1.'
            )
        if bool((targets < 0).any()) or not torch.allclose(targets.sum(dim=1), targets.new_ones(()), atol=1e-6):
            raise InputError(
                'loss="softmax" needs targets whose rows are probabilities, not negative and of sum one; got others. '
                "Pass one-hot targets."
            )

    def tensor(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return torch.logsumexp(prediction, dim=1).sum() - (prediction * targets).sum()

    def dual_point(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return targets - torch.softmax(prediction, dim=1)

    def dual_value(self, dual: Tensor, targets: Tensor, largest: Tensor) -> float:
        # One multiple for all outputs: the rows of nu must keep their sum of zero.
        # A share y - multiple * nu must not be negative.
        falling = dual > 0
        room = float((targets[falling] / dual[falling]).min()) if bool(falling.any()) else float("inf")
        low, high = 0.0, min(room, float(largest.min()))

        def shares(multiple: float) -> Tensor:
            return (targets - multiple * dual).clamp_min(0.0)

        # The entropy is concave in the multiple: bisect its slope.
        for _ in range(60):
            middle = 0.5 * (low + high)
            slope = float((dual * shares(middle).clamp_min(torch.finfo(dual.dtype).tiny).log()).sum())
            low, high = (middle, high) if slope > 0 else (low, middle)
        value = float(torch.special.entr(shares(low)).sum())
        # The rows of y - s nu sum to one but for rounding.
        return value - SUM_ROUNDING * (value + dual.numel())

    def model(self, prediction: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        # With q = sqrt(p): R = diag(q) - q p^T has R^T R = diag(p) - p p^T, and R^T (nu / q) = nu since nu sums to 0.
        shares = torch.softmax(prediction, dim=1).clamp_min(1e-12)
        root = shares.sqrt()
        factor = torch.diag_embed(root) - root[:, :, None] * shares[:, None, :]
        return factor, self.dual_point(prediction, targets) / root

    def expression(self, prediction: Any, targets: Any) -> Any:
        import cvxpy as cp

        return cp.sum(cp.log_sum_exp(prediction, axis=1)) - cp.sum(cp.multiply(targets, prediction))
