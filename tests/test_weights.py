"""Weights of images: an image of weight 0 is as good as left out, one of weight 2 as good as there twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import digits, noise_arrays, normal
from sklearn.base import clone
from sklearn.utils.class_weight import compute_class_weight
from test_capabilities import HuberLoss
from torch import Tensor, nn

from cvxcnn import (
    ConvexCNNClassifier,
    ConvexCNNRegressor,
    ConvexConvBlock,
    LayerwiseCNN,
    PricingOptions,
    nonconvex_objective,
    polish,
    reg_path,
)
from cvxcnn.activations import Neurons
from cvxcnn.commands.train import main
from cvxcnn.data.class_weights import by_class
from cvxcnn.errors import InputError
from cvxcnn.losses import LOSSES, LogisticLoss, Loss, SoftmaxLoss, SquaredLoss, Weighted
from cvxcnn.models.projection import PatchPCA
from cvxcnn.models.standardizer import Standardizer
from cvxcnn.ordinary import train_baseline
from cvxcnn.ordinary.network import Network
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.program.problem import Problem
from cvxcnn.runs.checkpoint import read_state
from cvxcnn.runs.diagnosing import diagnose_run
from cvxcnn.solvers import SOLVERS, get_solver
from cvxcnn.theory import diagnose
from cvxcnn.theory.point import BlockPoint
from cvxcnn.theory.tangent import tangent

QUICK = PricingOptions(starts=0)
SEARCH = PricingOptions(starts=8, max_rounds=3, gap=1e-2, initial_filters=8)
N_IMAGES = 14


def suited(name: str, targets: Any) -> Any:
    """Return targets (n, 2) of the loss, made from any numbers."""
    if name == "logistic":
        return np.where(targets > 0, 1.0, -1.0)
    return np.eye(2)[(targets[:, 0] > 0).astype(int)] if name == "softmax" else targets


def drawn(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images, targets (n, 2), and weights 0, 1, 2 or 3."""
    images, targets = noise_arrays(N_IMAGES, 4, channels=1, outputs=2, seed=seed)
    return images, targets, np.random.default_rng(seed).permutation(np.arange(N_IMAGES) % 4).astype(float)


def repeated(weights: np.ndarray, *parts: np.ndarray) -> list[np.ndarray]:
    return [np.repeat(part, weights.astype(int), axis=0) for part in parts]


# The loss.


@st.composite
def weighted(draw: st.DrawFn) -> tuple[Loss, Tensor, Tensor, Tensor]:
    """Return a loss, predictions and targets (n, 2), and weights 0, 1, 2 or 3, of which one is positive."""
    rows = draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    prediction = draw(st.floats(0.1, 10)) * normal(rows, 2, seed=generator)
    weights = torch.tensor([draw(st.integers(1, 3)), *(draw(st.integers(0, 3)) for _ in range(rows - 1))])
    loss = draw(st.sampled_from([SquaredLoss(), LogisticLoss(), SoftmaxLoss(), HuberLoss()]))
    targets = torch.from_numpy(suited(loss.name, normal(rows, 2, seed=generator).numpy()))
    return loss, prediction, targets, weights


def twice_is_two(case: tuple[Loss, Tensor, Tensor, Tensor]) -> tuple[Loss, Loss, list[Tensor], list[Tensor]]:
    loss, prediction, targets, weights = case
    more = [part.repeat_interleave(weights, dim=0) for part in (prediction, targets)]
    return Weighted(loss, weights.double()), loss, [prediction, targets], more


@given(case=weighted(), cap=st.floats(0.05, 3.0))
def test_value_and_dual_value_are_those_of_repeated_images(
    case: tuple[Loss, Tensor, Tensor, Tensor], cap: float
) -> None:
    ours, plain, few, many = twice_is_two(case)
    assert ours.value(*few) == pytest.approx(plain.value(*many), rel=1e-12, abs=1e-12)
    largest = torch.full((2,), cap, dtype=torch.float64)
    found = ours.dual_value(ours.dual_point(*few), few[1], largest)
    assert found == pytest.approx(plain.dual_value(plain.dual_point(*many), many[1], largest), rel=1e-9, abs=1e-9)
    # Fenchel-Young, with equality at a multiple of one.
    dual = ours.dual_point(*few)
    whole = float(ours.dual_terms(dual * (1 - 1e-12), few[1]).sum())
    assert whole == pytest.approx(ours.value(*few) + float((dual * few[0]).sum()), rel=1e-6, abs=1e-6)


