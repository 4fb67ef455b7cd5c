"""Tangent kernels against autograd's Jacobians, Monte Carlo and closed cases; ranks that are never claimed wrongly."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import noise_patches, normal, seeded
from sklearn.kernel_ridge import KernelRidge
from torch import nn

from cvxcnn.activations.neurons import Neurons
from cvxcnn.errors import InputError
from cvxcnn.theory import block_ntk, deep_gram, expressivity, infinite_gram, layer_grams, softplus


def block(seed: int, outputs: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return patches (5, 9, 5), filters, readout and pool of a block with four cells."""
    patches = noise_patches(5, 4, seed=seed, kernel_size=2, bias=True, pool_cells=2, pooling="mean")
    generator = seeded(seed + 1)
    return patches.unfold(), normal(3, 5, seed=generator), normal(3, 4, outputs, seed=generator), patches.pool


def autograd_jacobian(
    patches: torch.Tensor, u: torch.Tensor, w: torch.Tensor, pool: torch.Tensor
) -> list[torch.Tensor]:
    def outputs(filters: torch.Tensor, readout: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ck,nki,ico->no", pool, (patches @ filters.T).relu(), readout).flatten()

    found = torch.autograd.functional.jacobian(outputs, (u, w))
    return [part.flatten(1) for part in found]


@pytest.mark.parametrize("part", ["filters", "readout", "both"])
def test_block_kernel_is_that_of_autograd(part: str) -> None:
    patches, u, w, pool = block(0)
    of_filters, of_readout = (jacobian @ jacobian.T for jacobian in autograd_jacobian(patches, u, w, pool))
    expected = {"filters": of_filters, "readout": of_readout, "both": of_filters + of_readout}[part]
    torch.testing.assert_close(block_ntk(patches, u, w, pool, part=part), expected, rtol=1e-12, atol=1e-12)
    as_arrays = block_ntk(patches.numpy(), u.numpy(), w.numpy(), pool.numpy(), part)
    assert isinstance(as_arrays, np.ndarray)
    np.testing.assert_allclose(as_arrays, expected.numpy(), rtol=1e-12, atol=1e-12)


def test_without_a_pool_one_cell_adds_all_patches() -> None:
    patches, u, w, _ = block(1)
    ones = torch.ones(1, patches.shape[1], dtype=torch.float64)
    torch.testing.assert_close(block_ntk(patches, u, w[:, :1]), block_ntk(patches, u, w[:, :1], ones))


def test_rank_is_at_most_the_number_of_weights_less_a_scale_a_neuron() -> None:
    patches, u, w, pool = block(2, outputs=4)
    kernel = torch.as_tensor(block_ntk(patches, u, w, pool))
    assert int(torch.linalg.matrix_rank(kernel, hermitian=True)) <= 3 * (5 + 4 * 4 - 1)


def test_kernel_is_the_sum_over_the_layers_of_the_exported_module() -> None:
    patches = noise_patches(4, 5, seed=3, kernel_size=3, padding=1, bias=True, pool_cells=2, pooling="sum")
    generator = seeded(4)
    u, w = normal(3, 10, seed=generator), normal(3, 4, 2, seed=generator)
    neurons = Neurons(u, w, torch.zeros(2, dtype=torch.float64))
    module = neurons.to_module(patches.geometry, (1, 5, 5), intercept=False)
    grams = layer_grams(module, patches.images)
    assert list(grams) == ["conv", "linear"]
    for part, name in (("filters", "conv"), ("readout", "linear")):
        expected = block_ntk(patches.unfold(), u, w, patches.pool, part=part)
        torch.testing.assert_close(torch.as_tensor(grams[name]), expected, rtol=1e-11, atol=1e-11)
    assert all(p.grad is None for p in module.parameters())


def test_layers_that_ask_for_no_gradient_are_left_out() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Softplus(), nn.Dropout(), nn.Linear(3, 1)).train()
    net[0].requires_grad_(False)
    assert list(layer_grams(net, np.ones((2, 2)))) == ["3"]
    assert net.training and net[2].training
    with pytest.raises(InputError, match="no parameters that ask for a gradient"):
        layer_grams(nn.ReLU(), np.ones((2, 2)))


