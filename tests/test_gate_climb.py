"""The search for gates: local maxima are local maxima, enumeration finds nothing better, nothing gets worse."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import dual_problem
from scipy.optimize import linprog

from cvxcnn.arrangements import EnumeratedGates
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.patches.activity import active, softly_active
from cvxcnn.penalties import GroupPenalty, NuclearPenalty, Penalty
from cvxcnn.pricing.gate_climb import GateClimb
from cvxcnn.pricing.gate_master import GateMaster
from cvxcnn.pricing.options import PricingOptions
from cvxcnn.pricing.search import GateSearch
from cvxcnn.pricing.separation import worst_direction
from cvxcnn.pricing.solve import solve_priced
from cvxcnn.program import gated_program
from cvxcnn.program.problem import Problem
from cvxcnn.solvers import get_solver

PENALTIES: list[Penalty] = [GroupPenalty(), NuclearPenalty()]


# Two cells a side.
problem = partial(dual_problem, outputs=2, cells=2, size=(3, 4))


def heights(search: GateSearch, gates: torch.Tensor, column: int) -> torch.Tensor:
    """Return what a climb is to make large."""
    matrices = search.correlation(gates).transpose(1, 2).flatten(2)
    return torch.linalg.svdvals(matrices)[:, 0] if column < 0 else matrices[:, :, column].norm(dim=1)


def one_hot(count: int, columns: int, column: int) -> torch.Tensor | None:
    pairs = F.one_hot(torch.full((count,), column), columns).double() if column >= 0 else None
    return pairs


def across(climb: GateClimb, sides: np.ndarray, hyperplane: int) -> bool:
    """Return, by linear programming, whether a cell lies across this hyperplane alone."""
    turned = sides.copy()
    turned[hyperplane] *= -1
    inward = climb.normals * turned[:, None]
    # The largest margin m with inward g >= m, |g| <= 1 entry by entry.
    rows = np.column_stack([-inward, np.ones(len(inward))])
    box = [(-1, 1)] * inward.shape[1] + [(0, 1)]
    found = linprog([0] * inward.shape[1] + [-1], rows, np.zeros(len(inward)), bounds=box)
    return bool(found.x[-1] > 1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_the_matrix_of_a_cell_is_the_correlation_of_its_gates(seed: int) -> None:
    patches, dual = problem(seed, kernel=(2, 2))
    # Parallel patches, of both signs, are one hyperplane; zero patches are none.
    images = torch.cat([patches.images, -2.0 * patches.images[:2], torch.zeros_like(patches.images[:1])])
    patches, dual = Patches(images, patches.geometry), torch.cat([dual, dual[:3]])
    climb = GateClimb(patches, dual)
    assert len(climb.normals) == 8 * patches.n_patches
    gates = F.normalize(torch.randn(20, patches.dim, dtype=torch.float64), dim=1)
    expected = patches.gated_correlation(gates, dual).transpose(1, 2).flatten(2)
    for gate, matrix in zip(gates.numpy(), expected.numpy(), strict=True):
        np.testing.assert_allclose(climb.matrix(climb.sides(gate)), matrix, atol=1e-12)


@pytest.mark.parametrize("column", [-1, 0, 5])
@pytest.mark.parametrize("kernel", [(1, 3), (2, 2), (2, 3)])
def test_no_single_crossing_leads_higher_from_where_a_climb_ends(kernel: tuple[int, int], column: int) -> None:
    patches, dual = problem(1, kernel=kernel)
    search = GateSearch(patches, dual, NuclearPenalty())
    starts = search.starts(6, torch.Generator().manual_seed(0))
    found = search.climb(starts, 10, one_hot(6, 8, column))
    assert (heights(search, found, column) >= heights(search, starts, column)).all()
    climb = GateClimb(patches, dual)
    for gate in found.numpy():
        sides = climb.sides(gate)
        value = climb.value(climb.matrix(sides), column)[0]
        for hyperplane in range(len(sides)):
            turned = sides.copy()
            turned[hyperplane] *= -1
            if climb.value(climb.matrix(turned), column)[0] > value * (1 + 1e-9):
                assert not across(climb, sides, hyperplane)


def test_gates_that_end_in_one_cell_are_one_gate() -> None:
    patches, dual = problem(2, kernel=(1, 2), outputs=1)
    search = GateSearch(patches, dual, NuclearPenalty())
    found = search.climb(search.starts(40, torch.Generator().manual_seed(0)), 10, None)
    prints = active(patches.unfold().flatten(0, 1), found).T.unique(dim=0)
    assert len(found.unique(dim=0)) == len(prints) < 40
    assert torch.equal(search.climb(found, 10, None), found)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), column=st.sampled_from([-1, 0]), on=st.integers(0, 3))
def test_no_gate_gets_worse_not_even_one_on_hyperplanes(seed: int, column: int, on: int) -> None:
    patches, dual = problem(seed, n=5, kernel=(2, 2), outputs=1)
    # Opposite patches: on their hyperplane both are active, as in no cell beside it.
    patches, dual = Patches(torch.cat([patches.images, -patches.images]), patches.geometry), torch.cat([dual, dual])
    search = GateSearch(patches, dual, GroupPenalty() if column >= 0 else NuclearPenalty())
    starts = search.starts(8, torch.Generator().manual_seed(seed))
    lines = patches.unfold().flatten(0, 1)[:on]
    if on:
        starts = F.normalize(starts - starts @ torch.linalg.pinv(lines) @ lines, dim=1)
    before = heights(search, starts, column)
    climbed = search.climb(starts, 10, one_hot(8, 4, column))
    assert (heights(search, climbed, column) >= before * (1 - 1e-12)).all()
    ascended = search.ascend(starts, 10)
    dealt = torch.arange(8) % 4
    norms = search.correlation(torch.cat([starts, ascended])).norm(dim=2).flatten(1)
    if column >= 0:
        assert (norms[8:].gather(1, dealt[:, None]) >= norms[:8].gather(1, dealt[:, None]) * (1 - 1e-12)).all()
    else:
        assert (heights(search, ascended, -1) >= before * (1 - 1e-12)).all()


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: penalty.name)
@pytest.mark.parametrize("kernel", [(1, 2), (1, 3)])
def test_the_search_finds_the_best_of_all_cells(kernel: tuple[int, int], penalty: Penalty) -> None:
    for seed in range(2):
        patches, targets = problem(seed, n=6, kernel=kernel)
        every = EnumeratedGates().draw(patches, torch.Generator()).vectors
        program = gated_program(patches, every[:1], targets, 0.05, penalty=penalty)
        norms = penalty.dual_norms(patches.gated_correlation(every, targets)) / program.reg
        options = PricingOptions(starts=64, ascent_steps=30)
        quick = patches.astype(torch.float32)
        worst = worst_direction(program, quick, targets, options, torch.Generator().manual_seed(seed))
        assert float(worst.scores.max()) == pytest.approx(float(norms.max()), rel=1e-12)
        # For a separable penalty, every output has a multiple of its own: the bound says whether all were found.
        largest = penalty.largest_scale(patches.gated_correlation(every, targets), program.reg)
        expected = program.loss.dual_value(targets, targets, largest.clamp_max(1.0))
        assert worst.bound == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: penalty.name)
def test_priced_gates_reach_the_optimum_over_all_cells_and_their_bound_is_below_it(penalty: Penalty) -> None:
    patches, targets = problem(3, n=6, kernel=(1, 2), outputs=1)
    every = EnumeratedGates().draw(patches, torch.Generator()).vectors
    program = gated_program(patches, every, targets, 0.3, penalty=penalty)
    with torch.no_grad():
        exact = get_solver("auto", program, tol=1e-7).solve(program)
        priced = solve_priced(
            Problem(patches, targets, 0.3, penalty), GateMaster, options=PricingOptions(starts=16, gap=1e-4)
        )
    assert priced.global_bound <= exact.objective
    assert priced.converged
    assert priced.objective == pytest.approx(exact.objective, rel=2e-4)


def test_soft_patterns_become_the_patterns_as_they_are_sharpened() -> None:
    patches, dual = problem(4, kernel=(2, 2))
    gates = F.normalize(torch.randn(5, patches.dim, dtype=torch.float64), dim=1)
    sharp = torch.full((5,), 1e9, dtype=torch.float64)
    flat = patches.unfold().flatten(0, 1)
    assert torch.equal(softly_active(flat, gates, sharp), active(flat, gates).double())
    assert torch.equal(softly_active(flat, gates, 0 * sharp), torch.full((len(flat), 5), 0.5, dtype=torch.float64))
    np.testing.assert_allclose(
        patches.gated_correlation(gates, dual, sharp), patches.gated_correlation(gates, dual), atol=1e-12
    )


@pytest.mark.parametrize("kernel", [1, (1, 2)])
def test_one_hyperplane_and_none_are_climbed_too(kernel: int | tuple[int, int]) -> None:
    images = torch.tensor([[[[3.0, 4.0]]], [[[-3.0, -4.0]]]], dtype=torch.float64)[..., : 1 if kernel == 1 else 2]
    dual = torch.tensor([[1.0], [0.5]], dtype=torch.float64)
    for scale in (1.0, 0.0):
        search = GateSearch(Patches(scale * images, PatchGeometry(kernel)), dual, NuclearPenalty())
        starts = -F.normalize(search.patches.unfold()[0] + 1e-3, dim=1)
        found = search.climb(starts, 10, None)
        assert heights(search, found, -1).item() == pytest.approx(scale * images[0].norm().item())
