"""Climbing ends at local maxima, by brute force, by perturbation, and against a solver of its own subproblem."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import dual_problem, normal
from scipy.optimize import lsq_linear
from torch import Tensor

from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.penalties import DensePenalty, GroupPenalty, Penalty
from cvxcnn.pricing.climb import _Climb, _nearest, climbed
from cvxcnn.pricing.exploration import Exploration
from cvxcnn.pricing.maxima import expected_unseen
from cvxcnn.pricing.search import FilterSearch
from cvxcnn.program.problem import Problem


def directions(patches: Patches, count: int, seed: int = 0) -> Tensor:
    return F.normalize(normal(count, patches.dim, seed=seed), dim=1)


def values(patches: Patches, dual: Tensor, points: Tensor, pairs: Tensor | None = None) -> Tensor:
    """Return ||A(u)||, or that of one (cell, output), as written: pooled ReLU responses against the dual point."""
    responses = torch.einsum("ncm,no->mco", patches.relu_features(points), dual).flatten(1)
    return (responses if pairs is None else responses * pairs).norm(dim=1)


def one_hot(patches: Patches, dual: Tensor, count: int) -> Tensor:
    pairs = patches.n_cells * dual.shape[1]
    return F.one_hot(torch.arange(count) % pairs, pairs).double()


SHAPES = st.tuples(
    st.integers(0, 10**6), st.sampled_from([(1, 2), (1, 3), (2, 2), (3, 3)]), st.integers(1, 3), st.integers(1, 2),
    st.booleans(), st.booleans(),
)  # fmt: skip


# The same examples each time: in one of some hundred another, higher hill begins within 1e-3 of a maximum.
@settings(max_examples=25, derandomize=True)
@given(SHAPES)
def test_no_step_goes_down_and_where_it_ends_nothing_near_is_higher(shape: tuple) -> None:
    seed, kernel, outputs, cells, bias, separate = shape
    patches, dual = dual_problem(seed, kernel, outputs, cells, bias=bias)
    begun = directions(patches, 8, seed)
    pairs = one_hot(patches, dual, 8) if separate else None
    height = values(patches, dual, begun, pairs)
    points = begun
    for _ in range(4):
        points = climbed(patches, dual, points, 1, pairs)
        higher = values(patches, dual, points, pairs)
        assert (higher >= height * (1 - 1e-13)).all()
        height = higher
    points = climbed(patches, dual, begun, 300, pairs)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(8, dtype=torch.float64))
    height = values(patches, dual, points, pairs)
    generator = torch.Generator().manual_seed(seed)
    for size in (1e-6, 1e-5, 1e-4, 1e-3):
        turns = torch.randn(64, *points.shape, generator=generator, dtype=torch.float64)
        near = F.normalize(points + size * F.normalize(turns, dim=2), dim=2)
        for index, others in enumerate(near.transpose(0, 1)):
            own = None if pairs is None else pairs[index].expand(64, -1)
            assert values(patches, dual, others, own).max() <= height[index] * (1 + 1e-9)


@pytest.mark.parametrize(("outputs", "cells"), [(1, 1), (3, 1), (2, 2)])
def test_the_best_climb_is_the_maximum_over_the_circle(outputs: int, cells: int) -> None:
    for seed in range(4):
        patches, dual = dual_problem(seed, (1, 2), outputs, cells)
        reached = values(patches, dual, climbed(patches, dual, directions(patches, 24), 100)).max()
        angles = torch.linspace(0, 2 * np.pi, 20_001, dtype=torch.float64)
        for _ in range(6):
            circle = torch.stack([angles.cos(), angles.sin()], dim=1)
            heights = values(patches, dual, circle)
            best, width = angles[heights.argmax()], angles[1] - angles[0]
            angles = torch.linspace(float(best - width), float(best + width), 201, dtype=torch.float64)
        assert float(reached) == pytest.approx(float(heights.max()), rel=1e-9)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 3)])
def test_heights_are_dual_norms_of_the_search(kernel: tuple[int, int]) -> None:
    patches, dual = dual_problem(5, kernel, outputs=2, cells=2, bias=True)
    points, which = directions(patches, 6), torch.arange(6)
    dense = FilterSearch(patches, dual, DensePenalty()).correlation(points)
    heights, toward, _ = _Climb(patches, dual, None).value(points, which)
    torch.testing.assert_close(heights, DensePenalty().dual_norms(dense))
    torch.testing.assert_close((toward * dense.squeeze(2)).flatten(1).sum(dim=1), heights)
    pairs = one_hot(patches, dual, 6)
    separate = GroupPenalty().dual_norms(FilterSearch(patches, dual, GroupPenalty()).correlation(points)).flatten(1)
    torch.testing.assert_close(_Climb(patches, dual, pairs).value(points, which)[0], separate[which, pairs.argmax(1)])


def test_the_search_climbs_to_what_climbed_returns() -> None:
    patches, dual = dual_problem(6, (2, 2), outputs=2)
    points = directions(patches, 5)
    found = FilterSearch(patches.astype(torch.float32), dual, DensePenalty()).climb(points, 50, None)
    torch.testing.assert_close(found, climbed(patches.astype(torch.float32), dual.float(), points, 50))
    assert found.dtype == torch.float64


@pytest.mark.parametrize("penalty", [DensePenalty(), GroupPenalty()], ids=lambda penalty: penalty.name)
def test_a_higher_maximum_beside_a_known_one_is_climbed_to(penalty: Penalty) -> None:
    # (a . u)_+ + (p . u)_+ has a maximum |a| at a, where p is inactive, and |a + p| at 1.1 degrees from it.
    a, p = torch.tensor([1.0, 0.0], dtype=torch.float64), 0.02 * torch.tensor([-0.005, 1.0], dtype=torch.float64)
    patches = Patches(torch.stack([a, p]).view(2, 1, 1, 2), PatchGeometry((1, 2)))
    ones = torch.ones(2, 1, dtype=torch.float64)
    problem = Problem(patches, ones, 1.0, penalty)
    search = Exploration(problem.over_filters(a[None]), ones, patches, torch.Generator().manual_seed(0))
    search.climb(search.add(a[None]))
    assert float(search.scores().max()) == 1.0
    between = torch.tensor([[1.0, 0.01]], dtype=torch.float64)  # higher than the one, in reach of the other
    search.climb(search.add(F.normalize(between, dim=1)))
    assert float(search.scores().max()) == pytest.approx(float((a + p).norm()), rel=1e-12)


def test_a_direction_without_responses_stays_a_unit_direction() -> None:
    dead = torch.tensor([[-0.6, -0.8]], dtype=torch.float64)
    for images, dual in (([0.0, 0.0], 1.0), ([3.0, 4.0], 0.0), ([3.0, 4.0], 1.0)):
        patches = Patches(torch.tensor([[[images]]], dtype=torch.float64), PatchGeometry((1, 2)))
        found = climbed(patches, torch.full((1, 1), dual, dtype=torch.float64), dead, 10)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(1, dtype=torch.float64))
        assert torch.equal(found, dead) or float(
            values(patches, torch.ones(1, 1, dtype=torch.float64), found)
        ) == pytest.approx(5.0)


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 6), st.integers(-6, 6))
def test_the_nearest_point_of_a_box_is_that_of_another_method(seed: int, rows: int, dim: int, scale: int) -> None:
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(rows, dim)) * 10.0**scale
    vector, most = rng.normal(size=dim), rng.random(rows) * 10.0**-scale
    found = _nearest(normals, vector, most, most * (rng.random(len(most)) < 0.5))
    assert (found >= 0).all() and (found <= most).all()
    wanted = lsq_linear(normals.T, vector, (np.zeros(rows), most), method="bvls", tol=1e-14).x
    lengths = [np.linalg.norm(vector - normals.T @ point) for point in (found, wanted)]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-7, abs=1e-9 * np.linalg.norm(vector))


def test_multipliers_between_their_limits_are_found_where_newton_steps_are_cut_short() -> None:
    # A climb stopped below a maximum here: of seven multipliers, those near a limit ended the projected steps early.
    patches, dual = dual_problem(1, (1, 3), cells=2, bias=True)
    found = climbed(patches, dual, directions(patches, 8, 1)[3:4], 300)
    assert float(values(patches, dual, found)) == pytest.approx(1.16028440195674, rel=1e-9)


@pytest.mark.parametrize(
    ("starts", "distinct", "unseen"),
    [
        (102, 4, 4 * 101 / 96 - 4),  # 0.2083: 4.21 maxima are expected in all
        (11, 1, 1 * 10 / 8 - 1),
        (100, 10, 10 * 99 / 88 - 10),
        (1000, 1, 999 / 997 - 1),
        (13, 10, 10 * 12 / 1 - 10),  # nearly every start met another one
    ],
)
def test_how_many_maxima_are_expected_to_be_missing(starts: int, distinct: int, unseen: float) -> None:
    assert expected_unseen(starts, distinct) == pytest.approx(unseen, rel=1e-12)


def test_too_few_starts_tell_nothing_of_what_is_missing() -> None:
    for starts, distinct in ((12, 10), (10, 10), (3, 1), (1, 1)):
        assert expected_unseen(starts, distinct) == float("inf")
    assert expected_unseen(10**6, 3) < 1e-4
