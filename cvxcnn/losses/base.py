"""What the programs and solvers need of a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.distributed import all_sum

__all__ = ["SUM_ROUNDING", "Loss"]


# A sum that is added up in a tree, as torch's are, is wrong by fewer roundings of its terms' absolute values than this.
SUM_ROUNDING = 16 * torch.finfo(torch.float64).eps
# Steps of a golden section: the interval is then a rounding of the one that it began with.
_SECTIONS = 80
_GOLDEN = (5**0.5 - 1) / 2


class Loss(ABC):
    """A convex loss l(f, y), summed over images, with its Fenchel dual.

    The dual of  min_f l(f) + reg * Omega(weights), f = A weights,  is  max_nu -l*(-nu)  subject to
    Omega's dual norm of A^T nu being at most reg; nu = -grad l(f) at the optimum. What a loss says of each image is
    all that there is to write: sums, weights of images (``Weighted``) and the best dual value follow.
    """

    name: str
    separable: bool = True
    """Whether l is a sum over outputs too."""
    quadratic: bool = False
    """Whether l is 1/2 ||f - y||^2, be it weighted: a Gram matrix says all of it, and an intercept is a mean."""
    weights: Tensor | None = None
    """The weight of each image, shape (n,), if they have one: see ``Weighted``."""

    def check_targets(self, targets: Tensor) -> None:  # noqa: B027 - most losses take any numbers
        """Raise InputError if (n, outputs) targets are none of this loss."""

    @abstractmethod
    def terms(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each image, shape (n,), of an (n, outputs) prediction, to differentiate."""

    def tensor(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of an (n, outputs) prediction, a sum, as a scalar tensor to differentiate."""
        return self.terms(prediction, targets).sum()

    def value(self, prediction: Tensor, targets: Tensor) -> float:
        """Return the loss of an (n, outputs) prediction, a sum over the images of all processes, as a number."""
        return float(all_sum(self.tensor(prediction, targets)))

    @abstractmethod
    def dual_point(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """Return nu = -grad l(f), shape (n, outputs)."""

    @abstractmethod
    def dual_terms(self, dual: Tensor, targets: Tensor) -> Tensor:
        """Return -l*(-nu) of each image, -inf where there is none.

        Of each image and output, shape (n, outputs), if the loss is separable; otherwise shape (n, 1).
        """

    def dual_value(self, dual: Tensor, targets: Tensor, largest: Tensor) -> float:
        """Return the largest dual value over the feasible multiples of ``dual``.

        What rounding in float64 may have added is taken off it.

        Parameters
        ----------
        dual : Tensor, shape (n, outputs)
            Any nu that ``dual_point`` returned.
        largest : Tensor, shape (outputs,)
            Each output's column may be multiplied by any number in [0, largest]; by one for all of them unless the
            loss is separable.
        """
        largest = largest.to(dual) if self.separable else largest.to(dual).min().view(1)

        def value(multiples: Tensor) -> Tensor:
            return self.dual_terms(multiples * dual, targets).sum(dim=0)

        best = _peak(value, largest)
        terms = self.dual_terms(best * dual, targets)
        # Shares, as 1 - a of logistic loss, are rounded as one is: one for each entry of nu.
        ones = torch.ones_like(dual) if self.weights is None else self.weights.to(dual)[:, None].expand_as(dual)
        return float(terms.sum() - SUM_ROUNDING * (terms.abs().sum() + ones.sum()))

    @abstractmethod
    def model(self, prediction: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return R and t with l(f + s) ~ 1/2 ||R s - t||^2 + a constant: R^T R is the Hessian at f, R^T t is nu.

        R_j is diagonal if the loss is separable, and R has shape (n, outputs); otherwise (n, outputs, outputs). t
        has shape (n, outputs). A floor may keep a diagonal R_j regular where the loss is nearly flat.
        """

    @abstractmethod
    def expression(self, prediction: Any, targets: Any) -> Any:
        """Return what adds up to the loss as a cvxpy expression of a prediction (n, outputs) and an array of targets.

        Of each image, shape (n,), or of each image and output, shape (n, outputs).
        """

    def rows(self, index: Tensor | slice) -> Loss:
        """Return the loss of some of the images."""
        return self

    def in_unit(self, unit: float) -> Loss:
        """Return the loss with weights of images divided by a unit of theirs."""
        return self


def _peak(value: Callable[[Tensor], Tensor], largest: Tensor) -> Tensor:
    """Return where concave functions of [0, largest], -inf beyond where they end, are largest: one for each entry."""
    # Multiples are near one, and largest may be as good as infinite.
    high = largest.clamp_max(2.0)
    while True:
        rises = (high < largest) & (value(high) >= value(0.5 * high)) & value(high).isfinite()
        if not bool(rises.any()):
            break
        high = torch.where(rises, (2 * high).minimum(largest), high)
    top, low = high, torch.zeros_like(high)
    left, right = high - _GOLDEN * high, _GOLDEN * high
    at_left, at_right = value(left), value(right)
    for _ in range(_SECTIONS):
        up = at_right > at_left
        low, high = torch.where(up, left, low), torch.where(up, high, right)
        fresh = torch.where(up, low + _GOLDEN * (high - low), high - _GOLDEN * (high - low))
        left, right = torch.where(up, right, fresh), torch.where(up, fresh, left)
        at_fresh = value(fresh)
        at_left, at_right = torch.where(up, at_right, at_fresh), torch.where(up, at_fresh, at_left)
    # The best is often the end, which a section only comes near to.
    candidates = torch.stack([low, left, right, top])
    values = torch.stack([value(low), at_left, at_right, value(top)])
    return candidates.gather(0, values.nan_to_num(nan=-torch.inf).argmax(dim=0, keepdim=True))[0]
