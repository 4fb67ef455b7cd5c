"""The command line: what a run leaves behind, and that a run that fails leaves nothing."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import cvxcnn.runs.progress
import cvxcnn.runs.settings
from cvxcnn import __version__, nonconvex_objective
from cvxcnn.commands.train import build_parser, main, settings_of
from cvxcnn.data import ImageSet, limit, load_data, one_hot
from cvxcnn.data.fingerprint import fingerprint
from cvxcnn.errors import DataError, InputError, SolverError
from cvxcnn.models.saving import load_model
from cvxcnn.patches import Patches
from cvxcnn.reports.history import read_history
from cvxcnn.runs.records import accuracy, finite
from cvxcnn.runs.run import run
from cvxcnn.runs.run_folder import OutputFolder, default_output
from cvxcnn.runs.settings import Settings, build_stack

pytestmark = pytest.mark.usefixtures("blank_pictures")

QUICK = ["--layers", "1", "--limit-train", "40", "--reg", "10", "--gates", "8", "--starts", "8"]
FILES = [
    "accuracy.png", "config.json", "exciting_patches.png", "explanations_quick.png", "history.csv",
    "metrics.csv", "mistakes.png", "model.safetensors", "objective.png", "predictions.csv",
    "report.html", "summary.json",
]  # fmt: skip
CONVEX = {
    "objective", "dual_bound", "relative_gap", "status", "solver", "n_neurons", "train_loss", "train_accuracy",
    "test_accuracy", "seconds", "global_bound", "global_gap", "certificate", "n_searched",
    "networks", "n_distinct", "expected_unseen",
}  # fmt: skip
NONCONVEX = {
    "objective", "n_neurons", "train_accuracy", "test_accuracy", "seconds", "only_convex_right", "only_nonconvex_right",
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Settings, dict[str, Any]]:
    """A run of two layers with its baseline, and what it returned."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = Settings(
        layers=2,
        limit_train=100,
        reg=10.0,
        gates=10,
        starts=8,
        baseline_epochs=30,
        baseline_width=16,
        output=str(folder),
    )
    return folder, settings, run(settings)


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    train, test = load_data("digits")
    return limit(train, 100, 0), test


# What a run leaves behind.