@given(case=weighted())
def test_gradient_and_curvature_are_weighted(case: tuple[Loss, Tensor, Tensor, Tensor]) -> None:
    loss, prediction, targets, weights = case
    ours = Weighted(loss, weights.double())
    leaf = prediction.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ours.tensor(leaf, targets), leaf)
    torch.testing.assert_close(ours.dual_point(prediction, targets), -gradient)
    (root, rest), (own, _) = ours.model(prediction, targets), loss.model(prediction, targets)
    if loss.separable:
        root, own = torch.diag_embed(root), torch.diag_embed(own)
    torch.testing.assert_close(torch.einsum("nop,no->np", root, rest), -gradient)
    torch.testing.assert_close(root.mT @ root, weights[:, None, None] * (own.mT @ own))


@given(st.integers(0, 2**31), st.integers(1, 3))
def test_a_section_finds_the_best_multiple_of_any_dual_value(seed: int, outputs: int) -> None:
    """The parabola's peak in closed form against a golden section over the same terms."""
    generator = torch.Generator().manual_seed(seed)
    dual, targets = normal(4, outputs, seed=generator), normal(4, outputs, seed=generator)
    largest = normal(outputs, seed=generator).abs() * 10.0 ** (4 * normal(outputs, seed=generator))
    loss = SquaredLoss()
    assert Loss.dual_value(loss, dual, targets, largest) == pytest.approx(
        loss.dual_value(dual, targets, largest), rel=1e-9, abs=1e-9
    )


# Programs, over fixed gates.

KINDS: dict[str, dict[str, Any]] = {
    "relu dense": {"penalty": "dense"},
    "relu group": {"penalty": "group"},
    "gated group": {"activation": "gated_relu", "penalty": "group"},
    "gated nuclear": {"activation": "gated_relu", "penalty": "nuclear"},
    "quadratic": {"activation": "quadratic", "penalty": "group"},
    "linear group": {"activation": "linear", "penalty": "group"},
    "linear nuclear": {"activation": "linear", "penalty": "nuclear"},
}
SLOW = {("gated nuclear", loss) for loss in ("logistic", "softmax")}
SLOW |= {(kind, "huber") for kind in KINDS if kind not in ("relu dense", "gated group", "linear nuclear")}


def block_of(kind: str, **options: Any) -> ConvexConvBlock:
    whole = kind.startswith(("quadratic", "linear"))
    gates = "priced" if whole else np.random.default_rng(3).normal(size=(4, 5))
    own = {"kernel_size": 2, "padding": 0, "pool_cells": 1, "gates": gates, "tol": 1e-8, "reg": 0.3}
    return ConvexConvBlock(**{**own, "pricing": None if whole else QUICK, **KINDS[kind], **options})


def check_both(block: ConvexConvBlock, rel: float = 1e-7) -> None:
    """Compare a fit with weights to one with images repeated, and its objective to Eq. 1 of its module."""
    images, numbers, weights = drawn()
    targets = suited(block.loss, numbers)
    more = repeated(weights, images, targets)
    ours, theirs = clone(block).fit(images, targets, weights), clone(block).fit(*more)
    assert ours.result_.status == theirs.result_.status == "optimal"
    assert ours.result_.objective == pytest.approx(theirs.result_.objective, rel=rel)
    assert ours.result_.dual_bound == pytest.approx(theirs.result_.dual_bound, rel=rel)
    assert block.reg_max(images, targets, weights) == pytest.approx(block.reg_max(*more), rel=1e-9)
    if block.activation != "gated_relu":
        decay = (4, 2) if block.activation == "quadratic" else None
        options = {"loss": block.loss, "decay": decay, "sample_weight": weights}
        eq1 = nonconvex_objective(ours.to_torch(), images, targets, ours.reg_, **options)
        assert ours.result_.objective == pytest.approx(eq1, rel=1e-10)


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax", "huber"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_so_many_images(kind: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "huber", HuberLoss)
    if (kind, loss) in SLOW:
        pytest.skip("it takes seconds, and of another penalty or loss it is the same code")
    check_both(block_of(kind, loss=loss))


