"""The unit of targets, images and reg does not matter: the same network in other units, from every solver."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from eq2 import eq2_block
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import noise_arrays
from torch import nn

from cvxcnn import ConvexCNNRegressor, ConvexConvBlock, PricedGates, nonconvex_objective
from cvxcnn.arrangements import PatchGates
from cvxcnn.losses import LogisticLoss, SquaredLoss
from cvxcnn.models.path import reg_path
from cvxcnn.models.polish import polish
from cvxcnn.ordinary import train_baseline
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.pricing.certificate import Certificate
from cvxcnn.pricing.options import PricingOptions
from cvxcnn.program.cones import Cones
from cvxcnn.program.design import FilterDesign
from cvxcnn.program.units import Units, power_of_two, unit_rows

NO_SEARCH = PricingOptions(starts=0)
SMALL = PricedGates(starts=16, initial_filters=8, max_rounds=6, gap=1e-3, prove_up_to=0)
SETTINGS: dict[str, dict[str, Any]] = {
    "relu": {},
    "gated": {"activation": "gated_relu"},
    "nuclear": {"activation": "gated_relu", "penalty": "nuclear"},
    "dense": {"penalty": "dense"},
}
COMBINATIONS = [
    ("relu", "cone_working_set"), ("relu", "cvxpy:CLARABEL"), ("gated", "working_set"), ("gated", "fista"),
    ("gated", "streamed"), ("gated", "cvxpy:CLARABEL"), ("nuclear", "fista"), ("nuclear", "streamed"),
    ("nuclear", "cvxpy:CLARABEL"), ("dense", "working_set"), ("dense", "fista"), ("dense", "streamed"),
    ("dense", "cvxpy:CLARABEL"), ("dense", "cvxpy:SCS"),
]  # fmt: skip
# Powers of ten and of two from 1e-12 to 1e12.
scales = st.one_of(
    st.integers(-12, 12).map(lambda power: 10.0**power), st.integers(-40, 40).map(lambda power: 2.0**power)
)


def data(n: int = 14) -> tuple[np.ndarray, np.ndarray]:
    images, noise = noise_arrays(n, 4, seed=3)
    return images, np.maximum(images[:, 1:] - images[:, :-1], 0).sum(axis=(1, 2)) + noise


def fitted(kind: str, images: np.ndarray, targets: np.ndarray, reg: float, **options: Any) -> ConvexConvBlock:
    base = {"kernel_size": 2, "gates": 6, "pricing": NO_SEARCH, **SETTINGS[kind]}
    return eq2_block(reg=reg, **{**base, **options}).fit(images, targets)


def same(found: np.ndarray, expected: np.ndarray, rel: float = 2e-3) -> None:
    assert np.abs(found - expected).max() <= rel * np.abs(expected).max()
    assert np.abs(expected).max() > 0


@pytest.mark.parametrize(("kind", "solver"), COMBINATIONS)
@settings(max_examples=6)
@given(targets_scale=scales, images_scale=scales)
def test_every_solver_gives_the_same_network_in_other_units(
    kind: str, solver: str, targets_scale: float, images_scale: float
) -> None:
    images, targets = data()
    reg = 0.05 * eq2_block(kernel_size=2, gates=6, **SETTINGS[kind]).reg_max(images, targets)
    expected = fitted(kind, images, targets, reg, solver=solver)
    found = fitted(
        kind, images_scale * images, targets_scale * targets, images_scale * targets_scale * reg, solver=solver
    )
    assert found.result_.status == expected.result_.status == "optimal"
    assert found.result_.objective == pytest.approx(targets_scale**2 * expected.result_.objective, rel=1e-5)
    same(found.predict(images_scale * images) / targets_scale, expected.predict(images))
    assert found.n_neurons_ == expected.n_neurons_ or solver.startswith("cvxpy")


@pytest.mark.parametrize("kind", ["relu", "gated", "nuclear", "dense"])
@pytest.mark.parametrize("loss", ["logistic", "softmax"])
@settings(max_examples=4)
@given(scale=scales)
def test_other_losses_give_the_same_network_for_images_in_another_unit(kind: str, loss: str, scale: float) -> None:
    images, targets = data()
    classes = (targets > np.median(targets)).astype(int)
    labels = np.eye(2)[classes] if loss == "softmax" else 2.0 * classes - 1
    reg = 0.1 * eq2_block(kernel_size=2, gates=6, loss=loss, **SETTINGS[kind]).reg_max(images, labels)
    expected = fitted(kind, images, labels, reg, loss=loss)
    found = fitted(kind, scale * images, labels, scale * reg, loss=loss)
    assert found.result_.status == expected.result_.status == "optimal"
    predictions = found.predict(scale * images), expected.predict(images)
    if loss == "softmax":  # what all outputs have in common changes nothing, and need not be unique
        predictions = predictions[0] @ [1.0, -1.0], predictions[1] @ [1.0, -1.0]
    same(*predictions)


@pytest.mark.parametrize("kind", ["relu", "gated", "dense"])
@pytest.mark.parametrize(("targets_scale", "images_scale"), [(1e-12, 1.0), (2.0**36, 2.0**-30), (1.0, 1e12)])
def test_priced_networks_are_the_same_in_other_units(kind: str, targets_scale: float, images_scale: float) -> None:
    images, targets = data()
    block = eq2_block(kernel_size=2, gates=SMALL, **SETTINGS[kind])
    reg = 0.2 * block.reg_max(images, targets)
    largest = block.reg_max(images_scale * images, targets_scale * targets)
    assert largest == pytest.approx(5 * reg * images_scale * targets_scale, rel=1e-3)
    heard: list[float] = []
    expected = block.set_params(reg=reg).fit(images, targets).certificate_
    block.set_params(reg=reg * images_scale * targets_scale).fit(
        images_scale * images, targets_scale * targets, callback=lambda progress: heard.append(progress.objective)
    )
    found, unit = block.certificate_, targets_scale**2
    assert found.objective == pytest.approx(unit * expected.objective, rel=2e-3)
    assert found.global_bound <= found.objective and found.sampled_bound <= found.objective * (1 + 1e-9)
    assert heard[-1] == pytest.approx(found.objective, rel=1e-3)
    residual = block.predict(images_scale * images) - targets_scale * targets
    assert 0.5 * residual @ residual < found.objective < 0.5 * unit * targets @ targets
    assert block.result_.relative_gap <= 1e-6


@pytest.mark.parametrize("kind", ["relu", "gated", "dense"])
def test_powers_of_two_leave_a_priced_network_the_same_to_the_last_bit(kind: str) -> None:
    images, targets = data()
    block = eq2_block(kernel_size=2, gates=SMALL, **SETTINGS[kind])
    found = []
    for s, t in ((1.0, 1.0), (2.0**-30, 2.0**7), (2.0**11, 2.0**-39)):
        block.set_params(reg=3.0 * s * t).fit(s * images, t * targets)
        found.append((block.certificate_.objective / t**2, (block.result_.weights * (s / t)).tolist()))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("scale", [1e-6, 2.0**-20, 1e9])
def test_a_path_and_a_regressor_are_the_same_in_other_units(scale: float) -> None:
    images, targets = data(30)
    block = eq2_block(kernel_size=2, gates=6, reg=None, pricing=NO_SEARCH)
    paths = [reg_path(images, s * targets, block=block, points=4) for s in (1.0, scale)]
    assert np.allclose(paths[1].regs, scale * paths[0].regs)
    assert np.allclose(paths[1].objective, scale**2 * paths[0].objective, rtol=1e-5)
    assert paths[1].n_neurons.tolist() == paths[0].n_neurons.tolist()
    for standardize in (True, False):
        models = [
            ConvexCNNRegressor(block=block, layers=2, standardize=standardize).fit(images, s * targets)
            for s in (1.0, scale)
        ]
        same(models[1].predict(images) / scale, models[0].predict(images), rel=1e-2)
    same(
        ConvexCNNRegressor(block=block).fit(scale * images, targets).predict(scale * images),
        ConvexCNNRegressor(block=block).fit(images, targets).predict(images),
    )


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_polish_improves_a_network_in_any_unit(scale: float) -> None:
    images, targets = data(20)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 2, bias=False), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(4, 1, bias=False)
    ).double()
    options = replace(PricingOptions(starts=16, max_rounds=20, gap=1e-3), prove_up_to=0)
    expected = polish(net, images, targets, 0.5, pricing=options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= scale**0.5
    found = polish(net, images, scale * targets, 0.5 * scale, pricing=options)
    assert found.objective_before == pytest.approx(scale**2 * expected.objective_before)
    assert found.improved and found.objective == pytest.approx(scale**2 * expected.objective, rel=5e-3)
    assert found.objective == pytest.approx(
        nonconvex_objective(found.module, images, scale * targets, 0.5 * scale), rel=1e-9
    )


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(("targets_scale", "images_scale"), [(1e-9, 1.0), (1e8, 1e-6), (2.0**-24, 2.0**20)])
def test_ordinary_training_is_the_same_in_other_units(
    optimizer: str, targets_scale: float, images_scale: float
) -> None:
    images, targets = (torch.from_numpy(array) for array in data())
    results = []
    for s, t in ((1.0, 1.0), (images_scale, targets_scale)):
        patches, heard = Patches(s * images[:, None], PatchGeometry(2)), [0.0]
        results.append(
            train_baseline(
                patches, t * targets[:, None], 0.5 * s * t, 6, optimizer=optimizer, epochs=30, seed=1,
                callback=lambda epoch, seconds, objective, heard=heard: heard.append(objective),
            )
        )  # fmt: skip
        assert heard[-1] == results[-1].history[-1][1] == results[-1].objective
        design = FilterDesign(patches, results[-1].filters)
        residual = design.predict(results[-1].readout.unsqueeze(2)) - t * targets[:, None]
        squares = results[-1].filters.square().sum() + results[-1].readout.square().sum()
        value = 0.5 * residual.square().sum() + 0.25 * s * t * squares
        assert results[-1].objective == pytest.approx(float(value), rel=1e-9)
    one, other = results
    assert other.objective == pytest.approx(targets_scale**2 * one.objective, rel=1e-3)
    power = 0.5 if optimizer == "adam" else 1.0
    unit = (targets_scale / images_scale) ** power / (1.0 if optimizer == "adam" else targets_scale**2)
    assert other.learning_rate == pytest.approx(unit * one.learning_rate, rel=1e-4)


@settings(max_examples=10)
@given(vector_scale=scales, patch_scale=scales)
def test_cones_have_no_unit(vector_scale: float, patch_scale: float) -> None:
    images, _ = data(6)
    gates = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vector = np.array([0.3, -1.0, 0.7, 0.2])
    found = []
    for s, p in ((1.0, 1.0), (vector_scale, patch_scale)):
        cones = Cones(Patches(torch.from_numpy(p * images)[:, None], PatchGeometry(2)), gates)
        found.append([part / s for part in (cones.project(0, s * vector)[0], *cones.decompose(1, s * vector))])
    for one, other in zip(*found, strict=True):
        assert np.allclose(one, other, atol=1e-9 * max(1.0, float(np.abs(one).max())))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_gates_from_patches_have_no_unit(scale: float) -> None:
    images, targets = data()
    blocks = [fitted("relu", s * images, targets, 0.5 * s, gates=PatchGates(6)) for s in (1.0, scale)]
    same(blocks[1].predict(scale * images), blocks[0].predict(images))


def test_targets_of_zero_have_zero_for_a_solution_with_no_gap() -> None:
    images, targets = data()
    for kind in SETTINGS:
        block = fitted(kind, images, 0 * targets, 1.0)
        assert (block.result_.objective, block.result_.relative_gap, block.n_neurons_) == (0.0, 0.0, 0)
        assert block.result_.status == "optimal"
    assert Certificate(0.0, 0.0, 0.0, "proved").global_gap == 0.0


def test_units_are_the_nearest_powers_of_two() -> None:
    geometry, ones = PatchGeometry(2), torch.ones(3, 1, 4, 4, dtype=torch.float64)
    near = Units.of(Patches(1.4 * ones, geometry), 0.75 * torch.ones(3, 1), SquaredLoss())
    assert near == Units() and near.scaled(patches := Patches(ones, geometry)) is patches
    far = Units.of(Patches(1e-9 * ones, geometry), 1e9 * torch.ones(3, 1), SquaredLoss())
    assert (far.images, far.targets, far.weights) == (2.0**-30, 2.0**30, 2.0**60)
    # A constant in each patch is a unit of its own, and classes have none.
    constant = Patches(1e-9 * ones, PatchGeometry(2, bias=True))
    assert Units.of(constant, 1e9 * torch.ones(3, 1), LogisticLoss()) == Units()
    assert power_of_two(float("inf")) == power_of_two(float("nan")) == 1.0
    assert torch.equal(unit_rows(torch.tensor([[3e-200, 4e-200], [0.0, 0.0]], dtype=torch.float64))[1], torch.zeros(2))
