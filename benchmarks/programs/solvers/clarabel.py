"""Clarabel through cvxpy: an interior-point method (Goulart & Chen 2024, arXiv:2405.12762)."""

from __future__ import annotations

from typing import Any

from benchmark_utils import Levels
from benchmark_utils.modelled import CvxpySolver


class Solver(CvxpySolver):
    """The whole program at once."""

    name = "Clarabel"
    backend = "CLARABEL"
    requirements = ["pip::cvxpy", "pip::clarabel"]
    stopping_criterion = Levels((1e-3, 1e-5, 1e-8))

    def options(self, tol: float) -> dict[str, Any]:
        return {"tol_gap_abs": tol, "tol_gap_rel": tol, "tol_feas": tol, "time_limit": 200.0}