@pytest.mark.parametrize("kind", KINDS)
def test_an_intercept_is_a_weighted_mean(kind: str) -> None:
    check_both(block_of(kind, intercept=True))


SOLVED = [
    ("fista", "relu dense", "squared"), ("streamed", "gated group", "squared"), ("streamed", "relu dense", "squared"),
    ("semismooth_newton", "linear nuclear", "squared"), ("cvxpy:CLARABEL", "relu group", "squared"),
    ("cvxpy:CLARABEL", "gated group", "logistic"), ("cvxpy:CLARABEL", "relu dense", "softmax"),
    ("cvxpy:SCS", "relu dense", "squared"),
]  # fmt: skip


@pytest.mark.parametrize(("solver", "kind", "loss"), SOLVED)
def test_every_solver(solver: str, kind: str, loss: str) -> None:
    images, numbers, weights = drawn()
    targets = suited(loss, numbers)
    both = {"solver": solver, "tol": 1e-4, "intercept": loss == "squared"}
    ours = block_of(kind, loss=loss, **both).fit(images, targets, weights).result_
    auto = block_of(kind, loss=loss, intercept=both["intercept"]).fit(images, targets, weights).result_
    assert ours.solver == solver and ours.status == "optimal"
    assert ours.objective == pytest.approx(auto.objective, rel=1e-4)


def test_what_a_solver_refuses_it_refuses_by_name() -> None:
    images, targets, weights = drawn()
    with pytest.raises(InputError, match="the squared loss is quadratic already"):
        block_of("relu dense", solver="proximal_newton").fit(images, targets, weights)
    with pytest.raises(InputError, match=r"intercept=True needs loss=\"squared\"; got 'logistic'"):
        block_of("relu dense", loss="logistic", intercept=True).fit(images, suited("logistic", targets), weights)
    assert set(SOLVERS) >= {name for name, *_ in SOLVED}


@settings(max_examples=8)
@given(
    st.lists(st.floats(0.05, 20), min_size=N_IMAGES, max_size=N_IMAGES),
    st.sampled_from(["relu dense", "gated group", "linear group"]),
    st.sampled_from(["squared", "logistic", "softmax"]),
    st.booleans(),
)
def test_duality_of_any_weights(numbers: list[float], kind: str, loss: str, intercept: bool) -> None:
    images, targets, _ = drawn(1)
    targets = suited(loss, targets)
    block = block_of(kind, loss=loss, intercept=intercept and loss == "squared", tol=1e-6)
    program = block.fit(images, targets, numbers).result_
    assert program.status == "optimal"
    largest = block.reg_max(images, targets, numbers)
    above = clone(block).set_params(reg=largest * (1 + 1e-9)).fit(images, targets, numbers)
    assert above.n_neurons_ == 0 or np.abs(above.neuron_norms()).max() < 1e-6
    assert clone(block).set_params(reg=0.9 * largest).fit(images, targets, numbers).n_neurons_ > 0


def test_weights_of_one_are_none_and_of_zero_are_no_images() -> None:
    images, targets, weights = drawn()
    weights = np.minimum(weights, 1.0)
    kept = weights > 0
    gates = {"gates": 6, "pricing": SEARCH}
    ours = block_of("relu dense", **gates).fit(images, targets, weights)
    theirs = block_of("relu dense", **gates).fit(images[kept], targets[kept])
    assert ours.result_.objective == theirs.result_.objective
    assert ours.certificate_ == theirs.certificate_
    np.testing.assert_array_equal(ours.predict(images), theirs.predict(images))


@pytest.mark.slow
@pytest.mark.parametrize("factor", [2.0**-40, 2.0**30])
def test_weights_have_no_unit(factor: float) -> None:
    """Weights and reg times a number are the same network, priced too."""
    images, targets, weights = drawn()
    block = block_of("relu dense", gates="priced", pricing=replace(SEARCH, max_rounds=1), reg=3.0)
    ours = clone(block).set_params(reg=3.0 * factor).fit(images, targets, weights * factor)
    theirs = clone(block).fit(images, targets, weights)
    assert ours.result_.objective == pytest.approx(factor * theirs.result_.objective, rel=1e-12)
    assert ours.certificate_.global_bound == pytest.approx(factor * theirs.certificate_.global_bound, rel=1e-12)


