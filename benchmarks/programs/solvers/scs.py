"""SCS through cvxpy: operator splitting (O'Donoghue et al. 2016, arXiv:1312.3039)."""

from __future__ import annotations

from typing import Any

from benchmark_utils import Levels
from benchmark_utils.modelled import CvxpySolver


class Solver(CvxpySolver):
    """The whole program at once."""

    name = "SCS"
    backend = "SCS"
    requirements = ["pip::cvxpy", "pip::scs"]
    stopping_criterion = Levels((1e-2, 1e-3, 1e-5))

    def options(self, tol: float) -> dict[str, Any]:
        return {"eps_abs": tol, "eps_rel": tol, "max_iters": 1_000_000, "time_limit_secs": 200.0}
