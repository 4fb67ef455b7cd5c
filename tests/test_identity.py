"""What comes back to a run finds the images that it began with, or refuses the others."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from cvxcnn.commands.explain import main as explain
from cvxcnn.commands.predict import main as predict
from cvxcnn.commands.train import main as train
from cvxcnn.data import ImageSet, load_data
from cvxcnn.data.fingerprint import fingerprint
from cvxcnn.errors import DataError, InputError
from cvxcnn.models.saving import load_model
from cvxcnn.runs.run import Settings, run

Arrays = dict[str, np.ndarray]


def arrays() -> Arrays:
    images = np.random.default_rng(0).integers(0, 60, (24, 8, 8), dtype=np.uint8)
    labels = np.arange(24) % 2
    images[labels == 1, :4] += 150
    return {"x_train": images, "y_train": labels, "x_test": images[:12], "y_test": labels[:12]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a/set.npz and a run that was started in a, by the relative name."""
    root = tmp_path_factory.mktemp("identity")
    (root / "a").mkdir()
    np.savez(root / "a" / "set.npz", **arrays())
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(root / "a")
        run(Settings(layers=1, data="set.npz", limit_train=20, gates=6, starts=0, baseline=False, output="../run"))
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the run, and of its images where they were; the current folder is another one."""
    place = Path(shutil.copytree(finished / "run", tmp_path / "run")).parent
    (place / "b").mkdir()
    monkeypatch.chdir(place / "b")
    return place


def unfinished(folder: Path) -> None:
    """Make a run one that was interrupted: it was to have two layers."""
    edit(folder, lambda summary: summary["settings"].update(layers=2))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    change(summary)
    (folder / "summary.json").write_text(json.dumps(summary))


def inverted(found: Arrays) -> None:
    found["x_test"] = 255 - found["x_test"]


def one_pixel(found: Arrays) -> None:
    found["x_train"] = found["x_train"].copy()
    found["x_train"][:, 0, 0] += 1


def permuted_labels(found: Arrays) -> None:
    found["y_test"] = found["y_test"][::-1].copy()


def other_training_labels(found: Arrays) -> None:
    found["y_train"] = 1 - found["y_train"]


def other_names(found: Arrays) -> None:
    found["y_train"], found["y_test"] = found["y_train"] + 3, found["y_test"] + 3


def another_order(found: Arrays) -> None:
    found["x_test"], found["y_test"] = found["x_test"][::-1].copy(), found["y_test"][::-1].copy()


def fewer(found: Arrays) -> None:
    found["x_train"], found["y_train"] = found["x_train"][:10], found["y_train"][:10]


CHANGES = (inverted, one_pixel, permuted_labels, other_training_labels, other_names, another_order, fewer)


@pytest.mark.parametrize("change", CHANGES)
def test_other_images_of_the_same_name_are_refused(
    change: Callable[[Arrays], None], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = arrays()
    change(found)
    np.savez("set.npz", **found)
    before = sorted(os.listdir(root / "run"))
    assert explain([str(root / "run"), "--method", "gradient"]) == 1
    error = capsys.readouterr().err
    assert f"The images in {root / 'b' / 'set.npz'} are not those of the run" in error and "by --data" in error
    assert sorted(os.listdir(root / "run")) == before
    unfinished(root / "run")
    assert train(["--resume", str(root / "run")]) == 2
    assert "the images are not those" in (error := capsys.readouterr().err) or "--limit-train must be from" in error


def test_a_file_that_was_rewritten_is_refused_and_its_copy_is_found(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("copy.npz", **arrays())
    found = arrays()
    permuted_labels(found)
    np.savez("set.npz", **found)
    edit(root / "run", lambda summary: summary["settings"].update(data=str(root / "b" / "set.npz")))
    assert explain([str(root / "run"), "--method", "gradient"]) == 1
    assert "order of the test images are others" in capsys.readouterr().err
    # Another place and another name, but the same images.
    assert explain([str(root / "run"), "--method", "gradient", "--images", "1", "--data", "copy.npz"]) == 0
    assert explain([str(root / "run"), "--method", "gradient", "--data", "set.npz"]) == 1


def test_a_run_by_a_relative_path_is_explained_from_anywhere(
    root: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = json.loads((root / "run" / "summary.json").read_text())
    assert about["settings"]["data"] == "set.npz" and about["data"]["path"] == str(finished / "a" / "set.npz")
    assert load_model(root / "run").extra_["fingerprint"] == about["data"]["fingerprint"]
    assert explain([str(root / "run"), "--method", "gradient", "--images", "1"]) == 0
    assert json.loads((root / "run" / "explanations.json").read_text())["n_test"] == 12


def test_a_run_goes_on_from_anywhere_and_with_images_that_were_moved(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished(root / "run")
    np.savez("moved.npz", **arrays())
    assert train(["--resume", str(root / "run"), "--data", "moved.npz"]) == 0
    assert "1 of 2 layers are there already" in capsys.readouterr().out


def test_a_run_of_an_older_version_is_explained_with_a_word(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def forget(summary: dict[str, Any]) -> None:
        del summary["data"]["fingerprint"], summary["data"]["path"]

    edit(root / "run", forget)
    np.savez("set.npz", **arrays())
    assert explain([str(root / "run"), "--method", "gradient", "--images", "1"]) == 0
    assert "no fingerprint of its images: whether they are the same can't be checked" in capsys.readouterr().out
    (root / "run" / "accuracy.png").unlink()
    assert train(["--resume", str(root / "run")]) == 0
    assert "no fingerprint of its images" in capsys.readouterr().out


# The fingerprint.


def a_set(seed: int = 0, count: int = 7, name: str = "some") -> ImageSet:
    random = np.random.default_rng(seed)
    return ImageSet(random.random((count, 2, 3, 4)), random.integers(0, 3, count), ("a", "b", "c"), name)


@given(st.integers(0, 6), st.integers(0, 1), st.integers(0, 2), st.integers(0, 3))
def test_any_pixel_label_or_name_makes_another_fingerprint(image: int, channel: int, row: int, column: int) -> None:
    own = a_set()
    pixels, labels = own.images.copy(), own.labels.copy()
    pixels[image, channel, row, column] = np.nextafter(pixels[image, channel, row, column], 2)
    labels[image] = (labels[image] + 1) % 3
    order = np.roll(np.arange(7), image + 1) if image < 6 else np.arange(7)[::-1]
    sets = [
        own,
        ImageSet(pixels, own.labels, own.classes, own.name),
        ImageSet(own.images, labels, own.classes, own.name),
        ImageSet(own.images, own.labels, ("a", "b", "d"), own.name),
        ImageSet(own.images, own.labels, ("b", "a", "c"), own.name),
        ImageSet(own.images.reshape(7, 2, 4, 3), own.labels, own.classes, own.name),
        own.subset(order),
        own.subset(np.delete(np.arange(7), image)),
    ]
    assert len({fingerprint(found) for found in sets}) == len(sets)


def test_neither_name_nor_layout_in_memory_matters() -> None:
    own = a_set()
    turned = ImageSet(np.asfortranarray(own.images), own.labels, own.classes, "other")
    assert fingerprint(own) == fingerprint(turned) == fingerprint(a_set())


def test_a_fingerprint_is_the_same_in_every_version() -> None:
    # Runs are gone on with by later versions.
    images = ImageSet(np.arange(8.0).reshape(2, 1, 2, 2) / 8, np.array([0, 1]), ("no", "yes"), "toy")
    assert fingerprint(images) == "59863c4a5e0f0e7aa9d4fa39acd4017eb616de84c1c10c44d053d8ddaf4dc17e"


def test_images_that_cannot_be_found_are_named(root: Path) -> None:
    with pytest.raises(DataError, match="no data set at"):
        load_data(root / "nothing")
    with pytest.raises((DataError, InputError)):
        run(Settings(data="a\0b", output=str(root / "other")))
    assert not (root / "other").exists()


def test_a_run_on_folders_of_classes_keeps_its_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = load_digits().images, load_digits().target
    for row in np.flatnonzero(labels < 3)[:90]:
        folder = Path("first", f"class {labels[row]}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(images[row] * 15).astype(np.uint8)).save(folder / f"{row}.png")
    options = ["--layers", "1", "--gates", "8", "--reg", "2", "--no-baseline", "--output", "run"]
    assert train(["--data", "first", "--test-fraction", "0.3", *options]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["settings"]["test_fraction"] == 0.3 and summary["data"]["n_test"] == 27
    assert "--data first --layers 1 --test-fraction 0.3 " in summary["command"]
    # Elsewhere, and under other names: the same test images.
    Path("first").rename("second")
    assert explain(["run", "--data", "second", "--method", "gradient", "--images", "1"]) == 0
    assert predict(["run", "second", "--part", "test", "--output", "labels.csv"]) == 0
    share = 100 * summary["layers"][0]["convex"]["test_accuracy"]
    assert f"27 images, labels in labels.csv, {share:.2f} % as in the data set" in capsys.readouterr().err
    # Without --part, all images there are.
    assert predict(["run", "second"]) == 0
    assert capsys.readouterr().out.count("\n") == 1 + 90
