"""The solver that cvxcnn chooses by itself, timed from images and gates to feasible weights and their certificate."""

from __future__ import annotations

from typing import Any

import numpy as np
from benchmark_utils import Levels, Problem, ProgramSolver

from cvxcnn.solvers import get_solver


class Solver(ProgramSolver):
    """Working sets over gates (and over the rows of their cones)."""

    name = "cvxcnn"
    stopping_criterion = Levels((1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8))

    def solve(self, problem: Problem, prepared: Any, tol: float) -> np.ndarray:
        program = problem.program()
        weights = get_solver("auto", program, tol=tol).solve(program).weights
        return weights[:, 0, :, 0].numpy().reshape(problem.zeros.shape)
