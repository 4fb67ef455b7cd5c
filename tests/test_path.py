"""The path: zero at reg_max, every point as good as a solve of its own, scores by hand."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eq2 import eq2_block
from numpy.testing import assert_allclose, assert_array_equal
from problems import noise_arrays
from sklearn.base import clone

from cvxcnn import ConvexConvBlock, PricedGates, PricingOptions, RegPath, nonconvex_objective, reg_path
from cvxcnn.arrangements import EnumeratedGates
from cvxcnn.drawing.path import plot_path
from cvxcnn.errors import InputError

NO_SEARCH = PricingOptions(starts=0)
QUICK = PricedGates(starts=16, ascent_steps=15, improvement_steps=15, initial_filters=16, max_rounds=4, prove_up_to=0)


data = partial(noise_arrays, n=15, side=4)


FIXED: list[tuple[dict[str, Any], int]] = [
    ({"gates": 8}, 1),
    ({"gates": 6, "bias": True, "intercept": True, "pool_cells": 2, "pooling": "mean"}, 2),
    ({"gates": 8, "activation": "gated_relu"}, 2),
    ({"gates": 8, "activation": "gated_relu", "penalty": "nuclear"}, 2),
    ({"gates": 8, "penalty": "dense", "intercept": True}, 2),
    ({"gates": 8, "penalty": "dense", "loss": "logistic"}, 2),
]


@pytest.mark.parametrize(("options", "outputs"), FIXED)
def test_every_point_is_a_solve_of_its_own(options: dict[str, Any], outputs: int) -> None:
    images, targets = data(outputs=outputs)
    targets = np.sign(targets) if "loss" in options else targets
    block = eq2_block(kernel_size=2, pricing=NO_SEARCH, tol=1e-7, **options)
    path = reg_path(images, targets, block=block, points=5, smallest=0.02)
    assert path.regs[0] == pytest.approx(block.reg_max(images, targets), rel=1e-12)
    assert_allclose(path.regs, path.regs[0] * 0.02 ** np.linspace(0, 1, 5))
    assert path.n_neurons[0] == 0 and path.n_neurons[-1] > 0
    assert not path.blocks[0].result_.weights.any()
    assert (path.relative_gap <= 1e-7).all()
    assert (np.diff(path.objective) < 0).all()
    assert path.kinds == ["none"] * 5 and np.isnan(path.global_bound).all()
    for point in path.blocks:
        cold = clone(block).set_params(reg=point.reg).fit(images, targets)
        assert point.result_.objective == pytest.approx(cold.result_.objective, rel=3e-7)
        assert_array_equal(point.gates_, cold.gates_)
        assert point.predict(images).shape == targets.shape
        assert (point.n_duplicate_gates_, point.n_zero_gates_) == (cold.n_duplicate_gates_, cold.n_zero_gates_)


def test_features_that_are_not_kept_give_the_same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    images, targets = data(outputs=2)
    block = eq2_block(kernel_size=2, gates=6, pricing=NO_SEARCH, activation="gated_relu", tol=1e-9)
    kept = reg_path(images, targets, block=block, points=4)
    monkeypatch.setattr("cvxcnn.program.design.KEPT_BYTES", 0)
    assert_allclose(reg_path(images, targets, block=block, points=4).objective, kept.objective, rtol=1e-8)


def test_float32_points_are_judged_in_float64() -> None:
    images, targets = data()
    block = eq2_block(kernel_size=2, gates=6, pricing=NO_SEARCH, dtype="float32", tol=1e-4)
    path = reg_path(images, targets, block=block, points=4)
    for point in path.blocks:
        expected = nonconvex_objective(point.to_torch(), images.astype("float32"), targets.astype("float32"), point.reg)
        assert point.result_.objective == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("block", [{"penalty": "dense"}, {"penalty": "group"}, {"activation": "gated_relu"}])
def test_a_priced_path_has_bounds_at_every_point(block: dict[str, Any]) -> None:
    images, targets = data(outputs=2)
    settings = eq2_block(kernel_size=2, gates=QUICK, **block)
    path = reg_path(images, targets, block=settings, points=5, smallest=0.05)
    assert path.n_neurons[0] == 0 and path.n_neurons[-1] > 0
    assert path.objective[0] == pytest.approx(0.5 * np.square(targets).sum(), rel=1e-12)
    assert path.kinds == ["searched"] * 5
    assert (path.relative_gap <= 1e-6).all() and (np.diff(path.objective) < 0).all()
    assert (path.global_bound <= path.objective * (1 + 1e-12)).all()
    # The last point has the block's own search, up to 64 batches for a bound that is kept; the others a light one.
    assert 16 <= path.n_searched[-1] <= 16 * 64
    assert path.n_searched[1:-1].max() <= 64 * 8
    cold = clone(settings).set_params(reg=path.regs[-1]).fit(images, targets)
    assert cold.certificate_.global_bound <= path.objective[-1] * (1 + 1e-9)
    assert path.global_bound[-1] <= cold.result_.objective * (1 + 1e-9)


def test_all_patterns_prove_every_point_and_a_search_comes_last() -> None:
    images, targets = data(n=6, side=2)
    exact = eq2_block(kernel_size=(1, 2), gates=EnumeratedGates())
    path = reg_path(images, targets, block=exact, points=3)
    assert path.kinds == ["proved"] * 3 and (path.global_gap <= 1e-6).all()
    search = PricingOptions(starts=8, ascent_steps=5, prove_up_to=0)
    sampled = reg_path(images, targets, block=exact.set_params(gates=4, pricing=search), points=3)
    assert sampled.kinds == ["none", "none", "searched"]


def test_scores_by_hand() -> None:
    images, _ = data(n=6)
    labels = np.array([1.0, 1.0, -1.0, 1.0, 1.0, 1.0])
    block = eq2_block(kernel_size=2, gates=6, pricing=NO_SEARCH, intercept=True)
    path = reg_path(images, labels, block=block, points=3, validation=(images[:3], labels[:3]))
    # At reg_max the intercept alone predicts: the mean, 2/3, right for five of six.
    assert path.train_error[0] == pytest.approx(1 - (2 / 3) ** 2)
    assert path.train_accuracy[0] == pytest.approx(5 / 6)
    assert path.validation_accuracy[0] == pytest.approx(2 / 3)
    assert path.validation_error[0] == pytest.approx((2 * (1 / 3) ** 2 + (5 / 3) ** 2) / 3)
    for point, error in zip(path.blocks, path.train_error, strict=True):
        assert error == pytest.approx(np.square(point.predict(images) - labels).mean())

    classes = np.eye(3)[[0, 1, 2, 0, 1, 2]]
    path = reg_path(images, classes, block=block, points=3)
    for point, share in zip(path.blocks, path.train_accuracy, strict=True):
        assert share == np.mean(point.predict(images).argmax(1) == classes.argmax(1))
    assert np.isnan(path.validation_error).all() and np.isnan(path.validation_accuracy).all()
    assert np.isnan(reg_path(images, data(n=6)[1], block=block, points=2).train_accuracy).all()


def test_best_is_by_validation() -> None:
    def path(accuracy: list[float], error: list[float]) -> RegPath:
        blocks = [eq2_block(reg=reg) for reg in (3.0, 2.0, 1.0)]
        none = np.zeros(3)
        return RegPath(blocks, none, none, np.array(error), np.array(accuracy), none)

    nan = float("nan")
    assert path([0.5, 0.9, 0.9], [1.0, 0.4, 0.3]).best.reg == 1.0
    assert path([0.5, 0.9, 0.9], [1.0, 0.4, 0.4]).best.reg == 2.0
    assert path([nan] * 3, [1.0, 0.3, 0.4]).best.reg == 2.0
    with pytest.raises(InputError, match="best needs validation images"):
        _ = path([nan] * 3, [nan] * 3).best


def test_callback_may_stop_it() -> None:
    seen = []

    def stop(index: int, block: ConvexConvBlock) -> None:
        seen.append((index, block.n_neurons_))
        if index == 1:
            raise KeyboardInterrupt

    images, targets = data()
    settings = eq2_block(kernel_size=2, gates=4, pricing=NO_SEARCH)
    with pytest.raises(KeyboardInterrupt):
        reg_path(images, targets, block=settings, points=4, callback=stop)
    assert [index for index, _ in seen] == [0, 1] and seen[0][1] == 0
    assert not hasattr(settings, "result_")


@pytest.mark.parametrize("coded", [True, False])
def test_plot(tmp_path: Path, coded: bool) -> None:
    images, targets = data(n=8)
    targets = np.sign(targets) if coded else targets
    path = reg_path(
        images, targets, block=eq2_block(kernel_size=2, gates=QUICK, penalty="dense"), points=3,
        validation=(images, targets),
    )  # fmt: skip
    path.plot(tmp_path / "path.png")
    plot_path(path, tmp_path / "same.png")
    content = (tmp_path / "path.png").read_bytes()
    assert content.startswith(b"\x89PNG") and content == (tmp_path / "same.png").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 1}, "points must be an int >= 2; got 1"),
        ({"smallest": 1.0}, "smallest must be between 0 and 1; got 1.0"),
        ({"validation": np.zeros((3, 4, 4))}, r"validation must be a pair \(images, targets\)"),
        ({"validation": (np.zeros((3, 5, 5)), np.zeros(3))}, r"of the training shapes, \(1, 4, 4\).* got \(1, 5, 5\)"),
        ({"validation": (np.zeros((3, 4, 4)), np.zeros((3, 2)))}, "1 outputs; got .* 2"),
        ({"block": eq2_block(gates="many")}, "gates must be"),
        ({"block": eq2_block(solver="none")}, "solver must be"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reg_path(*data(), **options)


def test_zero_targets_have_no_path() -> None:
    images, targets = data()
    with pytest.raises(InputError, match="reg_max is zero"):
        reg_path(images, 0 * targets, block=eq2_block(gates=4))


def test_tensors_are_fine_too() -> None:
    images, targets = (torch.from_numpy(part) for part in data(n=6))
    assert len(reg_path(images, targets, block=eq2_block(gates=4, pricing=NO_SEARCH), points=2).blocks) == 2
