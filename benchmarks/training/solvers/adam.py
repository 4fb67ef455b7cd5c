"""torch's Adam on Eq. 1."""

from __future__ import annotations

from benchmark_utils.baseline import Baseline


class Solver(Baseline):
    """200 neurons; each seed is a row of its own, and the best of them is what is compared."""

    name = "Adam"
    optimizer = "adam"
    parameters = {"seed": [0, 1, 2, 3, 4, 5], "width": [200]}
