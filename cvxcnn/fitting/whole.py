"""Fits over all neurons at once: a program without gates, whose own bound is that over all networks of its kind."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..pricing.certificate import Certificate
from ..pricing.exploration import networks_in
from ..pricing.options import PricingOptions
from ..program.design import KeptDesign
from ..program.program import Program
from ..solvers import Callback
from .task import Fit, Task

__all__ = ["OverAllNeurons"]


class OverAllNeurons:
    """Fits of a task whose activation needs no gates.

    Parameters
    ----------
    task : Task
    keep : bool
        Keep the features if they are few enough, for many solves.
    """

    def __init__(self, task: Task, *, keep: bool = False) -> None:
        self.task = task
        self.program: Program = task.activation.unpriced(task.problem)
        design = self.program.design
        kept = keep and KeptDesign.fits(design)
        self.quick = replace(self.program, design=KeptDesign(design)) if kept else self.program
        self.solver = task.method(self.quick)

    def reg_max(self) -> float:
        """Return the smallest reg whose solution is zero."""
        return self.solver.reg_max(self.quick)

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
        start : Tensor, shape (1, cells, rows, outputs), optional
            Weights to begin with.
        search : PricingOptions, optional
            Of no account: there is nothing to search for.
        callback : callable, optional
        """
        result = self.solver.solve(replace(self.quick, reg=reg), start=start, callback=callback)
        program = replace(self.program, reg=reg)
        bound = result.dual_bound
        proved = Certificate(result.objective, bound, bound, "proved", networks=networks_in(program))
        return Fit.of(self.task, program, result, proved)
