"""Runs that are broken off: no finished layer is lost, and going on ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eq2 import eq2_block
from problems import digits
from rich.console import Console

import cvxcnn.runs.records
import cvxcnn.runs.run
from cvxcnn import ConvexConvBlock, LayerwiseCNN, PricingOptions
from cvxcnn.commands.train import main
from cvxcnn.errors import InputError, ModelFileError
from cvxcnn.models.saving import load_model
from cvxcnn.reports.history import read_history
from cvxcnn.reports.html import FINDINGS, write_report
from cvxcnn.runs.run import Settings, drawings, resume, run
from cvxcnn.runs.run_folder import hidden_folder

pytestmark = pytest.mark.usefixtures("blank_pictures")

QUICK = Settings(
    layers=2, limit_train=40, reg=2.0, gates=8, starts=8, baseline_width=4, baseline_epochs=1, output="out"
)
OPTIONS = [
    "--layers", "2", "--limit-train", "40", "--reg", "2", "--gates", "8", "--starts", "8",
    "--baseline-width", "4", "--baseline-epochs", "1", "--output", "out",
]  # fmt: skip


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def without_seconds(folder: str) -> dict[str, Any]:
    summary = json.loads(Path(folder, "summary.json").read_text())
    for layer in summary["layers"]:
        for method in ("convex", "nonconvex"):
            layer[method].pop("seconds")
    summary["settings"].pop("output")
    summary.pop("date")
    return dict(summary)


def break_off(monkeypatch: pytest.MonkeyPatch, error: BaseException, layer: int = 1) -> None:
    """Make ordinary training fail at a layer, counted from 0."""
    train, calls = cvxcnn.runs.records.train_baseline, iter(range(100))

    def fail(*arguments: Any, **options: Any) -> Any:
        if next(calls) == layer:
            raise error
        return train(*arguments, **options)

    monkeypatch.setattr(cvxcnn.runs.records, "train_baseline", fail)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a run that nothing happened to."""
    path = str(tmp_path_factory.mktemp("whole") / "run")
    run(Settings(**{**vars(QUICK), "output": path}))
    return path


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a run that was interrupted in its second layer."""
    path = str(tmp_path_factory.mktemp("interrupted") / "run")
    with pytest.MonkeyPatch.context() as patched:
        break_off(patched, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(Settings(**{**vars(QUICK), "output": path}))
    return path


def same_as(whole: str, folder: str) -> None:
    assert without_seconds(folder) == without_seconds(whole)
    for name in ("model.safetensors", "baseline.safetensors"):
        assert Path(folder, name).read_bytes() == Path(whole, name).read_bytes()
    assert sorted(os.listdir(folder)) == sorted(os.listdir(whole))
    assert not hidden_folder(Path(folder)).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "Disk full"), RuntimeError("a bug")])
def test_an_interrupted_run_is_usable_and_goes_on(
    error: BaseException, whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        break_off(patched, error)
        with pytest.raises(type(error)):
            run(QUICK)
    assert len(json.loads(Path("out/summary.json").read_text())["layers"]) == 1
    assert len(load_model("out").blocks_) == 1 and Path("out/report.html").is_file()
    resume("out")
    same_as(whole, "out")


def test_a_run_whose_files_an_editor_on_windows_saved_goes_on(whole: str, interrupted: str) -> None:
    shutil.copytree(interrupted, "out")
    for name in ("summary.json", "config.json", "history.csv"):
        lines = Path("out", name).read_bytes().splitlines()
        Path("out", name).write_bytes(b"\xef\xbb\xbf" + b"".join(line + b"\r\n" for line in lines))
    write_report("out")
    assert Path("out/report.html").read_bytes() == Path(interrupted, "report.html").read_bytes()
    resume("out")
    same_as(whole, "out")


def test_a_killed_run_goes_on_from_its_last_layer(whole: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = cvxcnn.runs.records.write_checkpoint

    def write_and_copy(partial: Path, *arguments: Any) -> None:
        write(partial, *arguments)
        if (partial / "layers-1").exists():
            (partial / ".draft").mkdir()  # as if it had been killed while it wrote the next
            shutil.copytree(partial, "copy")

    with monkeypatch.context() as patched:
        patched.setattr(cvxcnn.runs.records, "write_checkpoint", write_and_copy)
        break_off(patched, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(QUICK)
    shutil.rmtree("out")
    os.rename("copy", ".out.partial")
    with pytest.raises(InputError, match=r"go on with it by --resume out"):
        run(QUICK)
    resume("out")
    same_as(whole, "out")


def test_a_run_killed_before_its_first_layer_begins_again(whole: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = cvxcnn.runs.records.write_checkpoint

    def write_and_copy(partial: Path, *arguments: Any) -> None:
        write(partial, *arguments)
        shutil.copytree(partial, "copy")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cvxcnn.runs.records, "write_checkpoint", write_and_copy)
        with pytest.raises(KeyboardInterrupt):
            run(QUICK)
    assert os.listdir() == ["copy"]
    os.rename("copy", ".out.partial")
    resume("out")
    same_as(whole, "out")


def test_a_layer_whose_checkpoint_fails_is_not_counted(whole: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = cvxcnn.runs.records.write_checkpoint

    def fail_at_two(partial: Path, state: Any, extra: Any) -> None:
        if len(state.summary["layers"]) == 2:
            raise OSError(28, "Disk full")
        write(partial, state, extra)

    with monkeypatch.context() as patched:
        patched.setattr(cvxcnn.runs.records, "write_checkpoint", fail_at_two)
        with pytest.raises(OSError, match="Disk full"):
            run(QUICK)
    assert len(json.loads(Path("out/summary.json").read_text())["layers"]) == 1
    assert {point.layer for point in read_history("out/history.csv")} == {1}
    resume("out")
    same_as(whole, "out")


def test_a_run_that_fails_at_its_very_end_is_only_written(whole: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "Disk full")

    with monkeypatch.context() as patched:
        patched.setattr(cvxcnn.runs.run, "write_metrics", fail)
        with pytest.raises(OSError, match="Disk full"):
            run(QUICK)
    with monkeypatch.context() as patched:
        patched.setattr(ConvexConvBlock, "fit", fail)
        resume("out")
    same_as(whole, "out")


DRAWN = ("accuracy.png", "explanations_quick.png", "objective.png", "report.html")
STEPS = ("objective.png", "accuracy.png", "explanations_quick.png", "report.html")


def failing(error: BaseException) -> Any:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    return fail


def failing_at(patched: pytest.MonkeyPatch, steps: Sequence[str], error: BaseException) -> None:
    """Make the drawing of some files fail."""
    whole = drawings()
    patched.setattr(cvxcnn.runs.run, "drawings", lambda: {**whole, **dict.fromkeys(steps, failing(error))})


def train_quickly(*more: str) -> int:
    return main([*OPTIONS, *more])


@pytest.mark.parametrize(
    ("steps", "error", "words"),
    [
        (STEPS[:1], OSError(28, "No space left on device"), "No space left on device"),
        (STEPS[1:3], AssertionError("captum\nsays"), "AssertionError: captum says"),
        (STEPS, MemoryError(), "MemoryError"),
    ],
)
def test_no_figure_that_fails_loses_a_training(
    steps: tuple[str, ...], error: Exception, words: str, whole: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with monkeypatch.context() as patched:
        failing_at(patched, steps, error)
        # Quiet too says what went wrong.
        assert train_quickly("--quiet") == 0
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert shown.out == "" and len(lines) == len(steps) and all(line.endswith(words) for line in lines)
    missing = [name for name in DRAWN if f" {name} can't be drawn: " in shown.err]
    assert len(missing) == len(steps)
    assert sorted(os.listdir("out")) == sorted(set(os.listdir(whole)) - set(missing))
    assert without_seconds("out") == without_seconds(whole) and len(load_model("out").blocks_) == 2
    # What is missing is drawn by going on, without another fit.
    with monkeypatch.context() as patched:
        patched.setattr(ConvexConvBlock, "fit", failing(RuntimeError("fitted again")))
        assert main(["--resume", "out"]) == 0
    assert "Written to out; open out/report.html in a browser" in capsys.readouterr().out
    same_as(whole, "out")
    assert main(["--resume", "out"]) == 2


def test_without_matplotlib_there_are_the_numbers_and_a_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cvxcnn.drawing.style.import_matplotlib", failing(ImportError("no matplotlib")))
    assert train_quickly() == 0
    shown = capsys.readouterr().out
    assert shown.count("ImportError: no matplotlib") == 8  # four figures, and four parts of the page
    assert "report.html is without the figures of convergence" in shown
    assert "These figures could not be drawn: ImportError" in Path("out/report.html").read_text()
    assert {"metrics.csv", "report.html", "summary.json"} < set(os.listdir("out"))


@pytest.mark.parametrize("step", [STEPS[0], STEPS[3]])
def test_a_run_interrupted_while_it_is_drawn_has_its_numbers(
    step: str, whole: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        failing_at(patched, [step], KeyboardInterrupt())
        assert train_quickly() == 130
    assert capsys.readouterr().err == (
        "cvxcnn.train: interrupted; the model and its numbers are in out; draw the rest by --resume out.\n"
    )
    assert len(load_model("out").blocks_) == 2 and not hidden_folder(Path("out")).exists()
    assert main(["--resume", "out"]) == 0
    same_as(whole, "out")


def test_command_line(whole: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with monkeypatch.context() as patched:
        break_off(patched, KeyboardInterrupt())
        assert main(OPTIONS) == 130
    assert capsys.readouterr().err == ("cvxcnn.train: interrupted; 1 of 2 layers are kept; go on with --resume out.\n")
    assert main(["--resume", "out", "--layers", "2", "--gates", "9"]) == 2
    assert "--resume takes the settings of the run in out. Leave out --gates." in capsys.readouterr().err
    assert main(["--resume", "out"]) == 0
    assert "1 of 2 layers are there already" in capsys.readouterr().out
    same_as(whole, "out")
    assert main(["--resume", "out"]) == 2
    assert "the run in out is complete: it has all of its 2 layers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda: shutil.rmtree("out"), "There is no run to go on with in out"),
        (lambda: Path("out/summary.json").write_text("{"), "summary.json is damaged: JSONDecodeError"),
        (lambda: Path("out/summary.json").write_text("[]"), "summary.json is damaged: TypeError"),
        (lambda: Path("out/model.safetensors").write_bytes(b"x"), "model.safetensors"),
        (lambda: Path("out/baseline.safetensors").unlink(), "baseline.safetensors is missing"),
        (lambda: edit("settings", "downsample", 3), "The settings of the run in out are damaged"),
        (lambda: edit("settings", "layers", "many"), "damaged|layers must be"),
        (lambda: edit("settings", "layers", 1.5), "damaged"),
        (lambda: edit("settings", "gates", None), "damaged"),
        (lambda: edit("settings", "memory", "x"), "damaged"),
        (lambda: edit("settings", "seed", None), "damaged"),
        (lambda: edit("settings", "validation", "x"), "damaged"),
        (lambda: edit("settings", "augment", 1.5), "damaged"),
        (lambda: edit("layers", 0, None), "summary.json is damaged: TypeError"),
        (lambda: edit("layers", 0, {"reg": 1.0, "convex": "x"}), "summary.json is damaged: ValueError"),
        (lambda: edit("data", "n_train", 41), "the images are not those that the run began with"),
    ],
)
def test_what_can_not_be_gone_on_with(damage: Any, message: str, interrupted: str) -> None:
    shutil.copytree(interrupted, "out")
    damage()
    with pytest.raises((InputError, ModelFileError), match=message):
        resume("out", Console(quiet=True))


@pytest.mark.parametrize("name", ["", "file", "file/below", "loop/below", "~nobody_of_that_name/run", "x" * 300])
def test_what_is_no_run_is_one_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("mine")
    os.symlink("loop", "loop")
    assert main(["--resume", name]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(os.listdir()) == ["file", "loop"]


def test_a_finished_run_goes_on_to_more_layers(whole: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(Settings(**{**vars(QUICK), "layers": 1}))
    for name in FINDINGS:  # as if it had been explained and diagnosed
        Path("out", name).write_text("of one layer")
    assert main(["--resume", "out", "--layers", "1"]) == 2
    assert "error: --layers must be more than the 1 that the run in out has; got 1." in capsys.readouterr().err
    assert main(["--resume", "out", "--layers", "2"]) == 0
    same_as(whole, "out")


def edit(table: str, name: str | int, value: Any) -> None:
    path = Path("out/summary.json")
    summary = json.loads(path.read_text())
    summary[table][name] = value
    path.write_text(json.dumps(summary))


def test_a_stack_keeps_finished_blocks() -> None:
    images, labels = digits(60)
    targets = np.eye(10)[labels]
    block = eq2_block(padding=1, pooling="mean", gates=8, penalty="dense", reg=0.5, pricing=PricingOptions(starts=0))
    first = LayerwiseCNN(layers=1, block=block, downsample=2).fit(images, targets)
    heard: list[int] = []
    both = LayerwiseCNN(layers=2, block=block, downsample=2)
    both.fit(images, targets, finished=first, on_layer=lambda layer, *_: heard.append(layer))
    assert heard == [1] and both.blocks_[0] is first.blocks_[0]
    again = LayerwiseCNN(layers=2, block=block, downsample=2).fit(images, targets)
    assert torch.equal(torch.from_numpy(both.predict(images)), torch.from_numpy(again.predict(images)))
