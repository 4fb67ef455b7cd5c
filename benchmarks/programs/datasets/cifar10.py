"""Two classes of CIFAR-10, 3x3 patches, mean pooling, gates from whitened patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from benchmark_utils import distinct_gates
from benchopt import BaseDataset

from cvxcnn.arrangements import PatchGates
from cvxcnn.data import limit, load_data
from cvxcnn.errors import DataError
from cvxcnn.patches import Patches, PatchGeometry


class Dataset(BaseDataset):
    """The first two classes among ``n`` training images, with a constant in each patch.

    ``path`` is what ``cvxcnn.data.load_data`` takes; "cifar10" looks where the environment variable CVXCNN_DATA says.
    """

    name = "cifar10"
    parameters = {"path": ["cifar10"], "n": [1000], "gates": [200], "stride": [2], "seed": [0]}
    test_parameters = {"n": [20], "gates": [5]}

    def get_data(self) -> dict[str, Any]:
        try:
            train, _ = load_data(self.path)
        except DataError as error:
            return {"reason": str(error)}
        chosen = limit(train.subset(np.flatnonzero(train.labels < 2)), self.n, self.seed)
        pixels = torch.from_numpy(np.asarray(chosen.images)).double()
        geometry = PatchGeometry(kernel_size=3, stride=self.stride, pooling="mean", bias=True)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = PatchGates().sample(Patches(pixels, geometry), self.gates, generator)
        return {
            "images": pixels,
            "geometry": geometry,
            "gates": distinct_gates(pixels, geometry, drawn),
            "targets": np.where(chosen.labels == 0, 1.0, -1.0),
            # Its 225,000 patches make 90 million cone rows.
            "programs": ("gated",),
        }
