"""Polish: never above the network it began with, the same kind of module, and a clear no to anything else."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from problems import noise_tensors
from torch import Tensor, nn

from cvxcnn import PricingOptions, nonconvex_objective, polish
from cvxcnn.errors import InputError

QUICK = PricingOptions(starts=8, ascent_steps=8, improvement_steps=8, max_rounds=2)


data = partial(noise_tensors, n=15, side=5, channels=2, outputs=3)


def network(
    pool: nn.Module | None = None,
    cells: int = 4,
    *,
    outputs: int = 3,
    act: nn.Module | None = None,
    linear_bias: bool = True,
    seed: int = 0,
    **conv: Any,
) -> nn.Sequential:
    """Return an untrained block on 2 x 5 x 5 images."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 6, 3, **{"padding": 1, **conv}),
            act or nn.ReLU(),
            pool or nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(6 * cells, outputs, bias=linear_bias),
        ).double()


@pytest.mark.parametrize(
    ("options", "outputs"),
    [
        ({}, 1),
        ({"linear_bias": False}, 3),
        ({"bias": False, "padding": "same"}, 3),
        ({"pool": nn.AvgPool2d(5), "cells": 1}, 1),
        ({"pool": nn.AvgPool2d(3, divisor_override=1), "cells": 1, "padding": 0}, 3),  # sums over the whole map
        ({"pool": nn.Identity(), "cells": 9, "padding": 1, "stride": 2}, 3),  # a cell a position
    ],
)
def test_an_untrained_network_improves(options: dict[str, Any], outputs: int) -> None:
    images, targets = data(outputs=outputs)
    module = network(outputs=outputs, **options)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    polished = polish(module, images, targets, 0.5, pricing=QUICK)
    assert polished.improved
    assert polished.objective < polished.objective_before == nonconvex_objective(module, images, targets, 0.5)
    assert polished.objective == nonconvex_objective(polished.module, images, targets, 0.5)
    certificate = polished.certificate
    assert certificate.global_bound <= certificate.sampled_bound + 1e-9 <= polished.objective + 1e-8
    assert certificate.objective - certificate.sampled_bound <= 1e-5 * certificate.objective
    # The same kind of module; the one given is as it was.
    assert polished.module[0].out_channels == polished.n_neurons
    assert (polished.module[0].bias is None) == (module[0].bias is None)
    assert (polished.module[-1].bias is None) == (module[-1].bias is None)
    assert all(bool((before[name] == value).all()) for name, value in module.state_dict().items())


def test_a_trained_network_is_a_start_that_counts() -> None:
    images, targets = data()
    module = network(linear_bias=False)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        squares = sum(parameter.square().sum() for parameter in module.parameters())
        (0.5 * (module(images) - targets).square().sum() + 0.5 * 0.5 * squares).backward()
        optimizer.step()
    polished = polish(module, images, targets, 0.5, pricing=QUICK)
    untrained = polish(network(linear_bias=False), images, targets, 0.5, pricing=QUICK)
    assert polished.objective < polished.objective_before < untrained.objective_before
    assert polished.certificate.global_bound <= polished.objective


