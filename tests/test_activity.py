"""A pattern is decided once: the same for every way of computing it, and by everybody who asks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from eq2 import eq2_block
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cvxcnn import nonconvex_objective
from cvxcnn.activations.gated_relu import GatedConv
from cvxcnn.activations.neurons import convolution
from cvxcnn.arrangements import gates_of, patterns
from cvxcnn.errors import InputError
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.patches import patches as patches_module
from cvxcnn.patches.activity import active, on_hyperplane, tie_width
from cvxcnn.pricing.options import PricingOptions
from cvxcnn.program.cones import Cones

NO_SEARCH = PricingOptions(starts=0)


def near_hyperplanes(seed: int, dim: int, count: int = 60, gates: int = 7) -> tuple[Tensor, Tensor]:
    """Return patches of which most lie on the hyperplane of some gate up to rounding, and the gates."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(gates, dim, generator=generator, dtype=torch.float64)
    rows = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    for row in range(count - count // 4):
        unit = F.normalize(vectors[row % gates], dim=0)
        for _ in range(2):
            rows[row] -= (rows[row] @ unit) * unit
    rows[-1] = 0
    return rows, vectors


@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(-12, 12), st.integers(-12, 12))
def test_a_pattern_does_not_depend_on_scale_order_shape_or_neighbours(
    seed: int, dim: int, of_x: int, of_g: int
) -> None:
    rows, vectors = near_hyperplanes(seed, dim)
    found = active(rows, vectors)
    assert torch.equal(active(rows * 10.0**of_x, vectors * 10.0**of_g), found)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(active(rows[order], vectors), found[order])
    assert torch.equal(active(rows.view(4, 15, dim), vectors), found.view(4, 15, -1))
    one_by_one = torch.cat([active(row[None], vectors) for row in rows])
    column_by_column = torch.cat([active(rows, vector[None]) for vector in vectors], dim=1)
    assert torch.equal(one_by_one, found) and torch.equal(column_by_column, found)
    assert torch.equal(active(rows.T.contiguous().T, vectors.T.contiguous().T), found)


