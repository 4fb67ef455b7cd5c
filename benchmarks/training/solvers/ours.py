"""cvxcnn: filters found by pricing, gates="priced" and penalty="dense"."""

from __future__ import annotations

from typing import Any

import numpy as np
from benchmark_utils import Levels, Task
from benchopt import BaseSolver

from cvxcnn.pricing.options import PricingOptions

_LEVELS = (1e-1, 1e-2, 1e-3, 1e-4)


class Solver(BaseSolver):
    """Timed from images to the block with both of its certificates, at several gaps to the bound over all filters."""

    name = "cvxcnn"
    sampling_strategy = "tolerance"
    parameters = {"seed": [0]}
    stopping_criterion = Levels(_LEVELS)

    def set_objective(self, task: Task) -> None:
        self.task = task

    def warm_up(self) -> None:
        random = np.random.default_rng(0)
        images, targets = random.normal(size=(20, *self.task.images.shape[1:])), random.normal(size=20)
        self.task.block(1.0).fit(images, targets)

    def run(self, stop_val: float) -> None:
        self.tolerance = stop_val
        options = PricingOptions(gap=stop_val, time_limit=60.0)
        self.block = self.task.block(self.task.reg, pricing=options, random_state=self.seed)
        self.block.fit(self.task.images, self.task.targets)

    def get_result(self) -> dict[str, Any]:
        neurons = self.block.neurons_
        return {"filters": neurons.filters, "readout": neurons.readout, "bound": self.tolerance == _LEVELS[-1]}
