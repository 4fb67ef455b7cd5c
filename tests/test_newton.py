"""The small group lasso against numbers worked by hand, its optimality conditions, and scikit-learn's Lasso."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from cvxcnn.solvers.algebra.newton import GramQuadratic, group_lasso
from cvxcnn.solvers.algebra.newton_cg import DenseFeatures, FeatureQuadratic, MaskedFeatures

Array = np.ndarray


def gram_form(features: Array, targets: Array, size: int) -> GramQuadratic:
    return GramQuadratic(features.T @ features, features.T @ targets, float((targets**2).sum()), size)


def feature_form(features: Array, targets: Array, size: int) -> FeatureQuadratic:
    return FeatureQuadratic(DenseFeatures(features.reshape(len(features), -1, size)), targets[:, 0])


def solve(features: Array, targets: Array, size: int, reg: float, tol: float = 1e-10, **options: int) -> Array:
    found = group_lasso(gram_form(features, targets, size), reg, tol=tol, **options)
    if targets.shape[1] == 1:
        # The direct and the iterative Newton systems must lead to the same optimum.
        other = group_lasso(feature_form(features, targets, size), reg, tol=tol, **options)
        values = [0.5 * ((targets - features @ w) ** 2).sum() + reg * lengths(w, size).sum() for w in (found, other)]
        assert abs(values[0] - values[1]) <= 2 * tol + 1e-13 * float((targets**2).sum())
    return found


def lengths(weights: Array, size: int) -> Array:
    return np.linalg.norm(weights.reshape(len(weights) // size, -1), axis=1)


def gap(features: Array, targets: Array, size: int, reg: float, weights: Array) -> float:
    """Return the duality gap, from the features and not from their Gram matrix."""
    residual = targets - features @ weights
    groups = weights.reshape(-1, size * targets.shape[1])
    objective = 0.5 * (residual**2).sum() + reg * np.linalg.norm(groups, axis=1).sum()
    peak = np.linalg.norm((features.T @ residual).reshape(groups.shape), axis=1).max()
    scale = max(0.0, min((residual * targets).sum() / (residual**2).sum(), reg / peak))
    return float(objective - scale * (residual * targets).sum() + 0.5 * scale**2 * (residual**2).sum())


@st.composite
def problems(draw: st.DrawFn) -> tuple[Array, Array, int, float]:
    """Return features, targets, the size of a group, and reg as a share of the smallest that gives zero."""
    size, groups, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    features = random.normal(size=(draw(st.integers(2, 20)), size * groups))
    targets = random.normal(size=(len(features), outputs))
    peak = np.linalg.norm((features.T @ targets).reshape(groups, -1), axis=1).max()
    return features, targets, size, draw(st.sampled_from([0.9, 0.3, 0.05])) * peak


def test_orthonormal_features_shrink_each_group() -> None:
    # Groups (3, 4) and (0.6, 0.8) of lengths 5 and 1: the first keeps 1 - 2/5 of itself, the second nothing.
    targets = np.array([[3.0], [4.0], [0.6], [0.8]])
    found = solve(np.eye(4), targets, 2, 2.0)
    np.testing.assert_allclose(found.ravel(), [1.8, 2.4, 0.0, 0.0], atol=1e-12)


def test_one_group_of_unequal_scales() -> None:
    # diag(4, 1) z - (8, 1) + t z / ||z|| = 0 at z = (1.5, 2): (6 - 8, 2 - c) must be -(0.6, 0.8) reg with reg = 10/3.
    reg = 10 / 3
    features = np.diag([2.0, 1.0])
    linear = np.array([6 + 0.6 * reg, 2 + 0.8 * reg])
    found = solve(features, (np.linalg.inv(features) @ linear)[:, None], 2, reg)
    np.testing.assert_allclose(found.ravel(), [1.5, 2.0], rtol=1e-10)


@given(problem=problems())
def test_optimality_conditions(problem: tuple[Array, Array, int, float]) -> None:
    features, targets, size, reg = problem
    scale = float((targets**2).sum())
    found = solve(features, targets, size, reg, tol=1e-12 * scale)
    assert -1e-12 * scale <= gap(features, targets, size, reg, found) <= 1e-9 * scale
    pulls = (features.T @ (targets - features @ found)).reshape(-1, size * targets.shape[1])
    groups = found.reshape(pulls.shape)
    for pull, group in zip(pulls, groups, strict=True):
        length = np.linalg.norm(group)
        assert np.linalg.norm(pull) <= reg * (1 + 1e-4)
        if length > 1e-3:
            np.testing.assert_allclose(pull, reg * group / length, rtol=0, atol=1e-3 * reg)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("size", [1, 5])
def test_nearly_equal_columns(size: int, outputs: int) -> None:
    """Three copies of every feature, 1e-3 apart, make the Hessian nearly singular."""
    random = np.random.default_rng(0)
    base = random.normal(size=(60, 4 * size))
    features = np.hstack([base + 1e-3 * random.normal(size=base.shape) for _ in range(3)])
    targets = base @ random.normal(size=(4 * size, outputs)) + 0.1 * random.normal(size=(60, outputs))
    targets /= np.linalg.norm(targets)
    peak = np.linalg.norm((features.T @ targets).reshape(-1, size * outputs), axis=1).max()
    for share in (0.3, 0.01):
        found = solve(features, targets, size, share * peak, tol=1e-9)
        assert gap(features, targets, size, share * peak, found) <= 1e-8


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_groups_of_one_are_the_lasso(share: float) -> None:
    random = np.random.default_rng(1)
    features, targets = random.normal(size=(40, 15)), random.normal(size=40)
    reg = share * np.abs(features.T @ targets).max()
    found = solve(features, targets[:, None], 1, reg)
    # scikit-learn divides the loss by the number of samples.
    expected = Lasso(alpha=reg / 40, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(features, targets).coef_
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-6)


def test_zero_from_the_largest_correlation_on() -> None:
    random = np.random.default_rng(2)
    features, targets = random.normal(size=(20, 12)), random.normal(size=(20, 2))
    peak = np.linalg.norm((features.T @ targets).reshape(4, -1), axis=1).max()
    assert not solve(features, targets, 3, peak * (1 + 1e-9)).any()
    assert solve(features, targets, 3, peak * 0.999).any()


def test_start_is_kept_when_it_is_optimal_and_never_changed() -> None:
    random = np.random.default_rng(3)
    features, targets = random.normal(size=(20, 6)), random.normal(size=(20, 1))
    best = solve(features, targets, 2, 1.0, tol=1e-13)
    start = best.copy()
    quadratic = gram_form(features, targets, 2)
    quadratic.move_to(start)
    again = group_lasso(quadratic, 1.0, tol=1e-9)
    np.testing.assert_array_equal(start, best)
    np.testing.assert_allclose(again, best, atol=1e-8)


def test_a_point_that_overshoots_is_not_taken_for_optimal() -> None:
    """A fit beyond the targets makes nu . y negative; a negative multiple of nu would be no dual point."""
    features, targets = np.array([[1.0], [0.5]]), np.array([[1.0], [0.0]])
    quadratic = gram_form(features, targets, 1)
    quadratic.move_to(np.array([[50.0]]))
    found = group_lasso(quadratic, 0.1, tol=1e-9)
    assert found.item() == pytest.approx(0.9 / 1.25)


def test_a_zero_feature_stays_out() -> None:
    features = np.array([[1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(solve(features, np.array([[3.0], [1.0]]), 1, 1.0).ravel(), [2.0, 0.0], atol=1e-12)


def test_masked_features_are_the_dense_ones() -> None:
    random = np.random.default_rng(4)
    patches, masks = random.normal(size=(30, 4)), (random.normal(size=(30, 6)) > 0).astype(float)
    masked, dense = MaskedFeatures(patches, masks), DenseFeatures(masks[:, :, None] * patches[:, None])
    weights, values = random.normal(size=(6, 4)), random.normal(size=30)
    np.testing.assert_allclose(masked.forward(weights), dense.forward(weights))
    np.testing.assert_allclose(masked.adjoint(values), dense.adjoint(values))
    np.testing.assert_allclose(masked.group_forward(2, weights[2]), dense.group_forward(2, weights[2]))
    np.testing.assert_allclose(masked.group_adjoint(2, values), dense.group_adjoint(2, values))
    np.testing.assert_allclose(masked.group_gram(2), dense.group_gram(2))
    assert np.vdot(masked.forward(weights), values) == pytest.approx(np.vdot(masked.adjoint(values), weights))
    few = masked.select(np.array([4, 1])).forward(weights[[4, 1]])
    np.testing.assert_allclose(few, dense.select(np.array([4, 1])).forward(weights[[4, 1]]), rtol=1e-5)


def test_masked_features_reach_the_same_optimum() -> None:
    random = np.random.default_rng(5)
    patches, masks = random.normal(size=(200, 5)), (random.normal(size=(200, 40)) > 0).astype(float)
    target = np.maximum(patches @ random.normal(size=5), 0) + 0.1 * random.normal(size=200)
    dense = (masks[:, :, None] * patches[:, None]).reshape(200, -1)
    reg = 0.1 * lengths(dense.T @ target, 5).max()
    found = group_lasso(FeatureQuadratic(MaskedFeatures(patches, masks), target), reg, tol=1e-9)
    assert gap(dense, target[:, None], 5, reg, found) <= 1e-8
