"""Every solver on every program: a certified result or a clear refusal, and all agree."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from eq2 import eq2_block
from problems import normal

from cvxcnn.errors import CvxcnnError, InputError, SolverError, SolverUnavailableError
from cvxcnn.losses import get_loss
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.penalties import DensePenalty, GroupPenalty, NuclearPenalty
from cvxcnn.pricing.options import PricingOptions
from cvxcnn.program import Program, filter_program, gated_program, relu_program
from cvxcnn.solvers import SOLVERS, Progress, SolveResult, Status, get_solver, working_set
from cvxcnn.solvers.algebra.gram import FeatureForm

TOL = 1e-6
NO_SEARCH = PricingOptions(starts=0)
CVXPY = ["cvxpy:CLARABEL", "cvxpy:SCS"]


def data(n: int = 12, outputs: int = 2) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    images = random.normal(size=(n, 4, 4))
    # Filtered, rectified and summed images and a little noise: something that a block can fit.
    signal = np.maximum(images[:, :-1, :-1] - images[:, 1:, 1:], 0).sum(axis=(1, 2))
    return images, np.stack([signal * (-1) ** o + random.normal(size=n) for o in range(outputs)], axis=1)


def program(kind: str, reg: float = 0.5, outputs: int = 1, **geometry: Any) -> Program:
    make, penalty = {
        "gated": (gated_program, GroupPenalty),
        "nuclear": (gated_program, NuclearPenalty),
        "relu": (relu_program, GroupPenalty),
        "dense": (filter_program, DensePenalty),
    }[kind]
    images, targets = (torch.from_numpy(array) for array in data(outputs=outputs))
    patches = Patches(images[:, None], PatchGeometry(**{"kernel_size": 2, "bias": True, **geometry}))
    gates = normal(6, patches.dim, seed=1)
    if kind == "dense":
        gates = torch.nn.functional.normalize(gates, dim=1)
    return make(patches, gates, targets, reg, penalty=penalty())


def mosek_has_a_licence() -> bool:
    if importlib.util.find_spec("mosek") is None:
        return False
    import mosek

    try:
        with mosek.Env() as env, env.Task() as task:
            task.optimize()
    except mosek.Error:
        return False
    return True


# Everything else must be solved.
REFUSED = {
    ("relu", "nuclear"): 'penalty="nuclear" is a gated program',
    ("relu", "group", "working_set"): "it knows no cones",
    ("relu", "group", "fista"): "it knows no cones",
    ("relu", "group", "streamed"): "it knows no cones",
    ("relu", "group", "semismooth_newton"): "it knows no cones",
    ("relu", "dense", "semismooth_newton"): "proximal map has a derivative; 'dense' gives none",
    ("gated_relu", "group", "semismooth_newton"): "proximal map has a derivative; 'group' gives none",
    ("relu", "dense", "cone_working_set"): "it is for programs with cones",
    ("gated_relu", "group", "cone_working_set"): "it is for programs with cones",
    ("gated_relu", "nuclear", "cone_working_set"): "it is for programs with cones",
    ("gated_relu", "nuclear", "working_set"): "it needs a penalty of fixed groups, and 'nuclear' says none",
    ("relu", "group", "spectral_cones"): "it needs a penalty of frequencies",
    ("relu", "dense", "spectral_cones"): "it is for programs with cones",
    ("gated_relu", "group", "spectral_cones"): "it is for programs with cones",
    ("gated_relu", "nuclear", "spectral_cones"): "it is for programs with cones",
    ("relu", "group", "proximal_newton"): "the squared loss is quadratic already",
    ("relu", "dense", "proximal_newton"): "the squared loss is quadratic already",
    ("gated_relu", "group", "proximal_newton"): "the squared loss is quadratic already",
    ("gated_relu", "nuclear", "proximal_newton"): "the squared loss is quadratic already",
}
COMBINATIONS = list(itertools.product(["relu", "gated_relu"], ["group", "nuclear", "dense"], [False, True], [1, 2]))


@pytest.mark.parametrize(("kind", "outputs", "geometry"), [
    ("gated", 2, {"pool_cells": 2}), ("gated", 1, {"kernel_size": 4}), ("dense", 1, {})
])  # fmt: skip
def test_conjugate_gradients_reach_the_gram_matrix_optimum(
    kind: str, outputs: int, geometry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs with many columns take another path to the same optimum; kernel_size=4 has one patch an image."""
    problem = program(kind, reg=0.3, outputs=outputs, **geometry)
    expected = get_solver("working_set", problem, tol=1e-9).solve(problem)
    monkeypatch.setattr(working_set, "_GRAM_COLUMNS", 5)
    monkeypatch.setattr(working_set, "_GRAM_COLUMNS_MASKED", 5)
    found = get_solver("working_set", problem, tol=1e-9).solve(problem)
    assert found.relative_gap <= 1e-9
    assert found.objective == pytest.approx(expected.objective, rel=1e-8)


