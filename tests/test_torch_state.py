"""Results don't depend on the state that torch is in: autocast, inference mode, default dtype and device, gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

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
from cvxcnn.arrangements import GradientGates, PatchGates, TrainedGates
from cvxcnn.core.plainly import plain_torch
from cvxcnn.ordinary import train_baseline
from cvxcnn.patches import Patches, PatchGeometry

RANDOM = np.random.default_rng(0)
IMAGES, TARGETS = RANDOM.normal(size=(12, 1, 6, 6)), RANDOM.normal(size=12)
SEARCH = PricingOptions(starts=1, ascent_steps=5, improvement_steps=2, initial_filters=2, max_rounds=1)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def all_of(*states: AbstractContextManager[Any]) -> Any:
    with ExitStack() as stack:
        for state in states:
            stack.enter_context(state)
        yield


# Each may break what the others leave: several at once are no easier. Gradients are on elsewhere.
STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast, default float64": lambda: all_of(
        torch.autocast("cpu", dtype=torch.bfloat16), default_dtype(torch.float64)
    ),
    "inference mode, default bfloat16": lambda: all_of(torch.inference_mode(), default_dtype(torch.bfloat16)),
    "no gradients, default device": lambda: all_of(torch.no_grad(), torch.device("meta")),
}
SMALL: dict[str, Any] = {"kernel_size": 2, "padding": 0, "pool_cells": 1, "pricing": SEARCH}
FLOAT32: dict[str, Any] = {"dtype": "float32", "tol": 1e-3}
BLOCKS: dict[str, dict[str, Any]] = {
    "priced": SMALL,
    "priced float32": {**SMALL, **FLOAT32},
    "proved": {**SMALL, "kernel_size": (1, 2), "bias": False},
    "sampled": {"gates": 5, "pricing": SEARCH, "intercept": True},
    "patches float32": {"gates": PatchGates(5), "pricing": SEARCH, **FLOAT32},
    "gradient": {"gates": GradientGates(3, rounds=2), "pricing": SEARCH},
    "trained": {"gates": TrainedGates(3, epochs=1), "pricing": SEARCH},
    "Eq. 2": {**SMALL, "gates": 3, "penalty": "group"},
    "gated": {**SMALL, "gates": 3, "penalty": "nuclear", "activation": "gated_relu"},
    "gated priced": {**SMALL, "penalty": "group", "activation": "gated_relu"},
    "softmax": {"gates": 4, "loss": "softmax", "pricing": SEARCH},
    "streamed": {"gates": 4, "solver": "streamed", "pricing": SEARCH},
}


def outcome(settings: dict[str, Any]) -> tuple[list[np.ndarray], ConvexConvBlock]:
    # Made here: tensors of inference mode are of their own kind.
    images, targets = torch.tensor(IMAGES, device="cpu"), torch.tensor(TARGETS, dtype=torch.float64, device="cpu")
    if settings.get("loss") == "softmax":
        targets = torch.stack([targets > 0, targets <= 0], dim=1).double()
    block = ConvexConvBlock(**settings).fit(images, targets)
    exported = block.to_torch()
    with plain_torch(), torch.no_grad():
        value = exported(images.to(next(exported.parameters()).dtype)).numpy()
    numbers = [
        block.reg_,
        block.reg_max(images, targets),
        block.certificate_.objective,
        block.certificate_.global_bound,
    ]
    return [np.array(numbers), block.predict(images), block.transform(images), block.gates_, value], block


PLAIN: dict[str, list[np.ndarray]] = {}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_the_same_in_every_state(name: str, state: str) -> None:
    if name not in PLAIN:
        PLAIN[name], _ = outcome(BLOCKS[name])
    with STATES[state]():
        found, block = outcome(BLOCKS[name])
    for one, other in zip(found, PLAIN[name], strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert not block.neurons_.filters.is_inference()


def test_whatever_is_built_on_blocks_is_the_same_in_every_state() -> None:
    block = ConvexConvBlock(gates=4, pricing=SEARCH, dtype="float32", tol=1e-3)
    patches = Patches(torch.from_numpy(IMAGES), PatchGeometry(3))
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(2, 1)).double()

    def results() -> list[np.ndarray]:
        deep = LayerwiseCNN(layers=2, block=block, residual=True, mirror=True, crop=True, validation=0.25, hand_on=2)
        deep.fit(IMAGES, TARGETS)
        projected = LayerwiseCNN(layers=2, block=block, project=3).fit(IMAGES, TARGETS)
        classifier = ConvexCNNClassifier(block=block).fit(torch.tensor(IMAGES, device="cpu"), TARGETS > 0)
        regressor = ConvexCNNRegressor(block=block).fit(IMAGES.reshape(12, 36), TARGETS)
        rival = train_baseline(patches, torch.from_numpy(TARGETS[:, None]), 0.1, 2, epochs=2)
        return [
            deep.predict(IMAGES, shift=1),
            projected.predict(IMAGES),
            classifier.predict_proba(IMAGES),
            regressor.predict(IMAGES.reshape(12, 36)),
            reg_path(IMAGES, TARGETS, block=block, points=3).objective,
            np.array(polish(network, IMAGES, TARGETS, 0.1, pricing=SEARCH).objective),
            np.array(nonconvex_objective(network, IMAGES, TARGETS, 0.1)),
            np.array(rival.objective),
        ]

    expected = results()
    for state in STATES.values():
        with state():
            found = results()
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_state_is_as_it_was_afterwards_and_after_errors() -> None:
    with default_dtype(torch.bfloat16), torch.device("meta"), torch.autocast("cpu"), torch.inference_mode():
        for bad in (0, 4):
            with pytest.raises(ValueError, match=r"\w") if not bad else plain_torch():
                ConvexConvBlock(gates=bad, pricing=SEARCH).fit(IMAGES, TARGETS)
        assert torch.get_default_dtype() == torch.bfloat16
        assert torch.get_default_device() == torch.device("meta")
        assert torch.is_autocast_enabled("cpu") and torch.is_inference_mode_enabled()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.uint8, torch.int64, torch.bool])
def test_images_of_every_dtype_are_the_numbers_in_them(dtype: torch.dtype) -> None:
    images = torch.tensor(IMAGES * 2).round().abs().to(dtype)
    expected = images.double().numpy()
    block = ConvexConvBlock(gates=4, pricing=SEARCH)
    plain = ConvexConvBlock(gates=4, pricing=SEARCH).fit(expected, torch.tensor(TARGETS).bfloat16().double())
    for given in (images, images[:, 0]):
        found = block.fit(given, torch.tensor(TARGETS).to(torch.bfloat16))
        np.testing.assert_array_equal(found.predict(given), plain.predict(expected))
    labels = torch.tensor(TARGETS > 0)
    plain_model = ConvexCNNClassifier(block=block).fit(expected, labels.numpy())
    for shaped, settings in ((images, {}), (images.reshape(12, 36), {"image_shape": (6, 6)})):
        model = ConvexCNNClassifier(block=block, **settings).fit(shaped, labels)
        np.testing.assert_array_equal(model.decision_function(shaped), plain_model.decision_function(expected))
