"""The stack: what a block hands on, and what every layer predicts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from cvxcnn import ConvexConvBlock, LayerwiseCNN
from cvxcnn.errors import InputError
from cvxcnn.stack import Standardizer

BLOCK = ConvexConvBlock(kernel_size=3, padding=1, pooling="mean", pool_cells=2, gates=8, reg=3.0)


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(25, 2, 6, 6)), generator.normal(size=(25, 3))


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
    block = clone(BLOCK).set_params(penalty="dense")
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
        on_layer=lambda layer, block, inputs: layers.append((layer, inputs.shape[1])),
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
