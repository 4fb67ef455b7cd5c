"""Neurons read back from a solution, and the torch modules made of them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from problems import normal
from torch import Tensor, nn

from cvxcnn.activations.gated_relu import GatedConv
from cvxcnn.activations.neurons import Neurons, convolution, read_neurons, to_module
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.patches.pooling import CellSum, CellWeights, pooling
from cvxcnn.penalties import DensePenalty
from cvxcnn.program import Program, filter_program, nonconvex_objective, relu_program

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 2, "bias": True, "pool_cells": 2, "pooling": "mean"},
    {"kernel_size": (1, 3), "stride": (1, 2), "padding": (1, 0), "pooling": "mean"},
    {"kernel_size": 3, "padding": 1, "stride": 2, "bias": True, "pool_cells": 2},
    {"kernel_size": 2, "pool_cells": 3, "bias": True},  # maps of 5 x 6: cells that overlap
    {"kernel_size": 2, "pool_cells": 3, "pooling": "mean"},
]
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES)


def program(geometry: dict[str, Any], kind: str, intercept: bool = False, outputs: int = 2) -> tuple[Program, Tensor]:
    """Return a program on 5 x 2 x 6 x 7 images and feasible weights, not optimal ones."""
    images = normal(5, 2, 6, 7)
    patches = Patches(images, PatchGeometry(**geometry))
    vectors, targets = normal(4, patches.dim, seed=1), normal(5, outputs, seed=2)
    if kind == "relu":
        made = relu_program(patches, vectors, targets, 0.3, intercept=intercept)
    else:
        penalty = {"filters": None, "dense": DensePenalty()}[kind]
        unit = nn.functional.normalize(vectors, dim=1)
        made = filter_program(patches, unit, targets, 0.3, penalty=penalty, intercept=intercept)
    weights = normal(*made.design.shape(outputs), seed=3)
    weights[::3] = 0.0
    return made, made.repair(weights)


@every_geometry
@pytest.mark.parametrize("kind", ["relu", "filters", "dense"])
@pytest.mark.parametrize("intercept", [False, True])
def test_eq1_of_the_module_is_the_program(geometry: dict[str, Any], kind: str, intercept: bool) -> None:
    """For any feasible weights: the same objective and the same outputs, neurons and module alike."""
    made, weights = program(geometry, kind, intercept)
    patches = made.design.patches
    neurons = read_neurons(made, weights)
    prediction = made.design.predict(weights)
    fitted = prediction + made.intercepts(prediction)
    torch.testing.assert_close(neurons.predict(patches), fitted, rtol=1e-9, atol=1e-9)
    module = to_module(neurons, patches.geometry, (2, 6, 7), intercept=intercept)
    with torch.no_grad():
        torch.testing.assert_close(module(patches.images), fitted, rtol=1e-9, atol=1e-9)
    value = nonconvex_objective(module, patches.images, made.targets, 0.3)
    assert value == pytest.approx(made.objective(weights), rel=1e-9)


@pytest.mark.parametrize("kind", ["relu", "filters", "dense"])
def test_neurons_are_balanced(kind: str) -> None:
    made, weights = program({"kernel_size": 2, "pool_cells": 2}, kind)
    neurons = read_neurons(made, weights)
    torch.testing.assert_close(neurons.filters.norm(dim=1), neurons.readout.flatten(1).norm(dim=1))
    fed = (neurons.readout != 0).flatten(1).sum(dim=1)
    assert bool((fed == (8 if kind == "dense" else 1)).all())
    if kind == "dense":
        assert len(neurons) == int(weights.flatten(1).any(dim=1).sum())
    else:
        assert len(neurons) == int((weights.norm(dim=2) > 0).sum())


def test_neuron_by_hand() -> None:
    """One patch (3, 4): v = (3, 4) has u = v / sqrt(5) and w = sqrt(5); the block of the other sign has -sqrt(5)."""
    patches = Patches(torch.tensor([[[[3.0, 4.0]]]], dtype=torch.float64), PatchGeometry(kernel_size=(1, 2)))
    made = relu_program(patches, torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.zeros(1, 1).double(), 1.0)
    weights = made.zeros()
    weights[1, 0, :, 0] = torch.tensor([3.0, 4.0])
    neurons = read_neurons(made, weights)
    root = 5**0.5
    torch.testing.assert_close(neurons.filters, torch.tensor([[3.0, 4.0]], dtype=torch.float64) / root)
    assert neurons.readout.flatten().tolist() == pytest.approx([-root])
    assert float(neurons.predict(patches)) == pytest.approx(-25)


@pytest.mark.parametrize("intercept", [False, True])
def test_no_neurons_is_a_constant(intercept: bool) -> None:
    made, weights = program({"kernel_size": 2}, "relu", intercept)
    neurons = read_neurons(made, weights * 0)
    assert len(neurons) == 0
    assert neurons.filters.shape == (1, 8) and not neurons.filters.any()
    module = to_module(neurons, made.design.patches.geometry, (2, 6, 7), intercept=intercept)
    with torch.no_grad():
        outputs = module(made.design.patches.images)
    expected = made.targets.mean(dim=0) * intercept
    torch.testing.assert_close(outputs, expected.expand(5, 2))


@pytest.mark.parametrize("pooling_name", ["sum", "mean", "bilinear"])
@pytest.mark.parametrize(("sides", "cells"), [((6, 4), 2), ((5, 6), 3), ((7, 5), 2), ((3, 3), 1), ((4, 4), 4)])
def test_pooling_from_the_pool_matrix(pooling_name: str, sides: tuple[int, int], cells: int) -> None:
    geometry = PatchGeometry(kernel_size=1, pooling=pooling_name, pool_cells=cells)
    maps = normal(2, 3, *sides)
    expected = maps.flatten(2) @ geometry.pool_matrix(sides).T
    module = pooling(geometry, sides, maps)
    torch.testing.assert_close(module(maps).flatten(2), expected)
    divisible = all(side % cells == 0 for side in sides)
    uneven = nn.AdaptiveAvgPool2d if pooling_name == "mean" else CellSum
    assert type(module) is (CellWeights if pooling_name == "bilinear" else nn.AvgPool2d if divisible else uneven)


def test_cell_sizes_are_saved_with_the_module() -> None:
    module = pooling(PatchGeometry(kernel_size=1, pool_cells=2), (3, 5), torch.zeros(1))
    assert module.state_dict()["sizes"].tolist() == [[6.0, 6.0], [6.0, 6.0]]
    assert module.double()(torch.ones(1, 1, 3, 5).double()).tolist() == [[[[6.0, 6.0], [6.0, 6.0]]]]


def test_module_is_made_of_standard_layers() -> None:
    made, weights = program({"kernel_size": 2, "bias": True}, "relu")
    module = to_module(read_neurons(made, weights), made.design.patches.geometry, (2, 6, 7), intercept=False)
    assert [type(part) for part in module] == [nn.Conv2d, nn.ReLU, nn.AvgPool2d, nn.Flatten, nn.Linear]
    assert module.conv.bias is not None and module.linear.bias is None
    assert all(parameter.dtype == torch.float64 for parameter in module.parameters())


def test_gated_convolution_from_the_definition() -> None:
    geometry = PatchGeometry(kernel_size=2, bias=True)
    images, gates, filters = normal(3, 2, 4, 4), normal(2, 9, seed=1), normal(6, 9, seed=2)
    module = GatedConv(convolution(gates, geometry, 2), convolution(filters, geometry, 2))
    unfolded = Patches(images, geometry).unfold()
    with torch.no_grad():
        found = module(images).flatten(2)
    for image, patch, index in itertools.product(range(3), range(9), range(6)):
        x = unfolded[image, patch]
        expected = float(x @ filters[index]) if x @ gates[index // 3] >= 0 else 0.0
        assert float(found[image, index, patch]) == pytest.approx(expected)


def test_readout_order_is_that_of_flatten() -> None:
    """A single weight, on (neuron 1, cell 2, output 0), reads channel 1 at row 1, column 0."""
    geometry = PatchGeometry(kernel_size=1, pool_cells=2)
    readout = torch.zeros(2, 4, 3, dtype=torch.float64)
    readout[1, 2, 0] = 5.0
    neurons = Neurons(torch.tensor([[1.0], [1.0]], dtype=torch.float64), readout, torch.zeros(3).double())
    module = to_module(neurons, geometry, (1, 2, 2), intercept=False)
    with torch.no_grad():
        outputs = module(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64))
    assert outputs.tolist() == [[15.0, 0.0, 0.0]]
