"""MOSEK through cvxpy: a commercial interior-point method."""

from __future__ import annotations

from typing import Any

from benchmark_utils import Levels, Problem
from benchmark_utils.modelled import CvxpySolver


class Solver(CvxpySolver):
    """The whole program at once; skipped without a licence."""

    name = "MOSEK"
    backend = "MOSEK"
    requirements = ["pip::cvxpy", "pip::Mosek"]
    stopping_criterion = Levels((1e-3, 1e-5, 1e-8))

    def skip(self, problem: Problem) -> tuple[bool, str | None]:
        self.problem = problem
        try:
            self.warm_up()
        except Exception as error:
            # mosek.Error 1008 and its kin are no cvxpy.SolverError; without the package there is nothing to import.
            return True, f"MOSEK doesn't run here: {str(error).strip().splitlines()[0]}"
        return super().skip(problem)

    def options(self, tol: float) -> dict[str, Any]:
        names = ("REL_GAP", "PFEAS", "DFEAS")
        limits = {f"MSK_DPAR_INTPNT_CO_TOL_{name}": tol for name in names}
        return {"mosek_params": {**limits, "MSK_DPAR_OPTIMIZER_MAX_TIME": 200.0}}
