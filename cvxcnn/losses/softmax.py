"""Softmax cross-entropy, log sum_o exp f_o - y . f: a sum over images, not a mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .base import Loss

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

    def terms(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return torch.logsumexp(prediction, dim=1) - (prediction * targets).sum(dim=1)

    def dual_point(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return targets - torch.softmax(prediction, dim=1)

    def dual_terms(self, dual: Tensor, targets: Tensor) -> Tensor:
        # A share must not be negative, whose entropy is -inf; they sum to one as the rows of nu sum to zero.
        entropies: Tensor = torch.special.entr(targets - dual).sum(dim=1, keepdim=True)
        return entropies

    def model(self, prediction: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        # With q = sqrt(p): R = diag(q) - q p^T has R^T R = diag(p) - p p^T, and R^T (nu / q) = nu since nu sums to 0.
        shares = torch.softmax(prediction, dim=1).clamp_min(1e-12)
        root = shares.sqrt()
        factor = torch.diag_embed(root) - root[:, :, None] * shares[:, None, :]
        return factor, self.dual_point(prediction, targets) / root

    def expression(self, prediction: Any, targets: Any) -> Any:
        import cvxpy as cp

        return cp.log_sum_exp(prediction, axis=1) - cp.sum(cp.multiply(targets, prediction), axis=1)
