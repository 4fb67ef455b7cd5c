"""The group lasso over large Gram matrices: both kinds of sweep against exact solutions, what each step promises."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvxcnn.core.threads import coarse_threads
from cvxcnn.solvers.algebra import gram_newton
from cvxcnn.solvers.algebra.gram_newton import GramLasso
from cvxcnn.solvers.algebra.newton import GramQuadratic, group_lasso


@pytest.fixture(autouse=True)
def as_in_a_solver() -> Iterator[None]:
    with coarse_threads():
        yield


BOTH = pytest.mark.parametrize("batched", [False, True])


def problem(
    reg_share: float, *, size: int = 3, groups: int = 40, outputs: int = 2, rows: int = 200, correlated: float = 0.9,
    batched: bool = False, seed: int = 0,
) -> tuple[GramLasso, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return the lasso, A and Y; columns have so much of one direction in common."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, groups * size, generator=generator, dtype=torch.float64)
    matrix = (1 - correlated) * matrix + correlated * torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    targets = torch.randn(rows, outputs, generator=generator, dtype=torch.float64)
    targets = targets + matrix[:, : 4 * size] @ torch.randn(4 * size, outputs, generator=generator, dtype=torch.float64)
    linear = matrix.T @ targets
    top = float(linear.reshape(groups, -1).norm(dim=1).max())
    lasso = GramLasso(matrix.T @ matrix, linear, float(targets.square().sum()), size, reg_share * top, batched=batched)
    return lasso, matrix, targets


def objective(lasso: GramLasso, matrix: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> float:
    norms = weights.reshape(lasso.n_groups, -1).norm(dim=1)
    return float(0.5 * (matrix @ weights - targets).square().sum() + lasso.reg * norms.sum())


def exact(lasso: GramLasso) -> torch.Tensor:
    quadratic = GramQuadratic(lasso.gram.numpy(), lasso.linear.numpy(), lasso.squared_norm, lasso.size)
    return torch.from_numpy(group_lasso(quadratic, lasso.reg, tol=1e-12 * lasso.squared_norm))


@BOTH
@pytest.mark.parametrize(("size", "outputs"), [(1, 1), (1, 4), (3, 1), (9, 3)])
@pytest.mark.parametrize("share", [0.5, 0.05, 1e-3])
def test_it_finds_the_minimum(
    batched: bool, size: int, outputs: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram_newton, "_DIRECT_COLUMNS", 0)  # no exact steps at the end
    monkeypatch.setattr(gram_newton, "_TOGETHER", 7)
    lasso, matrix, targets = problem(share, size=size, outputs=outputs, rows=400, batched=batched)
    wanted = 1e-9 * lasso.squared_norm
    weights = lasso.minimise(torch.zeros_like(lasso.linear), wanted, rounds=200)
    assert lasso.gap <= wanted
    found, best = (objective(lasso, matrix, targets, point) for point in (weights, exact(lasso)))
    assert found == pytest.approx(lasso.objective, rel=1e-10)
    # The gap is to a lower bound, so the minimum can't lie further below.
    assert best - 1e-10 * lasso.squared_norm <= found <= best + lasso.gap + 1e-10 * lasso.squared_norm
    # Groups that have no part in the minimum are zero to the last bit.
    pulls = (matrix.T @ (targets - matrix @ exact(lasso))).reshape(lasso.n_groups, -1).norm(dim=1)
    assert not weights.reshape(lasso.n_groups, -1)[pulls < 0.99 * lasso.reg].any()


@BOTH
def test_features_that_repeat_each_other(batched: bool) -> None:
    lasso, _, _ = problem(1e-6, correlated=1.0, batched=batched, size=2, groups=20)
    weights = lasso.minimise(torch.zeros_like(lasso.linear), 1e-7 * lasso.squared_norm, rounds=100)
    assert torch.isfinite(weights).all()
    assert lasso.objective <= 0.5 * lasso.squared_norm


@BOTH
@pytest.mark.parametrize("share", [1.0 + 1e-9, 10.0])
def test_nothing_is_left_above_reg_max(batched: bool, share: float) -> None:
    lasso, _, _ = problem(share, batched=batched)
    assert not lasso.minimise(torch.zeros_like(lasso.linear), 1e-9 * lasso.squared_norm, rounds=100).any()


@BOTH
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    share=st.floats(1e-3, 0.9), seed=st.integers(0, 1000), scale=st.floats(0.0, 3.0), correlated=st.floats(0.0, 0.99),
)  # fmt: skip
def test_no_step_raises_the_objective(batched: bool, share: float, seed: int, scale: float, correlated: float) -> None:
    lasso, matrix, targets = problem(share, groups=12, rows=60, correlated=correlated, batched=batched, seed=seed)
    point = scale * torch.randn(lasso.linear.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    lasso.move_to(point)
    before = objective(lasso, matrix, targets, point)
    for _ in range(3):
        lasso.sweep(1)
        swept = objective(lasso, matrix, targets, lasso.weights)
        assert swept <= before + 1e-9 * abs(before)
        if not lasso.norms.any():
            break
        step = lasso.newton_step(8)
        assert step is not None
        assert (step.reshape(12, -1)[lasso.norms == 0] == 0).all()
        lasso.move_along(step)
        before = objective(lasso, matrix, targets, lasso.weights)
        assert before <= swept + 1e-9 * abs(swept)
        assert lasso.objective == pytest.approx(before, rel=1e-9)


def test_batches_of_one_group_are_the_exact_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram_newton, "_TOGETHER", 1)
    one, two = (problem(0.05, batched=batched)[0] for batched in (False, True))
    start = torch.ones_like(one.linear)
    for lasso in (one, two):
        lasso.move_to(start)
        lasso.sweep(2)
    assert torch.allclose(one.weights, two.weights, rtol=1e-9, atol=1e-12)


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


def test_the_step_along_a_ray_is_the_best_one() -> None:
    lasso, matrix, targets = problem(0.02)
    point = torch.randn(lasso.linear.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    lasso.move_to(point)
    step = lasso.newton_step(8)
    assert step is not None
    length = lasso.move_along(step)
    values = [objective(lasso, matrix, targets, point + along * step) for along in np.linspace(0, 4, 41)]
    assert lasso.objective <= min(values) + 1e-9 * abs(min(values))
    assert torch.allclose(lasso.weights, point + length * step)