@pytest.mark.parametrize("loss", ["logistic", "softmax"])
@pytest.mark.parametrize("kind", ["gated", "nuclear", "relu", "dense"])
def test_other_losses(kind: str, loss: str) -> None:
    """Ours reaches the tolerance, Clarabel agrees, and solvers of quadratic programs refuse."""
    problem = program(kind, reg=0.2, outputs=2, pool_cells=2 if kind == "dense" else 1)
    largest = problem.targets.argmax(dim=1)
    signs = torch.where(problem.targets > problem.targets.mean(dim=0), 1.0, -1.0).to(problem.targets)
    targets = signs if loss == "logistic" else torch.nn.functional.one_hot(largest, 2).to(signs)
    problem = replace(problem, targets=targets, loss=get_loss(loss))
    tol = 1e-4 if kind == "nuclear" else 1e-7
    result = get_solver("auto", problem, tol=tol).solve(problem)
    assert (result.solver, result.status) == ("proximal_newton", "optimal")
    assert result.violation <= 1e-9
    expected = get_solver("cvxpy:CLARABEL", problem, tol=1e-6).solve(problem)
    assert result.objective == pytest.approx(expected.objective, rel=max(tol, 1e-6))
    for name in ("working_set", "cone_working_set", "fista"):
        with pytest.raises(InputError, match="solver"):
            get_solver(name, problem).solve(problem)
    again = get_solver("proximal_newton", problem, tol=tol).solve(problem, start=result.weights)
    assert again.iterations == 0


@pytest.mark.parametrize(("activation", "penalty", "intercept", "cells"), COMBINATIONS)
def test_every_combination(activation: str, penalty: str, intercept: bool, cells: int) -> None:
    """Certified to the tolerance, or refused with a reason; all solvers that accept agree."""
    images, targets = data()
    objectives: dict[str, float] = {}
    for solver in ["auto", *SOLVERS]:
        block = eq2_block(
            kernel_size=2, pool_cells=cells, activation=activation, penalty=penalty, reg=1.0, gates=5, solver=solver,
            tol=TOL, intercept=intercept, pricing=NO_SEARCH,
        )  # fmt: skip
        meant = penalty
        if (activation, penalty) == ("gated_relu", "dense"):  # one norm of a single column, the nuclear one of several
            meant = "group" if np.size(targets) * cells**2 == len(images) else "nuclear"
        refusal = REFUSED.get((activation, meant)) or REFUSED.get((activation, meant, solver))
        if refusal is not None:
            with pytest.raises(InputError, match=refusal):
                block.fit(images, targets)
            continue
        if solver == "cvxpy:MOSEK" and not mosek_has_a_licence():
            with pytest.raises(SolverUnavailableError):
                block.fit(images, targets)
            continue
        result = block.fit(images, targets).result_
        assert result.status == "optimal", (solver, result)
        assert -1e-9 <= result.relative_gap <= TOL
        assert result.dual_bound <= result.objective + 1e-9
        assert bool(result.weights.any())
        assert result.solver == solver or solver == "auto"
        objectives[solver] = result.objective
    if objectives:
        assert len(objectives) >= 4  # auto, one of our own, Clarabel, SCS
        assert max(objectives.values()) - min(objectives.values()) <= TOL * max(objectives.values())


