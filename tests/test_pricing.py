"""Pricing: the objective never rises, the bound is valid, and brute force finds nothing better."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from eq2 import eq2_block
from problems import noise_tensors, two_digits
from sklearn.base import clone

from cvxcnn import PricedGates, nonconvex_objective
from cvxcnn.arrangements import EnumeratedGates, distinct
from cvxcnn.arrangements.neighbours import hyperplanes, neighbours
from cvxcnn.errors import InputError
from cvxcnn.models.path import reg_path
from cvxcnn.ordinary import train_baseline
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.penalties import DensePenalty, GroupPenalty
from cvxcnn.pricing.exploration import _diverse_starts
from cvxcnn.pricing.options import PricingOptions
from cvxcnn.pricing.search import FilterSearch, GateSearch, thinned
from cvxcnn.pricing.solve import solve_priced
from cvxcnn.program.problem import Problem

QUICK = PricingOptions(starts=32, ascent_steps=20, additions=8, improvement_steps=30, initial_filters=16, max_rounds=12)


small_problem = partial(noise_tensors, n=12, side=2)


def test_priced_block_reaches_the_proved_optimum_of_all_patterns() -> None:
    # Patches of two pixels: all patterns can be enumerated, so the optimum of Eq. 1 is known and proved.
    images, targets = small_problem()
    settings = {"kernel_size": (1, 2), "reg": 0.3, "tol": 1e-8}
    exact = eq2_block(gates=EnumeratedGates(), **settings).fit(images, targets)
    assert exact.certificate_.kind == "proved"
    for up_to, kind in ((0, "searched"), (4, "proved")):
        options = replace(QUICK, prove_up_to=up_to)
        priced = eq2_block(gates="priced", pricing=options, **settings).fit(images, targets)
        assert priced.result_.objective >= exact.result_.dual_bound - 1e-9
        assert priced.result_.objective == pytest.approx(exact.result_.objective, rel=2e-3)
        assert priced.certificate_.kind == kind
        assert priced.certificate_.global_bound <= exact.result_.objective * (1 + 1e-6)
    assert priced.certificate_.global_gap <= QUICK.gap
    assert "(proved)" in str(priced.certificate_).partition("best of all networks")[2]


@pytest.mark.parametrize(("penalty", "loss"), [("group", "squared"), ("dense", "squared"), ("dense", "softmax")])
def test_two_by_two_patches_are_proved(penalty: str, loss: str) -> None:
    """Four dimensions can't be enumerated; branch and bound proves what the search found."""
    images, _ = small_problem(seed=3, n=12)
    targets = torch.nn.functional.one_hot((images.sum(dim=(1, 2, 3)) > 0).long(), 2).to(images)
    block = eq2_block(
        kernel_size=2,
        padding=1,
        pooling="mean",
        pool_cells=2,
        gates="priced",
        penalty=penalty,
        loss=loss,
        reg=0.05,
        pricing=PricingOptions(),
    ).fit(images, targets)
    certificate = block.certificate_
    assert (certificate.kind, certificate.n_searched) == ("proved", 0)
    assert certificate.global_gap <= 1e-3
    trained = train_baseline(
        Patches(images, block.geometry_), targets, 0.05, 20, connect=penalty, epochs=200, loss=loss
    )
    assert trained.objective >= certificate.global_bound


def test_a_proof_is_of_relu_networks_only() -> None:
    images, targets = small_problem(seed=2, n=10)
    gated = eq2_block(kernel_size=2, activation="gated_relu", gates="priced", reg=0.3, pricing=QUICK)
    assert gated.fit(images, targets).certificate_.kind == "searched"
    fixed = eq2_block(kernel_size=2, gates=5, reg=0.3, pricing=QUICK).fit(images, targets)
    assert fixed.certificate_.kind == "proved"
    assert fixed.certificate_.global_bound <= fixed.certificate_.sampled_bound * (1 + 1e-9)


