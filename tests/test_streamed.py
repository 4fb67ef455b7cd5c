"""The streamed solver: its Gram form, its answer and its judge against programs that hold all features."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from eq2 import eq2_block
from problems import normal, seeded

from cvxcnn import ConvexConvBlock
from cvxcnn.core import products
from cvxcnn.errors import InputError, SolverError
from cvxcnn.models.path import reg_path
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.penalties import DensePenalty, GroupPenalty, NuclearPenalty
from cvxcnn.pricing.options import PricingOptions
from cvxcnn.program import Program, filter_program, gated_program, relu_program
from cvxcnn.program import design as design_module
from cvxcnn.solvers import get_solver
from cvxcnn.solvers import streamed as streamed_module
from cvxcnn.solvers.algebra import gram as gram_module
from cvxcnn.solvers.algebra import gram_newton
from cvxcnn.solvers.algebra.gram import GramForm, judge
from cvxcnn.solvers.streamed import Streamed, path, solve_form

KINDS = ["dense", "gated", "nuclear"]


def program(
    kind: str = "dense", *, n: int = 30, reg: float = 0.5, dtype: torch.dtype = torch.float64, **options: Any
) -> Program:
    make, penalty = {
        "dense": (filter_program, DensePenalty),
        "filters": (filter_program, GroupPenalty),
        "gated": (gated_program, GroupPenalty),
        "nuclear": (gated_program, NuclearPenalty),
    }[kind]
    generator = seeded()
    images = normal(n, 2, 6, 6, seed=generator).to(dtype)
    patches = Patches(images, PatchGeometry(3, 1, 1, "sum", 2, bias=True))
    gates = normal(7, patches.dim, seed=generator)
    if make is filter_program:
        gates = torch.nn.functional.normalize(gates, dim=1)
    targets = normal(n, 3, seed=generator) + images.double().mean(dim=(1, 2, 3))[:, None]
    return make(patches, gates.to(dtype), targets.to(dtype), reg, penalty=penalty(), **options)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "filters"])
def test_it_agrees_with_the_other_solvers(kind: str, intercept: bool) -> None:
    problem = program(kind, intercept=intercept, reg=2.0)
    tol = 1e-7 if kind == "nuclear" else 1e-10
    expected = get_solver("auto", problem, tol=tol).solve(problem)
    found = Streamed(tol=tol).solve(problem)
    assert (found.status, found.solver) == ("optimal", "streamed")
    assert found.objective == pytest.approx(expected.objective, rel=max(tol, 1e-8))


def test_clarabel_agrees() -> None:
    problem = program(intercept=True, reg=2.0)
    expected = get_solver("cvxpy:CLARABEL", problem, tol=1e-8).solve(problem)
    assert Streamed(tol=1e-9).solve(problem).objective == pytest.approx(expected.objective, rel=1e-8)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gram_form_is_that_of_the_whole_matrix(kind: str, intercept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts of a few images, and in blocks of a few rows, it is A^T A of the centred matrix."""
    problem = program(kind, intercept=intercept)
    monkeypatch.setattr(design_module, "PART_BYTES_CPU", 2_000)
    monkeypatch.setattr(products, "_GRAM_ROWS", 5)
    monkeypatch.setattr(gram_module, "_SUMMED_IMAGES", 3)
    assert len(list(problem.design.parts())) > 2
    form = GramForm.of(problem)
    whole = problem.centre(problem.design.matrix())
    targets = problem.centre(problem.targets)
    torch.testing.assert_close(form.gram, whole.T @ whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(form.linear, whole.T @ targets, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(form.squared_norm, targets.square().sum(dim=0))
    assert torch.equal(form.gram, form.gram.T)
    assert form.reg_max(problem.penalty) == pytest.approx(problem.reg_max(), rel=1e-10)
    weights = torch.randn(form.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(form.intercepts(weights), problem.intercepts(problem.design.predict(weights)))
    exact = problem.evaluate(weights)
    objective, bound, correlation = form.gap(problem.penalty, problem.reg, weights)
    assert (objective, bound) == pytest.approx((exact.objective, exact.dual_bound), rel=1e-9)
    expected = problem.correlate(problem.dual_point(problem.design.predict(weights)))
    torch.testing.assert_close(correlation, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_judge_is_the_evaluation(kind: str, intercept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass in parts gives what two passes over everything give, at any weights, for a float32 program too."""
    problem = program(kind, intercept=intercept, dtype=torch.float32)
    weights = torch.randn(problem.design.shape(3), generator=torch.Generator().manual_seed(1))
    expected = problem.double().evaluate(weights.double())
    monkeypatch.setattr(design_module, "PART_BYTES_CPU", 40_000)
    found, correlation = judge(problem, weights)
    assert found.objective == pytest.approx(expected.objective, rel=1e-9)
    assert found.dual_bound == pytest.approx(expected.dual_bound, rel=1e-9)
    exact = problem.double()
    nu = exact.dual_point(exact.design.predict(weights.double()))
    torch.testing.assert_close(correlation, exact.correlate(nu), rtol=1e-9, atol=1e-9)


def test_the_result_is_what_the_images_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Gram form of other targets gives a point, and the judge says how far from the optimum it is."""
    problem = program(dtype=torch.float32)
    other = GramForm.of(replace(problem, targets=problem.targets.flip(0)))
    monkeypatch.setattr(streamed_module, "_PASSES", 1)
    result = Streamed(tol=1e-6, form=other).solve(problem)
    expected = problem.double().evaluate(result.weights.double())
    assert result.status == "inaccurate"
    assert result.relative_gap == pytest.approx(expected.relative_gap, rel=1e-9)
    assert result.relative_gap > 1e-2


def test_a_rounded_form_is_corrected(caplog: pytest.LogCaptureFixture) -> None:
    """A Gram form that is wrong in its fifth digit still leads to a gap of 1e-6."""
    problem = program(reg=0.1)
    form = GramForm.of(problem)
    noise = torch.randn(form.gram.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    rough = replace(
        form, gram=form.gram * (1 + 1e-6 * (noise + noise.T)), linear=form.linear * (1 + 1e-5 * noise[:, :3])
    )
    with caplog.at_level(logging.INFO, logger="cvxcnn"):
        result = Streamed(tol=1e-6, form=rough).solve(problem)
    assert result.status == "optimal"
    assert "the Gram form is corrected" in caplog.text
    assert problem.evaluate(result.weights).relative_gap == pytest.approx(result.relative_gap, rel=1e-3)


def test_a_form_that_is_too_coarse_is_summed_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a GPU, where sums in float32 over many images lost too much."""
    problem = program(dtype=torch.float32, reg=0.05)
    add = gram_module.add_gram

    def coarse(gram: torch.Tensor, features: torch.Tensor) -> None:
        add(gram, features)
        if features.dtype == torch.float32:
            noise = torch.randn(gram.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
            gram.mul_(1 + 0.03 * (noise + noise.T))

    monkeypatch.setattr(gram_module, "add_gram", coarse)
    monkeypatch.setattr(gram_newton, "_DIRECT_COLUMNS", -1)  # as of a form that is far too large for exact steps
    with caplog.at_level(logging.INFO, logger="cvxcnn"):
        result = Streamed(tol=1e-3).solve(problem)
    assert "the Gram form is summed once more, in float64" in caplog.text
    assert result.status == "optimal" and result.relative_gap <= 1e-3


def test_weights_that_float32_rounds_too_coarsely_are_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    problem = program(dtype=torch.float32, reg=1e-6)
    with caplog.at_level(logging.INFO, logger="cvxcnn"):
        result = Streamed(tol=1e-9).solve(problem)
    assert result.status == "inaccurate" and "use float64" in caplog.text


def test_no_part_holds_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are asked for in parts whose size does not depend on the number of images, in both passes."""
    sizes: list[int] = []
    original = Patches.relu_features

    def recorded(self: Patches, filters: torch.Tensor) -> torch.Tensor:
        features = original(self, filters)
        sizes.append(features.numel() * features.element_size())
        return features

    monkeypatch.setattr(Patches, "relu_features", recorded)
    monkeypatch.setattr(gram_module, "_CHECKED_IMAGES", 2)
    monkeypatch.setattr(design_module, "PART_BYTES_CPU", 2_000)
    for n in (40, 160):
        sizes.clear()
        problem = program(n=n, dtype=torch.float32)
        result = Streamed(tol=1e-4).solve(problem)
        # The check of the precision, a float32 pass and a float64 pass: nothing else.
        assert sum(sizes) == 2 * 7 * 4 * (4 + 8) + n * 7 * 4 * (4 + 8)
        assert max(sizes) <= 2_000
        problem.design.predict(result.weights)
        problem.reg_max()
        assert max(sizes) <= 2_000


def test_images_in_float16() -> None:
    """The rounding of the images belongs to the data: the solution is that of the rounded images."""
    problem = program(dtype=torch.float32, reg=2.0)
    patches = problem.design.patches
    stored = Patches(patches.images.half(), patches.geometry, torch.float32)
    rounded = Patches(patches.images.half().float(), patches.geometry)
    assert stored.astype(torch.float64).images.dtype == torch.float16
    results = []
    for images in (stored, rounded):
        same = filter_program(images, problem.design.vectors, problem.targets, 2.0, penalty=DensePenalty())
        results.append(Streamed(tol=1e-5).solve(same))
    assert results[0].objective == results[1].objective
    assert torch.equal(results[0].weights, results[1].weights)
    assert results[0].weights.dtype == torch.float32


@pytest.mark.parametrize("kind", ["dense", "filters", "gated"])
def test_a_path_shares_one_form(kind: str) -> None:
    problem = program(kind)
    form = GramForm.of(problem)
    top = form.reg_max(problem.penalty)
    regs = [1.001 * top, 0.3 * top, 0.1 * top]
    solutions = path(form, problem.penalty, regs, tol=1e-9)
    assert not solutions[0].any()
    for reg, weights in zip(regs, solutions, strict=True):
        alone = solve_form(form, problem.penalty, reg, tol=1e-9)
        at_reg = replace(problem, reg=reg)
        assert at_reg.evaluate(weights).relative_gap <= 2e-9
        assert at_reg.objective(weights) == pytest.approx(at_reg.objective(alone), rel=1e-8)


def test_precision_is_checked(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = program(dtype=torch.float32)
    with caplog.at_level(logging.INFO, logger="cvxcnn"):
        GramForm.of(problem)
    assert any("differ from float64 by" in message for message in caplog.messages)
    monkeypatch.setattr(gram_module, "_MOST_DIFFERENCE", 1e-12)
    with pytest.raises(SolverError, match='Use dtype="float64"'):
        GramForm.of(problem)


def test_what_it_refuses() -> None:
    problem = program()
    cones = relu_program(problem.design.patches, problem.design.vectors, problem.targets, 1.0)
    with pytest.raises(InputError, match="it knows no cones"):
        Streamed().solve(cones)


def test_a_block_needs_no_pass_for_its_intercept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge has found it already; predictions of the block are then the program's."""
    problem = program(intercept=True)
    images, targets = problem.design.patches.images, problem.targets + 3.0
    block = eq2_block(
        kernel_size=3, padding=1, pool_cells=2, bias=True, penalty="dense", reg=2.0, gates=8, intercept=True,
        solver="streamed", pricing=PricingOptions(starts=0), tol=1e-8,
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(Program, "intercepts", None)
        block.fit(images, targets)
    error = targets - torch.from_numpy(block.predict(images))
    assert error.mean(dim=0).abs().max() <= 1e-10
    assert block.result_.objective == pytest.approx(
        float(0.5 * error.square().sum() + 2.0 * block.result_.weights.flatten(1).norm(dim=1).sum()), rel=1e-9
    )


def test_a_reg_path_makes_one_pass_for_its_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = program()
    made: list[GramForm] = []
    original = GramForm.of.__func__  # type: ignore[attr-defined]

    def counted(cls: type[GramForm], given: Program, *, exact: bool = False) -> GramForm:
        made.append(original(cls, given, exact=exact))
        return made[-1]

    monkeypatch.setattr(GramForm, "of", classmethod(counted))
    settings: dict[str, Any] = {"kernel_size": 3, "penalty": "dense", "gates": 6, "tol": 1e-8}
    settings |= {"pricing": PricingOptions(starts=0), "intercept": True}
    images = problem.design.patches.images
    paths = [
        reg_path(images, problem.targets, block=eq2_block(solver=solver, **settings), points=4)
        for solver in ("streamed", "working_set")
    ]
    assert len(made) == 1
    assert paths[0].regs == pytest.approx(paths[1].regs, rel=1e-9)
    assert paths[0].objective == pytest.approx(paths[1].objective, rel=1e-7)


@pytest.mark.parametrize("intercept", [False, True])
def test_what_is_predicted_for_the_images_of_the_fit_comes_with_it(intercept: bool) -> None:
    images, targets = normal(40, 1, 6, 6), normal(40, 2, seed=1)
    block = ConvexConvBlock(gates=6, reg=0.3, solver="streamed", intercept=intercept, pricing=PricingOptions(starts=0))
    known = block.fit_task(block.task(images, targets), False, 0.01)
    assert known is not None and torch.allclose(known, block.outputs(images), atol=1e-12)
    assert block.result_.prediction is None  # a block doesn't grow with the images
    assert block.fit_task(block.task(images, targets, torch.arange(40) % 3), False, 0.01) is None
