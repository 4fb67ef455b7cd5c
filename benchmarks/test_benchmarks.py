"""The rivals solve the same problem as we do, and the benchmark's judge agrees with the package's.

python -m pip install --no-deps -r benchmarks/rivals.txt && python -m pytest benchmarks/test_benchmarks.py
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("benchopt", reason='benchopt is not installed: pip install -e ".[bench]"')

HERE = Path(__file__).parent / "programs"
sys.path.insert(0, str(HERE))

from benchmark_utils import Problem, planted  # noqa: E402  (the path comes first)

# Tolerances at which each agrees to 1e-6; pyscnn's augmented Lagrangians don't get there.
TOLERANCES = {"clarabel": 1e-9, "scs": 1e-8, "adelie": 1e-12, "pyscnn": 1e-12, "pyscnn_al": 1e-6, "ours": 1e-9}
ACCURACIES = {"pyscnn_al": 1e-2}


def make_problem(kind: str) -> Problem:
    problem = Problem(**planted(n=40, d=3, gates=10), kind=kind)
    return replace(problem, reg=0.15 * problem.program().reg_max())


def load_solver(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", HERE / "solvers" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        pytest.skip(f"{name}: {error.name} is not installed; see benchmarks/rivals.txt")
    return module.Solver.get_instance()


def solve(solver: Any, problem: Problem, tol: float) -> np.ndarray:
    weights = solver.solve(problem, solver.prepare(problem), tol)
    assert weights.shape == problem.zeros.shape and weights.dtype == np.float64
    return weights


@pytest.mark.parametrize("kind", ["relu", "gated"])
@pytest.mark.parametrize("name", [name for name in TOLERANCES if name != "clarabel"])
def test_all_solvers_agree_with_clarabel(name: str, kind: str) -> None:
    problem = make_problem(kind)
    solver = load_solver(name)
    skipped, reason = solver.skip(problem=problem)
    if skipped:
        pytest.skip(f"{name}: {reason}")
    reference = solve(load_solver("clarabel"), problem, TOLERANCES["clarabel"])
    best = problem.objective(reference, problem.predict(reference))
    weights = solve(solver, problem, TOLERANCES[name])
    accuracy = ACCURACIES.get(name, 1e-6)
    assert problem.objective(weights, problem.predict(weights)) == pytest.approx(best, rel=accuracy)
    assert problem.violation(weights) < accuracy


@pytest.mark.parametrize("kind", ["relu", "gated"])
def test_the_judge_is_right_about_any_weights(kind: str) -> None:
    problem = make_problem(kind)
    random = np.random.default_rng(1)
    weights = random.normal(size=problem.zeros.shape)
    program = problem.program()
    expected = program.evaluate(torch.from_numpy(weights).reshape(program.design.shape(1)))
    prediction = problem.predict(weights)
    assert problem.objective(weights, prediction) == pytest.approx(expected.objective, rel=1e-12)
    assert problem.violation(weights) == pytest.approx(expected.violation, rel=1e-9)
    assert problem.bound(prediction) == pytest.approx(expected.dual_bound, rel=1e-6)
    # Features, for the solvers that take a matrix, give the same prediction.
    combined = weights[0] - weights[1] if kind == "relu" else weights
    np.testing.assert_allclose(np.einsum("npd,pd->n", problem.features(), combined), prediction, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["relu", "gated"])
def test_the_bound_closes_at_the_optimum(kind: str) -> None:
    problem = make_problem(kind)
    weights = solve(load_solver("ours"), problem, 1e-9)
    prediction = problem.predict(weights)
    value, bound = problem.objective(weights, prediction), problem.bound(prediction)
    assert -1e-12 * value <= value - bound <= 2e-9 * value
