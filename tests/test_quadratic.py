"""Quadratic and linear neurons: their programs against brute force, Clarabel, ordinary training and Eq. 1."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import digits, noise_patches, noise_tensors, normal, two_digits
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from cvxcnn import ConvexCNNClassifier, ConvexConvBlock, LayerwiseCNN, PricingOptions, nonconvex_objective, reg_path
from cvxcnn.activations.quadratic import Square
from cvxcnn.core.symmetric import packed, unpacked
from cvxcnn.data import held_out
from cvxcnn.errors import InputError
from cvxcnn.explain import attribute
from cvxcnn.losses import get_loss
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.penalties import GroupPenalty, NuclearPenalty, Penalty
from cvxcnn.penalties.symmetric import SymmetricPenalty
from cvxcnn.program.decay import Decay
from cvxcnn.program.lifts import LinearDesign, QuadraticDesign, WholeDesign
from cvxcnn.program.program import Program
from cvxcnn.reports.history import history_of
from cvxcnn.solvers import get_solver
from cvxcnn.solvers.algebra.gram import GramForm
from cvxcnn.solvers.semismooth_newton import minimised

DECAYS: list[Any] = ["path", "fixed_sign", (3, 3), (4, 2), (6, 1.5)]
BLOCKS: list[dict[str, Any]] = [
    {"activation": "quadratic", "penalty": "group"},
    {"activation": "linear", "penalty": "dense"},
    {"activation": "linear", "penalty": "group"},
    {"activation": "linear", "penalty": "nuclear"},
]
GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 2, "padding": 0, "pool_cells": 1, "bias": False, "pooling": "sum"},
    {"kernel_size": 3, "padding": 1, "pool_cells": 2, "bias": True, "pooling": "mean"},
    {"kernel_size": (2, 3), "padding": (1, 0), "stride": (2, 1), "pool_cells": 2, "bias": True, "pooling": "mean"},
]


def targets_of(loss: str, values: Tensor) -> Tensor:
    if loss == "logistic":
        return values.sign()
    if loss == "softmax":
        return torch.nn.functional.one_hot(values.argmax(dim=1), values.shape[1]).to(values)
    return values


def program(
    kind: type[WholeDesign], penalty: Penalty, *, n: int = 30, outputs: int = 2, reg: float = 0.5, **options: Any
) -> Program:
    """Return a program of noise, or of sums of squares of it: the quadratic one has something to find."""
    patches = noise_patches(n, 5, kernel_size=2, padding=0, pool_cells=2, pooling="mean", bias=True)
    targets = 2 * normal(n, outputs, seed=3) + patches.images.square().mean(dim=(1, 2, 3))[:, None]
    loss = get_loss(options.pop("loss", "squared"))
    return Program(kind(patches), targets_of(loss.name, targets), reg, penalty, loss, **options)


PROGRAMS = [(QuadraticDesign, SymmetricPenalty()), (LinearDesign, NuclearPenalty()), (LinearDesign, GroupPenalty())]
SMOOTH = PROGRAMS[:2]


@given(st.integers(1, 7), st.integers(0, 100))
def test_packing_keeps_inner_products_and_comes_back(side: int, seed: int) -> None:
    first, second = (normal(3, side, side, seed=seed + k) for k in (0, 1))
    first, second = first + first.mT, second + second.mT
    torch.testing.assert_close(unpacked(packed(first)), first)
    torch.testing.assert_close((packed(first) * packed(second)).sum(dim=1), (first * second).sum(dim=(1, 2)))
    assert packed(first).shape == (3, side * (side + 1) // 2)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_designs_are_pooled_patches_and_their_products(geometry: dict[str, Any]) -> None:
    patches = noise_patches(4, 6, channels=2, **geometry)
    unfolded = patches.unfold()
    quadratic, linear = QuadraticDesign(patches), LinearDesign(patches)
    products = torch.einsum("ck,nka,nkb->ncab", patches.pool, unfolded, unfolded)
    torch.testing.assert_close(quadratic.matrix().view(4, patches.n_cells, -1), packed(products))
    sums = torch.einsum("ck,nkd->ncd", patches.pool, unfolded)
    torch.testing.assert_close(linear.matrix(), sums.flatten(1))
    lengths = unfolded.norm(dim=2)
    for design, size in ((quadratic, lengths.square()), (linear, lengths)):
        weights, dual = normal(*design.shape(3)), normal(4, 3, seed=1)
        correlation = design.correlate(dual)
        torch.testing.assert_close((design.predict(weights) * dual).sum(), (weights * correlation).sum())
        expected = torch.einsum("nk,ck,no->co", size, patches.pool, dual.abs())
        torch.testing.assert_close(design.mass(dual), expected)
        assert bool((correlation[0].norm(dim=1) <= expected * (1 + 1e-12)).all())
        assert not len(design.directions)
        torch.testing.assert_close(design.on(patches.subset(slice(1, 3))).matrix(), design.matrix()[1:3])


@pytest.mark.parametrize(
    ("penalty", "shape"),
    [(SymmetricPenalty(), (1, 2, 10, 3)), (NuclearPenalty(), (2, 2, 5, 4)), (NuclearPenalty(), (1, 1, 6, 2))],
)
def test_a_slope_is_the_derivative_of_the_proximal_map(penalty: Penalty, shape: tuple[int, int, int, int]) -> None:
    weights, direction = 2 * normal(*shape), normal(*shape, seed=1)
    value, slope = penalty.linearised(weights, 0.7)
    torch.testing.assert_close(value, penalty.prox(weights, 0.7))
    step = 1e-6
    moved = penalty.prox(weights + step * direction, 0.7) - penalty.prox(weights - step * direction, 0.7)
    turned = slope.up(slope.down(direction.unsqueeze(0)))[0]
    torch.testing.assert_close(turned, moved / (2 * step), atol=1e-7, rtol=1e-6)
    other = normal(*shape, seed=2)
    torch.testing.assert_close(
        (slope.up(other.unsqueeze(0))[0] * direction).sum(), (slope.down(direction.unsqueeze(0))[0] * other).sum()
    )


def test_columns_of_a_slope_are_what_it_does_to_each_coordinate() -> None:
    weights = normal(1, 3, 10, 2, seed=4)
    _, slope = SymmetricPenalty().linearised(weights, 0.7)
    each = torch.eye(10, dtype=torch.float64)
    dropped = 0
    for cell, output in itertools.product(range(3), range(2)):
        found = slope.columns(cell, output)
        assert found is not None
        expected = torch.zeros(10, 1, 3, 10, 2, dtype=torch.float64)
        expected[:, 0, cell, :, output] = each
        matrix = torch.zeros(10, 10, dtype=torch.float64)
        matrix[:, found[0]] = found[1]
        torch.testing.assert_close(matrix, slope.up(expected)[:, 0, cell, :, output].T)
        dropped += 10 - len(found[0])
    assert dropped > 0
    assert NuclearPenalty().linearised(weights, 0.1)[1].columns(0, 0) is None


def test_the_symmetric_penalty_is_absolute_eigenvalues_and_its_prox_solves_its_problem() -> None:
    penalty, weights = SymmetricPenalty(), normal(1, 2, 6, 3)
    values = torch.linalg.eigvalsh(unpacked(weights.transpose(2, 3)))
    assert penalty.value(weights) == pytest.approx(float(values.abs().sum()))
    torch.testing.assert_close(penalty.dual_norms(weights), values.abs().amax(dim=3))
    # Moreau: what prox takes away is in the dual ball, and is as long as it can be along what is left.
    near = penalty.prox(weights, 0.5)
    assert float(penalty.dual_norms(weights - near).max()) <= 0.5 * (1 + 1e-12)
    assert float(((weights - near) * near).sum()) == pytest.approx(0.5 * penalty.value(near))


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize(("kind", "penalty"), PROGRAMS)
def test_solvers_agree_and_the_gap_is_closed(kind: type[WholeDesign], penalty: Penalty, loss: str) -> None:
    problem = program(kind, penalty, loss=loss, reg=0.3)
    ours = get_solver("auto", problem, tol=1e-7).solve(problem)
    assert ours.status == "optimal"
    assert -1e-12 <= problem.evaluate(ours.weights).relative_gap <= 1e-7
    theirs = get_solver("cvxpy:CLARABEL", problem).solve(problem)
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-6)
    assert bool(ours.weights.any())


@pytest.mark.parametrize("n", [12, 200])
@pytest.mark.parametrize(("kind", "penalty"), SMOOTH)
def test_newton_reaches_what_fista_reaches(kind: type[WholeDesign], penalty: Penalty, n: int) -> None:
    """By the features of few images, by the Gram matrix of many, and by conjugate gradients."""
    problem = program(kind, penalty, n=n, intercept=True)
    ours, theirs = (get_solver(name, problem, tol=1e-8).solve(problem) for name in ("semismooth_newton", "fista"))
    assert ours.status == "optimal"
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-6)
    streamed = get_solver("streamed", problem, tol=1e-7).solve(problem)
    assert streamed.status == "optimal"
    assert streamed.objective == pytest.approx(ours.objective, rel=1e-6)


@pytest.mark.parametrize("plain", [0, 1000])
@pytest.mark.parametrize(("kind", "penalty"), SMOOTH)
def test_conjugate_gradients_and_factors_of_what_is_kept_reach_the_same(
    kind: type[WholeDesign], penalty: Penalty, plain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = program(kind, penalty, n=200)
    direct = get_solver("semismooth_newton", problem, tol=1e-7).solve(problem)
    monkeypatch.setattr("cvxcnn.solvers.semismooth_newton._FACTORED", 0)
    monkeypatch.setattr("cvxcnn.solvers.semismooth_newton._PLAIN", plain)
    iterated = get_solver("semismooth_newton", problem, tol=1e-7).solve(problem)
    assert (direct.status, iterated.status) == ("optimal", "optimal")
    assert iterated.objective == pytest.approx(direct.objective, rel=1e-7)


def test_newton_needs_a_derivative_and_says_what_else_there_is() -> None:
    problem = program(LinearDesign, GroupPenalty())
    with pytest.raises(InputError, match=r"'semismooth_newton' can't.*derivative; 'group' gives none\. Use solver="):
        get_solver("semismooth_newton", problem).solve(problem)


def test_a_solve_that_is_cut_short_says_so_and_a_start_saves_steps() -> None:
    problem = program(QuadraticDesign, SymmetricPenalty())
    short = get_solver("semismooth_newton", problem, max_iter=1).solve(problem)
    assert short.status != "optimal"
    form = GramForm.of(problem)
    cold = minimised(form, problem.penalty, problem.reg, 1e-8)
    warm = minimised(form, problem.penalty, problem.reg, 1e-7, cold.weights)
    assert warm.iterations == 0 < cold.iterations


@pytest.mark.parametrize("settings", BLOCKS)
def test_reg_max_is_an_eigenvalue_and_exact(settings: dict[str, Any]) -> None:
    images, targets = noise_tensors(25, 5, outputs=2, seed=1)
    geometry: dict[str, Any] = {"kernel_size": 2, "padding": 0, "pool_cells": 2}
    block = ConvexConvBlock(**settings, **geometry)
    largest = block.reg_max(images, targets)
    patches = Patches(images, PatchGeometry(2, 1, 0, "mean", 2, True))
    unfolded = patches.unfold()
    if settings["activation"] == "quadratic":
        gradient = torch.einsum("no,ck,nka,nkb->coab", targets, patches.pool, unfolded, unfolded)
        assert largest == pytest.approx(float(torch.linalg.eigvalsh(gradient).abs().max()), rel=1e-12)
    else:
        gradient = torch.einsum("no,ck,nka->aco", targets, patches.pool, unfolded)
        norms = gradient.norm(dim=0) if settings["penalty"] == "group" else torch.linalg.svdvals(gradient.flatten(1))
        assert largest == pytest.approx(float(norms.max()), rel=1e-12)
    assert block.set_params(reg=largest * (1 + 1e-9)).fit(images, targets).n_neurons_ == 0
    assert block.set_params(reg=largest * (1 - 1e-3)).fit(images, targets).n_neurons_ >= 1


@pytest.mark.parametrize("decay", DECAYS)
def test_every_decay_is_the_same_program_and_its_neurons_attain_it(decay: Any) -> None:
    images, targets = noise_tensors(30, 5, channels=2, outputs=2)
    block = ConvexConvBlock(activation="quadratic", penalty="group", decay=decay, reg=1.0).fit(images, targets)
    value = nonconvex_objective(block.to_torch(), images, targets, 1.0, decay=decay)
    assert value == pytest.approx(block.result_.objective, rel=1e-12)
    assert block.certificate_.kind == "proved"
    assert block.certificate_.global_gap <= 1e-6
    other = ConvexConvBlock(activation="quadratic", penalty="group", reg=1.0).fit(images, targets)
    np.testing.assert_allclose(block.predict(images), other.predict(images), rtol=1e-9, atol=1e-12)


@given(st.floats(0.05, 20.0), st.floats(0.05, 20.0), st.sampled_from([(3, 3), (4, 2), (6, 1.5), (2.5, 5)]))
def test_no_scale_of_a_neuron_has_less_decay_than_its_path_norm(
    length: float, size: float, exponents: tuple[float, float]
) -> None:
    decay, path = Decay.of(exponents), size * length**2
    assert decay.value(
        torch.tensor([length], dtype=torch.float64), torch.tensor([size], dtype=torch.float64)
    ) >= path * (1 - 1e-12)
    filters, amounts = decay.balanced(
        torch.tensor([[0.6, 0.8]], dtype=torch.float64), torch.tensor([-path], dtype=torch.float64)
    )
    assert float(amounts) < 0
    assert decay.value(filters.norm(dim=1), amounts.abs()) == pytest.approx(path, rel=1e-9)


def test_decays_without_a_convex_program_are_refused_with_the_reason() -> None:
    images, targets = noise_tensors(10, 5)
    for decay, match in (
        ((2, 2), r"Eq\. 1, has no convex program.*not convex in t\. Use decay=\(4, 2\)"),
        ((3, 2), r"2/p \+ 1/q = 1; got \(3, 2\)\. Use"),
        ("weight", "a name or two positive exponents"),
        ((3, -3), "two positive exponents"),
        ((3, 3, 3), "two positive exponents"),
    ):
        with pytest.raises(InputError, match=match):
            ConvexConvBlock(activation="quadratic", penalty="group", decay=decay).fit(images, targets)
    with pytest.raises(InputError, match='decay is for activation="quadratic"; linear neurons'):
        ConvexConvBlock(activation="linear", decay=(3, 3)).fit(images, targets)
    half = nn.Sequential(nn.Conv2d(1, 1, 2), Square(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1)).double()
    with pytest.raises(InputError, match=r'"fixed_sign" is of networks.*Use decay="path"'):
        nonconvex_objective(half, images, targets, 1.0, decay="fixed_sign")


def test_what_has_no_program_is_refused_with_the_remedy() -> None:
    images, targets = noise_tensors(10, 5)
    for penalty in ("dense", "nuclear"):
        with pytest.raises(InputError, match=r'no convex program for quadratic.*Use penalty="group"'):
            ConvexConvBlock(activation="quadratic", penalty=penalty).fit(images, targets)
    for settings in BLOCKS:
        for gates in (20, np.ones((3, 10))):
            with pytest.raises(InputError, match=r"neurons have no gates.*Leave gates out"):
                ConvexConvBlock(gates=gates, **settings).fit(images, targets)
    with pytest.raises(InputError, match=r"patches of 226 numbers need 25651 features.*at most 200.*Project"):
        ConvexConvBlock(activation="quadratic", penalty="group", kernel_size=5).fit(*noise_tensors(4, 6, channels=9))
    fitted = ConvexConvBlock(activation="linear").fit(images, targets)
    with pytest.raises(InputError, match='decompose is for activation="gated_relu"'):
        fitted.decompose(images)


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("settings", BLOCKS)
def test_a_block_goes_the_whole_way(
    settings: dict[str, Any], geometry: dict[str, Any], loss: str, tmp_path: Path
) -> None:
    images, values = noise_tensors(30, 6, channels=2, outputs=2)
    targets = targets_of(loss, values)
    options = {**settings, **geometry, "loss": loss, "intercept": loss == "squared"}
    block = ConvexConvBlock(**options).fit(images, targets)
    certificate = block.certificate_
    assert (block.result_.status, certificate.kind) == ("optimal", "proved")
    assert certificate.networks.startswith(settings["activation"])
    assert certificate.global_bound == certificate.sampled_bound == block.result_.dual_bound
    module = block.to_torch()
    np.testing.assert_allclose(module(images).detach().numpy(), block.predict(images), rtol=1e-9, atol=1e-11)
    if settings["activation"] == "quadratic":
        assert isinstance(module.square, Square)
    decay = (4, 2) if settings["activation"] == "quadratic" else None
    value = nonconvex_objective(module, images, targets, block.reg_, loss, decay=decay)
    assert value == pytest.approx(block.result_.objective, rel=1e-9)
    maps = module[:2](images).detach().numpy()
    np.testing.assert_allclose(block.transform(images), maps, rtol=1e-9, atol=1e-11)
    block.save(tmp_path / "block")
    loaded = ConvexConvBlock.load(tmp_path / "block")
    assert np.array_equal(loaded.predict(images), block.predict(images))
    assert (loaded.certificate_, loaded.decay) == (certificate, block.decay)
    exported = torch.export.export(module, (images,)).module()
    torch.testing.assert_close(exported(images), module(images))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", BLOCKS[:3])
def test_no_network_that_torch_finds_is_below_the_bound(settings: dict[str, Any], seed: int) -> None:
    images, targets = noise_tensors(15, 4, seed=seed)
    block = ConvexConvBlock(kernel_size=2, padding=0, pool_cells=2, reg=0.3, tol=1e-8, **settings).fit(images, targets)
    bound, reached = block.certificate_.global_bound, []
    patches = Patches(images, PatchGeometry(2, 1, 0, "mean", 2, True)).unfold()
    pool = Patches(images, PatchGeometry(2, 1, 0, "mean", 2, True)).pool
    quadratic, separate = settings["activation"] == "quadratic", settings["penalty"] == "group"
    for start in range(2):
        filters, readout = (normal(24, size, seed=1000 * seed + 2 * start + k) for k, size in enumerate((5, 4)))
        mask = torch.eye(4).repeat(6, 1) if separate else torch.ones(24, 4)
        parameters = [(0.5 * filters).requires_grad_(), (0.5 * readout * mask).requires_grad_()]
        optimizer = torch.optim.LBFGS(parameters, max_iter=300, line_search_fn="strong_wolfe", tolerance_change=1e-14)

        def objective(parameters: list[Tensor] = parameters, mask: Tensor = mask) -> Tensor:
            u, w = parameters[0], parameters[1] * mask
            response = patches @ u.T
            response = response.square() if quadratic else response
            prediction = torch.einsum("ck,nkm,mc->n", pool, response, w.double())
            sizes = u.square().sum(dim=1)
            decay = sizes.square() + w.square().sum(dim=1) if quadratic else sizes + w.square().sum(dim=1)
            return 0.5 * (prediction - targets[:, 0]).square().sum() + 0.3 * 0.5 * decay.sum()

        def closure(parameters: list[Tensor] = parameters, optimizer: Any = optimizer) -> float:
            optimizer.zero_grad()
            value = objective(parameters)
            value.backward()
            return float(value.detach())

        optimizer.step(closure)
        reached.append(float(objective(parameters).detach()))
    assert min(reached) >= bound - 1e-9
    # The bound is the optimum: some run comes near it.
    assert min(reached) <= block.result_.objective * (1 + 1e-3)


@pytest.mark.parametrize("settings", BLOCKS[:2])
def test_stacks_estimators_and_paths(settings: dict[str, Any]) -> None:
    images, targets = noise_tensors(30, 6, outputs=2)
    stack = LayerwiseCNN(
        layers=2, block=ConvexConvBlock(**settings), project=8, residual=True, mirror=True, validation=0.2
    )
    stack.fit(images, targets)
    assert [block.certificate_.kind for block in stack.blocks_] == ["proved", "proved"]
    np.testing.assert_allclose(stack.to_torch()(images).detach().numpy(), stack.predict(images), rtol=1e-8, atol=1e-10)
    path = reg_path(images, targets, block=ConvexConvBlock(**settings), points=4)
    assert path.n_neurons[0] == 0 < path.n_neurons[-1]
    assert path.kinds == ["proved"] * 4
    assert bool((path.global_gap <= 1e-6).all())
    labels = targets.argmax(dim=1).numpy()
    classifier = ConvexCNNClassifier(layers=1, block=ConvexConvBlock(loss="softmax", **settings))
    assert classifier.fit(images.numpy(), labels).score(images.numpy(), labels) > 0.6


@pytest.mark.parametrize("settings", BLOCKS[:2])
def test_a_stack_chooses_the_reg_of_the_lowest_error_on_held_out_images(settings: dict[str, Any]) -> None:
    images, targets = two_digits(60)
    block = ConvexConvBlock(**settings)
    stack = LayerwiseCNN(layers=1, block=block, standardize=False, validation=0.25).fit(images, targets)
    fitted = stack.blocks_[0]
    inputs, expected = torch.as_tensor(images).view(60, 1, 8, 8), torch.as_tensor(targets).view(60, 1)
    held = held_out(inputs, expected, 0.25, 0)
    path = reg_path(
        inputs[~held], expected[~held], block=block, points=10, smallest=1e-3, validation=(inputs[held], expected[held])
    )
    assert fitted.reg_ == pytest.approx(path.regs[path.validation_error.argmin()])
    assert fitted.certificate_.kind == "proved"
    assert fitted.result_.relative_gap <= 1e-6


@pytest.mark.parametrize("settings", BLOCKS[:2])
def test_single_precision_keeps_its_bound(settings: dict[str, Any]) -> None:
    images, targets = noise_tensors(30, 6, outputs=2)
    single = ConvexConvBlock(dtype="float32", tol=1e-3, reg=1.0, **settings).fit(images, targets)
    double = ConvexConvBlock(reg=1.0, **settings).fit(images, targets)
    assert single.result_.status == "optimal"
    assert single.certificate_.global_bound <= double.result_.objective * (1 + 1e-9)
    assert single.result_.objective == pytest.approx(double.result_.objective, rel=1e-3)


@pytest.mark.parametrize("settings", BLOCKS[:2])
def test_maps_explain_the_networks_by_the_methods_that_need_no_relu(settings: dict[str, Any]) -> None:
    images, targets = noise_tensors(20, 6, outputs=2)
    module = ConvexConvBlock(**settings).fit(images, targets).to_torch()
    cam = attribute(module, images[:3], 1, "cam")
    assert cam.shape == (3, 6, 6)
    # With padding and cells that tile the maps, the maps' mean over the image is the output times a constant.
    np.testing.assert_allclose(cam.mean(axis=(1, 2)) * 4, module(images[:3])[:, 1].detach().numpy(), rtol=1e-9)
    assert np.isfinite(attribute(module, images[:3], 1, "gradcam")).all()
    with pytest.raises(InputError, match=r"which is no ReLU.*Use method="):
        attribute(module, images[:3], 1, "guided_backprop")


def test_a_quadratic_target_is_learnt_by_quadratic_neurons_alone() -> None:
    """The mean square of the pixels: one filter for each pixel of a patch, no linear network."""
    images, _ = noise_tensors(60, 5)
    targets = images.square().mean(dim=(1, 2, 3))
    settings: dict[str, Any] = {"kernel_size": 1, "padding": 0, "pool_cells": 1, "bias": False, "reg": 1e-6}
    quadratic = ConvexConvBlock(activation="quadratic", penalty="group", **settings).fit(images, targets)
    assert quadratic.n_neurons_ == 1
    np.testing.assert_allclose(quadratic.predict(images), targets, rtol=1e-3)
    linear = ConvexConvBlock(activation="linear", **settings).fit(images, targets)
    assert np.square(linear.predict(images) - targets.numpy()).mean() > 0.1


def test_digits_to_a_proved_gap_at_a_small_reg() -> None:
    images, labels = digits(400)
    targets = np.eye(10)[labels] * 2 - 1
    block = ConvexConvBlock(activation="quadratic", penalty="group")
    block.set_params(reg=2e-4 * block.reg_max(images, targets)).fit(images, targets)
    assert block.result_.status == "optimal"
    assert block.certificate_.global_gap <= 1e-6
    assert (block.predict(images).argmax(axis=1) == labels).mean() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "seed"), list(itertools.product(BLOCKS[:2], range(30))))
def test_weak_duality_over_many_small_problems(settings: dict[str, Any], seed: int) -> None:
    test_no_network_that_torch_finds_is_below_the_bound(settings, seed)


def test_the_history_of_a_proved_network_bounds_all_of_them() -> None:
    images, targets = two_digits(20)
    points = history_of(1, ConvexConvBlock(activation="quadratic", penalty="group").fit(images, targets))
    assert all(point.overall and point.bound_over.startswith("all quadratic networks") for point in points)
    fixed = history_of(1, ConvexConvBlock(gates=4, pricing=PricingOptions(starts=0)).fit(images, targets))
    assert not any(point.overall for point in fixed)


@pytest.mark.parametrize(
    ("penalty", "share", "most"), [("dense", 1e-4, 1e-3), ("group", 1e-4, 1e-3), ("group", 1e-5, 0.1)]
)
def test_patches_of_photographs_that_nearly_repeat_each_other_in_float32(
    penalty: str, share: float, most: float
) -> None:
    """Summed in float32, their A^T A had negative eigenvalues: gaps of 5e-3, then weights that weren't finite."""
    tiles = [photo[:416, :640].reshape(13, 32, 20, 32, 3) for photo in load_sample_images().images]
    images = np.concatenate([part.transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32) for part in tiles]) / 255
    images = (images - images.mean((0, 2, 3), keepdims=True)) / images.std((0, 2, 3), keepdims=True)
    targets = np.eye(2).repeat(260, axis=0)
    block = ConvexConvBlock(
        activation="linear", penalty=penalty, kernel_size=5, padding=2, pool_cells=3, intercept=True, dtype="float32",
        tol=most,
    )  # fmt: skip
    block.set_params(reg=share * block.reg_max(images, targets)).fit(images, targets)
    assert block.result_.relative_gap <= most
