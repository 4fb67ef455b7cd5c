"""Fits over gates or filters that the optimisation finds itself."""

from __future__ import annotations

from torch import Tensor

from ..pricing.options import PricingOptions
from ..pricing.separation import searched_reg_max
from ..program.program import relative_gap
from ..solvers import Callback, SolveResult, Status
from .task import Fit, Task

__all__ = ["OverPricedGates"]


class OverPricedGates:
    """Fits of a task whose gates are priced.

    Parameters
    ----------
    task : Task
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    def reg_max(self) -> float:
        """Return the largest reg of which the search knows that its solution isn't zero, or the smallest it is."""
        task = self.task
        return searched_reg_max(task.activation.unpriced(task.at(1.0)), task.search, task.generator())

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
        start : Tensor, shape (m, d), optional
            Filters or gates to begin with.
        search : PricingOptions, optional
            In place of the task's own.
        callback : callable, optional
        """
        task = self.task
        solution = task.activation.price(
            task.at(reg), tol=task.tol, start=start, generator=task.generator(), options=search or task.search,
            callback=callback,
        )  # fmt: skip
        gap = relative_gap(solution.objective, solution.dual_bound)
        result = SolveResult(
            weights=solution.weights,
            objective=solution.objective,
            dual_bound=solution.dual_bound,
            relative_gap=gap,
            violation=solution.program.violation(solution.weights),
            status=(Status.OPTIMAL if gap <= task.tol else Status.INACCURATE).value,
            solver="priced",
            iterations=solution.rounds,
            seconds=solution.seconds,
            history=solution.history,
        )
        return Fit.of(task, solution.program, result, solution.certificate)
