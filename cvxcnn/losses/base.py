"""What the programs and solvers need of a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

__all__ = ["Loss"]


class Loss(ABC):
    """A convex loss l(f, y), summed over images and outputs, with its Fenchel dual.

    The dual of  min_f l(f) + reg * Omega(weights), f = A weights,  is  max_nu -l*(-nu)  subject to
    Omega's dual norm of A^T nu being at most reg; nu = -grad l(f) at the optimum.
    """

    name: str

    @abstractmethod
    def tensor(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of an (n, outputs) prediction, a sum, as a scalar tensor to differentiate."""

    def value(self, prediction: Tensor, targets: Tensor) -> float:
        """Return the loss of an (n, outputs) prediction, a sum, as a number."""
        return float(self.tensor(prediction, targets))

    @abstractmethod
    def dual_point(self, prediction: Tensor, targets: Tensor) -> Tensor:
        """Return nu = -grad l(f), shape (n, outputs)."""

    @abstractmethod
    def dual_value(self, dual: Tensor, targets: Tensor, largest: Tensor) -> float:
        """Return the largest dual value over the feasible multiples of ``dual``.

        Parameters
        ----------
        dual : Tensor, shape (n, outputs)
            Any nu.
        largest : Tensor, shape (outputs,)
            Each output's column may be multiplied by any number in [0, largest].
        """