# Pricing, and what is trained the ordinary way.


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("relu dense", "softmax"),
        pytest.param("relu dense", "squared", marks=pytest.mark.slow),
        pytest.param("relu group", "squared", marks=pytest.mark.slow),
        pytest.param("gated group", "logistic", marks=pytest.mark.slow),
    ],
)
def test_priced_networks_and_their_certificates(kind: str, loss: str) -> None:
    images, numbers, weights = drawn()
    targets = suited(loss, numbers)
    block = block_of(kind, loss=loss, gates="priced", pricing=SEARCH, tol=1e-6, reg=2.0)
    ours, theirs = clone(block).fit(images, targets, weights), clone(block).fit(*repeated(weights, images, targets))
    assert ours.result_.objective == pytest.approx(theirs.result_.objective, rel=SEARCH.gap)
    for one, other in ((ours, theirs), (theirs, ours)):
        assert one.certificate_.kind == "searched" and one.certificate_.global_gap < 0.05
        # No bound of one is above an objective of the other: they are bounds of the same problem. Of gates there are
        # so many maxima that a search misses some.
        if kind.startswith("relu"):
            assert one.certificate_.global_bound <= other.result_.objective * (1 + 1e-9)
    if kind.startswith("relu"):
        eq1 = nonconvex_objective(ours.to_torch(), images, targets, 2.0, loss=loss, sample_weight=weights)
        assert ours.result_.objective == pytest.approx(eq1, rel=1e-10)


def test_proved_bounds_see_weighted_duals() -> None:
    images, targets, weights = drawn()
    block = ConvexConvBlock(kernel_size=(1, 2), padding=0, pool_cells=1, bias=False, reg=1.0,
                            pricing=SEARCH)  # fmt: skip
    ours, theirs = clone(block).fit(images, targets, weights), clone(block).fit(*repeated(weights, images, targets))
    assert ours.certificate_.kind == theirs.certificate_.kind == "proved"
    assert ours.certificate_.global_bound == pytest.approx(theirs.certificate_.global_bound, rel=2e-2)
    assert ours.certificate_.global_bound <= theirs.result_.objective


@pytest.mark.parametrize("loss", ["squared", "softmax"])
def test_ordinary_training_has_the_same_gradient_and_objective(loss: str) -> None:
    images, numbers, weights = drawn()
    targets = suited(loss, numbers)
    few, many = ([torch.from_numpy(part) for part in parts]
                 for parts in ((images, targets), repeated(weights, images, targets)))  # fmt: skip
    geometry = PatchGeometry(kernel_size=2, bias=True)
    kind: Loss = LOSSES[loss]()
    ours = Network(Patches(few[0][:, None], geometry), few[1], Weighted(kind, torch.from_numpy(weights)), 3, "dense")
    theirs = Network(Patches(many[0][:, None], geometry), many[1], kind, 3, "dense")
    start = ours.directions(0)
    for one, other in zip(
        ours.gradients(*start, torch.arange(len(images))), theirs.gradients(*start, torch.arange(len(many[0]))),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(one, other)
    patches, weigh = Patches(few[0][:, None], geometry), torch.from_numpy(weights)
    result = train_baseline(patches, few[1], 0.3, 8, epochs=20, loss=loss, sample_weight=weigh)
    outputs = Neurons(result.filters, result.readout, torch.zeros(2)).predict(patches.astype(result.filters.dtype))
    decay = 0.15 * float(result.filters.double().square().sum() + result.readout.double().square().sum())
    expected = Weighted(kind, weigh).value(outputs.double(), few[1]) + decay
    assert result.objective == pytest.approx(expected, rel=1e-5)


# Blocks in paths, stacks and estimators.


def test_paths_have_weighted_errors() -> None:
    images, targets, weights = drawn()
    more = repeated(weights, images, targets)
    block = block_of("relu dense", reg=None)
    options = {"block": block, "points": 4}
    ours = reg_path(images, targets, sample_weight=weights, validation=(images, targets, weights), **options)
    theirs = reg_path(*more, validation=tuple(more), **options)
    for name in ("regs", "objective", "train_error", "validation_error"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-6)


def test_polish_is_of_the_weighted_objective() -> None:
    images, targets, weights = drawn()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(3, 2)).double()
    better = polish(net, images, targets, 0.3, sample_weight=weights, pricing=SEARCH)
    before = nonconvex_objective(net, images, targets, 0.3, sample_weight=weights)
    after = nonconvex_objective(better.module, images, targets, 0.3, sample_weight=weights)
    assert (better.objective_before, better.objective) == (before, after)
    assert better.improved and better.certificate.global_bound <= after < before