@pytest.mark.parametrize("part", ["filters", "readout"])
def test_infinite_width_is_the_limit_of_width(part: str) -> None:
    patches, _, _, pool = block(5)
    generator = seeded(6)
    draws = []
    for _ in range(100):
        u = normal(200, 5, seed=generator)
        w = torch.randint(0, 2, (200, 4, 1), generator=generator).double() * 2 - 1
        draws.append(torch.as_tensor(block_ntk(patches, u, w, pool, part=part)) / 200)
    sampled = torch.stack(draws)
    error = sampled.std(dim=0) / math.sqrt(len(sampled))
    found = torch.as_tensor(infinite_gram(patches, pool, part=part))
    assert bool(((found - sampled.mean(dim=0)).abs() < 4 * error).all())


def test_infinite_gram_of_fully_connected_networks_in_closed_form() -> None:
    x = normal(6, 1, 4, seed=1)
    flat = x[:, 0]
    lengths = flat.norm(dim=1)
    t = torch.arccos((flat @ flat.T / torch.outer(lengths, lengths)).clamp(-1, 1))
    t.fill_diagonal_(0.0)
    of_filters = flat @ flat.T * (math.pi - t) / (2 * math.pi)
    of_readout = torch.outer(lengths, lengths) * (t.sin() + (math.pi - t) * t.cos()) / (2 * math.pi)
    torch.testing.assert_close(infinite_gram(x, part="filters"), of_filters, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(infinite_gram(x, part="readout"), of_readout, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(infinite_gram(x), of_filters + of_readout, rtol=1e-12, atol=1e-12)


def test_it_is_singular_for_multiples_and_for_many_antipodal_pairs() -> None:
    x = normal(3, 1, 4, seed=1)
    # (u.x)_+ - (-u.x)_+ = u.x is linear, so that more antipodal pairs than dimensions are dependent; fewer aren't.
    many = normal(5, 1, 4, seed=2)
    assert np.linalg.eigvalsh(infinite_gram(torch.cat([x, -x]).numpy()))[0] > 0.01
    for part in ("filters", "readout", "both"):
        assert abs(np.linalg.eigvalsh(infinite_gram(torch.cat([many, -many]).numpy(), part=part))[0]) < 1e-12
    both = np.linalg.eigvalsh(infinite_gram(torch.cat([x, 2 * x]).numpy()))
    assert abs(both[:3]).max() < 1e-12
    padded = torch.cat([x, torch.zeros(3, 1, 4, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(infinite_gram(padded), infinite_gram(x))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, u, w, pool = block(7)
    before = block_ntk(patches, u, w, pool), infinite_gram(patches, pool), deep_gram(patches[:, 0], 2)
    for module in ("kernels", "deep"):
        monkeypatch.setattr(f"cvxcnn.theory.{module}._ENTRIES", 100)
    monkeypatch.setattr("cvxcnn.theory.kernels._SIDES", (8, 8))
    after = block_ntk(patches, u, w, pool), infinite_gram(patches, pool), deep_gram(patches[:, 0], 2)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_the_kernel_between_images_is_a_part_of_that_of_all() -> None:
    patches, *_, pool = block(9)
    whole = torch.as_tensor(infinite_gram(patches, pool))
    between = infinite_gram(patches[:3], pool, others=patches[3:])
    torch.testing.assert_close(between, whole[3:, :3], rtol=1e-13, atol=1e-13)
    quick = infinite_gram(patches, pool, dtype="float32")
    assert bool(((quick - whole).abs() < 1e-6 * whole.max()).all()) and not torch.equal(quick, whole)
    # Cells that share places, as adaptive pooling has them, and places that no cell has.
    uneven = torch.tensor([[1.0, 2.0, 0, 0, 0.5, 0, 0, 0, 0], [0, -1.0, 3.0, 0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    alone = [torch.as_tensor(infinite_gram(patches, row[None])) for row in uneven]
    torch.testing.assert_close(infinite_gram(patches, uneven), sum(alone), rtol=1e-13, atol=1e-13)
    scaled = (patches * uneven[1].abs()[:, None])[:, 1:3] * torch.tensor([-1.0, 1.0])[:, None]
    expected = sum(
        sign * torch.as_tensor(infinite_gram(first, others=second))
        for sign, first, second in (
            (1, scaled[:, :1] * -1, scaled[:, :1] * -1), (1, scaled[:, 1:], scaled[:, 1:]),
            (-1, scaled[:, :1] * -1, scaled[:, 1:]), (-1, scaled[:, 1:], scaled[:, :1] * -1),
        )
    )  # fmt: skip
    torch.testing.assert_close(alone[1], expected, rtol=1e-12, atol=1e-12)


def test_kernel_ridge_takes_it() -> None:
    patches, *_, pool = block(8)
    gram = infinite_gram(patches.numpy(), pool.numpy())
    targets = np.arange(5.0)
    model = KernelRidge(alpha=1e-8, kernel="precomputed").fit(gram, targets)
    np.testing.assert_allclose(model.predict(gram), targets, atol=1e-4)


def test_deep_gram_of_one_layer_is_a_hand_made_integral() -> None:
    x = np.array([[1.0, 0.0], [0.6, 0.8]])

    def mean(function: object) -> float:
        density = lambda z: mpmath.exp(-(z**2) / 2) / mpmath.sqrt(2 * mpmath.pi)  # noqa: E731
        return float(mpmath.quad(lambda z: function(z) * density(z), [-12, 0, 12]))  # type: ignore[operator]

    factor = 1 / mean(lambda z: mpmath.log(1 + mpmath.exp(z)) ** 2)
    gram = deep_gram(x, 1, "softplus")
    expected = factor * mean(lambda z: (1 / (1 + mpmath.exp(-z))) ** 2)
    np.testing.assert_allclose(np.diag(gram), expected, rtol=1e-12)
    np.testing.assert_allclose(np.diag(deep_gram(x, 3, "softplus")), expected, rtol=1e-11)


@pytest.mark.parametrize("activation", ["softplus", "tanh", "sigmoid", "relu"])
def test_deep_gram_is_that_of_random_pairs(activation: str) -> None:
    x = np.array([[1.0, 0.0], [0.6, 0.8], [-0.8, 0.6]])
    functions = {
        "softplus": (lambda z: np.logaddexp(z, 0), lambda z: 1 / (1 + np.exp(-z))),
        "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
        "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2),
        "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
    }
    function, slope = functions[activation]
    random = np.random.default_rng(0)
    z = random.standard_normal((400_000, 3))
    factor = 1 / np.mean(function(random.standard_normal(4_000_000)) ** 2)

    def root(kernel: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(kernel)
        return vectors * np.sqrt(values.clip(0))

    first = function(z @ root(x @ x.T).T)
    second = factor * first.T @ first / len(z)
    slopes = slope(z @ root(second).T)
    expected = factor * second * (slopes.T @ slopes) / len(z)
    np.testing.assert_allclose(deep_gram(x, 2, activation), expected, rtol=0.02, atol=0.005)


def test_deep_relu_gram_keeps_its_digits_between_near_copies() -> None:
    # With t the angle, K = 2 cos t (pi - t) / 2 pi.
    t = 1e-9
    gram = deep_gram([[1.0, 0.0], [math.cos(t), math.sin(t)]], 1, "relu")
    assert math.isclose(1 - gram[0, 1], t / math.pi, rel_tol=1e-6)
    deep = deep_gram([[1.0, 0.0], [math.cos(t), math.sin(t)]], 4, "relu")
    assert math.isclose(1 - deep[0, 1], t / math.pi, rel_tol=1e-3)


@pytest.mark.parametrize(("activation", "length"), [("softplus", 2.0), ("sigmoid", 2.5), ("tanh", 1.2)])
def test_quadrature_is_exact_for_longer_inputs(activation: str, length: float) -> None:
    slopes = {
        "softplus": lambda z: 1 / (1 + mpmath.exp(-z)),
        "sigmoid": lambda z: mpmath.exp(-z) / (1 + mpmath.exp(-z)) ** 2,
        "tanh": lambda z: 1 / mpmath.cosh(z) ** 2,
    }
    values = {
        "softplus": lambda z: mpmath.log(1 + mpmath.exp(z)),
        "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
        "tanh": mpmath.tanh,
    }
    ends = list(range(-12, 13))

    def mean(function: Callable[[Any], Any], scale: float) -> Any:
        return mpmath.quad(lambda z: function(scale * z) ** 2 * mpmath.npdf(z), ends)

    expected = length**2 * float(mean(slopes[activation], length) / mean(values[activation], 1.0))
    assert math.isclose(float(deep_gram([[length, 0.0]], 1, activation)[0, 0]), expected, rel_tol=1e-11)


def test_deep_gram_refuses_what_quadrature_cant_do() -> None:
    with pytest.raises(InputError, match="too steep"):
        deep_gram([[1e4, 0.0]], 1, "softplus")
    with pytest.raises(InputError, match='activation must be one of "softplus"'):
        deep_gram([[1.0]], 1, "gelu")
    with pytest.raises(InputError, match="depth must be an int >= 1"):
        deep_gram([[1.0]], 0)


@given(st.integers(2, 8), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_full_rank_is_found_and_its_determinant_exact(n: int, seed: int) -> None:
    h = normal(n, n + 1, seed=seed)
    found = expressivity(h)
    columns = torch.cat([h, torch.ones(n, 1, dtype=torch.float64)], dim=1)
    assert found.decision == "full"
    assert math.isclose(found.log10_determinant, float(torch.logdet(columns @ columns.T)) / math.log(10), abs_tol=1e-6)
    assert expressivity(torch.cat([h, h[:1]])).decision == "deficient"


def test_n_minus_one_features_are_enough_and_fewer_are_not() -> None:
    h = normal(6, 5, seed=0)
    found = expressivity(h)
    assert (found.decision, found.needed_width) == ("full", 5)
    assert expressivity(h, bias=False).decision == "deficient"
    fewer = expressivity(h[:, :4])
    assert (fewer.decision, fewer.smallest, fewer.log10_determinant) == ("deficient", 0.0, -math.inf)


@pytest.mark.parametrize("width", [3, 10, 100, 1000])
def test_without_biases_symmetric_inputs_never_count_as_full(width: int) -> None:
    x = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]], dtype=torch.float64)
    features = softplus(x @ normal(1, width, seed=width))
    assert expressivity(features).decision != "full"


def test_determinant_of_nearly_dependent_features_is_right_to_a_hundredth() -> None:
    x, w, b = np.linspace(-1, 1, 12), np.linspace(0.5, 2.0, 14), np.linspace(-1.0, 1.0, 14)
    features = np.logaddexp(np.outer(x, w) + b, 0)
    found = expressivity(features)
    with mpmath.workdps(120):
        # The float64 features themselves, so that the determinant is of the same matrix.
        exact = mpmath.matrix(np.column_stack([features, np.ones(12)]).tolist())
        determinant = mpmath.det(exact * exact.T)
        assert determinant < mpmath.mpf(10) ** -90
        assert abs(found.log10_determinant - float(mpmath.log10(determinant))) < 0.01


def test_features_of_any_shape() -> None:
    h = normal(4, 2, 3, seed=0)
    assert expressivity(h) == expressivity(h.flatten(1))


def test_softplus_is_exact_where_torch_isnt() -> None:
    z = np.array([-800.0, -3.0, 0.0, 19.0, 21.0, 800.0])
    with mpmath.workdps(50):
        expected = [float(mpmath.log(1 + mpmath.exp(3 * mpmath.mpf(value))) / 3) for value in z]
    np.testing.assert_allclose(softplus(z, 3.0), expected, rtol=1e-15)
    tensor = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    softplus(tensor, 2.0).sum().backward()
    assert math.isclose(float(tensor.grad), 1 / (1 + math.exp(-1.0)), rel_tol=1e-14)
    with pytest.raises(InputError, match="zeta must be a positive, finite number"):
        softplus(1.0, 0.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, u, w: block_ntk(p[0], u, w), r"patches must have shape \(n, K, d\)"),
        (lambda p, u, w: block_ntk(p, u[:, :3], w), r"filters must have shape \(m, 5\)"),
        (lambda p, u, w: block_ntk(p, u, w), r"readout must have shape \(3, 1, o\)"),
        (lambda p, u, w: block_ntk(p, u, w[:, :1], part="all"), 'part must be "both", "filters" or "readout"'),
        (lambda p, u, w: block_ntk(p, u, w[:, :1], memory=1e-7), "more than memory=1e-07. Give fewer images"),
        (lambda p, u, w: infinite_gram(p, memory=1e-3), "the Gram matrix of 5 images needs about"),
        (lambda p, u, w: infinite_gram(p, pool=torch.ones(2, 3)), r"pool must have shape \(C, 9\)"),
        (lambda p, u, w: infinite_gram(p, others=p[:, :3]), r"others must have shape \(q, 9, 5\)"),
        (lambda p, u, w: infinite_gram(p, dtype="float16"), 'dtype must be "float64" or "float32"; got .float16.'),
        (lambda p, u, w: infinite_gram(p, device="gpu"), "device 'gpu' can't be used"),
        (lambda p, u, w: block_ntk(p, u, w[:, :1], device="gpu"), "device 'gpu' can't be used"),
        (lambda p, u, w: deep_gram(p[:, 0], 2, device="gpu"), "device 'gpu' can't be used"),
        (lambda p, u, w: deep_gram(p[:, 0], 2, memory=1e-6), "the Gram matrix of 5 inputs needs about"),
        (lambda p, u, w: layer_grams(nn.Linear(5, 1), p, device="gpu"), "device 'gpu' can't be used"),
        (lambda p, u, w: layer_grams(nn.Linear(5, 1), p[:, 0], memory=1e-9), "the Jacobian of layer  needs about"),
        (lambda p, u, w: expressivity([["a"]]), "features must be real numbers"),
        (lambda p, u, w: layer_grams("net", p), "takes a torch.nn.Module; got str"),
    ],
)
def test_bad_input_is_refused_in_words(call: object, words: str) -> None:
    patches, u, w, _ = block(0)
    with pytest.raises(InputError, match=words):
        call(patches, u, w)  # type: ignore[operator]


SCRIPT = """
import os, sys, torch
from cvxcnn.core.distributed import process_group, rank, shard, size
from cvxcnn.theory import block_ntk, deep_gram, infinite_gram, layer_grams
generator = torch.Generator().manual_seed(0)
patches, u, w = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((7, 4, 3), (5, 3), (5, 1, 2)))
with process_group("cpu"):
    own = patches[shard(7, rank(), size())]
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2), torch.nn.Tanh()).double()
    with torch.no_grad():
        net[1].weight.copy_(patches[:2].flatten(1)), net[1].bias.zero_()
    grams = [
        block_ntk(own, u, w), infinite_gram(own), infinite_gram(own, others=patches[:3]),
        infinite_gram(own, dtype="float32"), deep_gram(own[:, 0] / 4, 2), layer_grams(net, own)["1"],
    ]
    found = torch.cat([gram.flatten() for gram in grams])
    if rank() == 0:
        torch.save(found, sys.argv[1])
# Past the interpreter's own end: gloo now and then aborts there after a connection was lost.
os._exit(0)
"""


def test_two_processes_give_the_matrices_of_one(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = tmp_path / "grams.py"
    script.write_text(SCRIPT)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run([*run, str(tmp_path / "two")], check=True, timeout=120)
    subprocess.run([sys.executable, str(script), str(tmp_path / "one")], check=True, timeout=120)
    two, one = (torch.load(tmp_path / name) for name in ("two", "one"))
    torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-10)
