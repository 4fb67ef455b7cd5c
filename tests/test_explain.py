"""Explanations: maps worked out by hand, sparsity of known vectors, the sanity check, and a run's folder."""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import GuidedGradCam
from eq2 import eq2_block
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torch import nn

from cvxcnn import PricingOptions
from cvxcnn.commands.explain import main
from cvxcnn.data import load_data
from cvxcnn.errors import DataError, InputError, ModelFileError
from cvxcnn.explain import (
    METHODS,
    attribute,
    bootstrap_interval,
    gini,
    half_mass_share,
    plot_explanations,
    plot_sanity,
    rank_correlation,
    sanity_check,
)
from cvxcnn.patches import PatchGeometry
from cvxcnn.patches.pooling import pooling
from cvxcnn.reports.html import EXPLANATION_FILES as FILES
from cvxcnn.runs import explain_run
from cvxcnn.runs.explaining import load_networks
from cvxcnn.runs.records import accuracy
from cvxcnn.runs.run import Settings, run

GUIDED = ("guided_gradcam", "deconvolution", "guided_backprop")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing by threads, and lose much where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(filters: Any, weights: Any, pool: nn.Module, bias: Any = None, inplace: bool = False) -> nn.Sequential:
    """Return 1 x 1 filters (m, C), ReLU, pooling, and output weights (classes, m * cells)."""
    filters, weights = torch.tensor(filters, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)
    conv = nn.Conv2d(filters.shape[1], len(filters), 1, bias=bias is not None).double()
    linear = nn.Linear(weights.shape[1], len(weights), bias=False).double()
    with torch.no_grad():
        conv.weight.copy_(filters[:, :, None, None])
        linear.weight.copy_(weights)
        if conv.bias is not None:
            conv.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return nn.Sequential(conv, nn.ReLU(inplace=inplace), pool, nn.Flatten(), linear)


