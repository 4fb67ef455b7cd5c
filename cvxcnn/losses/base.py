"""What the programs and solvers need of a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..core.distributed import all_sum

__all__ = ["SUM_ROUNDING", "Loss"]


# A sum that is added up in a tree, as torch's are, is wrong by fewer roundings of its terms' absolute values than this.
SUM_ROUNDING = 16 * torch.finfo(torch.float64).eps


class Loss(ABC):
    """A convex loss l(f, y), summed over images and outputs, with its Fenchel dual.

    The dual of  min_f l(f) + reg * Omega(weights), f = A weights,  is  max_nu -l*(-nu)  subject to
    Omega's dual norm of A^T nu being at most reg; nu = -grad l(f) at the optimum.
    """

    name: str
    separable: bool = True
    """Whether l is a sum over outputs too."""
    quadratic: bool = False
    """Whether l is 1/2 ||f - y||^2, of which a Gram matrix says all, and in which an intercept is a mean."""

    def check_targets(self, targets: Tensor) -> None:  # noqa: B027 - most losses take any numbers
        """Raise InputError if (n, outputs) targets are none of this loss."""

    @abstractmethod
    def tensor(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of an (n, outputs) prediction, a sum, as a scalar tensor to differentiate."""

    def value(self, prediction: Tensor, targets: Tensor) -> float:
        """Return the loss of an (n, outputs) prediction, a sum over the images of all processes, as a number."""
        return float(all_sum(self.tensor(prediction, targets)))

    @abstractmethod
    def dual_point(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """Return nu = -grad l(f), shape (n, outputs)."""

    @abstractmethod
    def dual_value(self, dual: Tensor, targets: Tensor, largest: Tensor) -> float:
        """Return a dual value, the largest that is easily found, over the feasible multiples of ``dual``.

        What rounding in float64 may have added is taken off it.

        Parameters
        ----------
        dual : Tensor, shape (n, outputs)
            Any nu that ``dual_point`` returned.
        largest : Tensor, shape (outputs,)
            Each output's column may be multiplied by any number in [0, largest].
        """

    @abstractmethod
    def model(self, prediction: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return R and t with l(f + s) ~ 1/2 ||R s - t||^2 + a constant: R^T R is the Hessian at f, R^T t is nu.

        R_j is diagonal if the loss is separable, and R has shape (n, outputs); otherwise (n, outputs, outputs). t
        has shape (n, outputs). A floor may keep a diagonal R_j regular where the loss is nearly flat.
        """

    @abstractmethod
    def expression(self, prediction: Any, targets: Any) -> Any:
        """Return the loss as a cvxpy expression of a prediction (n, outputs) and a NumPy array of targets."""