def optimum(dtype: torch.dtype = torch.float64) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Return the optimal network of one image, one patch x = (3, 4), target 1, reg 1: Eq. 1 is 0.18.

    Along u = x / 5 a neuron of weight s costs 1/2 (5 s - 1)^2 + s, least at s = 0.16.
    """
    module = nn.Sequential(nn.Conv2d(1, 1, (1, 2), bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(0.4 * torch.tensor([0.6, 0.8]).view(1, 1, 1, 2))
        module[-1].weight.fill_(0.4)
    image = torch.tensor([[[[3.0, 4.0]]]], dtype=torch.float64)
    return module.to(dtype), image, torch.ones(1, 1, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_optimal_network_stays(dtype: torch.dtype) -> None:
    module, image, target = optimum(dtype)
    polished = polish(module, image, target, 1.0, pricing=QUICK)
    assert polished.objective <= polished.objective_before
    assert polished.objective == pytest.approx(0.18, abs=1e-9)
    assert polished.certificate.global_gap <= 1e-6
    assert polished.n_neurons == 1
    assert all(parameter.dtype == dtype for parameter in polished.module.parameters())


def test_dead_neurons_are_dropped_or_revived() -> None:
    images, targets = data()
    module = network()
    with torch.no_grad():
        module[0].weight[1:] = 0.0
        module[0].bias[1:] = 0.0
        module[-1].weight[:] = 0.0
    polished = polish(module, images, targets, 0.5, pricing=QUICK)
    assert polished.objective < polished.objective_before
    filters, readout = polished.module[0].weight.flatten(1), polished.module[-1].weight.unflatten(1, (-1, 4))
    assert (filters.norm(dim=1) > 0).all() and (readout.norm(dim=(0, 2)) > 0).all()


def test_zero_is_kept_where_zero_is_best() -> None:
    images, targets = data()
    module = network(linear_bias=False)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    polished = polish(module, images, targets, 1e6, pricing=QUICK)
    assert (polished.n_neurons, polished.improved) == (0, False)
    assert polished.objective == pytest.approx(0.5 * float(targets.square().sum()))
    assert_allclose(polished.module(images).detach().numpy(), 0.0)


def test_other_losses() -> None:
    images, targets = data(outputs=2)
    module = network(outputs=2, linear_bias=False)
    polished = polish(module, images, targets.sign(), 0.1, loss="logistic", pricing=QUICK)
    assert polished.objective < polished.objective_before
    value = nonconvex_objective(polished.module, images, targets.sign(), 0.1, loss="logistic")
    assert value == polished.objective >= polished.certificate.global_bound
    with pytest.raises(InputError, match="the Linear layer has a bias, which needs loss=\"squared\"; got 'logistic'"):
        polish(network(outputs=2), images, targets.sign(), 0.1, loss="logistic", pricing=QUICK)


def test_a_float32_network_comes_back_in_float32() -> None:
    images, targets = data()
    polished = polish(network().float(), images, targets, 0.5, pricing=QUICK)
    assert polished.module[0].weight.dtype == polished.module[-1].weight.dtype == torch.float32
    assert polished.objective == nonconvex_objective(polished.module, images, targets, 0.5)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 1000), n=st.integers(1, 6), width=st.integers(1, 4), cells=st.integers(1, 2),
    bias=st.booleans(), intercept=st.booleans(), single=st.booleans(), reg=st.sampled_from([0.01, 0.3, 5.0]),
)  # fmt: skip
def test_never_higher(
    seed: int, n: int, width: int, cells: int, bias: bool, intercept: bool, single: bool, reg: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 1, 3, 3, generator=generator, dtype=torch.float64)
    targets = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    module = nn.Sequential(
        nn.Conv2d(1, width, 2, bias=bias), nn.ReLU(), nn.AdaptiveAvgPool2d(cells), nn.Flatten(),
        nn.Linear(width * cells**2, 2, bias=intercept),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    module = module.float() if single else module.double()
    quick = PricingOptions(starts=4, ascent_steps=4, improvement_steps=4, max_rounds=1)
    once = polish(module, images, targets, reg, pricing=quick)
    assert once.objective <= once.objective_before
    assert nonconvex_objective(once.module, images, targets, reg) == once.objective
    assert once.certificate.global_bound <= once.objective
    again = polish(once.module, images, targets, reg, pricing=quick)
    assert again.objective <= once.objective == again.objective_before


NORMALISED = nn.Sequential(
    nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    nn.Linear(4, 3),
)  # fmt: skip


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("a network", "takes a torch.nn.Module; got str"),
        (nn.Linear(3, 3), "exactly one Conv2d; got 0"),
        (network(act=nn.LeakyReLU()), "its layers are Conv2d, LeakyReLU"),
        (network(nn.LPPool2d(2, 2, 3)), "reads no other layers, activations or poolings"),
        (network(nn.MaxPool2d(2)), "windows that overlap or leave a margin"),
        (network(nn.AvgPool2d(2)), "windows that overlap or leave a margin"),
        (network(nn.AvgPool2d(3, 2, padding=1), cells=9), "windows that overlap"),
        (network(nn.AdaptiveAvgPool2d((1, 2)), cells=2), "reads 12 numbers from 6 feature maps"),
        (NORMALISED, "BatchNorm2d"),
        (network(dilation=2, padding=2), "dilation=1"),
        (network(groups=2), "groups=1"),
        (network(padding_mode="reflect"), "padding_mode must be \"zeros\"; the Conv2d has 'reflect'"),
    ],
)
def test_other_modules_are_refused(module: Any, message: str) -> None:
    images, targets = data()
    with pytest.raises(InputError, match=message):
        polish(module, images, targets, 0.5, pricing=QUICK)


def test_zero_weights_hide_no_other_architecture() -> None:
    module = network(nn.LPPool2d(2, 2, 3))
    with torch.no_grad():
        module[-1].weight.zero_()
    with pytest.raises(InputError, match="LPPool2d"):
        polish(module, *data(), 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reg": 0.0}, "reg must be a positive, finite number; got 0.0"),
        ({"loss": "cubic"}, "loss must be one of"),
        ({"random_state": -1}, "random_state must be an int"),
        ({"pricing": PricingOptions(starts=0)}, "starts must be at least 1"),
        ({"tol": 0.0}, "tol must be a positive number"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        polish(network(), *data(), **{"reg": 0.5, "pricing": QUICK, **options})


class Again(nn.Module):
    """A block that uses one of its parts again: "conv" or "relu", or "linear"."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.relu, self.linear = nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Linear(2, 2)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.conv(images))
        if self.part == "conv":
            maps = self.relu(self.conv(maps))
        if self.part == "relu":
            maps = self.relu(maps)
        outputs = self.linear(maps.mean((2, 3)))
        return self.linear(outputs) if self.part == "linear" else outputs


@pytest.mark.parametrize(("part", "name"), [("conv", "Conv2d"), ("linear", "Linear")])
def test_weights_that_are_used_twice_are_no_block(part: str, name: str) -> None:
    module = Again(part)
    images, targets = data(outputs=2)
    for judge in (polish, nonconvex_objective):
        with pytest.raises(InputError, match=f"uses its {name} once; this one does so 2 times"):
            judge(module, images, targets, 0.5)
    assert not any(part._forward_hooks for part in module.modules())


def test_a_relu_that_is_used_twice_is_one() -> None:
    images, targets = data(outputs=2)
    found, expected = (polish(Again(part), images, targets, 0.5, pricing=QUICK) for part in ("relu", "none"))
    assert found.objective == expected.objective and found.improved
