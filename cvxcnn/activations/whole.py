"""Neurons whose program has no gates: one finite convex program is the whole network, and its bound is proved."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ..errors import InputError
from ..penalties import Penalty
from ..pricing.loop import PricedSolution
from ..pricing.options import PricingOptions
from ..program.problem import Problem
from ..program.program import Program
from ..solvers import Callback
from .base import Activation

__all__ = ["WholeActivation"]


class WholeActivation(Activation):
    """An activation whose worst direction is an eigenvector or a singular vector, so that nothing is searched for."""

    whole = True
    ordinary = False

    @abstractmethod
    def unpriced(self, problem: Problem) -> Program:
        """Return the program, which is over all neurons."""

    def program(self, problem: Problem, gates: Tensor) -> Program:
        return self.unpriced(problem)

    def price(
        self,
        problem: Problem,
        *,
        tol: float,
        start: Tensor | None,
        generator: torch.Generator,
        options: PricingOptions,
        callback: Callback | None,
    ) -> PricedSolution:
        raise InputError(f"{self.name} neurons are not priced: their program is over all of them.")

    def blocks(self, gates: int, penalty: Penalty) -> tuple[int, bool]:
        return 1, True
