"""What the programs and solvers need of a penalty, most of which follows from its groups."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .slopes import ProxSlope

__all__ = ["Penalty"]

# Where the axes that may index groups are in weights (blocks, cells, rows, outputs).
_AXES = {"cell": 1, "output": 3}
_GROUPINGS = ((), ("cell",), ("output",), ("cell", "output"))


class Penalty:
    """A norm Omega of weights of shape (blocks, cells, rows, outputs); a block is one gate or one filter.

    ``rows`` is the patch length d for weights on gated patches, and 1 for weights on ReLU responses. Omega is a sum
    over blocks of one and the same norm. Where that is a sum of the Euclidean norms of fixed groups, ``group_axes``
    says which, and everything else follows; otherwise a penalty defines ``value``, ``prox`` and ``dual_norms``, and
    takes its place with the solvers that need no more.

    Raises
    ------
    InputError
        Where a class is defined whose ``group_axes`` are no such axes, or that lacks both them and a method.

    Examples
    --------
    >>> class OutputPenalty(Penalty):
    ...     name = "output"
    ...     group_axes = ("output",)
    >>> OutputPenalty().value(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1))  # one group of two cells
    5.0
    """

    name: str
    group_axes: tuple[str, ...] | None = None
    """The axes that index Omega's groups beside the block, of "cell" and "output"; rows are always together.

    ("cell", "output") is a group for each column of a block, () one for the block. None: Omega isn't a sum of
    unweighted Euclidean norms of fixed groups, or doesn't say.
    """
    spectral: bool = False
    """Whether a block's dual norm is the largest singular value of its (rows, cells * outputs) matrix."""
    n_frequencies: int | None = None
    """Into how many parts, each with a norm of its own, columns are cut (``penalties.spectra``); None: not at all."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.group_axes not in (None, *_GROUPINGS):
            raise InputError(
                f"group_axes of {cls.__name__} must be None or one of {', '.join(map(str, _GROUPINGS))}; "
                f"got {cls.group_axes!r}."
            )
        needed = ("value", "prox", "dual_norms")
        missing = [name for name in needed if getattr(cls, name) is getattr(Penalty, name)]
        if cls.group_axes is None and missing:
            raise InputError(f"{cls.__name__} says no group_axes, and so must define {', '.join(missing)} itself.")

    @property
    def separable(self) -> bool:
        """Whether Omega is a sum over outputs, so that each of them has a multiple of nu of its own."""
        return self.group_axes is not None and "output" in self.group_axes

    @property
    def columnwise(self) -> bool:
        """Whether each (block, cell, output) is a group."""
        return self.group_axes == ("cell", "output")

    @property
    def expressible(self) -> bool:
        """Whether there is an ``expression``."""
        return self.group_axes is not None or type(self).expression is not Penalty.expression

    @property
    def smooth(self) -> bool:
        """Whether the proximal map comes with a derivative, ``linearised``."""
        return type(self).linearised is not Penalty.linearised

    @property
    def stackable(self) -> bool:
        """Whether it is a penalty of stacked outputs too (``program.design.StackedDesign``): "group", or itself."""
        return self.columnwise or self.group_axes == ()

    def _joined(self) -> tuple[int, ...]:
        """Return the axes of (blocks, cells, rows, outputs) that a group has all of."""
        indexed = {0, *(_AXES[axis] for axis in self.group_axes or ())}
        return tuple(axis for axis in range(4) if axis not in indexed)

    def value(self, weights: Tensor) -> float:
        """Return Omega(weights)."""
        return float(torch.linalg.vector_norm(weights, dim=self._joined()).sum())

    def prox(self, weights: Tensor, step: float) -> Tensor:
        """Return argmin_v 1/2 ||v - weights||^2 + step * Omega(v)."""
        norms: Tensor = torch.linalg.vector_norm(weights, dim=self._joined(), keepdim=True)
        return weights * (1 - step / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min(0.0)

    def linearised(self, weights: Tensor, step: float) -> tuple[Tensor, ProxSlope]:
        """Return ``prox`` and its derivative there.

        Raises
        ------
        InputError
            If it isn't ``smooth``.
        """
        raise InputError(f'penalty {self.name!r} gives no derivative of its proximal map. Use solver="fista".')

    def dual_norms(self, correlation: Tensor) -> Tensor:
        """Return the dual norm of each group of A^T nu: (blocks, sizes of ``group_axes``), or (blocks, ...) of None.

        Omega's dual norm is the largest of them. None may be above the Frobenius norm of its block.
        """
        norms: Tensor = torch.linalg.vector_norm(correlation, dim=self._joined())
        return norms

    def group_norms(self, correlation: Tensor) -> Tensor:
        """Return ``dual_norms`` as (blocks, cells, outputs), an axis that doesn't index groups of length one.

        Raises
        ------
        InputError
            If ``dual_norms`` has another number of them.
        """
        blocks, cells, _, outputs = correlation.shape
        norms = self.dual_norms(correlation)
        if not blocks:
            return norms.new_zeros(0, 1, 1)
        if self.group_axes is None:
            return norms.reshape(blocks, -1).amax(dim=1).view(blocks, 1, 1)
        shape = (blocks, cells if "cell" in self.group_axes else 1, outputs if "output" in self.group_axes else 1)
        if norms.numel() != math.prod(shape):
            raise InputError(
                f"penalty {self.name!r} has groups {self.group_axes}, so dual_norms must return {shape} numbers; "
                f"got shape {tuple(norms.shape)}. Leave group_axes out if they are other groups."
            )
        return norms.reshape(shape)

    def largest_scale(self, correlation: Tensor, reg: float, rounding: Tensor | None = None) -> Tensor:
        """Return, for each output, the largest s with dual norm of s * A^T nu at most ``reg``; shape (outputs,).

        One and the same s for all outputs unless the penalty is separable.

        Parameters
        ----------
        correlation : Tensor, shape (blocks, cells, rows, outputs)
            A^T nu.
        reg : float
        rounding : Tensor, shape (cells, outputs), optional
            How long the error of each column of A^T nu may be; then s is right for every such error.
        """
        outputs = correlation.shape[-1]
        if not len(correlation):
            return correlation.new_full((outputs,), float("inf"))  # no group, no constraint
        norms = self.group_norms(correlation)
        if rounding is not None:
            joined = tuple(dim for dim, size in enumerate(norms.shape[1:]) if size == 1)
            lengths = torch.linalg.vector_norm(rounding, dim=joined, keepdim=True) if joined else rounding
            norms = norms + lengths.to(norms)
        peak = norms.amax(dim=(0, 1)).expand(outputs)
        return reg / peak.clamp_min(torch.finfo(peak.dtype).tiny)

    def expression(self, weights: Any, shape: tuple[int, int, int, int]) -> Any:
        """Return Omega as a cvxpy expression.

        Parameters
        ----------
        weights : cvxpy expression, shape (blocks * cells * rows, outputs)
        shape : tuple
            (blocks, cells, rows, outputs).

        Raises
        ------
        InputError
            If the penalty says no groups; then it has to define this itself.
        """
        import cvxpy as cp

        if self.group_axes is None:
            raise InputError(f"penalty {self.name!r} gives cvxpy no expression, and says no group_axes to make one of.")
        blocks, cells, rows, outputs = shape
        # Where each weight is when the columns of the variable follow one another.
        places = np.arange(blocks * cells * rows * outputs).reshape(outputs, blocks, cells, rows).transpose(1, 2, 3, 0)
        joined = self._joined()
        apart = tuple(axis for axis in range(4) if axis not in joined)
        groups = places.transpose(*apart, *joined).reshape(math.prod(shape[axis] for axis in apart), -1)
        columns = cp.vec(weights, order="F")[groups.ravel()]
        return cp.sum(cp.norm(cp.reshape(columns, groups.shape[::-1], order="F"), 2, axis=0))
