"""Full weight matrices against torch's convolutions, and the premises of the wide-layer theorem."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import digits, normal
from torch import nn

from cvxcnn import ConvexConvBlock
from cvxcnn.errors import InputError
from cvxcnn.theory import full_weight_adjoint, full_weight_matrix, wide_layer_report


@given(
    channels=st.integers(1, 2), filters=st.integers(1, 2), kernel=st.integers(1, 3), stride=st.integers(1, 2),
    padding=st.integers(0, 1), dilation=st.integers(1, 2), groups=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_full_matrix_is_the_convolution(
    channels: int, filters: int, kernel: int, stride: int, padding: int, dilation: int, groups: bool, seed: int
) -> None:
    number = channels if groups else 1
    conv = nn.Conv2d(channels, filters * number, kernel, stride, padding, dilation, groups=number).double()
    with torch.no_grad():
        conv.weight.copy_(normal(*conv.weight.shape, seed=seed))
    images = normal(3, channels, 5, 6, seed=seed + 1)
    matrix = full_weight_matrix(conv, (channels, 5, 6))
    expected = (conv(images) - conv.bias[:, None, None]).detach()
    torch.testing.assert_close(images.flatten(1) @ matrix, expected.flatten(1))
    other = normal(*matrix.shape, seed=seed + 2)
    adjoint = torch.as_tensor(full_weight_adjoint(other, conv, (channels, 5, 6)))
    torch.testing.assert_close((matrix * other).sum(), (conv.weight.detach() * adjoint).sum())


def test_maps_of_a_filter_are_together() -> None:
    conv = nn.Conv2d(1, 2, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([2.0, 3.0]).view(2, 1, 1, 1))
    assert full_weight_matrix(conv, (1, 1, 2)).tolist() == [[2.0, 0.0, 3.0, 0.0], [0.0, 2.0, 0.0, 3.0]]


@pytest.mark.parametrize(
    ("conv", "shape", "words"),
    [
        (nn.Linear(2, 2), (1, 2, 2), "conv must be a torch.nn.Conv2d; got Linear"),
        (nn.Conv2d(2, 1, 1), (1, 2, 2), r"image_shape must be \(C, H, W\) with C = 2"),
        (nn.Conv2d(1, 1, 3), (1, 2, 2), r"conv doesn't take images of shape \(1, 2, 2\)"),
    ],
)
def test_bad_convolutions_are_refused(conv: nn.Conv2d, shape: tuple[int, int, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        full_weight_matrix(conv, shape)


def smooth(width: int, n: int = 6) -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(), first=nn.Linear(9, width), soft=nn.Softplus(), second=nn.Linear(width, 4),
            again=nn.Sigmoid(), last=nn.Linear(4, 2),
        )
    ).double()  # fmt: skip
    return net, normal(n, 1, 3, 3, seed=1)


def test_all_premises_hold_for_a_wide_smooth_network() -> None:
    net, images = smooth(20)
    report = wide_layer_report(net, images)
    assert report.guarantee and report.wide_layer == "first"
    assert report.widths == (20, 4, 2)
    assert {premise.verdict for premise in report.premises} == {"holds", "measured"}


def test_the_bound_on_the_gradient_is_below_the_gradient() -> None:
    net, images = smooth(20)
    report = wide_layer_report(net, images)
    targets = normal(6, 2, seed=2)
    residual = net(images) - targets
    (0.5 * residual.square().sum()).backward()
    gradient = float(net.second.weight.grad.norm())
    assert 0 < report.factors["product"] * float(residual.detach().norm()) <= gradient
    assert report.factors["least slope after second"] <= 0.25


@pytest.mark.parametrize(
    ("change", "premise"),
    [
        (lambda net: setattr(net, "soft", nn.ReLU()), "activation"),
        (lambda net: setattr(net, "first", nn.Linear(9, 20, bias=False).double()), "biases"),
        (
            lambda net: setattr(net, "second", nn.Linear(20, 1).double()) or setattr(net, "last", nn.Linear(1, 2)),
            "pyramid",
        ),
    ],
)
def test_each_premise_can_fail_alone(change: object, premise: str) -> None:
    net, images = smooth(20)
    change(net)  # type: ignore[operator]
    report = wide_layer_report(net, images)
    assert not report.guarantee
    assert [entry.name for entry in report.premises if entry.verdict == "fails"] == [premise]


def test_narrow_networks_and_copies_fail() -> None:
    net, images = smooth(5)
    report = wide_layer_report(net, images)
    assert report.wide_layer is None and report.premise("width").verdict == "fails"
    net, images = smooth(20)
    report = wide_layer_report(net, torch.cat([images, images[:1]]))
    assert report.premise("images").verdict == "fails" and not report.guarantee


def test_convolutions_share_biases_and_patches() -> None:
    images, labels = digits(60)
    block = ConvexConvBlock(gates=40, reg=1.0).fit(images, labels / 10)
    report = wide_layer_report(block.to_torch(), images)
    failing = {premise.name for premise in report.premises if premise.verdict == "fails"}
    assert {"biases", "patches", "activation"} <= failing
    # Brute force over pairs.
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).reshape(60, 64, 9)
    kinds = [{window.tobytes() for window in image} for image in windows]
    share = np.mean([bool(kinds[i] & kinds[j]) for i in range(60) for j in range(60) if i != j])
    assert report.premise("patches").value == pytest.approx(share)


def test_max_pooling_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Softplus(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 1))
    assert wide_layer_report(net, normal(3, 1, 3, 3)).premise("pooling").verdict == "fails"


def test_other_modules_are_refused() -> None:
    with pytest.raises(InputError, match=r"flat nn.Sequential"):
        wide_layer_report(nn.Linear(2, 2), normal(3, 1, 2, 2))
    with pytest.raises(InputError, match="doesn't take images of shape"):
        wide_layer_report(nn.Sequential(nn.Conv2d(3, 2, 2)), normal(3, 1, 2, 2))
    with pytest.raises(InputError, match=r"takes a torch.nn.Module"):
        wide_layer_report("net", normal(3, 1, 2, 2))
