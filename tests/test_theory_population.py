"""Population risks against Monte Carlo, finite differences and closed cases; quadratic landscapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import normal, seeded

from cvxcnn import ConvexConvBlock
from cvxcnn.errors import InputError
from cvxcnn.theory import (
    critical_points,
    gaussian_risk,
    is_global_quadratic,
    planted_gaussian,
    population_risk,
    population_risk_gradient,
    spurious_minimum,
    two_layer_population_risk,
)


def sampled_risk(
    filter: torch.Tensor, readout: torch.Tensor, teacher: torch.Tensor, other: torch.Tensor
) -> tuple[float, float]:
    """Return the mean of (f - f*)^2 over random images, and its standard error."""
    x = normal(400_000, len(readout), len(filter), seed=3)
    squares = ((x @ filter).relu() @ readout - (x @ teacher).relu() @ other).square()
    return float(squares.mean()), float(squares.std()) / math.sqrt(len(squares))


@pytest.mark.parametrize("mean", [False, True])
def test_one_layer_risk_is_that_of_random_images(mean: bool) -> None:
    w, target = normal(3, seed=1), normal(3, seed=2)
    ones = torch.full((4,), 0.25 if mean else 1.0, dtype=torch.float64)
    found, error = sampled_risk(w, ones, target, ones)
    assert abs(population_risk(w, target, 4, mean=mean) - found) < 4 * error


def test_two_layer_risk_is_that_of_random_images() -> None:
    w, a, w_star, a_star = normal(3, seed=1), normal(4, seed=2), normal(3, seed=4), normal(4, seed=5)
    found, error = sampled_risk(w, a, w_star, a_star)
    assert abs(two_layer_population_risk(w, a, w_star, a_star) - found) < 4 * error
    scaled = two_layer_population_risk(w / w.norm(), a, w_star, a_star)
    assert math.isclose(two_layer_population_risk(w, a, w_star, a_star, normalised=True), scaled, rel_tol=1e-14)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_risks_agree_with_each_other_and_with_the_printed_formula(d: int, k: int, seed: int) -> None:
    generator = seeded(seed)
    w, target = normal(d, seed=generator), normal(d, seed=generator)
    ones = np.ones(k)
    found = population_risk(w, target, k)
    assert math.isclose(two_layer_population_risk(w, ones, target, ones), found, rel_tol=1e-12)
    assert math.isclose(
        gaussian_risk(w[None], ones[None], target[None], ones[None]), found, rel_tol=1e-9, abs_tol=1e-12
    )
    beta = (k * k - k) / (2 * math.pi)
    gamma, size, star = beta + k / 2, float(w.norm()), float(target.norm())
    theta = math.acos(max(-1.0, min(1.0, float(w @ target) / (size * star))))
    g = size * star * (math.sin(theta) + (math.pi - theta) * math.cos(theta)) / (2 * math.pi)
    printed = gamma * size**2 - 2 * k * g - 2 * beta * size * star + gamma * star**2
    assert math.isclose(printed, found, rel_tol=1e-7, abs_tol=1e-9 * gamma * star**2)
    assert math.isclose(population_risk(w, target, k, mean=True), found / k**2, rel_tol=1e-14)


def test_no_digits_are_lost_beside_the_teacher() -> None:
    # Along the teacher the Hessian is k + 2 beta, across it k: half of that times the squared distance.
    target = np.array([1.0, 0.0])
    for size in (1e-5, 1e-9):
        assert math.isclose(population_risk([1.0, size], target, 3), 1.5 * size**2, rel_tol=1e-4)
        along = population_risk([1.0 + size, 0.0], target, 3)
        assert math.isclose(along, (1.5 + 3 / math.pi) * (target[0] + size - 1) ** 2, rel_tol=1e-6)


@pytest.mark.parametrize("mean", [False, True])
def test_gradient_is_that_of_finite_differences(mean: bool) -> None:
    w, target = normal(4, seed=1).numpy(), normal(4, seed=2).numpy()
    step = 1e-6
    differences = [
        (population_risk(w + step * e, target, 3, mean) - population_risk(w - step * e, target, 3, mean)) / (2 * step)
        for e in np.eye(4)
    ]
    np.testing.assert_allclose(population_risk_gradient(w, target, 3, mean), differences, rtol=1e-7)
    with pytest.raises(InputError, match="no gradient at filter 0"):
        population_risk_gradient(np.zeros(4), target, 3)


def test_critical_points_are_what_they_are_called() -> None:
    target = np.array([0.6, -0.8])
    minimum, zero, saddle = critical_points(target, 5)
    across = np.array([0.8, 0.6])
    for point in (minimum, saddle):
        assert np.abs(population_risk_gradient(point.filter, target, 5)).max() < 1e-13
    assert minimum.risk == 0.0
    assert all(population_risk(0.01 * np.array([math.cos(a), math.sin(a)]), target, 5) < zero.risk for a in range(63))
    # Third order: across the saddle the risk falls by a share that shrinks with the step, by the cube in all.
    falls = [saddle.risk - population_risk(saddle.filter + h * across, target, 5) for h in (1e-3, 2e-3)]
    assert falls[0] > 0 and math.isclose(falls[1] / falls[0], 8.0, rel_tol=2e-2)


def test_in_one_dimension_the_saddle_is_a_spurious_minimum() -> None:
    *_, spurious = critical_points([2.0], 3)
    assert spurious.kind == "spurious local minimum"
    assert spurious.risk > 1
    for step in (-1e-3, 1e-3):
        assert population_risk(spurious.filter + step, [2.0], 3) > spurious.risk
    assert [point.kind for point in critical_points([1.0, 0.0], 1)] == ["global minimum", "not differentiable"]


@pytest.mark.parametrize("seed", range(6))
def test_spurious_point_is_stationary_and_a_minimum_if_it_says_so(seed: int) -> None:
    generator = seeded(seed)
    w_star, a_star = normal(3, seed=generator), normal(5, seed=generator) + 0.5
    point = spurious_minimum(w_star, a_star)
    w, a = torch.as_tensor(point.filter), torch.as_tensor(point.readout)

    def risk(x: torch.Tensor) -> float:
        return two_layer_population_risk(x[:3], x[3:], w_star, a_star)

    x = torch.cat([w, a])
    slopes = [(risk(x + 1e-5 * e) - risk(x - 1e-5 * e)) / 2e-5 for e in torch.eye(8, dtype=torch.float64)]
    assert max(map(abs, slopes)) < 1e-7 * max(1.0, point.risk)
    expected = torch.linalg.solve(torch.ones(5, 5) + (math.pi - 1) * torch.eye(5), torch.ones(5, 5) - torch.eye(5))
    torch.testing.assert_close(a, w_star.norm() * (expected.double() @ a_star), rtol=1e-5, atol=1e-6)
    # The risk changes across by (b.b*) times a positive number, at the best readout to second order.
    turned = w + 0.05 * torch.linalg.qr(w[:, None], mode="complete").Q[:, 1]
    around = two_layer_population_risk(turned / turned.norm(), a, w_star, a_star)
    assert (around > point.risk) == point.is_minimum


def test_both_kinds_of_teacher_occur() -> None:
    assert spurious_minimum([1.0, 0.0], [1.0, -1.0, 0.0]).is_minimum
    assert not spurious_minimum([1.0, 0.0], [1.0, 1.0, 1.0]).is_minimum
    assert spurious_minimum([1.0], [1.0, 1.0, 1.0]).is_minimum


def test_gaussian_risk_of_several_neurons_is_that_of_random_images() -> None:
    u, a, u_star, a_star = normal(3, 4, seed=1), normal(3, 5, seed=2), normal(2, 4, seed=4), normal(2, 5, seed=5)
    x = normal(200_000, 5, 4, seed=6)
    outputs = [torch.einsum("nkm,mk->n", (x @ f.T).relu(), r) for f, r in ((u, a), (u_star, a_star))]
    squares = (outputs[0] - outputs[1]).square()
    error = float(squares.std()) / math.sqrt(len(squares))
    assert abs(gaussian_risk(u, a, u_star, a_star) - float(squares.mean())) < 4 * error


def test_planted_images_are_seen_by_a_block_as_they_were_drawn() -> None:
    teacher = np.array([1.0, -2.0, 0.5])
    for k, rows in ((4, 2), (3, 3)):
        images, targets = planted_gaussian(40, teacher, k)
        assert images.shape == (40, 1, rows, k // rows * 3)
        block = ConvexConvBlock(
            kernel_size=(1, 3), stride=(1, 3), padding=0, bias=False, pooling="sum", pool_cells=1, gates=[teacher],
            reg=1e-6,
        ).fit(images, targets)  # fmt: skip
        np.testing.assert_allclose(block.predict(images), targets, atol=1e-4)
        neurons = block.neurons_
        weights = neurons.readout[:, 0].expand(-1, k)
        assert gaussian_risk(neurons.filters, weights, teacher[None], np.ones((1, k))) < 1e-8


def test_planted_readouts_and_noise() -> None:
    clean = planted_gaussian(2000, [1.0, 0.0], 2, readout=[1.0, -1.0], random_state=1)
    noisy = planted_gaussian(2000, [1.0, 0.0], 2, readout=[1.0, -1.0], random_state=1, noise=0.5)
    assert torch.equal(clean[0], noisy[0])
    assert abs(float((noisy[1] - clean[1]).std()) - 0.5) < 4 * 0.5 / math.sqrt(4000)
    assert (
        abs(float(clean[1].square().mean()) - two_layer_population_risk([0.0, 0.0], [0.0, 0.0], [1, 0], [1, -1])) < 0.1
    )


def test_second_order_points_of_small_networks_need_not_be_global() -> None:
    # One filter and three orthogonal inputs: the best it can do fits one of them.
    x, y = np.eye(3), np.array([1.0, 1.0, 1.0])
    assert not is_global_quadratic([[1.0, 0.0, 0.0]], [1.0], x, y)
    assert is_global_quadratic(np.eye(3), np.ones(3), x, y)


def test_any_second_order_point_with_enough_signs_is_global() -> None:
    generator = seeded(0)
    x, y = normal(12, 3, seed=generator), normal(12, seed=generator)
    u, a = normal(6, 3, seed=generator).requires_grad_(), torch.tensor([1.0, 1, 1, -1, -1, -1], dtype=torch.float64)
    optimizer = torch.optim.LBFGS([u], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16, history_size=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = 0.5 * ((x @ u.T).square() @ a - y).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert is_global_quadratic(u, a, x, y)
    # It is least squares over symmetric matrices.
    rows, columns = torch.triu_indices(3, 3)
    least = np.linalg.lstsq((x[:, rows] * x[:, columns]).numpy(), y.numpy(), rcond=None)[1]
    assert math.isclose(2 * float(closure().detach()), float(least[0]), rel_tol=1e-9)
    assert not is_global_quadratic(u.detach() * 1.01, a, x, y)


def test_with_a_regulariser_the_dual_decides() -> None:
    # One input of length one: f = u1^2, 1/2 (f - 3)^2 + f / 2 at f = 2.5.
    assert is_global_quadratic([[math.sqrt(2.5)]], [1.0], [[1.0]], [3.0], reg=0.5)
    assert not is_global_quadratic([[1.0]], [1.0], [[1.0]], [3.0], reg=0.5)
    assert is_global_quadratic([[0.0]], [1.0], [[1.0]], [3.0], reg=3.0)
    with pytest.raises(InputError, match="must be 1 or -1"):
        is_global_quadratic([[1.0]], [2.0], [[1.0]], [3.0], reg=0.5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: population_risk([1.0], [1.0, 2.0], 3), r"filter must have shape \(2,\); got \(1,\)"),
        (lambda: population_risk([1.0], [math.nan], 3), "teacher must be finite"),
        (lambda: population_risk(["a"], [1.0], 3), "filter must be real numbers"),
        (lambda: population_risk([1.0], [1.0], 0), "patches must be an int >= 1"),
        (lambda: population_risk([1.0], [1.0], 2, mean=2), "mean must be True or False"),
        (lambda: critical_points([0.0, 0.0], 3), "teacher must not be zero"),
        (lambda: spurious_minimum([0.0], [1.0]), "teacher_filter must not be zero"),
        (lambda: two_layer_population_risk([0.0], [1.0], [1.0], [1.0], normalised=True), "can't be normalised"),
        (lambda: gaussian_risk([[1.0]], [[1.0]], [[1.0, 2.0]], [[1.0]]), r"filters must have shape \(m, 2\)"),
        (lambda: planted_gaussian(3, [1.0], 2, noise=-1.0), "noise must be a number >= 0"),
        (lambda: planted_gaussian(3, [1.0], 2, readout=[1.0]), r"readout must have shape \(2,\)"),
        (lambda: is_global_quadratic([[1.0]], [1.0], [[1.0]], [3.0], reg=-1), "reg must be a number >= 0"),
        (lambda: is_global_quadratic([[1.0]], [1.0, 1.0], [[1.0]], [3.0]), r"readout must have shape \(1,\)"),
    ],
)
def test_bad_input_is_refused_in_words(call: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()  # type: ignore[operator]
