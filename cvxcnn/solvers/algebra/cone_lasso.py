"""Group lasso whose groups lie in cones of a few rows each: an augmented Lagrangian with semismooth Newton steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg
from scipy.optimize import nnls

from ...program.units import power_of_two

__all__ = ["ConeLasso"]

Array = np.ndarray

# The first proximal step times the steepness, what it grows by, and the most it may be.
_FIRST, _GROWTH, _LARGEST = 1e4, 8.0, 1e8
# Proximal steps, and Newton steps of each, at most; how small a gradient must be, squared, beside the step's length.
_PROXIMAL, _NEWTON, _EXACT = 60, 30, 3e-2
_ARMIJO, _HALVINGS = 1e-4, 30
# Multipliers and slacks of a face may be below zero by this much, relative to the vector.
_ROUNDING = 1e-13
# Proximal steps without progress of the gap before the end.
_PATIENCE = 6


class _Faces:
    """Projections of a vector for each group onto its cone {v : rows v >= 0}, and the faces that they were on last.

    Where a vector is still above the last face, the projection is a product, for all groups at once; for the others it
    is a non-negative least squares problem each.

    Parameters
    ----------
    rows : list of ndarray, shapes (r_g, d)
        Of unit length.
    touched : list of ndarray, shapes (t_g, d)
        Linearly independent ones of these: faces to begin with.
    """

    def __init__(self, rows: list[Array], touched: list[Array], dim: int) -> None:
        count, most = len(rows), max((len(own) for own in rows), default=0)
        self.rows = np.zeros((count, most, dim))
        for group, own in enumerate(rows):
            self.rows[group, : len(own)] = own
        self.n_rows = np.array([len(own) for own in rows], dtype=int)
        # Of each face: an orthonormal basis, in columns, of which the first so many span its normals; the rows that are
        # its normals, and their pseudoinverse.
        self.turns, self.touched, self.inverse, self.projector = np.zeros((4, count, dim, dim))
        self.sizes = np.zeros(count, dtype=int)
        self._stand_on(np.arange(count), touched)

    def project(self, vectors: Array, ceiling: float = 0.0) -> Array:
        """Return the projections (groups, d); those that are sure to be shorter than ``ceiling`` needn't be exact."""
        scale = np.linalg.norm(vectors, axis=1)
        points: Array = (self.projector @ vectors[:, :, None])[:, :, 0]
        multipliers = -(self.inverse @ vectors[:, :, None])[:, :, 0]
        slack = (self.rows @ points[:, :, None])[:, :, 0]
        low = _ROUNDING * scale
        wrong = (multipliers.min(axis=1, initial=0.0) < -low) | (slack.min(axis=1, initial=0.0) < -low)
        doubtful = np.flatnonzero(wrong)
        if not len(doubtful):
            return points
        # Any multipliers that aren't negative give a point that is no shorter than the projection.
        kept = np.maximum(multipliers[doubtful], 0.0)
        points[doubtful] = vectors[doubtful] + (kept[:, None] @ self.touched[doubtful])[:, 0]
        found = doubtful[np.linalg.norm(points[doubtful], axis=1) >= ceiling]
        if len(found):
            self._find(found, vectors[found], scale[found])
            points[found] = (self.projector[found] @ vectors[found, :, None])[:, :, 0]
        return points

    def _find(self, groups: Array, vectors: Array, scales: Array) -> None:
        """Find the faces that the projections of vectors are on."""
        found = []
        for group, vector, scale in zip(groups.tolist(), vectors, scales.tolist(), strict=True):
            rows = self.rows[group, : self.n_rows[group]]
            multipliers, _ = nnls(rows.T, -vector / power_of_two(scale), maxiter=50 * (len(vector) + len(rows)))
            found.append(rows[multipliers > 0])
        self._stand_on(groups, found)

    def _stand_on(self, groups: Array, found: list[Array]) -> None:
        """Take these rows as the normals of faces."""
        dim = self.rows.shape[2]
        touched, sizes = np.zeros((len(found), dim, dim)), np.array([len(own) for own in found], dtype=int)
        for place, own in enumerate(found):
            touched[place, : len(own)] = own
        turns, triangles = np.linalg.qr(touched.transpose(0, 2, 1), mode="complete")
        missing = np.arange(dim) >= sizes[:, None]
        triangles[:, np.arange(dim), np.arange(dim)] += missing
        inverses = np.linalg.solve(triangles, turns.transpose(0, 2, 1))
        inverses[missing] = 0.0
        across = turns * missing[:, None]
        self.turns[groups], self.sizes[groups] = turns, sizes
        self.touched[groups], self.inverse[groups] = touched, inverses
        self.projector[groups] = across @ across.transpose(0, 2, 1)

    def normals(self, group: int) -> Array:
        """Return the rows that are the normals of the face of a group."""
        normals: Array = self.touched[group, : self.sizes[group]]
        return normals

    def basis(self, group: int) -> Array:
        """Return an orthonormal basis of the face of a group, in columns."""
        basis: Array = self.turns[group, :, self.sizes[group] :]
        return basis


