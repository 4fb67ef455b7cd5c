"""Gates and patterns, against exact counts, exact integer arithmetic and naive code."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from problems import noise_patches, seeded
from sklearn.base import clone
from torch import nn

from cvxcnn.arrangements import (
    EnumeratedGates,
    GateSampler,
    GaussianGates,
    PatchGates,
    arrangement_count,
    base,
    data_patches,
    distinct,
    enumerate_gates,
    enumeration,
    gates_of,
    patterns,
    resolve,
    whitening,
)
from cvxcnn.errors import InputError
from cvxcnn.patches import Patches, PatchGeometry


def rows_as_patches(rows, bias=False, dtype=torch.float64):
    """One image a row, one patch an image."""
    rows = torch.as_tensor(np.asarray(rows), dtype=dtype)
    return Patches(rows[:, None, None, :], PatchGeometry(kernel_size=(1, rows.shape[1]), bias=bias))


random_patches = partial(noise_patches, n=6, side=5, channels=2)


def as_set(active):
    return {tuple(row.tolist()) for row in active.flatten(1)}


# Patterns


def test_patterns_by_hand():
    patches = rows_as_patches([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]])
    active = patterns(patches, torch.tensor([[1.0, 0.0], [-1.0, -2.0], [0.0, 0.0]]))
    assert active.dtype == torch.bool
    assert active[:, :, 0].int().tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]  # zero counts as active


def test_patterns_match_the_unfolded_patches_across_chunks(monkeypatch):
    patches = random_patches(bias=True, padding=1)
    gates = torch.randn(7, patches.dim, generator=seeded(), dtype=torch.float64)
    expected = torch.einsum("nkd,pd->pnk", patches.unfold(), gates) >= 0
    monkeypatch.setattr("cvxcnn.patches.patches.CHUNK_ENTRIES_CPU", 200)
    assert torch.equal(patterns(patches, gates), expected)


# Distinct gates


def naive_distinct(patches, vectors):
    seen, kept, duplicates, zeros = set(), [], 0, 0
    nonzero = (patches.unfold() != 0).any(-1)
    for i, active in enumerate(patterns(patches, vectors)):
        key = tuple(active[nonzero].tolist())
        if not any(key):
            zeros += 1
        elif key in seen:
            duplicates += 1
        else:
            seen.add(key)
            kept.append(i)
    return vectors[kept], duplicates, zeros


def test_distinct_by_hand():
    patches = rows_as_patches([[1.0, 0.0], [0.0, 1.0]])
    vectors = [[1, 1], [-1, -1], [2, 3], [1, -1], [-2, -1], [1, -3], [-1, 1]]
    gates = distinct(patches, torch.tensor(vectors, dtype=torch.float64))
    assert gates.vectors.tolist() == [[1, 1], [1, -1], [-1, 1]]
    assert (len(gates), gates.n_duplicates, gates.n_zero, gates.complete) == (3, 2, 2, False)


def test_zero_patches_do_not_make_a_gate_active():
    gates = distinct(rows_as_patches([[0.0], [1.0]]), torch.tensor([[-1.0], [1.0]], dtype=torch.float64))
    assert gates.vectors.tolist() == [[1.0]]
    assert gates.n_zero == 1


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 6),
    side=st.integers(2, 4),
    count=st.integers(1, 60),
    entries=st.integers(1, 500),
    block=st.integers(1, 40),
    bias=st.booleans(),
    seed=st.integers(0, 999),
)
def test_distinct_in_chunks_equals_naive(n, side, count, entries, block, bias, seed):
    generator = seeded(seed)
    # Small integers: ties, zero patches and exact zeros of x . g are common.
    images = torch.randint(-1, 2, (n, 1, side, side), generator=generator).double()
    patches = Patches(images, PatchGeometry(kernel_size=2, bias=bias))
    vectors = torch.randint(-1, 2, (count, patches.dim), generator=generator).double()
    expected, duplicates, zeros = naive_distinct(patches, vectors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cvxcnn.patches.patches.CHUNK_ENTRIES_CPU", entries)
        patch.setattr(base, "RESPONSES_AT_ONCE", block)
        gates = distinct(patches, vectors)
    assert torch.equal(gates.vectors, expected)
    assert (gates.n_duplicates, gates.n_zero) == (duplicates, zeros)


def test_distinct_tells_patterns_that_differ_in_one_patch():
    rows = torch.randn(300, 2, generator=seeded(), dtype=torch.float64)
    order = torch.atan2(rows[:, 1], rows[:, 0]).sort().values
    middles = (order[1:] + order[:-1]) / 2 + math.pi / 2  # neighbours differ in one patch
    gates = torch.stack([middles.cos(), middles.sin()], 1)
    assert distinct(rows_as_patches(rows), gates).n_duplicates == 0


# Samplers


SAMPLERS = [GaussianGates(20), PatchGates(20), PatchGates(20, whiten=False, quantile=0.5), EnumeratedGates()]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_samplers_are_values(sampler):
    for same in (clone(sampler, safe=False), copy.deepcopy(sampler), replace(sampler), eval(repr(sampler))):
        assert same == sampler
        assert hash(same) == hash(sampler)
    with pytest.raises(AttributeError):
        sampler.count = 3


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_samplers_keep_their_promises(sampler, dtype, bias):
    patches = random_patches(n=5, channels=1, side=3, kernel_size=(1, 2), bias=bias, dtype=dtype)
    drawn = sampler.sample(patches, 7, seeded(3))
    assert drawn.shape == (7, patches.dim)
    assert drawn.dtype == dtype
    assert torch.isfinite(drawn).all()
    assert torch.equal(drawn, sampler.sample(patches, 7, seeded(3)))
    assert not torch.equal(drawn, sampler.sample(patches, 7, seeded(4)))
    gates = resolve(sampler, patches, 5)
    assert torch.equal(gates.vectors, resolve(sampler, patches, 5).vectors)
    assert gates.vectors.dtype == dtype
    active = patterns(patches, gates.vectors)
    assert len(as_set(active)) == len(gates)
    assert active.flatten(1).any(1).all()


def test_gaussian_gates_are_standard_normal_and_the_same_in_every_dtype():
    patches = random_patches()
    gates = GaussianGates().sample(patches, 20_000, seeded())
    assert torch.allclose(gates.mean(0), torch.zeros(patches.dim, dtype=torch.float64), atol=0.03)
    assert torch.allclose(gates.T.cov(), torch.eye(patches.dim, dtype=torch.float64), atol=0.05)
    single = GaussianGates().sample(patches.astype(torch.float32), 20_000, seeded())
    assert torch.equal(gates.float(), single)


def test_whitened_patches_have_identity_covariance():
    mixing = torch.randn(9, 9, generator=seeded(1), dtype=torch.float64)
    rows = torch.randn(500, 9, generator=seeded(2), dtype=torch.float64) @ mixing + 3
    mean, root = whitening(rows, eps=1e-13)
    white = (rows - mean) @ root
    assert torch.allclose(white.T @ white / 500, torch.eye(9, dtype=torch.float64), atol=1e-7)
    assert torch.allclose(root, root.T)  # ZCA: the symmetric root, whose patches look like patches


def test_whitening_is_regularised_as_documented():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)  # variances 1 and 0, mean 1/2
    _, root = whitening(rows, eps=0.5)
    expected = torch.tensor([1.25, 0.25], dtype=torch.float64).rsqrt().diag()
    assert torch.allclose(root, expected)


def test_patch_gates_are_inner_products_of_whitened_patches():
    patches = random_patches(n=8, channels=1)
    rows = patches.unfold().flatten(0, 1)
    mean, root = whitening(rows)
    white = (rows - mean) @ root
    gates = PatchGates().sample(patches, 10, seeded())
    inner = gates @ (rows - mean).T
    products = white @ white.T
    products /= (white @ root).norm(dim=1, keepdim=True)  # gates have unit length
    matches = (inner[:, None] - products[None]).abs().amax(-1) < 1e-10
    assert (matches.sum(1) == 1).all()


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_thresholds_leave_the_quantile_inactive(quantile, dtype):
    patches = random_patches(n=10, bias=True, dtype=dtype)
    total = patches.n_images * patches.n_patches
    gates = PatchGates(quantile=quantile).sample(patches, 12, seeded())
    inactive = (~patterns(patches, gates)).flatten(1).sum(1)
    assert inactive.tolist() == [math.ceil(quantile * total)] * 12


def test_thresholds_lie_strictly_between_tied_responses():
    # Three kinds of patches only: each quantile is tied with many others, yet no patch lies on the hyperplane.
    images = torch.zeros(4, 1, 1, 6, dtype=torch.float64)
    images[0] = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    patches = Patches(images, PatchGeometry(kernel_size=(1, 2), bias=True))
    for quantile in (0.01, 0.5, 0.99):
        gates = PatchGates(quantile=quantile).sample(patches, 8, seeded())
        assert (patches.unfold() @ gates.T).abs().min() > 1e-6
        assert patterns(patches, gates).flatten(1).any(1).all()
        assert not patterns(patches, gates).flatten(1).all(1).any()


def test_patch_gates_without_bias_have_no_threshold():
    assert PatchGates().sample(random_patches(), 3, seeded()).shape == (3, 18)


def test_constant_patches_are_not_drawn():
    images = torch.full((3, 1, 8, 8), 5.0, dtype=torch.float64)
    images[0, 0, 0, 0] = 6.0  # one patch in 108 varies
    patches = Patches(images, PatchGeometry(kernel_size=3))
    gates = PatchGates(whiten=False).sample(patches, 5, seeded())
    rows = patches.unfold().flatten(0, 1)
    expected = rows[0] - rows.mean(0)
    assert torch.allclose(gates, (expected / expected.norm()).expand(5, -1))


def test_patches_of_one_entry_can_be_drawn():
    images = torch.tensor([0.0, 0.0, 1.0, 4.0], dtype=torch.float64).view(1, 1, 1, 4)
    patches = Patches(images, PatchGeometry(kernel_size=1, bias=True))
    gates = resolve(PatchGates(quantile=0.75), patches)
    # Of g = 1, three patches are inactive; of g = -1, the two equal ones share the largest response, and stay active.
    assert as_set(patterns(patches, gates.vectors)) == {(False, False, False, True), (True, True, False, False)}


@pytest.mark.parametrize("bias", [False, True])
def test_patch_gates_of_large_sets_use_a_random_pool(monkeypatch, bias):
    monkeypatch.setattr(data_patches, "POOL_PATCHES", 400)
    patches = random_patches(n=300, channels=1, bias=bias)
    pool = data_patches._pool(patches, seeded())
    assert pool.shape == (400, patches.dim)
    everything = as_set(patches.unfold().flatten(0, 1)[:, None])
    drawn = as_set(pool[:, None])
    assert drawn <= everything
    assert len(drawn) > 250  # of 400 draws, few repeat
    gates = PatchGates(quantile=0.7).sample(patches, 20, seeded())
    if bias:
        share = patterns(patches, gates).double().mean((1, 2))
        assert torch.allclose(share, torch.full_like(share, 0.3), atol=0.1)


def test_the_pool_of_few_large_images_takes_more_from_each(monkeypatch):
    monkeypatch.setattr(data_patches, "POOL_PATCHES", 50)
    patches = random_patches(n=2, channels=1, side=12)
    assert data_patches._pool(patches, seeded()).shape == (50, 9)


@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
def test_constant_images_are_refused(value, bias):
    patches = Patches(torch.full((2, 1, 4, 4), value), PatchGeometry(kernel_size=2, bias=bias))
    with pytest.raises(InputError, match=r"none of 18 patches varies.*not constant.*Gaussian"):
        resolve(PatchGates(), patches)


def test_equal_patches_are_refused():
    patches = rows_as_patches([[0.1, 0.2, 0.3]] * 7)
    with pytest.raises(InputError, match=r"all 7 patches are equal"):
        resolve(PatchGates(), patches)


# Filters of a module


def test_gates_of_a_module_give_its_responses():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 4, kernel_size=(3, 2), padding=1).double()
    patches = random_patches(kernel_size=(3, 2), padding=1, bias=True)
    gates = gates_of(nn.Sequential(nn.Identity(), conv, nn.ReLU()))
    assert torch.allclose(patches.relu_maps(gates), conv(patches.images).relu())
    gates.zero_()
    assert conv.weight.abs().sum() > 0
    assert not gates.requires_grad


def test_gates_of_a_module_without_bias():
    assert gates_of(nn.Conv2d(2, 4, kernel_size=3, bias=False)).shape == (4, 18)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(2, 2), r"exactly one nn.Conv2d, but the module Linear has 0"),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)), r"has 2 \(0, 1\). Pass the one that you mean"),
        (nn.Conv2d(2, 2, 3, groups=2), r"groups=1 and dilation=1.*got groups=2, dilation=\(1, 1\)"),
        (nn.Conv2d(2, 2, 3, dilation=2), r"got groups=1, dilation=\(2, 2\)"),
        (torch.ones(3, 3), r"takes a torch.nn.Module; got Tensor"),
    ],
)
def test_gates_of_refuses(module, message):
    with pytest.raises(InputError, match=message):
        gates_of(module)


# Resolution


def test_a_number_is_drawn_from_a_gaussian():
    patches = random_patches()
    gates = resolve(30, patches, 4)
    assert torch.equal(gates.vectors, GaussianGates().sample(patches, 30, seeded(4)))
    assert torch.equal(gates.vectors, resolve(np.int64(30), patches, np.int64(4)).vectors)
    assert torch.equal(gates.vectors, resolve(GaussianGates(30), patches, 4).vectors)
    assert not torch.equal(gates.vectors, resolve(30, patches, 5).vectors)


def test_duplicates_are_drawn_again_until_the_number_is_reached():
    patches = rows_as_patches(np.random.default_rng(0).standard_normal((12, 2)))  # 24 patterns
    gates = resolve(16, patches)
    assert len(gates) == 16
    assert len(as_set(patterns(patches, gates.vectors))) == 16
    # What was dropped counts up to the last gate that was kept, no further.
    generator, drawn = seeded(0), []
    while True:
        drawn.append(GaussianGates().sample(patches, 16, generator))
        expected, duplicates, zeros = naive_distinct(patches, torch.cat(drawn))
        if len(expected) >= 16:
            break
    assert torch.equal(gates.vectors, expected[:16])
    last = (torch.cat(drawn) == expected[15]).all(1).nonzero().item()
    assert gates.n_duplicates + gates.n_zero == last + 1 - 16
    assert 0 < gates.n_duplicates <= duplicates
    assert gates.n_zero <= zeros


def test_fewer_gates_where_there_are_no_more_patterns():
    patches = rows_as_patches([[1.0, 0.0], [0.0, 1.0]])
    gates = resolve(50, patches)
    assert len(gates) == 3
    assert gates.n_zero > 0
    assert gates.n_duplicates > 40
    assert not gates.complete


def test_a_sampler_that_repeats_itself_is_stopped():
    calls = []

    class Stubborn:
        count = 3

        def sample(self, patches, count, generator):
            calls.append(count)
            return torch.ones(count, patches.dim, dtype=torch.float64)

    gates = resolve(Stubborn(), rows_as_patches([[1.0], [2.0]]))
    assert (len(gates), gates.n_duplicates, calls) == (1, 5, [3, 3])


def test_a_sampler_of_the_users_own():
    @dataclass(frozen=True)
    class AxisGates(GateSampler):
        count: int = 2

        def sample(self, patches, count, generator):
            axes = torch.randint(patches.dim, (count,), generator=generator)
            return torch.eye(patches.dim)[axes]

    gates = resolve(AxisGates(2), rows_as_patches([[1.0, -1.0], [-1.0, 1.0]]))
    assert gates.vectors.dtype == torch.float64
    assert sorted(gates.vectors.tolist()) == [[0, 1], [1, 0]]


@pytest.mark.parametrize("convert", [np.array, torch.tensor, list, lambda rows: np.array(rows, dtype=np.int32)])
def test_given_vectors_are_kept_in_order(convert):
    gates = resolve(convert([[1, 1], [-1, -1], [2, 2], [1, -1]]), rows_as_patches([[1.0, 0.0], [0.0, 1.0]]))
    assert gates.vectors.tolist() == [[1.0, 1.0], [1.0, -1.0]]
    assert (gates.n_duplicates, gates.n_zero) == (1, 1)
    assert gates.vectors.dtype == torch.float64


def test_given_vectors_may_be_a_modules_parameters():
    conv = nn.Conv2d(1, 3, 2, bias=False)
    gates = resolve(conv.weight.flatten(1), random_patches(channels=1, kernel_size=2))
    assert not gates.vectors.requires_grad


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (0, r"gates must be an int >= 1, the number of gates; got 0"),
        (-3, r"got -3"),
        (True, r"got True"),
        (2.5, r"number of gates \(an int >= 1\), an array.*sampler.*got 2.5"),
        (None, r"got None"),
        ("gaussian", r"or a sampler such as GaussianGates\(100\).*got 'gaussian'"),
        ("priced", r"\"priced\" can't be resolved from the patches alone.*while the program is solved"),
        (GaussianGates, r"got the class GaussianGates; pass an instance, GaussianGates\(...\)"),
        (nn.Conv2d(1, 1, 2), r"got a torch module; pass gates_of\(module\)"),
        (np.ones(4), r"non-empty \(P, d\) array.*got shape \(4,\).*g\[None, :\]"),
        (np.ones((0, 4)), r"got shape \(0, 4\)"),
        ([[1.0], [1.0, 2.0]], r"not numeric and rectangular"),
        ([["a", "b"]], r"not numeric and rectangular"),
        (np.ones((2, 5)), r"5 entries each but the patches have 4 \(.*= 1 \* 2 \* 2, without an entry for the bias"),
        (np.array([[1, 2, 3, np.nan]]), r"must be finite real numbers"),
        (torch.tensor([[1.0, 2, 3, math.inf]]), r"must be finite real numbers"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_resolve_refuses(gates, message):
    with pytest.raises(InputError, match=message):
        resolve(gates, random_patches(channels=1, kernel_size=2))


def test_a_missing_bias_entry_is_named():
    with pytest.raises(InputError, match=r"4 entries each but the patches have 5 .* 2 \* 2 \+ 1 for the bias, .*last"):
        resolve(np.ones((2, 4)), random_patches(channels=1, kernel_size=2, bias=True))


def test_complex_gates_are_refused():
    with pytest.raises(InputError, match="finite real numbers"), pytest.warns(UserWarning, match="imaginary"):
        resolve(torch.ones(1, 2, dtype=torch.complex128), rows_as_patches([[1.0, 0.0]]))


@pytest.mark.parametrize("seed", [True, 1.5, "0", -1, 2**63, None])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(InputError, match=r"seed must be an int in \[0, 2\^63\)"):
        resolve(3, random_patches(), seed)


@pytest.mark.parametrize("gates", [10, [[-1.0, -1.0]]])
def test_gates_active_nowhere_are_refused(gates):
    rows = [[0.0, 0.0]] if isinstance(gates, int) else [[1.0, 0.0], [0.0, 1.0]]
    with pytest.raises(InputError, match=r"no gate is active on any patch.*not all zero.*negatives"):
        resolve(gates, rows_as_patches(rows))


def test_bad_samplers_are_refused():
    class Sampler:
        def sample(self, patches, count, generator):
            return torch.ones(count + 1, patches.dim)

    patches = random_patches()
    with pytest.raises(InputError, match=r"Sampler.count must be an int >= 1.*got None"):
        resolve(Sampler(), patches)
    Sampler.count = 2
    with pytest.raises(InputError, match="returned 3 gates where 2 were asked for"):
        resolve(Sampler(), patches)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianGates(0), r"count must be an int >= 1.*got 0"),
        (lambda: GaussianGates(2.0), r"count must be an int >= 1.*got 2.0"),
        (lambda: PatchGates(False), r"count must be an int >= 1.*got False"),
        (lambda: PatchGates(whiten=1), r"whiten must be True or False; got 1"),
        (lambda: PatchGates(quantile=1), r"quantile must be a number strictly between 0 and 1; got 1"),
        (lambda: PatchGates(quantile="a"), r"quantile must be .* got 'a'"),
        (lambda: PatchGates(eps=0), r"eps must be a finite number > 0; got 0"),
        (lambda: PatchGates(eps=math.nan), r"eps must be .* got nan"),
    ],
)
def test_bad_sampler_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


# Enumeration


def check_enumeration(patches, expected, n_samples=3000):
    """Check a complete enumeration: its size, strict margins, distinct patterns, and that sampling adds none."""
    gates = enumerate_gates(patches)
    assert gates.complete
    assert len(gates) == expected
    rows = patches.unfold().flatten(0, 1).double()
    rows = rows[(rows != 0).any(1)]
    rows = rows / rows.abs().amax(1, keepdim=True)
    responses = gates.vectors.double() @ rows.T
    margins = responses / rows.norm(dim=1) / gates.vectors.double().norm(dim=1, keepdim=True)
    assert margins.abs().min() > 1e-13
    found = as_set(responses >= 0)
    assert len(found) == len(gates)
    generator = np.random.default_rng(0)
    samples = generator.standard_normal((n_samples, patches.dim))
    # Near hyperplanes, and near where two of them meet, is where small cells are.
    columns = rows.numpy()
    for size in range(1, min(patches.dim, 3)):
        normals = np.linalg.qr(columns[generator.integers(len(columns), size=(n_samples, size))].swapaxes(1, 2))[0]
        near = generator.standard_normal((n_samples, patches.dim, 1))
        near = near - normals @ (normals.swapaxes(1, 2) @ near)
        samples = np.vstack([samples, near[..., 0] + 1e-4 * generator.standard_normal((n_samples, patches.dim))])
    sampled = as_set(torch.as_tensor(samples @ columns.T >= 0))
    assert sampled <= found
    return gates


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 9), dim=st.integers(1, 3), seed=st.integers(0, 10_000))
def test_general_position_has_covers_count(n, dim, seed):
    rows = np.random.default_rng(seed).standard_normal((n, dim))
    check_enumeration(rows_as_patches(rows), arrangement_count(1 if dim == 1 else n, dim), n_samples=300)


def test_general_position_in_chunks(monkeypatch):
    patches = rows_as_patches(np.random.default_rng(0).standard_normal((40, 3)))
    whole = enumerate_gates(patches)
    monkeypatch.setattr(enumeration, "ENTRIES_AT_ONCE", 1000)
    assert len(whole) == arrangement_count(40, 3)
    assert as_set(patterns(patches, enumerate_gates(patches).vectors)) == as_set(patterns(patches, whole.vectors))


def integer_lines(rows):
    """Primitive integer vectors along the distinct lines of integer rows."""
    lines = set()
    for row in rows:
        divisor = math.gcd(*row)
        if divisor:
            leading = next(entry for entry in row if entry)
            lines.add(tuple(int(entry) // int(math.copysign(divisor, leading)) for entry in row))
    return sorted(lines)


def exact_count(rows):
    """Cells of a central arrangement in R^3, by deletion and restriction in integers.

    Adding a plane splits the cells that it meets, as many as the earlier planes cut it into: 1 without
    any, otherwise twice the number of distinct lines in which they meet it.
    """
    lines = integer_lines(rows)
    cells = 1
    for i, line in enumerate(lines):
        meets = integer_lines([tuple(int(entry) for entry in np.cross(line, other)) for other in lines[:i]])
        cells += max(1, 2 * len(meets))
    return cells


def test_the_exact_count_itself():
    assert exact_count([(1, 0, 0), (0, 1, 0), (0, 0, 1)]) == 8
    assert exact_count([(1, 0, 0), (0, 1, 0), (1, 1, 0), (2, 2, 0)]) == 6  # three planes through one line
    assert exact_count([(1, t, t * t) for t in range(7)]) == arrangement_count(7, 3)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=1, max_size=14).filter(lambda rows: np.any(rows)),
    scale=st.sampled_from([1.0, 1e-300, 1e300, 1 / 3]),
)
def test_degenerate_integer_patches(rows, scale):
    check_enumeration(rows_as_patches(np.array(rows) * scale), exact_count(rows), n_samples=200)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12), st.integers(2, 7))
def test_degenerate_bias_patches(pixels, levels):
    # A pixel of two channels and a constant: points of a grid, so that many are collinear.
    rows = np.array(pixels) / levels
    check_enumeration(rows_as_patches(rows, bias=True), exact_count([(*p, levels) for p in pixels]), n_samples=200)


def test_all_points_of_a_grid():
    grid = [(a, b) for a in range(6) for b in range(6)]
    patches = rows_as_patches(np.array(grid) / 5, bias=True)
    check_enumeration(patches, exact_count([(*point, 5) for point in grid]))


def rotated(rows, seed=0):
    """Degenerate rows seen through a random rotation: incidences hold up to rounding only."""
    return rows @ np.linalg.qr(np.random.default_rng(seed).standard_normal((rows.shape[1],) * 2))[0]


@pytest.mark.parametrize("seed", range(3))
def test_incidences_up_to_rounding(seed):
    rows = np.array([(a, b, c) for a in range(-2, 3) for b in range(-2, 3) for c in range(-2, 3)], dtype=float)
    expected = exact_count(rows.astype(int).tolist())
    # Scaled copies and opposites of every patch, each rounded on its own.
    copies = rotated(np.concatenate([rows, -rows / 3, rows * 0.7]), seed)
    check_enumeration(rows_as_patches(copies), expected)


@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_concurrent_hyperplanes(n):
    angles = (np.arange(n) + 0.25) * np.pi / n
    pencil = np.stack([np.cos(angles), np.sin(angles), np.zeros(n)], axis=1)
    check_enumeration(rows_as_patches(rotated(pencil)), 2 * n)  # one pencil has rank 2
    with_axis = np.vstack([pencil, [[0.0, 0.0, 1.0]]])
    check_enumeration(rows_as_patches(rotated(with_axis)), 4 * n)  # an independent plane halves every cell
    # Two pencils: a vertex of n planes each, and one of two planes for each mixed pair.
    double = np.vstack([pencil, pencil[:, [2, 0, 1]]])
    check_enumeration(rows_as_patches(rotated(double)), 2 * (1 + 2 * (n - 1) + n * n))


def test_few_directions_in_many_dimensions():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((12, 3)) @ rng.standard_normal((3, 9))
    check_enumeration(rows_as_patches(rows), arrangement_count(12, 3))
    check_enumeration(rows_as_patches(rows[:2]), 4)
    check_enumeration(rows_as_patches(rows[:1]), 2)


def test_zero_repeated_parallel_and_opposite_patches_add_nothing():
    rows = np.random.default_rng(1).standard_normal((6, 3))
    more = np.concatenate([rows, rows[:3], -rows, rows / 7, 1e-200 * rows, np.zeros((4, 3))])
    check_enumeration(rows_as_patches(more), arrangement_count(6, 3))


def test_one_dimension_has_two_cells():
    gates = check_enumeration(rows_as_patches([[2.0], [0.0], [-3.0]]), 2)
    assert sorted(gates.vectors.flatten().tolist()) == [-1, 1]


def test_nearly_parallel_patches_are_told_apart():
    rows = [[1.0, 0.0, 0.0], [1.0, 1e-9, 0.0], [0.0, 1.0, 0.0], [0.0, 0.3, 1.0]]
    check_enumeration(rows_as_patches(rows), exact_count([(1, 0, 0), (2, 1, 0), (0, 1, 0), (0, 3, 10)]))


def test_images_of_many_patches():
    patches = random_patches(n=2, channels=1, side=4, kernel_size=(1, 2), bias=True)
    check_enumeration(patches, arrangement_count(24, 3))


def test_single_precision_is_enough_for_a_few_patches():
    rows = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    gates = check_enumeration(rows_as_patches(rows, dtype=torch.float32), arrangement_count(8, 3))
    assert gates.vectors.dtype == torch.float32


def test_enumerated_gates_leave_out_the_pattern_active_nowhere():
    patches = rows_as_patches([[1.0], [2.0], [5.0]], bias=True)
    gates = resolve(EnumeratedGates(), patches)
    assert gates.complete
    assert (len(gates), gates.n_zero, gates.n_duplicates) == (5, 1, 0)
    mixed = rows_as_patches([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]])  # every g is active on one of the three
    assert (len(resolve(EnumeratedGates(), mixed)), resolve(EnumeratedGates(), mixed).n_zero) == (6, 0)


def test_random_gates_are_a_subset_of_all():
    patches = rows_as_patches(np.random.default_rng(3).standard_normal((10, 3)))
    every = as_set(patterns(patches, resolve(EnumeratedGates(), patches).vectors))
    assert as_set(patterns(patches, resolve(200, patches).vectors)) <= every


def test_arrangement_count_is_the_sum_over_sign_choices():
    for dim in (1, 2, 3, 5):
        for n in (1, 2, 4, 9):
            # Points in general position: 2 for each choice of fewer than d of the other n - 1.
            choices = sum(1 for size in range(dim) for _ in combinations(range(n - 1), size))
            assert arrangement_count(n, dim) == 2 * choices
    assert arrangement_count(5, 40) == 2**5


@pytest.mark.parametrize(("n", "dim", "name"), [(0, 2, "n_points"), (2.0, 2, "n_points"), (3, True, "dim")])
def test_arrangement_count_refuses(n, dim, name):
    with pytest.raises(InputError, match=f"{name} must be an int >= 1"):
        arrangement_count(n, dim)


def test_too_many_dimensions_are_refused():
    with pytest.raises(InputError, match=r"at most 3 dimensions; these have 4 entries.*smaller kernel.*sample gates"):
        enumerate_gates(random_patches(channels=1, kernel_size=2))


def test_too_many_directions_are_refused():
    patches = rows_as_patches(np.random.default_rng(0).standard_normal((21, 3)))
    with pytest.raises(InputError, match=r"more than max_points=20 distinct directions.*21 so far.*Use fewer images"):
        resolve(EnumeratedGates(max_points=20), patches)
    assert len(enumerate_gates(patches, max_points=21)) == arrangement_count(21, 3)


def test_zero_images_are_refused():
    with pytest.raises(InputError, match="every patch is zero"):
        enumerate_gates(rows_as_patches(np.zeros((3, 2))))


@pytest.mark.parametrize("max_points", [0, True, 3.0])
def test_bad_max_points_are_refused(max_points):
    with pytest.raises(InputError, match="max_points must be an int >= 1"):
        enumerate_gates(rows_as_patches([[1.0]]), max_points)
    with pytest.raises(InputError, match="max_points must be an int >= 1"):
        EnumeratedGates(max_points)


def test_cells_too_thin_for_the_dtype_are_refused():
    rows = [[1.0, 0.0], [1.0, 2e-7], [0.0, 1.0]]
    with pytest.raises(InputError, match=r"margin of .* where float32 needs .*Use float64 images"):
        enumerate_gates(rows_as_patches(rows, dtype=torch.float32))
    assert len(enumerate_gates(rows_as_patches(rows))) == 6


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-17, 1e-10))
def test_rounding_is_either_harmless_or_refused(seed, noise):
    # Noise about the size of the tolerances: the answer may be a refusal, never a wrong set of patterns.
    rng = np.random.default_rng(seed)
    rows = rotated(rng.integers(-2, 3, (12, 3)).astype(float), seed)
    rows = rows + noise * rng.standard_normal(rows.shape)
    patches = rows_as_patches(rows)
    try:
        gates = enumerate_gates(patches)
    except InputError as error:
        assert "degenerate position" in str(error)
        return
    found = as_set(patterns(patches, gates.vectors))
    assert len(found) == len(gates)
    samples = np.random.default_rng(1).standard_normal((500, 3))
    assert as_set(torch.as_tensor(samples @ rows.T >= 0)) <= found
