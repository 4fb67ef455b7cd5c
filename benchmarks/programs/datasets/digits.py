"""Two classes of scikit-learn's digits, 3x3 patches, mean pooling."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from benchmark_utils import distinct_gates
from benchopt import BaseDataset

from cvxcnn.data import load_data
from cvxcnn.patches import PatchGeometry


class Dataset(BaseDataset):
    """Digits of two classes against each other, targets +1 and -1, with Gaussian gates."""

    name = "digits"
    parameters = {"n": [360], "gates": [50], "classes": [(3, 8)], "seed": [0]}
    test_parameters = {"n": [20], "gates": [5]}

    def get_data(self) -> dict[str, Any]:
        parts = load_data("digits")
        images, labels = (np.concatenate([getattr(p, name) for p in parts]) for name in ("images", "labels"))
        kept = np.flatnonzero(np.isin(labels, self.classes))[: self.n]
        pixels, geometry = torch.from_numpy(images[kept]).double(), PatchGeometry(kernel_size=3, pooling="mean")
        drawn = torch.from_numpy(np.random.default_rng(self.seed).normal(size=(self.gates, 9)))
        return {
            "images": pixels,
            "geometry": geometry,
            "gates": distinct_gates(pixels, geometry, drawn),
            "targets": np.where(labels[kept] == self.classes[0], 1.0, -1.0),
        }
