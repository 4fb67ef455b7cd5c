"""Eq. 1 of whatever network a solver returns, recomputed in float64 through the exported torch module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from benchmark_utils import Task
from benchopt import BaseObjective
from torch import Tensor


class Objective(BaseObjective):
    """A two-layer CNN, trained at ``reg_fraction`` times the (searched) smallest reg whose solution is zero."""

    name = "Training a two-layer CNN"
    min_benchopt_version = "1.10"
    parameters = {"reg_fraction": [0.05]}

    def skip(self, reason: str | None = None, **data: Any) -> tuple[bool, str | None]:
        return reason is not None, reason

    def set_data(self, **data: Any) -> None:
        task = Task(**data)
        largest = task.block(1.0).reg_max(task.images, task.targets)
        self.task = replace(task, reg=self.reg_fraction * largest)

    def get_objective(self) -> dict[str, Task]:
        return {"task": self.task}

    def get_one_result(self) -> dict[str, Any]:
        task = self.task
        outputs = task.targets.shape[1]
        filters = torch.zeros(1, task.patches.dim, dtype=torch.float64)
        return {"filters": filters, "readout": filters.new_zeros(1, task.patches.n_cells, outputs)}

    def evaluate_result(self, filters: Tensor, readout: Tensor, bound: bool = False) -> dict[str, float]:
        """Return

        - ``value``: Eq. 1;
        - ``bound``: where a solver asks for it, a lower bound over networks of any width that a search of the
          benchmark's own (other seed) found from these weights; evidence, not proof; nan elsewhere;
        - ``neurons``: filters that are not zero.
        """
        filters, readout = filters.double(), readout.double()
        return {
            "value": self.task.objective(filters, readout),
            "bound": self.task.bound(filters, readout) if bound else float("nan"),
            "neurons": int(filters.any(dim=1).sum()),
        }
