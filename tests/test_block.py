"""The block: Eq. 1 of its torch module, predictions, certificates, and what it refuses."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from eq2 import eq2_block
from numpy.testing import assert_allclose
from problems import noise_arrays
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from cvxcnn import ConvexConvBlock, LayerwiseCNN, nonconvex_objective
from cvxcnn.arrangements import EnumeratedGates, GaussianGates, PatchGates
from cvxcnn.errors import InputError, SolverError
from cvxcnn.patches import Patches
from cvxcnn.pricing.options import PricingOptions
from cvxcnn.solvers import Progress

NO_search = PricingOptions(starts=0)
QUICK = PricingOptions(starts=8, ascent_steps=10, improvement_steps=10, max_rounds=3, gap=1e-2, prove_up_to=0)


data = partial(noise_arrays, n=12, side=5, mean=0.5)


def block(**options: Any) -> ConvexConvBlock:
    return eq2_block(**{"kernel_size": 2, "gates": 4, "reg": 0.5, "pricing": NO_search, **options})


def module_outputs(module: nn.Module, images: np.ndarray) -> np.ndarray:
    inputs = torch.from_numpy(images if images.ndim == 4 else images[:, None])
    with torch.no_grad():
        return np.asarray(module(inputs).numpy())


# Options, channels, outputs.
SETTINGS: list[tuple[dict[str, Any], int, int]] = [
    ({}, 1, 1),
    ({"pooling": "mean", "pool_cells": 2, "bias": True}, 2, 1),
    ({"pool_cells": 3, "intercept": True}, 2, 3),  # maps of 4 x 4: cells that overlap
    ({"pool_cells": 3, "pooling": "mean", "padding": 1, "stride": 2}, 1, 2),
    ({"stride": (2, 1), "padding": (0, 1), "pool_cells": 2, "bias": True, "intercept": True}, 2, 2),
]
every_setting = pytest.mark.parametrize(("options", "channels", "outputs"), SETTINGS)
ACCEPTED = {"group": ["auto", "cvxpy:CLARABEL", "cvxpy:SCS"], "dense": ["auto", "fista", "cvxpy:CLARABEL", "cvxpy:SCS"]}
PAIRS = [(penalty, solver) for penalty, solvers in ACCEPTED.items() for solver in solvers]


# The first claim of the package: Eq. 1 of the exported module is the convex program's value --------------------------


@every_setting
@pytest.mark.parametrize(("penalty", "solver"), PAIRS)
def test_eq1_of_the_module(options: dict[str, Any], penalty: str, solver: str, channels: int, outputs: int) -> None:
    images, targets = data(channels=channels, outputs=outputs)
    # It holds however accurate the solver is, so SCS need not take long.
    tol = 1e-4 if solver == "cvxpy:SCS" else 1e-6
    fitted = block(penalty=penalty, solver=solver, tol=tol, **options).fit(images, targets)
    module = fitted.to_torch()
    value = nonconvex_objective(module, images, targets, fitted.reg)
    assert value == pytest.approx(fitted.result_.objective, rel=1e-6)
    prediction = fitted.predict(images)
    assert prediction.shape == targets.shape
    assert_allclose(module_outputs(module, images).reshape(targets.shape), prediction, rtol=0, atol=1e-8)
    # On images it has never seen, too.
    fresh = np.random.default_rng(1).normal(size=(7, *images.shape[1:]))
    expected = fitted.predict(fresh)
    assert_allclose(module_outputs(module, fresh).reshape(expected.shape), expected, rtol=0, atol=1e-8)
    assert fitted.result_.violation <= 1e-3
    assert fitted.n_neurons_ == len(fitted.neurons_) > 0


def test_eq1_of_an_inaccurate_solution() -> None:
    """A solver that stops early still gives a feasible network and a bound that holds."""
    images, targets = data()
    exact = block(tol=1e-9).fit(images, targets).result_
    for options in ({"solver": "cone_working_set"}, {"solver": "fista", "penalty": "dense"}):
        fitted = block(max_iter=1, reg=0.05, tol=1e-9, **options).fit(images, targets)
        value = nonconvex_objective(fitted.to_torch(), images, targets, 0.05)
        assert value == pytest.approx(fitted.result_.objective, rel=1e-9)
        assert fitted.result_.status == "iteration_limit"
    rough = block(solver="cvxpy:SCS", tol=1e-1).fit(images, targets)
    value = nonconvex_objective(rough.to_torch(), images, targets, 0.5)
    assert value == pytest.approx(rough.result_.objective, rel=1e-9)
    assert rough.result_.dual_bound <= exact.objective <= value + 1e-9


@pytest.mark.parametrize("penalty", ["group", "dense"])
def test_priced_block(penalty: str) -> None:
    images, targets = data(outputs=2)
    seen: list[Progress] = []
    fitted = block(gates="priced", penalty=penalty, pricing=QUICK).fit(images, targets, callback=seen.append)
    value = nonconvex_objective(fitted.to_torch(), images, targets, 0.5)
    assert value == pytest.approx(fitted.result_.objective, rel=1e-6)
    assert fitted.certificate_.kind == "searched"
    assert fitted.certificate_.global_bound <= fitted.result_.objective
    assert seen and fitted.result_.solver == "priced"


def test_module_is_a_plain_network() -> None:
    images, targets = data()
    fitted = block().fit(images, targets)
    module = fitted.to_torch()
    assert [type(part) for part in module] == [nn.Conv2d, nn.ReLU, nn.AvgPool2d, nn.Flatten, nn.Linear]
    assert module.linear.bias is None and module.conv.bias is None
    maps = module.relu(module.conv(torch.from_numpy(images[:, None])))
    assert_allclose(fitted.transform(images), maps.detach().numpy(), atol=1e-12)
    assert fitted.transform(images).shape == (12, fitted.n_neurons_, 4, 4)


# Gated networks ------------------------------------------------------------------------------------------------------


@every_setting
@pytest.mark.parametrize("penalty", ["group", "nuclear"])
def test_gated_module_and_decomposition(options: dict[str, Any], penalty: str, channels: int, outputs: int) -> None:
    images, targets = data(channels=channels, outputs=outputs)
    fitted = block(activation="gated_relu", penalty=penalty, tol=1e-4, **options).fit(images, targets)
    prediction = fitted.predict(images)
    loss = 0.5 * ((prediction - targets) ** 2).sum()
    penalised = fitted.result_.objective - loss
    assert penalised > 0
    fresh = np.random.default_rng(1).normal(size=(7, *images.shape[1:]))
    for inputs in (images, fresh):
        expected = fitted.predict(inputs)
        found = module_outputs(fitted.to_torch(), inputs).reshape(expected.shape)
        assert_allclose(found, expected, rtol=0, atol=1e-8)
    network = fitted.decompose(images)
    assert sum(isinstance(part, nn.ReLU) for part in network) == 1
    found = module_outputs(network, images).reshape(prediction.shape)
    assert_allclose(found, prediction, rtol=0, atol=1e-8)
    # The two parts of a decomposed filter are longer than it.
    if penalty == "group":
        assert nonconvex_objective(network, images, targets, 0.5) >= fitted.result_.objective - 1e-9
    assert fitted.transform(images).shape[:2] == (12, fitted.n_neurons_)


def test_gated_is_a_lower_bound_on_relu() -> None:
    images, targets = data()
    relu = block(tol=1e-8).fit(images, targets).result_
    gated = block(tol=1e-8, activation="gated_relu").fit(images, targets).result_
    assert gated.objective <= relu.objective + 1e-8


def test_decompose_refuses_relu_blocks_and_other_images() -> None:
    images, targets = data()
    with pytest.raises(InputError, match='decompose is for activation="gated_relu"'):
        block().fit(images, targets).decompose(images)
    gated = block(activation="gated_relu").fit(images, targets)
    with pytest.raises(InputError, match="images must have the shape that the block was fitted on"):
        gated.decompose(images[:, 1:])


def test_decompose_on_a_hyperplane() -> None:
    images = np.array([[[1.0, 0.0]], [[0.0, -1.0]], [[1.0, 1.0]], [[2.0, -1.0]]])
    gated = block(kernel_size=(1, 2), gates=[[1.0, 0.0]], activation="gated_relu", reg=0.01)
    gated.fit(images, [0.0, -3.0, 3.0, -3.0])
    with pytest.raises(InputError, match="lies on the hyperplane of a patch"):
        gated.decompose(images)


@pytest.mark.parametrize("activation", ["relu", "gated_relu"])
@pytest.mark.parametrize("intercept", [False, True])
def test_large_reg_gives_a_constant(activation: str, intercept: bool) -> None:
    images, targets = data(outputs=2)
    fitted = block(activation=activation, reg=1e6, intercept=intercept).fit(images, targets)
    expected = np.tile(targets.mean(axis=0) * intercept, (12, 1))
    assert fitted.n_neurons_ == 0
    assert_allclose(fitted.predict(images), expected, atol=1e-12)
    assert_allclose(module_outputs(fitted.to_torch(), images), expected, atol=1e-12)
    assert fitted.transform(images).shape == (12, 1, 4, 4)
    if activation == "gated_relu":
        assert_allclose(module_outputs(fitted.decompose(images), images), expected, atol=1e-12)


# Certificates --------------------------------------------------------------------------------------------------------


def plane() -> tuple[np.ndarray, np.ndarray]:
    """Return images whose patches lie in the plane, so that all patterns can be enumerated."""
    return noise_arrays(6, (1, 4), seed=5)


def test_enumerated_patterns_are_a_proof() -> None:
    images, targets = plane()
    everything = block(kernel_size=(1, 2), gates=EnumeratedGates(), tol=1e-8).fit(images, targets)
    certificate = everything.certificate_
    assert (certificate.kind, certificate.n_searched) == ("proved", 0)
    assert certificate.global_bound == everything.result_.dual_bound
    assert "best of all networks (proved)" in str(certificate)
    # No sample of gates and no priced network is below the bound, and pricing comes close.
    few = block(kernel_size=(1, 2), gates=3).fit(images, targets)
    assert few.result_.objective >= certificate.global_bound - 1e-9
    priced = block(kernel_size=(1, 2), gates="priced", penalty="dense", pricing=PricingOptions(gap=1e-4))
    objective = priced.fit(images, targets).result_.objective
    assert certificate.global_bound - 1e-9 <= objective <= certificate.objective * 1.001


def test_what_is_not_a_proof() -> None:
    images, targets = plane()
    search = PricingOptions(starts=8, ascent_steps=5, prove_up_to=0)
    searched = block(kernel_size=(1, 2), gates=4, pricing=search).fit(images, targets)
    certificate = searched.certificate_
    # One batch of starts, or up to 64 of so few patches while more maxima are expected.
    assert certificate.kind == "searched" and certificate.n_searched in range(8, 8 * 64 + 1, 8)
    assert certificate.global_bound <= certificate.sampled_bound + 1e-12
    assert f"if none of the directions that a search from {certificate.n_searched} starts missed" in str(certificate)
    none = block(kernel_size=(1, 2), gates=4).fit(images, targets).certificate_
    assert none.kind == "none" and np.isnan(none.global_bound) and "not compared" in str(none)
    # Filters are not patterns: enumerated directions prove nothing about other filters.
    dense = block(kernel_size=(1, 2), gates=EnumeratedGates(), penalty="dense").fit(images, targets)
    assert dense.certificate_.kind == "none"


def test_enumerated_cells_are_no_proof_for_gated_networks() -> None:
    """D counts x . g = 0 as active, so that the zero gate has a pattern that no open cell of the arrangement has."""
    images, targets = np.array([[[1.0]], [[-1.0]]]), [1.0, -1.0]
    options = {"kernel_size": 1, "activation": "gated_relu", "reg": 0.1}
    cells = block(gates=EnumeratedGates(), **options).fit(images, targets)
    more = block(gates=[[1.0], [-1.0], [0.0]], **options).fit(images, targets)
    assert more.result_.objective < cells.result_.dual_bound
    assert cells.certificate_.kind != "proved"


# Estimator behaviour -------------------------------------------------------------------------------------------------


def test_clone_and_parameters() -> None:
    options = {"gates": PatchGates(5), "reg": 2.0, "solver": "cvxpy:SCS", "pricing": QUICK}
    original = eq2_block(**options)
    copy = clone(original)
    assert copy.get_params() == original.get_params()
    assert copy.set_params(reg=3.0, kernel_size=2).get_params()["reg"] == 3.0
    assert original.reg == 2.0
    with pytest.raises(TypeError):
        ConvexConvBlock(3)  # type: ignore[misc]


def test_fit_sets_only_underscored_attributes_and_returns_itself() -> None:
    images, targets = data()
    fitted = block()
    before = set(vars(fitted))
    assert fitted.fit(images, targets) is fitted
    assert all(name.endswith("_") for name in set(vars(fitted)) - before)


@pytest.mark.parametrize("options", [{}, {"gates": PatchGates(4), "bias": True}, {"gates": "priced", "pricing": QUICK}])
def test_a_seed_means_one_result(options: dict[str, Any]) -> None:
    images, targets = data()
    first, second = (block(**options).fit(images, targets) for _ in range(2))
    np.testing.assert_array_equal(first.gates_, second.gates_)
    assert_allclose(first.predict(images), second.predict(images), rtol=0, atol=1e-12)
    if options.get("gates") != "priced":
        assert not np.array_equal(first.gates_, block(random_state=1, **options).fit(images, targets).gates_)


def test_refitting_forgets() -> None:
    images, targets = data()
    refitted = block().fit(images[:6, :4, :4], targets[:6]).fit(images, targets)
    assert_allclose(refitted.predict(images), block().fit(images, targets).predict(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"penalty": "dense"},
        {"penalty": "dense", "gates": "priced", "pricing": QUICK},
        {"activation": "gated_relu"},
        {"activation": "gated_relu", "penalty": "nuclear"},
        {"intercept": True, "bias": True, "pool_cells": 3},
    ],
)
def test_float32(options: dict[str, Any]) -> None:
    images, targets = data(outputs=2)
    double = block(tol=1e-4, **options).fit(images, targets)
    single = block(tol=1e-4, dtype="float32", **options).fit(images, targets)
    assert single.result_.status == "optimal"
    assert single.predict(images).dtype == np.float32
    # Rounding decides which filters a short search finds: such objectives agree as far as they are known to be optimal.
    known = double.certificate_.global_gap if options.get("gates") == "priced" else 0.0
    assert single.result_.objective == pytest.approx(double.result_.objective, rel=max(1e-3, known))
    assert next(single.to_torch().parameters()).dtype == torch.float32


def test_shapes_and_types_of_input() -> None:
    images, targets = data()
    expected = block().fit(images, targets)
    for inputs, wanted in [
        (images[:, None], targets),
        (images.tolist(), targets.tolist()),
        (torch.from_numpy(images), torch.from_numpy(targets)),
    ]:
        assert_allclose(block().fit(inputs, wanted).predict(inputs), expected.predict(images), rtol=0, atol=1e-12)
    column = block().fit(images, targets[:, None])
    assert column.predict(images).shape == (12, 1)
    assert block().fit(torch.from_numpy(images), torch.from_numpy(targets)).predict(images).shape == (12,)
    one = block().fit(images[:1], targets[:1])
    assert one.result_.status == "optimal"


def test_input_is_not_changed() -> None:
    images, targets = data()
    copies = images.copy(), targets.copy()
    block(intercept=True).fit(images, targets).predict(images)
    np.testing.assert_array_equal(images, copies[0])
    np.testing.assert_array_equal(targets, copies[1])


def test_callback_may_stop_the_fit() -> None:
    images, targets = data()

    class StopFitError(Exception):
        pass

    def stop(progress: Progress) -> None:
        raise StopFitError

    for options in ({}, {"gates": "priced", "pricing": QUICK}, {"activation": "gated_relu", "penalty": "nuclear"}):
        unfitted = block(**options)
        with pytest.raises(StopFitError):
            unfitted.fit(images, targets, callback=stop)
        with pytest.raises(NotFittedError):
            unfitted.predict(images)


def test_dropped_gates_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    images, targets = data()
    gate = np.random.default_rng(2).normal(size=4)
    with caplog.at_level(logging.INFO, logger="cvxcnn"):
        fitted = block(gates=[gate, 2 * gate]).fit(images, targets)
    assert len(fitted.gates_) == 1
    assert "1 gates kept; 1 repeated a pattern, 0 never active" in caplog.text


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "tanh"}, 'activation must be "relu", "gated_relu", "quadratic" or "linear"; got \'tanh\''),
        ({"penalty": "ridge"}, "penalty must be one of"),
        ({"penalty": "nuclear"}, 'penalty="nuclear" is a gated program'),
        ({"loss": "hinge"}, "loss must be one of"),
        ({"pooling": "median"}, 'pooling must be "mean", "sum", "bilinear" or "max"; got \'median\''),
        ({"pool_cells": 0}, "pool_cells must be an int >= 1"),
        ({"pool_cells": 5}, "pool_cells=5 needs feature maps of at least that side"),
        ({"kernel_size": 6}, "larger than the padded image"),
        ({"kernel_size": 0}, "kernel_size must be an int >= 1"),
        ({"stride": 0}, "stride must be an int >= 1"),
        ({"padding": -1}, "padding must be an int >= 0"),
        ({"reg": 0}, "reg must be a positive, finite number; got 0"),
        ({"reg": -1.0}, "reg must be a positive, finite number; got -1.0"),
        ({"reg": float("nan")}, "reg must be a positive, finite number; got nan"),
        ({"reg": float("inf")}, "reg must be a positive, finite number; got inf"),
        ({"reg": "1"}, "reg must be a positive, finite number; got '1'"),
        ({"reg": True}, "reg must be a positive, finite number; got True"),
        ({"gates": "random"}, "gates must be a number, an array, a sampler or \"priced\"; got 'random'"),
        ({"gates": 0}, "gates must be an int >= 1"),
        ({"gates": [[1.0, 2.0]]}, "gates have 2 entries each but the patches have 4"),
        ({"gates": [[1.0, 2.0, 3.0, float("nan")]]}, "gates must be finite"),
        ({"gates": None}, "gates must be the number of gates"),
        ({"gates": "priced", "solver": "fista"}, 'gates="priced" brings its own solver'),
        ({"solver": "sgd"}, 'solver must be "auto" or one of'),
        ({"solver": "fista"}, "it knows no cones"),
        ({"dtype": "float16"}, r"dtype must be one of \['float32', 'float64'\]; got 'float16'"),
        ({"device": "tpu9"}, 'device must be "cpu", "cuda" or "cuda:<number>"; got \'tpu9\''),
        ({"device": None}, 'device must be "cpu", "cuda"'),
        ({"random_state": 1.5}, r"random_state must be an int in \[0, 2\^63\); got 1.5"),
        ({"random_state": -1}, "random_state must be an int in .*; got -1"),
        ({"random_state": -1, "gates": "priced"}, "random_state must be an int in .*; got -1"),
        ({"tol": 0}, "tol must be a positive number; got 0"),
        ({"tol": 0, "gates": "priced"}, "tol must be a positive number; got 0"),
        ({"tol": "small"}, "tol must be a positive number; got 'small'"),
        ({"max_iter": 0}, "max_iter must be an int >= 1, or None; got 0"),
    ],
)
def test_bad_parameters(options: dict[str, Any], message: str) -> None:
    images, targets = data()
    with pytest.raises(InputError, match=message):
        block(**options).fit(images, targets)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu() -> None:
    images, targets = data()
    with pytest.raises(InputError, match=r"torch finds no GPU. Use device=\"cpu\""):
        block(device="cuda").fit(images, targets)


def broken(value: float) -> np.ndarray:
    images, _ = data()
    images[3, 1, 2] = value
    return images


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (broken(float("nan")), np.zeros(12), "images"),
        (broken(float("inf")), np.zeros(12), "images"),
        (data()[0], np.full(12, float("nan")), "targets"),
        (data()[0], np.zeros(11), "11 targets for 12 images"),
        (data()[0], np.zeros((12, 0)), "targets are empty"),
        (data()[0], np.zeros((12, 1, 1)), r"targets must be \(n,\) or \(n, outputs\)"),
        (data()[0], ["cat"] * 12, "one_hot, or use ConvexCNNClassifier"),
        (np.zeros((0, 5, 5)), np.zeros(0), "images are empty"),
        (np.zeros((12, 25)), np.zeros(12), "Reshape flat images first"),
        (np.zeros((5, 5)), np.zeros(5), "images must be"),
        (data()[0].astype(complex), np.zeros(12), "images"),
        (np.zeros((12, 5, 5)), np.ones(12), "Check that the images are not all zero"),
    ],
)
def test_bad_data(images: Any, targets: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        block().fit(images, targets)


PRICED = [("relu", "group"), ("relu", "dense"), ("gated_relu", "group"), ("gated_relu", "nuclear")]


@pytest.mark.parametrize(("activation", "penalty"), PRICED)
@pytest.mark.parametrize(("scale", "reg"), [(0.0, 0.5), (1.0, 1e6)])
def test_nothing_to_price(activation: str, penalty: str, scale: float, reg: float) -> None:
    """Zero images, or a reg that no filter pays for: the best network is none, and that is certified."""
    images, targets = data(n=4)
    options: dict[str, Any] = {"activation": activation, "penalty": penalty, "gates": "priced", "pricing": QUICK}
    fitted = block(reg=reg, **options).fit(images * scale, targets)
    zero = 0.5 * float((targets**2).sum())
    assert fitted.result_.objective == pytest.approx(zero)
    assert fitted.result_.dual_bound == pytest.approx(zero)
    assert fitted.certificate_.global_bound == pytest.approx(zero)
    assert fitted.n_neurons_ == 0
    assert_allclose(module_outputs(fitted.to_torch(), images), 0.0)


@pytest.mark.parametrize(
    "options", [{}, {"bias": True}, {"bias": True, "penalty": "dense"}, {"activation": "gated_relu"}]
)
def test_constant_images(options: dict[str, Any]) -> None:
    """All patches are equal: the fit is the best constant, shrunk."""
    fitted = block(reg=0.01, gates=20, **options).fit(np.ones((4, 5, 5)), [1.0, 2.0, 3.0, 4.0])
    assert fitted.result_.status == "optimal"
    assert_allclose(fitted.predict(np.ones((4, 5, 5))), 2.5, atol=0.01)


def test_before_fit_and_other_images() -> None:
    images, targets = data()
    for method in (block().predict, block().transform):
        with pytest.raises(NotFittedError, match="isn't fitted yet"):
            method(images)
    with pytest.raises(NotFittedError, match="isn't fitted yet"):
        block().to_torch()
    fitted = block().fit(images, targets)
    with pytest.raises(InputError, match=r"fitted on, \(1, 5, 5\) \(c, h, w\); got \(1, 4, 5\)"):
        fitted.predict(images[:, 1:])
    with pytest.raises(InputError, match=r"got \(3, 5, 5\)"):
        fitted.transform(np.zeros((2, 3, 5, 5)))


def test_a_failing_solver_leaves_the_block_unfitted(monkeypatch: pytest.MonkeyPatch) -> None:
    from cvxcnn.solvers.cone_working_set import ConeWorkingSet

    def fail(*arguments: Any) -> None:
        raise SolverError("no")

    monkeypatch.setattr(ConeWorkingSet, "run", fail)
    images, targets = data()
    unfitted = block()
    with pytest.raises(SolverError):
        unfitted.fit(images, targets)
    with pytest.raises(NotFittedError):
        unfitted.predict(images)


@dataclass(frozen=True)
class SlowGates(GaussianGates):
    """A sampler that takes a while."""

    def sample(self, patches: Patches, count: int, generator: torch.Generator) -> torch.Tensor:
        time.sleep(0.5)
        return super().sample(patches, count, generator)


def test_the_seconds_of_a_fit_are_those_of_all_of_it() -> None:
    images, targets = data()
    heard: list[float] = []
    fitted = block(gates=SlowGates(4)).fit(images, targets, callback=lambda progress: heard.append(progress.seconds))
    result = fitted.result_
    assert heard == [progress.seconds for progress in result.history]
    assert heard == sorted(heard) and heard[0] >= 0.5 and heard[-1] <= result.seconds
    # And those of the path by which a layer's reg is chosen.
    own = block(gates=SlowGates(4), penalty="dense", reg=None)
    (chosen,) = LayerwiseCNN(layers=1, block=own, validation=0.25).fit(images, targets).blocks_
    assert 0.5 <= chosen.result_.history[0].seconds <= chosen.result_.history[-1].seconds <= chosen.result_.seconds
