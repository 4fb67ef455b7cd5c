"""torch's SGD with Nesterov momentum 0.9 on Eq. 1."""

from __future__ import annotations

from benchmark_utils.baseline import Baseline


class Solver(Baseline):
    """200 neurons; each seed is a row of its own, and the best of them is what is compared."""

    name = "SGD"
    optimizer = "sgd"
    parameters = {"seed": [0, 1, 2], "width": [200]}
