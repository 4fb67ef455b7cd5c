"""Multipliers of a cone: the least that a norm of frequencies can be made by adding normals of the cone."""

from __future__ import annotations

import clarabel
import numpy as np
from scipy import sparse

__all__ = ["shortest"]

Array = np.ndarray

_ACCURACY = 1e-10
# Rows that are violated by less, relative to their length, are not added.
_VIOLATED = 1e-10
# Rounds in which rows are added, and how many at once for each number of a part.
_ROUNDS, _ADDED = 30, 8
# Errors of N terms that are rounded independently: six of their deviations (``Program.correlation_rounding``).
_ROUNDING = 6 * 0.5 * float(np.finfo(np.float64).eps)


def _largest(vector: Array, n_parts: int) -> float:
    """Return the largest of the Euclidean norms of equal parts of a vector."""
    return float(np.linalg.norm(vector.reshape(n_parts, -1), axis=1).max(initial=0.0))


def shortest(vector: Array, normals: Array, n_parts: int, ceiling: float = 0.0) -> float:
    """Return min over m >= 0 of max_k ||(a + B^T m)_k||, an upper bound of it whatever the solver found.

    By duality it is max {a . v : sum_k ||v_k|| <= 1, B v >= 0}. Rows of B come in as such a v violates them.

    Parameters
    ----------
    vector : ndarray, shape (p,)
        a.
    normals : ndarray, shape (N, p)
        B, one normal a row.
    n_parts : int
        Into how many equal parts k vectors are cut.
    ceiling : float
        Stop as soon as it is known to be below this.

    Examples
    --------
    >>> round(shortest(np.array([-3.0, 1.0]), np.array([[1.0, 0.0]]), 2), 6)
    1.0
    """
    plain = _largest(vector, n_parts)
    if plain <= ceiling or plain == 0.0:
        return plain
    lengths = np.linalg.norm(normals, axis=1)
    # In units of one, because the solver's tolerances are absolute.
    unit, rows = vector / plain, normals[lengths > 0] / lengths[lengths > 0, None]
    parts = unit.reshape(n_parts, -1)
    worst = int(np.linalg.norm(parts, axis=1).argmax())
    point: Array = np.where(np.arange(len(unit)) // parts.shape[1] == worst, unit, 0.0)
    least, working = 1.0, np.zeros(0, dtype=int)
    for _ in range(_ROUNDS):
        slack = rows @ point
        slack[working] = 0.0
        violated = np.flatnonzero(slack < -_VIOLATED)
        if not len(violated) or plain * least <= ceiling:
            break
        most = _ADDED * parts.shape[1]
        working = np.concatenate([working, violated[np.argsort(slack[violated])[:most]]])
        value, point = _least(unit, rows[working], n_parts)
        least = min(least, value)
    return plain * least


def _least(vector: Array, normals: Array, n_parts: int) -> tuple[float, Array]:
    """Return an upper bound of the minimum, rounding included, and the v that belongs to it."""
    count, size = len(normals), len(vector) // n_parts
    # Variables (m, t): m >= 0, and (t, a_k + B_k^T m) in a second-order cone for each part k.
    parts = np.zeros((n_parts, size + 1, count + 1))
    parts[:, 0, count] = -1.0
    parts[:, 1:, :count] = -normals.T.reshape(n_parts, size, count)
    constraints = sparse.vstack(
        [sparse.hstack([-sparse.identity(count), sparse.csc_matrix((count, 1))]), parts.reshape(-1, count + 1)],
        format="csc",
    )
    offsets = np.concatenate([np.zeros((n_parts, 1)), vector.reshape(n_parts, size)], axis=1).ravel()
    kinds = [clarabel.NonnegativeConeT(count), *[clarabel.SecondOrderConeT(size + 1)] * n_parts]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = _ACCURACY
    linear = np.append(np.zeros(count), 1.0)
    quadratic = sparse.csc_matrix((count + 1, count + 1))
    answer = clarabel.DefaultSolver(
        quadratic, linear, constraints, np.concatenate([np.zeros(count), offsets]), kinds, settings
    ).solve()
    multipliers = np.nan_to_num(np.asarray(answer.x[:count]), nan=0.0, posinf=0.0).clip(min=0.0)
    rounding = _ROUNDING * np.sqrt(count) * float(multipliers.sum())
    point = -np.asarray(answer.z[count:]).reshape(n_parts, size + 1)[:, 1:].ravel()
    return _largest(vector + normals.T @ multipliers, n_parts) + float(rounding), np.nan_to_num(point)
