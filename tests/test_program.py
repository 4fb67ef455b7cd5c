"""The programs against loops over their definitions, weak duality, and the non-convex problem that they stand for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import noise_patches, normal, seeded
from torch import Tensor, nn

from cvxcnn.arrangements import EnumeratedGates, distinct
from cvxcnn.errors import InputError
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.penalties import DensePenalty, GroupPenalty, NuclearPenalty
from cvxcnn.program import (
    Program,
    filter_program,
    gated_program,
    nonconvex_objective,
    relative_gap,
    relu_program,
)
from cvxcnn.solvers import get_solver

PROGRAMS = {
    "gated group": (gated_program, GroupPenalty),
    "gated nuclear": (gated_program, NuclearPenalty),
    "gated dense": (gated_program, DensePenalty),
    "relu": (relu_program, GroupPenalty),
    "filters group": (filter_program, GroupPenalty),
    "filters dense": (filter_program, DensePenalty),
}
every_program = pytest.mark.parametrize("kind", sorted(PROGRAMS))


def setting(
    seed: int = 0, n: int = 10, outputs: int = 2, count: int = 5, **geometry: Any
) -> tuple[Patches, Any, Tensor]:
    """Return patches, gates of distinct patterns, and targets."""
    random = seeded(seed)
    patches = noise_patches(n, 4, seed=random, **{"kernel_size": 2, **geometry})
    gates = distinct(patches, normal(count, patches.dim, seed=random)).vectors
    return patches, gates, normal(n, outputs, seed=random)


def program_of(kind: str, reg: float = 1.0, intercept: bool = False, **options: Any) -> Program:
    make, penalty = PROGRAMS[kind]
    patches, gates, targets = setting(**options)
    return make(patches, gates, targets, reg, penalty=penalty(), intercept=intercept)


def random_weights(program: Program, seed: int = 0) -> Tensor:
    """Return random weights in the cones, some of them zero."""
    random = seeded(seed)
    weights = normal(*program.design.shape(program.n_outputs), seed=random)
    weights[torch.rand(len(weights), generator=random) < 0.4] = 0.0
    return program.repair(weights)


@pytest.mark.parametrize("pooling", ["sum", "mean", "bilinear"])
@pytest.mark.parametrize("cells", [1, 2])
def test_relu_objective_from_the_definition(pooling: str, cells: int) -> None:
    """Eq. 2 term by term: 1/2 ||sum_ik D_i^k X_k (v_i - w_i) - y||^2 + reg * sum_i (||v_i|| + ||w_i||)."""
    patches, gates, targets = setting(pooling=pooling, pool_cells=cells, bias=True)
    program = relu_program(patches, gates, targets, 0.7)
    weights = random_weights(program)
    unfolded, count = patches.unfold(), len(gates)
    loss = 0.0
    for image, output in itertools.product(range(10), range(2)):
        fitted = 0.0
        for cell, patch, gate in itertools.product(range(cells**2), range(9), range(count)):
            x = unfolded[image, patch]
            if x @ gates[gate] >= 0:
                difference = weights[gate, cell, :, output] - weights[count + gate, cell, :, output]
                fitted += float(patches.pool[cell, patch] * (x @ difference))
        loss += 0.5 * (fitted - float(targets[image, output])) ** 2
    penalty = sum(
        float(weights[b, c, :, o].norm()) for b in range(2 * count) for c in range(cells**2) for o in range(2)
    )
    assert program.objective(weights) == pytest.approx(loss + 0.7 * penalty, rel=1e-12)


def test_violation_from_the_definition() -> None:
    patches, gates, targets = setting(outputs=1)
    program = relu_program(patches, gates, targets, 1.0)
    random = torch.Generator().manual_seed(1)
    weights = torch.randn(program.design.shape(1), generator=random, dtype=torch.float64)
    rows, count = patches.unfold().flatten(0, 1), len(gates)
    worst = 0.0
    for block, row in itertools.product(range(2 * count), range(len(rows))):
        sign = 1.0 if rows[row] @ gates[block % count] >= 0 else -1.0
        worst = max(worst, -sign * float(rows[row] @ weights[block, 0, :, 0]))
    assert program.violation(weights) == pytest.approx(worst)
    assert program.violation(program.repair(weights)) <= 1e-12
    # In the cones the gated prediction is that of a ReLU network.
    feasible = program.repair(weights)[:, 0, :, 0]
    signs = torch.tensor([1.0] * count + [-1.0] * count, dtype=torch.float64)
    network = ((patches.unfold() @ feasible.T).relu().sum(dim=1) * signs).sum(dim=1, keepdim=True)
    torch.testing.assert_close(program.design.predict(program.repair(weights)), network)


@every_program
def test_correlate_is_the_adjoint_of_predict(kind: str) -> None:
    program = program_of(kind, pool_cells=2)
    weights, dual = random_weights(program), program.targets
    left = float((program.design.predict(weights) * dual).sum())
    assert left == pytest.approx(float((weights * program.correlate(dual)).sum()), rel=1e-10)
    columns = program.design.columns(torch.arange(program.design.n_blocks))
    torch.testing.assert_close(torch.einsum("nbcr,bcro->no", columns, weights), program.design.predict(weights))


@every_program
@pytest.mark.parametrize("intercept", [False, True])
def test_weak_duality(kind: str, intercept: bool) -> None:
    """The bound at any weights is below the objective at any other feasible weights."""
    program = program_of(kind, intercept=intercept, pool_cells=2)
    points = [random_weights(program, seed) * scale for seed in range(4) for scale in (0.0, 0.01, 0.3, 1.0)]
    evaluations = [program.evaluate(point) for point in points]
    best = get_solver("auto", program, tol=1e-8).solve(program)
    assert max(e.dual_bound for e in evaluations) <= best.objective + 1e-9
    assert min(e.objective for e in evaluations) >= best.dual_bound - 1e-9
    assert all(e.relative_gap >= -1e-12 for e in evaluations)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), reg=st.floats(0.05, 5.0), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_weak_duality_of_the_cones(seed: int, reg: float, scale: float) -> None:
    patches, gates, targets = setting(seed, outputs=1, n=5)
    program = relu_program(patches, gates, targets * scale, reg * scale)
    bounds = [
        program.evaluate(random_weights(program, k) * size).dual_bound for k, size in [(0, 0.0), (1, 0.1), (2, 1.0)]
    ]
    values = [
        program.objective(random_weights(program, k) * size * scale) for k, size in [(0, 0.0), (3, 0.1), (4, 1.0)]
    ]
    assert max(bounds) <= min(values) * (1 + 1e-12)


@every_program
@pytest.mark.parametrize("intercept", [False, True])
def test_reg_max(kind: str, intercept: bool) -> None:
    make, penalty = PROGRAMS[kind]
    patches, gates, targets = setting(pool_cells=2)
    peak = make(patches, gates, targets, 1.0, penalty=penalty(), intercept=intercept).reg_max()

    def at(reg: float) -> Tensor:
        program = make(patches, gates, targets, reg, penalty=penalty(), intercept=intercept)
        return get_solver("auto", program, tol=1e-9).solve(program).weights

    assert not at(peak * (1 + 1e-6)).any()
    assert at(peak * 0.99).any()


@pytest.mark.parametrize("kind", ["gated group", "relu", "filters dense"])
def test_intercept_is_the_best_one(kind: str) -> None:
    program = program_of(kind, intercept=True, reg=0.1)
    weights = random_weights(program)
    prediction = program.design.predict(weights)
    best = program.objective(weights)
    without = program_of(kind, reg=0.1)
    for shift in (-0.1, 0.0, 0.1):
        fitted = prediction + program.intercepts(prediction) + shift
        value = program.loss.value(fitted, program.targets) + 0.1 * program.penalty.value(weights)
        assert value >= best - 1e-12
    assert best <= without.objective(weights)
    assert not without.intercepts(prediction).any()


def test_gated_is_below_relu_and_more_gates_are_lower() -> None:
    patches, gates, targets = setting(outputs=1, count=8)

    def value(make: Any, vectors: Tensor) -> float:
        program = make(patches, vectors, targets, 0.5)
        return get_solver("auto", program, tol=1e-9).solve(program).objective

    assert value(gated_program, gates) <= value(relu_program, gates) + 1e-8
    assert value(relu_program, gates) <= value(relu_program, gates[:4]) + 1e-8
    # Unit filters equal to the gates are in their own cones.
    assert value(relu_program, gates) <= value(filter_program, nn.functional.normalize(gates, dim=1)) + 1e-8


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keep torch from sharing out tiny products: threads that wait for a busy core cost far more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(rows: Tensor, targets: Tensor, reg: float, neurons: int, seeds: int) -> list[tuple[float, Tensor, Tensor]]:
    """Train Eq. 1 of f_j = sum_i w_i sum_k (x_jk . u_i)_+ by Adam, all seeds at once, then L-BFGS."""
    random = torch.Generator().manual_seed(0)
    filters = torch.randn(seeds, rows.shape[2], neurons, generator=random, dtype=torch.float64).requires_grad_()
    readout = torch.randn(seeds, neurons, generator=random, dtype=torch.float64).requires_grad_()

    def objective(u: Tensor, w: Tensor) -> Tensor:
        pooled = torch.einsum("nkd,...di->...nki", rows, u).relu().sum(dim=-2)
        fitted = torch.einsum("...ni,...i->...n", pooled, w)
        squares = u.square().sum(dim=(-2, -1)) + w.square().sum(dim=-1)
        return 0.5 * (fitted - targets[:, 0]).square().sum(dim=-1) + 0.5 * reg * squares

    # Adam treats each entry apart, so that the sum over seeds trains each of them as if alone.
    adam = torch.optim.Adam([filters, readout], lr=0.05)
    decay = torch.optim.lr_scheduler.ExponentialLR(adam, 0.995)
    for _ in range(800):
        adam.zero_grad()
        objective(filters, readout).sum().backward()
        adam.step()
        decay.step()
    results = []
    for seed in range(seeds):
        u, w = (part[seed].detach().clone().requires_grad_() for part in (filters, readout))
        lbfgs = torch.optim.LBFGS([u, w], max_iter=10, max_eval=20, line_search_fn="strong_wolfe")

        def closure(u: Tensor = u, w: Tensor = w, lbfgs: torch.optim.LBFGS = lbfgs) -> Tensor:
            lbfgs.zero_grad()
            value = objective(u, w)
            value.backward()
            return value

        lbfgs.step(closure)
        u, w = u.detach(), w.detach()
        results.append((float(objective(u, w)), u, w))
    return results


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("share", [0.3, 0.05])
def test_no_training_run_beats_the_enumerated_program(share: float) -> None:
    """With all patterns of patches in the plane, Eq. 2 is Eq. 1: a global optimum, reached by the best of 20 runs."""
    random = torch.Generator().manual_seed(3)
    images = torch.randn(8, 1, 1, 4, generator=random, dtype=torch.float64)
    targets = torch.randn(8, 1, generator=random, dtype=torch.float64)
    patches = Patches(images, PatchGeometry(kernel_size=(1, 2)))
    gates = EnumeratedGates().draw(patches, random)
    assert gates.complete
    assert len(gates) + gates.n_zero == 2 * 24  # 24 lines in the plane
    reg = share * relu_program(patches, gates.vectors, targets, 1.0).reg_max()
    program = relu_program(patches, gates.vectors, targets, reg)
    result = get_solver("auto", program, tol=1e-9).solve(program)
    assert result.relative_gap <= 1e-9
    runs = trained(patches.unfold(), targets, reg, neurons=12, seeds=20)
    values = [value for value, _, _ in runs]
    assert min(values) >= result.dual_bound - 1e-9
    assert min(values) <= 1.01 * result.objective
    # The naive objective of the runs is Eq. 1 of their torch modules.
    value, filters, readout = runs[0]
    module = nn.Sequential(
        nn.Conv2d(1, 12, (1, 2), bias=False), nn.ReLU(), nn.AvgPool2d((1, 3), divisor_override=1), nn.Flatten(),
        nn.Linear(12, 1, bias=False),
    ).double()  # fmt: skip
    with torch.no_grad():
        module[0].weight.copy_(filters.T.reshape(12, 1, 1, 2))
        module[4].weight.copy_(readout[None])
    assert nonconvex_objective(module, images, targets, reg) == pytest.approx(value, rel=1e-12)


def small_net(**options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 2, **options), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )


def test_nonconvex_objective_from_the_definition() -> None:
    torch.manual_seed(0)
    net = small_net(padding=1)
    images, targets = torch.randn(4, 2, 3, 3), torch.randn(4, 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    doubled = small_net(padding=1).double()
    doubled.load_state_dict(net.state_dict())
    fitted = doubled(images.double())
    penalised = [doubled[0].weight, doubled[0].bias, doubled[4].weight]
    expected = 0.5 * (fitted - targets).square().sum() + 0.5 * 0.3 * sum(p.square().sum() for p in penalised)
    assert nonconvex_objective(net, images, targets, 0.3) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_nonconvex_objective_accepts_what_fit_accepts() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1))
    images, targets = torch.randn(4, 3, 3), torch.randn(4)
    value = nonconvex_objective(net, images, targets, 0.3)
    assert value == nonconvex_objective(net, images[:, None].tolist(), targets[:, None].numpy(), 0.3)


class Noisy(nn.Module):
    """Random whatever its mode."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(values, 0.5)


