"""The stack: what a block hands on, and what every layer predicts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from eq2 import eq2_block
from problems import noise_arrays
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from cvxcnn import LayerwiseCNN, PricingOptions
from cvxcnn.activations.neurons import Neurons
from cvxcnn.errors import InputError
from cvxcnn.models.standardizer import Standardizer

BLOCK = eq2_block(
    kernel_size=3, padding=1, pooling="mean", pool_cells=2, gates=8, reg=3.0, pricing=PricingOptions(starts=1)
)


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray]:
    return noise_arrays(25, 6, channels=2, outputs=3)


def test_second_block_sees_the_pooled_standardized_maps_of_the_first(problem: tuple[np.ndarray, np.ndarray]) -> None:
    images, targets = problem
    stack = LayerwiseCNN(layers=2, block=BLOCK, downsample=2).fit(images, targets)
    scaled = (images - images.mean((0, 2, 3), keepdims=True)) / images.std((0, 2, 3), keepdims=True)
    maps = F.avg_pool2d(torch.as_tensor(stack.blocks_[0].transform(scaled)), 2).numpy()
    expected = (maps - maps.mean((0, 2, 3), keepdims=True)) / maps.std((0, 2, 3), keepdims=True)
    inputs = [inputs.numpy() for _, inputs in stack.layer_inputs(images)]
    np.testing.assert_allclose(inputs[0], scaled, atol=1e-12)
    np.testing.assert_allclose(inputs[1], expected, atol=1e-9)
    np.testing.assert_array_equal(stack.predict(images), stack.blocks_[1].predict(inputs[1]))
    np.testing.assert_array_equal(stack.predict(images, layer=0), stack.blocks_[0].predict(inputs[0]))
    assert [prediction.shape for prediction in stack.staged_predict(images)] == [(25, 3), (25, 3)]


def test_only_active_neurons_are_handed_on(problem: tuple[np.ndarray, np.ndarray]) -> None:
    images, targets = problem
    stack = LayerwiseCNN(layers=2, block=BLOCK).fit(images, targets)
    assert stack.blocks_[1].image_shape_[0] == max(1, stack.blocks_[0].n_neurons_)


def test_a_block_without_neurons_predicts_zero_and_hands_nothing_on(problem: tuple[np.ndarray, np.ndarray]) -> None:
    images, targets = problem
    stack = LayerwiseCNN(layers=1, block=clone(BLOCK).set_params(reg=1e6)).fit(images, targets)
    assert stack.blocks_[0].n_neurons_ == 0
    np.testing.assert_array_equal(stack.predict(images), np.zeros((25, 3)))
    with pytest.raises(InputError, match=r"layer 1 has no neurons at reg=1e\+06"):
        clone(stack).set_params(layers=2).fit(images, targets)


def test_constant_channels_keep_their_scale() -> None:
    images = torch.cat([torch.full((4, 1, 2, 2), 7.0), torch.arange(16.0).view(4, 1, 2, 2)], dim=1).double()
    standardized = Standardizer.of(images)(images)
    assert (standardized[:, 0] == 0).all()
    assert standardized[:, 1].std(correction=0).item() == pytest.approx(1.0)


def test_reg_fraction_sets_every_block_by_its_own_reg_max(problem: tuple[np.ndarray, np.ndarray]) -> None:
    images, targets = problem
    block = clone(BLOCK).set_params(penalty="dense", reg=None)
    stack = LayerwiseCNN(layers=2, block=block, reg_fraction=0.2).fit(images, targets)
    for block, inputs in stack.layer_inputs(images):
        assert block.reg == pytest.approx(0.2 * block.reg_max(inputs, targets))


def test_callbacks_and_layers_in_order(problem: tuple[np.ndarray, np.ndarray]) -> None:
    images, targets = problem
    layers, progress = [], []
    LayerwiseCNN(layers=2, block=BLOCK).fit(
        images,
        targets,
        callback=lambda layer, step: progress.append((layer, step.objective)),
        on_layer=lambda layer, block, stage: layers.append((layer, stage.inputs.shape[1])),
    )
    assert [layer for layer, _ in layers] == [0, 1]
    assert {layer for layer, _ in progress} == {0, 1}


def test_different_blocks_for_each_layer(problem: tuple[np.ndarray, np.ndarray]) -> None:
    images, targets = problem
    blocks = [BLOCK, clone(BLOCK).set_params(activation="gated_relu", gates=4)]
    stack = LayerwiseCNN(layers=2, block=blocks).fit(images, targets)
    assert [block.activation for block in stack.blocks_] == ["relu", "gated_relu"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 0}, "layers must be an int >= 1; got 0"),
        ({"layers": 2.5}, "layers must be an int"),
        ({"downsample": 0}, "downsample must be an int >= 1"),
        ({"downsample": []}, "downsample must be an int >= 1"),
        ({"reg_fraction": 1.0}, "reg_fraction must be between 0 and 1"),
        ({"layers": 3, "block": [BLOCK]}, "one ConvexConvBlock or 3 of them; got 1"),
        ({"layers": 2, "downsample": 7}, "larger than its 6 x 6 feature maps"),
    ],
)
def test_bad_settings(problem: tuple[np.ndarray, np.ndarray], settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LayerwiseCNN(**{"block": BLOCK, **settings}).fit(*problem)


def test_bad_calls(problem: tuple[np.ndarray, np.ndarray]) -> None:
    images, targets = problem
    with pytest.raises(NotFittedError, match="Call fit first"):
        LayerwiseCNN().predict(images)
    stack = LayerwiseCNN(layers=1, block=BLOCK).fit(images, targets)
    with pytest.raises(InputError, match="shape that the stack was fitted on"):
        stack.predict(images[:, :1])
    with pytest.raises(InputError, match="layer must be between 0 and 0; got 3"):
        stack.predict(images, layer=3)
    assert clone(stack).get_params()["layers"] == 1


# What the module must do doesn't depend on how good its weights are.
QUICK = clone(BLOCK).set_params(penalty="dense", reg=1.0, tol=0.1, max_iter=50, pricing=PricingOptions(starts=0))
SHAPES: dict[str, tuple[dict, dict]] = {
    "mean cells": ({"downsample": 2}, {}),
    "sum over unequal cells": ({"downsample": 2}, {"pooling": "sum", "kernel_size": 2}),
    "mean of unequal cells": ({}, {"kernel_size": 2}),
    "one cell, no padding": ({}, {"padding": 0, "kernel_size": 2, "pool_cells": 1}),
    "bias": ({"downsample": (1, 2)}, {"bias": True}),
    "intercept": ({"downsample": 2}, {"intercept": True}),
    "not standardized": ({"standardize": False}, {"stride": 2}),
    "gated": ({"downsample": 2}, {"activation": "gated_relu", "penalty": "nuclear"}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_exported_module_predicts_what_the_stack_does(problem: tuple[np.ndarray, np.ndarray], shape: str) -> None:
    images, targets = problem
    stack, settings = SHAPES[shape]
    fitted = LayerwiseCNN(layers=2, block=clone(QUICK).set_params(**settings), **stack).fit(images + 3.0, targets)
    for layer, expected in enumerate(fitted.staged_predict(images)):
        outputs = fitted.to_torch(layer)(torch.as_tensor(images)).detach().numpy()
        np.testing.assert_allclose(outputs, expected, atol=1e-10)
    np.testing.assert_array_equal(fitted.to_torch()(torch.as_tensor(images)).detach().numpy(), outputs)


def test_the_exported_module_is_flat_and_standard(problem: tuple[np.ndarray, np.ndarray]) -> None:
    module = LayerwiseCNN(layers=2, block=QUICK, downsample=2).fit(*problem).to_torch()
    assert [name for name, _ in module.named_children()] == [
        "standardize1", "conv1", "relu1", "downsample1", "standardize2", "conv2", "relu2", "pool", "flatten", "linear",
    ]  # fmt: skip
    kinds = (nn.Conv2d, nn.ReLU, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear)
    assert all(isinstance(child, kinds) for child in module)
    trained = {name.split(".")[0] for name, values in module.named_parameters() if values.requires_grad}
    assert trained == {"conv1", "conv2", "linear"}


@pytest.mark.parametrize("settings", [{}, {"pooling": "sum", "pool_cells": 2, "kernel_size": 4}])
@pytest.mark.parametrize("kind", [{}, {"activation": "gated_relu", "penalty": "nuclear"}])
def test_torch_export_accepts_the_module(problem: tuple[np.ndarray, np.ndarray], settings: dict, kind: dict) -> None:
    images, targets = problem
    block = clone(QUICK).set_params(**kind, **settings)
    module = LayerwiseCNN(layers=2, block=block).fit(images, targets).to_torch()
    inputs = torch.as_tensor(images)
    batch = {0: torch.export.Dim("n", min=2)}
    exported = torch.export.export(module, (inputs[:4],), dynamic_shapes=(batch,)).module()
    torch.testing.assert_close(exported(inputs), module(inputs), rtol=0, atol=1e-12)


def test_a_rival_stands_in_the_last_blocks_place(problem: tuple[np.ndarray, np.ndarray]) -> None:
    images, targets = problem
    stack = LayerwiseCNN(layers=2, block=QUICK, downsample=2).fit(images, targets)
    draw = torch.Generator().manual_seed(0)
    _, cells, outputs = stack.blocks_[1].neurons_.readout.shape
    dim = stack.blocks_[1].neurons_.filters.shape[1]
    rival = Neurons(
        torch.randn(3, dim, generator=draw, dtype=torch.float64),
        torch.randn(3, cells, outputs, generator=draw, dtype=torch.float64),
        torch.zeros(outputs, dtype=torch.float64),
    )
    (_, _), (block, inputs) = stack.layer_inputs(images)
    expected = rival.predict(block.patches(inputs))
    torch.testing.assert_close(stack.to_torch(neurons=rival)(torch.as_tensor(images)), expected, rtol=0, atol=1e-10)
    with pytest.raises(InputError, match=r"neurons must have filters \(m, \d+\) and a readout"):
        stack.to_torch(0, neurons=rival)


def test_no_module_of_a_layer_that_is_not_there(problem: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(NotFittedError, match="Call fit first"):
        LayerwiseCNN().to_torch()
    stack = LayerwiseCNN(layers=1, block=QUICK).fit(*problem)
    for layer in (1, -2, 0.5):
        with pytest.raises(InputError, match=f"layer must be between 0 and 0; got {layer}"):
            stack.to_torch(layer)