@dataclass
class ConeLasso:
    """min 1/2 ||sum_g A_g v_g - y||^2 + reg sum_g ||v_g||   subject to   N_g v_g >= 0, for one output.

    Proximal steps of growing length s from v, each of which minimises over the dual point nu

        1/2 ||nu||^2 - nu . y + 1/(2 s) sum_g ||prox_g(v_g + s A_g^T nu)||^2,   prox_g(x) = (1 - s reg / ||p||)_+ p

    where p is the projection of x onto the cone of g; the next v is the proximal map there. With an orthonormal basis
    of the face that p is on the map has a derivative S S^T, and a Newton system is I + s A S S^T A^T.

    Attributes
    ----------
    features : ndarray, shape (groups, n, d)
    target : ndarray, shape (n,)
    rows : list of ndarray, shapes (r_g, d)
        N_g, of unit length.
    touched : list of ndarray, shapes (t_g, d)
        Linearly independent rows of each: where the solution may be. Better ones are found.
    reg : float

    Notes
    -----
    Source: Li, Sun & Toh 2018, A highly efficient semismooth Newton augmented Lagrangian method for solving Lasso
    problems. The derivative of the projection is that of its face, as in Han & Sun 1997, Newton and quasi-Newton
    methods for normal maps with polyhedral sets.
    """

    features: Array
    target: Array
    rows: list[Array]
    touched: list[Array]
    reg: float

    def __post_init__(self) -> None:
        self.flat = np.ascontiguousarray(self.features.transpose(1, 0, 2)).reshape(len(self.target), -1)
        self.faces = _Faces(self.rows, self.touched, self.features.shape[2])

    def predict(self, weights: Array) -> Array:
        """Return sum_g A_g v_g."""
        prediction: Array = self.flat @ weights.ravel()
        return prediction

    def correlate(self, dual: Array) -> Array:
        """Return A_g^T nu, shape (groups, d)."""
        correlation: Array = (dual @ self.flat).reshape(len(self.features), -1)
        return correlation

    def gap(self, weights: Array, prediction: Array) -> float:
        """Return objective minus the bound of the best multiple of the residual, over these groups and rows."""
        dual = self.target - prediction
        lengths = np.linalg.norm(self.faces.project(self.correlate(dual), self.reg), axis=1)
        square, linear = float(dual @ dual), float(dual @ self.target)
        scale = max(0.0, min(linear / max(square, 1e-300), self.reg / max(float(lengths.max(initial=0.0)), 1e-300)))
        fitted, penalty = float(dual @ prediction), self.reg * float(np.linalg.norm(weights, axis=1).sum())
        return 0.5 * square * (1 - scale) ** 2 + penalty - scale * fitted

    def minimised(self, start: Array, tol: float) -> Array:
        """Return the minimum, from a point in the cones, to an absolute gap of ``tol`` or as far as rounding lets."""
        steepness = self._steepness()
        if steepness <= 0:
            return np.zeros_like(start)
        step, weights = _FIRST / steepness, self.faces.project(start)
        prediction = self.predict(weights)
        dual = self.target - prediction
        best, least, since = weights, self.gap(weights, prediction), 0
        for _ in range(_PROXIMAL):
            if least <= tol or since == _PATIENCE:
                break
            dual, weights, reached = self._stepped(dual, weights, step)
            prediction = self.predict(weights)
            gap = self.gap(weights, prediction)
            since = 0 if gap < 0.9 * least else since + 1
            if gap < least:
                best, least = weights, gap
            step = min(step * _GROWTH, _LARGEST / steepness) if reached else step / _GROWTH
        return best

    def _steepness(self) -> float:
        """Return about the largest eigenvalue of A^T A, from below."""
        vector = self.target / max(float(np.linalg.norm(self.target)), 1e-300)
        value = 0.0
        for _ in range(8):
            vector = self.flat @ (vector @ self.flat)
            value = float(np.linalg.norm(vector))
            vector = vector / max(value, 1e-300)
        return value

    def _mapped(self, centre: Array, dual: Array, step: float) -> tuple[Array, Array, Array]:
        """Return the proximal map at v + s A^T nu, what it shrinks projections to, and their directions."""
        threshold = step * self.reg
        points = self.faces.project(centre + step * self.correlate(dual), threshold)
        lengths = np.linalg.norm(points, axis=1)
        shares = 1 - threshold / np.maximum(lengths, threshold)
        return shares[:, None] * points, shares, points / np.maximum(lengths, 1e-300)[:, None]

    def _stepped(self, dual: Array, centre: Array, step: float) -> tuple[Array, Array, bool]:
        """Return nu and the proximal map at the minimum of one step's function, and whether it was reached."""
        mapped, shares, units = self._mapped(centre, dual, step)
        value = self._value(dual, mapped, step)
        floor = (1e-14 * float(np.linalg.norm(self.target))) ** 2
        for _ in range(_NEWTON):
            gradient = dual - self.target + self.predict(mapped)
            moved = float(np.square(mapped - centre).sum()) / step
            if float(gradient @ gradient) <= _EXACT * moved + floor:
                return dual, mapped, True
            direction = -self._solved(gradient, shares, units, step)
            slope, length = float(direction @ gradient), 1.0
            for _ in range(_HALVINGS):
                trial = dual + length * direction
                following = self._mapped(centre, trial, step)
                reached = self._value(trial, following[0], step)
                if reached <= value + _ARMIJO * length * slope + 1e-15 * abs(value):
                    break
                length *= 0.5
            else:
                return dual, mapped, False
            dual, value, (mapped, shares, units) = trial, reached, following
        return dual, mapped, False

    def _value(self, dual: Array, mapped: Array, step: float) -> float:
        return 0.5 * float(dual @ dual) - float(dual @ self.target) + 0.5 / step * float(np.square(mapped).sum())

    def _solved(self, right: Array, shares: Array, units: Array, step: float) -> Array:
        """Return (I + s A S S^T A^T)^-1 right."""
        parts = []
        for group in np.flatnonzero(shares).tolist():
            basis = self.faces.basis(group)
            # Along the direction of the projection the derivative is one, across it the share.
            root = np.sqrt(shares[group])
            turned = root * basis + np.outer((1 - root) * units[group], units[group] @ basis)
            parts.append(self.features[group] @ turned)
        if not parts:
            return right
        matrix = np.hstack(parts)
        count, width = matrix.shape
        if width < count:
            system = matrix.T @ matrix
            system[np.diag_indices(width)] += 1 / step
            inner = linalg.cho_solve(linalg.cho_factor(system, overwrite_a=True), matrix.T @ right)
            solution: Array = right - matrix @ inner
            return solution
        system = step * (matrix @ matrix.T)
        system[np.diag_indices(count)] += 1.0
        solved: Array = linalg.cho_solve(linalg.cho_factor(system, overwrite_a=True), right)
        return solved
