"""Gates for images: principal directions, choice by the targets, a trained network's filters, and their names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from eq2 import eq2_block
from problems import noise_patches, normal, seeded

from cvxcnn import LayerwiseCNN, PricingOptions
from cvxcnn.arrangements import (
    GATES,
    EnumeratedGates,
    GateSampler,
    GaussianGates,
    GradientGates,
    PatchGates,
    TrainedGates,
    parse_gates,
    patterns,
    resolve,
    supervised,
    whitening,
)
from cvxcnn.arrangements.base import draw_distinct
from cvxcnn.commands import train
from cvxcnn.errors import InputError
from cvxcnn.ordinary import train_baseline
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.runs.settings import Settings, build_stack

random_patches = partial(noise_patches, n=12, side=6, channels=2, bias=True)


def labels(n=12):
    return normal(n, 3, seed=1)


# Principal directions


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dims", [1, 5, 18])
def test_gates_lie_in_the_span_of_the_leading_directions(dims, bias):
    patches = random_patches(bias=bias)
    rows = patches.unfold().flatten(0, 1)[:, :18]
    centred = rows - rows.mean(0)
    leading = torch.linalg.svd(centred, full_matrices=False).Vh[:dims]
    gates = PatchGates(dims=dims).sample(patches, 30, seeded())[:, :18]
    assert torch.allclose(gates @ leading.T @ leading, gates, atol=1e-12)
    assert torch.linalg.matrix_rank(gates, atol=1e-9) == dims
    assert torch.allclose(gates.norm(dim=1), torch.ones(30, dtype=torch.float64))


def test_all_directions_are_the_default():
    patches = random_patches()
    expected = PatchGates().sample(patches, 9, seeded())
    for dims in (18, 1000):
        assert torch.equal(PatchGates(dims=dims).sample(patches, 9, seeded()), expected)


def test_whitened_leading_directions_have_covariance_one():
    rows = torch.randn(500, 6, generator=seeded(), dtype=torch.float64) * torch.arange(1.0, 7)
    mean, root = whitening(rows, eps=1e-12, dims=2)
    white = (rows - mean) @ root
    values = torch.linalg.eigvalsh(white.T @ white / len(rows))
    assert torch.allclose(values, torch.tensor([0, 0, 0, 0, 1, 1], dtype=torch.float64), atol=1e-9)


def test_thresholds_hold_for_restricted_gates():
    patches = random_patches()
    total = patches.n_images * patches.n_patches
    inactive = (~patterns(patches, PatchGates(dims=3, quantile=0.8).sample(patches, 12, seeded()))).flatten(1).sum(1)
    assert inactive.tolist() == [math.ceil(0.8 * total)] * 12


# Choice by the targets


def blocks_of(patches, gates):
    """Centred features of each gate, (n, cells), in float64."""
    features = patches.astype(torch.float64).relu_features(gates.double())
    return (features - features.mean(0)).unbind(2)


def candidates(patches, count, seed=0, source=GaussianGates):
    """The gates that a sampler with all images draws its candidates from."""
    generator = seeded(seed)
    rows = torch.randperm(patches.n_images, generator=generator).sort().values
    return draw_distinct(source().sample, patches.subset(rows).astype(torch.float32), count, generator).vectors


@pytest.mark.parametrize("cells", [1, 2])
def test_one_round_takes_the_largest_normalised_gradients(cells):
    patches, targets = random_patches(pool_cells=cells), labels()
    sampler = GradientGates(4, candidates=5, rounds=1, source=GaussianGates())
    drawn = candidates(patches, 20)
    residual = targets - targets.mean(0)
    scores = torch.stack(
        [(block.T @ residual).square().sum() / block.square().sum() for block in blocks_of(patches, drawn)]
    )
    expected = drawn[scores.topk(4).indices].double()
    assert torch.equal(resolve(sampler, patches, 0, targets).vectors, expected)


def test_each_round_looks_at_what_ridge_regression_left():
    patches, targets = random_patches(pool_cells=2), labels()
    drawn = candidates(patches, 18)
    blocks = blocks_of(patches, drawn)
    centred = targets - targets.mean(0)
    chosen: list[int] = []
    for _ in range(3):
        residual_of = torch.eye(12, dtype=torch.float64)
        if chosen:
            features = torch.cat([blocks[i] for i in chosen], dim=1)
            ridge = 0.01 * features.square().sum(1).mean()
            inverse = torch.linalg.inv(features.T @ features + ridge * torch.eye(features.shape[1]))
            residual_of -= features @ inverse @ features.T
        gains = [
            float((b.T @ residual_of @ centred).square().sum() / (b * (residual_of @ b)).sum())
            if i not in chosen
            else -1
            for i, b in enumerate(blocks)
        ]
        chosen.append(gains.index(max(gains)))
    sampler = GradientGates(3, candidates=6, rounds=3, source=GaussianGates())
    assert torch.equal(resolve(sampler, patches, 0, targets).vectors, drawn[chosen].double())


def test_the_filter_that_made_the_targets_is_chosen_first():
    patches = random_patches(n=40)
    drawn = candidates(patches, 30, source=PatchGates)
    targets = patches.relu_features(drawn[17:18].double())[:, 0]
    found = resolve(GradientGates(5, candidates=6, rounds=5), patches, 0, targets)
    assert torch.equal(found.vectors[0], drawn[17].double())
    assert len(found) == 5


def test_unequal_rounds_still_give_the_count():
    assert len(resolve(GradientGates(7, rounds=3), random_patches(), 0, labels())) == 7
    assert len(resolve(GradientGates(2, rounds=5), random_patches(), 0, labels())) == 2


def test_where_there_are_no_more_gates_all_are_taken():
    images = torch.tensor([[1.0, 2.0], [3.0, -1.0]]).view(2, 1, 1, 2)
    patches = Patches(images, PatchGeometry(kernel_size=(1, 2)))
    targets = torch.tensor([[1.0], [0.0]])
    found = resolve(GradientGates(50, source=GaussianGates()), patches, 0, targets)
    assert len(found) == 3  # two patches in the plane have four patterns, one of them zero


@pytest.mark.parametrize("sampler", [GradientGates(6), TrainedGates(6, epochs=2)], ids=repr)
def test_choice_is_decided_by_the_seed(sampler):
    patches, targets = random_patches(), labels()
    first, again, other = (resolve(sampler, patches, seed, targets).vectors for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert first.dtype == torch.float64
    assert first.shape != other.shape or not torch.equal(first, other)


@pytest.mark.parametrize("sampler", [GradientGates(4, images=5), TrainedGates(4, images=5, epochs=1)], ids=repr)
def test_no_more_images_than_asked_for_are_looked_at(sampler, monkeypatch):
    seen = []
    taken = supervised.take_rows
    monkeypatch.setattr(supervised, "take_rows", lambda values, rows: seen.append(len(rows)) or taken(values, rows))
    resolve(sampler, random_patches(), 0, labels())
    assert set(seen) == {5}


def test_targets_are_needed():
    patches = random_patches()
    with pytest.raises(
        InputError, match=r"GradientGates chooses gates by the targets, one row for each of the 12.*none"
    ):
        resolve(GradientGates(4), patches)
    with pytest.raises(InputError, match=r"got shape \(5, 1\). Pass targets of shape \(n, outputs\)"):
        resolve(TrainedGates(4), patches, 0, torch.ones(5, 1))
    with pytest.raises(InputError, match="TrainedGates chooses gates by the targets, so it can't sample"):
        TrainedGates(4).sample(patches, 4, seeded())


# A trained network


def test_trained_gates_are_the_filters_of_the_network(monkeypatch):
    found = []

    def record(*args, **options):
        found.append((train_baseline(*args, **options), args, options))
        return found[-1][0]

    monkeypatch.setattr("cvxcnn.arrangements.trained_gates.train_baseline", record)
    patches, targets = random_patches(), labels()
    gates = resolve(TrainedGates(6, epochs=3), patches, 0, targets)
    ((result, (_, centred, _, width), options),) = found
    assert width == 6 and options["epochs"] == 3
    assert torch.allclose(centred.sum(0), torch.zeros(3), atol=1e-5)
    used = result.filters[result.filters.any(1)]
    assert torch.allclose(gates.vectors, used / used.norm(dim=1, keepdim=True))


def test_targets_that_are_all_equal_cannot_be_trained_on():
    with pytest.raises(InputError, match="targets that are all equal, or images that are all zero"):
        resolve(TrainedGates(4), random_patches(), 0, torch.ones(12, 1))


# Names


def test_every_kind_has_a_name():
    assert parse_gates("priced") == "priced"
    assert parse_gates("17") == 17
    for name, kind in GATES.items():
        assert parse_gates(f"{name}:17") == kind(17)
        assert kind(17).count == 17


def test_a_new_kind_needs_no_more_than_its_entry(monkeypatch, capsys):
    @dataclass(frozen=True)
    class BinaryGates(GateSampler):
        count: int = 100

        def sample(self, patches, count, generator):
            return (2 * torch.randint(2, (count, patches.dim), generator=generator) - 1).to(patches.pool)

    monkeypatch.setitem(GATES, "binary", BinaryGates)
    assert parse_gates("binary:17") == BinaryGates(17)
    (block, *_) = build_stack(Settings(gates="binary:4")).block
    assert block.gates == BinaryGates(4)
    assert train.main(["--help"]) == 0
    assert "binary" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        *((text, "") for text in ("", "0", "-3", "1.5", "patches", "patches:", "patches:0", "best:5", ":5", "²")),
        ("priced:5", "priced"),
        ("patchs:5", "patches"),
    ],
)
def test_other_texts_are_refused(text: str, meant: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_gates(text)
    assert str(caught.value) == (
        'gates must be "priced", a number N >= 1, or one of gaussian:N, gradient:N, patches:N, trained:N, waves:N; '
        f"got {text!r}{f': did you mean {meant}?' if meant else '.'}"
    )


@pytest.mark.parametrize("name", sorted(GATES))
@pytest.mark.parametrize(
    "options", [{"penalty": "dense"}, {"activation": "gated_relu"}, {}], ids=["dense", "gated", "relu"]
)
def test_every_kind_trains_a_block(name, options):
    patches = random_patches(dtype=torch.float64)
    search = PricingOptions(starts=1, ascent_steps=10)
    block = eq2_block(bias=True, gates=GATES[name](4), reg=0.1, pricing=search, tol=1e-4, **options)
    assert block.fit(patches.images, labels()).result_.status == "optimal"
    assert len(block.gates_) <= 4


def test_settings_make_samplers_of_names():
    (block, *_) = build_stack(Settings(gates="patches:12")).block
    assert block.gates == PatchGates(12)


def test_samplers_that_look_at_targets_work_in_a_stack():
    patches, targets = random_patches(), labels()
    block = eq2_block(bias=True, gates=GradientGates(4), reg=0.1, penalty="dense", pricing=PricingOptions(starts=0))
    stack = LayerwiseCNN(layers=2, block=block).fit(patches.images, targets)
    assert [len(fitted.gates_) for fitted in stack.blocks_] == [4, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchGates(dims=0), "dims must be an int >= 1, the number of principal directions; got 0"),
        (lambda: PatchGates(dims=2.5), "dims must be an int >= 1.*got 2.5"),
        (lambda: GradientGates(0), "count must be an int >= 1"),
        (lambda: GradientGates(candidates=0), "candidates must be an int >= 1"),
        (lambda: GradientGates(rounds=True), "rounds must be an int >= 1"),
        (lambda: GradientGates(images=0), "images must be an int >= 1"),
        (lambda: GradientGates(source=5), "source must be a sampler that needs no targets.*got 5"),
        (lambda: GradientGates(source=GradientGates()), "source must be a sampler that needs no targets"),
        (lambda: TrainedGates(epochs=0), "epochs must be an int >= 1"),
        (lambda: TrainedGates(images=0.5), "images must be an int >= 1"),
        (lambda: TrainedGates(reg_fraction=1), "reg_fraction must be a number strictly between 0 and 1; got 1"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_enumerated_gates_take_no_targets():
    patches = Patches(torch.randn(3, 1, 1, 2, generator=seeded()), PatchGeometry(kernel_size=(1, 2)))
    assert torch.equal(
        resolve(EnumeratedGates(), patches, 0, labels(3)).vectors, resolve(EnumeratedGates(), patches).vectors
    )
