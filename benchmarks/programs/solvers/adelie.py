"""adelie: group lasso by block coordinate descent. Gated programs only."""

from __future__ import annotations

import numpy as np
from benchmark_utils import Levels, Problem, ProgramSolver
from benchmark_utils.rival_calls import adelie_weights, import_adelie

import_adelie()  # benchopt asks whether it is installed by importing this file


class Solver(ProgramSolver):
    """The matrix of all features is given: its time is noted apart."""

    name = "adelie"
    # Its package metadata ask for numpy < 2, though it runs with numpy 2: install it with --no-deps.
    requirements = ["pip::adelie"]
    # On small problems two threads wait for each other longer than they work.
    parameters = {"threads": [1, 2]}
    stopping_criterion = Levels((1e-5, 1e-7, 1e-9, 1e-12, 1e-14, 1e-15, 1e-16))

    def skip(self, problem: Problem) -> tuple[bool, str | None]:
        return problem.kind != "gated", "it has no cones" if problem.kind != "gated" else None

    def prepare(self, problem: Problem) -> np.ndarray:
        return np.asfortranarray(problem.features().reshape(len(problem.targets), -1))

    def solve(self, problem: Problem, prepared: np.ndarray, tol: float) -> np.ndarray:
        return adelie_weights(prepared, problem.targets, len(problem.gates), problem.reg, tol, self.threads)
