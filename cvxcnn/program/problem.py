"""The problem of a block: what is fitted, how it is judged, and what weights cost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from ..losses import Loss, SquaredLoss
from ..patches.patches import Patches
from ..penalties import DensePenalty, Penalty
from .design import FilterDesign
from .program import Program, gated_program, relu_program
from .units import Units

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """What a block is fitted to; over which gates or filters is left open.

    Parameters
    ----------
    patches : Patches
        Of the training images.
    targets : Tensor, shape (n, outputs)
    reg : float
        lam > 0.
    penalty : Penalty
        Of the program: ``DensePenalty()`` by default.
    loss : Loss
    intercept : bool

    Examples
    --------
    >>> import torch
    >>> from cvxcnn.patches import PatchGeometry
    >>> patches = Patches(torch.tensor([[[[3.0, 4.0]]]]), PatchGeometry(kernel_size=(1, 2)))
    >>> problem = Problem(patches, torch.ones(1, 1), reg=2.0)
    >>> problem.over_filters(torch.tensor([[0.6, 0.8]])).reg_max()
    5.0
    """

    patches: Patches
    targets: Tensor
    reg: float = 1.0
    penalty: Penalty = field(default_factory=DensePenalty)
    loss: Loss = field(default_factory=SquaredLoss)
    intercept: bool = False

    def over_gates(self, gates: Tensor) -> Program:
        """Return the gated program over gates (P, d)."""
        return gated_program(
            self.patches, gates, self.targets, self.reg, penalty=self.penalty, loss=self.loss, intercept=self.intercept
        )

    def over_patterns(self, gates: Tensor) -> Program:
        """Return the ReLU program (Eq. 2) over the patterns of gates (P, d)."""
        return relu_program(
            self.patches, gates, self.targets, self.reg, penalty=self.penalty, loss=self.loss, intercept=self.intercept
        )

    def over_filters(self, filters: Tensor, design: type[FilterDesign] = FilterDesign) -> Program:
        """Return the group lasso over the responses of unit filters (m, d)."""
        return Program(
            design(self.patches, filters), self.targets, self.reg, self.penalty, self.loss, intercept=self.intercept
        )

    @property
    def units(self) -> Units:
        """The units in which its images and targets are near one."""
        return Units.of(self.patches, self.targets, self.loss)

    def in_units(self, units: Units) -> Problem:
        """Return the same problem in other units."""
        return replace(
            self, patches=units.scaled(self.patches), targets=self.targets / units.targets, reg=self.reg / units.reg,
            loss=self.loss.in_unit(units.importance),
        )  # fmt: skip
