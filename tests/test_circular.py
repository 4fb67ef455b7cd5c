"""Circular networks: spectra against sums, programs against Clarabel and closed forms, Eq. 1 against training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from problems import noise_arrays, normal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from cvxcnn import CircularCNN, ConvexConvBlock, nonconvex_objective
from cvxcnn.activations.circular import factored, joined
from cvxcnn.arrangements import EnumeratedGates
from cvxcnn.errors import InputError, ModelFileError
from cvxcnn.fitting import over
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.penalties.spectra import FrequencyPenalty, SpectraPenalty
from cvxcnn.program.circular_eq1 import circular_objective
from cvxcnn.program.fourier import Frequencies, spectral_patches
from cvxcnn.program.multipliers import shortest
from cvxcnn.solvers import get_solver

SIDES = st.integers(1, 5)
few = limits(max_examples=30)
SHAPES = [(1, 1, 6), (1, 1, 7), (2, 3, 4), (1, 4, 4)]


def size_of(images: Tensor) -> float:
    """Return N of images (C, H, W): |F z|_1 / sqrt(d), channels together."""
    spectra = torch.fft.fft2(images, norm="ortho")
    return float(spectra.abs().square().sum(dim=0).sqrt().sum()) / math.sqrt(images.shape[1] * images.shape[2])


def rotated(filters: Tensor) -> Tensor:
    """Return the circular convolution with each filter (m, C, H, W) as matrices (m, C, d, d), by torch."""
    count, channels, height, width = filters.shape
    conv = nn.Conv2d(1, 1, (height, width), padding="same", padding_mode="circular", bias=False).double()
    places = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    matrices = torch.empty(count, channels, height * width, height * width, dtype=torch.float64)
    for own in range(count):
        for channel in range(channels):
            conv.weight.data = filters[own, channel][None, None]
            matrices[own, channel] = conv(places).detach().flatten(1)
    return matrices


@few
@given(SIDES, SIDES, st.integers(1, 3))
def test_spectra_keep_inner_products_and_come_back(height: int, width: int, channels: int) -> None:
    frequencies = Frequencies(height, width)
    assert int(frequencies.counts.sum()) == height * width
    images, others = normal(2, channels, height, width), normal(2, channels, height, width, seed=1)
    weights = frequencies.weights(others)
    products = (frequencies.rows(images) * weights).sum(dim=1)
    torch.testing.assert_close(products, (images * others).sum(dim=(1, 2, 3)))
    torch.testing.assert_close(frequencies.images(weights), others)
    penalty = FrequencyPenalty(len(frequencies))
    for image, weight in zip(others, weights, strict=True):
        assert penalty.value(weight.view(1, 1, -1, 1)) == pytest.approx(size_of(image))
    patches, _ = spectral_patches(Patches(images, PatchGeometry(kernel_size=(height, width))))
    torch.testing.assert_close(patches.unfold()[:, 0], frequencies.rows(images))


@few
@given(SIDES, SIDES, st.integers(1, 2), st.integers(0, 50))
def test_joined_is_torchs_circular_convolution_and_costs_no_less(
    height: int, width: int, channels: int, seed: int
) -> None:
    filters, weights = normal(2, channels, height, width, seed=seed), normal(2, height, width, seed=seed + 1)
    together = joined(filters, weights)
    expected = torch.einsum("mcpq,mq->mcp", rotated(filters), weights.flatten(1))
    torch.testing.assert_close(together.flatten(2), expected)
    for own in range(2):
        assert size_of(together[own]) <= float(filters[own].norm() * weights[own].norm()) * (1 + 1e-12)


@few
@given(SIDES, SIDES, st.integers(1, 3), st.integers(1, 3))
def test_factors_join_again_at_the_least_decay(height: int, width: int, channels: int, outputs: int) -> None:
    images = normal(outputs, channels, height, width)
    filters, weights = factored(images)
    assert len(filters) <= min(channels, outputs)
    for output in range(outputs):
        torch.testing.assert_close(joined(filters, weights[:, output]).sum(dim=0), images[output])
    spectra = torch.fft.fft2(images, norm="ortho").permute(2, 3, 1, 0)
    least = float(torch.linalg.svdvals(spectra).sum()) / math.sqrt(height * width)
    assert float(filters.square().sum()) == pytest.approx(least)
    assert float(weights.square().sum()) == pytest.approx(least)


def test_no_factors_of_nothing_but_one() -> None:
    filters, weights = factored(torch.zeros(2, 1, 2, 3, dtype=torch.float64))
    assert (filters.shape, weights.shape, bool(filters.any())) == ((1, 1, 2, 3), (1, 2, 2, 3), False)


@pytest.mark.parametrize(("penalty", "shape"), [(FrequencyPenalty(3), (2, 1, 12, 2)), (SpectraPenalty(), (3, 1, 4, 3))])
def test_norms_their_proximal_maps_and_duals(penalty: Any, shape: tuple[int, ...]) -> None:
    weights, other = normal(*shape), normal(*shape, seed=1)
    near = penalty.prox(weights, 0.8)
    # Moreau: what prox takes away is in the dual ball, and is as long as it can be along what is left.
    assert float(penalty.dual_norms(weights - near).max()) <= 0.8 * (1 + 1e-12)
    assert float(((weights - near) * near).sum()) == pytest.approx(0.8 * penalty.value(near))
    assert float((weights * other).sum()) <= float(penalty.dual_norms(other).max()) * penalty.value(weights)
    variable = cp.Variable((math.prod(shape[:3]), shape[3]))
    variable.value = weights.flatten(0, 2).numpy()
    assert float(penalty.expression(variable, shape).value) == pytest.approx(penalty.value(weights))


@pytest.mark.parametrize(("count", "parts", "size"), [(12, 4, 2), (30, 3, 4), (1, 5, 1)])
def test_multipliers_find_the_longest_vector_in_a_cone(count: int, parts: int, size: int) -> None:
    vector, inside, normals = normal(parts * size), normal(parts * size, seed=1), normal(count, parts * size, seed=2)
    normals = normals * (normals @ inside).sign()[:, None]
    found = shortest(vector.numpy(), normals.numpy(), parts)
    point = cp.Variable(parts * size)
    norms = cp.norm(cp.reshape(point, (size, parts), order="F"), 2, axis=0)
    problem = cp.Problem(cp.Maximize(vector.numpy() @ point), [normals.numpy() @ point >= 0, cp.sum(norms) <= 1])
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    assert found == pytest.approx(problem.value, rel=1e-6, abs=1e-8)
    assert found >= problem.value - 1e-8
    # Known to be below a ceiling, it may be an upper bound; without cones it is the plain norm.
    plain = shortest(vector.numpy(), normals[:0].numpy(), parts)
    assert plain == pytest.approx(float(vector.view(parts, -1).norm(dim=1).max()))
    assert found - 1e-9 <= shortest(vector.numpy(), normals.numpy(), parts, ceiling=plain) <= plain


def data(shape: tuple[int, int, int], n: int, outputs: int, loss: str = "squared") -> tuple[np.ndarray, np.ndarray]:
    images, targets = noise_arrays(n, shape[1:], channels=shape[0], outputs=outputs)
    images = images.reshape(n, *shape)
    targets = targets + images.sum(axis=(1, 2, 3))[:, None].clip(0) if outputs > 1 else targets + images[:, 0, 0, 0]
    if loss == "logistic":
        return images, np.sign(targets)
    return images, np.eye(outputs)[targets.argmax(axis=1)] if loss == "softmax" else targets


CASES = [
    {"layers": 2},
    {"layers": 2, "intercept": True},
    {"layers": 2, "loss": "logistic"},
    {"layers": 2, "loss": "softmax"},
    {"layers": 3, "gates": 6},
    {"layers": 3, "gates": 6, "intercept": True},
    {"layers": 3, "gates": 6, "loss": "logistic"},
    {"layers": 3, "gates": 6, "loss": "softmax"},
]


@pytest.mark.parametrize("settings", CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_objective_is_eq1_of_the_torch_module(shape: tuple[int, int, int], settings: dict[str, Any]) -> None:
    loss = settings.get("loss", "squared")
    tol = 1e-6
    for outputs in (3,) if loss == "softmax" else (1, 3) if shape == SHAPES[2] else (1,):
        images, targets = data(shape, 20, outputs, loss)
        model = CircularCNN(**settings, reg=0.7, tol=tol).fit(images, targets)
        result = model.result_
        assert result.status == "optimal"
        assert -1e-12 <= result.relative_gap <= tol
        module = model.to_torch()
        assert circular_objective(module, images, targets, 0.7, loss) == pytest.approx(result.objective, rel=1e-12)
        if settings["layers"] == 2:
            assert nonconvex_objective(module, images, targets, 0.7, loss) == pytest.approx(result.objective, rel=1e-12)
        outputs_of = module(torch.from_numpy(images)).detach().numpy()
        np.testing.assert_allclose(outputs_of.reshape(targets.shape), model.predict(images), atol=1e-12)
        expected = ("proved", "circular") if settings["layers"] == 2 else ("none", "circular_relu")
        kinds = model.certificate_.kind, model.certificate_.networks.removesuffix("_separate")
        assert kinds == expected
        assert model.n_neurons_ > 0
        exported = torch.export.export(module, (torch.from_numpy(images),)).module()
        np.testing.assert_allclose(exported(torch.from_numpy(images)).detach().numpy(), outputs_of, atol=1e-12)


@pytest.mark.parametrize("settings", CASES)
def test_an_image_of_weight_two_is_as_good_as_twice(settings: dict[str, Any]) -> None:
    loss = settings.get("loss", "squared")
    images, targets = data(SHAPES[2], 20, 3, loss)
    weights = np.array([2.0, 0.0, *np.ones(18)])
    twice = np.array([0, 0, *range(2, 20)])
    model = CircularCNN(**settings, reg=0.7, tol=1e-9)
    if "gates" in settings:
        # Drawn from images, gates see no weights.
        model.set_params(gates=normal(6, 24).numpy())
    ours, theirs = clone(model).fit(images, targets, weights), clone(model).fit(images[twice], targets[twice])
    assert ours.result_.objective == pytest.approx(theirs.result_.objective, rel=1e-8)
    np.testing.assert_allclose(ours.predict(images), theirs.predict(images), atol=1e-4)
    eq1 = circular_objective(ours.to_torch(), images, targets, 0.7, loss, sample_weight=weights)
    assert ours.result_.objective == pytest.approx(eq1, rel=1e-12)
    least = clone(model).set_params(reg=None)
    assert least.reg_max(images, targets, weights) == pytest.approx(least.reg_max(images[twice], targets[twice]))


def test_orthonormal_images_have_shrunk_spectra() -> None:
    """With X = I, min 1/2 ||z - y||^2 + reg N(z) takes reg / sqrt(d) off each |F y|."""
    targets = normal(15).view(3, 5)
    model = CircularCNN(reg=1.5, tol=1e-10).fit(torch.eye(15, dtype=torch.float64).view(15, 3, 5), targets.flatten())
    spectra = torch.fft.fft2(targets, norm="ortho")
    shrunk = spectra * (1 - 1.5 / math.sqrt(15) / spectra.abs()).clamp_min(0)
    np.testing.assert_allclose(
        model.predict(np.eye(15).reshape(15, 3, 5)), torch.fft.ifft2(shrunk, norm="ortho").real.flatten(), atol=1e-5
    )
    np.testing.assert_allclose(model.spectra()[0], shrunk.abs(), atol=1e-5)
    assert CircularCNN().reg_max(torch.eye(15).view(15, 3, 5), targets.flatten()) == pytest.approx(
        float(spectra.abs().max()) * math.sqrt(15)
    )


def equation_two(images: np.ndarray, targets: np.ndarray, gates: np.ndarray, reg: float) -> float:
    """Return Eq. 2 with the l1 norm of complex spectra, written down in pixels, by Clarabel."""
    pixels, places = images.reshape(len(images), -1), images[0].size
    transform = np.fft.fft(np.eye(places), norm="ortho")
    fit, norm, constraints = 0.0, 0.0, []
    for gate in gates:
        active = (pixels @ gate >= 0).astype(float)
        for sign in (1, -1):
            vector = cp.Variable(places)
            fit = fit + sign * cp.multiply(active, pixels @ vector)
            norm = norm + cp.norm1(transform @ vector) / math.sqrt(places)
            constraints.append(cp.multiply(2 * active - 1, pixels @ vector) >= 0)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(fit - targets) + reg * norm), constraints)
    return float(problem.solve(solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9))


def test_three_layers_solve_equation_two() -> None:
    images, targets = data((1, 1, 5), 12, 1)
    gates = normal(4, 5).numpy()
    model = CircularCNN(layers=3, gates=gates, reg=0.5).fit(images, targets)
    assert model.result_.objective == pytest.approx(equation_two(images, targets, gates, 0.5), rel=1e-7)
    other = CircularCNN(layers=3, gates=gates, reg=0.5, solver="cvxpy:CLARABEL", tol=1e-4).fit(images, targets)
    assert other.result_.objective == pytest.approx(model.result_.objective, rel=1e-6)
    largest = CircularCNN(layers=3, gates=gates).reg_max(images, targets)
    for share, none in ((1 + 1e-6, True), (1 - 1e-2, False)):
        fitted = CircularCNN(layers=3, gates=gates, reg=share * largest).fit(images, targets)
        assert (fitted.n_neurons_ == 0) is none


def test_any_prediction_gives_a_bound() -> None:
    images, targets = data((1, 1, 6), 15, 1)
    model = CircularCNN(layers=3, gates=8, reg=0.5)
    program = over(model.task(images, targets)).program
    least = get_solver("auto", program, tol=1e-8).solve(program).objective
    for seed in range(5):
        assert program.dual_bound(program.targets - normal(15, 1, seed=seed)) <= least
    assert program.dual_bound(0 * program.targets) <= least


def test_a_solve_that_is_cut_short_says_so() -> None:
    images, targets = data((1, 1, 6), 15, 1)
    short = CircularCNN(layers=3, gates=8, reg=0.5, max_iter=4).fit(images, targets).result_
    whole = CircularCNN(layers=3, gates=8, reg=0.5).fit(images, targets).result_
    assert (short.status, whole.status) == ("iteration_limit", "optimal")
    assert short.dual_bound <= whole.objective <= short.objective * (1 + 1e-12)


def trained(layers: int, images: Tensor, targets: Tensor, reg: float, width: int, seeds: int = 20) -> Tensor:
    """Return Eq. 1 of ordinary training from several starts at once, (seeds,); ||u|| <= 1 by division."""
    n, places = images.shape[0], images[0].numel()
    pixels = images.flatten(1)
    places_of = (torch.arange(places)[:, None] + torch.arange(places) - (places - 1) // 2) % places
    circular = pixels[:, places_of]  # x_j as a matrix of its shifts: maps are circular @ u
    filters, weights = normal(seeds, width, places), normal(seeds, width, places, seed=1)
    readout = normal(seeds, width, seed=2)
    free = [filters, weights] + ([readout] if layers == 3 else [])
    for part in free:
        part.requires_grad_()

    def values() -> Tensor:
        unit = filters / filters.norm(dim=2, keepdim=True) if layers == 3 else filters
        responses = torch.einsum("npq,smq,smp->snm", circular, unit, weights)
        fitted = (responses.relu() * readout[:, None]).sum(dim=2) if layers == 3 else responses.sum(dim=2)
        decayed = [weights, readout] if layers == 3 else [filters, weights]
        decay = sum(part.square().flatten(1).sum(dim=1) for part in decayed)
        return 0.5 * (fitted - targets).square().sum(dim=1) + 0.5 * reg * decay

    optimizer = torch.optim.Adam(free, lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 900)
    for _ in range(900):
        optimizer.zero_grad()
        values().sum().backward()
        optimizer.step()
        schedule.step()
    assert n == len(targets)
    return values().detach()


@pytest.mark.parametrize("layers", [2, 3])
def test_no_ordinary_run_is_below_the_bound_and_the_best_is_near_it(layers: int) -> None:
    images, targets = data((1, 1, 3), 10, 1)
    gates = EnumeratedGates() if layers == 3 else None
    model = CircularCNN(layers=layers, gates=gates, reg=0.5, tol=1e-7).fit(images, targets)
    assert model.certificate_.kind == "proved"
    found = trained(layers, torch.from_numpy(images), torch.from_numpy(targets), 0.5, width=12)
    assert float(found.min()) >= model.certificate_.global_bound
    assert float(found.min()) == pytest.approx(model.result_.objective, rel=1e-3)


def test_short_filters_are_above_the_bound_and_refused() -> None:
    images, targets = data((1, 1, 6), 20, 1)
    bound = CircularCNN(reg=2.0).fit(images, targets).result_.dual_bound
    short = ConvexConvBlock(kernel_size=(1, 1), activation="linear", pool_cells=1, padding=0, bias=False, reg=2.0)
    assert short.fit(images, targets).result_.objective > bound
    for size in (3, (1, 3), (1, 7), "full", (1, 6.0, 2)):
        with pytest.raises(InputError, match=r"filter_size must be None or.*\(1, 6\); got.*lower bound"):
            CircularCNN(filter_size=size).fit(images, targets)  # type: ignore[arg-type]
    same = CircularCNN(reg=2.0, filter_size=(1, 6), decay="all").fit(images, targets)
    assert same.result_.dual_bound == bound


def test_decay_of_all_three_layers_is_no_norm() -> None:
    """The least decay of s U w = v along a ray is 3/2 t^(2/3), concave: no convex function of v."""
    image = normal(1, 1, 1, 5)

    def least(t: float) -> float:
        filters, weights = factored(t * image)
        size = float(filters.norm() * weights.norm())
        scales = torch.logspace(-2, 2, 4001, dtype=torch.float64)  # of u and w, alike; s takes the rest
        return float((scales.square() + 0.5 * (size / scales.square()).square()).min())

    assert least(1.0) == pytest.approx(1.5 * size_of(image[0]) ** (2 / 3), rel=1e-4)
    assert least(1.0) > 0.6 * least(2.0)
    with pytest.raises(InputError, match=r"decay=\"all\" of three layers has no convex program.*\^\(2/3\).*last_two"):
        CircularCNN(layers=3, decay="all").fit(*data((1, 1, 3), 5, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 4}, r"layers must be 2 \(linear\) or 3 \(with a ReLU\); got 4"),
        ({"layers": True}, "layers must be 2"),
        ({"gates": 5}, "two layers are linear and have no gates"),
        ({"decay": "none"}, 'decay must be "last_two" or "all"'),
        ({"reg": 0.0}, "reg must be a positive"),
        ({"tol": -1.0}, "tol must be a positive"),
        ({"loss": "hinge"}, "loss must be one of"),
        ({"intercept": 1}, "intercept must be True or False"),
        ({"layers": 3, "gates": "priced"}, "can't be resolved"),
        ({"layers": 3, "gates": np.ones((2, 3))}, "gates have 3 entries each but the patches have 4"),
        (
            {"layers": 3, "solver": "cone_working_set"},
            "'cone_working_set' can't solve this program: it needs a penalty of",
        ),
        ({"layers": 3, "solver": "working_set"}, "knows no cones"),
        ({"solver": "spectral_cones"}, "'spectral_cones' can't solve this program: it is for programs with cones"),
        ({"intercept": True, "loss": "logistic"}, 'intercept=True needs loss="squared"'),
    ],
)
def test_what_can_not_be_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    images, targets = data((1, 1, 4), 8, 1)
    with pytest.raises(InputError, match=message):
        CircularCNN(**settings).fit(images, np.sign(targets))


def test_the_objective_of_a_module_is_refused_where_it_is_not_defined() -> None:
    images, targets = data((1, 1, 4), 8, 1)
    module = CircularCNN(layers=3, gates=4, reg=0.1).fit(images, targets).to_torch()
    with pytest.raises(InputError, match="reg must be a number >= 0"):
        circular_objective(module, images, targets, -1.0)
    with pytest.raises(InputError, match="outputs have shape"):
        circular_objective(module, images, np.ones((8, 2)), 1.0)
    with pytest.raises(InputError, match="doesn't take images of shape"):
        circular_objective(module, np.ones((8, 2, 1, 4)), targets, 1.0)
    with torch.no_grad():
        module.conv.weight.mul_(2.0)
    with pytest.raises(InputError, match=r"no longer than one; one has length 2\. Divide"):
        circular_objective(module, images, targets, 1.0)
    with pytest.raises(InputError, match="got 0 and 1"):
        circular_objective(nn.Sequential(nn.Flatten(), nn.Linear(4, 1)), images, targets, 1.0)


@pytest.mark.parametrize("layers", [2, 3])
def test_a_model_comes_back_from_its_files(layers: int, tmp_path: Path) -> None:
    images, targets = data((2, 2, 3), 15, 2)
    gates = normal(5, 12).numpy() if layers == 3 else None
    model = CircularCNN(layers=layers, gates=gates, filter_size=(2, 3)).fit(images, targets)
    model.save(tmp_path, extra={"note": "circular"})
    loaded = CircularCNN.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict(images), model.predict(images))
    assert (loaded.reg_, loaded.extra_) == (model.reg_, {"note": "circular"})
    assert repr(loaded.certificate_) == repr(model.certificate_)
    assert loaded.result_.objective == model.result_.objective
    np.testing.assert_array_equal(loaded.spectra(), model.spectra())
    again = clone(loaded).fit(images, targets)
    assert again.result_.objective == pytest.approx(model.result_.objective, rel=1e-6)
    with pytest.raises(ModelFileError, match=r"holds a CircularCNN, not a ConvexConvBlock\. Use CircularCNN.load"):
        ConvexConvBlock.load(tmp_path)
    with pytest.raises(InputError, match="on the CPU only"):
        CircularCNN.load(tmp_path, device="cuda")
    config = (tmp_path / "config.json").read_text(encoding="utf-8")
    for old, new in (
        ('"decay": "last_two"', '"decay": "none"'),
        ('"tol"', '"toll"'),
        (f'"layers": {layers}', '"layers": 5'),
    ):
        (tmp_path / "config.json").write_text(config.replace(old, new), encoding="utf-8")
        with pytest.raises(ModelFileError, match="damaged"):
            CircularCNN.load(tmp_path)


def test_habits_of_scikit_learn() -> None:
    model = CircularCNN(layers=3, gates=4)
    assert clone(model).get_params() == model.get_params()
    assert model.set_params(layers=2, gates=None).layers == 2
    for call in (model.to_torch, model.spectra, lambda: model.predict(np.ones((2, 1, 3))), model.state):
        with pytest.raises(NotFittedError, match="isn't fitted yet"):
            call()
    images, targets = data((1, 1, 4), 8, 1)
    assert model.fit(images[:, 0], targets).predict(images).shape == (8,)
    with pytest.raises(InputError, match="shape"):
        model.predict(np.ones((2, 1, 5)))
