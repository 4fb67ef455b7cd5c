"""scikit-learn's digits: two classes with one cell, or all ten with more."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from benchmark_utils import all_digits, signs
from benchopt import BaseDataset

from cvxcnn.data import limit, load_data
from cvxcnn.patches import PatchGeometry


class Dataset(BaseDataset):
    """3x3 patches, mean pooling, targets +1 and -1.

    ``task`` is "two" (3 against 8, one cell, the first ``n`` of all 1,797 images) or "ten" (2x2 cells, ``n`` of the
    1,437 training images).
    """

    name = "digits"
    parameters = {"task, n": [("two", 40), ("two", 357), ("ten", 1437)]}
    test_parameters = {"task, n": [("two", 20)]}

    def get_data(self) -> dict[str, Any]:
        if self.task == "ten":
            train, _ = load_data("digits")
            chosen, classes, cells = limit(train, self.n, 0), 10, 2
            labels = chosen.labels
        else:
            images = all_digits()
            chosen = images.subset(np.flatnonzero(np.isin(images.labels, (3, 8)))[: self.n])
            labels, classes, cells = (chosen.labels == 8).astype(int), 2, 1
        return {
            "images": torch.from_numpy(np.asarray(chosen.images)).double(),
            "targets": signs(labels, classes),
            "geometry": PatchGeometry(kernel_size=3, pooling="mean", pool_cells=cells),
        }
