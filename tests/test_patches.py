"""Patches against naive loops, torch's own convolution and pooling, adjoint identities, and numbers worked by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import normal, seeded
from torch import Tensor

import cvxcnn.patches.patches as patches_module
from cvxcnn import ConvexConvBlock, nonconvex_objective
from cvxcnn.errors import InputError
from cvxcnn.patches import POOLINGS, Patches, PatchGeometry, Pooling
from cvxcnn.patches.pooling import cell_bounds
from cvxcnn.pricing.options import PricedGates, PricingOptions

CLOSE = {"rtol": 1e-11, "atol": 1e-11}


@st.composite
def problems(draw: st.DrawFn, pooling: str | None = None) -> tuple[Patches, torch.Generator]:
    """Patches of small random images over every kind of geometry, and a generator for what else a test needs."""
    side = st.integers(1, 7)
    height, width = draw(side), draw(side)
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    padded = (height + 2 * padding[0], width + 2 * padding[1])
    kernel = (draw(st.integers(1, min(4, padded[0]))), draw(st.integers(1, min(4, padded[1]))))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    sides = [(size - k) // s + 1 for size, k, s in zip(padded, kernel, stride, strict=True)]
    geometry = PatchGeometry(
        kernel_size=kernel,
        stride=stride,
        padding=padding,
        pooling=pooling or draw(st.sampled_from(["sum", "mean", "bilinear"])),
        pool_cells=draw(st.integers(1, min(*sides, 3))),
        bias=draw(st.booleans()),
    )
    random = seeded(draw(st.integers(0, 2**31)))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 3)), height, width)
    return Patches(normal(*shape, seed=random), geometry), random


def fixed_problem(**changes: object) -> tuple[Patches, torch.Generator]:
    """Return five images with overlapping cells, a bias, and more than one channel."""
    options: dict[str, object] = {"kernel_size": 3, "padding": 1, "pooling": "mean", "pool_cells": 2, "bias": True}
    random = seeded()
    geometry = PatchGeometry(**{**options, **changes})  # type: ignore[arg-type]
    return Patches(normal(5, 2, 7, 5, seed=random), geometry), random


def cells(patches: Patches) -> list[list[int]]:
    """Return the patch indices of each cell, cut as torch's adaptive pooling cuts them."""
    height, width = patches.map_shape
    a = patches.geometry.pool_cells
    bounds = [[(i * size // a, -(-(i + 1) * size // a)) for i in range(a)] for size in (height, width)]
    return [
        [row * width + column for row in range(*rows) for column in range(*columns)]
        for rows in bounds[0]
        for columns in bounds[1]
    ]


def naive_weights(patches: Patches) -> Tensor:
    """Return the weights of the places in each cell, (cells, K), from the definition of each pooling."""
    kind, a = patches.geometry.pooling, patches.geometry.pool_cells
    if kind == "bilinear":  # each cell by itself, interpolated over the map
        units = torch.eye(a * a, dtype=torch.float64).view(a * a, 1, a, a)
        spread = F.interpolate(units, size=patches.map_shape, mode="bilinear", align_corners=False).flatten(1)
        return spread / spread.sum(dim=1, keepdim=True)
    weights = torch.zeros(a * a, patches.n_patches, dtype=torch.float64)
    for cell, members in zip(weights, cells(patches), strict=True):
        cell[members] = 1 / len(members) if kind == "mean" else 1.0
    return weights


def naive_pool(patches: Patches, responses: Tensor) -> Tensor:
    """Return responses (n, K, m) pooled cell by cell, shape (n, cells, m)."""
    return torch.stack([(responses * cell[:, None]).sum(1) for cell in naive_weights(patches)], 1)


def inner(a: Tensor, b: Tensor) -> Tensor:
    assert a.shape == b.shape
    return (a * b).sum()


# Numbers worked out by hand: the four 2 x 2 patches of
#    1 -2  0
#    3  1 -1
#    0  2  4
# are (1, -2, 3, 1), (-2, 0, 1, -1), (3, 1, 0, 2) and (1, -1, 2, 4).
EXAMPLE = torch.tensor([[[[1.0, -2.0, 0.0], [3.0, 1.0, -1.0], [0.0, 2.0, 4.0]]]], dtype=torch.float64)


def test_worked_example() -> None:
    patches = Patches(EXAMPLE, PatchGeometry(kernel_size=2))
    rows = [[1, -2, 3, 1], [-2, 0, 1, -1], [3, 1, 0, 2], [1, -1, 2, 4]]
    assert patches.unfold().tolist() == [rows]
    # Responses: -4, -3, 4, -2 and -1, -1, 3, 3.
    filters = torch.tensor([[1.0, 1, -1, 0], [0, 1, 0, 1]], dtype=torch.float64)
    assert patches.relu_maps(filters).tolist() == [[[[0, 0], [4, 0]], [[0, 0], [3, 3]]]]
    assert patches.relu_features(filters).tolist() == [[[4, 6]]]
    # The first gate lets patches 1, 3 and 4 through, the second all: 0 >= 0 counts.
    gates = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]], dtype=torch.float64)
    assert patches.gated_features(gates).tolist() == [[[[5, -2, 5, 7]], [[3, -2, 6, 6]]]]
    assert patches.gated_correlation(gates, EXAMPLE.new_tensor([[-2.0]])).flatten(1).tolist() == [
        [-10, 4, -10, -14],
        [-6, 4, -12, -12],
    ]
    weights = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64).view(2, 1, 4, 1)
    assert patches.gated_prediction(gates, weights).tolist() == [[5 - 2 + 6]]


