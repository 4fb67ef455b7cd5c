"""Local maxima of the pricing problem of gates.

A gate sees of the patches only on which side of each hyperplane it is. With coefficients C_k of the patches x_k, one
number for each (cell, output), M(g) = sum_k D_k(g) x_k C_k^T is constant in each cell of their arrangement, and its
largest singular value (the length of one column where groups are columns) is to be maximised. Two moves are exact:

- along a great circle through g: with v^T M w the value at g, crossing a hyperplane changes v^T M w by a number, and
  running sums of those numbers, in the order of the angles, are at most the values of the cells that the circle meets;
- across one hyperplane: which of them bound the cell of g is a question of linear programming. Hyperplane k does not
  if its normal is a non-negative combination of those of others, all turned towards g (Farkas), and of the few that
  bound the cell at that; otherwise the residual leads across k, or across a bounding one that wasn't known (Clarkson
  1994, More output-sensitive geometric algorithms).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from ..patches.patches import Patches

__all__ = ["GateClimb"]

Floats = NDArray[np.float64]

# Normals that agree to so many digits are one hyperplane.
_DIGITS = 11
# A cell narrower than this, in radians, is passed over: rounding decides there.
_NARROWEST = 1e-9
# Great circles tried at once, and times in a row, before single crossings are.
_CIRCLES, _PATIENCE = 12, 2
# A move that gains less than this, relative to the value, is not made.
_GAIN = 1e-12
# About how many multiplications all climbs at one dual point may cost: seconds. Of one great circle, for each
# hyperplane, sorting is most; of one hyperplane that may bound a cell, it is what any small problem costs.
_WORK = 4e9
_SORTING, _SMALL_PROBLEM = 40.0, 2e4
# Numbers in the Gram matrices of the cells around one, up to which their exact values are looked at.
_GRAM_NUMBERS = 1 << 22


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-300)
    return unit


class GateClimb:
    """The hyperplanes of the patches, what crossing each changes, and where the climbs so far have ended.

    Parameters
    ----------
    patches : Patches
    dual : Tensor, shape (n, outputs)
        nu.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> patches = Patches(torch.tensor([[[[3.0, 4.0]]], [[[0.0, -5.0]]]]), PatchGeometry(kernel_size=(1, 2)))
    >>> climb = GateClimb(patches, torch.tensor([[1.0], [-1.0]]))  # both patches add up, in the wedge where both are on
    >>> gate = climb.climb(np.array([0.0, 1.0]))
    >>> climb.matrix(climb.sides(gate)).T.tolist()
    [[3.0, 9.0]]
    """

    def __init__(self, patches: Patches, dual: Tensor) -> None:
        rows = patches.unfold().flatten(0, 1).double()
        coefficients = torch.einsum("ck,no->nkco", patches.pool.double(), dual.double()).reshape(len(rows), -1)
        some = rows.any(dim=1)
        points: Floats = rows[some].cpu().numpy()
        spread: Floats = coefficients[some].cpu().numpy()
        lengths = np.linalg.norm(points, axis=1)
        units = points / lengths[:, None]
        rounded = np.round(units, _DIGITS)
        signs = np.sign(np.take_along_axis(rounded, np.argmax(rounded != 0, axis=1)[:, None], axis=1))
        _, first, inverse = np.unique(rounded * signs, axis=0, return_index=True, return_inverse=True)
        self.normals: Floats = units[first] * signs[first]
        # Of the patches of one hyperplane, those on one side of it are on when the others are off.
        self.terms: Floats = np.zeros((len(first), spread.shape[1]))
        np.add.at(self.terms, inverse.ravel(), spread * lengths[:, None])
        self.middle = 0.5 * points.T @ spread
        self.generator = np.random.default_rng(0)
        self.work = 0.0
        # For each cell, and column, that a climb came through: where it ended. Gates that end in the same cell are one.
        self.ends: dict[tuple[bytes, int], Floats] = {}

    def sides(self, gate: Floats) -> Floats:
        """Return the sides of the hyperplanes (N,) that a gate is on, 1 or -1."""
        return np.where(self.normals @ gate >= 0, 1.0, -1.0)

    def matrix(self, sides: Floats) -> Floats:
        """Return M (d, cells * outputs) of a cell."""
        total: Floats = self.middle + 0.5 * (self.normals * sides[:, None]).T @ self.terms
        return total

    @staticmethod
    def value(matrix: Floats, column: int) -> tuple[float, Floats]:
        """Return the value of a cell with M, and the unit w such that it is ||M w||."""
        if column >= 0:
            return float(np.linalg.norm(matrix[:, column])), np.eye(matrix.shape[1])[column]
        _, values, right = np.linalg.svd(matrix, full_matrices=False)
        return float(values[0]), right[0]

    def climb(self, gate: Floats, column: int = -1) -> Floats:
        """Return a gate in a cell that no single crossing leads higher from, at least as high as that of ``gate``.

        Parameters
        ----------
        gate : array, shape (d,)
            Unit.
        column : int
            The (cell, output) whose column is to be long, or -1 for the largest singular value.
        """
        visited = []
        tries = _PATIENCE
        while self.work < _WORK and len(self.normals):
            sides = self.sides(gate)
            key = np.packbits(sides > 0).tobytes(), column
            if key in self.ends:
                gate = self.ends[key]
                break
            visited.append(key)
            matrix = self.matrix(sides)
            value, toward = self.value(matrix, column)
            trial = None
            for _ in range(tries):
                trial = self._around(gate, sides, matrix @ toward, toward)
                if trial is not None:
                    break
            tries = 1 if trial is None else _PATIENCE
            if trial is None:
                trial = self._across(gate, sides, matrix, value, toward, column)
            if trial is None:
                break
            gate = trial
        for key in visited:
            self.ends[key] = gate
        return gate

    def _around(self, gate: Floats, sides: Floats, pull: Floats, toward: Floats) -> Floats | None:
        """Return a gate in the highest cell, v and w held, that some great circles meet, or None if none is higher."""
        value = float(np.linalg.norm(pull))
        turns = self.generator.normal(size=(_CIRCLES, len(gate)))
        turns[0] = pull
        turns = _unit(turns - (turns @ gate)[:, None] * gate)
        self.work += _CIRCLES * (self.normals.size + _SORTING * len(self.normals))
        angles = np.mod(np.arctan2(-self.normals @ gate, turns @ self.normals.T), np.pi)
        order = np.argsort(angles, axis=1)
        angles = np.take_along_axis(angles, order, axis=1)
        changes = sides * (self.terms @ toward) * (self.normals @ pull) / max(value, 1e-300)
        sums = np.cumsum(changes[order], axis=1)
        # Half a turn crosses every hyperplane, and the other half crosses them back in the same order.
        heights = value - np.concatenate([sums, sums[:, -1:] - sums], axis=1)
        edges = np.concatenate([angles, angles + np.pi, angles[:, :1] + 2 * np.pi], axis=1)
        widths = np.diff(edges, axis=1)
        heights[widths < _NARROWEST] = -np.inf
        circle, cell = np.unravel_index(np.argmax(heights), heights.shape)
        if heights[circle, cell] <= value * (1 + _GAIN):
            return None
        angle = edges[circle, cell] + 0.5 * widths[circle, cell]
        return _unit(np.cos(angle) * gate + np.sin(angle) * turns[circle])

    def _across(
        self, gate: Floats, sides: Floats, matrix: Floats, value: float, toward: Floats, column: int
    ) -> Floats | None:
        """Return a gate across the one hyperplane of its cell's that leads highest, or None if none leads higher."""
        inward = self.normals * sides[:, None]
        margins = inward @ gate
        self.work += 4.0 * self.normals.size
        bounding: list[int] = []
        for turn in self.generator.normal(size=(_CIRCLES, len(gate))):
            first = self._first(margins, inward @ turn)[0]
            if first not in bounding:
                bounding.append(first)
        # With w held the values across are cheap, and no higher than they are.
        pull, terms = matrix @ toward, sides * (self.terms @ toward)
        values = np.sqrt(np.maximum(pull @ pull - 2 * terms * (self.normals @ pull) + terms**2, 0.0))
        tried: set[int] = set()
        for held in (True, False):
            if not held:
                if column >= 0 or self.terms.size * self.terms.shape[1] > _GRAM_NUMBERS:
                    break
                values = self._values_across(sides, matrix)
            order = np.argsort(-values)
            for hyperplane in order[values[order] > value * (1 + _GAIN)].tolist():
                if hyperplane not in tried:
                    tried.add(hyperplane)
                    found = self._crossing(inward, margins, gate, hyperplane, bounding)
                    if found is not None:
                        return found
        return None

    def _values_across(self, sides: Floats, matrix: Floats) -> Floats:
        """Return the largest singular values of M - s_k n_k b_k^T (N,): one hyperplane crossed, if it can be."""
        crossed = (self.normals @ matrix)[:, :, None] * (sides[:, None] * self.terms)[:, None, :]
        grams = matrix.T @ matrix - crossed - crossed.transpose(0, 2, 1)
        grams += self.terms[:, :, None] * self.terms[:, None, :]
        self.work += 10.0 * grams.size * grams.shape[1]
        values: Floats = np.sqrt(np.maximum(np.linalg.eigvalsh(grams)[:, -1], 0.0))
        return values

    @staticmethod
    def _first(margins: Floats, slopes: Floats) -> tuple[int, float, float]:
        """Return the first hyperplane that a ray meets, how far away, and how far the second is."""
        lengths = np.full(len(margins) + 1, np.inf)
        ahead = slopes < 0
        lengths[:-1][ahead] = margins[ahead] / -slopes[ahead]
        two = np.argpartition(lengths, 1)[:2]
        first, second = two[np.argsort(lengths[two])]
        return int(first) % len(margins), float(lengths[first]), float(lengths[second])

    def _crossing(
        self, inward: Floats, margins: Floats, gate: Floats, hyperplane: int, bounding: list[int]
    ) -> Floats | None:
        """Return a gate across one hyperplane alone, or None if it doesn't bound the cell of ``gate``.

        Hyperplanes that are found to bound it are added to ``bounding``.
        """
        while True:
            others = inward[[row for row in bounding if row != hyperplane]]
            beyond = -inward[hyperplane]
            self.work += _SMALL_PROBLEM
            if len(others):
                try:
                    taken, residual = nnls(others.T, inward[hyperplane])
                except RuntimeError:  # too many steps: the cell is too narrow to tell
                    return None
                if residual < _NARROWEST:
                    return None
                beyond = (taken @ others - inward[hyperplane]) / residual
            self.work += self.normals.size
            first, near, far = self._first(margins, inward @ beyond - margins)
            if first == hyperplane:
                far = min(far, 1.0)
                return _unit(gate + 0.5 * (near + far) * (beyond - gate)) if far - near > _NARROWEST else None
            if first in bounding:  # by rounding
                return None
            bounding.append(first)
