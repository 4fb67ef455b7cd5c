"""Proved bounds under attack: small problems of all shapes, and ordinary training from many starts against each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problems import normal, seeded
from torch import Tensor

from cvxcnn import CircularCNN, ConvexConvBlock
from cvxcnn.patches import Patches, PatchGeometry

STARTS = 20
KINDS = ["quadratic", "linear dense", "linear group", "circular"]


def attacked(objective: Any, shapes: list[tuple[int, ...]], seed: int, steps: int) -> Tensor:
    """Return the least that Adam and then L-BFGS make of an objective (starts,) of parameters (starts, ...)."""
    generator = seeded(seed)
    sizes = torch.logspace(-1, 0.5, STARTS, dtype=torch.float64)
    parameters = [
        (normal(STARTS, *shape, seed=generator) * sizes.view(-1, *[1] * len(shape))).requires_grad_()
        for shape in shapes
    ]
    adam = torch.optim.Adam(parameters, lr=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        adam.zero_grad()
        objective(parameters).sum().backward()
        adam.step()
        decay.step()
    first = objective(parameters).detach()
    newton = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def closure() -> float:
        newton.zero_grad()
        total = objective(parameters).sum()
        total.backward()
        return float(total.detach())

    newton.step(closure)
    return torch.minimum(first, objective(parameters).detach())


def problem(seed: int) -> tuple[Tensor, Tensor, PatchGeometry, float]:
    """Return images, targets, how they are cut, and a share of reg_max."""
    random = np.random.default_rng(seed)
    channels, height, width, outputs = (int(random.integers(1, most)) for most in (3, 6, 6, 4))
    height, width = sorted((height, width))  # never like channels that come last
    n = int(random.integers(3, 16))
    kernel = int(random.integers(1, height + 1)), int(random.integers(1, width + 1))
    rows, columns = (side - part + 1 for side, part in zip((height, width), kernel, strict=True))
    cells = int(random.integers(1, min(rows, columns, 2) + 1))
    pooling = str(random.choice(["sum", "mean", "bilinear"]))
    geometry = PatchGeometry(kernel, 1, 0, pooling, cells, bool(random.integers(2)))
    generator = seeded(seed)
    images = normal(n, channels, height, width, seed=generator) * 10 ** random.uniform(-0.5, 0.5)
    return images, normal(n, outputs, seed=generator), geometry, 10 ** random.uniform(-3, -0.1)


def least_by_training(kind: str, seed: int, steps: int) -> tuple[float, float, float]:
    """Return the bound, the objective, and the least Eq. 1 of all runs."""
    images, targets, geometry, share = problem(seed)
    if kind == "circular":
        model: Any = CircularCNN(tol=1e-7)
    else:
        activation, *penalty = kind.split()
        model = ConvexConvBlock(
            activation=activation, penalty=penalty[0] if penalty else "group", tol=1e-7, bias=geometry.bias,
            kernel_size=geometry.kernel_size, padding=0, pooling=geometry.pooling, pool_cells=geometry.pool_cells,
        )  # fmt: skip
    reg = share * model.reg_max(images, targets)
    model.set_params(reg=reg).fit(images, targets)
    n, outputs = targets.shape
    patches = Patches(images, geometry)
    unfolded, pool = patches.unfold(), patches.pool
    if kind == "circular":
        # Every shift of an image is a patch, and every place a cell of its own.
        rolled = [
            images.roll((-down, -over), (2, 3)) for down in range(images.shape[2]) for over in range(images.shape[3])
        ]
        unfolded = torch.stack([each.flatten(1) for each in rolled], dim=1)
        pool = torch.eye(len(rolled), dtype=torch.float64)
    cells, dim = len(pool), unfolded.shape[2]
    pairs = cells * outputs
    separate = kind in ("quadratic", "linear group")
    # Each (cell, output) has neurons of its own; of quadratic neurons as many as its matrix may need.
    width = pairs * (dim if kind == "quadratic" else 1) if separate else min(dim, pairs) + 1
    mask = torch.eye(pairs, dtype=torch.float64).repeat(width // pairs, 1) if separate else torch.ones(width, pairs)

    def objective(parameters: list[Tensor]) -> Tensor:
        filters, readout = parameters[0], parameters[1] * mask.double()
        responses = torch.einsum("nkd,smd->snkm", unfolded, filters)
        responses = responses.square() if kind == "quadratic" else responses
        fitted = torch.einsum("ck,snkm,smco->sno", pool, responses, readout.unflatten(2, (cells, outputs)))
        lengths, sizes = filters.square().sum(dim=2), readout.square().sum(dim=2)
        decay = (lengths.square() if kind == "quadratic" else lengths) + sizes
        return 0.5 * (fitted - targets).square().sum(dim=(1, 2)) + 0.5 * reg * decay.sum(dim=1)

    least = float(attacked(objective, [(width, dim), (width, pairs)], seed, steps).min())
    assert model.certificate_.kind == "proved"
    assert n == len(images)
    return model.certificate_.global_bound, model.result_.objective, least


def check(kind: str, seeds: range, steps: int) -> None:
    near = 0
    for seed in seeds:
        bound, objective, least = least_by_training(kind, seed, steps)
        assert least >= bound * (1 - 1e-12), (kind, seed)
        assert objective >= bound * (1 - 1e-12), (kind, seed)
        near += least <= objective * (1 + 1e-3)
    # A bound far below everything would be no news.
    assert near >= 0.5 * len(seeds)


@pytest.mark.parametrize("kind", KINDS)
def test_no_run_is_below_a_bound(kind: str) -> None:
    check(kind, range(2), steps=100)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_no_run_is_below_any_of_two_hundred_bounds(kind: str, part: int) -> None:
    check(kind, range(10 * part, 10 * part + 10), steps=300)
