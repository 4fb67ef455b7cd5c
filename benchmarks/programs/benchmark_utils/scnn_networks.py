"""pyscnn's methods on our problems."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmark_utils import Problem, ProgramSolver
from benchmark_utils.rival_calls import pyscnn_weights


class ScnnSolver(ProgramSolver):
    """One of its methods, in float64; patterns are computed within the clock, as ours are."""

    kind: str
    # Its package metadata ask for torchvision, which it doesn't import: install it with --no-deps.
    requirements = ["pip::pyscnn", "pip::linalg_backends", "pip::opt_einsum"]

    def method(self, model: Any, tol: float) -> Any:
        """Return its optimiser."""
        raise NotImplementedError

    def skip(self, problem: Problem) -> tuple[bool, str | None]:
        patches = problem.patches.shape[1]
        if problem.kind != self.kind:
            return True, f"it is for {self.kind} programs"
        return patches > 1, f"it is for fully connected networks; these have {patches} patches" if patches > 1 else None

    def solve(self, problem: Problem, prepared: None, tol: float) -> np.ndarray:
        found = pyscnn_weights(
            self.kind, problem.patches[:, 0], problem.targets, problem.gates.numpy(), problem.reg,
            lambda model: self.method(model, tol),
        )  # fmt: skip
        return np.stack(found).reshape(problem.zeros.shape)