@pytest.mark.parametrize(
    "options",
    [{"mirror": True, "residual": True}, {"project": 3}, {"standardize": False}],
    ids=["mirrored and residual", "projected", "as it is"],
)
def test_stacks(options: dict[str, Any]) -> None:
    images, targets, weights = drawn()
    block = block_of("relu dense", reg=None, gates=6, padding=1, tol=1e-9, random_state=1)
    stack = LayerwiseCNN(layers=2, block=block, reg_fraction=0.05, **options)
    ours, theirs = clone(stack).fit(images, targets, weights), clone(stack).fit(*repeated(weights, images, targets))
    for one, other in zip(ours.blocks_, theirs.blocks_, strict=True):
        assert one.result_.objective == pytest.approx(other.result_.objective, rel=1e-5)
    np.testing.assert_allclose(ours.predict(images), theirs.predict(images), atol=1e-3)


def test_a_stack_chooses_reg_by_weighted_errors() -> None:
    images, targets, weights = drawn()
    stack = LayerwiseCNN(layers=1, block=block_of("relu dense", reg=None), validation=0.4)
    ours = clone(stack).fit(images, targets, 1 + weights)
    assert ours.blocks_[0].reg > 0
    one = clone(stack).fit(images, targets, np.full(N_IMAGES, 2.0)).blocks_[0]
    assert one.reg == pytest.approx(2 * clone(stack).fit(images, targets).blocks_[0].reg)


def test_moments_are_weighted() -> None:
    maps, weights = normal(9, 2, 3, 3) + 2, torch.arange(9).double()
    many = maps.repeat_interleave(weights.long(), dim=0)
    ours = Standardizer.of_parts(torch.split(maps, 4), weights)
    theirs = Standardizer.of(many)
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.scale, theirs.scale)
    both = [
        PatchPCA.of(part, 2, (2, 2), (0, 0), torch.Generator().manual_seed(0), weights=weigh)
        for part, weigh in ((maps, weights), (many, None))
    ]
    for name in ("channels", "channel_bias", "directions", "bias"):
        torch.testing.assert_close(getattr(both[0], name), getattr(both[1], name))


def test_weights_of_any_kind() -> None:
    images, targets, weights = drawn()
    regressor = ConvexCNNRegressor(block=block_of("relu dense"))
    expected = regressor.fit(images, targets, weights).predict(images)
    for given_as in (weights.tolist(), weights.astype(np.int8), torch.tensor(weights), weights.astype(object)):
        np.testing.assert_array_equal(regressor.fit(images, targets, sample_weight=given_as).predict(images), expected)


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
def test_balanced_classes_are_weights_by_class(loss: str, tmp_path: Path) -> None:
    images, labels = digits(60, classes=3)
    rare = (labels != 2) | (np.arange(60) % 5 == 0)
    images, labels = images[rare], np.array(["a", "b", "c"])[labels[rare]]
    model = ConvexCNNClassifier(block=block_of("relu dense", loss=loss, reg=1.0), class_weight="balanced")
    model.fit(images, labels)
    by_hand = dict(zip(model.classes_, compute_class_weight("balanced", classes=model.classes_, y=labels), strict=True))
    named = clone(model).set_params(class_weight=by_hand).fit(images, labels)
    own = clone(model).set_params(class_weight=None).fit(images, labels, [by_hand[name] for name in labels])
    for other in (named, own):
        np.testing.assert_allclose(model.decision_function(images), other.decision_function(images), atol=1e-9)
    named.save(tmp_path)
    assert ConvexCNNClassifier.load(tmp_path).class_weight == {name: float(by_hand[name]) for name in by_hand}