@given(st.integers(0, 10**6), st.integers(2, 30))
def test_patches_on_a_hyperplane_are_active_on_both_sides(seed: int, dim: int) -> None:
    rows, vectors = near_hyperplanes(seed, dim)
    tied = torch.arange(len(rows) - len(rows) // 4)
    for sign in (1.0, -1.0):
        assert active(rows, sign * vectors)[tied, tied % len(vectors)].all()
    assert on_hyperplane(rows, vectors)[tied, tied % len(vectors)].all()
    assert on_hyperplane(rows, vectors)[-1].all()  # the zero patch is on every one
    # Clearly beside it, each patch is on one side only: a thousand tie widths are enough.
    beside = F.normalize(vectors, dim=1) * rows.norm(dim=1).max() * 1e3 * tie_width(dim)
    moved = rows[tied] - beside[tied % len(vectors)]
    assert not active(moved, vectors)[tied, tied % len(vectors)].any()
    assert active(moved, -vectors)[tied, tied % len(vectors)].all()


@given(st.integers(0, 10**6), st.integers(2, 20))
def test_float32_has_the_pattern_of_the_same_numbers_in_float64(seed: int, dim: int) -> None:
    rows, vectors = (values.float() for values in near_hyperplanes(seed, dim))
    assert torch.equal(active(rows, vectors), active(rows.double(), vectors.double()))
    # Small whole numbers are on a hyperplane exactly, in every dtype.
    generator = torch.Generator().manual_seed(seed)
    whole = [torch.randint(-3, 4, (count, dim), generator=generator).double() for count in (40, 9)]
    wanted = whole[0] @ whole[1].T >= 0
    assert torch.equal(active(*whole), wanted)
    assert torch.equal(active(whole[0].float(), whole[1].float()), wanted)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("entries", [40, 1 << 18])
def test_everybody_reads_the_same_pattern(bias: bool, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches_module, "CHUNK_ENTRIES_CPU", entries)
    geometry = PatchGeometry((2, 2), padding=1, pooling="mean", pool_cells=2, bias=bias)
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    patches = Patches(images, geometry)
    flat = patches.unfold().flatten(0, 1)
    # Gates on the hyperplanes of d - 1 patches each, as filters found by optimisation are.
    chosen = [flat[torch.randperm(len(flat), generator=generator)[: patches.dim - 1]] for _ in range(12)]
    gates = torch.stack([torch.linalg.svd(rows)[2][-1] for rows in chosen])
    found = active(flat, gates)
    assert on_hyperplane(flat, gates).any(dim=0).all()
    assert torch.equal(patterns(patches, gates).flatten(1).T, found)
    cones = Cones(patches, gates)
    for gate in range(len(gates)):
        own = active(torch.from_numpy(cones.rows), gates[gate : gate + 1])[:, 0].numpy()
        assert np.array_equal(cones.signs(gate) > 0, own)
        lookup = {tuple(row): bool(value) for row, value in zip(flat.tolist(), found[:, gate].tolist(), strict=True)}
        assert [lookup[tuple(row)] for row in cones.rows.tolist()] == own.tolist()
    gated = found.view(6, -1, len(gates)).to(flat)
    pooled = torch.einsum("ck,nkp,nkd->npcd", patches.pool, gated, patches.unfold())
    torch.testing.assert_close(patches.gated_features(gates), pooled)
    dual = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(patches.gated_correlation(gates, dual), torch.einsum("npcd,no->pcdo", pooled, dual))
    weights = torch.randn(len(gates), 4, patches.dim, 2, generator=generator, dtype=torch.float64)
    predicted = torch.einsum("npcd,pcdo->no", pooled, weights)
    torch.testing.assert_close(patches.gated_prediction(gates, weights), predicted)
    module = GatedConv(convolution(gates, geometry, 1), convolution(gates, geometry, 1))
    with torch.no_grad():
        assert torch.equal(module._opened(images), found.view(6, -1, len(gates)))


def refitted(seed: int) -> None:
    """Refit a block on the filters that it found, which lie on hyperplanes of patches, as a ReLU and as a gated one."""
    rng = np.random.default_rng(seed)
    images, targets = rng.normal(size=(25, 6, 6)), rng.choice([-1.0, 1.0], size=25)
    settings = {"kernel_size": (3, 2)[seed % 2], "pooling": "mean", "bias": seed % 4 > 1, "pricing": NO_SEARCH}
    first = eq2_block(gates=20, **settings)
    first.set_params(reg=0.05 * first.reg_max(images, targets)).fit(images, targets)
    gates = gates_of(first.to_torch())
    again = eq2_block(gates=gates, reg=first.reg, **settings).fit(images, targets)
    value = nonconvex_objective(again.to_torch(), images, targets, again.reg)
    assert again.result_.objective == pytest.approx(value, rel=1e-9)
    assert again.result_.dual_bound <= value
    gated = eq2_block(gates=gates, reg=first.reg, activation="gated_relu", **settings).fit(images, targets)
    inputs = torch.from_numpy(images[:, None])
    with torch.no_grad():
        np.testing.assert_allclose(gated.to_torch()(inputs).numpy()[:, 0], gated.predict(images), atol=1e-9)
        try:
            decomposed = gated.decompose(images)
        except InputError as refusal:
            assert "lies on the hyperplane of a patch" in str(refusal)
        else:
            np.testing.assert_allclose(decomposed(inputs).numpy()[:, 0], gated.predict(images), atol=1e-6)


@pytest.mark.parametrize("seed", [2, 20, 31])
def test_gates_of_a_trained_block_give_eq1_of_the_module(seed: int) -> None:
    refitted(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 40, 10))
def test_gates_of_forty_trained_blocks_give_eq1_of_the_modules(first: int) -> None:
    for seed in range(first, first + 10):
        refitted(seed)
