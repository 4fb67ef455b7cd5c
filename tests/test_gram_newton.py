"""The group lasso over large Gram matrices: against exact solutions, and what each step promises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvxcnn.core.threads import coarse_threads
from cvxcnn.solvers.algebra import gram_newton
from cvxcnn.solvers.algebra.gram_newton import GramLasso
from cvxcnn.solvers.algebra.newton import GramQuadratic, group_lasso


@pytest.fixture(autouse=True)
def as_in_a_solver() -> Iterator[None]:
    with coarse_threads():
        yield


def problem(
    reg_share: float, *, size: int = 3, groups: int = 40, outputs: int = 2, rows: int = 200, correlated: float = 0.9,
    seed: int = 0,
) -> tuple[GramLasso, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return the lasso, A and Y; columns have so much of one direction in common."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, groups * size, generator=generator, dtype=torch.float64)
    matrix = (1 - correlated) * matrix + correlated * torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    targets = torch.randn(rows, outputs, generator=generator, dtype=torch.float64)
    targets = targets + matrix[:, : 4 * size] @ torch.randn(4 * size, outputs, generator=generator, dtype=torch.float64)
    linear = matrix.T @ targets
    top = float(linear.reshape(groups, -1).norm(dim=1).max())
    lasso = GramLasso(matrix.T @ matrix, linear, float(targets.square().sum()), size, reg_share * top)
    return lasso, matrix, targets


def objective(lasso: GramLasso, matrix: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> float:
    norms = weights.reshape(lasso.n_groups, -1).norm(dim=1)
    return float(0.5 * (matrix @ weights - targets).square().sum() + lasso.reg * norms.sum())


def exact(lasso: GramLasso) -> torch.Tensor:
    quadratic = GramQuadratic(lasso.gram.numpy(), lasso.linear.numpy(), lasso.squared_norm, lasso.size)
    return torch.from_numpy(group_lasso(quadratic, lasso.reg, tol=1e-12 * lasso.squared_norm))


@pytest.mark.parametrize(("size", "outputs"), [(1, 1), (1, 4), (3, 1), (9, 3)])
@pytest.mark.parametrize("share", [0.5, 0.05, 1e-3])
@pytest.mark.parametrize("exact_up_to", [2000, 0])
def test_it_finds_the_minimum(
    size: int, outputs: int, share: float, exact_up_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram_newton, "_DIRECT_COLUMNS", exact_up_to)
    lasso, matrix, targets = problem(share, size=size, outputs=outputs, rows=400)
    weights = lasso.minimise(torch.zeros_like(lasso.linear), 1e-9, rounds=200)
    lasso.move_to(weights)
    assert lasso.gap <= 1e-9 * min(lasso.objective, lasso.squared_norm)
    found, best = (objective(lasso, matrix, targets, point) for point in (weights, exact(lasso)))
    assert found == pytest.approx(lasso.objective, rel=1e-10)
    # The gap is to a lower bound, so the minimum can't lie further below.
    assert best - 1e-10 * lasso.squared_norm <= found <= best + lasso.gap + 1e-10 * lasso.squared_norm
    # Groups that have no part in the minimum are zero to the last bit.
    pulls = (matrix.T @ (targets - matrix @ exact(lasso))).reshape(lasso.n_groups, -1).norm(dim=1)
    assert not weights.reshape(lasso.n_groups, -1)[pulls < 0.99 * lasso.reg].any()


def test_features_that_repeat_each_other() -> None:
    lasso, _, _ = problem(1e-6, correlated=1.0, size=2, groups=20)
    weights = lasso.minimise(torch.zeros_like(lasso.linear), 1e-7, rounds=100)
    assert torch.isfinite(weights).all()
    assert lasso.objective <= 0.5 * lasso.squared_norm


@pytest.mark.parametrize("share", [1.0 + 1e-9, 10.0])
def test_nothing_is_left_above_reg_max(share: float) -> None:
    lasso, _, _ = problem(share)
    assert not lasso.minimise(torch.zeros_like(lasso.linear), 1e-9, rounds=100).any()


@settings(max_examples=20, deadline=None)
@given(
    share=st.floats(1e-3, 0.9), seed=st.integers(0, 1000), scale=st.just(0.0) | st.floats(0.01, 3.0),
    correlated=st.floats(0.0, 0.99),
)  # fmt: skip
def test_a_gap_is_never_too_small(share: float, seed: int, scale: float, correlated: float) -> None:
    lasso, matrix, targets = problem(share, groups=12, rows=60, correlated=correlated, seed=seed)
    best = objective(lasso, matrix, targets, exact(lasso))
    lasso.move_to(scale * torch.randn(lasso.linear.shape, generator=torch.Generator().manual_seed(seed)).double())
    sparse = lasso._split(1e-5)
    assert (sparse is None) == (scale == 0)
    for point in [lasso.weights] if sparse is None else [lasso.weights, sparse]:
        lasso.move_to(point)
        assert lasso.objective == pytest.approx(objective(lasso, matrix, targets, point), rel=1e-9)
        assert lasso.objective - lasso.gap <= best + 1e-9 * lasso.squared_norm


def test_a_newton_step_moves_no_group_that_is_zero() -> None:
    lasso, _, _ = problem(0.05)
    lasso.move_to(exact(lasso) * 1.1)
    assert 0 < int(lasso.norms.count_nonzero()) < lasso.n_groups
    step = lasso.newton_step(8)
    assert step is not None and step.any()
    assert not step.reshape(lasso.n_groups, -1)[lasso.norms == 0].any()


def test_splitting_stays_at_the_minimum() -> None:
    lasso, _, _ = problem(0.05)
    expected = exact(lasso)
    lasso.move_to(expected)
    sparse = lasso._split(1e-9)
    assert sparse is not None and lasso.gap <= 1e-9 * lasso.objective
    assert torch.allclose(sparse, expected, atol=1e-6 * float(expected.abs().max()))
    assert torch.equal(sparse == 0, expected == 0)


def test_it_begins_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lasso, _, _ = problem(0.05)
    best = exact(lasso)
    lasso.move_to(best)
    monkeypatch.setattr(gram_newton, "_factor", None)  # nothing is left to do
    assert torch.equal(lasso.minimise(best, 1e-9, rounds=10), best)


def test_the_newton_step_is_that_of_the_whole_hessian() -> None:
    lasso, _, _ = problem(1e-3, groups=5)
    lasso.move_to(torch.randn(lasso.linear.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    step = lasso.newton_step(64)
    assert step is not None
    weights, outputs = lasso.weights, lasso.linear.shape[1]
    hessian = torch.kron(lasso.gram, torch.eye(outputs, dtype=torch.float64))
    gradient = -lasso.pulls.clone()
    for group, norm in enumerate(lasso.norms):
        rows = slice(group * lasso.size, (group + 1) * lasso.size)
        unit = weights[rows].flatten() / norm
        part = slice(rows.start * outputs, rows.stop * outputs)
        hessian[part, part] += lasso.reg / norm * (torch.eye(len(unit), dtype=torch.float64) - torch.outer(unit, unit))
        gradient[rows] += lasso.reg * weights[rows] / norm
    expected = torch.linalg.solve(hessian, -gradient.flatten()).view_as(weights)
    assert torch.allclose(step, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
