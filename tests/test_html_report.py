"""report.html: well-formed, whole in itself, and saying what summary.json says, no more."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eq2 import eq2_block
from PIL import Image
from scipy.stats import binom

from cvxcnn import LayerwiseCNN, load_model, save_model
from cvxcnn.commands.train import build_parser, settings_of
from cvxcnn.data import load_data
from cvxcnn.errors import ModelFileError
from cvxcnn.models.recipes import RECIPES
from cvxcnn.reports import page_tested, page_verdict, words
from cvxcnn.reports.history import Point, read_history, write_history
from cvxcnn.reports.html import write_report
from cvxcnn.reports.page_figures import filter_tiles, gaps, plot_gaps, shares
from cvxcnn.reports.page_tested import calibration_error
from cvxcnn.reports.predictions import MISTAKES_FILE, PREDICTIONS_FILE, Predictions, read_predictions
from cvxcnn.reports.summary import LayerSummary, RunSummary
from cvxcnn.reports.words import at_most, percent
from cvxcnn.runs.provenance import command_of
from cvxcnn.runs.run import Settings, run
from cvxcnn.runs.settings import for_data, recorded_settings


def headline(summary: dict[str, Any]) -> str:
    return words.headline(RunSummary.from_json(summary))


def comparison(entry: dict[str, Any], n_test: int) -> list[str]:
    return words.comparison(LayerSummary.from_json(entry), n_test)


def certainty(entry: dict[str, Any], **options: Any) -> list[str]:
    return words.certainty(LayerSummary.from_json(entry), **options)


VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Reads a page, and refuses tags that aren't closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run(
        Settings(
            layers=2, limit_train=60, reg=5.0, rounds=1, starts=2, baseline_epochs=10, baseline_width=8,
            output=str(folder),
        )
    )  # fmt: skip
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_a_run_writes_a_page_that_needs_nothing_else(finished: Path) -> None:
    page = page_of(finished)
    assert page.all("html")[0]["lang"] == "en"
    assert "width=device-width" in str(page.all("meta")[1]["content"])
    for name in ("script", "link", "iframe", "object"):
        assert not page.all(name)
    for _, attributes in page.tags:
        assert not {"srcset", "onclick", "onerror"} & set(attributes)
        assert "href" not in attributes or str(attributes["href"]).startswith("#")
        assert "src" not in attributes or str(attributes["src"]).startswith("data:image/png;base64,")
    text = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|file:", text)


def test_every_picture_is_there_and_has_words(finished: Path) -> None:
    pictures = page_of(finished).all("img")
    # Objective and accuracy, a convergence a layer, filters, the strength on input maps, and examples.
    assert len(pictures) >= 2 + 2 + 2 + 1 + 1
    for picture in pictures:
        assert len(str(picture["alt"])) > 10
        with Image.open(io.BytesIO(base64.b64decode(str(picture["src"]).split(",")[1]))) as image:
            image.load()
            assert (str(image.width), str(image.height)) == (picture["width"], picture["height"])
    quick = base64.b64encode((finished / "explanations_quick.png").read_bytes()).decode()
    assert any(str(picture["src"]).endswith(quick) for picture in pictures)


def test_headings_go_down_step_by_step_and_tables_have_heads(finished: Path) -> None:
    page = page_of(finished)
    levels = [int(name[1]) for name, _ in page.tags if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(lower - upper <= 1 for upper, lower in pairwise(levels))
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    assert all(region.get("aria-label") for _, region in page.tags if region.get("role") == "region")


def test_the_table_has_the_summarys_numbers(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    rows = [row for row in page_of(finished).rows if row[1:2] in (["convex"], ["non-convex"])]
    expected = [
        (entry["layer"], name, entry[method])
        for entry in summary["layers"]
        for method, name in (("convex", "convex"), ("nonconvex", "non-convex"))
    ]
    assert len(rows) == len(expected) == 4
    for row, (layer, name, values) in zip(rows, expected, strict=True):
        assert row[:3] == [str(layer), name, f"{values['objective']:.6g}"]
        if name == "convex":
            assert row[3] == f"{values['dual_bound']:.6g}" and row[5] == f"{values['global_bound']:.6g}"
            assert row[4] == f"{100 * values['relative_gap']:.3g} %" and row[7] == f"{100 * values['global_gap']:.3g} %"
            assert (row[6], row[12]) == ("searched", "optimal")
        else:
            assert row[3:8] == ["-"] * 5 and row[12] == "-"
        assert (
            row[8] == f"{100 * values['train_accuracy']:.1f} %" and row[9] == f"{100 * values['test_accuracy']:.1f} %"
        )
        assert row[10:12] == [str(values["n_neurons"]), f"{values['seconds']:.1f}"]


def test_settings_and_words_are_on_the_page(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    text = page_of(finished).text
    assert headline(summary) in text
    last = summary["layers"][-1]
    assert " ".join(comparison(last, 360)) in text and " ".join(certainty(last)) in text
    assert "60 training and 360 test images of 8 x 8 pixels, 1 channel, 10 classes" in text
    assert "baseline epochs 10" in text and f"reg (lambda) of layer 2 {summary['layers'][1]['reg']:.6g}" in text
    assert "evidence, not proof" in text


HOSTILE = '"><script>alert(1)</script><img src=x onerror=y> & $title \udcff'


def test_what_comes_from_outside_is_escaped(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    summary["data"]["name"] = HOSTILE
    summary["settings"]["data"] = summary["settings"]["output"] = HOSTILE
    summary["settings"]["<b>"] = HOSTILE
    summary["layers"][0]["convex"]["status"] = "<i>" + HOSTILE
    summary["version"] = HOSTILE
    (folder / "summary.json").write_text(json.dumps(summary))
    found = {"layer": HOSTILE, "methods": [HOSTILE], "target": HOSTILE}
    save_model(load_model(folder), folder, extra={"classes": [HOSTILE] * 10})
    shutil.copy(folder / "objective.png", folder / "explanations.png")
    (folder / "explanations.json").write_text(json.dumps(found))
    before = [name for name, _ in page_of(folder).tags]
    write_report(folder)
    page = page_of(folder)
    assert not page.all("script") and not page.all("i") and not page.all("b")
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert before.count("table") == len(page.all("table"))
    assert '"><script>alert(1)</script>' in page.text and "$title" in page.text


def test_an_older_folder_without_history_and_examples(folder: Path) -> None:
    (folder / "history.csv").unlink()
    (folder / "explanations_quick.png").unlink()
    write_report(folder)
    text = page_of(folder).text
    assert "No history was stored with this run." in text and "No explanations yet" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", None, "There is no summary.json"),
        ("summary.json", "{", "summary.json is damaged"),
        ("summary.json", "[]", "summary.json is damaged: it holds no object"),
        ("summary.json", '{"layers": []}', "summary.json is damaged: ValueError it has no finished layer"),
        ("config.json", None, "config.json is missing"),
        ("history.csv", "layer,method\nx,y\n", "history.csv is damaged"),
        ("explanations.json", "{", "explanations.json is damaged"),
    ],
)
def test_a_damaged_folder(folder: Path, name: str, content: str | None, message: str) -> None:
    before = (folder / "report.html").read_bytes()
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(ModelFileError, match=message):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before


def test_a_gated_run(tmp_path: Path) -> None:
    target = tmp_path / "gated"
    run(Settings(layers=1, limit_train=40, reg=2.0, gates=4, starts=8, activation="gated_relu", penalty="nuclear",
                 tol=0.1, baseline_epochs=5, baseline_width=8, output=str(target)))  # fmt: skip
    text = page_of(target).text
    assert "of different networks (gated and ReLU)" in text and "not comparable" in text
    gates = text[text.index("Convex: 4 of 4") : text.index("Non-convex: 8 of 8")]
    assert "By the same bound" not in text and "raises" not in gates
    assert "over the gates at hand, which is proved" in text


# Words.


def entry(
    convex: float, rival: float | None = None, bound: float | None = None, kind: str = "none", **more: Any
) -> Any:
    """Return a layer; accuracies 0.9 and 0.8 of 100 test images."""
    ours = {"objective": convex, "dual_bound": convex, "global_bound": bound, "certificate": kind, "n_searched": 288}
    theirs = None if rival is None else {"objective": rival, "test_accuracy": 0.8, **more}
    return {"layer": 1, "convex": {**ours, "test_accuracy": 0.9}, "nonconvex": theirs}


def summary_of(*layers: Any) -> dict[str, Any]:
    numbered = [{**copy.deepcopy(layer), "layer": number} for number, layer in enumerate(layers, 1)]
    return {"settings": {"activation": "relu"}, "layers": numbered}


def test_the_words_of_each_certificate() -> None:
    searched = " ".join(certainty(entry(200.0, 210.0, 190.0, "searched")))
    assert (
        "Of all networks of the kind that is trained, with any number of neurons, the best is at most 5 % lower, "
        "unless a direction that the search from 288 starts missed" in searched
    )
    assert "(searched: evidence, not proof)" in searched
    # (210 - 190) / 210, rounded up.
    assert "ordinary training is at most 9.53 % of its objective above the best" in searched
    proved = " ".join(certainty(entry(200.0, None, 190.0, "proved")))
    assert "with any number of neurons, the best is at most 5 % lower (proved)." in proved
    assert "searched" not in proved and "evidence" not in proved
    for kind, bound in (("none", None), ("searched", None), ("guessed", 190.0)):
        none = certainty(entry(200.0, 210.0, bound, kind))
        assert none[1:] == [
            "It was not compared with other gates: networks with other gates may be better by any amount."
        ]
        assert none[0] == "Over its own gates, the best network is at most 0.001 % lower (proved)."


def test_a_small_objective_has_a_share_for_a_gap_too() -> None:
    assert "at most 20 % lower (proved)" in " ".join(certainty(entry(0.5, None, 0.4, "proved")))


def test_a_bound_that_the_rival_refutes_is_not_kept() -> None:
    said = " ".join(certainty(entry(200.0, 180.0, 190.0, "searched")))
    assert "the search missed a worse direction, and the bound doesn't hold" in said
    assert "contradicts the proof" in " ".join(certainty(entry(200.0, 180.0, 190.0, "proved")))
    assert "contradicts" not in " ".join(certainty(entry(200.0, 180.0, 190.0, "proved"), same_objective=False))


def test_who_won_at_a_layer() -> None:
    assert comparison(entry(99.0, 100.0), 100) == [
        "Convex training won in the training objective: 1 % lower (99 against 100).",
        "Test accuracy: 90.0 % with convex, 80.0 % with ordinary training; convex training is right on 10 images more "
        "of 100.",
    ]
    assert comparison(entry(102.0, 100.0), 100)[0] == (
        "Ordinary training won in the training objective: 2 % lower (100 against 102)."
    )
    assert comparison(entry(100.0, 100.000001), 100)[0] == "Both reached the training objective 100."
    assert "Ordinary training was left out." in comparison(entry(100.0), 100)[0]
    same = entry(99.0, 100.0)
    same["nonconvex"]["test_accuracy"] = 0.9
    assert comparison(same, 100)[1] == "Test accuracy: both 90.0 % of 100 images."


def test_how_sure_a_difference_in_accuracy_is() -> None:
    # Signs: 2 * 2^-10 for ten of ten; 1/4 for three of three.
    clear = comparison(entry(99.0, 100.0, only_convex_right=10, only_nonconvex_right=0), 100)[1]
    assert "10 with convex, 0 with ordinary training. Chance alone gives as large a difference in 0.2 % of" in clear
    assert clear.endswith("more than chance gives.")
    vague = comparison(entry(99.0, 100.0, only_convex_right=3, only_nonconvex_right=0), 100)[1]
    assert "in 25 % of comparisons: neither is shown to be better" in vague


def test_the_headline() -> None:
    assert headline(summary_of(entry(99.0, 100.0), entry(98.0, 100.0))) == (
        "Convex training reached the lower training objective at both layers, by 1 % to 2 %. "
        "Test accuracy is higher with convex training at both layers."
    )
    assert headline(summary_of(entry(99.0, 100.0), entry(102.0, 100.0), entry(99.0, 100.0))).startswith(
        "Convex training reached the lower training objective at layers 1 and 3, by 1 %; ordinary training reached the "
        "lower training objective at layer 2, by 2 %."
    )
    assert headline(summary_of(entry(100.0, 100.0))).startswith("Both methods reached the same training objective at")
    assert headline(summary_of(entry(99.0))).startswith("1 layer trained by convex optimisation, without ordinary")
    sure, vague = (
        entry(99.0, 100.0, only_convex_right=10, only_nonconvex_right=0),
        entry(99.0, 100.0, only_convex_right=12, only_nonconvex_right=2 + 8),
    )
    assert headline(summary_of(sure, vague)).endswith("the difference is more than chance gives at layer 1.")
    assert headline(summary_of(vague)).endswith("the differences are no more than chance gives.")


def test_bounds_are_rounded_up() -> None:
    for share in (1e-12, 0.00123401, 0.0123, 0.999, 0.09996, 12.3456):
        assert float(at_most(share).removesuffix(" %")) >= 100 * share * (1 - 1e-8)
    assert (percent(0.0123), at_most(0.01)) == ("1.2 %", "1 %")


# History and figures.


def test_history_round_trip(tmp_path: Path) -> None:
    points = [Point(1, "convex", 0.1, 10.0, -np.inf, "all gates"), Point(1, "nonconvex", 1 / 3, 11.0)]
    write_history(points, tmp_path / "history.csv")
    first, second = read_history(tmp_path / "history.csv")
    assert np.isnan(first.bound) and (first.objective, first.bound_over) == (10.0, "all gates")
    assert (second.seconds, second.method, second.bound_over) == (1 / 3, "nonconvex", "")
    assert list(read_history(tmp_path / "nothing.csv")) == []


def test_gaps_are_to_the_last_bound_where_a_search_refuted_an_earlier_one() -> None:
    points = [
        Point(1, "convex", 1.0, 12.0, 6.0, "all gates"),
        Point(1, "convex", 2.0, 10.0, 9.5, "all gates"),
        Point(1, "convex", 3.0, 10.0, 9.0, "all gates"),
        Point(1, "nonconvex", 1.0, 20.0),
        Point(1, "nonconvex", 2.0, 9.0),
    ]
    assert gaps(points, "convex") == [(1.0, 0.5), (2.0, 0.1), (3.0, 0.1)]
    # At 2 s it is at the bound itself: no gap that a logarithmic axis could show.
    assert gaps(points, "nonconvex") == [(1.0, 0.55)]
    own = [Point(1, "convex", p.seconds, p.objective, p.bound, "gates at hand") for p in points[:3]] + points[3:]
    assert gaps(own, "convex")[1] == (2.0, 0.05)
    assert gaps(own, "nonconvex") == []
    for some in (points, own):
        png = plot_gaps(some)
        assert png is not None and png.startswith(b"\x89PNG")
    assert plot_gaps(points[3:]) is None


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pictures_of_filters(channels: int) -> None:
    generator = np.random.default_rng(0)
    images = generator.normal(size=(30, channels, 6, 6))
    targets = np.stack([images[:, 0, 2, 2], -images[:, 0, 3, 3]], axis=1)
    block = eq2_block(gates=20, reg=0.1, penalty="dense", bias=True)
    stack = LayerwiseCNN(layers=1, block=block).fit(images, targets)
    fitted = stack.blocks_[0]
    share = shares(fitted.neurons_)
    # Of the penalty: reg/2 (||u||^2 + ||w||^2) is reg ||u|| ||w|| for balanced neurons.
    squares = fitted.neurons_.filters.square().sum(dim=1) + fitted.neurons_.readout.square().sum(dim=(1, 2))
    np.testing.assert_allclose(share, (squares / squares.sum()).numpy(), rtol=1e-9)
    tiles = filter_tiles(fitted, np.argsort(-share))
    assert [tile.share for tile in tiles] == sorted(share, reverse=True)
    row = int(np.argmax(share))
    readout = fitted.neurons_.readout[row].mean(dim=0)
    assert tiles[0].output == int(readout.abs().argmax())
    assert tiles[0].sign == (1 if readout[tiles[0].output] > 0 else -1)
    kernel = fitted.neurons_.filters[row, :-1].reshape(channels, 3, 3).numpy()
    if channels == 2:
        assert tiles[0].channel == int(np.square(kernel).sum(axis=(1, 2)).argmax())
        kernel = kernel[tiles[0].channel]
    with Image.open(io.BytesIO(tiles[0].png)) as picture:
        pixels = np.asarray(picture).astype(int)
    assert pixels.shape == (3, 3, 3)
    if channels == 3:
        assert ((pixels > 128) == (kernel.transpose(1, 2, 0) > 0)).mean() > 0.95
    else:
        red = pixels[..., 0] > pixels[..., 2]
        np.testing.assert_array_equal(red, kernel.reshape(3, 3) > 0)


# The first screen, the test images, and what the page doesn't do.


def test_the_first_screen_says_who_won_by_how_much_and_how_sure(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    text = (finished / "report.html").read_text()
    first = text[text.index('<section class="first">') : text.index("Layer by layer")]
    assert first.count("<img") == 1
    said = headline(summary)
    assert (
        said.startswith(("Convex training", "Ordinary training", "Both methods")) and " (searched, not proved)." in said
    )
    for entry in summary["layers"]:
        assert f"Layer {entry['layer']}: objective {entry['convex']['objective']:.6g}, bound" in first


def test_each_layer_has_its_row_with_intervals(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    rows = [row for row in page_of(finished).rows if len(row) == 10 and row[0] in "12"]
    for row, entry in zip(rows, summary["layers"], strict=True):
        ours, theirs = entry["convex"], entry["nonconvex"]
        assert row[1:3] == [f"{ours['objective']:.6g}", f"{theirs['objective']:.6g}"]
        assert row[4:6] == [at_most(ours["global_gap"]), "searched"]
        assert row[6:8] == [words.accuracy_words(numbers["test_accuracy"], 360) for numbers in (ours, theirs)]
        assert row[8] == f"{theirs['only_convex_right']} : {theirs['only_nonconvex_right']}"


def test_wilsons_interval_covers_as_often_as_it_says() -> None:
    # Of all numbers of right answers, weighed by how likely they are: Newcombe 1998 finds 0.95 on average.
    for share in (0.9, 0.97):
        right = np.arange(361)
        ends = np.array([words.wilson(count / 360, 360) for count in right])
        inside = (ends[:, 0] <= share) & (share <= ends[:, 1])
        assert 0.93 < binom.pmf(right, 360, share)[inside].sum() < 0.98
    # The root of the score test itself.
    low, _ = words.wilson(0.9, 100) or (0, 0)
    assert (0.9 - low) ** 2 == pytest.approx(1.959964**2 * low * (1 - low) / 100, rel=1e-5)


def test_predictions_are_the_summarys_accuracies(finished: Path) -> None:
    last = json.loads((finished / "summary.json").read_text())["layers"][-1]
    found = read_predictions(finished / PREDICTIONS_FILE, 10)
    assert found is not None and set(found.predicted) == {"convex", "nonconvex"}
    for method, own in found.predicted.items():
        counts = found.confusion(method, 10)
        assert counts.sum() == 360 and np.trace(counts) / 360 == pytest.approx(last[method]["test_accuracy"])
        assert np.array_equal(counts.sum(axis=1), np.bincount(found.true, minlength=10))
        assert np.array_equal(counts.sum(axis=0), np.bincount(own, minlength=10))
        assert np.all((found.confidence[method] > 0.1) & (found.confidence[method] <= 1))
    ours, theirs = (found.predicted[method] == found.true for method in ("convex", "nonconvex"))
    assert (ours & ~theirs).sum() == last["nonconvex"]["only_convex_right"]
    # Mistakes: those where one is right come first, and each tile is its image.
    rows = found.mistaken()
    assert set(rows) == set(np.flatnonzero(~ours | ~theirs))
    differ = (ours ^ theirs)[rows]
    assert np.array_equal(differ, np.sort(differ)[::-1])
    _, test = load_data("digits")
    with Image.open(finished / MISTAKES_FILE) as strip:
        pixels = np.asarray(strip)[..., 0].reshape(-1, 8, 8)
    assert np.array_equal(pixels, np.round(255 * test.images[rows[: len(pixels)], 0]))
    assert page_of(finished).text.count("wrong, first those where networks differ") == 1


@pytest.mark.parametrize(
    "content", ["image,true,convex\n0,99,1\n", "image,true,convex,convex_confidence\n0,1,1,7\n", "\0"]
)
def test_damaged_predictions(folder: Path, content: str) -> None:
    (folder / PREDICTIONS_FILE).write_text(content)
    if content == "\0":
        assert read_predictions(folder / PREDICTIONS_FILE, 10) is not None  # no image: nothing to say
        return
    with pytest.raises(ModelFileError, match=r"predictions\.csv is damaged"):
        write_report(folder)


def test_calibration() -> None:
    # Always as sure as it is right: no error; sure of all and right in half of it: half.
    generator = np.random.default_rng(0)
    sure = generator.uniform(0.5, 1.0, 40_000)
    right = generator.random(40_000) < sure
    honest = Predictions(np.zeros(40_000, int), {"convex": (~right).astype(int)}, {"convex": sure})
    assert calibration_error(honest, "convex") < 0.01
    boasting = Predictions(np.zeros(40, int), {"convex": np.arange(40) % 2}, {"convex": np.ones(40)})
    assert calibration_error(boasting, "convex") == pytest.approx(0.5, abs=0.1)


def test_many_classes_have_their_pairs_named(finished: Path) -> None:
    names = [f"kind {number}" for number in range(30)]
    found = Predictions(np.array([3, 3, 5]), {"convex": np.array([4, 4, 5])}, {"convex": np.ones(3)})
    assert "kind 3 taken for kind 4: 2" in page_tested.confusions(found, names)
    right = Predictions(found.true, {"convex": found.true}, found.confidence)
    assert "No mistakes." in page_tested.confusions(right, names)
    assert "No test image is taken" in page_tested.mistakes(right, None, names, (8, 8))


def test_no_phrase_comes_three_times(finished: Path) -> None:
    text = re.sub(r"[^a-z ]", " ", re.sub(r"\S*\d\S*", " | ", page_of(finished).text.lower()).replace("|", " zz "))
    said = [word for word in text.split()]
    counts = Counter(
        tuple(said[place : place + 6]) for place in range(len(said)) if "zz" not in said[place : place + 6]
    )
    assert [phrase for phrase, count in counts.items() if count > 2] == []


def test_links_lead_to_definitions(finished: Path) -> None:
    page = page_of(finished)
    targets = {attributes.get("id") for _, attributes in page.tags}
    links = {str(attributes["href"]).removeprefix("#") for attributes in page.all("a")}
    assert links and links <= targets and set(page_verdict.DEFINITIONS) <= targets


def test_the_command_repeats_the_run(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["command"] in page_of(finished).text and summary["processor"] and summary["date"].endswith("+00:00")
    typed = shlex.split(summary["command"])
    again = settings_of(vars(build_parser().parse_args(typed[2:])))
    recorded = recorded_settings(summary["settings"])
    assert replace(again, output=None, device="auto", asked=()) == replace(
        recorded, output=None, device="auto", asked=()
    )


DIGITS, GREY, COLOUR = ((1, 8, 8), 1437), ((1, 28, 28), 2000), ((3, 32, 32), 60_000)
TYPED = {
    "gated": (Settings(activation="gated_relu", penalty="dense", gates=("patches:20", 30), recipe="exact"), DIGITS),
    "several": (
        Settings(
            recipe="exact", data="it's here", reg_fraction=(0.1, 0.2), augment=("mirror",), intercept=True, seed=3
        ),
        DIGITS,
    ),
    "large": (
        Settings(**{**RECIPES["large"], "recipe": "large", "baseline": True, "reg_fraction": (1e-4, 3e-3)}),
        COLOUR,
    ),
    "mirrored digits": (Settings(**{**RECIPES["large"], "recipe": "large", "reg": 0.3, "augment": ("mirror",)}), GREY),
    "few grey images": (for_data(Settings(data="grey"), *GREY), GREY),
    "many grey images": (for_data(Settings(data="grey"), (1, 28, 28), 60_000), ((1, 28, 28), 60_000)),
    "colour": (for_data(Settings(data="colour"), *COLOUR), COLOUR),
    "rivals of a recipe": (for_data(Settings(rivals=("sgd", "kernel"), asked=("baseline",)), *GREY), GREY),
    "rivals": (Settings(recipe="exact", rivals=("two-phase", "adam"), class_weight="balanced"), DIGITS),
    "no rival": (Settings(recipe="exact", baseline=False), DIGITS),
    "max pooling": (Settings(recipe="exact", pooling="max", test_fraction=0.3, limit_train=20), DIGITS),
    "exponents": (Settings(recipe="exact", activation="quadratic", penalty="group", decay=(3.0, 3.0)), DIGITS),
    "decay": (Settings(recipe="exact", activation="quadratic", penalty="group", decay="path"), DIGITS),
}


@pytest.mark.parametrize(("settings", "images"), TYPED.values(), ids=TYPED)
def test_a_command_gives_the_settings_that_it_is_of(settings: Settings, images: tuple[Any, int]) -> None:
    typed = shlex.split(command_of(settings))
    again = for_data(settings_of(vars(build_parser().parse_args(typed[2:]))), *images)
    assert again == replace(settings, asked=())