def test_nonconvex_objective_is_that_of_evaluation_mode_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    images, targets = torch.randn(6, 2, 3, 3), torch.randn(6, 2)
    plain = small_net()
    for extra in (nn.Dropout(0.5), nn.AlphaDropout(0.5), nn.BatchNorm2d(2, affine=False), nn.RReLU(-1.0, 2.0)):
        net = nn.Sequential(extra, plain).train()
        plain[1].eval()  # modes of parts may differ, and each stays as it is
        before = {name: value.clone() for name, value in net.state_dict().items()}
        first, second = (nonconvex_objective(net, images, targets, 0.3) for _ in range(2))
        assert first == second
        assert net.training and extra.training and plain[0].training and not plain[1].training
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
        assert nonconvex_objective(net.eval(), images, targets, 0.3) == first
        assert not plain[0].training
    assert nonconvex_objective(nn.Sequential(nn.Dropout(0.5), plain).train(), images, targets, 0.3) == (
        nonconvex_objective(plain, images, targets, 0.3)
    )
    with pytest.raises(InputError, match="differ from call to call even in evaluation mode"):
        nonconvex_objective(nn.Sequential(Noisy(), plain), images, targets, 0.3)


def test_modes_are_restored_after_a_refusal() -> None:
    net = small_net().train()
    with pytest.raises(InputError, match="doesn't take images"):
        nonconvex_objective(net, torch.zeros(2, 3, 3), torch.zeros(2, 2), 1.0)
    assert all(part.training for part in net.modules())


