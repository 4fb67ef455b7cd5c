"""The patches that excite neurons most: what they see by gradients, the most exciting ones by brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from problems import digits
from torch import nn

from cvxcnn import ConvexConvBlock, LayerwiseCNN, PricingOptions
from cvxcnn.errors import InputError
from cvxcnn.explain import exciting_patches
from cvxcnn.explain.exciting import receptive_field
from cvxcnn.explain.figures import plot_exciting

SIDE = 64  # so wide that no field is cut off at the border


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.integers(1, 2), st.integers(0, 1)), min_size=1, max_size=3)
)
def test_what_an_entry_sees_is_where_its_gradient_is(layers: list[tuple[bool, int, int, int]]) -> None:
    modules: list[nn.Module] = []
    for pools, kernel, stride, padding in layers:
        padding = min(padding, kernel // 2)
        modules.append(
            nn.AvgPool2d(kernel, stride, padding)
            if pools
            else nn.Conv2d(1, 1, kernel, stride, padding, dilation=stride, bias=False)
        )
        if isinstance(modules[-1], nn.Conv2d):
            nn.init.constant_(modules[-1].weight, 1.0)
    image = torch.zeros(1, 1, SIDE, SIDE, requires_grad=True)
    maps = nn.Sequential(*modules)(image)[0, 0]
    place = maps.shape[0] // 2
    (slopes,) = torch.autograd.grad(maps[place, place], image)
    rows = slopes[0, 0].sum(dim=1).nonzero()
    for size, step, first in receptive_field(modules):
        start = first + step * place
        assert (max(0, start), min(SIDE, start + size)) == (int(rows.min()), int(rows.max()) + 1)


def test_the_most_exciting_patches_are_those_of_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    conv, above, linear = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1), nn.Linear(20, 4)
    network = nn.Sequential(
        conv, nn.ReLU(), nn.AvgPool2d(2), above, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), linear
    ).double()
    for values in network.parameters():
        values.data = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    linear.weight.data[:, 8:12] = 0.0  # the third neuron feeds nothing
    images = torch.rand(9, 2, 12, 12, generator=generator, dtype=torch.float64)
    found = exciting_patches(network, images, neurons=8, count=3)
    filters = torch.cat([above.weight.flatten(1), above.bias[:, None]], dim=1).detach()
    norms = (filters.norm(dim=1) * linear.weight.detach().view(4, 5, 4).norm(dim=(0, 2))).tolist()
    order = sorted((i for i in range(5) if i != 2), key=lambda i: -norms[i])
    assert found.neurons.tolist() == order
    np.testing.assert_allclose(found.shares, [norms[i] / sum(norms) for i in order])
    assert found.patches.shape == (4, 3, 2, 8, 8)
    maps = network[:5](images).detach()
    effects = linear.weight.detach().view(4, 5, 4).mean(dim=2)
    for place, neuron in enumerate(order):
        largest = maps[:, neuron].flatten(1).max(dim=1)
        rows = largest.values.argsort(descending=True)[:3]
        assert found.images[place].tolist() == rows.tolist()
        np.testing.assert_allclose(found.responses[place], largest.values[rows])
        output = int(effects[:, neuron].abs().argmax())
        assert (found.outputs[place], found.signs[place]) == (output, int(effects[output, neuron].sign()))
        for number, row in enumerate(rows.tolist()):
            y, x = divmod(int(largest.indices[row]), 6)
            for dy in range(8):
                for dx in range(8):
                    i, j = 2 * y - 3 + dy, 2 * x - 3 + dx
                    seen = found.patches[place, number, :, dy, dx]
                    if 0 <= i < 12 and 0 <= j < 12:
                        np.testing.assert_array_equal(seen, images[row, :, i, j])
                    else:
                        assert np.isnan(seen).all()


@pytest.mark.parametrize("activation", ["relu", "gated_relu", "quadratic", "linear"])
def test_layers_of_every_activation_have_them(activation: str, tmp_path: Path) -> None:
    images, labels = digits(20, 2)
    few = {"gates": 4, "pricing": PricingOptions(starts=0)} if "relu" in activation else {}
    penalty = "group" if activation == "quadratic" else "dense"
    block = ConvexConvBlock(activation=activation, penalty=penalty, reg=1.0, tol=1e-2, **few)
    stack = LayerwiseCNN(layers=2, block=block, downsample=2).fit(images, np.eye(2)[labels])
    found = {f"layer {j + 1}": exciting_patches(stack.to_torch(j, alone=True), images) for j in (0, 1)}
    # Of the second layer 2 + 2 (1 + 1) + 2 = 8 pixels, at places up to 6 pixels apart: never all of the image.
    assert [one.patches.shape[3:] for one in found.values()] == [(3, 3), (8, 8)]
    path = tmp_path / "patches.png"
    plot_exciting(found, list("0123456789"), str(path), title="$")
    with Image.open(path) as picture:
        assert min(picture.size) > 400


def test_what_sees_all_of_an_image_shows_it_once() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 9, padding=4), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(1, 1))
    nn.init.constant_(network[0].weight, 1.0)
    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    patches = exciting_patches(network, images).patches
    assert patches.shape == (1, 2, 1, 4, 4) and not np.isnan(patches).any()


def test_other_networks_are_refused() -> None:
    with pytest.raises(InputError, match="takes a network that ends in pooling, Flatten and Linear"):
        exciting_patches(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), np.zeros((1, 4, 4)))
    with pytest.raises(InputError, match="nothing to draw"):
        plot_exciting({}, [], "never.png")
