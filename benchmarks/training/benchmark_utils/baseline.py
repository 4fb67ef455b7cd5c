"""Adam and SGD on Eq. 1, as ``cvxcnn.ordinary`` trains with them."""

from __future__ import annotations

from typing import Any

import torch
from benchopt import BaseSolver

from benchmark_utils import Levels, Task
from cvxcnn.ordinary import train_baseline, tune
from cvxcnn.ordinary.minibatch import FIRST_CYCLE_STEPS
from cvxcnn.patches import Patches


class Baseline(BaseSolver):
    """Minibatches of 64, linear warm-up and cosine restarts, the rate tuned on the task itself.

    The rate is the best of five (1/4 to 4 times the default) after one cycle with seed 0; the search is not timed.
    A level is a number of minibatch steps: the ends of the first, second and third cycle.
    """

    optimizer: str
    sampling_strategy = "iteration"
    stopping_criterion = Levels((FIRST_CYCLE_STEPS, 3 * FIRST_CYCLE_STEPS, 7 * FIRST_CYCLE_STEPS))

    def set_objective(self, task: Task) -> None:
        self.task = task
        self.patches = task.patches
        if self.optimizer not in task.rates:
            task.rates[self.optimizer] = tune(
                self.patches,
                task.targets,
                task.reg,
                self.width,
                optimizer=self.optimizer,
                epochs=self.epochs(FIRST_CYCLE_STEPS),
            )

    def epochs(self, steps: int) -> int:
        """Return how many passes over the images make this many steps."""
        return -(-steps // -(-len(self.task.images) // 64))

    def train(self, patches: Patches, targets: torch.Tensor, epochs: int) -> Any:
        """Train without stopping early."""
        rate = self.task.rates[self.optimizer]
        return train_baseline(
            patches,
            targets,
            self.task.reg,
            self.width,
            optimizer=self.optimizer,
            learning_rate=rate,
            epochs=epochs,
            tol=1e-12,
            seed=self.seed,
        )

    def warm_up(self) -> None:
        self.train(self.patches, self.task.targets, 1)

    def run(self, stop_val: int) -> None:
        self.result = self.train(self.patches, self.task.targets, self.epochs(stop_val))

    def get_result(self) -> dict[str, Any]:
        return {"filters": self.result.filters, "readout": self.result.readout}
