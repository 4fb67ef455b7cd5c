"""Programs over fixed gates: objective, violation and gap of whatever a solver returns, recomputed in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from benchmark_utils import Problem
from benchopt import BaseObjective

from cvxcnn.solvers import get_solver


class Objective(BaseObjective):
    """The ReLU program or the gated program at ``reg_fraction`` times the smallest reg whose solution is zero."""

    name = "Convex programs over fixed gates"
    min_benchopt_version = "1.10"
    parameters = {"program": ["relu", "gated"], "reg_fraction": [0.15]}
    sampling_strategy = "tolerance"

    def skip(self, reason: str | None = None, **data: Any) -> tuple[bool, str | None]:
        if reason is None and self.program not in data.get("programs", (self.program,)):
            reason = f"this data set is not meant for the {self.program} program"
        return reason is not None, reason

    def set_data(self, programs: Any = None, **data: Any) -> None:
        unit = Problem(**data, kind=self.program)
        self.problem = replace(unit, reg=self.reg_fraction * unit.program().reg_max())
        program = self.problem.program()
        solution = get_solver("auto", program, tol=1e-10).solve(program).weights[:, 0, :, 0].numpy()
        prediction = self.problem.predict(solution := solution.reshape(self.problem.zeros.shape))
        # The optimum lies between these two, whoever found the weights.
        self.best = self.problem.objective(solution, prediction)
        self.best_bound = self.problem.bound(prediction)

    def get_objective(self) -> dict[str, Problem]:
        return {"problem": self.problem}

    def get_one_result(self) -> dict[str, np.ndarray]:
        return {"weights": self.problem.zeros}

    def evaluate_result(self, weights: np.ndarray, preparation: float = 0.0) -> dict[str, float]:
        """Return

        - ``value``: the objective; cones are not looked at;
        - ``gap``: (value - dual bound) / max(1, value), with the bound at these weights' own residual;
        - ``error``: (|value - best| + best - its bound) / max(1, best), with the best objective known, found by cvxcnn
          at 1e-10 and certified here: kinder than the gap, for a point may be better than its own residual proves;
        - ``violation``: largest -s_k x_k . u over all rows of all cones;
        - ``preparation``: seconds for the matrix of features, which ours doesn't take and the time doesn't hold.
        """
        weights = np.asarray(weights, dtype=np.float64)
        prediction = self.problem.predict(weights)
        value = self.problem.objective(weights, prediction)
        return {
            "value": value,
            "gap": (value - self.problem.bound(prediction)) / max(1.0, value),
            "error": (abs(value - self.best) + max(0.0, self.best - self.best_bound)) / max(1.0, self.best),
            "violation": self.problem.violation(weights),
            "preparation": preparation,
        }
