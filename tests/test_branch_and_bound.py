"""Proved bounds of filter responses: exact oracles in two and three dimensions, and validity everywhere."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from eq2 import eq2_block
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import dual_problem
from scipy.optimize import minimize

from cvxcnn.arrangements import enumerate_gates
from cvxcnn.errors import InputError
from cvxcnn.losses import SquaredLoss
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.penalties import DensePenalty, GroupPenalty, NuclearPenalty
from cvxcnn.pricing.branch_and_bound import bound_responses
from cvxcnn.pricing.simplicial import SimplicialCones
from cvxcnn.pricing.tree import Tree
from cvxcnn.program import relative_gap
from cvxcnn.program.cones import Cones

PENALTIES = {"group": GroupPenalty(), "dense": DensePenalty()}


def responses(patches, dual, penalty, filters):
    """Return the dual norm for each output of each filter, shape (m, outputs)."""
    pooled = torch.einsum("ncm,no->mco", patches.relu_features(filters), dual)
    if penalty.separable:
        return pooled.abs().amax(dim=1)
    return pooled.flatten(1).norm(dim=1, keepdim=True).expand(-1, dual.shape[1])


def on_circle(patches, dual, penalty):
    """Return max over the circle for patches in R^2, exactly: between breakpoints A(u) = M u with one matrix M."""
    flat = patches.unfold().flatten(0, 1).numpy()
    flat = flat[np.any(flat != 0, axis=1)]
    breaks = np.sort(np.mod(np.arctan2(flat[:, 1], flat[:, 0])[:, None] + [np.pi / 2, -np.pi / 2], 2 * np.pi).ravel())
    ends = np.append(breaks, breaks[0] + 2 * np.pi)
    angles = [ends]
    unit = lambda angle: torch.tensor(np.stack([np.cos(angle), np.sin(angle)], axis=1))  # noqa: E731
    for low, high in pairwise(ends):
        # ||M u||^2 = u^T M^T M u is largest at an end or at the leading eigenvector.
        gated = patches.gated_correlation(unit(np.array([(low + high) / 2])), dual)[0]  # cells, d, outputs
        columns = (
            gated.permute(0, 2, 1).reshape(-1, 1, 2) if penalty.separable else gated.transpose(1, 2).reshape(1, -1, 2)
        )
        for matrix in columns.numpy():
            leading = np.linalg.eigh(matrix.T @ matrix)[1][:, -1]
            for sign in (1, -1):
                angle = np.arctan2(sign * leading[1], sign * leading[0])
                angle += 2 * np.pi * np.ceil((low - angle) / (2 * np.pi))
                if angle <= high:
                    angles.append(np.array([angle]))
    return responses(patches, dual, penalty, unit(np.concatenate(angles))).amax(dim=0)


def over_cells(patches, dual):
    """Return max_u |sum c (x . u)_+| for one cell and output of patches in R^3, by projection onto every cone."""
    gates = enumerate_gates(patches).vectors
    cones = Cones(patches, gates)
    vectors = patches.gated_correlation(gates, dual)[:, 0, :, 0].numpy()
    norms = [np.linalg.norm(cones.project(i, s * a, tol=1e-15)[0]) for i, a in enumerate(vectors) for s in (1, -1)]
    return max(norms)


def test_by_hand():
    # u = (1, 0): 3 - 0; the second patch only ever subtracts, and u may turn away from it: max 5 at (3, 4) / 5.
    patches = Patches(torch.tensor([[[[3.0, 4.0]]], [[[0.0, -5.0]]]]), PatchGeometry(kernel_size=(1, 2)))
    bound = bound_responses(patches, torch.tensor([[1.0], [-1.0]]), GroupPenalty(), tol=1e-6)
    assert bound.complete
    assert float(bound.best) == pytest.approx(5.0, rel=1e-6)
    assert 5.0 <= float(bound.upper) <= 5.0 * (1 + 2e-6)
    # With both coefficients negative the maximum is |-(3, 4) . u| on one side, |-5 u_2| on the other: 5 again,
    # and with 2 on the second patch it is 10, at (0, -1).
    doubled = bound_responses(patches, torch.tensor([[-1.0], [-2.0]]), GroupPenalty(), tol=1e-6)
    assert float(doubled.upper) == pytest.approx(10.0, rel=1e-5)
    torch.testing.assert_close(doubled.argmax, torch.tensor([[0.0, -1.0]], dtype=torch.float64), atol=1e-2, rtol=0)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize(("outputs", "cells"), [(1, 1), (2, 1), (3, 2)])
def test_exact_on_the_circle(name, outputs, cells):
    for seed in range(3):
        patches, dual = dual_problem(seed, (1, 2), outputs, cells)
        exact = on_circle(patches, dual, PENALTIES[name])
        bound = bound_responses(patches, dual, PENALTIES[name], tol=1e-4)
        assert bound.complete
        assert (bound.upper >= exact * (1 - 1e-12)).all()
        assert (bound.best <= exact * (1 + 1e-12)).all()
        # A floor is shared by what bounds the same output, and met by each.
        assert (bound.upper <= exact * (1 + 2e-4)).all()


@pytest.mark.parametrize("seed", range(4))
def test_exact_on_the_sphere(seed):
    patches, dual = dual_problem(seed, (1, 3), n=6)
    exact = over_cells(patches, dual)
    bound = bound_responses(patches, dual, GroupPenalty(), tol=1e-5)
    assert bound.complete
    assert exact * (1 - 1e-12) <= float(bound.upper) <= exact * (1 + 2e-5)
    value = responses(patches, dual, GroupPenalty(), bound.argmax)
    torch.testing.assert_close(value[0], bound.best, rtol=1e-12, atol=0)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    kernel=st.sampled_from([(1, 1), (1, 2), (1, 3), (2, 2)]),
    outputs=st.integers(1, 3),
    cells=st.integers(1, 2),
    bias=st.booleans(),
    name=st.sampled_from(sorted(PENALTIES)),
    max_regions=st.sampled_from([1, 100, 3000]),
    share=st.sampled_from([0.0, 0.99, 1.05, 3.0]),
)
def test_no_filter_is_above_the_bound_even_when_stopped(seed, kernel, outputs, cells, bias, name, max_regions, share):
    patches, dual = dual_problem(seed, kernel, outputs, cells, n=5, bias=bias)
    penalty = PENALTIES[name]
    generator = torch.Generator().manual_seed(seed)
    filters = torch.randn(500, patches.dim, generator=generator, dtype=torch.float64)
    # Patches themselves are on hyperplanes of others, and good directions.
    filters = F.normalize(torch.cat([filters, patches.unfold().flatten(0, 1)]), dim=1)
    found = responses(patches, dual, penalty, filters).amax(dim=0)
    floor = share * float(found.max())
    bound = bound_responses(patches, dual, penalty, floor=floor, max_regions=max_regions, tol=1e-2)
    nearby = F.normalize(bound.argmax + 1e-3 * filters[:outputs], dim=1)
    found = torch.maximum(found, responses(patches, dual, penalty, nearby).amax(dim=0))
    assert (found <= bound.upper).all()
    assert (bound.best <= bound.upper).all()
    if bound.complete:
        assert (bound.upper <= max(floor, float(bound.best.max())) * (1 + 1e-2) * (1 + 1e-9)).all()


@pytest.mark.parametrize(("m", "width"), [(1, 1.0), (1, 0.1), (4, 1.0), (4, 0.3), (4, 0.05)])
def test_no_point_of_a_cone_is_above_its_bound(m, width):
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    points = random(40, 4)
    tree = Tree(points.unsqueeze(1), random(40, m))
    for _ in range(30):
        # A cone around a patch's hyperplane, where its bound is worst.
        centre = F.normalize(random(4), dim=0)
        centre = centre - (centre @ points[0]) * points[0] / points[0].square().sum()
        corners = F.normalize(centre + width * random(4, 4), dim=1)
        cone = SimplicialCones(
            corners[None],
            points.new_zeros(1, 4, m),
            torch.arange(40)[None],
            (points @ corners.T)[None, :, None],
            torch.tensor([math.inf], dtype=torch.float64),
            torch.zeros(1, dtype=torch.long),
        )
        weights = torch.cat([torch.eye(4).double(), torch.rand(300, 4, generator=generator, dtype=torch.float64) ** 3])
        values = tree.evaluate(F.normalize(weights @ corners, dim=1))
        # A bound holds for values above the level, so each share of the largest is tried.
        for share in (1e-3, 0.5, 0.9, 0.99, 1 - 1e-9):
            level = share * float(values.max())
            left = tree.close(tree.settle(cone), level)
            assert len(left.upper) == 1
            assert float(values.max()) <= float(left.upper) * (1 + 1e-12)


def test_upper_covers_a_local_ascent_in_four_dimensions():
    patches, dual = dual_problem(3, (2, 2), outputs=2, n=6)
    bound = bound_responses(patches, dual, DensePenalty(), tol=1e-3)
    assert bound.complete

    def negative(u):
        filters = F.normalize(torch.from_numpy(u)[None], dim=1)
        return -float(responses(patches, dual, DensePenalty(), filters)[0, 0])

    starts = np.random.default_rng(0).normal(size=(10, 4))
    climbed = max(-minimize(negative, start, method="Nelder-Mead", options={"xatol": 1e-10}).fun for start in starts)
    assert climbed <= float(bound.upper[0]) <= climbed * (1 + 3e-3)


def test_a_floor_saves_the_work_below_it():
    patches, dual = dual_problem(1, (2, 2))
    sharp = bound_responses(patches, dual, GroupPenalty())
    level = 3 * float(sharp.best)
    rough = bound_responses(patches, dual, GroupPenalty(), floor=level)
    assert rough.complete and rough.regions < sharp.regions
    assert float(sharp.best) <= float(rough.upper) <= level * (1 + 1e-3)


def test_stopped_early_it_is_incomplete_but_no_lower():
    patches, dual = dual_problem(2, (2, 2))
    sharp = bound_responses(patches, dual, GroupPenalty())
    stopped = bound_responses(patches, dual, GroupPenalty(), max_regions=16)
    timed = bound_responses(patches, dual, GroupPenalty(), time_limit=1e-9)
    for early in (stopped, timed):
        assert not early.complete
        assert float(early.upper) > float(sharp.upper)


def test_candidates_give_the_best_value_at_once():
    patches, dual = dual_problem(4, (1, 3))
    sharp = bound_responses(patches, dual, GroupPenalty(), tol=1e-6)
    helped = bound_responses(patches, dual, GroupPenalty(), candidates=5 * sharp.argmax, max_regions=1)
    assert float(helped.best) >= float(sharp.best) * (1 - 1e-12)


@pytest.mark.parametrize("name", PENALTIES)
def test_nothing_to_bound(name):
    patches, dual = dual_problem(0, (2, 2), outputs=2)
    zero = bound_responses(patches, 0 * dual, PENALTIES[name])
    blank = bound_responses(Patches(0 * patches.images, patches.geometry), dual, PENALTIES[name])
    for bound in (zero, blank):
        assert bound.complete and bound.upper.tolist() == [0.0, 0.0] and not bound.argmax.any()


def test_constant_images_have_rank_one():
    # x = s (1, 1, 1, 1), so A(u) = (sum_+ or sum_-) * |1 . u|: 2 * max(3 - 1, 0.5).
    images = torch.tensor([3.0, -0.5]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    patches = Patches(images.contiguous(), PatchGeometry(kernel_size=2))
    bound = bound_responses(patches, torch.ones(2, 1), GroupPenalty())
    assert bound.complete
    assert float(bound.upper) == pytest.approx(6.0, rel=1e-10)
    torch.testing.assert_close(bound.argmax, torch.full((1, 4), 0.5, dtype=torch.float64))


def test_scaling_the_images_scales_the_bound():
    patches, dual = dual_problem(5, (1, 3), outputs=2)
    plain = bound_responses(patches, dual, DensePenalty(), tol=1e-4)
    scaled = bound_responses(Patches(-1e6 * patches.images, patches.geometry), dual, DensePenalty(), tol=1e-4)
    torch.testing.assert_close(scaled.best, 1e6 * plain.best, rtol=1e-3, atol=0)
    assert (scaled.upper <= 1e6 * plain.best * (1 + 1e-3)).all()


def test_proves_a_priced_block():
    rng = np.random.default_rng(0)
    images, targets = rng.normal(size=(12, 4, 4)), rng.normal(size=(12, 2))
    block = eq2_block(kernel_size=2, pooling="mean", gates="priced", penalty="dense")
    reg = 0.3 * block.reg_max(images, targets)
    block.set_params(reg=reg).fit(images, targets)
    patches = Patches(torch.from_numpy(images)[:, None], PatchGeometry(kernel_size=2, pooling="mean"))
    y = torch.from_numpy(targets)
    dual = y - torch.from_numpy(block.predict(images))
    candidates = block.neurons_.filters
    bound = bound_responses(patches, dual, DensePenalty(), floor=reg, candidates=candidates)
    value = SquaredLoss().dual_value(dual, y, (reg / bound.upper).clamp_max(1.0))
    assert bound.complete
    assert 0 <= relative_gap(block.result_.objective, value) <= 3e-3
    # Complementary slackness: the neurons in use are among the directions that reach reg.
    assert float(bound.best.max()) == pytest.approx(reg, rel=5e-3)


def test_too_many_dimensions_are_refused():
    patches, dual = dual_problem(0, (4, 4), n=8)
    with pytest.raises(InputError, match=r"span at most 12 dimensions.*these span 16"):
        bound_responses(patches, dual, GroupPenalty())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"penalty": NuclearPenalty()}, 'penalty "dense" or "group"; got \'nuclear\''),
        ({"dual": torch.ones(3, 1)}, "n = 8 images"),
        ({"dual": torch.ones(8)}, "shape"),
        ({"dual": torch.full((8, 1), math.nan)}, "finite"),
        ({"floor": -1.0}, "floor"),
        ({"tol": 0.0}, "tol"),
        ({"max_regions": 0}, "max_regions"),
        ({"max_regions": True}, "max_regions"),
        ({"time_limit": 0.0}, "time_limit"),
        ({"candidates": torch.ones(2, 7)}, "candidates"),
    ],
)
def test_bad_arguments(arguments, message):
    patches, dual = dual_problem(0, (1, 3))
    given = {"dual": dual, "penalty": GroupPenalty(), **arguments}
    with pytest.raises(InputError, match=message):
        bound_responses(patches, given.pop("dual"), given.pop("penalty"), **given)
