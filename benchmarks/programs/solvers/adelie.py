"""adelie: group lasso by block coordinate descent (Yang & Hastie 2024, arXiv:2405.08631). Gated programs only.

Its loss is ours divided by n, so its lambda is reg / n; each group's factor is 1 instead of its default, the square
root of the group's size. No intercept, and no early exit at a share of explained deviance.
"""

from __future__ import annotations

import adelie
import numpy as np
from benchmark_utils import Levels, Problem, ProgramSolver


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
        count, dim = problem.gates.shape
        state = adelie.grpnet(
            prepared,
            adelie.glm.gaussian(problem.targets),
            groups=np.arange(count) * dim,
            penalty=np.ones(count),
            lmda_path=np.array([problem.reg / len(problem.targets)]),
            intercept=False,
            early_exit=False,
            tol=tol,
            n_threads=self.threads,
            progress_bar=False,
        )
        return np.asarray(state.betas.toarray()[-1]).reshape(count, dim)
