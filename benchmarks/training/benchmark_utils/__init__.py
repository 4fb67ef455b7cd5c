"""What the solvers of this benchmark share: the training task, its judge, and the list of levels of each solver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benchopt.stopping_criterion import StoppingCriterion
from torch import Tensor

from cvxcnn import ConvexConvBlock, nonconvex_objective
from cvxcnn.activations.neurons import Neurons, to_module
from cvxcnn.data import ImageSet, load_data
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.penalties import DensePenalty
from cvxcnn.pricing.options import PricingOptions
from cvxcnn.pricing.separation import global_bound
from cvxcnn.program import filter_program


@dataclass
class Task:
    """Eq. 1 of a Conv -> ReLU -> mean pooling -> Linear block, every neuron feeding every (cell, output).

        min 1/2 ||f - Y||^2 + reg/2 * sum_i (||u_i||^2 + ||w_i||^2),  f_jo = sum_ic w_ico sum_k p_ck (x_jk . u_i)_+

    Solutions are filters (m, d) and readout (m, cells, outputs) in float64.
    """

    images: Tensor
    targets: Tensor
    geometry: PatchGeometry
    reg: float = 1.0
    # Learning rates found for this task, by optimiser: the seeds share them.
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def patches(self) -> Patches:
        """The patches, built anew."""
        return Patches(self.images, self.geometry)

    def block(self, reg: float, **options: Any) -> ConvexConvBlock:
        """Return cvxcnn's block for this task."""
        geometry = self.geometry
        return ConvexConvBlock(
            kernel_size=geometry.kernel_size,
            stride=geometry.stride,
            padding=geometry.padding,
            pooling=geometry.pooling,
            pool_cells=geometry.pool_cells,
            bias=geometry.bias,
            penalty="dense",
            gates="priced",
            reg=reg,
            **options,
        )

    def objective(self, filters: Tensor, readout: Tensor) -> float:
        """Return Eq. 1 of the torch module with these weights."""
        neurons = Neurons(filters, readout, filters.new_zeros(readout.shape[2]))
        module = to_module(neurons, self.geometry, tuple(self.images.shape[1:]), intercept=False)
        return nonconvex_objective(module, self.images, self.targets, self.reg)

    def bound(self, filters: Tensor, readout: Tensor, seed: int = 1) -> float:
        """Return a searched lower bound on Eq. 1 over all networks, from the residual of these weights."""
        lengths = filters.norm(dim=1)
        kept = lengths > 0
        program = filter_program(
            self.patches, F.normalize(filters[kept], dim=1), self.targets, self.reg, penalty=DensePenalty()
        )
        weights = (readout[kept] * lengths[kept, None, None]).unsqueeze(2)
        generator = torch.Generator().manual_seed(seed)
        bound = global_bound(program, weights, PricingOptions(), generator).bound
        return bound


def all_digits() -> ImageSet:
    """Return the 1,797 digits, training and test images together."""
    train, test = load_data("digits")
    return ImageSet(
        np.concatenate([train.images, test.images]),
        np.concatenate([train.labels, test.labels]),
        train.classes,
        train.name,
    )


def signs(labels: np.ndarray, classes: int) -> Tensor:
    """Return targets (n, classes), +1 for the label and -1 elsewhere; one column, +1 for label 0, for two classes."""
    values = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    return torch.from_numpy(values[:, :1] if classes == 2 else values)


class Levels(StoppingCriterion):
    """Run the solver once at each of the given values, cheapest first; ``--timeout`` applies between them."""

    def __init__(self, values: tuple[float, ...] = (), **options: Any) -> None:
        self.values = values
        super().__init__(values=values, **options)

    def init_stop_val(self) -> float:
        return self.values[0]

    def get_next_stop_val(self, stop_val: float) -> float:
        return self.values[self.values.index(stop_val) + 1]

    def check_convergence(self, objective_list: list[dict[str, Any]]) -> tuple[bool, float]:
        done = len(objective_list)
        return done == len(self.values), done / len(self.values)
