"""The fully connected problem of a planted network plus noise: one patch an image."""

from __future__ import annotations

from typing import Any

from benchmark_utils import planted
from benchopt import BaseDataset


class Dataset(BaseDataset):
    """Gaussian inputs, Gaussian gates, ten planted neurons, noise of a tenth of the signal."""

    name = "planted"
    parameters = {"n, d, gates": [(1000, 30, 100)], "seed": [0]}
    test_parameters = {"n, d, gates": [(40, 3, 10)]}

    def get_data(self) -> dict[str, Any]:
        return planted(self.n, self.d, self.gates, seed=self.seed)
