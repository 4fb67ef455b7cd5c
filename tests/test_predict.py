"""Images in, labels out: every kind of source, and clear words for images that don't fit."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from eq2 import eq2_block
from numpy.typing import NDArray
from PIL import Image

import cvxcnn
from cvxcnn import LayerwiseCNN, PricingOptions, load_model, save_model
from cvxcnn.commands.predict import BATCH, load_images, main, predict_labels
from cvxcnn.data import load_data, one_hot
from cvxcnn.errors import DataError, InputError
from cvxcnn.runs.records import accuracy


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stack of two layers on digits, with names for its classes."""
    folder = tmp_path_factory.mktemp("models") / "digits"
    train, _ = load_data("digits")
    block = eq2_block(
        gates=15, reg=1.0, penalty="dense", padding=1, pooling="mean", pool_cells=2, bias=True,
        pricing=PricingOptions(starts=1),
    )  # fmt: skip
    stack = LayerwiseCNN(layers=2, block=block, downsample=2)
    stack.fit(train.images[:200], one_hot(train.labels[:200], 10))
    save_model(stack, folder, extra={"classes": [f"class {name}" for name in train.classes]})
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, NDArray[np.uint8]]:
    """A folder of three grey PNGs of 8 x 8 pixels, and their pixels, in the order of their names."""
    _, test = load_data("digits")
    pixels = np.round(255 * test.images[:3, 0]).astype(np.uint8)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, image in zip(("a b.png", "b,c.png", "c.png"), pixels, strict=True):
        Image.fromarray(image).save(folder / name)
    (folder / ".hidden").write_text("no image")
    return folder, pixels


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_data_set_gives_the_models_own_predictions(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, test = load_data("digits")
    model = load_model(model_folder)
    assert len(test) > BATCH
    for layer, options in ((1, ["--layer", "1"]), (2, [])):
        assert main([str(model_folder), "digits", *options]) == 0
        shown = capsys.readouterr()
        assert shown.err == "" and shown.out.startswith("image,label,score\n0,class ")
        rows = rows_of(shown.out)
        scores = model.predict(test.images, layer - 1)
        assert [row["image"] for row in rows] == [str(number) for number in range(len(test))]
        labels = np.array([int(row["label"].removeprefix("class ")) for row in rows])
        np.testing.assert_array_equal(labels, scores.argmax(axis=1))
        np.testing.assert_allclose([float(row["score"]) for row in rows], scores.max(axis=1), rtol=1e-5)
        assert (labels == test.labels).mean() == accuracy(scores, test.labels)
    assert main([str(model_folder), "digits", "--part", "train"]) == 0
    assert len(rows_of(capsys.readouterr().out)) == 1437


def test_pictures_and_arrays_are_the_same_images(
    model_folder: Path, pictures: tuple[Path, NDArray[np.uint8]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, pixels = pictures
    np.savez(tmp_path / "one.npz", anything=pixels)
    np.savez(tmp_path / "named.npz", images=pixels[:, None] / 255.0, other=np.zeros(2))
    np.savez(tmp_path / "last.npz", x=pixels[..., None], y=np.zeros(3))
    np.save(tmp_path / "array.npy", pixels)
    np.savez(tmp_path / "set.npz", x_train=pixels, y_train=[0, 1, 2], x_test=pixels, y_test=[0, 1, 2])
    expected = load_model(model_folder).predict(pixels[:, None] / 255.0)
    for source in (folder, *(tmp_path / name for name in ("one.npz", "named.npz", "last.npz", "array.npy", "set.npz"))):
        assert main([str(model_folder), str(source)]) == 0
        rows = rows_of(capsys.readouterr().out)
        assert [row["label"] for row in rows] == [f"class {number}" for number in expected.argmax(axis=1)]
        np.testing.assert_allclose([float(row["score"]) for row in rows], expected.max(axis=1), rtol=1e-5)
        names = ["a b.png", "b,c.png", "c.png"] if source is folder else ["0", "1", "2"]
        assert [row["image"] for row in rows] == names
    assert main([str(model_folder), str(folder / "c.png")]) == 0
    (row,) = rows_of(capsys.readouterr().out)
    assert row["image"] == "c.png" and float(row["score"]) == pytest.approx(expected[2].max(), rel=1e-5)


def test_labels_by_the_mean_over_shifts(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, test = load_data("digits")
    model = load_model(model_folder)
    folder, target = tmp_path / "named_alike", tmp_path / "labels.csv"
    save_model(model, folder, extra={"classes": list(test.classes)})
    assert main([str(folder), "digits", "--shift", "1", "--output", str(target)]) == 0
    scores = model.predict(test.images, shift=1)
    share = 100 * accuracy(scores, test.labels)
    assert share > 50
    assert capsys.readouterr().err == f"{len(test)} images, labels in {target}, {share:.2f} % as in the data set\n"
    found = [float(row["score"]) for row in rows_of(target.read_text())]
    np.testing.assert_allclose(found, scores.max(axis=1), rtol=1e-5)


def test_a_file_for_the_labels(
    model_folder: Path, pictures: tuple[Path, NDArray[np.uint8]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "labels.csv"
    target.write_text("old")
    arguments = [str(model_folder), str(pictures[0]), "--output", str(target)]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == f"3 images, labels in {target}\n"
    assert [row["image"] for row in rows_of(target.read_text())] == ["a b.png", "b,c.png", "c.png"]
    assert main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main([*arguments[:-1], str(tmp_path / "none" / "labels.csv")]) == 1
    assert "can't write the labels: No such file or directory." in capsys.readouterr().err


def test_several_sources_and_standard_output(
    model_folder: Path, pictures: tuple[Path, NDArray[np.uint8]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, pixels = pictures
    np.save(tmp_path / "array.npy", pixels)
    assert (
        main([str(model_folder), str(folder / "c.png"), str(folder), str(tmp_path / "array.npy"), "--output", "-"]) == 0
    )
    rows = rows_of(capsys.readouterr().out)
    names = [f"{folder}/{name}" for name in ("a b.png", "b,c.png", "c.png")]
    arrays = [f"{tmp_path / 'array.npy'}/{row}" for row in range(3)]
    assert [row["image"] for row in rows] == [str(folder / "c.png"), *names, *arrays]
    labels = [f"class {label}" for label in load_model(model_folder).predict(pixels[:, None] / 255.0).argmax(axis=1)]
    assert [row["label"] for row in rows] == [labels[2], *labels, *labels]
    Image.fromarray(np.zeros((9, 8), dtype=np.uint8)).save(tmp_path / "tall.png")
    assert main([str(model_folder), str(folder), str(tmp_path / "tall.png")]) == 2
    assert "tall.png has 9 x 8 pixels" in capsys.readouterr().err


def test_folders_of_classes_are_their_labels(
    model_folder: Path, pictures: tuple[Path, NDArray[np.uint8]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, pixels = pictures
    expected = load_model(model_folder).predict(pixels[:, None] / 255.0).argmax(axis=1)
    for name, label in zip(
        ("a b.png", "b,c.png", "c.png"), [expected[0], expected[1], (expected[2] + 1) % 10], strict=True
    ):
        (tmp_path / "sorted" / f"class {label}").mkdir(parents=True, exist_ok=True)
        (folder / name).rename(tmp_path / "sorted" / f"class {label}" / name)
    target = tmp_path / "labels.csv"
    assert main([str(model_folder), str(tmp_path / "sorted"), "--output", str(target)]) == 0
    assert capsys.readouterr().err == f"3 images, labels in {target}, 66.67 % as in the data set\n"
    assert {row["image"].partition("/")[2] for row in rows_of(target.read_text())} == {"a b.png", "b,c.png", "c.png"}


def test_images_of_another_shape(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shape, given, remedy in (
        ((9, 7), "(1, 9, 7)", "Resize or crop them to 8 x 8 pixels."),
        ((8, 8, 3), "(3, 8, 8)", "Save them in grey."),
        ((5, 5, 3), "(3, 5, 5)", "Resize or crop them to 8 x 8 pixels. Save them in grey."),
    ):
        Image.fromarray(np.zeros(shape, dtype=np.uint8)).save(tmp_path / "image.png")
        assert main([str(model_folder), str(tmp_path / "image.png"), "--output", str(tmp_path / "out.csv")]) == 2
        known = f"shape {given} (channels, height, width), and the network was trained on (1, 8, 8). {remedy}\n"
        assert capsys.readouterr().err.endswith(known)
    assert not (tmp_path / "out.csv").exists()


def test_sources_that_cannot_be_read(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    np.savez(tmp_path / "many.npz", a=np.zeros((1, 8, 8)), b=np.zeros((1, 8, 8)))
    np.save(tmp_path / "flat.npy", np.zeros((8, 8)))
    np.save(tmp_path / "far.npy", np.full((1, 8, 8), 2.0))
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 broken")
    for name, message in (
        ("nowhere", "There are no images at"),
        ("empty", "holds no images. Put image files into it"),
        ("text.png", "Mend the image"),
        ("many.npz", "has the arrays a, b. Name that of the images images."),
        ("flat.npy", "must be (n, c, h, w), (n, h, w, c) or (n, h, w), and not empty; they are (8, 8)"),
        ("far.npy", "must lie in [0, 1]"),
        ("objects.npy", "object arrays are never read"),
        ("broken.npz", "broken.npz"),
    ):
        with pytest.raises(DataError, match=re.escape(message)):
            load_images(str(tmp_path / name))
        assert main([str(model_folder), str(tmp_path / name)]) == 1
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.startswith("cvxcnn.predict: error: ") and shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}", "digits"], "config.json is missing"),
        (["{run}", "digits", "--layer", "3"], "layer must be between 1 and 2, the layers of the run; got 3."),
        (["{run}", "digits", "--layer", "0"], "--layer must be an int >= 1; got 0"),
        (["{run}", "digits", "--part", "all"], "--part must be one of test, train; got all"),
        (["{run}"], "the following arguments are required: IMAGES"),
    ],
)
def test_wrong_usage(
    model_folder: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.format(run=model_folder, tmp=tmp_path) for argument in arguments]) == 2
    assert message in capsys.readouterr().err


def test_classes_without_names_are_numbers_and_one_output_has_none() -> None:
    images = np.random.default_rng(0).random((20, 1, 5, 5))
    block = eq2_block(gates=5, reg=0.1)
    both = LayerwiseCNN(layers=1, block=block).fit(images, np.eye(2)[(images[:, 0, 2, 2] > 0.5).astype(int)])
    rows = list(predict_labels(both, images, [str(number) for number in range(20)]))
    assert [row[1] for row in rows] == [str(label) for label in both.predict(images).argmax(axis=1)]
    single = LayerwiseCNN(layers=1, block=block).fit(images, images[:, 0, 2, 2])
    with pytest.raises(InputError, match="one output, so it has no classes"):
        list(predict_labels(single, images, ["x"] * 20))


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_reader_that_leaves_early_gets_no_complaint(model_folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "cvxcnn", "predict", str(model_folder), "digits"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cvxcnn.__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as started:
        assert started.stdout is not None and started.stderr is not None
        started.stdout.close()
        assert started.stderr.read() == b""
        assert started.wait(100) == 1
