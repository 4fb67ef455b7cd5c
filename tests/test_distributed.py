"""Two processes with a share of the images each, against one process with all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from eq2 import eq2_block
from PIL import Image
from problems import normal

from cvxcnn import LayerwiseCNN, PricingOptions
from cvxcnn.arrangements import (
    EnumeratedGates,
    Gates,
    GaussianGates,
    GradientGates,
    PatchGates,
    TrainedGates,
    base,
    data_patches,
    distinct,
    patterns,
    resolve,
)
from cvxcnn.core.distributed import (
    all_mean,
    all_sum,
    alone,
    broadcast,
    gather_rows,
    process_group,
    rank,
    row_counts,
    shard,
    size,
    take_rows,
)
from cvxcnn.data import load_data
from cvxcnn.data.class_weights import by_class
from cvxcnn.errors import CvxcnnError, DataError, InputError
from cvxcnn.models.standardizer import Standardizer
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.runs.run import Settings, run
from cvxcnn.runs.settings import load_sets

N_IMAGES = 41  # shares of 20 and 21
# Several processes don't search over all gates, which would take one of them most of the time.
SOLVER = {"solver": "fista", "reg": 0.5, "tol": 1e-9, "max_iter": 100_000, "pricing": PricingOptions(starts=0)}
BLOCKS: dict[str, dict[str, Any]] = {
    "dense": {"penalty": "dense", "bias": True, "intercept": True, "gates": PatchGates(12), "pooling": "mean"},
    "group": {"activation": "gated_relu", "gates": 6, "kernel_size": 2, "pool_cells": 2},
    "nuclear": {"activation": "gated_relu", "penalty": "nuclear", "gates": PatchGates(6), "intercept": True},
    "quadratic": {"activation": "quadratic", "penalty": "group", "gates": "priced", "kernel_size": 2, "solver": "auto"},
    "linear": {"activation": "linear", "gates": "priced", "intercept": True, "solver": "auto"},
    "gradient": {"penalty": "dense", "bias": True, "gates": GradientGates(5, images=30, rounds=2)},
    "trained": {"penalty": "dense", "bias": True, "gates": TrainedGates(5, images=30, epochs=2)},
    "weighted": {"penalty": "dense", "bias": True, "intercept": True, "gates": PatchGates(12), "solver": "auto"},
    "weighted quadratic": {
        "activation": "quadratic",
        "penalty": "group",
        "gates": "priced",
        "kernel_size": 2,
        "solver": "auto",
    },
}
STACKS: dict[str, dict[str, Any]] = {
    "stack": {"downsample": 2, "reg_fraction": 0.05},
    "residual": {
        "residual": True, "project": 6, "hand_on": 5, "mirror": True, "crop": True, "reg_fraction": (0.1, 0.05),
    },
    "validated": {"validation": 0.25, "mirror": True, "crop": True, "reg_fraction": 0.05},
    "weighted stack": {"residual": True, "project": 6, "validation": 0.25, "mirror": True, "reg_fraction": 0.05},
}  # fmt: skip


def data() -> tuple[torch.Tensor, torch.Tensor]:
    images = normal(N_IMAGES, 2, 6, 6)
    return images, torch.stack([images.mean(dim=(1, 2, 3)), images[:, 0].relu().mean(dim=(1, 2)) + 1], dim=1)


def alike(part: slice = slice(None)) -> Patches:
    """Patches of pixels >= 0, of which the last five images alone tell gates apart: the others have pixels of 1."""
    images = data()[0].abs()
    images[: N_IMAGES - 5] = 1.0
    return Patches(images[part], PatchGeometry(kernel_size=2))


def gates_with_copies() -> torch.Tensor:
    """Eight patterns, six copies, and two gates that are active on no patch of positive pixels."""
    drawn = normal(8, 8, seed=1)
    return torch.cat([drawn, 2 * drawn[:3], drawn[:2] + 1e-13, -torch.ones(2, 8), drawn[4:5]])


def fitted(part: slice) -> dict[str, np.ndarray]:
    """Return everything that is compared, found from these images in this process."""
    images, targets = (values[part] for values in data())
    found = {}
    # Of images of weight zero, too; each process has its share.
    weights = (np.arange(N_IMAGES) % 4)[part]
    for name, settings in BLOCKS.items():
        block = eq2_block(**{**SOLVER, **settings})
        own = weights if name.startswith("weighted") else None
        found[f"{name}.reg_max"] = block.reg_max(images, targets, own)
        block.fit(images, targets, own)
        result = block.result_
        found[f"{name}.numbers"] = np.array([result.objective, result.dual_bound])
        found[f"{name}.weights"] = result.weights.numpy()
        found[f"{name}.gates"] = block.gates_
        found[f"{name}.prediction"] = gather_rows(torch.from_numpy(block.predict(images))).numpy()
    block = eq2_block(gates=PatchGates(8), penalty="dense", padding=1, intercept=True, bias=True, **SOLVER)
    block.set_params(reg=None)  # each has a reg_fraction
    for name, options in STACKS.items():
        own = weights if name.startswith("weighted") else None
        stack = LayerwiseCNN(layers=2, block=block, **options).fit(images, targets, own)
        found[f"{name}.regs"] = np.array([block.reg for block in stack.blocks_])
        found[f"{name}.objectives"] = np.array([block.result_.objective for block in stack.blocks_])
        found[f"{name}.prediction"] = gather_rows(torch.from_numpy(stack.predict(images))).numpy()
    labels = np.arange(N_IMAGES) % 3 % 2
    found["balanced"] = gather_rows(torch.from_numpy(by_class("balanced", labels[part], range(2), weights))).numpy()
    chosen = distinct(alike(part), gates_with_copies())
    found["distinct"] = np.array([len(chosen), chosen.n_duplicates, chosen.n_zero])
    found["distinct.vectors"] = chosen.vectors.numpy()
    return found


# In each of two processes.


def sums(number: int) -> None:
    assert (rank(), size()) == (number, 2)
    own = torch.full((number, 2), 1.0 + number)
    assert row_counts(own) == [0, 1]
    assert gather_rows(own).tolist() == [[2, 2]]
    own = torch.arange(2 + number).view(-1, 1) + 10 * number
    assert gather_rows(own).flatten().tolist() == [0, 1, 10, 11, 12]
    assert take_rows(own, torch.tensor([4, 0, 2])).flatten().tolist() == [12, 0, 10]
    assert take_rows(own.half(), torch.tensor([1])).flatten().tolist() == [1]
    with alone():
        assert (rank(), size(), len(gather_rows(own))) == (0, 1, 2 + number)
    assert size() == 2
    assert gather_rows(own > 0).flatten().tolist() == [False, True, True, True, True]
    assert all_mean(own.double()).tolist() == [34 / 5]
    values = torch.tensor([[1, 2], [3, 4]]).T * (1 << 53 + number)
    before = values.clone()
    assert torch.equal(all_sum(values), torch.tensor([[1, 3], [2, 4]]) * (3 << 53))
    assert torch.equal(broadcast(values, source=1), torch.tensor([[1, 3], [2, 4]]) * (1 << 54))
    assert torch.equal(values, before)


def write_pictures(path: Path) -> None:
    """Images of which half are grey, those of the first process or of the second; the same in two sizes."""
    for split, grey in (("train", range(6)), ("test", range(6, 12))):
        for index in range(12):
            pixels = np.random.default_rng(index).integers(0, 256, (5, 4, 3), np.uint8)
            pixels = pixels[..., 0] if index in grey else pixels
            for folder, image in (("pictures", pixels), ("sizes", pixels[: 4 + index // 6])):
                group = path / folder / split / str(index // 6)
                group.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(group / f"{index:02d}.png")


def shares(path: Path) -> dict[str, np.ndarray]:
    """Return what this process loads."""
    found = {}
    for name, loaded in zip(("train", "test"), load_sets(Settings(data=str(path / "pictures"))), strict=True):
        found |= {f"pictures.{name}": loaded.images, f"pictures.{name}.labels": loaded.labels}
    with pytest.raises(DataError, match=r"must have one shape; processes found \[\(1, 4, 4\), \(3, 5, 4\)\]. Resize"):
        load_sets(Settings(data=str(path / "sizes")))
    return found


class OwnGates(GaussianGates):
    """A sampler that gives each process gates of its own."""

    def draw(self, patches: Patches, generator: torch.Generator, targets: torch.Tensor | None = None) -> Gates:
        return Gates(self.sample(patches, 1 + rank(), generator))


def refusals() -> None:
    images, targets = data()

    def refused(match: str, **settings: Any) -> None:
        with pytest.raises(InputError, match=match):
            eq2_block(**{"reg": 0.5, "gates": 5, **settings}).fit(images, targets.sign())

    refused("priced gates need all images in one process; there are 2", gates="priced")
    refused("several processes share the images only for .*got the ReLU program over gates", penalty="group")
    refused("got loss='logistic'", penalty="dense", loss="logistic")
    refused("'working_set' can't .*needs all images in one process, and there are 2", penalty="dense",
            solver="working_set")  # fmt: skip
    refused("'cvxpy:CLARABEL' can't", penalty="dense", solver="cvxpy:CLARABEL")
    with pytest.raises(InputError, match=r"processes must get the same gates; they got \[1, 2\] of them"):
        resolve(OwnGates(), Patches(images, PatchGeometry()))
    refused("patterns are enumerated in one process", penalty="dense", gates=EnumeratedGates(), kernel_size=1)


def work(number: int, path: Path) -> None:
    torch.set_num_threads(1)
    # A process that waits in vain is to fail, not to hang.
    options: dict[str, Any] = {"rank": number, "world_size": 2, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", init_method=(path / "meet").as_uri(), **options)
    try:
        compare(number, path)
    finally:
        dist.destroy_process_group()
    # Past the interpreter's own end: gloo now and then aborts there after a connection was lost.
    os._exit(0)


def compare(number: int, path: Path) -> None:
    with process_group("cpu"):
        sums(number)
        refusals()
        # Small, so that a pool is drawn and images are compared in two stages.
        data_patches.POOL_PATCHES, base.FIRST_PATCHES = 64, 75
        np.savez(path / f"{number}.npz", **fitted(shard(N_IMAGES, number, 2)), **shares(path))
    assert (rank(), size()) == (0, 1)
    dist.barrier()  # the group that was there before is left as it was
    with process_group("cpu"):
        if number == 0:
            with pytest.raises(CvxcnnError, match="process 0 of 2 lost contact"):
                all_sum(torch.zeros(1))
    if number == 0:
        (path / "told").touch()


def in_two_processes(function: Callable[..., None], path: Path) -> None:
    torch.multiprocessing.spawn(function, args=(path,), nprocs=2)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """What two processes found, and what one did."""
    path = tmp_path_factory.mktemp("two")
    write_pictures(path)
    in_two_processes(work, path)
    assert (path / "told").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_patches, "POOL_PATCHES", 64)
        one = fitted(slice(None))
    for name, loaded in zip(("train", "test"), load_data(path / "pictures"), strict=True):
        one |= {f"pictures.{name}": loaded.images, f"pictures.{name}.labels": loaded.labels}
    return [dict(np.load(path / f"{number}.npz")) for number in range(2)], one


@pytest.mark.parametrize("what", [*BLOCKS, *STACKS, "balanced", "distinct"])
def test_two_processes_find_what_one_finds(what: str, both: Any) -> None:
    two, one = both
    names = [name for name in one if name.startswith(what)]
    assert names
    for name in names:
        assert np.array_equal(two[0][name], two[1][name]), name
        scale = np.abs(one[name]).max(initial=0.0)
        assert two[0][name].shape == np.shape(one[name]), name
        assert np.abs(two[0][name] - one[name]).max(initial=0.0) <= 1e-8 * scale, name


@pytest.mark.parametrize("split", ["train", "test"])
def test_each_process_loads_its_share_of_the_images(split: str, both: Any) -> None:
    two, one = both
    for name in (f"pictures.{split}", f"pictures.{split}.labels"):
        assert [len(found[name]) for found in two] == [6, 6]
        # Grey images among those in colour are in colour, wherever those are.
        assert np.array_equal(np.concatenate([found[name] for found in two]), one[name])


def test_the_gates_are_to_the_last_bit_those_of_one_process(both: Any) -> None:
    two, one = both
    for name in (*(f"{name}.gates" for name in BLOCKS), "distinct.vectors"):
        assert np.array_equal(two[0][name], one[name]), name
    assert list(one["distinct"]) == [8, 6, 2]


def test_the_command_line_with_two_processes(tmp_path: Path, blank_pictures: None) -> None:
    options = {"layers": 2, "limit_train": 100, "gates": 20, "starts": 0, "solver": "fista"}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "cvxcnn.train"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *launch, *arguments, "--output", str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("layer 2: objective") == 1
    assert "2 processes, each with a share of the images; no ordinary training for comparison" in done.stdout
    two = json.loads((tmp_path / "two" / "summary.json").read_text())
    one = run(Settings(**options, baseline=False, output=str(tmp_path / "one")))
    assert sorted(os.listdir(tmp_path / "two")) == sorted(os.listdir(tmp_path / "one"))
    assert two["data"] == one["data"]
    assert two["settings"]["baseline"] is False
    for ours, theirs in zip(two["layers"], one["layers"], strict=True):
        assert ours["reg"] == pytest.approx(theirs["reg"], rel=1e-8)
        for name in ("objective", "dual_bound", "train_accuracy", "test_accuracy"):
            assert ours["convex"][name] == pytest.approx(theirs["convex"][name], rel=1e-8), name
        assert ours["convex"]["n_neurons"] == theirs["convex"]["n_neurons"]


# In one process.


@pytest.mark.parametrize("count", [0, 1, 5, 12, 100])
@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_shares_are_consecutive_and_balanced(count: int, processes: int) -> None:
    shares = [range(count)[shard(count, number, processes)] for number in range(processes)]
    assert [row for share in shares for row in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with process_group("cpu"):
        values = torch.arange(6.0).view(3, 2)
        assert (rank(), size(), row_counts(values)) == (0, 1, [3])
        assert all(found is values for found in (all_sum(values), gather_rows(values), broadcast(values)))
        assert all_mean(values).tolist() == [2, 3]
        assert not dist.is_initialized()


def test_a_group_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=(tmp_path / "meet").as_uri(), rank=0, world_size=1)
    try:
        values = torch.ones(2)
        assert all_sum(values) is values
        with process_group("cpu"):
            assert all_sum(values).tolist() == [1, 1]
        assert all_sum(values) is values
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_processes_that_cannot_be_joined_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(CvxcnnError, match=r"the 2 processes can't be joined: .*RANK.* Start them by torchrun"), \
            process_group("cpu"):  # fmt: skip
        pass
    assert size() == 1


@pytest.mark.parametrize("value", ["", " ", "1", " 1 "])
def test_an_empty_number_of_processes_is_one(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    monkeypatch.setenv("RANK", "")
    with process_group("cpu"):
        assert (rank(), size()) == (0, 1) and not dist.is_initialized()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"WORLD_SIZE": "two"},
            "WORLD_SIZE must be an int >= 1, .*; got 'two'. Start the processes by torchrun, or unset",
        ),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE must be an int >= 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be an int >= 1"),
        ({"WORLD_SIZE": "-3"}, "WORLD_SIZE must be an int >= 1"),
        ({"WORLD_SIZE": "2", "RANK": ""}, "RANK must be an int >= 0, .*; got ''"),
        ({"WORLD_SIZE": "2", "RANK": "first"}, "RANK must be an int >= 0, .*; got 'first'"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK must be an int >= 0"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK must be below WORLD_SIZE; got 2 and 2"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"},
            "2 processes can't be joined",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": ""},
            "2 processes can't be joined",
        ),
    ],
)
def test_an_environment_of_no_numbers_is_one_sentence(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CvxcnnError, match=message), process_group("cpu"):
        pass
    assert size() == 1 and not dist.is_initialized()


@pytest.mark.parametrize("value", ["x", "-1"])
def test_a_place_on_the_machine_that_is_no_number(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", value)
    with pytest.raises(InputError, match="LOCAL_RANK must be an int >= 0"), process_group("cuda"):
        pass


def test_each_process_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"process 2 of this machine has no GPU .*finds 1\. Use --nproc-per-node 1"), \
            process_group("cuda"):  # fmt: skip
        pass


def test_more_processes_than_images_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cvxcnn.runs.settings.size", lambda: 500)
    with pytest.raises(InputError, match="40 images can't be shared by 500 processes"):
        run(Settings(layers=1, limit_train=40, gates=5, output=str(tmp_path / "run")))
    assert not list(tmp_path.iterdir())


def test_standardizer_has_mean_and_deviation_of_all_pixels() -> None:
    images, _ = data()
    found = Standardizer.of(images)
    assert torch.allclose(found.mean, images.mean(dim=(0, 2, 3)), rtol=1e-13, atol=1e-15)
    assert torch.allclose(found.scale, images.std(dim=(0, 2, 3), correction=0), rtol=1e-13)


def test_gates_are_compared_in_two_stages_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, vectors = alike(), gates_with_copies()
    whole = distinct(patches, vectors)
    counted = []

    def count(patches: Patches, vectors: torch.Tensor, *seed: int) -> torch.Tensor:
        counted.append((patches.n_images, len(vectors)))
        return fingerprints(patches, vectors, *seed)

    fingerprints = base._fingerprints
    monkeypatch.setattr(base, "_fingerprints", count)
    for first in (1, 36, 37, 40):
        monkeypatch.setattr(base, "FIRST_PATCHES", first * patches.n_patches)
        counted.clear()
        staged = distinct(patches, vectors)
        assert torch.equal(staged.vectors, whole.vectors)
        assert (staged.n_duplicates, staged.n_zero) == (whole.n_duplicates, whole.n_zero) == (6, 2)
        met = [tuple(row.tolist()) for row in patterns(patches, vectors)[:, :first].flatten(1)]
        # Copies of one vector leave no doubt; other vectors of the same pattern do.
        alike_there = [
            {tuple(v.tolist()) for v, other in zip(vectors, met, strict=True) if other == row} for row in met
        ]
        doubtful = sum(len(found) > 1 or not any(row) for found, row in zip(alike_there, met, strict=True))
        assert counted == [(first, 16), (N_IMAGES, doubtful)]
    assert doubtful < 16


def test_draws_of_rounds_are_compared_in_two_stages_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(-1, 2, (30, 1, 3, 3), generator=torch.Generator().manual_seed(0)).double()
    patches = Patches(images, PatchGeometry(kernel_size=2))

    def draw(patches: Patches, count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(-1, 2, (count, patches.dim), generator=generator).double()

    whole = base.draw_distinct(draw, patches, 40, torch.Generator().manual_seed(0))
    assert whole.n_duplicates > 10
    for first in (1, 3, 10):
        monkeypatch.setattr(base, "FIRST_PATCHES", first * patches.n_patches)
        staged = base.draw_distinct(draw, patches, 40, torch.Generator().manual_seed(0))
        assert torch.equal(staged.vectors, whole.vectors)
        assert (staged.n_duplicates, staged.n_zero) == (whole.n_duplicates, whole.n_zero)
