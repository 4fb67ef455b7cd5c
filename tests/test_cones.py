"""Cone projections against Moreau's conditions and a quadratic program, and decompositions against their definition."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import noise_patches, normal, seeded
from scipy.optimize import nnls

from cvxcnn.arrangements import GaussianGates
from cvxcnn.errors import InputError
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.program import relu_program
from cvxcnn.program.cones import Cones
from cvxcnn.solvers import get_solver

Array = np.ndarray


def cones_of(seed: int, n: int = 6, side: int = 4, kernel: int = 2, count: int = 3, bias: bool = False) -> Cones:
    random = seeded(seed)
    patches = noise_patches(n, side, seed=random, kernel_size=kernel, bias=bias)
    return Cones(patches, normal(count, patches.dim, seed=random))


def normals(cones: Cones, gate: int) -> Array:
    return cones.signs(gate)[:, None] * cones.rows


@st.composite
def problems(draw: st.DrawFn) -> tuple[Cones, Array]:
    """Return cones and a vector: random, near the gate (often inside), or opposite to it (projected to zero)."""
    seed = draw(st.integers(0, 2**31))
    size = {"n": draw(st.integers(1, 8)), "side": draw(st.integers(2, 5)), "kernel": draw(st.integers(1, 2))}
    cones = cones_of(seed, bias=draw(st.booleans()), **size)
    random = np.random.default_rng(seed)
    vector = random.normal(size=cones.rows.shape[1])
    return cones, vector + draw(st.sampled_from([0.0, 3.0, -3.0])) * cones.gates[0]


@given(problem=problems(), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_moreau(problem: tuple[Cones, Array], scale: float) -> None:
    """p is in the cone, p - a is a non-negative combination of the rows, and the two are orthogonal."""
    cones, vector = problem
    vector = vector * scale
    point, touched = cones.project(0, vector)
    rows, length = normals(cones, 0), np.linalg.norm(vector)
    assert ((rows @ point) / cones.lengths >= -1e-12 * length).all()
    _, distance = nnls(rows.T, point - vector)
    assert distance <= 1e-9 * length
    assert abs(point @ (point - vector)) <= 1e-11 * length**2
    np.testing.assert_allclose(rows[touched] @ point, 0.0, atol=1e-10 * length * cones.lengths.max())


@pytest.mark.parametrize("seed", range(6))
def test_projection_is_that_of_a_quadratic_program(seed: int) -> None:
    cones = cones_of(seed, kernel=3, side=5)
    vector = np.random.default_rng(seed).normal(size=9) + cones.gates[1]
    variable = cp.Variable(9)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(variable - vector)), [normals(cones, 1) @ variable >= 0])
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    point, _ = cones.project(1, vector)
    np.testing.assert_allclose(point, variable.value, atol=1e-6)


@given(problem=problems())
def test_inside_nothing_moves_and_the_polar_goes_to_zero(problem: tuple[Cones, Array]) -> None:
    cones, vector = problem
    point, touched = cones.project(0, cones.gates[0])
    np.testing.assert_array_equal(point, cones.gates[0])
    assert not len(touched)
    polar = -normals(cones, 0).T @ np.abs(np.random.default_rng(0).normal(size=len(cones.rows)))
    point, _ = cones.project(0, polar)
    assert np.linalg.norm(point) <= 1e-9 * np.linalg.norm(polar)
    np.testing.assert_array_equal(cones.project(0, 0 * vector)[0], 0 * vector)


@given(problem=problems(), share=st.floats(0.0, 1.5))
def test_ceiling_stops_early_and_stays_above(problem: tuple[Cones, Array], share: float) -> None:
    cones, vector = problem
    exact = np.linalg.norm(cones.project(0, vector)[0])
    ceiling = share * float(np.linalg.norm(vector))
    early = np.linalg.norm(cones.project(0, vector, ceiling=ceiling)[0])
    assert early >= exact * (1 - 1e-9) - 1e-12
    if exact >= ceiling:
        assert early == pytest.approx(exact, rel=1e-9, abs=1e-12)


@given(problem=problems())
def test_projection_is_the_support_function(problem: tuple[Cones, Array]) -> None:
    """||p|| = max {a . u : ||u|| <= 1, u in the cone}: nothing in the cone does better."""
    cones, vector = problem
    length = np.linalg.norm(cones.project(0, vector)[0])
    random = np.random.default_rng(1)
    for _ in range(20):
        inside, _ = cones.project(0, random.normal(size=len(vector)))
        assert vector @ inside <= length * np.linalg.norm(inside) + 1e-9


def test_rows_are_the_distinct_patches_that_are_not_zero() -> None:
    images = torch.tensor([[[[1.0, 0.0, 1.0, -2.0]]]], dtype=torch.float64)
    cones = Cones(Patches(images, PatchGeometry(kernel_size=1)), torch.tensor([[2.0]], dtype=torch.float64))
    assert cones.rows.tolist() == [[-2.0], [1.0]]
    assert cones.signs(0).tolist() == [-1.0, 1.0]
    assert cones.violation(0, np.array([[3.0, 0.0]])) == 0.0
    assert cones.violation(0, np.array([[3.0, -0.5]])) == 1.0


@given(problem=problems())
def test_decomposition(problem: tuple[Cones, Array]) -> None:
    cones, vector = problem
    first, second = cones.decompose(0, vector)
    np.testing.assert_allclose(first - second, vector, rtol=0, atol=1e-9)
    assert cones.violation(0, np.stack([first, second], axis=1)) <= 1e-10


def test_shift_is_nearly_the_shortest() -> None:
    cones = cones_of(0, kernel=3, side=5)
    vector = np.random.default_rng(0).normal(size=9)
    _, second = cones.decompose(0, vector)
    variable, rows = cp.Variable(9), normals(cones, 0)
    constraints = [rows @ variable >= 0, rows @ (variable + vector) >= 0]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(variable)), constraints)
    problem.solve(solver="CLARABEL")
    assert np.linalg.norm(second) == pytest.approx(np.sqrt(problem.value), rel=1e-3)


def test_decomposition_of_a_vector_in_the_cone_is_itself() -> None:
    cones = cones_of(3)
    first, second = cones.decompose(2, cones.gates[2])
    np.testing.assert_array_equal(first, cones.gates[2])
    assert not second.any()


def test_gate_on_a_hyperplane() -> None:
    images = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]], dtype=torch.float64)
    patches = Patches(images, PatchGeometry(kernel_size=1))
    cones = Cones(patches, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    with pytest.raises(InputError, match=r"gate 0 lies on the hyperplane of a patch.*general position"):
        cones.decompose(0, np.array([1.0, -1.0]))
    # The patch on the hyperplane doesn't matter to a vector that needs no move off it.
    first, second = cones.decompose(0, np.array([-1.0, 2.0]))
    np.testing.assert_allclose(first - second, [-1.0, 2.0])
    assert cones.violation(0, np.stack([first, second], axis=1)) <= 1e-12


@given(problem=problems(), near=st.integers(0, 2))
def test_bounds_of_lengths_are_above_them(problem: tuple[Cones, Array], near: int) -> None:
    """Whatever was projected before: the same columns, others nearby, or none."""
    cones, vector = problem
    random = np.random.default_rng(near)
    shape = len(cones.gates), 3, len(vector), 4
    columns = vector[:, None] + random.normal(size=shape)
    for _ in range(near):
        other = columns + 0.1 * random.normal(size=shape)
        cones.lengths_up_to(other, 0.0)
        for place in np.ndindex(shape[0], shape[1], shape[3]):
            cones.project_column(other, place, 0.0)
    exact = np.array([
        [[np.linalg.norm(cones.project(block, column)[0]) for column in cell.T] for cell in values]
        for block, values in enumerate(columns)
    ])  # fmt: skip
    for floor in (0.0, float(np.median(exact))):
        assert (cones.lengths_up_to(columns, floor) >= exact * (1 - 1e-12) - 1e-12).all()


def test_a_norm_just_below_reg_is_exact() -> None:
    # Its upper bound, 2e-5 above it, had kept the bound of the program 3e-6 below its objective for ever.
    generator = torch.Generator().manual_seed(29)
    torch.rand(6, generator=generator)
    images = torch.randn(8, 2, 5, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    patches = Patches(images, PatchGeometry(kernel_size=3, bias=True, pool_cells=2, pooling="mean"))
    gates = GaussianGates(9).draw(patches, generator).vectors
    program = relu_program(patches, gates, targets, 1.0, intercept=True)
    share = 10 ** (-2.5 * float(torch.rand(1, generator=generator)) - 0.05)
    program = relu_program(patches, gates, targets, share * program.reg_max(), intercept=True)
    solved = get_solver("auto", program, tol=1e-7).solve(program)
    assert solved.status == "optimal" and solved.relative_gap <= 1e-7