@pytest.mark.parametrize("kind", ["gated", "nuclear", "relu", "dense"])
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_units_do_not_matter(kind: str, scale: float) -> None:
    """Targets and reg in other units give the same weights in those units."""
    base = program(kind)
    scaled = Program(
        base.design, base.targets * scale, base.reg * scale, base.penalty, cones=base.cones, intercept=base.intercept
    )
    solver = get_solver("auto", base, tol=1e-9)
    expected, found = solver.solve(base), solver.solve(scaled)
    prediction = base.design.predict(expected.weights)
    error = (base.design.predict(found.weights) / scale - prediction).norm() / prediction.norm()
    assert error <= 1e-3
    assert found.relative_gap <= 1e-9


@pytest.mark.parametrize("kind", ["gated", "nuclear", "relu", "dense"])
def test_result_is_recomputed(kind: str) -> None:
    target = program(kind, outputs=2)
    result = get_solver("auto", target, tol=TOL).solve(target)
    final = target.evaluate(result.weights)
    assert (result.objective, result.dual_bound) == (final.objective, final.dual_bound)
    assert target.violation(result.weights) <= 1e-12
    assert result.violation <= 1e-6
    assert result.seconds > 0
    assert result.history and result.history[-1].dual_bound <= result.objective + 1e-9


@pytest.mark.parametrize("name", ["working_set", "cone_working_set", "fista", *CVXPY])
def test_iteration_limit_keeps_the_best_point(name: str, caplog: pytest.LogCaptureFixture) -> None:
    target = program("relu" if name == "cone_working_set" else "gated", reg=0.01, outputs=2, pool_cells=2)
    exact = get_solver("auto", target, tol=1e-8).solve(target)
    try:
        result = get_solver(name, target, tol=1e-9, max_iter=1).solve(target)
    except SolverError as error:
        assert name in CVXPY and "no point" in str(error)
        return
    assert result.status in (Status.ITERATION_LIMIT.value, Status.INACCURATE.value)
    assert result.relative_gap > 1e-9
    assert result.dual_bound <= exact.objective + 1e-9
    assert result.objective >= exact.dual_bound - 1e-9
    assert "Relative gap" in caplog.text and name in caplog.text
    assert result.iterations <= 1 * target.n_outputs


@pytest.mark.parametrize(("name", "kind"), [("working_set", "gated"), ("cone_working_set", "relu"), ("fista", "gated")])
def test_callback_sees_progress_and_may_stop(name: str, kind: str) -> None:
    target = program(kind)
    seen: list[Progress] = []
    result = get_solver(name, target, tol=TOL).solve(target, callback=seen.append)
    assert seen == result.history
    assert [p.iteration for p in seen] == sorted(p.iteration for p in seen)
    assert all(p.dual_bound <= p.objective + 1e-9 and p.seconds >= 0 for p in seen)

    class StopSolveError(Exception):
        pass

    def stop(progress: Progress) -> None:
        raise StopSolveError

    with pytest.raises(StopSolveError):
        get_solver(name, target).solve(target, callback=stop)


@pytest.mark.parametrize(("name", "kind"), [("working_set", "gated"), ("cone_working_set", "relu"), ("fista", "gated")])
def test_warm_start(name: str, kind: str) -> None:
    target = program(kind, outputs=2)
    cold = get_solver(name, target, tol=1e-8).solve(target)
    start = cold.weights.clone()
    warm = get_solver(name, target, tol=1e-7).solve(target, start=start)
    assert warm.iterations < cold.iterations
    assert warm.relative_gap <= 1e-7
    assert torch.equal(start, cold.weights)
    # From a bad start the answer is the same.
    other = get_solver(name, target, tol=1e-8).solve(target, start=target.repair(torch.ones_like(start)))
    assert other.objective == pytest.approx(cold.objective, rel=1e-7)


def test_start_of_the_wrong_shape() -> None:
    target = program("gated")
    with pytest.raises(InputError, match=r"start must have shape \(6, 1, 5, 1\); got \(6, 1, 5\)"):
        get_solver("auto", target).solve(target, start=torch.zeros(6, 1, 5))


def test_zero_targets() -> None:
    for kind in ("gated", "nuclear", "relu", "dense"):
        target = program(kind)
        target = Program(target.design, target.targets * 0, 1.0, target.penalty, cones=target.cones)
        result = get_solver("auto", target).solve(target)
        assert (result.objective, result.dual_bound, result.status) == (0.0, 0.0, "optimal")


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), "small", None, True])
def test_bad_tol(value: Any) -> None:
    with pytest.raises(InputError, match="tol must be a positive number; got"):
        get_solver("fista", program("gated"), tol=value)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "many"])