def test_classes_of_no_weight() -> None:
    images, labels = digits(40, classes=3)
    model = ConvexCNNClassifier(block=block_of("relu dense"))
    model.fit(images, labels, labels != 1)
    assert model.classes_.tolist() == [0, 2]
    with pytest.raises(InputError, match="got 1 class, "):
        model.fit(images, labels, labels == 1)
    np.testing.assert_allclose(by_class("balanced", np.array([0, 0, 1]), [0, 1, 2], [1.0, 0.0, 3.0]), [2.0, 0.0, 2.0])


BAD: list[tuple[Any, str]] = [
    ([1.0] * 13, r"sample_weight must be \(n,\), one weight for each of the 14 images; got \(13,\)"),
    (np.ones((14, 1)), r"sample_weight must be \(n,\), one weight for each of the 14 images; got \(14, 1\)"),
    (2.0, r"one weight for each of the 14 images; got \(\)"),
    ([-1.0, *[1.0] * 13], "sample_weight must not be negative; got -1, for one"),
    (np.array([np.nan, *[1.0] * 13]), "sample_weight must be finite; 1 of 14"),
    (np.array([np.inf, *[1.0] * 13]), "sample_weight must be finite; 1 of 14"),
    ([0.0] * 14, "sample_weight is zero for every image"),
    (["a"] * 14, "sample_weight must be real numbers"),
    ([None, *[1.0] * 13], "sample_weight must be there for every image"),
]


