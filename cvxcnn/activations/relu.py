"""ReLU neurons (x . u)_+: Eq. 2 over patterns with the group penalty, a group lasso over filters with the dense one."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..patches.pooling import Pooling
from ..penalties import Penalty
from ..pricing.filter_master import FilterMaster
from ..pricing.loop import PricedSolution
from ..pricing.options import PricingOptions
from ..pricing.pattern_master import PatternMaster
from ..pricing.solve import solve_priced
from ..program.design import FilterDesign
from ..program.problem import Problem
from ..program.program import Program
from ..program.units import unit_rows
from ..solvers import Callback
from .base import Activation
from .neurons import Neurons, read_neurons

__all__ = ["Relu"]


class Relu(Activation):
    """f_jo = sum_ic w_ico sum_k P_ck (x_jk . u_i)_+."""

    name = "relu"
    penalties = ("dense", "group")
    design: ClassVar[type[FilterDesign]] = FilterDesign
    """What the filters respond with."""

    def refusal(self, penalty: str) -> str:
        if penalty == "nuclear":
            return 'penalty="nuclear" is a gated program. Use activation="gated_relu", or penalty="dense".'
        return ""

    def pooling_refusal(self, pooling: Pooling) -> str:
        # Other responses are differences of rectified ones, as leaky ones are: the largest of a difference is not the
        # difference of the largest.
        return "" if self.design is FilterDesign else super().pooling_refusal(pooling)

    def program(self, problem: Problem, gates: Tensor) -> Program:
        if problem.penalty.group_axes == ():
            return problem.over_filters(unit_rows(gates), self.design)
        return problem.over_patterns(gates)

    def unpriced(self, problem: Problem) -> Program:
        return problem.over_filters(problem.patches.like.new_zeros(0, problem.patches.dim), self.design)

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
        patterns = problem.penalty.separable and options.neighbours
        master = PatternMaster if patterns else FilterMaster
        return solve_priced(
            problem, master, tol=tol, start=start, generator=generator, options=options, callback=callback
        )

    def read(self, program: Program, weights: Tensor, intercepts: Tensor | None) -> Neurons:
        return read_neurons(program, weights, intercepts)

    def blocks(self, gates: int, penalty: Penalty) -> tuple[int, bool]:
        return (gates, False) if penalty.group_axes == () else (2 * gates, True)

    def decompose(self, neurons: Neurons, problem: Problem) -> Neurons:
        raise InputError('decompose is for activation="gated_relu"; this block is a ReLU network already.')
