"""Any loss with a weight for each image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Loss

__all__ = ["Weighted"]


class Weighted(Loss):
    """A loss whose images have weights, sum_j s_j l(f_j, y_j): s_j = 2 is the image twice, s_j = 0 is without it.

    Its dual point is s_j nu_j, its dual value sum_j -s_j l*(-nu_j / s_j), and its curvature that of image j times s_j.
    Of the squared loss it is the squared loss of predictions and targets times sqrt(s_j), and stays ``quadratic``.

    Parameters
    ----------
    loss : Loss
    weights : Tensor, shape (n,)
        s, finite and >= 0: any tensor that ``check_weights`` returned.

    Examples
    --------
    >>> from cvxcnn.losses import SquaredLoss
    >>> loss = Weighted(SquaredLoss(), torch.tensor([2.0, 0.0]))
    >>> loss.value(torch.zeros(2, 1), torch.tensor([[3.0], [4.0]]))
    9.0
    """

    weights: Tensor

    def __init__(self, loss: Loss, weights: Tensor) -> None:
        self.loss, self.weights = loss, weights
        self.name, self.separable, self.quadratic = loss.name, loss.separable, loss.quadratic

    def check_targets(self, targets: Tensor) -> None:
        self.loss.check_targets(targets)

    def _column(self, like: Tensor) -> Tensor:
        return self.weights.to(like)[:, None]

    def _parted(self, dual: Tensor) -> Tensor:
        """Return nu_j / s_j, 0 of images without weight."""
        weights = self._column(dual)
        return torch.where(weights > 0, dual / torch.where(weights > 0, weights, 1.0), 0.0)

    def terms(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return self.weights.to(prediction) * self.loss.terms(prediction, targets)

    def dual_point(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return self._column(prediction) * self.loss.dual_point(prediction, targets)

    def dual_terms(self, dual: Tensor, targets: Tensor) -> Tensor:
        weights = self._column(dual)
        return torch.where(weights > 0, weights * self.loss.dual_terms(self._parted(dual), targets), 0.0)

    def dual_value(self, dual: Tensor, targets: Tensor, largest: Tensor) -> float:
        if not self.quadratic:
            return super().dual_value(dual, targets, largest)
        root = self._column(dual).sqrt()
        return self.loss.dual_value(root * self._parted(dual), root * targets, largest)

    def model(self, prediction: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        factor, remainder = self.loss.model(prediction, targets)
        root = self._column(prediction).sqrt()
        return factor * root.view(-1, *[1] * (factor.ndim - 1)), remainder * root

    def expression(self, prediction: Any, targets: Any) -> Any:
        import cvxpy as cp

        terms = self.loss.expression(prediction, targets)
        weights = self.weights.cpu().double().numpy()
        return cp.multiply(weights if terms.ndim == 1 else weights[:, None], terms)

    def rows(self, index: Tensor | slice) -> Weighted:
        chosen = index if isinstance(index, slice) else index.to(self.weights.device)
        return Weighted(self.loss, self.weights[chosen])

    def in_unit(self, unit: float) -> Weighted:
        return Weighted(self.loss, self.weights / unit)
