"""The programs as cvxpy problems."""

from __future__ import annotations

import warnings
from typing import Any

import cvxpy as cp
import numpy as np

from benchmark_utils import Problem, ProgramSolver

# Numbers in the matrix of the constraints or of the loss; ten times as many exhaust memory or patience.
_MOST_ENTRIES = 2.5e7


class CvxpySolver(ProgramSolver):
    """A solver behind cvxpy; modelling is timed with it, the matrix of features apart."""

    backend: str
    requirements = ["pip::cvxpy"]

    def options(self, tol: float) -> dict[str, Any]:
        """Return the solver's own settings for a tolerance."""
        raise NotImplementedError

    def skip(self, problem: Problem) -> tuple[bool, str | None]:
        count, dim = problem.gates.shape
        entries = len(problem.targets) * count * dim
        if problem.kind == "relu":
            entries = max(entries, 2 * len(problem.cones.rows) * count * dim)
        if entries > _MOST_ENTRIES:
            return True, f"its matrix would hold {entries:.1e} numbers, the limit here is {_MOST_ENTRIES:.1e}"
        return False, None

    def prepare(self, problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        features = problem.features().reshape(len(problem.targets), -1)
        if problem.kind == "gated":
            return features, np.zeros((0, 0)), np.zeros((0, 0))
        rows = problem.cones.rows / problem.cones.lengths[:, None]
        return features, rows, np.where(problem.cones.rows @ problem.gates.numpy().T >= 0, 1.0, -1.0)

    def solve(self, problem: Problem, prepared: Any, tol: float) -> np.ndarray:
        features, rows, signs = prepared
        shape = problem.gates.T.shape
        parts = [cp.Variable(shape) for _ in range(2 if problem.kind == "relu" else 1)]
        combined = parts[0] - parts[1] if problem.kind == "relu" else parts[0]
        fit = 0.5 * cp.sum_squares(features @ cp.vec(combined, order="F") - problem.targets)
        norms = cp.sum(cp.hstack([cp.norm(part, 2, axis=0) for part in parts]))
        cones = [cp.multiply(signs, rows @ part) >= 0 for part in parts] if problem.kind == "relu" else []
        model = cp.Problem(cp.Minimize(fit + problem.reg * norms), cones)
        with warnings.catch_warnings():
            # The benchmark itself says how inaccurate.
            warnings.filterwarnings("ignore", message="Solution may be inaccurate")
            model.solve(solver=self.backend, **self.options(tol))
        if parts[0].value is None:
            return problem.zeros  # no point within the time limit: judged as what it is
        return np.stack([part.value.T for part in parts]).reshape(problem.zeros.shape)
