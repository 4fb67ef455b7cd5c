"""Fits over fixed gates."""

from __future__ import annotations

import logging
from dataclasses import replace

from ..arrangements import Gates, resolve
from ..core.distributed import size
from ..pricing.certificate import Certificate
from ..pricing.exploration import networks_in
from ..pricing.options import PricingOptions
from ..program.program import Program
from ..solvers import SolveResult
from .over_program import OverProgram
from .task import Task

__all__ = ["OverFixedGates"]

logger = logging.getLogger(__name__)


class OverFixedGates(OverProgram):
    """Fits of a task over its gates.

    Parameters
    ----------
    task : Task
    keep : bool
        Keep the features if they are few enough, for many solves.
    """

    gates: Gates

    def __init__(self, task: Task, *, keep: bool = False) -> None:
        problem = task.problem
        gates = resolve(task.gates, problem.patches, task.seed, problem.targets)
        if gates.n_duplicates + gates.n_zero:
            logger.info(
                "%d gates kept; %d repeated a pattern, %d never active", len(gates), gates.n_duplicates, gates.n_zero
            )
        super().__init__(task, task.activation.program(problem, gates.vectors), gates, keep=keep)

    def certified(self, program: Program, result: SolveResult, search: PricingOptions) -> Certificate:
        own = Certificate(result.objective, result.dual_bound, float("nan"), "none", networks=networks_in(program))
        if self.gates.complete and program.cones is not None:
            # Only for cones: a gated network also has the patterns of gates that lie on a patch's hyperplane.
            return replace(own, global_bound=result.dual_bound, kind="proved")
        if not search.starts or size() > 1:  # the search needs all images
            return own
        return self.task.activation.certify(program, result.weights, own, search, self.task.generator())