def test_worked_example_with_bias_and_mean() -> None:
    patches = Patches(EXAMPLE, PatchGeometry(kernel_size=2, pooling="mean", bias=True))
    assert patches.dim == 5
    assert patches.unfold()[0, :, 4].tolist() == [1, 1, 1, 1]
    # Responses -4, -3, 4, -2 plus 3.5: the mean of 0, 0.5, 7.5 and 1.5.
    filters = torch.tensor([[1.0, 1, -1, 0, 3.5]], dtype=torch.float64)
    assert patches.relu_features(filters).item() == 2.375


def test_worked_example_with_cells_stride_and_padding() -> None:
    patches = Patches(EXAMPLE, PatchGeometry(kernel_size=1, pool_cells=2))
    # Cells of a 3 x 3 map overlap in its middle row and column.
    ones = torch.ones(1, 1, dtype=torch.float64)
    assert patches.relu_features(ones).flatten().tolist() == [1 + 3 + 1, 1, 3 + 1 + 2, 1 + 2 + 4]
    strided = Patches(EXAMPLE, PatchGeometry(kernel_size=1, stride=2))
    assert strided.unfold().flatten().tolist() == [1, 0, 0, 4]
    padded = Patches(EXAMPLE, PatchGeometry(kernel_size=3, stride=2, padding=1))
    assert padded.unfold()[0, 0].tolist() == [0, 0, 0, 0, 1, -2, 0, 3, 1]


# Against naive loops and torch's own layers, over geometries.


@given(problems())
def test_unfold_cuts_the_padded_image(problem: tuple[Patches, torch.Generator]) -> None:
    patches, _ = problem
    (top, left), (kh, kw), (down, right) = patches.padding, patches.kernel, patches.stride
    padded = F.pad(patches.images, (left, left, top, top))
    height, width = patches.map_shape
    cut = [
        padded[:, :, i * down : i * down + kh, j * right : j * right + kw].flatten(1)
        for i in range(height)
        for j in range(width)
    ]
    expected = torch.stack(cut, 1)
    unfolded = patches.unfold()
    bias = int(patches.geometry.bias)
    assert unfolded.shape == (patches.n_images, patches.n_patches, patches.dim)
    assert torch.equal(unfolded[..., : patches.dim - bias], expected)
    if bias:
        assert (unfolded[..., -1] == 1).all()


@given(problems())
def test_relu_features_equal_the_naive_loop(problem: tuple[Patches, torch.Generator]) -> None:
    patches, random = problem
    filters = normal(3, patches.dim, seed=random)
    responses = (patches.unfold() @ filters.T).clamp(min=0)
    torch.testing.assert_close(patches.relu_features(filters), naive_pool(patches, responses), **CLOSE)