def deep(seed: int = 0, inplace: bool = False) -> nn.Sequential:
    """Return a random network of two convolutions, from (2, 6, 6) to three classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(inplace), nn.AvgPool2d(2), nn.Conv2d(5, 4, 3, padding=1),
        nn.ReLU(inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).double()  # fmt: skip


IMAGES = np.random.default_rng(0).normal(size=(7, 2, 6, 6))


# Maps by hand.

# f = (3, -1) (2 x - 1)_+: at x = 2 the ReLU is on and A = 3, at x = 0 it is off.
ONE_PIXEL = network([[2.0]], [[3.0], [-1.0]], nn.AvgPool2d(1), bias=[-1.0])


@pytest.mark.parametrize(
    ("method", "on", "on_negative", "off"),
    [
        ("cam", 9.0, -3.0, 0.0),
        ("gradcam", 9.0, 0.0, 0.0),
        ("gradient", 6.0, -2.0, 0.0),
        ("guided_backprop", 6.0, 0.0, 0.0),
        ("deconvolution", 6.0, 0.0, 6.0),
        ("guided_gradcam", 54.0, 0.0, 0.0),
    ],
)
def test_one_pixel(method: str, on: float, on_negative: float, off: float) -> None:
    images, classes = [[[2.0]], [[2.0]], [[0.0]]], [0, 1, 0]
    np.testing.assert_array_equal(attribute(ONE_PIXEL, images, classes, method)[:, 0, 0], [on, on_negative, off])


# A_1 = (x)_+ and A_2 = (-x)_+, averaged; class 0 has the weights 2 and 4, class 1 has -2 and 4.
FOUR_PIXELS = network([[1.0], [-1.0]], [[2.0, 4.0], [-2.0, 4.0]], nn.AvgPool2d(2))


@pytest.mark.parametrize(
    ("method", "first", "second"),
    [
        ("cam", [[2, 4], [6, 0]], [[-2, 4], [-6, 0]]),
        ("gradcam", [[0.5, 1], [1.5, 0]], [[0, 1], [0, 0]]),
        ("gradient", [[0.5, -1], [0.5, 0]], [[-0.5, -1], [-0.5, 0]]),
        ("guided_backprop", [[0.5, -1], [0.5, 0]], [[0, -1], [0, 0]]),
        ("deconvolution", [[-0.5, -0.5], [-0.5, -0.5]], [[-1, -1], [-1, -1]]),
        ("guided_gradcam", [[0.25, -1], [0.75, 0]], [[0, -1], [0, 0]]),
    ],
)
def test_four_pixels(method: str, first: Any, second: Any) -> None:
    images = [[[1.0, -1.0], [3.0, 0.0]]]
    np.testing.assert_allclose(attribute(FOUR_PIXELS, images, 0, method)[0], first, atol=1e-15)
    np.testing.assert_allclose(attribute(FOUR_PIXELS, images, 1, method)[0], second, atol=1e-15)


def test_cells_have_weights_of_their_own() -> None:
    module = network([[1.0]], [[1.0, 2.0, 3.0, 4.0]], nn.AvgPool2d(1))
    images = [[[5.0, 6.0], [7.0, 8.0]]]
    np.testing.assert_array_equal(attribute(module, images, 0, "cam")[0], [[5, 12], [21, 32]])
    # Grad-CAM averages the weights of all cells: 2.5.
    np.testing.assert_array_equal(attribute(module, images, 0, "gradcam")[0], [[12.5, 15], [17.5, 20]])


def test_a_position_in_several_cells_has_the_sum_of_their_weights() -> None:
    module = network([[1.0]], [[1.0, 2.0, 3.0, 4.0]], nn.AdaptiveAvgPool2d(2))
    maps = attribute(module, np.ones((1, 3, 3)), 0, "cam")
    np.testing.assert_array_equal(maps[0], [[1, 3, 2], [4, 10, 6], [3, 7, 4]])


def test_bilinear_cells_interpolate_their_weights() -> None:
    cells = pooling(PatchGeometry(1, pooling="bilinear", pool_cells=2), (4, 4), torch.zeros(1, dtype=torch.float64))
    module = network([[1.0]], [[1.0, 5.0, 1.0, 5.0]], cells)
    maps = attribute(module, np.ones((1, 4, 4)), 0, "cam")
    np.testing.assert_allclose(maps[0], [[1, 2, 4, 5]] * 4, atol=1e-14)


def test_with_one_mean_cell_gradcam_is_the_positive_part_of_cam_by_positions() -> None:
    module = deep()
    maps = {method: attribute(module[3:], maps_of(module, IMAGES), [0, 1, 2, 0, 1, 2, 0], method)
            for method in ("cam", "gradcam")}  # fmt: skip
    np.testing.assert_allclose(maps["gradcam"], np.maximum(maps["cam"], 0) / 9, atol=1e-14)


def maps_of(module: nn.Sequential, images: np.ndarray) -> np.ndarray:
    return np.asarray(module[:3](torch.as_tensor(images)).detach().numpy())


@pytest.mark.parametrize("settings", [{"pooling": "mean"}, {"pooling": "sum"}, {"pooling": "mean", "pool_cells": 2}])
def test_pooled_cam_is_the_output(settings: dict) -> None:
    images = np.random.default_rng(1).normal(size=(12, 1, 4, 4))
    block = eq2_block(
        padding=1, penalty="dense", gates=6, reg=0.1, tol=0.1, pricing=PricingOptions(starts=0), **settings
    ).fit(images, images[:, 0, 1, 1])
    maps = attribute(block.to_torch(), images, 0, "cam")
    size = 1 if settings["pooling"] == "sum" else 16 // block.pool_cells**2
    np.testing.assert_allclose(maps.sum(axis=(1, 2)) / size, block.predict(images), atol=1e-12)


def test_of_a_pixels_channels_the_largest_counts_with_its_sign() -> None:
    module = network([[1.0, -3.0]], [[2.0]], nn.AvgPool2d(1))
    images = np.array([[[[1.0]], [[0.0]]]])
    assert attribute(module, images, 0, "gradient")[0, 0, 0] == -6.0


def test_small_maps_are_enlarged() -> None:
    module = nn.Sequential(nn.AvgPool2d(2), *network([[1.0]], [[3.0]], nn.AvgPool2d(1)))
    np.testing.assert_array_equal(attribute(module, [[[1.0, 2.0], [3.0, 6.0]]], 0, "gradcam"), [[[9, 9], [9, 9]]])


def test_gradcam_of_a_lower_layer() -> None:
    module, images = deep(), torch.as_tensor(IMAGES)
    lower = torch.relu(module[0](images)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(module[2:](lower)[:, 1].sum(), lower)
    expected = torch.relu((gradient.mean((2, 3), keepdim=True) * lower).sum(1)).detach().numpy()
    np.testing.assert_allclose(attribute(module, IMAGES, 1, "gradcam", layer=0), expected, atol=1e-14)
    np.testing.assert_array_equal(
        attribute(module, IMAGES, 1, "gradcam", layer=1), attribute(module, IMAGES, 1, "gradcam")
    )


def test_guided_gradcam_is_captums() -> None:
    module = deep()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = torch.as_tensor(IMAGES).requires_grad_()
        found = GuidedGradCam(module, module[4]).attribute(inputs, 2, interpolate_mode="bilinear").detach().numpy()
    expected = np.take_along_axis(found, np.abs(found).argmax(axis=1)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(attribute(module, IMAGES, 2, "guided_gradcam"), expected, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_images_are_explained_one_by_one(method: str) -> None:
    module = deep()
    images = np.random.default_rng(2).normal(size=(70, 2, 6, 6))
    classes = np.arange(70) % 3
    maps = attribute(module, images, classes, method)
    assert maps.shape == (70, 6, 6) and maps.dtype == np.float64
    for row in (0, 64, 69):
        alone = attribute(module, images[row : row + 1], int(classes[row]), method)
        np.testing.assert_allclose(maps[row], alone[0], atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_the_module_is_left_as_it_is(method: str) -> None:
    plain, module = deep(), deep(inplace=True).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    np.testing.assert_array_equal(attribute(module, IMAGES, 0, method), attribute(plain, IMAGES, 0, method))
    with pytest.raises(InputError):
        attribute(module, IMAGES[:, :1], 0, method)
    assert module.training and module[1].inplace
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(part, name) for part in module.modules() for name in hooks)


def test_a_float32_network() -> None:
    maps = attribute(deep().float(), IMAGES, 0, "guided_backprop")
    assert maps.dtype == np.float64
    np.testing.assert_allclose(maps, attribute(deep(), IMAGES, 0, "guided_backprop"), atol=1e-6)


# Modules that are used several times.


class Reusing(nn.Module):
    """Two convolutions, whose ReLUs, and if asked for whose convolution, are one object each; or none is."""

    def __init__(self, shared: bool, again: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.last = (
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Linear(4, 3),
        )
        self.third = self.second if again and shared else nn.Conv2d(4, 4, 3, padding=1)
        if again:
            self.third.load_state_dict(self.second.state_dict())
        relu = nn.ReLU()
        # In parts of their own, as in the blocks of a residual network.
        self.acts = nn.ModuleList(nn.Sequential(relu if shared else nn.ReLU()) for _ in range(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.acts[0](self.first(images))
        deeper = self.acts[1](self.second(maps)) + maps
        return self.last(self.acts[2](self.third(deeper)).mean((2, 3)))


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "cam"])
def test_a_module_that_is_used_again_is_as_good_as_several(method: str, again: bool) -> None:
    shared, own = Reusing(True, again).double(), Reusing(False, again).double()
    assert torch.equal(shared(torch.as_tensor(IMAGES)), own(torch.as_tensor(IMAGES)))
    maps = [attribute(own, IMAGES, 1, method, layer=layer) for layer in (0, 1, 2)]
    for layer in (0, 1, 2, -1):
        np.testing.assert_allclose(attribute(shared, IMAGES, 1, method, layer=layer), maps[layer], atol=1e-14)
    if "gradcam" in method:
        assert not np.allclose(maps[0], maps[2])


def test_cam_of_a_sequential_that_uses_a_relu_again() -> None:
    own = deep()
    shared = nn.Sequential(*own[:4], own[1], *own[5:])
    np.testing.assert_array_equal(attribute(shared, IMAGES, 1, "cam"), attribute(own, IMAGES, 1, "cam"))
    with pytest.raises(InputError, match='method="cam" is of the last maps'):
        attribute(shared, IMAGES, 1, "cam", layer=0)


def test_cam_is_not_of_a_sequential_with_a_way_of_its_own() -> None:
    class Doubled(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(2 * images)

    with pytest.raises(InputError, match=r'method="cam" is of the last maps of an nn\.Sequential'):
        attribute(Doubled(*deep()), IMAGES, 1, "cam")


@pytest.mark.parametrize(
    "relu",
    [F.relu, torch.relu, torch.relu_, torch.Tensor.relu, lambda x: x.clamp(min=0), lambda x: F.threshold(x, 0, 0)],
)
def test_maps_of_relus_that_are_functions_can_not_be_counted(relu: Any) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = deep()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layers[5:](relu(self.layers[3](self.layers[:3](images))))

    for method in ("gradcam", "guided_gradcam", "guided_backprop", "deconvolution"):
        with pytest.raises(InputError, match=r"calls 1 .*ReLUs as functions"):
            attribute(Mixed(), IMAGES, 1, method)
    np.testing.assert_array_equal(attribute(Mixed(), IMAGES, 1, "gradient"), attribute(deep(), IMAGES, 1, "gradient"))


def test_a_sanity_check_takes_shared_weights_for_one_layer() -> None:
    steps = sanity_check(Reusing(True, again=True).double(), IMAGES, 1, "gradient", draws=1)
    assert [step.randomised for step in steps] == ["", "second and third", "last", "first"]
    tied = Reusing(False).double()
    tied.third.weight = tied.second.weight
    steps = sanity_check(tied, IMAGES, 1, "gradient", draws=1)
    assert [step.randomised for step in steps] == ["", "second and third", "last", "first"]


# Refusals.


class Functional(nn.Module):
    """The same network with ReLUs that no hook can see."""

    def __init__(self, seen: int) -> None:
        super().__init__()
        self.layers = deep()
        self.seen = seen

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            images = layer(images) if not isinstance(layer, nn.ReLU) or index in (self.seen,) else F.relu(images)
        return images


@pytest.mark.parametrize("method", GUIDED)
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Functional(seen=-1), "has no nn.ReLU module"),
        (Functional(seen=1), "calls 1 of its 2 ReLUs as functions"),
        (nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).double(), "has no nn.ReLU module"),
    ],
)
def test_guided_methods_refuse_relus_that_captum_cannot_see(module: nn.Module, message: str, method: str) -> None:
    with pytest.raises(InputError, match=f"{message}.* would silently be the plain gradient"):
        attribute(module, IMAGES, 0, method)


def test_the_plain_gradient_needs_no_relu_modules() -> None:
    np.testing.assert_array_equal(
        attribute(Functional(seen=-1), IMAGES, 0, "gradient"), attribute(deep(), IMAGES, 0, "gradient")
    )


@pytest.mark.parametrize("method", GUIDED)
def test_guided_methods_refuse_gated_networks(method: str) -> None:
    images = np.random.default_rng(1).normal(size=(12, 1, 4, 4))
    block = eq2_block(
        activation="gated_relu",
        penalty="nuclear",
        gates=4,
        reg=0.5,
        padding=1,
        tol=0.1,
        pricing=PricingOptions(starts=0),
    )
    module = block.fit(images, images[:, 0, 1, 1]).to_torch()
    with pytest.raises(InputError, match="has a gated convolution"):
        attribute(module, images, 0, method)
    np.testing.assert_allclose(attribute(module, images, 0, "cam").sum((1, 2)), block.predict(images), atol=1e-12)
    assert (attribute(module, images, 0, "gradcam") >= 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "lime"}, "method must be one of cam, gradcam, .*; got 'lime'"),
        ({"target": 3}, "target must be between 0 and 2; got 3 to 3"),
        ({"target": [0, 1]}, r"one for each of the 7 images; got int64 of shape \(2,\)"),
        ({"target": 0.5}, "target must be a class, an int"),
        ({"layer": 2}, "layer must be between 0 and 1, or negative from the end; got 2"),
        ({"layer": -3}, "layer must be between 0 and 1"),
        ({"method": "cam", "layer": 0}, 'method="cam" is of the last maps'),
        ({"images": IMAGES[:, :1]}, r"module can't take images of shape \(1, 6, 6\)"),
        ({"images": IMAGES[:0]}, "images are empty"),
        ({"images": IMAGES * np.nan}, "images must be finite"),
        ({"module": deep()[:5]}, r"outputs of shape \(n, classes\); for one image it gives \(1, 4, 3, 3\)"),
        ({"module": Functional(seen=-1)}, "no feature maps that can be explained"),
        ({"module": Functional(seen=4), "method": "cam"}, 'method="cam" is of the last maps of an nn.Sequential'),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        attribute(**{"module": deep(), "images": IMAGES, "target": 0, **arguments})


# Sparsity.


def test_gini_of_known_vectors() -> None:
    maps = np.array([[1, 1, 1, 1], [0, 0, -7, 0], [4, -3, 2, 1], [0, 0, 0, 0], [0, 1, 1, 0]], dtype=float)
    # 1 2 3 4: 1 - 2 (0.1 3.5 + 0.2 2.5 + 0.3 1.5 + 0.4 0.5) / 4 = 0.25
    np.testing.assert_allclose(gini(maps), [0.0, 0.75, 0.25, np.nan, 0.5], atol=1e-15)
    np.testing.assert_allclose(gini(maps.reshape(-1, 2, 2) * 1e300), gini(maps), atol=1e-15)
    np.testing.assert_allclose(gini(maps * 1e-300), gini(maps), atol=1e-15)


def test_half_mass_share_of_known_vectors() -> None:
    maps = np.array([[4, -3, 2, 1], [6, 1, 1, 1], [0, 0, 0, 0], [0, 0, 3, 3], [1, 1, 1, 1]], dtype=float)
    np.testing.assert_array_equal(half_mass_share(maps), [0.5, 0.25, np.nan, 0.25, 0.5])
    for count in (6, 10, 30, 1000):
        assert half_mass_share(np.full((1, count), 0.1))[0] == 0.5


def test_gini_is_half_the_mean_difference_by_the_mean() -> None:
    # Another definition of the index: the mean of |a - b| over all pairs of entries, by twice the mean.
    values = np.random.default_rng(3).exponential(size=(4, 20))
    pairs = np.abs(values[:, :, None] - values[:, None]).mean((1, 2))
    np.testing.assert_allclose(gini(values), pairs / (2 * values.mean(1)), atol=1e-14)


@pytest.mark.parametrize("measure", [gini, half_mass_share])
def test_sparsity_of_what_is_no_map(measure: Any) -> None:
    with pytest.raises(InputError, match="maps must be finite; 1 entries"):
        measure([[1.0, np.inf]])
    for maps in ([1.0, 2.0], np.zeros((0, 2, 2)), np.zeros((2, 0))):
        with pytest.raises(InputError, match=r"maps must have shape \(n, h, w\)"):
            measure(maps)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    random = np.random.default_rng(4)
    samples = random.exponential(size=(300, 60))
    for confidence, least, most in ((0.95, 0.90, 0.98), (0.5, 0.42, 0.58)):
        found = [bootstrap_interval(sample, confidence=confidence, resamples=400) for sample in samples]
        assert least < np.mean([interval.low <= 1.0 <= interval.high for interval in found]) < most


def test_an_interval_is_that_of_its_seed() -> None:
    values = np.random.default_rng(5).normal(size=40)
    first, again, other = (bootstrap_interval(values, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.mean == other.mean == values.mean()
    # About 1.96 standard errors to each side.
    assert (first.high - first.low) / 2 == pytest.approx(1.96 * values.std() / 40**0.5, rel=0.1)


def test_intervals_leave_out_what_is_not_there() -> None:
    assert bootstrap_interval([2.0, np.nan, 2.0]) == bootstrap_interval([2.0, 2.0])
    assert bootstrap_interval([2.0]).low == bootstrap_interval([2.0]).high == 2.0
    empty = bootstrap_interval([np.nan])
    assert empty.n == 0 and np.isnan([empty.mean, empty.low, empty.high]).all()
    for arguments, message in (
        ({"confidence": 1.0}, "confidence must be between 0 and 1"),
        ({"resamples": 0}, "resamples must be an int >= 1"),
        ({"values": [[1.0]]}, r"values must be of shape \(n,\)"),
    ):
        with pytest.raises(InputError, match=message):
            bootstrap_interval(**{"values": [1.0], **arguments})


# Sanity check.


def test_rank_correlation_is_spearmans() -> None:
    random = np.random.default_rng(6)
    first, second = random.integers(-4, 5, size=(2, 5, 4, 4)).astype(float)
    expected = [spearmanr(np.abs(a).ravel(), np.abs(b).ravel()).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(rank_correlation(first, second), expected, atol=1e-14)
    assert np.isnan(rank_correlation(np.ones((1, 2, 2)), first[:1, :2, :2]))[0]
    with pytest.raises(InputError, match="maps must have one shape"):
        rank_correlation(first, second[:2])


@pytest.mark.parametrize("method", ["gradcam", "gradient", "guided_backprop"])
def test_maps_change_with_the_weights_from_the_top(method: str) -> None:
    module = deep()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    images = np.random.default_rng(7).normal(size=(30, 2, 6, 6))
    steps = sanity_check(module, images, 1, method, draws=2)
    assert [step.randomised for step in steps] == ["", "7", "3", "0"]
    known = ~np.isnan(steps[0].correlation)
    np.testing.assert_allclose(steps[0].correlation[known], 1.0, atol=1e-12)
    assert all(np.nanmean(step.correlation) < 0.95 for step in steps[1:])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    again = sanity_check(module, images, 1, method, draws=2)
    assert all(np.array_equal(a.correlation, b.correlation, equal_nan=True) for a, b in zip(steps, again, strict=True))


def test_a_map_that_ignores_the_weights_keeps_its_likeness() -> None:
    # One filter and positive output weight: whatever their values, Grad-CAM is a multiple of (u x)_+ or zero.
    module = network([[2.0]], [[3.0]], nn.AvgPool2d(4))
    images = np.random.default_rng(8).uniform(0.1, 1, size=(6, 4, 4))
    _, top, bottom = sanity_check(module, images, 0, "gradient", draws=4)
    assert np.isnan(top.correlation).all()  # the gradient is the same everywhere, and has no ranks
    _, top, bottom = sanity_check(module, images, 0, "cam", draws=4)
    np.testing.assert_allclose(top.correlation, 1.0)
    np.testing.assert_allclose(bottom.correlation[~np.isnan(bottom.correlation)], 1.0)


def test_fixed_modules_are_no_layers() -> None:
    module = deep()
    module[0].requires_grad_(False)
    assert [step.randomised for step in sanity_check(module, IMAGES, 0, "gradient", draws=1)] == ["", "7", "3"]
    with pytest.raises(InputError, match="nothing to make random"):
        sanity_check(module.requires_grad_(False), IMAGES, 0)
    with pytest.raises(InputError, match="draws must be an int >= 1"):
        sanity_check(deep(), IMAGES, 0, draws=0)


# Figures.


def test_figures_refuse_what_cannot_be_drawn(tmp_path: Path) -> None:
    images = np.zeros((2, 1, 3, 3))
    path = str(tmp_path / "figure.png")
    with pytest.raises(InputError, match="nothing to draw"):
        plot_explanations(images, [0, 0], ["a"], {}, {"convex": [0, 0]}, path)
    maps = {"cam": {"convex": np.zeros((2, 3, 4))}}
    with pytest.raises(InputError, match=r"maps\['cam'\]\['convex'\] must have shape \(2, 3, 3\)"):
        plot_explanations(images, [0, 0], ["a"], maps, {"convex": [0, 0]}, path)
    with pytest.raises(InputError, match="nothing to draw"):
        plot_sanity({}, path)
    assert not list(tmp_path.iterdir())


def test_colour_images_and_strange_names(tmp_path: Path) -> None:
    images = np.random.default_rng(9).random((2, 3, 4, 4))
    maps = {"cam": {"convex": np.zeros((2, 4, 4))}}
    path = tmp_path / "figure.png"
    plot_explanations(images, [0, 1], ["$a$" * 9, "_^"], maps, {"convex": [1, 1]}, str(path), title="$")
    with Image.open(path) as picture:
        assert min(picture.size) > 300


# A run's folder.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run(Settings(layers=2, limit_train=60, reg=10.0, gates=8, starts=8, baseline_epochs=10, baseline_width=8,
                 output=str(folder)))  # fmt: skip
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_the_networks_are_those_of_the_run(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    _, test = load_data("digits")
    for entry in summary["layers"]:
        networks, layer, _ = load_networks(finished, entry["layer"])
        assert layer == entry["layer"] and list(networks) == ["convex", "nonconvex"]
        for name, module in networks.items():
            outputs = module(torch.as_tensor(test.images)).detach().numpy()
            assert accuracy(outputs, test.labels) == entry[name]["test_accuracy"]


def test_the_command_line_writes_its_files_and_no_others(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main([str(folder), "--method", "gradcam", "gradient", "--images", "3", "--seed", "5"]) == 0
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(after) == set(before) | set(FILES)
    # The report shows the new figures; everything else is as it was.
    assert all(after[name] == content for name, content in before.items() if name != "report.html")
    assert b64encode(after["explanations.png"]) in after["report.html"]
    found = json.loads(after["explanations.json"])
    assert (found["layer"], found["target"], found["methods"]) == (2, "the true class", ["gradcam", "gradient"])
    networks, _, _ = load_networks(folder)
    _, test = load_data("digits")
    for image in found["images"]:
        row = image["index"]
        assert image["true"] == test.classes[test.labels[row]]
        for name, module in networks.items():
            outputs = module(torch.as_tensor(test.images[row : row + 1]))
            assert image[name] == test.classes[int(outputs.argmax())]
    assert len({image["true"] for image in found["images"]}) == 3
    rows = list(csv.DictReader((folder / "sparsity.csv").read_text().splitlines()))
    assert len(rows) == 2 * 2 * 3
    ginis = {name: gini(attribute(module, test.images, test.labels, "gradient")) for name, module in networks.items()}
    ginis["difference"] = ginis["convex"] - ginis["nonconvex"]
    for row in rows:
        if (row["method"], row["measure"]) == ("gradient", "gini"):
            assert float(row["mean"]) == pytest.approx(ginis[row["network"]].mean(), rel=1e-12)
        assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])
        assert row["layer"] == "2" and 0 < int(row["n"]) <= 360
    assert [step["randomised"] for step in found["sanity"]["steps"][:4]] == ["", "linear", "conv2", "conv1"]
    for name in ("explanations.png", "sanity.png"):
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 400
    output = capsys.readouterr().out
    assert "360 test images" in output and "half-mass share" in output and "explanations.png" in output
    # The same command gives the same numbers.
    assert main([str(folder), "--method", "gradcam", "gradient", "--images", "3", "--seed", "5", "--quiet"]) == 0
    assert json.loads((folder / "explanations.json").read_text()) == found
    assert capsys.readouterr().out == ""


def test_another_layer_and_class(folder: Path) -> None:
    found = explain_run(folder, layer=1, methods=["cam"], n_images=1, target="7")
    assert (found["layer"], found["target"]) == (1, "class 7")
    networks, _, _ = load_networks(folder, 1)
    _, test = load_data("digits")
    expected = np.nanmean(half_mass_share(attribute(networks["convex"], test.images, 7, "cam")))
    row = next(r for r in found["sparsity"] if (r["measure"], r["network"]) == ("half_mass_share", "convex"))
    assert row["mean"] == pytest.approx(expected, rel=1e-12)


def test_a_summary_from_an_editor_on_windows(folder: Path) -> None:
    content = (folder / "summary.json").read_bytes()
    (folder / "summary.json").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert explain_run(folder, layer=1, methods=["cam"], n_images=1)["n_test"] == 360


def test_a_run_without_its_baseline(folder: Path) -> None:
    (folder / "baseline.safetensors").unlink()
    found = explain_run(folder, layer=1, methods=["cam"], n_images=1)
    assert {row["network"] for row in found["sparsity"]} == {"convex"}


def test_a_gated_run_is_explained_by_what_it_allows(tmp_path: Path) -> None:
    target = tmp_path / "gated"
    run(Settings(layers=1, limit_train=40, reg=2.0, gates=4, starts=8, activation="gated_relu", penalty="nuclear",
                 tol=0.1, baseline_epochs=5, baseline_width=8, output=str(target)))  # fmt: skip
    assert explain_run(target, n_images=2)["methods"] == ["cam", "gradcam", "gradient"]
    with pytest.raises(InputError, match="has a gated convolution"):
        explain_run(target, methods=["guided_backprop"])


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _drop_layer(path: Path) -> None:
    save_file({k: v.clone() for k, v in load_file(path).items() if not k.startswith("layers.1")}, path)


def _transpose(path: Path) -> None:
    save_file({k: v.T.contiguous() if v.ndim == 2 else v.clone() for k, v in load_file(path).items()}, path)


def _spoil(path: Path) -> None:
    save_file({k: v * float("nan") for k, v in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("summary.json", Path.unlink, "summary.json is missing"),
        ("summary.json", _cut, "summary.json is damaged"),
        ("summary.json", lambda path: path.write_text("[]"), "summary.json is damaged"),
        ("config.json", Path.unlink, "config.json is missing"),
        ("model.safetensors", _cut, "truncated or isn't a safetensors file"),
        ("baseline.safetensors", _cut, "truncated or isn't a safetensors file"),
        ("baseline.safetensors", _drop_layer, "baseline.safetensors is damaged: it has no 'layers.1"),
        ("baseline.safetensors", _transpose, "doesn't fit the model beside it: neurons must have filters"),
        ("baseline.safetensors", _spoil, "doesn't fit the model beside it: values are not finite"),
    ],
)
def test_a_damaged_folder_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Any, message: str
) -> None:
    damage(folder / name)
    with pytest.raises(ModelFileError, match=message):
        explain_run(folder, methods=["cam"], n_images=1)
    assert main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cvxcnn.explain: error: ") and "Traceback" not in error
    assert not any((folder / file).exists() for file in FILES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/none"], "is not a folder. Give the folder of a finished run."),
        (["{folder}/summary.json"], "is not a folder. Give the folder of a finished run."),
        (["{folder}", "--layer", "3"], "layer must be between 1 and 2"),
        (["{folder}", "--layer", "0"], "--layer must be an int >= 1; got 0"),
        (["{folder}", "--class", "ten"], "class must be a name (0, 1, 2, 3, 4, 5, 6, 7, 8, 9) or a number"),
        (["{folder}", "--method", "lime"], "--method must be one of cam, gradcam"),
        (["{folder}", "--images", "0"], "--images must be an int from 1 to 100; got 0"),
        ([], "the following arguments are required: DIR"),
    ],
)
def test_wrong_usage_is_one_sentence(
    finished: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([argument.format(folder=finished) for argument in arguments]) == 2
    assert message in capsys.readouterr().err


def test_images_that_are_not_those_of_the_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.array([0, 1, 0, 1])
    other = tmp_path / "other.npz"
    np.savez(other, x_train=np.zeros((4, 8, 8)), y_train=labels, x_test=np.ones((4, 8, 8)), y_test=labels)
    summary = json.loads((folder / "summary.json").read_text())
    summary["settings"]["data"] = str(other)
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(DataError, match="are not those of the run"):
        explain_run(folder)
    other.unlink()
    assert main([str(folder)]) == 1
    assert "other.npz" in capsys.readouterr().err


def test_help_says_what_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert all(name in capsys.readouterr().out.replace("\n", " ") for name in ("explanations.png",))
