"""Norms of spectra: what circular convolutions of full length cost, frequency by frequency."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .base import Penalty

__all__ = ["FrequencyPenalty", "SpectraPenalty"]


class FrequencyPenalty(Penalty):
    """Omega(v) = sum_{i,c,o} sum_k ||v_icko||: each column is cut into frequencies, with a Euclidean norm for each.

    Parameters
    ----------
    n_frequencies : int
        Into how many equal parts the rows are cut.

    Examples
    --------
    >>> FrequencyPenalty(2).value(torch.tensor([3.0, 4.0, 0.0, 1.0]).view(1, 1, 4, 1))
    6.0
    """

    name = "frequency"
    n_frequencies: int

    def __init__(self, n_frequencies: int) -> None:
        self.n_frequencies = n_frequencies

    @property
    def separable(self) -> bool:
        return True

    @property
    def columnwise(self) -> bool:
        return True

    def parts(self, weights: Tensor) -> Tensor:
        """Return weights (blocks, cells, rows, outputs) as (blocks, cells, frequencies, rows of each, outputs)."""
        blocks, cells, rows, outputs = weights.shape
        return weights.reshape(blocks, cells, self.n_frequencies, rows // self.n_frequencies, outputs)

    def value(self, weights: Tensor) -> float:
        return float(torch.linalg.vector_norm(self.parts(weights), dim=3).sum())

    def prox(self, weights: Tensor, step: float) -> Tensor:
        parts = self.parts(weights)
        norms: Tensor = torch.linalg.vector_norm(parts, dim=3, keepdim=True)
        shrunk = parts * (1 - step / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min(0.0)
        return shrunk.flatten(2, 3)

    def dual_norms(self, correlation: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(self.parts(correlation), dim=3).amax(dim=2)
        return norms

    def group_norms(self, correlation: Tensor) -> Tensor:
        # One for each column, each of which is a norm by itself.
        return self.dual_norms(correlation)

    def expression(self, weights: Any, shape: tuple[int, int, int, int]) -> Any:
        import cvxpy as cp

        # Columns of the variable follow one another, and so do the rows of a frequency.
        size = shape[2] // self.n_frequencies
        parts = cp.reshape(cp.vec(weights, order="F"), (size, math.prod(shape) // size), order="F")
        return cp.sum(cp.norm(parts, 2, axis=0))


class SpectraPenalty(Penalty):
    """Omega(Z) = sum_k ||Z_k||_*: singular values of a complex (channels x outputs) matrix for each block.

    The first half of a block's rows has the real parts, the second half the imaginary ones. It is exact for circular
    networks of several channels whose filters feed every output.

    Examples
    --------
    >>> SpectraPenalty().value(torch.tensor([3.0, 4.0]).view(1, 1, 2, 1))  # one channel, one output: |3 + 4i|
    5.0
    """

    name = "spectra"

    @staticmethod
    def matrices(weights: Tensor) -> Tensor:
        """Return weights (blocks, 1, 2 * channels, outputs) as complex matrices (blocks, channels, outputs)."""
        real, imaginary = weights.squeeze(1).chunk(2, dim=1)
        return torch.complex(real, imaginary)

    def value(self, weights: Tensor) -> float:
        return float(torch.linalg.svdvals(self.matrices(weights)).sum())

    def prox(self, weights: Tensor, step: float) -> Tensor:
        left, values, right = torch.linalg.svd(self.matrices(weights), full_matrices=False)
        shrunk = (left * (values - step).clamp_min(0.0).unsqueeze(-2)) @ right
        return torch.cat([shrunk.real, shrunk.imag], dim=1).unsqueeze(1)

    def dual_norms(self, correlation: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.svdvals(self.matrices(correlation)).amax(dim=1)
        return norms

    def expression(self, weights: Any, shape: tuple[int, int, int, int]) -> Any:
        import cvxpy as cp

        blocks, _, rows, _ = shape
        half, total = rows // 2, 0
        for block in range(blocks):
            real = weights[block * rows : block * rows + half]
            imaginary = weights[block * rows + half : (block + 1) * rows]
            # Every singular value of the complex matrix is there twice.
            total = total + 0.5 * cp.normNuc(cp.bmat([[real, -imaginary], [imaginary, real]]))
        return total
