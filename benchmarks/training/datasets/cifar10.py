"""Two classes of CIFAR-10, 3x3 patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from benchmark_utils import signs
from benchopt import BaseDataset

from cvxcnn.data import limit, load_data
from cvxcnn.errors import DataError
from cvxcnn.patches import PatchGeometry


class Dataset(BaseDataset):
    """The first two classes among ``n`` training images, with a bias and 2x2 mean cells.

    ``path`` is what ``cvxcnn.data.load_data`` takes; "cifar10" looks where the environment variable CVXCNN_DATA says.
    """

    name = "cifar10"
    parameters = {"path": ["cifar10"], "n": [500], "stride": [2]}
    test_parameters = {"n": [20]}

    def get_data(self) -> dict[str, Any]:
        try:
            train, _ = load_data(self.path)
        except DataError as error:
            return {"reason": str(error)}
        chosen = limit(train.subset(np.flatnonzero(train.labels < 2)), self.n, 0)
        return {
            "images": torch.from_numpy(np.asarray(chosen.images)).double(),
            "targets": signs(chosen.labels, 2),
            "geometry": PatchGeometry(kernel_size=3, stride=self.stride, pooling="mean", pool_cells=2, bias=True),
        }
