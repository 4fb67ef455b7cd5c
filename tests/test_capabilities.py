"""Penalties and losses that exist here alone go through every solver: a right result, or a refusal with a remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from cvxcnn import ConvexConvBlock
from cvxcnn.errors import InputError, SolverUnavailableError
from cvxcnn.losses import LOSSES, Loss, get_loss
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.penalties import PENALTIES, DensePenalty, Penalty, get_penalty
from cvxcnn.pricing import PricingOptions
from cvxcnn.pricing.separation import global_bound, searched_reg_max, worst_direction
from cvxcnn.program.program import Program, filter_program, gated_program, relu_program
from cvxcnn.program.units import unit_rows
from cvxcnn.solvers import SOLVERS, Solver, SolveResult, get_solver
from cvxcnn.solvers.needs import Needs

TOL = 1e-5
SEARCH = PricingOptions(starts=8, ascent_steps=5, initial_filters=4, max_rounds=2, improvement_steps=3)


class OutputPenalty(Penalty):
    """A group for each (block, output), all methods its own, with dual norms in a shape of its own."""

    name = "output"
    group_axes = ("output",)

    def norms(self, weights: Tensor) -> Tensor:
        return weights.square().sum(dim=(1, 2), keepdim=True).sqrt()

    def value(self, weights: Tensor) -> float:
        return float(self.norms(weights).sum())

    def prox(self, weights: Tensor, step: float) -> Tensor:
        return weights * (1 - step / self.norms(weights).clamp_min(1e-300)).clamp_min(0.0)

    def dual_norms(self, correlation: Tensor) -> Tensor:
        return self.norms(correlation).squeeze(2)


class CellPenalty(Penalty):
    """A group for each (block, cell), of which all follows from the axes."""

    name = "cell"
    group_axes = ("cell",)


class SilentPenalty(Penalty):
    """The sum of absolute values, which declares nothing."""

    name = "silent"

    def value(self, weights: Tensor) -> float:
        return float(weights.abs().sum())

    def prox(self, weights: Tensor, step: float) -> Tensor:
        return weights.sign() * (weights.abs() - step).clamp_min(0.0)

    def dual_norms(self, correlation: Tensor) -> Tensor:
        return correlation.abs()


class SpokenPenalty(SilentPenalty):
    """The same with an expression, for the solvers that the other is compared with."""

    def expression(self, weights: Any, shape: tuple[int, int, int, int]) -> Any:
        import cvxpy as cp

        return cp.sum(cp.abs(weights))


class HuberLoss(Loss):
    """sum of h(f - y), h(t) = t^2 / 2 for |t| <= 1, and |t| - 1/2 beyond."""

    name = "huber"

    def terms(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.huber_loss(prediction, targets, reduction="none", delta=1.0).sum(dim=1)

    def dual_point(self, prediction: Tensor, targets: Tensor) -> Tensor:
        return (targets - prediction).clamp(-1.0, 1.0)

    def dual_terms(self, dual: Tensor, targets: Tensor) -> Tensor:
        return torch.where(dual.abs() <= 1, dual * targets - 0.5 * dual.square(), -torch.inf)

    def model(self, prediction: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        root = torch.where((prediction - targets).abs() <= 1, 1.0, 1e-2).to(prediction)
        return root, self.dual_point(prediction, targets) / root

    def expression(self, prediction: Any, targets: Any) -> Any:
        import cvxpy as cp

        return 0.5 * cp.huber(prediction - targets, 1)


OURS = {penalty.name: penalty for penalty in (OutputPenalty, CellPenalty, SilentPenalty)}
NAMES = ["group", "dense", "nuclear", *OURS]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, penalty in OURS.items():
        monkeypatch.setitem(PENALTIES, name, penalty)
    monkeypatch.setitem(LOSSES, "huber", HuberLoss)


@lru_cache
def data(outputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(12, 1, 3, 3, generator=generator, dtype=torch.float64)
    targets = 2 * torch.randn(12, outputs, generator=generator, dtype=torch.float64)
    return images, targets


def make(kind: str, penalty: Penalty, loss: Loss, outputs: int, cells: int = 2, reg: float = 1.0) -> Program:
    """Return the gated program, the one with cones, or that over filters."""
    images, targets = data(outputs)
    if loss.name == "logistic":
        targets = targets.sign()
    if loss.name == "softmax":
        targets = torch.nn.functional.one_hot(targets.argmax(dim=1), outputs).to(targets)
    patches = Patches(images, PatchGeometry(kernel_size=2, pool_cells=cells))
    vectors = torch.randn(3, patches.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if kind == "filters":
        return filter_program(patches, unit_rows(vectors), targets, reg, penalty=penalty, loss=loss)
    build = relu_program if kind == "relu" else gated_program
    return build(patches, vectors, targets, reg, penalty=penalty, loss=loss)


def results(program: Program) -> Iterator[SolveResult]:
    """Yield what every solver finds that takes the program; the others say what to do instead."""
    chosen = get_solver("auto", program, tol=TOL)
    yield chosen.solve(program)
    for name in sorted(SOLVERS.keys() - {chosen.name}):
        try:
            solver = get_solver(name, program, tol=TOL)
            if solver.name in ("cvxpy:SCS", "cvxpy:MOSEK"):
                # Of the code that Clarabel runs; accurate to fewer digits, and licensed.
                assert (solver.refusal(program) is None) == (SOLVERS["cvxpy:CLARABEL"]().refusal(program) is None)
                continue
            yield solver.solve(program)
        except InputError as refusal:
            assert "Use " in str(refusal), refusal
            assert name in str(refusal)
        except SolverUnavailableError:
            assert name.startswith("cvxpy:")


def check(program: Program) -> None:
    """Check that all results are optimal by a gap computed here, and one and the same as Clarabel's."""
    found = list(results(program))
    ours = [result for result in found if not result.solver.startswith("cvxpy:")]
    assert ours
    if program.penalty.expressible:
        (expected,) = (result for result in found if result.solver == "cvxpy:CLARABEL")
    else:
        reference = Program(program.design, program.targets, program.reg, SpokenPenalty(), program.loss)
        expected = get_solver("cvxpy:CLARABEL", reference, tol=TOL).solve(reference)
    # Its gap is that of its prediction's dual point, which is less accurate than its objective.
    assert program.evaluate(expected.weights).relative_gap <= 1e-3
    for result in ours:
        assert result.status == "optimal", (result.solver, result.relative_gap)
        again = program.evaluate(result.weights)
        assert -1e-12 <= again.relative_gap <= TOL, result.solver
        assert again.violation <= 1e-9
        assert bool(result.weights.any())
        assert result.objective == pytest.approx(expected.objective, rel=2 * TOL), result.solver


