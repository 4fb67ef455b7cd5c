"""Held-out images: a share of every class, and the same ones however the images are ordered, scaled or shared out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from eq2 import eq2_block
from hypothesis import given
from hypothesis import strategies as st

from cvxcnn import LayerwiseCNN, PricingOptions
from cvxcnn.data import hold_out
from cvxcnn.data.hold_out import held_out
from cvxcnn.errors import InputError
from cvxcnn.models.stage import Stage


def some(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def codes(labels: list[int], kind: str) -> torch.Tensor:
    index = torch.tensor(labels)
    one_hot = torch.nn.functional.one_hot(index, int(index.max()) + 1).double()
    if kind == "words":  # of error-correcting output codes
        return torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)[index % 4]
    return {"one-hot": one_hot, "signs": 2 * one_hot - 1, "numbers": index[:, None].double()}[kind]


@pytest.mark.parametrize("kind", ["one-hot", "signs", "numbers", "words"])
@pytest.mark.parametrize("arrangement", ["cyclic", "sorted"])
def test_every_class_gives_its_share(kind: str, arrangement: str) -> None:
    labels = [row % 4 for row in range(80)] if arrangement == "cyclic" else [row // 20 for row in range(80)]
    held = held_out(some(80), codes(labels, kind), 0.25, seed=0)
    assert np.bincount(labels, weights=held.numpy()).tolist() == [5, 5, 5, 5]


@given(
    st.lists(st.integers(0, 3), min_size=8, max_size=40),
    st.sampled_from(["one-hot", "signs", "numbers"]),
    st.floats(0.15, 0.5),
    st.integers(0, 2**63 - 1),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_images_does_not_matter(
    labels: list[int], kind: str, share: float, seed: int, random: object
) -> None:
    images, targets = some(len(labels)), codes(labels, kind)
    # Some images are there twice, and some under two labels.
    images[3] = images[0]
    order = list(range(len(labels)))
    random.shuffle(order)  # type: ignore[attr-defined]

    def content(rows: list[int], held: torch.Tensor) -> list[list[float]]:
        return sorted(torch.cat([images.flatten(1), targets], dim=1)[rows][held].tolist())

    try:
        held = held_out(images, targets, share, seed)
    except InputError as error:
        assert "needs one to train on" in str(error)
        return
    again = held_out(images[order], targets[order], share, seed)
    assert content(order, again) == content(sorted(order), held)
    assert held.sum() == int(share * len(labels) + 1e-9)
    for label in set(labels):
        own = held[torch.tensor(labels) == label]
        assert not own.all() or kind == "numbers"  # a number that one image alone has may be no class
        assert abs(float(own.sum()) - share * len(own)) < 2


@given(st.floats(1e-12, 1e12), st.floats(1e-12, 1e12))
def test_the_units_of_images_and_targets_do_not_matter(image_unit: float, target_unit: float) -> None:
    images, targets = some(60), codes([row % 3 for row in range(60)], "one-hot")
    held = held_out(images, targets, 0.2, seed=0)
    assert torch.equal(held_out(images * image_unit, targets * target_unit, 0.2, seed=0), held)


def test_pixels_of_eight_bits_are_held_out_alike_in_float32_and_float64() -> None:
    images = (some(200) * 255).round() / 255
    targets = codes([row % 5 for row in range(200)], "one-hot")
    held = held_out(images, targets, 0.3, seed=1)
    assert torch.equal(held_out(images.float(), targets.float(), 0.3, seed=1), held)


def test_images_of_a_large_offset_are_told_apart() -> None:
    images, targets = some(40), torch.zeros(40, 1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for shown in (1e9 + images, torch.cat([images[:39], images[39:] * 1e12])):
        held = held_out(shown, targets, 0.25, seed=0)
        assert torch.equal(held_out(shown[order], targets, 0.25, seed=0), held[order])


def test_the_seed_decides() -> None:
    images, targets = some(100), torch.zeros(100, 1)
    found = {tuple(held_out(images, targets, 0.1, seed).nonzero().flatten().tolist()) for seed in range(10)}
    assert len(found) == 10


def test_targets_without_classes_are_held_out_at_random() -> None:
    targets = torch.linspace(-1, 1, 1000, dtype=torch.float64)[:, None]
    held = held_out(some(1000), targets, 0.3, seed=0)
    assert held.sum() == 300
    # The mean of 300 of these numbers has a standard deviation of 0.028.
    assert abs(float(targets[held].mean())) < 0.1


def test_numbers_that_half_of_the_images_have_in_common_are_held_out_with_the_others() -> None:
    targets = torch.cat([torch.zeros(500), torch.linspace(0.1, 1, 500)])[:, None]
    held = held_out(some(1000), targets, 0.2, seed=0)
    assert (held[:500].sum(), held[500:].sum()) == (100, 100)


def test_soft_targets_are_of_the_class_of_their_largest() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = codes([row % 5 for row in range(100)], "one-hot") + 0.1 * torch.rand(100, 5, generator=generator)
    held = held_out(some(100), targets, 0.2, seed=0)
    assert np.bincount(targets.argmax(dim=1), weights=held.numpy()).tolist() == [4] * 5


def test_no_class_is_held_out_as_a_whole() -> None:
    labels = [0] * 17 + [1, 2, 2]
    held = held_out(some(20), codes(labels, "one-hot"), 0.5, seed=0)
    assert held.sum() == 10
    assert not held[17] and held[18:].sum() <= 1
    with pytest.raises(InputError, match=r"would hold out 3 of 6 images, and each of the 4 classes needs one to train"):
        held_out(some(6), codes([0, 1, 2, 3, 0, 1], "one-hot"), 0.5, seed=0)
    with pytest.raises(InputError, match=r"validation=0\.1 of 6 images leaves none to train on or none to judge by"):
        held_out(some(6), torch.zeros(6, 1), 0.1, seed=0)


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_shares_of_several_processes_are_held_out_as_by_one(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, targets = some(41), codes([row % 3 for row in range(41)], "one-hot")
    whole = held_out(images, targets, 0.3, seed=0)
    counts = [len(part) for part in torch.tensor_split(torch.arange(41), processes)]
    shares = list(zip(images.split(counts), targets.split(counts), strict=True))
    ends = torch.cat([torch.stack([part.min(), part.max()])[None] for part, _ in shares])
    # What the processes exchange, in the order in which they do.
    monkeypatch.setattr(hold_out, "gather_rows", lambda tensor: ends)
    identities = np.concatenate([hold_out._identities(*share, 0) for share in shares])
    for number, share in enumerate(shares):
        answers = iter([ends, torch.from_numpy(identities)])
        monkeypatch.setattr(hold_out, "gather_rows", lambda tensor, answers=answers: next(answers))
        monkeypatch.setattr(hold_out, "row_counts", lambda tensor: counts)
        monkeypatch.setattr(hold_out, "rank", lambda number=number: number)
        assert torch.equal(held_out(*share, 0.3, seed=0), whole.split(counts)[number])


def test_a_stack_that_validates_learns_every_class() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(100) % 10
    images = generator.random((100, 1, 8, 8)) * 0.15
    for image, label in zip(images, labels, strict=True):
        image[0, label // 4 * 2 : label // 4 * 2 + 2, label % 4 * 2 : label % 4 * 2 + 2] += 0.7
    block = eq2_block(
        padding=1,
        pooling="mean",
        pool_cells=2,
        bias=True,
        penalty="dense",
        gates=30,
        reg=None,
        pricing=PricingOptions(starts=0),
    )
    stack = LayerwiseCNN(layers=1, block=block, validation=0.1, reg_fraction=0.01).fit(images, np.eye(10)[labels])
    assert (stack.predict(images).argmax(axis=1) == labels).mean() > 0.95


def test_projections_are_not_of_every_tenth_image() -> None:
    # Evenly spaced, 1,000 of 10,000 images in the order of their classes 0 to 9, 0 to 9, ... were all of one class.
    stack = LayerwiseCNN()
    inputs = torch.arange(10_000)[:, None]
    chosen, weights = stack._sampled(Stage(inputs, inputs, inputs, inputs), torch.Generator().manual_seed(1))
    assert len(chosen) == 1000 and weights is None
    assert min(torch.bincount(chosen.flatten() % 10).tolist()) > 50


def test_a_stack_that_validates_chooses_alike_in_any_order_of_the_images() -> None:
    generator = np.random.default_rng(0)
    images, targets = generator.normal(size=(60, 1, 5, 5)), np.eye(3)[np.arange(60) % 3]
    order = generator.permutation(60)
    block = eq2_block(gates=generator.normal(size=(12, 9)), bias=False, padding=0, penalty="dense", reg=None, tol=1e-9)
    found = [
        LayerwiseCNN(layers=1, block=block, validation=0.25, reg_fraction=0.01).fit(images[rows], targets[rows])
        for rows in (np.arange(60), order)
    ]
    first, second = (stack.blocks_[0] for stack in found)
    assert second.reg == pytest.approx(first.reg, rel=1e-9)
    assert second.result_.objective == pytest.approx(first.result_.objective, rel=1e-8)
    np.testing.assert_allclose(found[1].predict(images), found[0].predict(images), atol=1e-3)
