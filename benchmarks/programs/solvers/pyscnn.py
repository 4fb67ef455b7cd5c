"""pyscnn's R-FISTA: accelerated proximal gradients with restarts, for gated programs."""

from __future__ import annotations

from typing import Any

from benchmark_utils import Levels
from benchmark_utils.scnn_networks import ScnnSolver
from scnn.solvers import RFISTA


class Solver(ScnnSolver):
    """R-FISTA at several tolerances."""

    name = "pyscnn"
    kind = "gated"
    stopping_criterion = Levels((1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12, 1e-13))

    def method(self, model: Any, tol: float) -> RFISTA:
        return RFISTA(model, max_iters=50_000, tol=tol)
