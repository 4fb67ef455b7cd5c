"""Rivals of a convex block: two phases and infinite width in a run, its table, figures and page; refusals; memory."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import noise_problem
from safetensors.torch import load_file
from sklearn.linear_model import Ridge

from cvxcnn.commands.diagnose import main as diagnose_main
from cvxcnn.commands.explain import sparsity_table
from cvxcnn.commands.train import build_parser, main, settings_of
from cvxcnn.data import load_data
from cvxcnn.errors import InputError
from cvxcnn.models.recipes import RECIPES
from cvxcnn.patches import Patches
from cvxcnn.reports.figures import plot_accuracy, plot_objective
from cvxcnn.reports.predictions import read_predictions
from cvxcnn.reports.summary import LayerSummary, RunSummary
from cvxcnn.reports.table import render_text, results_table
from cvxcnn.runs.checkpoint import read_state
from cvxcnn.runs.explaining import explain_run, load_networks
from cvxcnn.runs.memory import predict_run_memory
from cvxcnn.runs.rivals import RIDGES, RIVALS, _least_alpha, check_rivals, kernel_bytes, train_kernel
from cvxcnn.runs.run import run
from cvxcnn.runs.settings import Settings, build_stack
from cvxcnn.theory import infinite_gram

pytestmark = pytest.mark.usefixtures("blank_pictures")

QUICK = Settings(layers=2, limit_train=40, reg=2.0, gates=8, starts=8, baseline_width=8, baseline_epochs=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    run(Settings(**{**vars(QUICK), "rivals": ("kernel", "sgd", "two-phase", "softplus", "adam"), "output": str(path)}))
    return path


@pytest.fixture(scope="module")
def summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


def test_each_rival_has_its_row_and_the_first_network_is_the_nonconvex_one(
    folder: Path, summary: dict[str, Any]
) -> None:
    for number, entry in enumerate(summary["layers"]):
        assert entry["nonconvex"]["optimizer"] == "sgd"
        assert list(entry["rivals"]) == ["kernel", "two-phase", "softplus", "adam"]
        assert "optimizer" not in entry["rivals"]["adam"]
        kernel = entry["rivals"]["kernel"]
        assert kernel["objective"] is None and kernel["n_neurons"] is None and kernel["test_accuracy"] > 0.5
        assert entry["rivals"]["two-phase"]["remark"].startswith("Nothing is guaranteed: the theorem is about the loss")
        for name in ("two-phase", "adam"):
            assert entry["rivals"][name]["objective"] >= entry["convex"]["global_bound"] * (1 - 1e-3)
        readout = load_file(folder / "baseline.safetensors")[f"layers.{number}.readout"]
        assert int(readout.flatten(1).any(dim=1).sum()) == entry["nonconvex"]["n_neurons"]
    with (folder / "metrics.csv").open(newline="") as file:
        methods = [row["method"] for row in csv.DictReader(file)]
    assert methods == 2 * ["convex", "nonconvex", "kernel", "two-phase", "softplus", "adam"]
    with (folder / "history.csv").open(newline="") as file:
        assert {row["method"] for row in csv.DictReader(file)} == {*methods} - {"kernel"}


def test_table_page_and_figures_name_them(folder: Path, summary: dict[str, Any]) -> None:
    results = RunSummary.from_json(summary)
    text = render_text(results_table(results), 100)
    for name in ("convex", "SGD", "kernel", "two-phase", "softplus", "Adam"):
        assert len(re.findall(rf"^ +1? *{name} ", text, re.MULTILINE)) >= 1 and text.count(f" {name} ") >= 2
    assert "softplus: its objective is that of softplus neurons" in text and "non-convex" not in text
    page = html.unescape((folder / "report.html").read_text())
    for name in ("ordinary training", "two-phase training", "Adam"):
        # In words of the last layer; the table has those before.
        assert len(re.findall(rf"By the same bound, {name} is at most", page)) == 1
    assert (
        "By the same bound, the infinitely" not in page and "By the same bound, two-phase training of soft" not in page
    )
    assert page.count("The infinitely wide network, by kernel ridge regression, reached") == 1
    for plot in (plot_accuracy, plot_objective):
        plot(results, folder / "again.png")
        assert (folder / "again.png").read_bytes().startswith(b"\x89PNG")
    (folder / "again.png").unlink()


def test_what_is_kept_can_be_gone_on_with(folder: Path, summary: dict[str, Any]) -> None:
    state = read_state(folder)
    assert list(state.rivals) == ["nonconvex", "adam", "two-phase", "softplus"] and state.summary == summary
    assert {len(found) for found in state.rivals.values()} == {2}
    assert [LayerSummary.from_json(entry).to_json() for entry in summary["layers"]] == summary["layers"]
    with pytest.raises(ValueError, match="the rivals of a layer must be an object"):
        LayerSummary.from_json({**summary["layers"][0], "rivals": ["adam"]})


def test_each_network_is_diagnosed_by_its_name(
    folder: Path, summary: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    assert diagnose_main([str(copy)]) == 0
    said = capsys.readouterr().out
    found = json.loads((copy / "diagnosis.json").read_text())
    methods = ["convex", "nonconvex", "adam", "two-phase", "softplus"]
    assert [(block["layer"], block["method"]) for block in found["blocks"]] == [(j, m) for j in (1, 2) for m in methods]
    assert "kernel: not diagnosed, for it is infinitely wide" in said and list(found["left_out"]) == ["kernel"]
    page = html.unescape((copy / "report.html").read_text())
    for block in found["blocks"]:
        entry = summary["layers"][block["layer"] - 1]
        own = entry.get(block["method"]) or entry["rivals"][block["method"]]
        assert block["objective"] == pytest.approx(own["objective"], rel=1e-6)
        name = {"nonconvex": "SGD", "adam": "Adam"}.get(block["method"], block["method"])
        assert f"layer {block['layer']}, {name}: {block['verdict']}." in said
        assert f"Layer {block['layer']}, {name}: {block['verdict']}." in page
        smooth = block["method"] == "softplus"
        assert (block["above_bound"] is None) == smooth == (block["tangent"]["ridge_error"] is None)
        assert smooth == (block["measured"][0] == "Its neurons are smooth: no bound is of them.")
        assert smooth == ("activation" not in block["theory"][2])
    assert "kernel: not diagnosed" in re.sub("<[^>]*>", "", page)


def test_the_mistakes_of_each_rival_are_on_the_page(folder: Path) -> None:
    page = html.unescape((folder / "report.html").read_text())
    for name in ("convex", "SGD", "Adam", "two-phase", "softplus", "kernel"):
        assert f'aria-label="Confusion matrix, {name}: true' in page
        assert f">{name}: " in page  # its answer to a mistake
        assert re.search(rf"Mean distance from it: .*{name} \d", page)


def test_each_network_is_explained_by_its_name(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    said: list[str] = []
    found = explain_run(copy, methods=["gradcam", "guided_backprop"], n_images=1, say=said.append)
    assert found["labels"] == {
        "convex": "convex", "nonconvex": "SGD", "adam": "Adam", "two-phase": "two-phase", "softplus": "softplus"
    }  # fmt: skip
    assert "kernel: left out, for it is infinitely wide, and has no maps" in said
    assert "Left out: kernel, for it is infinitely wide" in (copy / "report.html").read_text()
    assert "softplus network: maps of 360 test images, none of guided_backprop" in said
    rows = {(row["method"], row["network"]) for row in found["sparsity"]}
    differences = {"difference", "difference adam", "difference two-phase"}
    everywhere = {*found["labels"], *differences}
    assert {network for method, network in rows if method == "gradcam"} == everywhere | {"difference softplus"}
    assert {network for method, network in rows if method == "guided_backprop"} == everywhere - {"softplus"}
    table = render_text(sparsity_table(found), 100)
    for name in ("SGD", "vs Adam", "vs SGD", "vs softplus"):
        assert f" {name} " in table


@pytest.mark.parametrize("added", [{"layers": 1}, {"residual": True, "augment": ("mirror",)}])
def test_networks_of_a_run_with_an_intercept_predict_as_in_training(added: dict[str, Any], tmp_path: Path) -> None:
    settings = {
        **vars(QUICK),
        "intercept": True,
        "rivals": ("adam", "softplus"),
        "output": str(tmp_path / "run"),
        **added,
    }
    run(Settings(**settings))
    networks, _, _ = load_networks(tmp_path / "run", alone=False)
    _, test = load_data("digits")
    predictions = read_predictions(tmp_path / "run" / "predictions.csv", 10)
    last = json.loads((tmp_path / "run" / "summary.json").read_text())["layers"][-1]
    for name, network in networks.items():
        guesses = network(torch.as_tensor(test.images)).argmax(dim=1).numpy()
        expected = last.get(name) or last["rivals"][name]
        assert (guesses == test.labels).mean() == pytest.approx(expected["test_accuracy"])
        np.testing.assert_array_equal(guesses, predictions.predicted[name])
    for image in explain_run(tmp_path / "run", methods=["cam"], n_images=2)["images"]:
        for name in ("convex", "nonconvex"):
            assert image[name] == str(predictions.predicted[name][image["index"]])


def test_the_kernel_alone_leaves_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--layers", "1", "--limit-train", "40", "--reg", "2", "--gates", "8", "--starts", "0", "--quiet"]
    assert main([*arguments, "--output", "out", "--baseline", "kernel"]) == 0
    found = json.loads(Path("out/summary.json").read_text())
    assert found["layers"][0]["nonconvex"] is None and list(found["layers"][0]["rivals"]) == ["kernel"]
    assert not Path("out/baseline.safetensors").exists()
    assert "The infinitely wide network" in Path("out/report.html").read_text()
    Path("out/accuracy.png").unlink()
    assert main(["--resume", "out", "--quiet"]) == 0


def test_infinite_width_is_kernel_ridge_regression_and_its_ridge_the_best_without_an_image() -> None:
    patches, targets = noise_problem(14, 5, outputs=2, seed=1, kernel_size=2, bias=True, pool_cells=2, pooling="mean")
    tested = Patches(noise_problem(3, 5, seed=2, kernel_size=2)[0].images, patches.geometry)
    fit = train_kernel(patches, targets, tested)
    gram = np.asarray(infinite_gram(patches.unfold().numpy(), patches.pool.numpy()))
    between = np.asarray(infinite_gram(patches.unfold().numpy(), patches.pool.numpy(), others=tested.unfold().numpy()))
    y = targets.numpy()

    def left_out(alpha: float) -> float:
        total = 0.0
        for j in range(14):
            rest = np.delete(np.arange(14), j)
            dual = np.linalg.solve(gram[np.ix_(rest, rest)] + alpha * np.eye(13), y[rest])
            total += float(np.square(gram[j, rest] @ dual - y[j]).sum())
        return total

    alphas = [share * gram.diagonal().mean() for share in RIDGES]
    best = min(alphas, key=left_out)
    assert _least_alpha(gram, y) == pytest.approx(best)
    dual = np.linalg.solve(gram + best * np.eye(14), y)
    np.testing.assert_allclose(fit.tested, between @ dual, atol=1e-3)
    np.testing.assert_allclose(fit.trained, gram @ dual, atol=1e-3)
    # The same in features: ridge regression on a root of the kernel.
    root = np.linalg.cholesky(gram + 1e-12 * np.eye(14))
    np.testing.assert_allclose(
        fit.trained, Ridge(alpha=best, fit_intercept=False).fit(root, y).predict(root), atol=1e-3
    )


def test_weights_of_images_are_those_of_the_kernel_ridge_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvxcnn.runs.rivals.RIDGES", (1e-2,))
    patches, targets = noise_problem(8, 5, outputs=2, seed=1, kernel_size=2, pool_cells=2, pooling="mean")
    weights = targets.new_tensor([2.0] * 3 + [1.0] * 4 + [0.0])
    weighted = train_kernel(patches, targets, patches, weights=weights)
    gram = np.asarray(infinite_gram(patches.unfold().numpy(), patches.pool.numpy()))
    root = weights.sqrt().numpy()
    alone = root[:, None] * gram * root
    dual = np.linalg.solve(alone + 1e-2 * alone.diagonal().mean() * np.eye(8), root[:, None] * targets.numpy())
    np.testing.assert_allclose(weighted.tested, gram @ (root[:, None] * dual), atol=1e-4)


def test_the_memory_of_the_kernel_is_predicted_and_refused() -> None:
    settings = Settings(layers=1, gates=8, memory=2.0, rivals=("kernel",), output="never")
    stack = build_stack(settings)
    plain, wide = (predict_run_memory(stack, 20_000, 100, (1, 8, 8), 10, kernel=kernel) for kernel in (False, True))
    assert plain is not None and wide is not None
    assert wide - plain > 0.5 * kernel_bytes(20_000, 100, 64, 10) > 8 * 20_000**2
    patches, targets = noise_problem(10, 5, kernel_size=2)
    with pytest.raises(InputError, match="the kernel of 10 images needs about"):
        train_kernel(patches, targets, patches, memory=1e-6)


@pytest.mark.parametrize(
    ("rivals", "penalty", "words"),
    [
        (["lbfgs"], "dense", 'rivals must be some of "adam", "sgd", "two-phase", "softplus", "kernel", each once'),
        (["adam", "adam"], "dense", "each once; got"),
        ([], "dense", "rivals must be some of"),
        (["adam", "softplus"], "group", "the rival 'softplus' is of neurons that feed all cells and outputs"),
    ],
)
def test_rivals_that_there_are_not_are_refused_in_words(rivals: list[str], penalty: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_rivals(rivals, penalty)


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    def parsed(*arguments: str) -> Settings:
        return settings_of(vars(build_parser().parse_args(arguments)))

    names = {"baseline", "rivals"}
    found = [
        {name: value for name, value in vars(parsed(*arguments)).items() if name in names}
        for arguments in ([], ["--baseline"], ["--no-baseline"], ["--baseline", *RIVALS], ["--recipe", "small"])
    ]
    adam = ("adam",)
    assert [(entry["baseline"], entry["rivals"]) for entry in found] == [
        (True, adam), (True, adam), (False, adam), (True, RIVALS), (RECIPES["small"]["baseline"], adam),
    ]  # fmt: skip
    assert parsed("--recipe", "small", "--baseline", "kernel").baseline is True
    for wrong, words in (
        (["--baseline", "lbfgs"], "lbfgs"),
        (["--no-baseline", "adam"], "--no-baseline it takes no value"),
    ):
        with pytest.raises(InputError, match=words):
            parsed(*wrong)
    assert main(["--resume", "nowhere", "--baseline", "sgd"]) != 0
    assert "Leave out --baseline" in capsys.readouterr().err