@pytest.mark.parametrize(("weights", "message"), BAD, ids=range(len(BAD)))
def test_bad_weights(weights: Any, message: str) -> None:
    images, targets, _ = drawn()
    block = block_of("relu dense")
    module = block.fit(images, targets).to_torch()
    calls = [
        lambda: block.fit(images, targets, weights), lambda: block.reg_max(images, targets, weights),
        lambda: LayerwiseCNN(layers=1, block=block).fit(images, targets, weights),
        lambda: ConvexCNNRegressor(block=block).fit(images, targets, weights),
        lambda: ConvexCNNClassifier(block=block).fit(images, targets[:, 0] > 0, weights),
        lambda: reg_path(images, targets, block=block, points=2, sample_weight=weights),
        lambda: nonconvex_objective(module, images, targets, 0.3, sample_weight=weights),
        lambda: diagnose(block, images, targets, sample_weight=weights),
        lambda: polish(module, images, targets, 0.3, sample_weight=weights),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize(
    ("given_as", "message"),
    [
        ("equal", "class_weight must be None, \"balanced\", or a dict from classes to weights; got 'equal'"),
        ([1, 2], "class_weight must be None"),
        ({0: -1.0, 1: 1.0}, "class_weight must have a finite number >= 0 for each class; got -1.0 for 0"),
        ({0: "much", 1: 1.0}, "class_weight must have a finite number >= 0 for each class; got 'much' for 0"),
        ({0: 1.0, 7: 2.0}, "class_weight has a weight of 7, which is no class, and none of 1. The classes are 0, 1"),
    ],
)
def test_bad_class_weights(given_as: Any, message: str) -> None:
    images, labels = digits(20, classes=2)
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        ConvexCNNClassifier(block=block_of("relu dense"), class_weight=given_as).fit(images, labels)


# What is known of a trained block, and runs.


def test_a_weighted_optimum_is_a_stationary_point_and_kernel_ridge() -> None:
    images, targets, weights = drawn()
    block = block_of("relu dense", gates="priced", pricing=SEARCH)
    block.fit(images, targets, weights)
    found = diagnose(block, images, targets, sample_weight=weights).blocks[0]
    assert found.objective == pytest.approx(block.result_.objective, rel=1e-9)
    assert "Eq. 1 of the convex block isn't the one that was stored" not in " ".join(found.measured)
    kept = weights > 0
    patches = Patches(torch.from_numpy(images[kept])[:, None],
                      block.geometry_)  # fmt: skip
    neurons, loss = block.neurons_, Weighted(SquaredLoss(), torch.from_numpy(weights[kept]))
    point = BlockPoint(patches, torch.from_numpy(targets[kept]), neurons.filters, neurons.readout, block.reg_, loss)
    more = [torch.from_numpy(part) for part in repeated(weights, images, targets)]
    other = BlockPoint(Patches(more[0][:, None], block.geometry_), more[1],
                       neurons.filters, neurons.readout, block.reg_, SquaredLoss())  # fmt: skip
    ours, theirs = tangent(point, 1.0), tangent(other, 1.0)
    for name in ("rate", "rate_measured", "ridge_error", "objective_error", "degrees_of_freedom"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-6, abs=1e-9), name
    torch.testing.assert_close(point.value_and_gradient(*point.weights)[0], other.value_and_gradient(*other.weights)[0])


def test_a_run_weighs_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvxcnn.runs.run.drawings", dict)
    monkeypatch.setattr("cvxcnn.runs.diagnosing.write_report", lambda folder: None)
    images, labels = digits(60, classes=3)
    rare = (labels != 2) | (np.arange(60) % 3 == 0)
    parts = {"x_train": images[rare], "y_train": labels[rare], "x_test": images[:20], "y_test": labels[:20]}
    np.savez(tmp_path / "set.npz", **parts)
    out = tmp_path / "out"
    argv = ["--data", str(tmp_path / "set.npz"), "--output", str(out), "--layers", "2", "--gates", "6", "--starts", "0",
            "--class-weight", "balanced", "--baseline-epochs", "2", "--baseline-width", "6", "--quiet"]  # fmt: skip
    assert main(argv) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["settings"]["class_weight"] == "balanced"
    stack = LayerwiseCNN.load(out)
    weights = by_class("balanced", labels[rare], range(3))
    (_, inputs), _ = stack.layer_inputs(images[rare])
    eq1 = nonconvex_objective(
        stack.blocks_[0].to_torch(), inputs, np.eye(3)[labels[rare]], stack.blocks_[0].reg_, sample_weight=weights
    )
    layer = summary["layers"][0]
    assert layer["convex"]["objective"] == pytest.approx(eq1, rel=1e-9)
    neurons = read_state(out).rivals["nonconvex"][0].double()
    filters, readout = neurons.filters, neurons.readout
    assert not bool(neurons.intercept.any())
    rival = neurons.predict(Patches(inputs, stack.blocks_[0].geometry_))
    loss = Weighted(SquaredLoss(), torch.from_numpy(weights)).value(rival, torch.eye(3).double()[labels[rare]])
    decay = 0.5 * float(stack.blocks_[0].reg_ * (filters.square().sum() + readout.square().sum()))
    assert layer["nonconvex"]["objective"] == pytest.approx(loss + decay, rel=1e-5)
    assert main([*argv[:2], "--output", str(tmp_path / "other"), "--class-weight", "even"]) == 2
    found = diagnose_run(out)["blocks"][0]
    assert not any("isn't the one that was stored" in text for text in found["measured"])


def test_programs_of_weighted_squared_loss_are_plain_ones_for_solvers() -> None:
    images, targets, weights = drawn()
    patches = Patches(torch.from_numpy(images)[:, None],
                      PatchGeometry(kernel_size=2))  # fmt: skip
    loss = Weighted(SquaredLoss(), torch.from_numpy(weights))
    program = Problem(patches, torch.from_numpy(targets), 0.3, loss=loss, intercept=True).over_filters(
        torch.nn.functional.normalize(normal(3, patches.dim), dim=1)
    )
    plain = program.unweighted()
    assert plain.loss.weights is None and plain.unweighted() is plain
    point = normal(*program.zeros().shape)
    ours, theirs = program.evaluate(point), plain.evaluate(point)
    for name in ("objective", "dual_bound", "rounding"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-12)
    torch.testing.assert_close(ours.intercepts, theirs.intercepts)
    assert program.reg_max() == pytest.approx(plain.reg_max(), rel=1e-12)
    solved = get_solver("auto", program, tol=1e-9).solve(program)
    assert program.evaluate(solved.weights).relative_gap <= 1e-8