@pytest.mark.parametrize("penalty", ["dense", "group"])
@pytest.mark.parametrize("intercept", [False, True])
def test_priced_objective_is_eq_1_of_the_module(penalty: str, intercept: bool) -> None:
    images, targets = small_problem(seed=1, n=20, outputs=2)
    block = eq2_block(
        kernel_size=2, padding=1, pooling="mean", pool_cells=2, bias=True, penalty=penalty, gates="priced",
        reg=0.2, intercept=intercept, pricing=QUICK,
    ).fit(images, targets)  # fmt: skip
    result = block.result_
    assert result.relative_gap <= 1e-6
    assert nonconvex_objective(block.to_torch(), images, targets, 0.2) == pytest.approx(result.objective, rel=1e-6)
    np.testing.assert_allclose(block.to_torch()(images).detach().numpy(), block.predict(images), atol=1e-8)
    assert block.certificate_.global_bound <= result.objective
    assert block.certificate_.sampled_bound <= result.objective * (1 + 1e-12)
    assert all(step.dual_bound <= step.objective * (1 + 1e-12) for step in result.history)
    if penalty == "group":
        assert ((block.neurons_.readout != 0).flatten(1).sum(dim=1) == 1).all()


def test_objective_never_rises_from_round_to_round() -> None:
    images, targets = small_problem(seed=2, n=20, outputs=3)
    patches = Patches(images, PatchGeometry(2, padding=1, pool_cells=2, pooling="mean"))
    with torch.no_grad():
        solution = solve_priced(Problem(patches, targets, 0.1), options=QUICK)
    objectives = [step.objective for step in solution.history]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(objectives))
    assert (solution.filters.norm(dim=1) - 1).abs().max() < 1e-12


def test_priced_gates_do_at_least_as_well_as_sampled_ones() -> None:
    images, targets = small_problem(seed=3, n=20)
    settings = {"kernel_size": 2, "padding": 1, "activation": "gated_relu", "reg": 1.0}
    sampled = eq2_block(gates=20, **settings).fit(images, targets)
    priced = eq2_block(gates="priced", pricing=QUICK, **settings).fit(images, targets)
    assert priced.result_.relative_gap <= 1e-6
    assert priced.result_.objective <= sampled.result_.objective
    assert priced.certificate_.global_bound <= priced.result_.objective


@pytest.mark.parametrize("search_type", [FilterSearch, GateSearch])
@pytest.mark.parametrize("penalty", [DensePenalty(), GroupPenalty()])
def test_ascent_never_ends_below_its_start(search_type: type, penalty: DensePenalty | GroupPenalty) -> None:
    images, dual = small_problem(seed=4, n=15, outputs=2)
    search = search_type(Patches(images, PatchGeometry(2, padding=1)), dual, penalty)
    starts = search.starts(16, torch.Generator().manual_seed(0))
    assert torch.allclose(starts.norm(dim=1), torch.ones(16, dtype=torch.float64))
    found = search.ascend(starts, 15)

    def height(directions: torch.Tensor) -> torch.Tensor:
        correlation = search.correlation(directions)
        if penalty.separable:  # each start keeps to the pair it was dealt
            norms = correlation.norm(dim=2).flatten(1)
            return norms[torch.arange(16), torch.arange(16) % norms.shape[1]]
        if search_type is GateSearch:
            return torch.linalg.svdvals(correlation.transpose(1, 2).flatten(2))[:, 0]
        return correlation.flatten(1).norm(dim=1)

    assert (height(found) >= height(starts) * (1 - 1e-9)).all()


def test_reg_max_of_a_priced_block_gives_the_zero_solution() -> None:
    images, targets = small_problem(seed=5, n=15)
    block = eq2_block(kernel_size=2, penalty="dense", gates="priced", pricing=QUICK)
    largest = block.reg_max(images, targets)
    assert block.set_params(reg=1.001 * largest).fit(images, targets).n_neurons_ == 0
    assert block.set_params(reg=0.9 * largest).fit(images, targets).n_neurons_ > 0


def test_search_finds_a_planted_direction() -> None:
    # One image, one patch a pixel row: the best u points along the only patch.
    images = torch.tensor([[[[3.0, 4.0]]]], dtype=torch.float64)
    patches = Patches(images, PatchGeometry((1, 2)))
    search = FilterSearch(patches, torch.ones(1, 1, dtype=torch.float64), DensePenalty())
    found = search.ascend(F.normalize(torch.tensor([[1.0, 0.1]], dtype=torch.float64), dim=1), 60)
    np.testing.assert_allclose(found.numpy(), [[0.6, 0.8]], atol=1e-3)  # the length of the last step
    assert float(search.correlation(found).squeeze()) == pytest.approx(5.0, rel=1e-6)


def test_a_search_on_some_images_is_scored_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    images, targets = small_problem(seed=7, n=40)
    search = PricingOptions(prove_up_to=0)
    block = eq2_block(kernel_size=2, padding=1, gates=10, reg=0.5, pricing=search)
    everything = block.fit(images, targets).certificate_.sampled_bound
    monkeypatch.setattr("cvxcnn.pricing.exploration._SEARCH_PATCHES", 90)
    some = block.fit(images, targets).certificate_
    assert some.kind == "searched"
    assert some.global_bound <= some.sampled_bound == everything