@given(problems(pooling="mean"))
def test_mean_pooling_equals_adaptive_average_pooling(problem: tuple[Patches, torch.Generator]) -> None:
    patches, random = problem
    filters = normal(2, patches.dim, seed=random)
    pooled = F.adaptive_avg_pool2d(patches.relu_maps(filters), patches.geometry.pool_cells)
    torch.testing.assert_close(patches.relu_features(filters), pooled.flatten(2).transpose(1, 2), **CLOSE)


@given(problems())
def test_relu_maps_equal_conv2d(problem: tuple[Patches, torch.Generator]) -> None:
    patches, random = problem
    filters = normal(2, patches.dim, seed=random)
    weight, bias = (filters[:, :-1], filters[:, -1]) if patches.geometry.bias else (filters, None)
    weight = weight.reshape(2, patches.images.shape[1], *patches.kernel)
    maps = F.conv2d(patches.images, weight, bias, stride=patches.stride, padding=patches.padding).relu()
    torch.testing.assert_close(patches.relu_maps(filters), maps, **CLOSE)


@given(problems())
def test_gated_features_equal_the_naive_loop(problem: tuple[Patches, torch.Generator]) -> None:
    patches, random = problem
    gates = normal(3, patches.dim, seed=random)
    unfolded = patches.unfold()
    expected = [
        naive_pool(patches, unfolded * (unfolded @ gate >= 0).unsqueeze(-1).to(unfolded.dtype)) for gate in gates
    ]
    torch.testing.assert_close(patches.gated_features(gates), torch.stack(expected, 1), **CLOSE)


@settings(max_examples=25)
@given(problems())
def test_relu_features_pass_gradcheck(problem: tuple[Patches, torch.Generator]) -> None:
    patches, random = problem
    filters = normal(2, patches.dim, seed=random)
    # Finite differences don't see a gradient across a kink. Patches of padding alone are exact zeros: no kink there.
    responses = patches.unfold() @ filters.T
    assume(not ((responses.abs() < 1e-4) & (responses != 0)).any())
    assert torch.autograd.gradcheck(patches.relu_features, (filters.requires_grad_(),))


def test_relu_features_in_a_larger_graph() -> None:
    patches, random = fixed_problem()
    filters = normal(4, patches.dim, seed=random).requires_grad_()
    output = normal(4, 4, seed=random).requires_grad_()
    targets = normal(5, seed=random)
    ours = (torch.einsum("ncm,cm->n", patches.relu_features(filters), output) - targets).square().sum()
    gradients = torch.autograd.grad(ours, (filters, output))
    pooled = torch.einsum("nkm,ck->ncm", (patches.unfold() @ filters.T).relu(), patches.pool)
    plain = (torch.einsum("ncm,cm->n", pooled, output) - targets).square().sum()
    for gradient, expected in zip(gradients, torch.autograd.grad(plain, (filters, output)), strict=True):
        torch.testing.assert_close(gradient, expected, **CLOSE)


def test_passes_that_leave_memory_to_each_other_stay_apart() -> None:
    geometry = PatchGeometry(kernel_size=3, padding=1, pooling="mean", pool_cells=2)
    patches = Patches(normal(5, 2, 6, 5), geometry)
    chosen = [normal(count, patches.dim).requires_grad_() for count in (4, 7, 3, 4)]
    pooled = [patches.pool @ (patches.unfold() @ filters.T).relu() for filters in chosen]
    expected = [torch.autograd.grad(v.square().sum(), f)[0] for v, f in zip(pooled, chosen, strict=True)]
    for _ in range(2):
        values = [patches.relu_features(filters).square().sum() for filters in chosen]
        for index in (2, 0, 3, 1, 0, 2):
            (found,) = torch.autograd.grad(values[index], chosen[index], retain_graph=True)
            torch.testing.assert_close(found, expected[index], **CLOSE)


# Adjoint identities.


