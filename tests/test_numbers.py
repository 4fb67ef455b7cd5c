"""Numbers of numpy, and arrays and tensors without axes, are taken wherever numbers of Python are; bools are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from torch import nn

from cvxcnn import (
    ConvexCNNClassifier,
    ConvexConvBlock,
    LayerwiseCNN,
    PricedGates,
    PricingOptions,
    nonconvex_objective,
    polish,
    reg_path,
)
from cvxcnn.arrangements import (
    EnumeratedGates,
    GaussianGates,
    GradientGates,
    PatchGates,
    TrainedGates,
    arrangement_count,
    resolve,
)
from cvxcnn.arrangements.data_patches import whitening
from cvxcnn.core.checks import as_flag, as_int, as_number, is_flag, is_int, is_number, scalar
from cvxcnn.data import ImageSet, limit, one_hot, shifted, split
from cvxcnn.errors import InputError
from cvxcnn.explain import attribute
from cvxcnn.explain.sanity import sanity_check
from cvxcnn.explain.sparsity import bootstrap_interval
from cvxcnn.ordinary import train_baseline
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.program import relu_program
from cvxcnn.runs.settings import Settings, build_stack, check_settings
from cvxcnn.solvers import SOLVERS

RANDOM = np.random.default_rng(0)
IMAGES, TARGETS = RANDOM.normal(size=(12, 6, 6)), RANDOM.normal(size=12)
PATCHES = Patches(torch.from_numpy(IMAGES[:, None]), PatchGeometry(kernel_size=2))
COLUMN = torch.from_numpy(TARGETS[:, None])
LABELLED = ImageSet(RANDOM.normal(size=(12, 1, 6, 6)), np.arange(12) % 2, ("even", "odd"), "noise")
FAST = PricingOptions(starts=0)
SEARCH = PricingOptions(starts=4, ascent_steps=2, improvement_steps=2, initial_filters=2, max_rounds=1, prove_up_to=0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.AvgPool2d(5), nn.Flatten(), nn.Linear(2, 1)).double()


NETWORK = network()

INTS: dict[str, Callable[[int], Any]] = {
    "int": int,
    "numpy int64": np.int64,
    "numpy uint8": np.uint8,
    "0-d array": np.array,
    "0-d tensor": torch.tensor,
}
FLOATS: dict[str, Callable[[float], Any]] = {
    "float": float,
    "numpy float64": np.float64,
    "numpy float32": np.float32,
    "0-d array": np.array,
    "0-d tensor": lambda value: torch.tensor(value, dtype=torch.float64),
}
FLAGS: dict[str, Callable[[bool], Any]] = {"bool": bool, "numpy bool": np.bool_, "0-d array": np.array}


def block(**settings: Any) -> Any:
    given = {"gates": 3, "pricing": FAST, **settings}
    return ConvexConvBlock(**given).fit(IMAGES, TARGETS).predict(IMAGES)


def priced(**settings: Any) -> Any:
    # Gates, whose search begins without an ordinary training.
    return (
        ConvexConvBlock(activation="gated_relu", penalty="group", pricing=SEARCH, **settings)
        .fit(IMAGES, TARGETS)
        .predict(IMAGES)
    )


def stack(**settings: Any) -> Any:
    given = {"layers": 1, "block": ConvexConvBlock(gates=3, pricing=FAST), **settings}
    return LayerwiseCNN(**given).fit(IMAGES, TARGETS).predict(IMAGES)


def estimator(**settings: Any) -> Any:
    model = ConvexCNNClassifier(**{"block": ConvexConvBlock(gates=3, pricing=FAST), **settings})
    return model.fit(IMAGES, TARGETS > 0).decision_function(IMAGES)


def fitted_stack() -> LayerwiseCNN:
    return LayerwiseCNN(layers=1, block=ConvexConvBlock(gates=3, pricing=FAST)).fit(IMAGES, TARGETS)


def solved(**settings: Any) -> Any:
    program = relu_program(PATCHES, resolve(3, PATCHES).vectors, COLUMN, 1.0)
    return SOLVERS["cone_working_set"](**settings).solve(program).objective


def program_value(reg: Any) -> Any:
    program = relu_program(PATCHES, resolve(3, PATCHES).vectors, COLUMN, reg)
    return program.evaluate(torch.ones(program.design.shape(1), dtype=torch.float64)).objective


def baseline(**settings: Any) -> Any:
    given = {"reg": 1.0, "width": 2, "epochs": 2, **settings}
    return train_baseline(PATCHES, COLUMN, **given).objective


def drawn(sampler: Any) -> Any:
    return sampler.draw(PATCHES, torch.Generator().manual_seed(0), COLUMN).vectors.numpy()


def polished(**settings: Any) -> Any:
    return polish(NETWORK, IMAGES, TARGETS, **{"reg": 1.0, "pricing": SEARCH, **settings}).objective


def path(**settings: Any) -> Any:
    given = {"block": ConvexConvBlock(gates=3, pricing=FAST), "points": 2, **settings}
    return reg_path(IMAGES, TARGETS, **given).objective


def built(**settings: Any) -> Any:
    wanted = Settings(**{"gates": 3, "layers": 1, **settings})
    check_settings(wanted)
    build_stack(wanted)
    return json.dumps(wanted.__dict__)


def shape(**settings: Any) -> Any:
    return PatchGeometry(**settings)


# What is called, and for each of its integer parameters a good value and the least one; of real ones a good value.
INTEGERS: list[tuple[Callable[..., Any], str, int, int]] = [
    *((block, name, good, least) for name, good, least in [
        ("kernel_size", 2, 1), ("stride", 2, 1), ("padding", 0, 0), ("pool_cells", 1, 1), ("gates", 4, 1),
        ("random_state", 3, 0), ("max_iter", 50, 1),
    ]),
    (priced, "random_state", 3, 0),
    *((stack, name, good, 1) for name, good in [("layers", 2), ("downsample", 2), ("project", 2), ("hand_on", 2)]),
    (lambda layer: fitted_stack().predict(IMAGES, layer=layer), "layer", 0, -1),
    (lambda layer: fitted_stack().to_torch(layer)(torch.from_numpy(IMAGES[:, None])).detach(), "layer", 0, -1),
    (lambda shift: fitted_stack().predict(IMAGES, shift=shift), "shift", 1, 0),
    (estimator, "layers", 2, 1),
    (estimator, "downsample", 2, 1),
    *((shape, name, 2, 1) for name in ("kernel_size", "stride", "pool_cells")),
    (shape, "padding", 2, 0),
    *((kind, name, 7, least) for kind in (PricingOptions, PricedGates) for name, least in [
        ("starts", 0), ("ascent_steps", 1), ("additions", 1), ("improvement_steps", 1), ("initial_filters", 1),
        ("max_rounds", 1), ("prove_up_to", 0), ("neighbours", 0),
    ]),
    (lambda count: drawn(GaussianGates(count)), "count", 3, 1),
    (lambda count: drawn(PatchGates(count)), "count", 3, 1),
    (lambda dims: drawn(PatchGates(3, dims=dims)), "dims", 2, 1),
    *((lambda **given: drawn(GradientGates(**{"count": 3, "candidates": 2, "rounds": 2, **given})), name, 2, 1)
      for name in ("count", "candidates", "rounds", "images")),
    *((lambda **given: drawn(TrainedGates(**{"count": 3, "epochs": 1, **given})), name, 2, 1)
      for name in ("count", "epochs", "images")),
    (EnumeratedGates, "max_points", 9, 1),
    (lambda dim: arrangement_count(5, dim), "dim", 2, 1),
    (lambda n_points: arrangement_count(n_points, 2), "n_points", 5, 1),
    (lambda seed: resolve(3, PATCHES, seed).vectors.numpy(), "seed", 5, 0),
    (solved, "max_iter", 30, 1),
    *((baseline, name, 2, 1) for name in ("width", "epochs", "batch_size")),
    (polished, "random_state", 4, 0),
    (path, "points", 3, 2),
    (lambda layer: attribute(NETWORK, IMAGES, 0, layer=layer), "layer", 0, -1),
    (lambda draws: [step.correlation for step in sanity_check(NETWORK, IMAGES[:2], 0, "gradient", draws=draws)][1],
     "draws", 2, 1),
    (lambda n: limit(LABELLED, n, 0).labels, "n", 4, 2),
    (lambda seed: limit(LABELLED, 4, seed).images, "seed", 4, 0),
    (lambda seed: split(LABELLED.labels, 0.5, seed)[0], "seed", 4, 0),
    (lambda n_classes: one_hot(LABELLED.labels, n_classes).numpy(), "n_classes", 2, 2),
    (lambda seed: shifted(torch.from_numpy(LABELLED.images), seed).numpy(), "seed", 4, 0),
    (lambda dims: whitening(torch.eye(4), dims=dims)[1].numpy(), "dims", 2, 1),
    (lambda resamples: bootstrap_interval(TARGETS, resamples=resamples).low, "resamples", 20, 1),
    *((built, name, good, least) for name, good, least in [
        ("layers", 1, 1), ("kernel_size", 2, 1), ("padding", 0, 0), ("pool_cells", 1, 1), ("seed", 4, 0),
        ("baseline_width", 5, 1), ("rounds", 2, 1), ("starts", 2, 0), ("project", 2, 1), ("hand_on", 2, 1),
    ]),
]  # fmt: skip
REALS: list[tuple[Callable[..., Any], str, float]] = [
    *((block, name, 0.5) for name in ("reg", "tol")),
    *((priced, name, 0.5) for name in ("reg", "tol")),
    (stack, "reg_fraction", 0.5),
    (stack, "validation", 0.25),
    (estimator, "reg_fraction", 0.5),
    *((kind, name, 0.5) for kind in (PricingOptions, PricedGates) for name in ("time_limit", "gap")),
    *((lambda **given: drawn(PatchGates(3, **given)), name, 0.5) for name in ("quantile", "eps")),
    (lambda reg_fraction: drawn(TrainedGates(3, epochs=1, reg_fraction=reg_fraction)), "reg_fraction", 0.5),
    (solved, "tol", 0.5),
    *((baseline, name, 0.5) for name in ("reg", "learning_rate", "warmup", "tol")),
    (polished, "reg", 0.5),
    (polished, "tol", 0.01),
    (path, "smallest", 0.5),
    (program_value, "reg", 0.5),
    (lambda reg: nonconvex_objective(NETWORK, IMAGES, TARGETS, reg), "reg", 0.5),
    (lambda fraction: split(LABELLED.labels, fraction, 0)[0], "fraction", 0.5),
    (lambda eps: whitening(torch.eye(4), eps)[1].numpy(), "eps", 0.5),
    (lambda confidence: bootstrap_interval(TARGETS, confidence=confidence).low, "confidence", 0.5),
    *((built, name, 0.5) for name in ("reg", "reg_fraction", "validation", "tol")),
]  # fmt: skip
TRUTHS: list[tuple[Callable[..., Any], str]] = [
    *((block, name) for name in ("bias", "intercept")),
    *((stack, name) for name in ("standardize", "residual", "mirror", "crop")),
    (estimator, "standardize"),
    (shape, "bias"),
    (lambda whiten: drawn(PatchGates(3, whiten=whiten)), "whiten"),
]


def same(first: Any, second: Any) -> bool:
    if isinstance(first, (np.ndarray, torch.Tensor, float)):
        return bool(np.array_equal(np.asarray(first), np.asarray(second), equal_nan=True))
    return bool(first == second)


@pytest.mark.parametrize(("call", "name", "good", "least"), INTEGERS)
def test_every_kind_of_integer_does_the_same_and_nothing_else_is_one(
    call: Callable[..., Any], name: str, good: int, least: int
) -> None:
    expected = call(**{name: good})
    for kind, convert in INTS.items():
        assert same(call(**{name: convert(good)}), expected), kind
    # Where a None, a float or a negative number means something, it isn't among these.
    for bad in (True, np.bool_(True), float(good), np.float64(good), str(good), float("nan"), least - 1, [[good]]):
        with pytest.raises(InputError, match=r"\w"):
            call(**{name: bad})


@pytest.mark.parametrize(("call", "name", "good"), REALS)
def test_every_kind_of_real_number_does_the_same_and_nothing_else_is_one(
    call: Callable[..., Any], name: str, good: float
) -> None:
    expected = call(**{name: good})
    for kind, convert in FLOATS.items():
        assert same(call(**{name: convert(good)}), expected), kind
    for bad in (True, np.bool_(True), str(good), float("nan"), np.float64("nan"), -1.0, 1j, -float("inf")):
        with pytest.raises(InputError, match=f"{name} (must|is the part)"):
            call(**{name: bad})


@pytest.mark.parametrize(("call", "name"), TRUTHS)
def test_every_kind_of_truth_value_does_the_same_and_nothing_else_is_one(call: Callable[..., Any], name: str) -> None:
    for value in (True, False):
        expected = call(**{name: value})
        for kind, convert in FLAGS.items():
            assert same(call(**{name: convert(value)}), expected), kind
    for bad in (1, 0.0, "no", None):
        with pytest.raises(InputError, match=f"{name} must be True or False; got"):
            call(**{name: bad})


def test_pairs_and_sequences_may_be_arrays() -> None:
    assert PatchGeometry(np.array([2, 3]), (np.int64(1), 2)) == PatchGeometry((2, 3), (1, 2))
    sequences = {"downsample": [2, 1], "reg_fraction": [0.5, 0.25]}
    expected = stack(layers=2, **sequences)
    found = stack(layers=2, **{name: np.array(values) for name, values in sequences.items()})
    np.testing.assert_array_equal(found, expected)
    flat = ConvexCNNClassifier(block=ConvexConvBlock(gates=3, pricing=FAST), image_shape=np.array([6, 6]))
    np.testing.assert_array_equal(flat.fit(IMAGES.reshape(12, 36), TARGETS > 0).decision_function(IMAGES), estimator())


def test_parameters_stay_as_they_were_given_and_are_saved_as_plain_numbers(tmp_path: Path) -> None:
    given = {
        "kernel_size": np.array([2, 3]), "stride": np.int64(2), "padding": (np.uint8(1), 1), "pool_cells": np.array(2),
        "bias": np.bool_(True), "reg": np.float32(0.5), "gates": np.array(4), "tol": np.array(1e-5),
        "random_state": torch.tensor(3), "intercept": np.array(True), "max_iter": np.int32(90),
    }  # fmt: skip
    model = ConvexConvBlock(**given, pricing=PricingOptions(starts=np.int64(0)))
    assert all(clone(model).get_params()[name] is not None for name in given)
    assert all(value is given[name] for name, value in model.get_params(deep=False).items() if name in given)
    model.fit(IMAGES, TARGETS).save(tmp_path / "block")
    assert all(model.get_params(deep=False)[name] is value for name, value in given.items())
    loaded = ConvexConvBlock.load(tmp_path / "block")
    np.testing.assert_array_equal(loaded.predict(IMAGES), model.predict(IMAGES))
    plain = {"kernel_size": (2, 3), "stride": 2, "padding": (1, 1), "pool_cells": 2, "bias": True, "reg": 0.5}
    rest = {"gates": 4, "tol": 1e-5, "random_state": 3, "intercept": True, "max_iter": 90}
    assert {name: loaded.get_params()[name] for name in given} == {**plain, **rest}
    layers = LayerwiseCNN(
        layers=np.int64(2), block=ConvexConvBlock(gates=np.int64(3), pricing=FAST), downsample=np.array([2, 1]),
        reg_fraction=np.array([0.1, 0.2]), hand_on=np.array(2), mirror=np.bool_(True), standardize=np.array(True),
    ).fit(IMAGES, TARGETS)  # fmt: skip
    layers.save(tmp_path / "stack")
    np.testing.assert_array_equal(LayerwiseCNN.load(tmp_path / "stack").predict(IMAGES), layers.predict(IMAGES))


numbers = st.one_of(st.integers(-5, 5), st.floats(allow_nan=True), st.booleans())


@given(numbers)
def test_a_number_means_the_same_in_every_form(value: Any) -> None:
    for form in (value, np.array(value), np.asarray(value)[()], torch.tensor(value, dtype=_torch_type(value))):
        whole = isinstance(value, int) and not isinstance(value, bool)
        assert scalar(form) == value or value != value
        assert is_int(form) == whole
        assert is_int(form, 2, 4) == (whole and 2 <= value < 4)
        assert is_number(form) == (not isinstance(value, bool) and bool(np.isfinite(value)))
        assert is_number(form, above=0, below=1) == (not isinstance(value, bool) and 0 < value < 1)
        assert is_flag(form) == isinstance(value, bool)


def _torch_type(value: Any) -> torch.dtype:
    return {bool: torch.bool, int: torch.int64}.get(type(value), torch.float64)


def test_what_is_returned_is_pythons_own_and_what_is_refused_is_named() -> None:
    found = as_int("n", np.int8(3)), as_number("x", np.array(0.5)), as_flag("b", np.True_)
    assert [type(value) for value in found] == [int, float, bool]
    assert not is_number(10**400)
    with pytest.raises(InputError, match=r"n must be an int >= 2, the number of points; got 1\."):
        as_int("n", 1, 2, "the number of points")
    with pytest.raises(InputError, match=r"x must be a positive, finite number; got inf\."):
        as_number("x", float("inf"))
    with pytest.raises(InputError, match=r"x must be between 0 and 1; got 1\."):
        as_number("x", 1, 0, 1)