def test_nonconvex_objective_refuses() -> None:
    images, targets = torch.zeros(2, 2, 3, 3), torch.zeros(2, 2)
    with pytest.raises(InputError, match="exactly one Conv2d; got 0"):
        nonconvex_objective(nn.Sequential(nn.Flatten(), nn.Linear(18, 2)), images, targets, 1.0)
    with pytest.raises(InputError, match="exactly one Linear; got 2"):
        nonconvex_objective(nn.Sequential(small_net(), nn.Linear(2, 2)), images, targets, 1.0)
    with pytest.raises(InputError, match="3 targets for 2 images"):
        nonconvex_objective(small_net(), images, torch.zeros(3), 1.0)
    with pytest.raises(InputError, match="loss must be one of"):
        nonconvex_objective(small_net(), images, targets, 1.0, loss="hinge")
    with pytest.raises(InputError, match=r"outputs have shape \(2, 2\) but the targets \(2, 3\)"):
        nonconvex_objective(small_net(), images, torch.zeros(2, 3), 1.0)
    with pytest.raises(InputError, match=r"doesn't take images of shape \(2, 1, 3, 3\)"):
        nonconvex_objective(small_net(), torch.zeros(2, 3, 3), targets, 1.0)
    with pytest.raises(InputError, match="other parameters"):
        nonconvex_objective(nn.Sequential(nn.BatchNorm2d(2), small_net()), images, targets, 1.0)
    with pytest.raises(InputError, match="reg must be a number >= 0; got nan"):
        nonconvex_objective(small_net(), images, targets, float("nan"))


@pytest.mark.parametrize("reg", [0.0, -1.0, float("nan"), float("inf")])
def test_reg_must_be_positive_and_finite(reg: float) -> None:
    with pytest.raises(InputError, match="reg must be a positive, finite number; got"):
        program_of("relu", reg=reg)


@pytest.mark.parametrize("penalty", [NuclearPenalty, DensePenalty])
def test_cones_need_the_group_penalty(penalty: Any) -> None:
    patches, gates, targets = setting()
    with pytest.raises(InputError, match='needs penalty="group"'):
        relu_program(patches, gates, targets, 1.0, penalty=penalty())


def test_relative_gap_is_relative_to_the_objective_whatever_its_size() -> None:
    assert relative_gap(0.5, 0.25) == relative_gap(10.0, 5.0) == relative_gap(1e-20, 0.5e-20) == 0.5
    assert relative_gap(0.0, 0.0) == relative_gap(0.0, 0.0, floor=1.0) == 0.0
    assert relative_gap(1e-20, 0.0, floor=1e-10) == pytest.approx(
        1e-10
    )  # rounding can't tell such an objective from zero
    assert relative_gap(0.0, -1.0) == float("inf")