@given(problems())
def test_fold_is_the_adjoint_of_unfold(problem: tuple[Patches, torch.Generator]) -> None:
    patches, random = problem
    other = normal(patches.n_images, patches.n_patches, patches.dim, seed=random)
    linear = slice(0, patches.dim - int(patches.geometry.bias))
    left = inner(patches.unfold()[..., linear], other[..., linear])
    torch.testing.assert_close(left, inner(patches.images, patches.fold(other)), **CLOSE)


@given(problems(), st.integers(1, 3), st.integers(1, 3))
def test_gated_maps_are_adjoint(problem: tuple[Patches, torch.Generator], n_gates: int, outputs: int) -> None:
    patches, random = problem
    gates = normal(n_gates, patches.dim, seed=random)
    weights = normal(n_gates, patches.n_cells, patches.dim, outputs, seed=random)
    dual = normal(patches.n_images, outputs, seed=random)
    features = patches.gated_features(gates)
    prediction = patches.gated_prediction(gates, weights)
    correlation = patches.gated_correlation(gates, dual)
    assert correlation.is_contiguous()
    torch.testing.assert_close(inner(prediction, dual), inner(weights, correlation), **CLOSE)
    torch.testing.assert_close(prediction, torch.einsum("npcd,pcdo->no", features, weights), **CLOSE)
    torch.testing.assert_close(correlation, torch.einsum("npcd,no->pcdo", features, dual), **CLOSE)


@given(problems())
def test_a_filter_in_its_own_cone_is_a_gated_filter(problem: tuple[Patches, torch.Generator]) -> None:
    patches, random = problem
    filters = normal(2, patches.dim, seed=random)
    gated = torch.einsum("npcd,pd->ncp", patches.gated_features(filters), filters)
    torch.testing.assert_close(patches.relu_features(filters), gated, **CLOSE)


# Pooling weights.


@given(problems())
def test_pool_weights(problem: tuple[Patches, torch.Generator]) -> None:
    patches, _ = problem
    torch.testing.assert_close(patches.pool, naive_weights(patches), rtol=1e-12, atol=1e-14)


# How the work is cut up changes no result.


def everything(patches: Patches) -> list[Tensor]:
    random = seeded(1)
    filters = normal(3, patches.dim, seed=random).to(patches.images.dtype).requires_grad_()
    dual = normal(patches.n_images, 2, seed=random).to(patches.images.dtype)
    weights = normal(3, patches.n_cells, patches.dim, 2, seed=random).to(patches.images.dtype)
    gates = filters.detach()
    features = patches.relu_features(filters)
    return [
        patches.unfold(),
        features.detach(),
        torch.autograd.grad(features.square().sum(), filters)[0],
        patches.relu_maps(gates),
        patches.gated_features(gates),
        patches.gated_correlation(gates, dual),
        patches.gated_prediction(gates, weights),
    ]


@pytest.mark.parametrize("entries", [1, 100, 700])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    whole = everything(fixed_problem()[0])
    monkeypatch.setattr(patches_module, "CHUNK_ENTRIES_CPU", entries)
    patches, _ = fixed_problem()
    for part, expected in zip(everything(patches), whole, strict=True):
        torch.testing.assert_close(part, expected, **CLOSE)


