"""Tables, metrics.csv and figures against the numbers of a made-up run."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from cvxcnn import ConvexConvBlock
from cvxcnn.drawing.style import new_figure, save_png
from cvxcnn.errors import InputError
from cvxcnn.reports import figures, metrics, table
from cvxcnn.reports.summary import LayerSummary, RunSummary
from cvxcnn.reports.table import render_text
from cvxcnn.runs.run import Settings
from cvxcnn.runs.run import run as training

# The columns of metrics.csv after layer and method: those that scripts of others read.
METRICS = (
    "objective",
    "dual_bound",
    "relative_gap",
    "global_bound",
    "global_gap",
    "certificate",
    "networks",
    "status",
    "solver",
    "n_neurons",
    "train_accuracy",
    "test_accuracy",
    "seconds",
)


def results_table(content: Any) -> Table:
    return table.results_table(RunSummary.from_json(content))


def write_metrics(content: Any, path: Path) -> None:
    metrics.write_metrics(RunSummary.from_json(content), path)


def plot_objective(content: Any, path: Path) -> None:
    figures.plot_objective(RunSummary.from_json(content), path)


def plot_accuracy(content: Any, path: Path) -> None:
    figures.plot_accuracy(RunSummary.from_json(content), path)


def run(objective: float, accuracy: float, neurons: int, **more: Any) -> dict[str, Any]:
    return {
        "objective": objective,
        "n_neurons": neurons,
        "train_accuracy": accuracy,
        "test_accuracy": accuracy - 0.0123,
        "seconds": 12.25,
        **more,
    }


def convex(objective: float, bound: float | None, kind: str, accuracy: float, neurons: int) -> dict[str, Any]:
    sampled = {"dual_bound": objective - 0.001, "relative_gap": 1.26e-5, "status": "optimal", "solver": "newton"}
    gap = None if bound is None else (objective - bound) / objective
    return run(objective, accuracy, neurons, **sampled, global_bound=bound, global_gap=gap, certificate=kind)


@pytest.fixture
def summary() -> dict[str, Any]:
    return {
        "version": "0.1",
        "data": {"name": "digits", "n_train": 1437, "n_test": 360, "image_shape": [1, 8, 8], "n_classes": 10},
        "settings": {},
        "layers": [
            {
                "layer": 1,
                "convex": convex(298.946, 298.55, "searched", 0.9878, 147),
                "nonconvex": run(299.871, 0.985, 201),
            },
            {"layer": 2, "convex": convex(61.23, 60.5, "proved", 1.0, 33), "nonconvex": run(63.9, 0.999, 202)},
            {"layer": 3, "convex": convex(31.11, None, "none", 0.997, 41), "nonconvex": run(30.9, 0.998, 203)},
        ],
    }


@pytest.fixture
def small(summary: dict[str, Any]) -> dict[str, Any]:
    """One layer, without baseline."""
    small = copy.deepcopy(summary)
    small["layers"] = [{"layer": 1, "convex": small["layers"][0]["convex"], "nonconvex": None}]
    return small


def test_table_puts_convex_and_nonconvex_numbers_side_by_side(summary):
    lines = render_text(results_table(summary), 120).splitlines()
    first = next(line for line in lines if "298.946" in line)
    shown = "1|convex|298.946|298.945|1.3e-05|298.55|(searched)|98.8|97.5|147|12.2"
    assert first.split() == shown.split("|")
    second = lines[lines.index(first) + 1]
    assert second.split() == ["non-convex", "299.871", "-", "-", "-", "98.5", "97.3", "201", "12.2"]
    assert any("60.5 (proved)" in line for line in lines)
    assert lines[0].strip() == "digits: training objective (Eq. 1) and accuracy by layer"


@pytest.mark.parametrize("width", [80, 100])
def test_table_loses_nothing_in_a_narrow_terminal(summary, width):
    text = render_text(results_table(summary), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for layer in summary["layers"]:
        for method in ("convex", "nonconvex"):
            assert f"{layer[method]['objective']:.6g}" in text
    for word in ("298.55", "(searched)", "60.5", "(proved)"):
        assert word in text


def test_table_explains_only_the_certificates_it_shows(summary, small):
    whole, one = (render_text(results_table(data), 150) for data in (summary, small))
    assert "proved: all networks of the kind" in whole and "searched: all networks of the kind" in whole
    assert "evidence, not proof" in one and "proved:" not in one


def test_table_without_baseline_or_layers(small):
    assert "non-convex" not in render_text(results_table(small))
    del small["layers"][0]["nonconvex"]
    assert results_table(small).row_count == 1
    assert results_table({"data": {"name": "x"}, "layers": []}).row_count == 0


def test_names_are_text_not_markup(small):
    small["data"]["name"] = "[red]$a_b$ \udcff\nnext " + "x" * 80
    title = render_text(results_table(small), 100).splitlines()[0].strip()
    assert title.startswith("[red]$a_b$ \\udcff next xxx") and title.endswith("...")


def test_metrics_round_trip(summary, tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("old")
    write_metrics(summary, path)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["layer", "method", *METRICS]
    assert [(row["layer"], row["method"]) for row in rows] == [
        (str(layer), method) for layer in (1, 2, 3) for method in ("convex", "nonconvex")
    ]
    for row in rows:
        values = summary["layers"][int(row["layer"]) - 1][row["method"]]
        for key in METRICS:
            wanted = values.get(key)
            if wanted is None:
                assert row[key] == ""
            else:
                assert type(wanted)(row[key]) == wanted


def test_metrics_without_baseline(small, tmp_path):
    write_metrics(small, tmp_path / "metrics.csv")
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2


def pixels(path: Any) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return np.asarray(image.convert("RGB")).astype(int)


def near(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    """Return the number of pixels of this colour."""
    return int((np.abs(image - np.array(colour)).max(axis=2) < 8).sum())


BLUE, VERMILION = (0, 0x72, 0xB2), (0xD5, 0x5E, 0)


@pytest.mark.parametrize("plot", [plot_objective, plot_accuracy])
def test_figures_show_both_methods_and_clip_nothing(plot, summary, tmp_path):
    path = tmp_path / "figure.png"
    plot(summary, path)
    image = pixels(path)
    assert image.shape[1] == 1050 and 600 <= image.shape[0] <= 1000
    assert near(image, BLUE) > 200 and near(image, VERMILION) > 200
    # Text that is cut off reaches the edge.
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border == 255).all()


@pytest.mark.parametrize("plot", [plot_objective, plot_accuracy])
def test_figures_of_one_layer_without_baseline(plot, small, tmp_path):
    plot(small, tmp_path / "figure.png")
    image = pixels(tmp_path / "figure.png")
    assert near(image, BLUE) > 100 and near(image, VERMILION) == 0


@pytest.mark.parametrize("plot", [plot_objective, plot_accuracy])
def test_figures_of_a_wide_range_and_missing_numbers(plot, summary, tmp_path):
    summary["data"]["name"] = "$x_ a long name with a dollar"
    for key in ("global_bound", "dual_bound", "test_accuracy"):
        summary["layers"][0]["convex"][key] = None
    summary["layers"][2]["convex"]["objective"] = 0.01
    summary["layers"][1]["nonconvex"]["objective"] = None
    plot(summary, tmp_path / "figure.png")
    assert near(pixels(tmp_path / "figure.png"), BLUE) > 100


def test_figures_of_numbers_all_missing(small, tmp_path):
    small["layers"][0]["convex"] = dict.fromkeys(small["layers"][0]["convex"])
    for plot in (plot_objective, plot_accuracy):
        plot(small, tmp_path / "figure.png")
        pixels(tmp_path / "figure.png")


@pytest.mark.parametrize("plot", [plot_objective, plot_accuracy])
def test_nothing_to_draw(plot, tmp_path):
    with pytest.raises(InputError, match="no finished layer"):
        plot({"data": {"name": "digits"}, "layers": []}, tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


@pytest.mark.parametrize("bad", [{}, {"layers": {}}, [], None])
def test_summary_of_another_kind(bad, tmp_path):
    for use in (results_table, lambda data: write_metrics(data, tmp_path / "metrics.csv")):
        with pytest.raises(InputError, match='a dict with a list "layers"'):
            use(bad)
    assert not (tmp_path / "metrics.csv").exists()


def test_import_leaves_matplotlib_alone_and_figures_leave_pyplot_alone(small, tmp_path):
    code = (
        "import sys; from cvxcnn.reports import figures, summary; assert 'matplotlib' not in sys.modules; "
        f"run = summary.RunSummary.from_json({small!r}); "
        f"figures.plot_objective(run, {str(tmp_path / 'figure.png')!r}); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("backend", "kept"), [("of_a_notebook", False), ("svg", True)])
def test_figures_need_no_backend_and_leave_one_that_works(backend, kept, small, tmp_path):
    code = (
        "import os; from cvxcnn.reports import figures, summary; "
        f"run = summary.RunSummary.from_json({small!r}); "
        f"figures.plot_objective(run, {str(tmp_path / 'figure.png')!r}); "
        "import captum.attr, matplotlib; "
        f"assert (matplotlib.rcParams._get_backend_or_none() == {backend!r}) == {kept}; "
        f"assert os.environ['MPLBACKEND'] == {backend!r}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "MPLBACKEND": backend})


def test_the_records_are_what_the_file_has(summary):
    for entry in RunSummary.from_json(summary).layers:
        assert LayerSummary.from_json(entry.to_json()) == entry
    content = {
        "layer": 2, "reg": 0.5, "convex": convex(61.23, None, "none", 1.0, 33), "nonconvex": run(63.9, 0.999, 202),
    }  # fmt: skip
    written = LayerSummary.from_json(content).to_json()
    assert list(written) == ["layer", "reg", "convex", "nonconvex"]
    # What an older version didn't know is null; what a newer one knows is kept.
    content["convex"]["of_tomorrow"] = 7.5
    written = LayerSummary.from_json(content).to_json()
    assert written["convex"]["networks"] is None and list(written["convex"])[-1] == "of_tomorrow"
    for method in ("convex", "nonconvex"):
        assert {name: written[method][name] for name in content[method]} == content[method]
    assert "dense_test_accuracy" not in written["nonconvex"]
    content["nonconvex"]["dense_test_accuracy"] = 0.9
    assert LayerSummary.from_json(content).to_json()["nonconvex"]["dense_test_accuracy"] == 0.9


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("objective", "2", "objective of a layer must be a number or null; got '2'"),
        ("n_neurons", 2.5, "n_neurons of a layer must be an int or null; got 2.5"),
        ("status", 3, "status of a layer must be a string or null; got 3"),
        ("seconds", True, "seconds of a layer must be a number or null; got True"),
    ],
)
def test_a_record_is_of_the_types_that_it_says(name, value, message, small):
    small["layers"][0]["convex"][name] = value
    with pytest.raises(ValueError, match=message):
        RunSummary.from_json(small)
    small["layers"][0]["convex"] = [1.0]
    with pytest.raises(ValueError, match=r"numbers of a layer must be an object; got \[1.0\]"):
        RunSummary.from_json(small)


def test_a_diagnostic_is_one_function_and_one_line(tmp_path):
    def channels(block: ConvexConvBlock, images: torch.Tensor) -> float:
        assert tuple(images.shape[1:]) == block.image_shape_
        return float(images.shape[1]) if images.shape[1] > 1 else math.nan

    def draw(summary: RunSummary, path: Any, *, width: float = 3.0) -> None:
        figure = new_figure(width, 2.0)
        figure.suptitle(summary.name)
        save_png(figure, path)

    show = metrics.decimal(".2f", " maps")
    toy = metrics.Metric("toy", metrics.Column("Toy\nmaps"), metrics.Column("Toy maps", show), measure=channels)
    picture = figures.RunFigure("toy.png", draw, "A toy figure.", lambda summary: f"Toy of {summary.name}")
    folder, console = tmp_path / "run", Console(file=io.StringIO(), width=120)
    metrics.METRICS.append(toy)
    figures.FIGURES.append(picture)
    try:
        settings = Settings(layers=2, limit_train=40, reg=2.0, gates=8, starts=8, baseline_width=4, baseline_epochs=1)
        summary = training(replace(settings, output=str(folder)), console)
    finally:
        metrics.METRICS.remove(toy)
        figures.FIGURES.remove(picture)
    first, second = summary["layers"]
    count = float(first["convex"]["n_neurons"])
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert (first["convex"]["toy"], second["convex"]["toy"]) == (None, count) and "toy" not in second["nonconvex"]
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["layer", "method", *METRICS, "toy"]
    assert [row["toy"] for row in rows] == ["", "", str(count), ""]
    shown = [line.split() for line in console.file.getvalue().splitlines()]
    assert [line[-1] for line in shown if "Bound" in line] == ["Toy"]
    assert f"{count:.4g}" == next(line[-1] for line in shown if line[:2] == ["2", "convex"])
    assert next(line[-1] for line in shown if line[:2] == ["1", "convex"]) == "-"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert '<th scope="col">Toy maps</th></tr>' in page and page.count(f"<td>{count:.2f} maps</td></tr>") == 1
    assert (folder / "toy.png").is_file() and 'alt="Toy of digits"' in page and "A toy figure." in page
    # Who doesn't know it keeps it.
    assert [entry.to_json() for entry in RunSummary.from_json(summary).layers] == summary["layers"]
    write_metrics(summary, tmp_path / "metrics.csv")
    assert "toy" not in (tmp_path / "metrics.csv").read_text()


def test_a_diagnostic_that_fails_is_missing_and_an_error_in_the_log(monkeypatch, caplog):
    def fail(block: ConvexConvBlock, images: torch.Tensor) -> float:
        raise KeyError("gates")

    monkeypatch.setattr(metrics, "METRICS", [metrics.Metric("bad", measure=fail), metrics.METRICS[0]])
    assert metrics.measured(ConvexConvBlock(), torch.zeros(1, 1, 2, 2)) == {"bad": None}
    assert caplog.messages == ["bad can't be measured: KeyError: 'gates'"]
