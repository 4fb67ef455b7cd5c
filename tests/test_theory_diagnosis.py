"""What `diagnose` says of networks whose state is known: by autograd, dense Hessians, and points made by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import digits, noise_problem, normal, seeded
from torch import Tensor

from cvxcnn import ConvexConvBlock, LayerwiseCNN, PricedGates, PricingOptions, nonconvex_objective, polish
from cvxcnn.activations.neurons import Neurons
from cvxcnn.commands.diagnose import main
from cvxcnn.errors import InputError
from cvxcnn.losses import get_loss
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.runs.run import run
from cvxcnn.runs.settings import Settings
from cvxcnn.theory import (
    block_ntk,
    diagnose,
    planted_gaussian,
    spurious_minimum,
    two_layer_population_risk,
)
from cvxcnn.theory.point import BlockPoint
from cvxcnn.theory.stationarity import curvature, stationarity
from cvxcnn.theory.tangent import tangent

# Ten sampled gates, and no search for a bound over all networks.
UNBOUNDED = ConvexConvBlock(gates=10, pricing=PricingOptions(starts=0))


def eq1(point: BlockPoint, vector: Tensor) -> Tensor:
    """Return Eq. 1 as autograd sees it."""
    filters, readout = point.unflatten(vector)
    responses = point.patches.unfold() @ filters.T
    found = responses.relu()
    if point.softplus is not None:
        found = torch.logaddexp(point.softplus * responses, torch.zeros_like(responses)) / point.softplus
    outputs = torch.einsum("ck,nki,ico->no", point.pool, found, readout)
    squares = filters.square().sum() + readout.square().sum()
    return point.loss.tensor(outputs + point.intercept, point.targets) + 0.5 * point.reg * squares


def random_point(loss: str = "squared", seed: int = 0, softplus: float | None = None) -> BlockPoint:
    patches, targets = noise_problem(7, 4, outputs=3, seed=seed, kernel_size=2, bias=True, pool_cells=2, pooling="mean")
    if loss == "logistic":
        targets = targets.sign()
    if loss == "softmax":
        targets = torch.nn.functional.one_hot(targets.argmax(dim=1), 3).double()
    generator = seeded(seed + 1)
    filters, readout = normal(4, 5, seed=generator), normal(4, 4, 3, seed=generator)
    return BlockPoint(patches, targets, filters, readout, 0.3, get_loss(loss), softplus=softplus)


@pytest.mark.parametrize(
    ("loss", "softplus"), [("squared", None), ("logistic", None), ("softmax", None), ("squared", 2.0), ("softmax", 5.0)]
)
def test_gradient_and_curvature_are_those_of_autograd(loss: str, softplus: float | None) -> None:
    point = random_point(loss, softplus=softplus)
    vector = point.flatten(point.weights)
    value, gradient = point.value_and_gradient(*point.weights)
    assert math.isclose(value, float(eq1(point, vector)), rel_tol=1e-12)
    assert math.isclose(point.objective, value, rel_tol=1e-12)
    expected = torch.autograd.functional.jacobian(lambda v: eq1(point, v), vector)
    torch.testing.assert_close(point.flatten(gradient), expected)
    torch.testing.assert_close(point.flatten(point.gradient), expected)
    hessian = torch.autograd.functional.hessian(lambda v: eq1(point, v), vector)
    direction = normal(len(vector), seed=5)
    single, rough = point.value_and_gradient(*point.weights, single=True)
    assert math.isclose(single, value, rel_tol=1e-6)
    torch.testing.assert_close(point.flatten(rough), expected, rtol=1e-5, atol=1e-4)
    steps = (-0.3, 0.0, 0.2)
    along = [float(eq1(point, vector + step * direction)) for step in steps]
    assert point.values_along(point.unflatten(direction), steps) == pytest.approx(along, rel=1e-12)
    product = point.flatten(point.curvature(point.unflatten(direction)))
    torch.testing.assert_close(product, hessian @ direction, rtol=1e-4, atol=1e-4)
    found = curvature(point)
    values = torch.linalg.eigvalsh(hessian) / point.reg
    assert float(values[0]) * 1.001 - 1e-3 <= found.smallest <= float(values[0]) + 0.05 * float(values[-1] - values[0])
    assert math.isclose(found.largest, float(values[-1]), rel_tol=1e-3)
    assert (found.fall > 0) or found.smallest > 0
    assert math.isnan(found.clarke_after)


def test_jacobian_products_are_those_of_the_kernel() -> None:
    point = random_point()
    kernel = torch.as_tensor(block_ntk(point.patches.unfold(), point.filters, point.readout, point.pool))
    upstream = normal(7, 3, seed=9)
    torch.testing.assert_close(point.push(point.pull(upstream)).flatten(), kernel @ upstream.flatten())
    torch.testing.assert_close(point.kernel(7), kernel)
    torch.testing.assert_close(point.kernel(5), kernel[:15, :15])


def test_weights_that_a_group_network_lacks_are_in_no_direction() -> None:
    point = random_point()
    readout = torch.zeros_like(point.readout)
    readout[:, 1, 2] = 1.0
    sparse = BlockPoint(point.patches, point.targets, point.filters, readout, 0.3, point.loss, sparse=True)
    assert sparse.n_weights == 4 * 5 + 4
    for direction in (sparse.gradient, sparse.curvature((point.filters, point.readout))):
        assert not bool(direction[1][readout == 0].any())
    units = torch.eye(21, dtype=torch.float64).view(21, 7, 3)
    expected = torch.stack([sparse.push(sparse.pull(unit)).flatten() for unit in units])
    torch.testing.assert_close(sparse.kernel(7), expected)


def test_tangent_kernel_of_a_fitted_block_is_kernel_ridge() -> None:
    patches, targets = noise_problem(12, 5, outputs=2, seed=3, kernel_size=3, pooling="mean")
    block = ConvexConvBlock(
        kernel_size=3, padding=0, bias=False, pool_cells=1, reg=0.4, tol=1e-9, gates=PricedGates(gap=1e-5)
    ).fit(patches.images, targets)
    neurons = block.neurons_
    point = BlockPoint(patches, targets, neurons.filters, neurons.readout, 0.4, get_loss("squared"))
    steady = stationarity(point)
    assert steady.clarke < 1e-2 and steady.clarke <= steady.plain + 1e-12
    found = tangent(point, curvature(point).largest * 0.4)
    kernel = torch.as_tensor(block_ntk(patches.unfold(), neurons.filters, neurons.readout, patches.pool))
    values = torch.linalg.eigvalsh(kernel)
    assert math.isclose(found.degrees_of_freedom, float((values / (values + 0.8)).sum()), rel_tol=1e-6)
    residual = (targets - torch.as_tensor(block.predict(patches.images))).flatten()
    rate = 2 * float(residual @ kernel @ residual / residual.square().sum())
    assert math.isclose(found.rate, rate, rel_tol=1e-6)
    assert found.objective_error < 1e-6


def test_rate_of_the_tangent_kernel_is_that_of_a_small_step() -> None:
    point = random_point()
    kernel = torch.as_tensor(block_ntk(point.patches.unfold(), point.filters, point.readout, point.pool))
    residual = point.residual.flatten()
    found = tangent(point, float(torch.linalg.eigvalsh(kernel)[-1]))
    assert math.isclose(found.rate, float(2 * residual @ kernel @ residual / residual.square().sum()), rel_tol=1e-9)
    assert math.isclose(found.rate_measured, found.rate, rel_tol=2e-2)
    assert math.isnan(tangent(random_point("logistic"), 1.0).rate)


def test_the_least_gradient_at_a_kink_is_found() -> None:
    # The second image is at the kink of u = (s, s): the least over its slope, by brute force.
    images = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64).view(2, 1, 1, 2)
    patches, targets = Patches(images, PatchGeometry((1, 2))), torch.tensor([[3.0], [1.0]], dtype=torch.float64)
    for size in (0.8, 1.0, 1.1):
        filters = torch.full((1, 2), size, dtype=torch.float64)
        readout = torch.full((1, 1, 1), 2**0.5 * size, dtype=torch.float64)
        point = BlockPoint(patches, targets, filters, readout, 0.1, get_loss("squared"))
        steady = stationarity(point)
        assert steady.near == 1
        away = torch.tensor([1.0, -1.0]).double()
        move = float(readout[0, 0, 0] * point.residual[1, 0]) * away
        values = [float((point.gradient[0][0] + s * move).norm()) for s in np.linspace(0, 1, 10_001)]
        scale = 0.1 * math.sqrt(float(filters.square().sum() + readout.square().sum()))
        expected = math.hypot(min(values), float(point.gradient[1].norm())) / scale
        assert math.isclose(steady.clarke, expected, rel_tol=1e-3)
        assert math.isclose(steady.plain, math.hypot(values[0], float(point.gradient[1].norm())) / scale, rel_tol=1e-9)


def test_copies_of_a_patch_have_one_slope() -> None:
    # Of two copies with slopes +1 and -1 each of its own would cancel anything; together they add up to nothing.
    images = torch.tensor([[1.0, 1.0], [1.0, -1.0], [2.0, -2.0]], dtype=torch.float64).view(3, 1, 1, 2)
    targets = torch.tensor([[3.0], [2.0], [-1.0]], dtype=torch.float64)
    filters, readout = torch.ones(1, 2).double(), torch.full((1, 1, 1), 2**0.5).double()
    point = BlockPoint(Patches(images, PatchGeometry((1, 2))), targets, filters, readout, 0.1, get_loss("squared"))
    steady = stationarity(point)
    assert steady.near == 1 and math.isclose(steady.clarke, steady.plain, rel_tol=1e-9)


def test_verdicts_of_an_optimal_a_random_and_a_small_network() -> None:
    images, labels = digits(30, 2)
    targets = np.where(labels == 0, 1.0, -1.0)
    block = ConvexConvBlock(pool_cells=1, reg=0.3).fit(images, targets)
    own = block.neurons_
    half = own.filters[:1], own.readout[:1]
    noise = normal(6, 10, seed=1), normal(6, 1, 1, seed=2)
    optimal, random = diagnose(block, images, targets, rivals=[noise]).blocks
    assert (optimal.verdict, random.verdict) == ("optimal within the certificate", "not stationary")
    assert optimal.above_bound < 1e-3 and random.above_best > 0.5
    assert optimal.stationarity.clarke < 1e-2
    _, small = diagnose(block, images, targets, rivals=[half]).blocks
    assert small.above_best > 0
    # A solved program whose filters are moved off: descent brings them back, which is the reason that is given.
    block.neurons_ = replace(own, filters=own.filters + 0.02 * normal(*own.filters.shape, seed=3) * own.filters.norm())
    (moved,) = diagnose(block, images, targets).blocks
    assert moved.verdict == "not stationary" and moved.curvature.clarke_after < 0.2 * moved.stationarity.clarke
    assert any("Some steps of descent bring it to" in words for words in moved.measured)
    text = json.dumps(optimal.to_json(), allow_nan=False)
    assert "lam" not in text and json.loads(text)["method"] == "convex"


def test_a_spurious_minimum_keeps_adam_and_polish_leaves_it() -> None:
    # Du et al.'s teacher: readouts of both signs, so that the opposite filter is a local minimum of the risk.
    teacher, readout = np.array([1.0, 0.5, -0.5]), np.array([1.0, -1.0, 1.0, -1.0])
    point = spurious_minimum(teacher, readout)
    assert point.is_minimum
    images, targets = planted_gaussian(400, teacher, 4, readout=readout, random_state=0)
    geometry = PatchGeometry((1, 3), (1, 3), 0, "sum", 2)
    patches, expected, reg = Patches(images, geometry), targets[:, None], 4.0
    u = (torch.as_tensor(point.filter) + 0.1 * normal(3, seed=1)).view(1, 3).requires_grad_()
    w = torch.as_tensor(point.readout).clone().view(1, 4, 1).requires_grad_()
    loss, flat = get_loss("squared"), patches.unfold()
    for rate in (1e-2, 1e-3, 1e-4, 1e-5):
        optimizer = torch.optim.Adam([u, w], lr=rate)
        for _ in range(500):
            optimizer.zero_grad()
            outputs = torch.einsum("nki,iko->no", (flat @ u.T).relu(), w)
            (loss.tensor(outputs, expected) + 0.5 * reg * (u.square().sum() + w.square().sum())).backward()
            optimizer.step()
    stuck = u.detach()[0], w.detach()[0, :, 0]
    cosine = float(stuck[0] @ torch.as_tensor(teacher) / (stuck[0].norm() * np.linalg.norm(teacher)))
    assert cosine < -0.9
    risk = two_layer_population_risk(stuck[0], stuck[1], teacher, readout)
    assert risk > 0.5 * point.risk > 0.1
    module = Neurons(u.detach(), w.detach(), torch.zeros(1).double()).to_module(geometry, (1, 2, 6), intercept=False)
    better = polish(module, images, targets, reg)
    assert better.objective < 0.5 * nonconvex_objective(module, images, targets, reg)
    block = ConvexConvBlock(
        kernel_size=(1, 3), stride=(1, 3), padding=0, bias=False, pooling="sum", pool_cells=2, reg=reg
    ).fit(images, targets)
    assert block.result_.objective < 0.5 * nonconvex_objective(module, images, targets, reg)
    convex, adam = diagnose(block, images, targets, rivals=[(u.detach(), w.detach())]).blocks
    assert convex.verdict == "optimal within the certificate"
    assert adam.verdict == "spurious local minimum"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    run(Settings(layers=2, limit_train=30, gates=12, starts=8, baseline_epochs=10, baseline_width=8, output=str(path)))
    return path


def test_a_run_is_diagnosed_into_its_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Not diagnosed yet" in (folder / "report.html").read_text(encoding="utf-8")
    assert main([str(folder)]) == 0
    said = capsys.readouterr().out
    found = json.loads((folder / "diagnosis.json").read_text())
    assert [(block["layer"], block["method"]) for block in found["blocks"]] == [
        (layer, method) for layer in (1, 2) for method in ("convex", "nonconvex")
    ]
    summary = json.loads((folder / "summary.json").read_text())
    for block in found["blocks"]:
        own = summary["layers"][block["layer"] - 1][block["method"]]
        assert math.isclose(block["objective"], own["objective"], rel_tol=1e-9)
        assert block["verdict"] in said
        assert not any("not the images" in words for words in block["measured"])
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "What theorems say" in page and "Not diagnosed yet" not in page


def test_other_images_than_those_of_training_are_named() -> None:
    images, labels = digits(40)
    stack = LayerwiseCNN(layers=1, block=UNBOUNDED, validation=0.25).fit(images, np.eye(10)[labels])
    (block,) = diagnose(stack, images, np.eye(10)[labels]).blocks
    assert block.to_json()["above_bound"] is None and "No bound over all networks was searched." in block.measured
    assert "these are not the images that it was trained on" in block.measured[0]


def test_mirror_images_and_residual_targets_are_made_as_in_training() -> None:
    images, labels = digits(40)
    settings = {"layers": 2, "block": UNBOUNDED, "downsample": 2, "mirror": True, "residual": True}
    stack = LayerwiseCNN(**settings).fit(images, np.eye(10)[labels])
    for block, diagnosed in zip(stack.blocks_, diagnose(stack, images, np.eye(10)[labels]).blocks, strict=True):
        assert math.isclose(block.result_.objective, diagnosed.objective, rel_tol=1e-9)


def test_what_cant_be_diagnosed_is_refused_in_words(tmp_path: Path) -> None:
    images, labels = digits(30, 2)
    with pytest.raises(InputError, match="takes a fitted ConvexConvBlock or LayerwiseCNN"):
        diagnose(torch.nn.ReLU(), images, labels)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="isn't fitted yet"):
        diagnose(ConvexConvBlock(), images, labels)
    few = {"gates": 5, "pricing": PricingOptions(starts=0)}
    gated = ConvexConvBlock(activation="gated_relu", **few).fit(images, labels * 1.0)
    with pytest.raises(InputError, match="of activation 'gated_relu'"):
        diagnose(gated, images, labels)
    block = ConvexConvBlock(**few).fit(images, labels * 1.0)
    with pytest.raises(InputError, match="targets have 2 outputs, and the network 1"):
        diagnose(block, images, np.eye(2)[labels])
    with pytest.raises(InputError, match="layer 1 needs about"):
        diagnose(block, images, labels, memory=1e-6)
    with pytest.raises(InputError, match=r"the rival 'nonconvex' of layer 1 must have filters \(m, 10\)"):
        diagnose(block, images, labels, rivals=[(torch.ones(2, 3), torch.ones(2, 4, 1))])
    assert main([str(tmp_path)]) == 2