@pytest.mark.parametrize("entries", [1, 1 << 18])
def test_the_cache_changes_nothing(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    whole = everything(fixed_problem()[0])
    monkeypatch.setattr(patches_module, "CACHE_BYTES", 0)
    monkeypatch.setattr(patches_module, "CHUNK_ENTRIES_CPU", entries)
    patches, _ = fixed_problem()
    for part, expected in zip(everything(patches), whole, strict=True):
        torch.testing.assert_close(part, expected, **CLOSE)


def test_patches_are_kept_only_when_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, _ = fixed_problem()
    assert patches.unfold().data_ptr() == patches.unfold().data_ptr()
    monkeypatch.setattr(patches_module, "CACHE_BYTES", 0)
    uncached, _ = fixed_problem()
    first = uncached.unfold()
    assert first.data_ptr() != uncached.unfold().data_ptr()


@pytest.mark.parametrize("width", [0, 1, 10])
def test_chunks_cover_every_image_once_within_their_limit(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    patches, _ = fixed_problem()
    limit = 2 * patches.n_patches * max(width, 1)
    monkeypatch.setattr(patches_module, "CHUNK_ENTRIES_CPU", limit)
    seen = []
    for rows, chunk in patches.chunks(width):
        assert torch.equal(chunk, patches.unfold()[rows])
        assert chunk.shape[0] * patches.n_patches * max(width, 1) <= limit
        seen += range(patches.n_images)[rows]
    assert seen == list(range(patches.n_images))


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_threads_change_nothing(threads: int) -> None:
    patches, _ = fixed_problem()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything(patches)
        torch.set_num_threads(threads)
        together = everything(patches)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for part, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(part, expected, **CLOSE)


def test_no_filters_and_no_gates() -> None:
    patches, _ = fixed_problem()
    none = torch.zeros(0, patches.dim, dtype=torch.float64)
    assert patches.relu_features(none).shape == (5, 4, 0)
    assert patches.relu_maps(none).shape == (5, 0, 7, 5)
    assert patches.gated_features(none).shape == (5, 0, 4, patches.dim)
    prediction = patches.gated_prediction(none, torch.zeros(0, 4, patches.dim, 3, dtype=torch.float64))
    assert torch.equal(prediction, torch.zeros(5, 3, dtype=torch.float64))


# Copies.


def test_astype_and_subset() -> None:
    patches, random = fixed_problem()
    assert patches.astype(torch.float64) is patches
    single = patches.astype(torch.float32)
    filters = normal(3, patches.dim, seed=random)
    assert single.pool.dtype == single.unfold().dtype == torch.float32
    torch.testing.assert_close(
        single.relu_features(filters.float()).double(), patches.relu_features(filters), rtol=1e-5, atol=1e-5
    )
    rows = torch.tensor([3, 0, 3])
    assert torch.equal(patches.subset(rows).unfold(), patches.unfold()[rows])


@given(problems())
def test_take_returns_patches_of_every_geometry(problem: tuple[Patches, torch.Generator]) -> None:
    patches, random = problem
    images = torch.randint(patches.n_images, (7,), generator=random)
    places = torch.randint(patches.n_patches, (7,), generator=random)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(patches_module, "_IMAGES_TAKEN", 2)
        assert torch.equal(patches.take(images, places), patches.unfold()[images, places])


def test_take_returns_single_patches() -> None:
    patches, _ = fixed_problem()
    images, places = torch.tensor([4, 0, 4, 2]), torch.tensor([0, 34, 0, 17])
    assert torch.equal(patches.take(images, places), patches.unfold()[images, places])


def test_geometry_is_a_value() -> None:
    assert PatchGeometry(3, 2, 1) == PatchGeometry((3, 3), (2, 2), (1, 1))
    assert hash(PatchGeometry(3)) == hash(PatchGeometry((3, 3)))


@pytest.mark.parametrize("side", [1, 2, 5])
def test_bilinear_cells_are_a_mean_for_one_cell_and_the_map_for_as_many_as_its_places(side: int) -> None:
    one = PatchGeometry(1, pooling="bilinear").pool_matrix((side, side + 1))
    torch.testing.assert_close(one, PatchGeometry(1, pooling="mean").pool_matrix((side, side + 1)), **CLOSE)
    all_of_them = PatchGeometry(1, pooling="bilinear", pool_cells=side).pool_matrix((side, side))
    torch.testing.assert_close(all_of_them, torch.eye(side**2, dtype=torch.float64), **CLOSE)


# Refusals.


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True, None, (3,), (3, 3, 3), (3, 0), (3, 2.0), (3, True)])
@pytest.mark.parametrize(("name", "least"), [("kernel_size", 1), ("stride", 1), ("padding", 0)])
def test_sizes_are_checked(name: str, least: int, value: object) -> None:
    if name == "padding" and value in (0, (3, 0)) and not isinstance(value, bool):
        value = -1
    message = f"{name} must be an int >= {least} or a pair of them; got {value!r}."
    with pytest.raises(InputError, match=re.escape(message)):
        PatchGeometry(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["median", "Sum", None, 1])
