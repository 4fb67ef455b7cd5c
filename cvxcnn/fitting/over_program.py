"""Fits over one program, whose reg may be replaced, so that gates, features and cones are shared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

from torch import Tensor

from ..arrangements import Gates
from ..pricing.certificate import Certificate
from ..pricing.options import PricingOptions
from ..program.design import KeptDesign
from ..program.program import Program
from ..solvers import Callback, SolveResult
from .task import Fit, Task

__all__ = ["OverProgram"]


class OverProgram(ABC):
    """Fits of a task over a program that is there before them.

    Parameters
    ----------
    task : Task
    program : Program
    gates : Gates or None
        That the program is over.
    keep : bool
        Keep the features if they are few enough, for many solves.
    """

    def __init__(self, task: Task, program: Program, gates: Gates | None = None, *, keep: bool = False) -> None:
        self.task, self.program, self.gates = task, program, gates
        kept = keep and KeptDesign.fits(program.design)
        self.quick = replace(program, design=KeptDesign(program.design)) if kept else program
        self.solver = task.method(self.quick)

    def reg_max(self) -> float:
        """Return the smallest reg whose solution is zero."""
        return self.solver.reg_max(self.quick)

    @abstractmethod
    def certified(self, program: Program, result: SolveResult, search: PricingOptions) -> Certificate:
        """Return the certificate of a solution."""

    def fit(
        self,
        reg: float,
        *,
        start: Tensor | None = None,
        search: PricingOptions | None = None,
        callback: Callback | None = None,
    ) -> Fit:
        """Return the fit at a reg.

        Parameters
        ----------
        reg : float
        start : Tensor, shape (blocks, cells, rows, outputs), optional
            Weights to begin with.
        search : PricingOptions, optional
            Of the bound over other gates, in place of the task's own; none is made with ``starts=0``.
        callback : callable, optional
        """
        result = self.solver.solve(replace(self.quick, reg=reg), start=start, callback=callback)
        program = replace(self.program, reg=reg)
        certificate = self.certified(program, result, search or self.task.search)
        return Fit.of(self.task, program, result, certificate, self.gates)
