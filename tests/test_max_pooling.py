"""Max pooling, against loops over patches, finite differences, brute force over winners, and other solvers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from eq2 import eq2_block
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import normal, seeded, two_digits
from torch import Tensor, nn

from cvxcnn import ConvexConvBlock, LayerwiseCNN, nonconvex_objective, polish, reg_path
from cvxcnn.arrangements import EnumeratedGates, distinct, enumerate_gates
from cvxcnn.arrangements.neighbours import hyperplanes
from cvxcnn.errors import InputError
from cvxcnn.losses import SquaredLoss
from cvxcnn.ordinary import train_baseline, tune
from cvxcnn.ordinary.network import Network
from cvxcnn.patches import Patches, PatchGeometry, pooled_relu
from cvxcnn.patches import patches as patches_module
from cvxcnn.patches.activity import winning
from cvxcnn.penalties import DensePenalty, GroupPenalty, Penalty
from cvxcnn.pricing import PricedGates, PricingOptions
from cvxcnn.pricing.branch_and_bound import bound_responses
from cvxcnn.pricing.climb import climbed
from cvxcnn.pricing.simplicial import SimplicialCones
from cvxcnn.pricing.tree import Tree
from cvxcnn.pricing.winner_climb import shortest
from cvxcnn.program.cones import WinnerCones
from cvxcnn.program.program import gated_program, relu_program
from cvxcnn.program.units import unit_rows
from cvxcnn.solvers import get_solver

EASY = PricedGates(starts=24, initial_filters=16)
QUICK = PricedGates(starts=16, ascent_steps=10, initial_filters=8, max_rounds=2, gap=0.1)
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def max_patches(
    n: int = 4, side: int | tuple[int, int] = 6, cells: int = 2, *, channels: int = 1, kernel: Any = 2, seed: int = 0,
    bias: bool = False, padding: int = 0, scale: float = 1.0,
) -> Patches:  # fmt: skip
    sides = side if isinstance(side, tuple) else (side, side)
    geometry = PatchGeometry(kernel, padding=padding, pooling="max", pool_cells=cells, bias=bias)
    return Patches(normal(n, channels, *sides, seed=seed), geometry, scale=scale)


def members(patches: Patches) -> list[list[int]]:
    """Return the places of each cell, as torch cuts them: those whose slopes reach it."""
    (height, width), cells = patches.map_shape, patches.geometry.pool_cells
    blank = torch.zeros(1, 1, height, width, dtype=torch.float64, requires_grad=True)
    slopes = [
        torch.autograd.grad(each, blank, retain_graph=True)[0].flatten()
        for each in F.adaptive_avg_pool2d(blank, cells).flatten()
    ]
    return [each.nonzero().flatten().tolist() for each in slopes]


def by_loops(patches: Patches, filters: Tensor) -> Tensor:
    """Return the pooled responses, one image, cell and filter at a time."""
    unfolded, cells = patches.unfold(), members(patches)
    pooled = torch.empty(patches.n_images, len(cells), len(filters), dtype=torch.float64)
    for image, cell, which in itertools.product(range(patches.n_images), range(len(cells)), range(len(filters))):
        best = max(float(unfolded[image, place] @ filters[which]) for place in cells[cell])
        pooled[image, cell, which] = patches.scale * max(best, 0.0)
    return pooled


@pytest.mark.parametrize("sides", [(6, 6), (8, 7), (5, 9)])  # 5 x 5, 7 x 6 and 4 x 8 maps: cells that overlap or tile
@pytest.mark.parametrize("cells", [1, 2, 3])
def test_responses_are_those_of_loops_however_they_are_computed(
    sides: tuple[int, int], cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches = max_patches(3, sides, cells, channels=2, bias=True, scale=2.0)
    filters = normal(5, patches.dim, seed=1)
    expected = by_loops(patches, filters)
    torch.testing.assert_close(patches.relu_features(filters), expected, **CLOSE)
    lengths = torch.stack([patches.unfold()[:, places].norm(dim=2).amax(dim=1) for places in members(patches)], dim=1)
    torch.testing.assert_close(patches.lengths(), 2 * lengths)
    monkeypatch.setattr(patches_module, "CHUNK_ENTRIES_CPU", 40)
    torch.testing.assert_close(patches.relu_features(filters), expected, **CLOSE)
    monkeypatch.setattr(patches_module, "CONVOLUTION_PRODUCTS", 1)
    assert patches.convolves(len(filters))
    torch.testing.assert_close(patches.relu_features(filters), expected, **CLOSE)
    module = ConvexConvBlock(kernel_size=2, padding=0, pooling="max", pool_cells=cells).check_parameters()
    assert module == PatchGeometry(2, pooling="max", pool_cells=cells, bias=True)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("sides", [(6, 6), (6, 7)])
def test_gradient_is_the_difference_quotient(
    sides: tuple[int, int], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(pooled_relu, "KEPT_BYTES", 0)
    patches = max_patches(3, sides, 2, bias=True, scale=0.5)
    filters = normal(4, patches.dim, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(patches.relu_features, (filters,), eps=1e-7, atol=1e-6)


def test_there_are_no_weights() -> None:
    patches = max_patches()
    with pytest.raises(InputError, match='pooling="max" is not linear and has no weights'):
        _ = patches.pool
    with pytest.raises(InputError, match="no weights"):
        patches.geometry.pool_matrix((6, 6))
    assert patches.astype(torch.float32).like.dtype == torch.float32


@given(st.integers(0, 10**6), st.sampled_from([torch.float64, torch.float32]))
@settings(max_examples=40, deadline=None)
def test_one_patch_wins_and_ties_are_settled_alike(seed: int, dtype: torch.dtype) -> None:
    random = seeded(seed)
    # Small integers tie often; some patches are there twice.
    cell = torch.randint(-2, 3, (5, 6, 3), generator=random).to(dtype)
    cell[:, 4] = cell[:, 1]
    gates = torch.randint(-2, 3, (8, 3), generator=random).to(dtype)
    heights = cell @ gates.T
    best = heights.amax(dim=1, keepdim=True)
    first = (heights == best) & ((heights == best).cumsum(dim=1) == 1)
    expected = first & (best >= 0)
    assert torch.equal(winning(cell, gates), expected)
    # In units that round, what ties goes on to tie, and alone or among others.
    third = torch.tensor(1 / 3, dtype=dtype)
    assert torch.equal(winning(cell * third, gates * third), expected)
    assert torch.equal(torch.cat([winning(cell[j : j + 1], gates) for j in range(5)]), expected)
    assert torch.equal(torch.cat([winning(cell, gate[None]) for gate in gates], dim=2), expected)


def test_gated_maps_are_those_of_the_winners() -> None:
    patches = max_patches(5, (6, 7), 2, channels=2, bias=True, scale=3.0)
    gates, cells = normal(4, patches.dim, seed=1), members(patches)
    features = patches.gated_features(gates)
    for image, gate, cell in itertools.product(range(5), range(4), range(4)):
        rows = patches.unfold()[image, cells[cell]]
        heights = rows @ gates[gate]
        expected = 3.0 * rows[heights.argmax()] if heights.max() >= 0 else torch.zeros(patches.dim).double()
        torch.testing.assert_close(features[image, gate, cell], expected, **CLOSE)
    weights, dual = normal(4, 4, patches.dim, 2, seed=2), normal(5, 2, seed=3)
    torch.testing.assert_close(
        patches.gated_prediction(gates, weights), torch.einsum("npcd,pcdo->no", features, weights), **CLOSE
    )
    torch.testing.assert_close(
        patches.gated_correlation(gates, dual), torch.einsum("npcd,no->pcdo", features, dual), **CLOSE
    )
    # On its own pattern the filter responds with what it was decided to be linear in.
    responses = torch.einsum("npcd,pd->ncp", features, gates)
    torch.testing.assert_close(responses, patches.relu_features(gates), **CLOSE)


def test_cones_hold_the_filters_with_the_same_winners() -> None:
    patches = max_patches(3, 4, 1, kernel=2)
    gates = normal(3, 4, seed=1)
    cones = WinnerCones(patches, gates)
    others = unit_rows(normal(4000, 4, seed=2))
    for gate in range(3):
        near = unit_rows(torch.cat([gates[gate] + 0.3 * others[:2000], others]))
        unfolded = patches.unfold()
        own = (unfolded @ gates[gate]).max(dim=1)
        heights = unfolded @ near.T
        same = torch.where(
            (own.values >= 0)[:, None],
            (heights.argmax(dim=1) == own.indices[:, None]) & (heights.amax(dim=1) >= 0),
            heights.amax(dim=1) < 0,
        ).all(dim=0)
        inside = torch.tensor([cones.violation(gate, vector[:, None].numpy()) == 0 for vector in near])
        assert torch.equal(same, inside) and 0 < int(same.sum()) < len(near)
        point, _ = cones.project(gate, others[gate].numpy())
        variable = cp.Variable(4)
        problem = cp.Problem(
            cp.Minimize(cp.sum_squares(variable - others[gate].numpy())), [cones.normals(gate) @ variable >= 0]
        )
        problem.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
        np.testing.assert_allclose(point, variable.value, atol=1e-6)


@pytest.mark.parametrize("cells", [1, 2])
def test_eq2_in_its_cones_is_a_network_of_max_pooling(cells: int) -> None:
    patches, targets = max_patches(8, 5, cells, bias=True), normal(8, 2, seed=5)
    program = relu_program(patches, normal(6, patches.dim, seed=1), targets, 0.3)
    weights = program.repair(normal(*program.design.shape(2), seed=2))
    assert program.violation(weights) <= 1e-12
    network = torch.zeros(8, 2, dtype=torch.float64)
    for block, cell, output in itertools.product(range(12), range(cells**2), range(2)):
        pooled = by_loops(patches, weights[block, cell, :, output][None])[:, cell, 0]
        network[:, output] += pooled if block < 6 else -pooled
    torch.testing.assert_close(program.design.predict(weights), network, rtol=1e-10, atol=1e-10)
    found = {name: get_solver(name, program, tol=1e-8).solve(program) for name in ("auto", "cvxpy:CLARABEL")}
    assert found["auto"].solver == "cone_working_set" and found["auto"].status == "optimal"
    assert found["cvxpy:CLARABEL"].objective == pytest.approx(found["auto"].objective, rel=1e-6)
    assert max(result.violation for result in found.values()) <= 1e-10


def brute_force(patches: Patches, targets: Tensor, reg: float) -> float:
    """Return the optimum of Eq. 2 over every winner of every (image, cell) that some filter of rank 2 has.

    Directions are swept finely around the circle, and each distinct list of winners is a cone of its own, written down
    as inequalities between responses, without a word of our own arrangement.
    """
    unfolded, cells = patches.unfold().numpy(), members(patches)
    angles = np.linspace(0, 2 * np.pi, 50_001)[:-1]
    circle = np.stack([np.cos(angles), np.sin(angles)])
    lists = []
    for places in cells:
        heights = unfolded[:, places] @ circle
        lists.append(np.where(heights.max(axis=1) >= 0, heights.argmax(axis=1), -1))
    winners = np.unique(np.stack(lists).reshape(-1, len(angles)), axis=1).T.reshape(-1, len(cells), len(unfolded))
    prediction: Any = 0.0
    penalty: Any = 0.0
    constraints = []
    for pattern in winners:
        features = np.zeros((len(cells), len(unfolded), 2))
        rows = []
        for (cell, places), image in itertools.product(enumerate(cells), range(len(unfolded))):
            block, winner = unfolded[image, places], pattern[cell, image]
            rows.append(-block if winner < 0 else np.concatenate([block[winner : winner + 1], block[winner] - block]))
            features[cell, image] = 0.0 if winner < 0 else block[winner]
        for sign, cell in itertools.product((1.0, -1.0), range(len(cells))):
            vector = cp.Variable(2)
            constraints.append(np.concatenate(rows) @ vector >= 0)
            prediction = prediction + sign * features[cell] @ vector
            penalty = penalty + cp.norm(vector)
    problem = cp.Problem(
        cp.Minimize(0.5 * cp.sum_squares(prediction - targets[:, 0].numpy()) + reg * penalty), constraints
    )
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    return float(problem.value)


@pytest.mark.parametrize(("n", "side", "cells", "seed"), [(3, (1, 4), 1, 0), (2, (2, 4), 2, 1), (4, (1, 4), 1, 2)])
def test_enumerated_value_is_that_of_a_brute_forced_program(
    n: int, side: tuple[int, int], cells: int, seed: int
) -> None:
    images, targets = normal(n, 1, *side, seed=seed), 2 * normal(n, 1, seed=seed + 10)
    block = eq2_block(
        kernel_size=(1, 2), pooling="max", pool_cells=cells, gates=EnumeratedGates(), reg=0.1, tol=1e-9
    ).fit(images, targets)
    assert block.certificate_.kind == "proved"
    patches = Patches(images, block.geometry_)
    assert block.result_.objective == pytest.approx(brute_force(patches, targets, 0.1), rel=1e-8)
    assert block.result_.objective == pytest.approx(
        nonconvex_objective(block.to_torch(), images, targets, 0.1), rel=1e-10
    )
    if cells > 1:
        return
    # No network that pricing finds is below.
    priced = eq2_block(kernel_size=(1, 2), pooling="max", pool_cells=cells, gates=EASY, reg=0.1)
    priced.fit(images, targets)
    assert priced.result_.objective >= block.result_.objective * (1 - 1e-8)
    assert priced.certificate_.kind == "proved"
    assert block.result_.objective * (1 - 1e-3) <= priced.certificate_.global_bound
    assert priced.certificate_.global_bound <= block.result_.objective * (1 + 1e-9)


@pytest.mark.parametrize("rank", [2, 3])
def test_every_list_of_winners_is_enumerated(rank: int) -> None:
    patches = max_patches(2, (1, rank + 2), 1, kernel=(1, rank))
    found = EnumeratedGates().draw(patches, seeded())
    directions = unit_rows(normal(20_000, rank, seed=1))
    some = distinct(patches, directions)
    both = distinct(patches, torch.cat([found.vectors, some.vectors]))
    assert len(both) == len(found) and len(some) >= 0.9 * len(found)
    # Differences with a patch that loses anyway cut nothing.
    assert len(enumerate_gates(patches)) > len(found)
    with pytest.raises(InputError, match="with the differences of those of one pooling cell"):
        enumerate_gates(patches, max_points=2)


def test_hyperplanes_are_those_of_patches_and_of_their_differences() -> None:
    images = torch.tensor([[[[3.0, 4.0, 0.0, 5.0]]]], dtype=torch.float64)
    normals = hyperplanes(Patches(images, PatchGeometry((1, 2), stride=(1, 2), pooling="max")))
    expected = [[0.0, 1.0], [0.6, 0.8], [3 / 10**0.5, -1 / 10**0.5]]
    np.testing.assert_allclose(sorted(normals.tolist()), expected, atol=1e-12)


@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_shortest_vector_of_a_polytope(seed: int, dim: int, count: int) -> None:
    """Optimality of a projection: no vertex v has x . v < x . x; and x is in the hull, as a linear program tells."""
    corners = normal(count, dim, seed=seed).numpy() + 0.5
    point = shortest(lambda x: corners[np.argmin(corners @ x)], corners[0])
    assert (corners @ point).min() >= point @ point - 1e-12
    weights = cp.Variable(count, nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.norm(corners.T @ weights - point, 1)), [cp.sum(weights) == 1])
    assert problem.solve(solver="CLARABEL") < 1e-6


@pytest.mark.parametrize("penalty", ["dense", "group"])
@pytest.mark.parametrize(("sides", "cells", "outputs"), [((5, 5), 1, 1), ((6, 7), 2, 2)])
def test_climbs_never_fall_and_end_where_nothing_near_is_higher(
    sides: tuple[int, int], cells: int, outputs: int, penalty: str
) -> None:
    patches, dual = max_patches(8, sides, cells, bias=True), normal(8, outputs, seed=4)
    pairs = None if penalty == "dense" else F.one_hot(torch.arange(8) % (cells**2 * outputs)).double()

    def heights(points: Tensor) -> Tensor:
        sums = torch.einsum("ncm,no->mco", by_loops(patches, points), dual).flatten(1)
        return (sums if pairs is None else sums * pairs.repeat(len(points) // 8, 1)).norm(dim=1)

    points = unit_rows(normal(8, patches.dim, seed=5))
    reached = heights(points)
    for _ in range(4):
        points = climbed(patches, dual, points, 1, pairs)
        assert (heights(points) >= reached * (1 - 1e-13)).all()
        reached = heights(points)
    points = climbed(patches, dual, points, 300, pairs)
    top = heights(points)
    for size in (1e-6, 1e-5):
        near = unit_rows(points.repeat(20, 1) + size * normal(160, patches.dim, seed=6))
        assert (heights(near).view(20, 8) <= top * (1 + 1e-9)).all()


def dual_norms(patches: Patches, dual: Tensor, penalty: Penalty, filters: Tensor) -> Tensor:
    """Return the dual norm for each output of each filter, (m, outputs)."""
    sums = torch.einsum("ncm,no->mco", patches.relu_features(filters), dual)
    if penalty.separable:
        return sums.abs().amax(dim=1)
    return sums.flatten(1).norm(dim=1, keepdim=True).expand(-1, dual.shape[1])


@given(
    seed=st.integers(0, 10_000),
    kernel=st.sampled_from([(1, 1), (1, 2), (1, 3), (2, 2)]),
    outputs=st.integers(1, 2),
    cells=st.integers(1, 2),
    bias=st.booleans(),
    penalty=st.sampled_from([GroupPenalty(), DensePenalty()]),
    max_regions=st.sampled_from([1, 100, 3000]),
    share=st.sampled_from([0.0, 0.99, 1.05]),
)
@settings(max_examples=20, deadline=None)
def test_no_filter_is_above_what_is_proved_even_when_stopped(
    seed: int, kernel: tuple[int, int], outputs: int, cells: int, bias: bool, penalty: Penalty, max_regions: int,
    share: float,
) -> None:  # fmt: skip
    patches = max_patches(4, (3, 5), cells, kernel=kernel, bias=bias, seed=seed, scale=2.0)
    dual = normal(4, outputs, seed=seed + 1)
    flat = patches.unfold().flatten(0, 1)
    # Where two patches of a cell respond alike, and patches themselves.
    filters = unit_rows(torch.cat([normal(400, patches.dim, seed=seed), flat, flat[1:] - flat[:-1]]))
    found = dual_norms(patches, dual, penalty, filters).amax(dim=0)
    floor = share * float(found.max())
    bound = bound_responses(patches, dual, penalty, floor=floor, max_regions=max_regions, tol=1e-2)
    pairs = patches.n_cells * outputs
    keep = F.one_hot(torch.arange(16) % pairs, pairs).double() if penalty.separable else None
    top = climbed(patches, dual, filters[:16], 60, keep)
    found = torch.maximum(found, dual_norms(patches, dual, penalty, top).amax(dim=0))
    assert (found <= bound.upper).all() and (bound.best <= bound.upper).all()
    attained = dual_norms(patches, dual, penalty, unit_rows(bound.argmax)).diagonal()
    # Another cell, whose tree was stopped before it met that direction, may be larger there.
    assert (attained >= bound.best * (1 - 1e-10)).all() and (attained <= bound.upper).all()
    if bound.complete:
        assert (bound.upper <= max(floor, float(bound.best.max())) * (1 + 1e-2) * (1 + 1e-9)).all()


@pytest.mark.parametrize(("m", "size"), [(1, 1.0), (1, 0.1), (3, 0.5), (3, 0.05)])
def test_no_point_of_a_cone_is_above_its_bound(m: int, size: float) -> None:
    random = seeded()
    points = normal(20, 5, 3, seed=random)
    tree = Tree(points, normal(20, m, seed=random))
    for _ in range(30):
        # A cone around the middle between two patches of a cell, where its bound is worst.
        normal_ = F.normalize(points[0, 0] - points[0, 1], dim=0)
        centre = normal(3, seed=random)
        centre = F.normalize(centre - (centre @ normal_) * normal_, dim=0)
        corners = unit_rows(centre + size * normal(3, 3, seed=random))
        cone = SimplicialCones(
            corners[None], torch.zeros(1, 3, m).double(), torch.arange(20)[None], (points @ corners.T)[None],
            torch.tensor([torch.inf]).double(), torch.zeros(1, dtype=torch.long),
        )  # fmt: skip
        weights = torch.cat([torch.eye(3).double(), torch.rand(200, 3, generator=random, dtype=torch.float64) ** 3])
        values = tree.evaluate(unit_rows(weights @ corners))
        for share in (1e-3, 0.5, 0.9, 0.99, 1 - 1e-9):
            left = tree.close(tree.settle(cone), share * float(values.max()))
            assert len(left.upper) == 1
            assert float(values.max()) <= float(left.upper) * (1 + 1e-12)


@pytest.mark.parametrize(("cells", "seed"), [(1, 0), (1, 1), (2, 2)])
def test_what_is_proved_is_exact_on_the_circle(cells: int, seed: int) -> None:
    """Between the directions where a pattern ends A(u) is linear, and so largest at an end or along itself."""
    patches, dual = max_patches(5, (2, 6), cells, kernel=(1, 2), seed=seed), normal(5, 1, seed=seed + 5)
    normals = hyperplanes(patches).numpy()
    breaks = np.mod(np.arctan2(normals[:, 1], normals[:, 0])[:, None] + [np.pi / 2, -np.pi / 2], 2 * np.pi)
    breaks = np.sort(breaks.ravel())
    middles = (breaks + np.append(breaks[1:], breaks[0] + 2 * np.pi)) / 2
    circle = [torch.tensor(np.stack([np.cos(angles), np.sin(angles)], axis=1)) for angles in (breaks, middles)]
    slopes = patches.gated_correlation(circle[1], dual)[..., 0].flatten(0, 1)
    directions = torch.cat([circle[0], unit_rows(slopes), -unit_rows(slopes)])
    exact = float(dual_norms(patches, dual, GroupPenalty(), directions).max())
    bound = bound_responses(patches, dual, GroupPenalty(), tol=1e-6)
    assert bound.complete and exact * (1 - 1e-12) <= float(bound.upper) <= exact * (1 + 2e-6)


SMALL = {"kernel_size": 2, "pooling": "max", "reg": 0.5}


@pytest.mark.parametrize("penalty", ["group", "dense"])
# 6 x 6 maps that tile, and 7 x 6 ones whose cells overlap.
@pytest.mark.parametrize(
    ("sides", "gates"), [((5, 5), 6), ((6, 5), 6), pytest.param((6, 5), QUICK, marks=pytest.mark.slow)]
)
def test_the_whole_way(sides: tuple[int, int], gates: object, penalty: str, tmp_path: Path) -> None:
    images, targets = normal(10, 1, *sides, seed=0), normal(10, 2, seed=1)
    pricing = PricingOptions(starts=16) if gates == 6 else None
    block = ConvexConvBlock(**SMALL, gates=gates, penalty=penalty, pricing=pricing).fit(images, targets)
    assert block.result_.status == "optimal" and block.certificate_.kind == "searched"
    assert block.result_.objective >= block.certificate_.global_bound
    predicted = torch.as_tensor(block.predict(images))
    assert predicted.abs().max() > 0.01
    module = block.to_torch()
    kind = nn.MaxPool2d if sides == (5, 5) else nn.AdaptiveMaxPool2d
    assert isinstance(module.pool, kind)
    torch.testing.assert_close(module(images).detach(), predicted, rtol=1e-10, atol=1e-10)
    assert block.result_.objective == pytest.approx(nonconvex_objective(module, images, targets, 0.5), rel=1e-10)
    torch.testing.assert_close(module[:2](images).detach(), torch.as_tensor(block.transform(images)), **CLOSE)
    block.save(tmp_path)
    loaded = ConvexConvBlock.load(tmp_path)
    assert torch.equal(torch.as_tensor(loaded.predict(images)), predicted)
    assert torch.equal(loaded.to_torch()(images), module(images))


def test_single_precision() -> None:
    images, targets = normal(10, 1, 5, 5, seed=0), normal(10, 1, seed=1)
    for penalty in ("dense", "group"):
        block = ConvexConvBlock(**SMALL, gates=8, penalty=penalty, pricing=PricingOptions(starts=0))
        expected = block.fit(images, targets).result_
        assert expected.status == "optimal"
        single = block.set_params(dtype="float32", tol=1e-4).fit(images, targets).result_
        assert single.objective == pytest.approx(expected.objective, rel=1e-4)


@pytest.mark.slow
def test_pricing_with_patterns_and_neighbours() -> None:
    images, targets = normal(6, 1, 4, 4, seed=0), normal(6, 1, seed=1)
    options = PricedGates(starts=16, initial_filters=16, max_rounds=2)
    plain = ConvexConvBlock(**SMALL, gates=options, penalty="group", pool_cells=1)
    refined = ConvexConvBlock(**SMALL, gates=replace(options, neighbours=3), penalty="group", pool_cells=1)
    plain.fit(images, targets), refined.fit(images, targets)
    assert refined.result_.objective <= plain.result_.objective * (1 + 1e-6)
    value = nonconvex_objective(refined.to_torch(), images, targets, 0.5)
    assert refined.result_.objective == pytest.approx(value, rel=1e-10)


@pytest.mark.slow
def test_searched_bounds_are_below_what_training_finds() -> None:
    images, targets = normal(12, 1, 4, 4, seed=3), normal(12, 1, seed=4)
    block = ConvexConvBlock(**SMALL, gates=EASY).fit(images, targets)
    patches = Patches(images, block.geometry_)
    rivals = [train_baseline(patches, targets, 0.5, 20, epochs=200, seed=seed).objective for seed in range(2)]
    assert block.certificate_.global_bound <= block.result_.objective <= min(rivals) * (1 + 1e-4)
    assert block.certificate_.global_gap <= 1e-3


@pytest.mark.parametrize("connect", ["dense", "group"])
@pytest.mark.parametrize("sides", [(5, 5), (6, 5)])
def test_the_rival_trains_the_same_network(sides: tuple[int, int], connect: str) -> None:
    patches, targets = max_patches(7, sides, 2, bias=True), normal(7, 2, seed=1)
    network = Network(patches, targets, SquaredLoss(), 16, connect)
    filters, readout = network.directions(0)
    prediction = torch.einsum("ncm,mco->no", by_loops(patches, filters), readout)
    torch.testing.assert_close(network.predict(filters, readout), prediction, **CLOSE)
    filters, readout = filters.requires_grad_(), readout.requires_grad_()
    fitted = torch.einsum("ncm,mco->no", patches.relu_features(filters), readout)
    expected = torch.autograd.grad(0.5 * (fitted - targets).square().sum(), (filters, readout))
    with torch.no_grad():
        found = network.gradients(filters.detach(), readout.detach(), torch.arange(7))
    torch.testing.assert_close(found[0], expected[0], **CLOSE)
    kept = expected[1] if network.mask is None else expected[1] * network.mask
    torch.testing.assert_close(found[1], kept, **CLOSE)


def test_polish_of_max_pooling() -> None:
    images, targets = normal(8, 1, 5, 5, seed=0), normal(8, 1, seed=1)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(12, 1, bias=False)
    ).double()
    options = PricingOptions(starts=8, max_rounds=1)
    better = polish(net, images, targets, 0.3, pricing=options)
    assert better.improved and better.objective < better.objective_before
    assert isinstance(better.module[2], nn.MaxPool2d)
    assert better.objective == nonconvex_objective(better.module, images, targets, 0.3)
    # A grid as fine as the map pools nothing, whatever its name is.
    single = nn.Sequential(nn.Conv2d(1, 3, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 1, bias=False))
    assert polish(single.double(), images, targets, 0.3, pricing=options).module[2].kernel_size in (2, (2, 2))


def test_stacks_and_paths() -> None:
    images, targets = normal(10, 1, 6, 6, seed=0), normal(10, 1, seed=1)
    block = ConvexConvBlock(**SMALL, gates=5, pricing=PricingOptions(starts=8))
    stack = LayerwiseCNN(layers=2, block=block, downsample=1).fit(images, targets)
    outputs = stack.to_torch()(images).detach().numpy()
    np.testing.assert_allclose(outputs.ravel(), stack.predict(images).ravel(), rtol=1e-9, atol=1e-9)
    path = reg_path(images, targets, block=block, points=3)
    assert (np.diff(path.objective) < 0).all()


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"activation": "gated_relu"}, "no convex program that is known for gated_relu neurons"),
        ({"activation": "gated_relu", "penalty": "nuclear"}, "no convex program that is known for gated_relu neurons"),
        ({"penalty": "nuclear"}, 'penalty="nuclear" is a gated program'),
        ({"activation": "quadratic", "penalty": "group"}, "known for quadratic neurons"),
        ({"activation": "linear"}, "known for linear neurons"),
    ],
)
def test_what_has_no_program_is_refused_by_name(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ConvexConvBlock(**{**SMALL, **settings_}).fit(normal(4, 1, 5, 5), normal(4, 1))


def test_gated_programs_are_refused() -> None:
    patches, targets = max_patches(), normal(4, 1, seed=1)
    with pytest.raises(InputError, match="pooling='max' has no gated program"):
        gated_program(patches, normal(2, 4), targets, 1.0)


@pytest.mark.slow
def test_digits_are_fitted_no_worse_than_by_tuned_adam() -> None:
    images, signs = two_digits(40)
    block = ConvexConvBlock(padding=0, pooling="max")
    block.fit(images, signs)
    patches = block.patches(images)
    targets = torch.tensor(signs)[:, None]
    rate = tune(patches, targets, block.reg_, 200, epochs=1000)
    settings_ = {"learning_rate": rate, "tol": 1e-5}
    rivals = [train_baseline(patches, targets, block.reg_, 200, seed=seed, **settings_).objective for seed in range(6)]
    assert block.result_.objective <= min(rivals)