def test_bad_max_iter(value: Any) -> None:
    with pytest.raises(InputError, match="max_iter must be an int >= 1, or None; got"):
        get_solver("fista", program("gated"), max_iter=value)


def test_unknown_solver() -> None:
    with pytest.raises(InputError, match=r'solver must be "auto" or one of \[.*\]; got .sgd.'):
        get_solver("sgd", program("gated"))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("gated", "working_set"),
        ("dense", "working_set"),
        ("relu", "cone_working_set"),
        ("nuclear", "semismooth_newton"),
    ],
)
def test_auto_chooses_our_own(kind: str, expected: str) -> None:
    assert get_solver("auto", program(kind)).name == expected


# MOSEK and missing packages ------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("mosek") is None, reason="mosek is not installed")
def test_mosek() -> None:
    target = program("gated")
    solver = get_solver("cvxpy:MOSEK", target, tol=TOL)
    if mosek_has_a_licence():
        assert solver.solve(target).status == "optimal"
        return
    with pytest.raises(SolverUnavailableError, match=r"found no valid licence.*MOSEKLM_LICENSE_FILE.*another solver"):
        solver.solve(target)


@pytest.mark.parametrize("name", ["cvxpy:MOSEK", *CVXPY])
def test_missing_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = program("gated")
    solver = get_solver(name, target)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    package = name.partition(":")[2].lower()
    with pytest.raises(SolverUnavailableError, match=f"not installed here. Install it .pip install {package}."):
        solver.solve(target)


# What cvxpy may answer -----------------------------------------------------------------------------------------------


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make cvxpy end with a status, with or without the point of a real solve, or with an error."""
    solve = cp.Problem.solve

    def set_answer(status: str, point: bool = True, error: Exception | None = None) -> None:
        def fake(self: cp.Problem, **options: Any) -> Any:
            if error is not None:
                raise error
            if point:
                solve(self, **options)
            self._status = status
            return None

        monkeypatch.setattr(cp.Problem, "solve", fake)

    yield set_answer


def clarabel(target: Program) -> SolveResult:
    return get_solver("cvxpy:CLARABEL", target, tol=TOL).solve(target)


@pytest.mark.parametrize(
    "status", ["infeasible", "unbounded", "infeasible_inaccurate", "unbounded_inaccurate", "solver_error"]
)
@pytest.mark.parametrize("point", [False, True])
def test_cvxpy_ends_without_a_point(answer: Any, status: str, point: bool) -> None:
    answer(status, point=point)
    with pytest.raises(SolverError, match=f"cvxpy:CLARABEL ended with status '{status}' and no point.*rescale"):
        clarabel(program("gated"))


@pytest.mark.parametrize("status", ["optimal_inaccurate", "user_limit"])
def test_a_point_is_judged_by_its_own_gap(answer: Any, status: str) -> None:
    """What the solver says of a point doesn't matter: the gap is recomputed."""
    answer(status)
    assert clarabel(program("gated")).status == "optimal"


def test_limit_without_a_point(answer: Any) -> None:
    answer("user_limit", point=False)
    with pytest.raises(SolverError, match="'user_limit' and no point"):
        clarabel(program("gated"))


def test_cvxpy_errors_are_ours(answer: Any) -> None:
    answer("", error=cp.SolverError("Solver 'CLARABEL' failed.\nTry another."))
    with pytest.raises(SolverError, match=r"cvxpy:CLARABEL failed: Solver 'CLARABEL' failed. Choose another solver"):
        clarabel(program("gated"))


def test_other_errors_are_not_hidden(answer: Any) -> None:
    answer("", error=KeyError("bug"))
    with pytest.raises(KeyError):
        clarabel(program("gated"))


def test_weights_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    from cvxcnn.solvers.base import Outcome
    from cvxcnn.solvers.fista import Fista

    target = program("gated")
    monkeypatch.setattr(Fista, "run", lambda *arguments: Outcome(target.zeros() * float("nan"), 1))
    with pytest.raises(SolverError, match="fista returned weights that are not finite"):
        Fista().solve(target)