@pytest.mark.parametrize(
    ("most", "step", "images"), [(10**6, 1, 30), (64 * 30, 1, 30), (16 * 30, 2, 30), (9 * 30, 3, 30), (90, 4, 22)]
)
def test_thinned_patches(most: int, step: int, images: int) -> None:
    pixels = torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    patches = Patches(pixels, PatchGeometry(3, padding=1, pooling="sum"))
    thin, rows = thinned(patches, most, torch.Generator().manual_seed(1))
    assert thin.n_images == len(rows.unique()) == images
    assert thin.stride == (step, step)
    assert thin.n_images * thin.n_patches <= most
    kept = patches.unfold()[rows].view(images, 8, 8, 9)[:, ::step, ::step].flatten(1, 2)
    assert torch.equal(thin.unfold(), kept)
    filters = torch.randn(4, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = (kept @ filters.T).relu().mean(dim=1) * 64  # the sum over a cell, as if all places were there
    assert torch.allclose(thin.relu_features(filters)[:, 0], expected)


def test_thinned_patches_leave_every_cell_its_share() -> None:
    patches = Patches(torch.ones(50, 1, 8, 8), PatchGeometry(3, padding=1, pooling="mean", pool_cells=4))
    thin, rows = thinned(patches, 100, torch.Generator().manual_seed(1))
    assert (thin.stride, len(rows)) == ((1, 1), 1)  # every second place would leave cells of one


def test_pricing_from_thinned_patches_finds_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(60, 1, 8, 8, generator=generator, dtype=torch.float64)
    targets = images.clamp_min(0).mean(dim=(2, 3)) + images[:, :, :4].mean(dim=(2, 3)) ** 2
    options = replace(QUICK, max_rounds=3)
    block = eq2_block(
        padding=1, pooling="mean", pool_cells=2, bias=True, gates="priced", penalty="dense", reg=0.05, pricing=options
    )  # fmt: skip
    whole = block.fit(images, targets).certificate_
    monkeypatch.setattr("cvxcnn.pricing.exploration._SEARCH_PATCHES", 1000)
    monkeypatch.setattr("cvxcnn.pricing.filter_master._IMPROVE_PATCHES", 1000)
    thin = block.fit(images, targets).certificate_
    nothing = 0.5 * float(targets.square().sum())
    assert thin.objective - whole.objective < 0.1 * (nothing - whole.objective)
    assert whole.global_bound <= thin.objective


def test_constant_patches_cannot_be_whitened_but_searched() -> None:
    patches = Patches(torch.ones(40, 1, 4, 4), PatchGeometry(2))
    search = FilterSearch(patches, torch.ones(40, 1), DensePenalty())
    starts = _diverse_starts(search, 5, torch.Generator().manual_seed(0))
    assert 1 <= len(starts) <= 5
    cosines = starts @ starts.T
    assert (cosines - torch.eye(len(starts))).max() < 0.9


@pytest.mark.parametrize("gates", ["priced", 12])
@pytest.mark.parametrize("penalty", ["dense", "group"])
def test_float32_blocks_are_judged_in_float64(gates: str | int, penalty: str) -> None:
    images, targets = small_problem(seed=8, n=20)
    block = eq2_block(
        kernel_size=2, padding=1, gates=gates, penalty=penalty, reg=0.5, dtype="float32", tol=1e-4, pricing=QUICK
    ).fit(images, targets)
    expected = nonconvex_objective(block.to_torch(), images.float(), targets.float(), 0.5)
    assert block.result_.objective == pytest.approx(expected, rel=1e-6)
    assert block.result_.dual_bound <= block.result_.objective


def test_same_seed_same_result() -> None:
    images, targets = small_problem(seed=6, n=15, outputs=2)
    block = eq2_block(kernel_size=2, penalty="dense", gates="priced", reg=0.5, pricing=QUICK, random_state=3)
    first = block.fit(images, targets).predict(images)
    np.testing.assert_array_equal(first, block.fit(images, targets).predict(images))


# PricedGates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"penalty": "dense"}, {"penalty": "group"}, {"activation": "gated_relu"}])
def test_priced_is_short_for_priced_gates(options: dict) -> None:
    images, targets = small_problem(seed=10, n=15, outputs=2)
    settings = {"kernel_size": 2, "reg": 0.5, **options}
    long = eq2_block(gates=PricedGates(**asdict(QUICK)), **settings)
    short = eq2_block(gates="priced", pricing=QUICK, **settings)
    assert long.reg_max(images, targets) == short.reg_max(images, targets)
    np.testing.assert_array_equal(long.fit(images, targets).predict(images), short.fit(images, targets).predict(images))
    assert clone(long).gates == long.gates == PricedGates(**asdict(QUICK))


@pytest.mark.parametrize("seed", range(4))
def test_patterns_and_their_neighbours_reach_the_proved_optimum(seed: int) -> None:
    images, targets = small_problem(seed=seed)
    settings = {"kernel_size": (1, 2), "reg": 0.3, "tol": 1e-8}
    exact = eq2_block(gates=EnumeratedGates(), **settings).fit(images, targets)
    gates = PricedGates(**asdict(replace(QUICK, gap=1e-6, neighbours=4)))
    priced = eq2_block(gates=gates, **settings).fit(images, targets)
    assert priced.result_.objective == pytest.approx(exact.result_.objective, rel=2e-6)
    assert priced.result_.status == "optimal" and priced.certificate_.global_gap <= 2e-6
    assert len(priced.gates_) < len(exact.gates_)
    value = nonconvex_objective(priced.to_torch(), images, targets, 0.3)
    assert value == pytest.approx(priced.result_.objective, rel=1e-9)


def test_patterns_are_no_worse_than_their_filters() -> None:
    images, targets = small_problem(seed=11, n=8, outputs=2)
    settings = {"kernel_size": 2, "padding": 1, "pool_cells": 2, "bias": True, "intercept": True, "reg": 0.3}
    options = replace(QUICK, max_rounds=1)
    filters = eq2_block(gates="priced", pricing=options, **settings).fit(images, targets)
    cells = eq2_block(gates="priced", pricing=replace(options, neighbours=2), **settings).fit(images, targets)
    assert cells.result_.objective <= filters.result_.objective * (1 + 1e-6)
    assert cells.result_.relative_gap <= 1e-6
    assert cells.certificate_.global_bound <= cells.certificate_.sampled_bound
    assert nonconvex_objective(cells.to_torch(), images, targets, 0.3) == pytest.approx(cells.result_.objective)


def test_neighbours_lie_across_one_hyperplane() -> None:
    images, _ = small_problem(seed=12)
    patches = Patches(images, PatchGeometry(2))  # one patch an image, so hyperplanes are in general position
    filters = F.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    normals = hyperplanes(patches)
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(12, dtype=torch.float64))
    found = neighbours(normals, filters, 1)
    nearest = (normals @ filters.T).abs().argmin(dim=0)
    before, after = normals @ filters.T >= 0, normals @ found.T >= 0
    assert (before != after)[nearest, torch.arange(5)].all()
    assert len(distinct(patches, torch.cat([filters, found]))) > 5
    assert neighbours(normals, filters, 100).shape == (5 * 12, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pricing": QUICK}, "PricedGates brings its own options: leave pricing out"),
        ({"solver": "fista"}, 'brings its own solver: use solver="auto"'),
        ({"gates": PricedGates(starts=0)}, "starts must be at least 1; got 0"),
        ({"gates": PricedGates}, r"got the class PricedGates; pass an instance, PricedGates\(...\)"),
    ],
)
def test_bad_priced_gates(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        eq2_block(**{"kernel_size": 2, "gates": PricedGates(), **settings}).fit(*small_problem())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neighbours": -1}, "neighbours must be an int >= 0; got -1"),
        ({"starts": -1}, "starts must be an int >= 0; got -1"),
        ({"max_rounds": 0}, "max_rounds must be an int >= 1; got 0"),
        ({"gap": 0.0}, "gap must be a number >= 1e-09"),
        ({"gap": 5e-10}, "gap must be a number >= 1e-09"),
        ({"time_limit": 0.0}, "time_limit must be a positive number of seconds"),
    ],
)
def test_bad_options(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PricingOptions(**settings)


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize("settings", [
    {"penalty": "dense"}, {}, {"neighbours": 2}, {"activation": "gated_relu"},
    {"activation": "gated_relu", "penalty": "nuclear"},
], ids=["dense", "group", "patterns", "gated", "nuclear"])  # fmt: skip
def test_a_solution_without_filters_is_a_result_with_its_bound(settings: dict, loss: str) -> None:
    random = np.random.default_rng(0)
    images, targets = random.random((20, 3, 3)), random.normal(size=20)
    given = {"logistic": np.sign(targets), "softmax": np.eye(2)[(targets > 0).astype(int)]}.get(loss, targets)
    network = {key: value for key, value in settings.items() if key != "neighbours"}
    # Just below and above reg_max, with a tolerance that zero is within, and one that it isn't.
    for tol, gap, share in ((1e-2, 1e-4, 0.99), (1e-6, 1e-8, 0.9997), (0.5, 1e-4, 0.5), (1e-6, 5e-9, 1.5)):
        options = {"starts": 16, "initial_filters": 8, "max_rounds": 6, "neighbours": settings.get("neighbours", 0)}
        block = eq2_block(kernel_size=(1, 2), gates=PricedGates(gap=gap, **options), tol=tol, loss=loss, **network)
        block.set_params(reg=share * block.reg_max(images, given)).fit(images, given)
        certificate = block.certificate_
        assert block.predict(images).shape == given.shape
        assert certificate.sampled_gap <= tol and certificate.global_bound <= certificate.objective
        if share > 1:
            assert block.n_neurons_ == 0 and certificate.global_gap <= 1e-12
            assert not block.predict(images).any()


def test_a_path_of_coarse_points_ends_in_results() -> None:
    images, targets = np.random.default_rng(0).random((20, 3, 3)), np.random.default_rng(1).normal(size=20)
    for settings in ({"penalty": "dense"}, {"activation": "gated_relu"}):
        priced = PricedGates(starts=16, initial_filters=8, max_rounds=4)
        block = eq2_block(kernel_size=(1, 2), gates=priced, tol=1e-2, **settings)
        path = reg_path(images, targets, block=block, points=4, smallest=0.5)
        assert path.n_neurons[0] == 0 < path.n_neurons[-1] and (path.relative_gap <= 1e-2).all()


def test_a_bound_is_never_called_searched_without_a_search() -> None:
    images, targets = small_problem(seed=9)
    block = eq2_block(kernel_size=2, gates="priced", pricing=PricingOptions(starts=0))
    for call in (block.fit, block.reg_max):
        with pytest.raises(InputError, match="starts must be at least 1; got 0"):
            call(images, targets)
    certificate = block.set_params(gates=3).fit(images, targets).certificate_
    assert certificate.kind == "none" and np.isnan(certificate.global_bound)


@pytest.mark.slow
def test_two_digits_beat_every_adam_run_and_are_certified() -> None:
    from cvxcnn.ordinary import train_baseline

    images, targets = two_digits(40)
    inputs = images[:, None]
    block = eq2_block(pooling="mean", gates="priced", penalty="dense", pricing=PricingOptions(gap=1e-4))
    block.set_params(reg=0.05 * block.reg_max(inputs, targets)).fit(inputs, targets)
    assert block.certificate_.global_gap <= 1e-4
    patches = Patches(torch.as_tensor(inputs), PatchGeometry(pooling="mean"))
    columns = torch.as_tensor(targets)[:, None]
    best = min(train_baseline(patches, columns, block.reg, 200, seed=seed).objective for seed in range(6))
    assert block.result_.objective <= best


def test_searches_of_fewer_starts_than_cells_and_outputs() -> None:
    images = torch.randn(10, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    targets = torch.randn(10, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    block = eq2_block(
        kernel_size=2, pool_cells=2, activation="gated_relu", reg=0.5, gates=PricedGates(starts=8, max_rounds=2)
    )
    assert block.fit(images, targets).certificate_.kind == "searched"


def test_thinned_sums_are_scaled_however_they_are_computed() -> None:
    images = torch.ones(4, 1, 18, 18, dtype=torch.float64)
    patches = Patches(images, PatchGeometry(3, pooling="sum", pool_cells=2))
    thin, _ = thinned(patches, 200, torch.Generator().manual_seed(0))
    filters = torch.ones(40, patches.dim, dtype=torch.float64)
    assert thin.n_patches < patches.n_patches
    for some in (thin, thin.astype(torch.float32), thin.subset(slice(0, 1))):
        assert torch.allclose(some.relu_features(filters.to(some.dtype)).double(), patches.relu_features(filters)[:1])
        assert torch.allclose(
            some.convolved(filters.to(some.dtype), some.pool.new_zeros(some.n_images, 4, 40)).double(),
            patches.relu_features(filters)[:1],
        )
