"""What a certificate claims is true: attacked over fuzzed problems, in both dtypes, with offsets and rounding."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eq2 import eq2_block
from problems import noise_arrays

from cvxcnn import ConvexConvBlock, nonconvex_objective, reg_path
from cvxcnn.activations import get_activation
from cvxcnn.losses import LogisticLoss, Loss, SoftmaxLoss, SquaredLoss
from cvxcnn.ordinary import train_baseline
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.penalties import DensePenalty, GroupPenalty
from cvxcnn.pricing.branch_and_bound import bound_responses
from cvxcnn.pricing.certificate import NETWORKS, Certificate, beyond, maxima, networks_of
from cvxcnn.pricing.options import PricedGates, PricingOptions
from cvxcnn.program import filter_program, gated_program
from cvxcnn.reports.bounds import bound_notes, bounded_networks
from cvxcnn.reports.summary import ConvexNumbers, RunSummary

KERNELS = (((1, 2), False), ((1, 2), True), ((1, 3), False), ((2, 2), False), ((1, 3), True))
PENALTIES, LOSSES, CELLS, OUTPUTS = ("dense", "group"), ("squared", "logistic", "softmax"), (1, 2), (1, 2, 3)
COMBINATIONS = [c for c in itertools.product(PENALTIES, LOSSES, CELLS, OUTPUTS) if c[1] != "softmax" or c[3] > 1]
# Problems with fixed seeds, so many in each test: all combinations, kernels and dtypes in turn.
FUZZED, TOGETHER = 560, 20


@dataclass(frozen=True)
class Problem:
    settings: dict[str, Any]
    images: np.ndarray
    targets: np.ndarray


def problem(number: int) -> Problem:
    """Return a small problem that a proof takes a second for, or less: images, targets and the settings of a block."""
    rng = np.random.default_rng(number)
    penalty, loss, cells, outputs = COMBINATIONS[number % len(COMBINATIONS)]
    kernel, bias = KERNELS[int(rng.choice(len(KERNELS), p=(0.3, 0.25, 0.25, 0.1, 0.1)))]
    n = int(rng.integers(3, 9 if kernel[0] * kernel[1] + bias < 4 else 6))
    images = rng.normal(size=(n, kernel[0] + cells - 1, kernel[1] + cells)) * 10.0 ** rng.uniform(-3, 3)
    if rng.integers(4) == 0:
        images += 10.0 ** rng.uniform(0, 2) * np.abs(images).max()
    if rng.integers(4) == 0:  # patches in few directions, ties, and images that are equal
        images = np.round(2 * images / np.abs(images).max())
    intercept = loss == "squared" and bool(rng.integers(2))
    if loss == "squared":
        targets = rng.normal(size=(n, outputs)) * 10.0 ** rng.uniform(-3, 3) + rng.integers(2)
    elif loss == "logistic":
        targets = rng.choice([-1.0, 1.0], size=(n, outputs))
    else:  # classes may be absent
        targets = np.eye(outputs)[rng.integers(outputs, size=n)]
    dtype = ("float64", "float32")[number // 2 % 2]
    # Rounding to float32 is part of the data of such a block.
    images, targets = images.astype(dtype), targets.astype(dtype)
    settings = {
        "kernel_size": kernel, "bias": bias, "penalty": penalty, "loss": loss, "pool_cells": cells,
        "pooling": "mean" if number % 2 else "sum", "intercept": intercept,
        "dtype": dtype,
        "fraction": float(10 ** rng.uniform(-2.5, -0.3)),
    }  # fmt: skip
    return Problem(settings, images, targets)


def fitted(given: Problem) -> ConvexConvBlock:
    """Return the block of a problem, its bound proved if branch and bound ends."""
    settings = dict(given.settings)
    fraction = settings.pop("fraction")
    priced = PricedGates(starts=12, initial_filters=8, max_rounds=3)
    block = eq2_block(gates=priced, **settings)
    reg = fraction * block.reg_max(given.images, given.targets)
    return block.set_params(reg=reg if reg > 0 else 1.0).fit(given.images, given.targets)


def eq1(block: ConvexConvBlock, given: Problem) -> float:
    return nonconvex_objective(block.to_torch(), given.images, given.targets, block.reg, block.loss)


def attained(block: ConvexConvBlock, given: Problem) -> float:
    """Return the lowest Eq. 1 that other searches reach: pricing in float64, with its L-BFGS, and Adam."""
    priced = PricedGates(starts=32, initial_filters=16, max_rounds=4, gap=1e-8, prove_up_to=0)
    settings = {**block.get_params(), "dtype": "float64", "random_state": 7, "gates": priced, "tol": 1e-8}
    other = eq2_block(**settings).fit(given.images, given.targets)
    values = [eq1(block, given), eq1(other, given)]
    if not block.intercept:
        images = torch.as_tensor(given.images)[:, None].double()
        patches = Patches(images, block.geometry_)
        connect = "group" if block.penalty == "group" else "dense"
        pairs = 2 * block.pool_cells**2 * given.targets.shape[1]
        rival = train_baseline(
            patches,
            torch.as_tensor(given.targets).double(),
            block.reg,
            2 * pairs,
            connect=connect,
            epochs=60,
            loss=block.loss,
        )
        values.append(rival.objective)
    return min(values)


def check(number: int) -> bool:
    """Return whether the bound of a problem was proved, which is then at most what any attack attains."""
    given = problem(number)
    block = fitted(given)
    certificate = block.certificate_
    assert np.isfinite([certificate.objective, certificate.sampled_bound, certificate.global_bound]).all(), number
    lowest = attained(block, given)
    assert certificate.sampled_bound <= eq1(block, given), number
    if certificate.kind == "proved":
        assert certificate.global_bound <= lowest, (number, certificate.global_bound / lowest - 1, given.settings)
    return certificate.kind == "proved"


@pytest.mark.parametrize("number", [3, 8, 22, 486])
def test_no_attack_gets_below_a_proved_bound(number: int) -> None:
    assert check(number)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, FUZZED, TOGETHER))
def test_no_attack_gets_below_any_of_many_proved_bounds(first: int) -> None:
    proved = sum(check(number) for number in range(first, first + TOGETHER))
    assert proved >= 0.8 * TOGETHER


# float32.


def small_float32(seed: int) -> tuple[np.ndarray, np.ndarray]:
    images, targets = noise_arrays(10, 3, outputs=2, seed=seed)
    return images.astype("float32"), targets.astype("float32")


FLOAT32 = {
    "Eq. 2": {"gates": 12, "pricing": PricingOptions(starts=8)},
    "filters": {
        "gates": PricedGates(starts=8, initial_filters=8, max_rounds=2, prove_up_to=0),
        "penalty": "dense",
        "kernel_size": (1, 3),
    },
    "separate filters": {"gates": PricedGates(starts=8, initial_filters=8, max_rounds=2, prove_up_to=0)},
}


@pytest.mark.parametrize("settings", FLOAT32.values(), ids=FLOAT32)
@pytest.mark.parametrize("intercept", [False, True])
def test_bounds_of_float32_blocks_are_below_eq1_of_the_network(settings: dict, intercept: bool) -> None:
    for seed in range(2):
        images, targets = small_float32(seed)
        if intercept:
            images += 50.0
        block = eq2_block(**{"kernel_size": (1, 2), **settings}, dtype="float32", intercept=intercept)
        block.set_params(reg=0.1 * block.reg_max(images, targets)).fit(images, targets)
        value = nonconvex_objective(block.to_torch(), images, targets, block.reg)
        result, certificate = block.result_, block.certificate_
        assert np.isfinite([result.dual_bound, certificate.sampled_bound, certificate.global_bound]).all()
        assert max(result.dual_bound, certificate.sampled_bound, certificate.global_bound) <= value * (1 + 1e-12)
        assert result.objective == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gates", [PricedGates(starts=8, initial_filters=8, max_rounds=2), 10])
def test_a_class_without_images_leaves_numbers_that_are_bounds(dtype: str, gates: Any) -> None:
    images, _ = small_float32(3)
    targets = np.eye(3)[np.arange(10) % 2]
    block = eq2_block(kernel_size=(1, 2), gates=gates, loss="softmax", dtype=dtype, reg=0.05, tol=1e-5)
    certificate = block.fit(images, targets).certificate_
    value = nonconvex_objective(block.to_torch(), images, targets, block.reg, "softmax")
    assert np.isfinite([certificate.sampled_bound, certificate.global_bound]).all()
    assert max(certificate.sampled_bound, certificate.global_bound) <= value * (1 + 1e-12)


# An intercept, and images far from zero.


@pytest.mark.parametrize("power", [3, 5, 7])
def test_an_offset_of_the_images_leaves_a_bound_with_a_small_gap(power: int) -> None:
    rng = np.random.default_rng(0)
    images, targets = rng.normal(size=(16, 4, 4)) + 10.0**power, rng.normal(size=16)
    settings = {"gates": 8, "kernel_size": 2, "intercept": True, "pooling": "mean", "pricing": PricingOptions(starts=0)}
    gated = eq2_block(activation="gated_relu", **settings)
    reg = 0.05 * gated.reg_max(images, targets)
    solved = [eq2_block(**settings, reg=reg, activation="gated_relu", solver=name) for name in ("auto", "fista")]
    results = [block.fit(images, targets).result_ for block in solved]
    lowest = min(result.objective for result in results)
    for result in results:
        assert result.dual_bound <= lowest
    assert results[0].relative_gap <= {3: 1e-6, 5: 1e-5, 7: 1e-3}[power]
    relu = eq2_block(**settings, reg=reg).fit(images, targets)
    assert relu.result_.dual_bound <= nonconvex_objective(relu.to_torch(), images, targets, reg)


# Rounding.


def exact_squared(dual: np.ndarray, targets: np.ndarray, largest: np.ndarray) -> Fraction:
    """Return the best dual value over multiples in [0, largest], in rational numbers."""
    total = Fraction(0)
    for column in range(dual.shape[1]):
        nu = [Fraction(float(v)) for v in dual[:, column]]
        slope = sum((v * Fraction(float(y)) for v, y in zip(nu, targets[:, column], strict=True)), Fraction(0))
        square = sum((v * v for v in nu), Fraction(0))
        scale = min(max(slope / square, Fraction(0)), Fraction(float(largest[column]))) if square else Fraction(0)
        total += scale * slope - scale * scale * square / 2
    return total


def test_squared_dual_values_are_below_the_exact_ones() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        n, outputs = int(rng.integers(1, 200)), int(rng.integers(1, 3))
        targets = rng.normal(size=(n, outputs)) * 10.0 ** rng.uniform(-8, 8, size=(n, outputs))
        dual = targets - rng.normal(size=(n, outputs)) * 10.0 ** rng.uniform(-8, 8)
        largest = rng.uniform(0, 2, size=outputs)
        found = SquaredLoss().dual_value(*map(torch.as_tensor, (dual, targets, largest)))
        exact = exact_squared(dual, targets, largest)
        assert Fraction(found) <= exact
        assert found >= float(exact) - 1e-11 * float((np.abs(dual * targets) + dual**2).sum())


def higher_entropy(loss: Loss, dual: np.ndarray, targets: np.ndarray, largest: float) -> float:
    """Return the best entropy over a fine grid of multiples, in extended precision: at most the exact best one."""
    nu, y = dual.astype(np.longdouble), targets.astype(np.longdouble)
    parts = (nu * y, 1 - nu * y) if isinstance(loss, LogisticLoss) else (nu, y)
    best = -np.inf
    low, high = np.longdouble(0), np.longdouble(largest)
    for _ in range(12):
        grid = np.linspace(low, high, 41)
        values = []
        for s in grid:
            shares = np.concatenate([s * parts[0], 1 - s * parts[0]]) if isinstance(loss, LogisticLoss) else y - s * nu
            inside = (shares >= 0).all()
            terms = -shares * np.log(np.where(shares > 0, shares, 1))
            values.append(math.fsum(map(float, terms.ravel())) if inside else -np.inf)
        top = int(np.argmax(values))
        best = max(best, values[top])
        low, high = grid[max(0, top - 1)], grid[min(40, top + 1)]
    return float(best)


@pytest.mark.parametrize("loss", [LogisticLoss(), SoftmaxLoss()], ids=lambda loss: loss.name)
def test_entropies_are_below_those_of_extended_precision(loss: Loss) -> None:
    rng = np.random.default_rng(2)
    for _ in range(25):
        n = int(rng.integers(1, 60))
        scores = torch.as_tensor(rng.normal(size=(n, 3)) * 10.0 ** rng.uniform(-3, 1.5))
        targets = torch.as_tensor(np.eye(3)[rng.integers(3, size=n)])
        if isinstance(loss, LogisticLoss):
            scores, targets = scores[:, :1], 2 * targets[:, :1] - 1
        dual = loss.dual_point(scores, targets)
        largest = float(rng.uniform(0.1, 1.0))
        found = loss.dual_value(dual, targets, torch.full((dual.shape[1],), largest, dtype=torch.float64))
        wanted = higher_entropy(loss, dual.numpy(), targets.numpy(), largest)
        assert found <= wanted * (1 + 1e-15)
        assert found >= wanted - 1e-9 * max(1.0, wanted)


def test_program_bounds_are_feasible_in_rational_numbers() -> None:
    rng = np.random.default_rng(4)
    for seed in range(12):
        n, reg = 12, 10.0 ** rng.uniform(-3, 3)
        images = torch.as_tensor(rng.normal(size=(n, 1, 1, 3)) * 10.0 ** rng.uniform(-6, 6, size=(n, 1, 1, 1)))
        targets = torch.as_tensor(rng.normal(size=(n, 1)) * 10.0 ** rng.uniform(-6, 6))
        patches = Patches(images, PatchGeometry((1, 3)))
        vectors = torch.nn.functional.normalize(torch.as_tensor(rng.normal(size=(5, 3))), dim=1)
        for build in (filter_program, gated_program):
            program = build(patches, vectors, targets, reg, penalty=GroupPenalty())
            prediction = targets * rng.uniform(0, 1)
            dual = program.dual_point(prediction)
            found = program.dual_bound(prediction)
            columns = program.design.matrix().view(n, len(vectors), -1).tolist()
            nu = [Fraction(value) for value in dual[:, 0].tolist()]
            longest = max(
                sum(sum(nu[j] * Fraction(columns[j][i][r]) for j in range(n)) ** 2 for r in range(len(columns[0][i])))
                for i in range(len(vectors))
            )
            # s is feasible if s^2 * longest <= reg^2; the exact root is bracketed by its neighbours.
            root = Fraction(np.nextafter(math.sqrt(float(longest)), 0)) if longest else Fraction(1)
            scale = Fraction(reg) / root
            exact = exact_squared(dual.numpy(), targets.numpy(), np.array([float(scale)]))
            assert Fraction(found) <= exact * (1 + Fraction(1, 10**14)), seed


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("penalty", [DensePenalty(), GroupPenalty()], ids=lambda penalty: penalty.name)
def test_directions_that_cancel_leave_an_upper_bound_that_is_above_the_maximum(sign: float, penalty: Any) -> None:
    rng = np.random.default_rng(5)
    for _ in range(3):
        base = rng.normal(size=(4, 3))
        shares = 10.0 ** rng.uniform(-3, 3, size=4)
        # The same direction twice, in another length, with coefficients of 1e8 that cancel but for a rest; or opposite.
        rows = np.concatenate([base, sign * base * shares[:, None]])
        big = 1e8 * rng.normal(size=4)
        rest = rng.normal(size=4)
        dual = np.concatenate([big, -sign * big / shares + rest / shares])[:, None]
        patches = Patches(torch.as_tensor(rows)[:, None, None], PatchGeometry((1, 3)))
        found = bound_responses(patches, torch.as_tensor(dual), penalty, tol=1e-6, max_regions=2000)
        points = torch.nn.functional.normalize(
            torch.cat([torch.as_tensor(rng.normal(size=(400, 3))), found.argmax]), dim=1
        )
        highest = max(
            abs(sum(Fraction(float(c)) * max(Fraction(0), inner(x, u)) for c, x in zip(dual[:, 0], rows, strict=True)))
            for u in points[-40:].tolist()
        )
        # Unit vectors are so up to rounding.
        assert Fraction(float(found.upper.max())) * (1 + Fraction(1, 10**15)) >= highest


def inner(x: Any, u: Any) -> Fraction:
    return sum((Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x, u, strict=True)), Fraction(0))


# Words.


def two_outputs() -> tuple[np.ndarray, np.ndarray]:
    """Return two equal outputs: one neuron that feeds both costs less than two."""
    images, target = noise_arrays(8, (1, 2))
    return images, np.stack([target, target], axis=1)


def test_an_ordinary_network_may_be_below_the_bound_of_the_separate_ones() -> None:
    images, targets = two_outputs()
    priced = PricedGates(starts=8, initial_filters=8, max_rounds=3)
    group = eq2_block(kernel_size=(1, 2), gates=priced, penalty="group", reg=0.2).fit(images, targets)
    dense = eq2_block(kernel_size=(1, 2), gates=priced, penalty="dense", reg=0.2).fit(images, targets)
    certificate = group.certificate_
    ordinary = nonconvex_objective(dense.to_torch(), images, targets, 0.2)
    assert certificate.kind == "proved" and ordinary < 0.99 * certificate.global_bound
    assert certificate.networks == "separate" and dense.certificate_.networks == "all"
    said = str(certificate)
    assert f"above the best of {NETWORKS['separate']} (proved)" in said and said.endswith(beyond("separate"))
    assert f"above the best of {NETWORKS['all']} (proved)" in str(dense.certificate_)
    assert "may be below" not in str(dense.certificate_)


@pytest.mark.parametrize(
    ("activation", "separable", "pairs", "networks"),
    [
        ("relu", True, 1, "all"), ("relu", False, 9, "all"), ("relu", True, 2, "separate"),
        ("gated_relu", False, 1, "gated"), ("gated_relu", True, 1, "gated"), ("gated_relu", True, 4, "gated_separate"),
    ],
)  # fmt: skip
def test_every_program_has_its_class_of_networks_in_every_report(
    activation: str, separable: bool, pairs: int, networks: str
) -> None:
    kind = get_activation(activation)
    assert kind.networks_of(separable, pairs) == networks_of(kind.networks, separable, pairs) == networks
    settings = {"activation": activation, "penalty": "group" if separable else "nuclear", "pool_cells": 1}
    older = RunSummary(settings=settings, data={"n_classes": pairs})
    assert bounded_networks(older, ConvexNumbers()) == networks
    layer = {"layer": 1, "convex": {"certificate": "searched", "networks": networks}}
    first, *others = bound_notes(RunSummary.from_json({"layers": [layer]}))
    assert first.startswith(f"searched: {NETWORKS[networks]}, with any number of neurons") and "not proof" in first
    assert [note[1:-1] for note in others] == ([beyond(networks)[1:]] if beyond(networks) else [])
    for kind in ("proved", "searched"):
        said = str(Certificate(2.0, 1.9, 1.8, kind, 30, networks, 3, 0.5))
        assert f"the best of {NETWORKS[networks]} " in said and said.endswith(beyond(networks))
    assert "best of" not in str(Certificate(2.0, 1.9, math.nan, "none", networks=networks))


def test_what_a_search_met_and_missed_is_said() -> None:
    said = str(Certificate(2.0, 1.9, 1.8, "searched", 102, "all", 4, 0.2083))
    assert "from 102 starts missed is worse than those it found (4 distinct maxima; more expected: 0.21)" in said
    assert "more expected: too many to tell" in str(Certificate(2.0, 1.9, 1.8, "searched", 5, "all", 4, math.inf))
    assert "distinct" not in str(Certificate(2.0, 1.9, 1.8, "searched", 5))
    assert maxima(1, 0.0) == "1 distinct maximum; more expected: 0"


def test_a_path_says_of_which_networks_its_bounds_are(tmp_path: Path) -> None:
    images, targets = two_outputs()
    block = eq2_block(kernel_size=(1, 2), gates=PricedGates(starts=8, initial_filters=8, max_rounds=1, prove_up_to=0))
    path = reg_path(images, targets, block=block, points=2, smallest=0.5)
    assert path.networks == ["separate"] * 2
    assert path.n_distinct.shape == path.expected_unseen.shape == (2,)
    path.plot(tmp_path / "path.png")
