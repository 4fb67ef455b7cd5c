"""Fits over fixed gates: one program, whose reg may be replaced, so that gates, features and cones are shared."""

from __future__ import annotations

import logging
from dataclasses import replace

from torch import Tensor

from ..arrangements import resolve
from ..core.distributed import size
from ..pricing.certificate import Certificate
from ..pricing.options import PricingOptions
from ..program.design import KeptDesign
from ..program.program import Program
from ..solvers import Callback, SolveResult
from .task import Fit, Task

__all__ = ["OverFixedGates"]

logger = logging.getLogger(__name__)


class OverFixedGates:
    """Fits of a task over its gates.

    Parameters
    ----------
    task : Task
    keep : bool
        Keep the features if they are few enough, for many solves.
    """

    def __init__(self, task: Task, *, keep: bool = False) -> None:
        self.task = task
        problem = task.problem
        self.gates = gates = resolve(task.gates, problem.patches, task.seed, problem.targets)
        if gates.n_duplicates + gates.n_zero:
            logger.info(
                "%d gates kept; %d repeated a pattern, %d never active", len(gates), gates.n_duplicates, gates.n_zero
            )
        self.program: Program = task.activation.program(problem, gates.vectors)
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
        start : Tensor, shape (blocks, cells, rows, outputs), optional
            Weights to begin with.
        search : PricingOptions, optional
            In place of the task's own; none is made with ``starts=0``.
        callback : callable, optional
        """
        result = self.solver.solve(replace(self.quick, reg=reg), start=start, callback=callback)
        program = replace(self.program, reg=reg)
        certificate = self._certify(program, result, search or self.task.search)
        return Fit.of(self.task, program, result, certificate, self.gates)

    def _certify(self, program: Program, result: SolveResult, search: PricingOptions) -> Certificate:
        activation = self.task.activation
        networks = activation.networks_of(program.penalty.separable, program.design.patches.n_cells * program.n_outputs)
        own = Certificate(result.objective, result.dual_bound, float("nan"), "none", networks=networks)
        if self.gates.complete and program.cones is not None:
            # Only for cones: a gated network also has the patterns of gates that lie on a patch's hyperplane.
            return replace(own, global_bound=result.dual_bound, kind="proved")
        if not search.starts or size() > 1:  # the search needs all images
            return own
        return activation.certify(program, result.weights, own, search, self.task.generator())