def test_every_error_is_one_of_ours() -> None:
    assert issubclass(SolverUnavailableError, SolverError) and issubclass(SolverError, CvxcnnError)
    assert {status.value for status in Status} == {"optimal", "inaccurate", "iteration_limit", "time_limit"}
    assert all(status.message.endswith(".") for status in Status)


@pytest.mark.parametrize("loss", ["logistic", "softmax"])
@pytest.mark.parametrize("settings", [
    {}, {"penalty": "dense"}, {"activation": "gated_relu"}, {"activation": "gated_relu", "penalty": "nuclear"},
], ids=["relu", "dense", "gated", "nuclear"])  # fmt: skip
def test_proximal_newton_never_stalls_on_small_problems(loss: str, settings: dict[str, Any]) -> None:
    """Few images, unequal classes, reg from a thousandth of reg_max to nearly all of it, images of any length."""
    for seed in range(12):
        random = np.random.default_rng(seed)
        n, outputs = int(random.integers(1, 12)), int(random.integers(2, 4))
        images = 10.0 ** random.integers(-3, 4) * random.random((n, 4, 4))
        share = 0.5 if seed % 2 else 0.1
        if loss == "softmax":
            targets = np.eye(outputs)[np.where(random.random(n) < share, random.integers(outputs, size=n), 0)]
        else:
            targets = np.where(random.random((n, outputs)) < share, 1.0, -1.0)
        block = eq2_block(
            kernel_size=2,
            gates=int(random.integers(1, 6)),
            loss=loss,
            pricing=NO_SEARCH,
            pool_cells=1 + seed % 2,
            **settings,
        )
        block.set_params(reg=10 ** random.uniform(-3, -0.005) * block.reg_max(images, targets))
        result = block.fit(images, targets).result_
        assert (result.solver, result.status) == ("proximal_newton", "optimal"), (seed, result.relative_gap)


def test_softmax_bounds_use_multiples_above_one() -> None:
    """One image, one filter: the dual point of a model's minimum is too short, and lengthened to the constraint."""
    loss = get_loss("softmax")
    targets, prediction = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[1.0, -1.0]]).double()
    dual = loss.dual_point(prediction, targets)
    share = torch.sigmoid(torch.tensor(-2.0).double())
    # Twice the dual point is still feasible: shares 1 - 2 a and 2 a, whose entropy is larger than at a.
    expected = float(torch.special.entr(torch.stack([1 - 2 * share, 2 * share])).sum())
    assert loss.dual_value(dual, targets, torch.full((2,), 2.0).double()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("roots", [False, True])
def test_features_and_the_gram_matrix_are_the_same_form(roots: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    targets = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    shape, penalty = (2, 2, 3, 2), NuclearPenalty()
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    factors = torch.randn(5, 2, 2, generator=generator, dtype=torch.float64) if roots else None
    form = FeatureForm(features, targets, shape, factors)
    each = torch.eye(2, dtype=torch.float64).expand(5, 2, 2) if factors is None else factors
    stacked = torch.einsum("nq,nop->noqp", features, each).reshape(10, 24)
    flat = weights.reshape(24, 1)
    assert torch.allclose(form.product(weights.reshape(12, 2)).reshape(24, 1), stacked.T @ (stacked @ flat))
    assert form.steepness() == pytest.approx(float(torch.linalg.matrix_norm(stacked, 2)) ** 2)
    objective, bound, correlation = form.gap(penalty, 0.7, weights)
    residual = targets.reshape(10, 1) - stacked @ flat
    assert objective == pytest.approx(0.5 * float(residual.square().sum()) + 0.7 * penalty.value(weights))
    assert torch.allclose(correlation.reshape(24, 1), stacked.T @ residual) and bound < objective


def test_advice_names_what_can_be_changed(caplog: pytest.LogCaptureFixture) -> None:
    base = program("gated", pool_cells=1)
    for given, advice in ((1, "Raise max_iter, or tol."), (None, "Ask for a larger tol.")):
        caplog.clear()
        get_solver("fista", base, tol=1e-15 if given is None else 1e-6, max_iter=given).solve(base)
        assert advice in caplog.text
    for wrong, right in (("fista", "cone_working_set"), ("streamed", "cone_working_set")):
        refusal = get_solver(wrong, base).refusal(program("relu"))
        assert refusal is not None and f'solver="{right}"' in refusal
        assert get_solver(right, base).refusal(program("relu")) is None