@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("penalty", NAMES)
@pytest.mark.parametrize(("kind", "outputs"), [("gated", 1), ("gated", 2), ("relu", 1), ("relu", 2), ("filters", 2)])
def test_every_combination_is_right_or_refused(kind: str, outputs: int, penalty: str, loss: str) -> None:
    if kind == "relu" and penalty != "group":
        with pytest.raises(InputError, match=r'needs penalty="group"; got .* Use penalty="dense" for filters'):
            make(kind, get_penalty(penalty), get_loss(loss), outputs)
        return
    program = make(kind, get_penalty(penalty), get_loss(loss), outputs)
    check(program)


@pytest.mark.parametrize("loss", ["logistic", "softmax"])
@pytest.mark.parametrize("penalty", OURS)
def test_our_losses_with_other_penalties(penalty: str, loss: str) -> None:
    program = make("gated", get_penalty(penalty), get_loss(loss), 2)
    check(program)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("penalty", OURS)
@pytest.mark.parametrize("activation", ["gated_relu", "relu"])
def test_blocks(activation: str, penalty: str, loss: str, outputs: int) -> None:
    """A block over fixed gates claims nothing of others; one whose gates are priced is refused."""
    images, targets = data(outputs)
    settings: dict[str, Any] = {
        "kernel_size": 2, "pool_cells": 2, "activation": activation, "penalty": penalty, "loss": loss,
        "intercept": False, "pricing": SEARCH, "dtype": "float64",
    }  # fmt: skip
    if activation == "relu":
        with pytest.raises(InputError, match='needs penalty="group"'):
            ConvexConvBlock(gates=3, reg=1.0, **settings).fit(images, targets)
    else:
        block = ConvexConvBlock(gates=3, reg=1.0, **settings).fit(images, targets)
        assert block.result_.status == "optimal"
        assert block.certificate_.kind == "none"
        assert math.isnan(block.certificate_.global_bound)
        assert "not compared with other gates" in str(block.certificate_)
    with pytest.raises(InputError, match=f"no search over all gates for penalty '{penalty}'.*Use a number of gates"):
        ConvexConvBlock(gates="priced", **settings).fit(images, targets)


