"""Outputs of a network as probabilities of the classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["nearest_probabilities"]


def nearest_probabilities(outputs: NDArray[Any]) -> NDArray[Any]:
    """Return, for each row, the point of the probability simplex that is nearest to it: max(row - t, 0) of sum 1."""
    falling = np.sort(outputs, axis=1)[:, ::-1]
    shifts = (np.cumsum(falling, axis=1) - 1) / np.arange(1, outputs.shape[1] + 1)
    support = (falling > shifts).sum(axis=1)
    return np.maximum(outputs - np.take_along_axis(shifts, support[:, None] - 1, axis=1), 0.0)
