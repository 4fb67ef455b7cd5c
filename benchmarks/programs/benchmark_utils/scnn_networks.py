"""pyscnn's methods (Mishkin, Sahiner & Pilanci 2022, arXiv:2202.01331) on our problems.

Its loss is ours divided by n, so its lambda is reg / n. By default it scales the columns of the data, which changes the
problem: unitize_data=False. Its gates test x.g > 0, ours x.g >= 0: the same where no patch lies on a hyperplane.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from scnn.metrics import Metrics
from scnn.models import ConvexGatedReLU, ConvexReLU
from scnn.optimize import optimize_model
from scnn.regularizers import NeuronGL1

from benchmark_utils import Problem, ProgramSolver


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
        gates = problem.gates.numpy()
        model = {"relu": ConvexReLU, "gated": ConvexGatedReLU}[self.kind](gates.T.copy())
        # Nothing is measured on the way: it would be timed.
        nothing = Metrics(metric_freq=10**9, objective=False, grad_norm=False, time=False)
        level = logging.root.level
        try:
            fitted, _ = optimize_model(
                model,
                self.method(model, tol),
                nothing,
                problem.patches[:, 0],
                problem.targets[:, None],
                regularizer=NeuronGL1(problem.reg / len(problem.targets)),
                return_convex=True,
                unitize_data=False,
                dtype="float64",
            )
        finally:
            logging.root.setLevel(level)  # it sets the level of everyone's log
        # It sorts the gates: give each row its place back.
        order, found = np.lexsort(gates.T[::-1]), np.lexsort(np.asarray(fitted.G)[::-1])
        weights = problem.zeros
        for part, values in zip(weights.reshape(-1, *gates.shape), fitted.parameters, strict=True):
            part[order] = np.asarray(values[0], dtype=np.float64)[found]
        return weights