@pytest.mark.parametrize("kind", ["gated", "filters"])
@pytest.mark.parametrize("penalty", [*OURS, "dense", "nuclear"])
def test_no_bound_is_claimed_where_the_search_knows_no_dual_norm(kind: str, penalty: str) -> None:
    program = make(kind, get_penalty(penalty), get_loss("squared"), 2)
    generator = torch.Generator().manual_seed(0)
    known = penalty == "nuclear" or (kind, penalty) == ("filters", "dense")
    if known:
        assert global_bound(program, program.zeros(), SEARCH, generator).n_searched
        return
    worst = global_bound(program, program.zeros(), SEARCH, generator)
    assert math.isnan(worst.bound)
    assert worst.certificate(program, 1.0, 1.0).kind == "none"
    with pytest.raises(InputError, match="Use a number of gates"):
        searched_reg_max(program, SEARCH, generator)
    with pytest.raises(InputError, match="Use a number of gates"):
        worst_direction(program, program.design.patches, program.targets, SEARCH, generator)


@pytest.mark.parametrize("penalty", ["output", "cell", "dense"])
def test_one_column_is_one_group_whatever_indexes_it(penalty: str) -> None:
    """With one cell and one output all of these are the group penalty, and so are their bounds."""
    bounds = []
    for name in (penalty, "group"):
        program = make("gated", get_penalty(name), get_loss("squared"), 1, cells=1)
        generator = torch.Generator().manual_seed(0)
        bounds.append(global_bound(program, get_solver("auto", program).solve(program).weights, SEARCH, generator))
    assert bounds[0].bound == pytest.approx(bounds[1].bound, rel=1e-2)
    assert bounds[0].n_searched == bounds[1].n_searched


@pytest.mark.parametrize("penalty", [*NAMES])
def test_a_multiple_of_nu_is_the_largest_that_is_feasible(penalty: str) -> None:
    """The dual norms of s A^T nu reach reg, in each output that has its own s; errors make s no larger."""
    kind = get_penalty(penalty)
    correlation = torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = kind.largest_scale(correlation, 0.7)
    norms = kind.group_norms(correlation * scale)
    assert norms.shape[0] == 4
    peaks = norms.amax(dim=(0, 1))
    torch.testing.assert_close(peaks, torch.full_like(peaks, 0.7))
    assert len(peaks) == (2 if kind.separable else 1)
    lengths = torch.rand(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    careful = kind.largest_scale(correlation, 0.7, lengths)
    for seed in range(20):
        error = torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        error = error / error.norm(dim=2, keepdim=True) * lengths[:, None]
        assert float(kind.group_norms((correlation + error) * careful).max()) <= 0.7 * (1 + 1e-12)


def test_what_follows_from_axes_is_what_a_penalty_says_itself() -> None:
    class Declared(Penalty):
        name = "declared"
        group_axes = ("output",)

    weights = torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = OutputPenalty(), Declared()
    assert theirs.value(weights) == pytest.approx(ours.value(weights))
    torch.testing.assert_close(theirs.prox(weights, 2.0), ours.prox(weights, 2.0))
    torch.testing.assert_close(theirs.group_norms(weights), ours.group_norms(weights))
    assert theirs.dual_norms(weights).shape == (4, 2)


def test_a_penalty_that_says_too_little_or_nonsense_is_refused_where_it_is_defined() -> None:
    with pytest.raises(InputError, match="Empty says no group_axes, and so must define value, prox, dual_norms itself"):
        type("Empty", (Penalty,), {"name": "empty"})
    with pytest.raises(InputError, match=r"group_axes of Rows must be None or one of .*; got \('row',\)"):
        type("Rows", (Penalty,), {"name": "rows", "group_axes": ("row",)})


def test_dual_norms_of_other_groups_than_declared_are_refused() -> None:
    wrong = type("Wrong", (DensePenalty,), {"group_axes": ("output",), "dual_norms": SilentPenalty.dual_norms})
    program = make("gated", wrong(), get_loss("squared"), 2)
    with pytest.raises(InputError, match=r"dual_norms must return \(3, 1, 2\) numbers; got shape \(3, 4, 4, 2\)"):
        get_solver("auto", program).solve(program)


def test_an_expression_needs_groups_or_a_definition() -> None:
    assert [get_penalty(name).expressible for name in NAMES] == [True, True, True, True, True, False]
    assert SpokenPenalty().expressible
    with pytest.raises(InputError, match="'silent' gives cvxpy no expression"):
        SilentPenalty().expression(None, (1, 1, 1, 1))


def test_a_solver_says_what_it_needs_and_the_base_class_refuses() -> None:
    class Grouped(SOLVERS["fista"]):  # type: ignore[misc]
        name = "grouped"
        needs = Needs(groups=True)

    solver: Solver = Grouped(tol=TOL)
    program = make("gated", SilentPenalty(), get_loss("squared"), 1)
    with pytest.raises(InputError, match=r"solver 'grouped' can't.*fixed groups, and 'silent' says none\. Use"):
        solver.solve(program)
    assert solver.solve(make("gated", OutputPenalty(), get_loss("squared"), 1)).status == "optimal"