def test_pooling_is_checked(value: object) -> None:
    message = f'pooling must be "mean", "sum", "bilinear" or "max"; got {value!r}.'
    with pytest.raises(InputError, match=re.escape(message)):
        PatchGeometry(pooling=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -2, 1.0, "2", True, (2, 2), None])
def test_pool_cells_are_checked(value: object) -> None:
    with pytest.raises(InputError, match=re.escape(f"pool_cells must be an int >= 1; got {value!r}.")):
        PatchGeometry(pool_cells=value)  # type: ignore[arg-type]


def test_a_kernel_larger_than_the_padded_image_is_refused() -> None:
    message = (
        "kernel_size (3, 7) is larger than the padded image: images are (4, 4), padding is (1, 1). "
        "Use a smaller kernel or more padding."
    )
    with pytest.raises(InputError, match=re.escape(message)):
        Patches(torch.ones(1, 1, 4, 4), PatchGeometry(kernel_size=(3, 7), padding=1))


def test_more_cells_than_the_maps_have_are_refused() -> None:
    message = "pool_cells=3 needs feature maps of at least that side; they are 4 x 2. Use fewer cells or more padding."
    with pytest.raises(InputError, match=re.escape(message)):
        Patches(torch.ones(1, 1, 6, 4), PatchGeometry(kernel_size=3, pool_cells=3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("geometry", [
    PatchGeometry(3, 1, 1, "mean", 2, bias=True), PatchGeometry((2, 3), (2, 1), (0, 1), "sum", 2),
    PatchGeometry(3, 1, 0, "mean", 3, bias=True), PatchGeometry(2, 1, 0, "sum", 1),
    PatchGeometry(3, 1, 1, "bilinear", 2, bias=True),
])  # fmt: skip
def test_images_convolved_one_at_a_time(
    geometry: PatchGeometry, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers as in chunks of unfolded patches, to rounding, also from images stored in float16."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 2, 6, 6, generator=generator).half()
    patches = Patches(images, geometry, dtype)
    filters = torch.randn(7, patches.dim, generator=generator).to(dtype)
    assert not patches.convolves(len(filters))
    chunked = patches.relu_features(filters)
    monkeypatch.setattr(patches_module, "CONVOLUTION_PRODUCTS", 1)
    assert patches.convolves(len(filters))
    found = patches.relu_features(filters)
    assert found.dtype == dtype and found.shape == chunked.shape
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, chunked, rtol=tolerance, atol=tolerance)
    whole = Patches(images.to(dtype), geometry).relu_features(filters)
    torch.testing.assert_close(found, whole, rtol=tolerance, atol=tolerance)
    part = patches.subset(slice(1, 4))
    torch.testing.assert_close(part.relu_features(filters), found[1:4], rtol=tolerance, atol=tolerance)
    # Two filters at a time, and the last one alone.
    monkeypatch.setattr(patches_module, "_POOLED_ENTRIES", 2 * patches.n_patches)
    torch.testing.assert_close(patches.relu_features(filters), found, rtol=tolerance, atol=tolerance)
    assert patches.relu_features(filters[:0]).shape == (5, patches.n_cells, 0)


def test_a_slice_of_patches_keeps_none_of_its_own() -> None:
    """Parts of many images would otherwise be unfolded as a whole; what is kept already is shared."""
    patches = Patches(torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)), PatchGeometry(2))
    before = patches.subset(slice(2, 5))
    assert before._whole() is None
    whole = patches.unfold()
    after = patches.subset(slice(2, 5))
    assert after.unfold().data_ptr() == whole[2:5].data_ptr()
    torch.testing.assert_close(before.unfold(), after.unfold(), rtol=0, atol=0)
    assert before.images.data_ptr() == patches.images[2:].data_ptr()


# A pooling of one's own.