def test_the_folder_holds_these_files_and_no_others(finished: tuple[Path, Settings, Any]) -> None:
    folder, _, _ = finished
    assert sorted(os.listdir(folder)) == sorted([*FILES, "baseline.safetensors"])
    assert os.listdir(folder.parent) == ["run"]
    for name in ("objective.png", "accuracy.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    with (folder / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4


def test_the_summary_has_the_contracts_shape(
    finished: tuple[Path, Settings, dict[str, Any]], digits: tuple[ImageSet, ImageSet]
) -> None:
    folder, settings, returned = finished
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == returned
    assert list(summary) == ["version", "command", "date", "processor", "data", "settings", "layers"]
    assert summary["version"] == __version__
    assert summary["data"] == {
        "name": "digits", "path": None, "n_train": 100, "n_test": 360, "image_shape": [1, 8, 8], "n_classes": 10,
        "fingerprint": {"train": fingerprint(digits[0]), "test": fingerprint(digits[1])},
    }  # fmt: skip
    names = {field.name for field in fields(Settings)}
    assert set(summary["settings"]) == names | {"threads", "python", "torch", "numpy"}
    assert summary["settings"]["seed"] == 0
    assert summary["settings"]["device"] in ("cpu", "cuda")
    assert [entry["layer"] for entry in summary["layers"]] == [1, 2]
    for entry in summary["layers"]:
        assert set(entry) == {"layer", "reg", "convex", "nonconvex"}
        assert entry["reg"] == settings.reg
        assert set(entry["convex"]) == CONVEX
        assert set(entry["nonconvex"]) == NONCONVEX
        convex = entry["convex"]
        assert convex["certificate"] == "searched"
        assert convex["relative_gap"] <= settings.tol
        assert convex["global_bound"] <= convex["dual_bound"] <= convex["objective"]
        assert entry["nonconvex"]["objective"] >= convex["global_bound"] * (1 - 1e-3)


def test_the_saved_model_gives_the_summarys_numbers(
    finished: tuple[Path, Settings, dict[str, Any]], digits: tuple[ImageSet, ImageSet]
) -> None:
    folder, settings, summary = finished
    train, test = digits
    model = load_model(folder)
    assert model.extra_["classes"] == [str(digit) for digit in range(10)]
    assert model.extra_["reg"] == [settings.reg, settings.reg]
    targets = one_hot(train.labels, 10)
    tests = list(model.staged_predict(test.images))
    for (block, inputs), tested, entry in zip(model.layer_inputs(train.images), tests, summary["layers"], strict=True):
        convex = entry["convex"]
        value = nonconvex_objective(block.to_torch(), inputs, targets, settings.reg)
        assert value == pytest.approx(convex["objective"], rel=1e-9)
        assert accuracy(block.predict(inputs), train.labels) == convex["train_accuracy"]
        assert accuracy(tested, test.labels) == convex["test_accuracy"]
        assert block.n_neurons_ == convex["n_neurons"]


def test_the_baseline_is_eq_1_on_the_same_inputs(
    finished: tuple[Path, Settings, dict[str, Any]], digits: tuple[ImageSet, ImageSet]
) -> None:
    folder, settings, summary = finished
    train, test = digits
    tensors = load_file(folder / "baseline.safetensors")
    model = load_model(folder)
    test_inputs = [inputs for _, inputs in model.layer_inputs(test.images)]
    for layer, (block, inputs) in enumerate(model.layer_inputs(train.images)):
        filters, readout = tensors[f"layers.{layer}.filters"], tensors[f"layers.{layer}.readout"]
        assert len(filters) == max(settings.baseline_width, block.n_neurons_)
        found = summary["layers"][layer]["nonconvex"]
        predictions = [
            torch.einsum("ncm,mco->no", Patches(images, block.geometry_).relu_features(filters), readout)
            for images in (inputs, test_inputs[layer])
        ]
        loss = 0.5 * float((predictions[0] - one_hot(train.labels, 10)).square().sum())
        value = loss + 0.5 * settings.reg * float(filters.square().sum() + readout.square().sum())
        assert value == pytest.approx(found["objective"], rel=1e-9)
        assert accuracy(predictions[0].numpy(), train.labels) == found["train_accuracy"]
        assert accuracy(predictions[1].numpy(), test.labels) == found["test_accuracy"]
        convex = block.predict(test_inputs[layer]).argmax(axis=1) == test.labels
        ordinary = predictions[1].numpy().argmax(axis=1) == test.labels
        assert found["only_convex_right"] == int((convex & ~ordinary).sum())
        assert found["only_nonconvex_right"] == int((ordinary & ~convex).sum())


def test_the_history_ends_in_the_summarys_numbers(finished: tuple[Path, Settings, dict[str, Any]]) -> None:
    folder, _, summary = finished
    points = read_history(folder / "history.csv")
    for entry in summary["layers"]:
        for method in ("convex", "nonconvex"):
            own = [p for p in points if (p.layer, p.method) == (entry["layer"], method)]
            assert own[-1].objective == entry[method]["objective"]
            assert own[-1].seconds == entry[method]["seconds"]
            assert all(first.seconds <= second.seconds for first, second in pairwise(own))
        # Ten random gates: the bound is over those.
        convex = [p for p in points if (p.layer, p.method) == (entry["layer"], "convex")]
        assert {p.bound_over for p in convex} == {"gates at hand"}
        assert convex[-1].bound == entry["convex"]["dual_bound"]


def test_without_a_reg_each_layer_has_its_share_of_its_own_reg_max(
    digits: tuple[ImageSet, ImageSet], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--layers", "2", "--limit-train", "100", "--reg-fraction", "0.2", "--gates", "8", "--starts", "8",
        "--no-baseline",
    ]  # fmt: skip
    assert main([*arguments, "--output", "out"]) == 0
    summary = json.loads(Path("out/summary.json").read_text())
    assert (summary["settings"]["reg"], summary["settings"]["reg_fraction"]) == (None, 0.2)
    model = load_model("out")
    regs = [entry["reg"] for entry in summary["layers"]]
    assert model.extra_["reg"] == regs
    targets = one_hot(digits[0].labels, 10)
    for (block, inputs), entry in zip(model.layer_inputs(digits[0].images), summary["layers"], strict=True):
        assert entry["reg"] == pytest.approx(0.2 * block.reg_max(inputs, targets), rel=1e-9)
        # With this reg, Eq. 1 from outside is what the summary says.
        value = nonconvex_objective(block.to_torch(), inputs, targets, entry["reg"])
        assert value == pytest.approx(entry["convex"]["objective"], rel=1e-9)
    assert regs[0] != regs[1]


def test_rounds_reach_the_blocks() -> None:
    assert build_stack(Settings(rounds=2)).block[0].pricing.max_rounds == 2


def without_seconds(summary: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(summary))
    del copied["settings"]["output"], copied["date"]
    for entry in copied["layers"]:
        for method in ("convex", "nonconvex"):
            if entry[method] is not None:
                del entry[method]["seconds"]
    return copied


def test_the_same_seed_gives_the_same_summary(finished: tuple[Path, Settings, dict[str, Any]], tmp_path: Path) -> None:
    _, settings, summary = finished
    again = run(replace(settings, output=str(tmp_path / "again")))
    assert without_seconds(again) == without_seconds(summary)
    other = run(replace(settings, layers=1, baseline=False, seed=1, output=str(tmp_path / "other")))
    assert other["layers"][0]["convex"]["objective"] != summary["layers"][0]["convex"]["objective"]


def test_the_documented_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--layers", "1", "--limit-train", "200", "--reg", "20", "--no-baseline", "--output", "out"]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "digits: 200 training and 360 test images" in shown.out
    assert "layer 1: objective" in shown.out
    assert "Written to out" in shown.out
    assert sorted(os.listdir("out")) == FILES
    (entry,) = json.loads(Path("out/summary.json").read_text())["layers"]
    assert entry["nonconvex"] is None
    assert entry["convex"]["solver"] == "priced"
    assert entry["convex"]["global_gap"] < 1e-2


def test_the_group_penalty_is_compared_with_a_group_network_and_a_dense_one() -> None:
    arguments = [*QUICK, "--penalty", "group", "--pool-cells", "1", "--baseline-epochs", "5", "--output", "out"]
    assert main([*arguments, "--baseline-width", "30", "--quiet"]) == 0
    (entry,) = json.loads(Path("out/summary.json").read_text())["layers"]
    assert set(entry["nonconvex"]) == NONCONVEX | {"dense_test_accuracy"}
    readout = load_file("out/baseline.safetensors")["layers.0.readout"]
    # As many neurons for each output and sign, and each feeds one.
    assert readout.shape == (40, 1, 10)
    assert int((readout != 0).flatten(1).sum(dim=1).max()) == 1


def test_gated_networks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--activation", "gated_relu", "--pool-cells", "1", "--no-baseline", "--output", "out"]) == 0
    assert load_model("out").blocks_[0].penalty == "nuclear"


def test_quadratic_networks_with_a_decay(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--layers", "1", "--limit-train", "40", "--activation", "quadratic", "--decay", "3,3"]
    assert main([*arguments, "--no-baseline", "--output", "out"]) == 0
    assert json.loads(Path("out/summary.json").read_text())["settings"]["decay"] == [3.0, 3.0]
    block = load_model("out").blocks_[0]
    assert block.decay == (3.0, 3.0)
    # |u|^3 = |a|^3, to rounding.
    sizes = block.neurons_.filters.norm(dim=1) / block.neurons_.readout.flatten(1).norm(dim=1)
    assert float((sizes - 1).abs().max()) < 1e-9


def test_quiet_says_nothing_and_an_empty_folder_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    node = Path("out").stat().st_ino
    assert main([*QUICK, "--no-baseline", "--quiet", "--output", "out"]) == 0
    assert capsys.readouterr() == ("", "")
    assert sorted(os.listdir("out")) == FILES
    assert Path("out").stat().st_ino == node
    assert os.listdir() == ["out"]


def test_the_default_folder_has_data_and_time_in_its_name() -> None:
    assert main([*QUICK, "--no-baseline", "--quiet"]) == 0
    (name,) = os.listdir("runs")
    date, clock = name.removeprefix("digits-").split("-")
    assert len(date) == 8 and len(clock) == 6
    assert default_output("some where/my data.npz").name.startswith("my_data-")
    assert default_output("..").name.startswith("data-")


def test_a_module_run_as_a_program() -> None:
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "cvxcnn.train",
        *QUICK,
        "--no-baseline",
        "--output",
        "a/b/out",
    ]
    root = str(Path(cvxcnn.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(os.listdir("a/b/out")) == FILES


def test_results_are_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    for name in FILES:
        Path("out", name).write_text("mine")
    assert main([*QUICK, "--output", "out"]) == 2
    assert "out isn't empty: it holds summary.json. Give another --output, or delete it." in capsys.readouterr().err
    assert {Path("out", name).read_text() for name in os.listdir("out")} == {"mine"}


# The command line itself.


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cvxcnn {__version__}\n"
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "(default: 0.01)" in text and "(default: None)" not in text
    for name in Settings.__dataclass_fields__.keys() - {"asked"}:  # which says what was typed
        flags = {"baseline": "--no-baseline", "rivals": "--baseline"}
        flag = flags.get(name, f"--{name.replace('_', '-')}")
        assert flag in text


def test_defaults_and_arguments_become_settings() -> None:
    def parse(*arguments: str) -> Settings:
        return settings_of(vars(build_parser().parse_args(arguments)))

    assert parse() == Settings()
    assert parse("--downsample", "3", "2", "1", "--gates", "50", "--no-baseline") == Settings(
        downsample=(3, 2, 1), gates=50, baseline=False
    )
    assert parse("--reg-fraction", "0.5", "--rounds", "7") == Settings(reg_fraction=0.5, rounds=7)
    assert parse("--reg", "2") == Settings(reg=2.0)
    assert parse("--activation", "gated_relu").penalty == "nuclear"
    assert parse("--output", "x").output == "x"
    assert parse("--activation", "quadratic", "--decay", "path").decay == "path"
    assert parse("--activation", "quadratic", "--decay", "6,1.5").decay == (6.0, 1.5)


BAD = [
    (["--layers", "0"], "--layers must be an int >= 1; got 0"),
    (["--layers", "two"], "--layers must be an int >= 1; got two"),
    (["--layers"], "--layers expected one argument"),
    (["--lay", "1"], "there is no option --lay: did you mean --layers?"),
    (["--frobnicate=1"], "there is no option --frobnicate. --help lists them."),
    (["--reg", "0"], "--reg must be a positive, finite number; got 0"),
    (["--reg", "-1"], "--reg must be a positive, finite number; got -1"),
    (["--reg", "nan"], "--reg must be a positive, finite number; got nan"),
    (["--reg", "much"], "--reg must be a positive, finite number; got much"),
    (["--reg-fraction", "0"], "--reg-fraction must be a positive, finite number; got 0"),
    (["--reg-fraction", "1"], "--reg-fraction must be between 0 and 1; got 1"),
    (["--reg-fraction", "1.5"], "--reg-fraction must be between 0 and 1; got 1.5"),
    (["--rounds", "0"], "--rounds must be an int >= 1; got 0"),
    (["--tol", "inf"], "--tol must be a positive, finite number; got inf"),
    (["--seed", "-1"], "--seed must be an int from 0 to 4294967295; got -1"),
    (
        ["--gates", "0"],
        '--gates must be "priced", a number N >= 1, or one of gaussian:N, gradient:N, patches:N, trained:N, waves:N;',
    ),
    (["--solver", "magic"], "--solver must be one of auto, cone_working_set, cvxpy:CLARABEL, "),
    (["--penalty", "sparse"], "--penalty must be one of dense, group, nuclear; got sparse"),
    (["--activation", "tanh"], "--activation must be one of relu, gated_relu, quadratic, linear; got tanh"),
    (["--decay", "little"], "--decay must be one of path, fixed_sign, or two exponents P,Q; got little"),
    (["--decay", "3,3"], 'decay is for activation="quadratic"'),
    (["--activation", "quadratic", "--decay", "2,2"], "decay=(2, 2), that of Eq. 1, has no convex program"),
    (["--activation", "quadratic", "--decay", "3"], "decay must be a name or two positive exponents"),
    (
        ["--activation", "rellu"],
        "--activation must be one of relu, gated_relu, quadratic, linear; got rellu: did you mean",
    ),
    (["--gates", "patchs:9"], "got 'patchs:9': did you mean patches?"),
    (["--test-fraction", "0.3"], "--test-fraction is for images in folders of their classes; digits has test images"),
    (["--device", "tpu"], "--device must be one of auto, cpu, cuda; got tpu"),
    (["--quiet", "--verbose"], "not allowed with argument"),
    (["--solver", "fista"], "solver 'fista' needs fixed gates: add --gates 100"),
    (["--solver", "fista", "--gates", "5", "--penalty", "group"], "solver 'fista' can't solve this program"),
    (["--penalty", "nuclear"], 'penalty="nuclear" is a gated program'),
    (["--limit-train", "5"], "error: --limit-train must be from 10 (one image a class) to 1437"),
    (["--limit-train", "5000"], "error: --limit-train must be from 10 (one image a class) to 1437"),
    (["--kernel-size", "11"], "layer 1: kernel_size (11, 11) is larger than the padded image"),
    (["--pool-cells", "9"], "layer 1: pool_cells=9 needs feature maps"),
    (["--layers", "3", "--downsample", "9"], "downsample=9 after layer 1 is larger than its 8 x 8 feature maps"),
    (["--output", "file"], "file is a file"),
    (["--output", "file/below"], "can't write to file/below: Not a directory"),
    (["--output", "full"], "full isn't empty: it holds note. Give another --output"),
    (["--output", "x" * 300], "File name too long"),
    (["--output", "nul\0l"], "can't write to"),
    (["--output", "busy"], ".busy.partial is there already"),
]


@pytest.fixture
def littered(tmp_path: Path) -> Iterator[None]:
    """Things in the way of a run, which are as they were afterwards."""
    Path("file").write_text("mine")
    Path("full").mkdir()
    Path("full/note").write_text("mine")
    Path(".busy.partial").mkdir()
    yield
    assert sorted(os.listdir()) == [".busy.partial", "file", "full"]
    assert os.listdir("full") == ["note"]
    assert Path("file").read_text() == Path("full/note").read_text() == "mine"


@pytest.mark.usefixtures("littered")
@pytest.mark.parametrize(("arguments", "text"), BAD)
def test_wrong_usage_is_one_sentence(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = [] if "--limit-train" in arguments else ["--limit-train", "40"]
    assert main([*small, *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("cvxcnn.train: error: ")
    assert text in shown.err
    assert shown.err.count("\n") == 1 and "Traceback" not in shown.err


@pytest.mark.usefixtures("littered")
@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("digts", "digts: did you mean digits?"),
        ("nowhere", "nowhere"),
        ("file", "file"),
        ("full", "full"),
        ("nul\0l", "nul"),
        ("cifar10", "--data"),
    ],
)
def test_data_that_cannot_be_read(
    data: str, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CVXCNN_DATA", raising=False)
    assert main(["--data", data]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("cvxcnn.train: error: ") and text in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_cuda_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cuda"]) == 2
    assert "device cuda was asked for, but torch finds no GPU. Use auto or cpu." in capsys.readouterr().err
    assert os.listdir() == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions don't bind the superuser")
def test_a_folder_that_may_not_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("locked").mkdir(mode=0o500)
    for target in ("locked", "locked/new"):
        assert main([*QUICK, "--output", target]) == 2
        assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (Settings(layers=0), "layers must be an int >= 1; got 0"),
        (Settings(reg=-1.0), "reg must be a positive, finite number"),
        (Settings(reg_fraction=1.5), "reg_fraction must be between 0 and 1"),
        (Settings(rounds=0), "max_rounds must be"),
        (Settings(solver="magic", gates=5), "solver must be"),
        (Settings(seed=-1), "seed must be an int from 0"),
        (Settings(baseline_width=0), "baseline_width must be an int >= 1; got 0"),
        (Settings(downsample=()), "downsample must be"),
        (Settings(device="tpu"), "device must be"),
        (Settings(gates="best"), "gates must be"),
    ],
)
def test_settings_from_python_are_checked_too(settings: Settings, text: str) -> None:
    with pytest.raises(InputError, match=text):
        run(settings)
    assert os.listdir() == []


# Runs that end early.


@pytest.mark.parametrize(
    ("error", "code", "text", "step"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing was written.", "records.train_baseline"),
        (SolverError("It diverged."), 1, "error: It diverged.", "records.train_baseline"),
        (DataError("It is damaged."), 1, "error: It is damaged.", "run.load_sets"),
        (OSError(28, "Disk full"), 1, "error: can't write the results: Disk full.", "records.write_checkpoint"),
        (MemoryError(), 1, "error: out of memory.", "run.load_sets"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you"),
            1,
            "error: out of memory.",
            "records.train_baseline",
        ),
    ],
)
def test_a_run_that_fails_before_a_layer_is_finished_leaves_nothing(
    error: BaseException, code: int, text: str, step: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*arguments: Any, **options: Any) -> None:
        assert any(name.endswith(".partial") for name in os.listdir("new"))
        raise error

    monkeypatch.setattr(f"cvxcnn.runs.{step}", fail)
    arguments = [*QUICK, "--baseline-epochs", "1", "--baseline-width", "4", "--output", "new/out"]
    assert main(arguments) == code
    shown = capsys.readouterr().err
    assert shown.startswith(f"cvxcnn.train: {text}") and shown.count("\n") == 1
    assert os.listdir() == []


def test_a_programming_error_is_not_hidden_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("cvxcnn.models.layers.plan_layers", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main([*QUICK, "--no-baseline", "--output", "out"])
    assert os.listdir() == []


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_run_cleanly(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    load = cvxcnn.runs.settings.load_rows

    def send(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return load(*arguments)

    monkeypatch.setattr(cvxcnn.runs.settings, "load_rows", send)
    assert main(["--output", "out"]) == code
    assert "nothing was written" in capsys.readouterr().err
    assert os.listdir() == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_output_folder_appears_at_once_and_only_when_it_is_complete() -> None:
    with OutputFolder("deep/er/out") as folder:
        (folder.partial / "content").write_text("1")
        assert not Path("deep/er/out").exists()
        with pytest.raises(InputError, match="another run writes to deep/er/out"), OutputFolder("deep/er/out"):
            pass
        folder.publish()
    assert os.listdir("deep/er") == ["out"]
    with OutputFolder("deep/other") as folder:
        (folder.partial / "content").write_text("1")
    # Never published: gone, and what was there before stays.
    assert os.listdir("deep") == ["er"]
    os.symlink("deep", "link")
    with OutputFolder("link/third") as folder:
        folder.publish()
    assert sorted(os.listdir("deep")) == ["er", "third"]


# What is seen.


def test_a_terminal_gets_bars() -> None:
    console = Console(force_terminal=True, width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    run(Settings(layers=1, limit_train=40, reg=20.0, gates=5, baseline_epochs=3, baseline_width=4), console)
    console.file.close()
    text = console.export_text()
    assert "layer 1: objective" in text and "layer 1 in torch: objective" in text and "Written to runs" in text


def test_long_solves_log_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cvxcnn.runs.progress, "LOG_EVERY", 0.0)
    assert main([*QUICK, "--no-baseline", "--gates", "priced", "--verbose", "--output", "out"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"layer 1: round \d+, objective", shown)
    # The library's own log.
    assert "pricing round" in shown


def test_numbers_in_json_are_finite_or_null() -> None:
    assert finite(math.nan) is None
    assert finite(-math.inf) is None
    assert finite(1.5) == 1.5
    assert accuracy(np.eye(3), np.array([0, 1, 1])) == pytest.approx(2 / 3)
