"""pyscnn's augmented Lagrangian method, for ReLU programs."""

from __future__ import annotations

from typing import Any

from benchmark_utils import Levels
from benchmark_utils.scnn_networks import ScnnSolver
from scnn.solvers import AL


class Solver(ScnnSolver):
    """Its default tolerances are 1e-6, with 10,000 iterations at most; smaller ones end at any limit that we tried."""

    name = "pyscnn-AL"
    kind = "relu"
    stopping_criterion = Levels((1e-3, 1e-4, 1e-5, 1e-6, 1e-7))

    def method(self, model: Any, tol: float) -> AL:
        return AL(model, max_primal_iters=20_000, tol=tol, constraint_tol=tol)