class CentrePooling(Pooling):
    """A weighted mean: weights fall with the distance from the cell's centre, to half of it at its border."""

    name = "centre"
    averages = True

    def weights(
        self,
        map_shape: tuple[int, int],
        cells: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        axes = []
        for side in map_shape:
            axis = torch.zeros(cells, side, dtype=torch.float64)
            for cell, (start, stop) in enumerate(cell_bounds(side, cells)):
                places = torch.arange(start, stop, dtype=torch.float64)
                axis[cell, start:stop] = 1 - (places - (start + stop - 1) / 2).abs() / (stop - start)
            axes.append(axis / axis.sum(dim=1, keepdim=True))
        return torch.kron(*axes).to(device, dtype)


class LargestPooling(Pooling):
    """The largest response of a cell, which is no sum of them."""

    name = "largest"
    averages = False

    def weights(
        self,
        map_shape: tuple[int, int],
        cells: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        raise InputError('pooling="largest" isn\'t linear, so that this program can\'t have it. Use "sum" or "mean".')


@pytest.fixture
def centre(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POOLINGS, CentrePooling.name, CentrePooling)


@pytest.mark.usefixtures("centre")
@pytest.mark.parametrize("activation", ["relu", "gated_relu"])
@pytest.mark.parametrize("penalty", ["group", "dense"])
@pytest.mark.parametrize(
    "gates", [4, PricedGates(starts=16, ascent_steps=10, initial_filters=8, max_rounds=2, gap=0.1, prove_up_to=0)]
)
@pytest.mark.parametrize("sides", [(6, 6), (7, 5)])  # cells of one size, and cells that overlap
@pytest.mark.parametrize("pooling", ["centre", "bilinear"])
def test_a_new_pooling_goes_all_the_way(
    pooling: str, sides: tuple[int, int], gates: object, penalty: str, activation: str, tmp_path: Path
) -> None:
    random = seeded()
    images, targets = normal(8, 1, *sides, seed=random), normal(8, 1, seed=random)
    block = ConvexConvBlock(
        kernel_size=2, pooling=pooling, gates=gates, penalty=penalty, activation=activation, reg=0.5, solver="auto",
        pricing=PricingOptions(starts=1) if gates == 4 else None,
    )  # fmt: skip
    block.fit(images, targets)
    assert block.result_.status == "optimal" and block.result_.relative_gap <= 1e-6
    predicted = torch.as_tensor(block.predict(images))
    assert predicted.abs().max() > 0.01
    module = block.to_torch()
    torch.testing.assert_close(module(images).detach(), predicted, rtol=1e-9, atol=1e-9)
    block.save(tmp_path)
    loaded = ConvexConvBlock.load(tmp_path)
    assert torch.equal(torch.as_tensor(loaded.predict(images)), predicted)
    assert torch.equal(loaded.to_torch()(images), module(images))
    if activation == "relu":
        objective = nonconvex_objective(module, images, targets, block.reg_)
        assert block.result_.objective == pytest.approx(objective, rel=1e-9)


@pytest.mark.usefixtures("centre")
@pytest.mark.parametrize("sides", [(6, 6), (7, 5)])
def test_a_new_pooling_without_a_module_of_its_own(sides: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    random = seeded()
    patches = Patches(normal(3, 2, *sides, seed=random), PatchGeometry(3, 1, 1, "centre", 2))
    torch.testing.assert_close(patches.pool.sum(dim=1), torch.ones(4, dtype=torch.float64))
    filters = normal(5, patches.dim, seed=random)
    maps = patches.relu_maps(filters)
    pooled = CentrePooling().module(patches.map_shape, 2, maps)(maps).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches.relu_features(filters), pooled, **CLOSE)
    monkeypatch.setattr(patches_module, "CONVOLUTION_PRODUCTS", 1)
    assert patches.convolves(len(filters))
    torch.testing.assert_close(patches.relu_features(filters), pooled, **CLOSE)


def test_a_pooling_that_is_not_linear_may_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POOLINGS, LargestPooling.name, LargestPooling)
    geometry = PatchGeometry(pooling="largest")
    with pytest.raises(InputError, match="isn't linear"):
        Patches(torch.ones(1, 1, 4, 4), geometry)


@pytest.mark.usefixtures("centre")
def test_an_unknown_pooling_is_told_all_names() -> None:
    message = """must be "mean", "sum", "bilinear", "max" or "centre"; got 'median'."""
    with pytest.raises(InputError, match=re.escape(message)):
        PatchGeometry(pooling="median")
