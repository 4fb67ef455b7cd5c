"""Fits over all neurons at once: a program without gates, whose own bound is that over all networks of its kind."""

from __future__ import annotations

from ..pricing.certificate import Certificate
from ..pricing.exploration import networks_in
from ..pricing.options import PricingOptions
from ..program.program import Program
from ..solvers import SolveResult
from .over_program import OverProgram
from .task import Task

__all__ = ["OverAllNeurons"]


class OverAllNeurons(OverProgram):
    """Fits of a task whose activation needs no gates.

    Parameters
    ----------
    task : Task
    keep : bool
        Keep the features if they are few enough, for many solves.
    """

    def __init__(self, task: Task, *, keep: bool = False) -> None:
        super().__init__(task, task.activation.unpriced(task.problem), keep=keep)

    def certified(self, program: Program, result: SolveResult, search: PricingOptions) -> Certificate:
        bound = result.dual_bound
        return Certificate(result.objective, bound, bound, "proved", networks=networks_in(program))
