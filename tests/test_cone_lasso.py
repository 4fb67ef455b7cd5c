"""The group lasso in cones of a few rows, against Clarabel and its own optimality conditions."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from cvxcnn.solvers.algebra.cone_lasso import ConeLasso

Array = np.ndarray


def problem(seed: int, n: int, dim: int, groups: int, count: int) -> tuple[ConeLasso, Array]:
    """Return a lasso over the cones of random gates, by the first ``count`` rows, and zero weights."""
    random = np.random.default_rng(seed)
    inputs, gates = random.normal(size=(n, dim)), random.normal(size=(groups, dim))
    target = np.maximum(inputs @ random.normal(size=dim), 0) + 0.1 * random.normal(size=n)
    active = inputs @ gates.T >= 0
    features = np.stack([inputs * own[:, None] for own in active.T])
    rows = [np.where(own, 1.0, -1.0)[:count, None] * inputs[:count] for own in active.T]
    rows = [own / np.linalg.norm(own, axis=1, keepdims=True) for own in rows]
    reg = 0.05 * max(np.linalg.norm(own.T @ target) for own in features)
    return ConeLasso(features, target, rows, [np.zeros((0, dim))] * groups, reg), np.zeros((groups, dim))


def objective(lasso: ConeLasso, weights: Array) -> float:
    rest = lasso.target - lasso.predict(weights)
    return 0.5 * float(rest @ rest) + lasso.reg * float(np.linalg.norm(weights, axis=1).sum())


@pytest.mark.parametrize(
    ("seed", "n", "dim", "groups", "count"), [(0, 40, 4, 8, 15), (1, 20, 6, 25, 10), (2, 30, 3, 5, 0)]
)
def test_clarabel_agrees(seed: int, n: int, dim: int, groups: int, count: int) -> None:
    """Few and many images beside columns, and no cones at all."""
    lasso, zero = problem(seed, n, dim, groups, count)
    weights = lasso.minimised(zero, 1e-10)
    assert all((rows @ own).min(initial=0.0) >= -1e-12 for rows, own in zip(lasso.rows, weights, strict=True))
    assert 0 <= lasso.gap(weights, lasso.predict(weights)) + 1e-12 < 1e-9

    variables = [cp.Variable(dim) for _ in range(groups)]
    fitted = sum(own @ variable for own, variable in zip(lasso.features, variables, strict=True))
    value = 0.5 * cp.sum_squares(fitted - lasso.target) + lasso.reg * sum(cp.norm(variable) for variable in variables)
    inside = [rows @ variable >= 0 for rows, variable in zip(lasso.rows, variables, strict=True) if len(rows)]
    model = cp.Problem(cp.Minimize(value), inside)
    model.solve(solver="CLARABEL")
    assert_allclose(objective(lasso, weights), model.value, rtol=1e-6)


def test_a_start_outside_the_cones_leads_to_the_same_minimum() -> None:
    lasso, zero = problem(3, 30, 4, 6, 12)
    weights = lasso.minimised(zero, 1e-10)
    other = lasso.minimised(np.ones_like(zero), 1e-10)
    assert_allclose(objective(lasso, other), objective(lasso, weights), atol=1e-9)


def test_where_the_solution_was_is_found_again_at_once() -> None:
    """Faces that were found are where the next solve begins."""
    lasso, zero = problem(4, 30, 5, 6, 12)
    weights = lasso.minimised(zero, 1e-10)
    touched = [lasso.faces.normals(group) for group in range(len(zero))]
    again = ConeLasso(lasso.features, lasso.target, lasso.rows, touched, lasso.reg)
    points = again.faces.project(weights)
    assert_allclose(points, weights, atol=1e-12)
    assert again.gap(weights, again.predict(weights)) < 1e-9


def test_zero_features_have_the_zero_solution() -> None:
    lasso, zero = problem(5, 10, 3, 2, 4)
    nothing = ConeLasso(np.zeros_like(lasso.features), lasso.target, lasso.rows, lasso.touched, lasso.reg)
    assert not nothing.minimised(zero, 1e-10).any()
