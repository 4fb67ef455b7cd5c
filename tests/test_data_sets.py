"""The files of a data set: they agree, are mapped, or are refused; all are there; each is used or named."""

from __future__ import annotations

import json
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eq2 import eq2_block
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_cifar10_python import python2_batch, write_archive, write_batches
from test_data import (
    COLOUR,
    LABELS,
    check_colour,
    encode,
    idx_bytes,
    matches,
    parquet_table,
    write_cifar10,
    write_folders,
    write_idx,
    write_npz,
    write_parquet,
)

from cvxcnn import LayerwiseCNN, save_model
from cvxcnn.commands.predict import load_images, main
from cvxcnn.data.loading import load_data, load_rows
from cvxcnn.data.readers import cifar10
from cvxcnn.errors import DataError, DataWarning

ANIMALS = ("ant", "bee", "cow")


def unused(*texts: str) -> Any:
    """Return a context that expects one warning whose message holds the texts, in this order."""
    return pytest.warns(DataWarning, match=".*".join(["holds what is not used", *texts]))


def named(table: pa.Table, names: Any, label: str = "label") -> pa.Table:
    features = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
    return table.replace_schema_metadata({"huggingface": json.dumps(features)})


def shard(images: Any, animals: list[str], names: list[str]) -> pa.Table:
    """Return rows whose labels are numbers in the order of names."""
    return named(parquet_table(images, [names.index(animal) for animal in animals]), names)


def animals_of(part: str) -> list[str]:
    return [ANIMALS[label] for label in LABELS[part]]


def load_one(source: Path) -> Any:
    """Load the first image of each split alone."""
    return load_rows(source, lambda split, labels, n_classes: np.array([0]), lambda shape, origin: shape)


# Files that agree, or are mapped.


@given(
    st.lists(st.permutations(list(ANIMALS)), min_size=4, max_size=4),
    st.lists(st.integers(1, 5), min_size=2, max_size=2, unique=True).map(sorted),
)
def test_shards_that_name_classes_in_any_order_are_one_set(
    tmp_path_factory: pytest.TempPathFactory, orders: list[list[str]], cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    animals, ends = animals_of("train"), [0, *cuts, 6]
    for number, order in enumerate(orders[:3]):
        rows = slice(ends[number], ends[number + 1])
        table = shard(COLOUR["train"][rows], animals[rows], order)
        pq.write_table(table, folder / f"train-{number:05d}-of-00003.parquet")
    pq.write_table(shard(COLOUR["test"], animals_of("test"), orders[3]), folder / "test.parquet")
    for part, loaded in zip(("train", "test"), load_data(folder), strict=True):
        assert loaded.classes == tuple(orders[0])
        assert [loaded.classes[label] for label in loaded.labels] == animals_of(part)
        assert np.array_equal(loaded.images, COLOUR[part] / 255)


def two_shards(folder: Path, second: pa.Table, first: pa.Table | None = None) -> Path:
    write_parquet(folder)
    (folder / "train.parquet").unlink()
    first = shard(COLOUR["train"][:4], animals_of("train")[:4], list(ANIMALS)) if first is None else first
    pq.write_table(first, folder / "train-00000-of-00002.parquet")
    pq.write_table(second, folder / "train-00001-of-00002.parquet")
    pq.write_table(shard(COLOUR["test"], animals_of("test"), list(ANIMALS)), folder / "test.parquet")
    return folder


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "name different classes: ant, bee, cow and none. Take both files from one data set"),
        (["ant", "bee"], "name different classes: ant, bee, cow and ant, bee."),
        (["ant", "bee", "cat"], "name different classes: ant, bee, cow and ant, bee, cat."),
        (["ant", "bee", "cow", "dog"], "name different classes"),
    ],
)
def test_shards_that_name_other_classes_are_refused(tmp_path: Path, names: list[str] | None, message: str) -> None:
    table = parquet_table(COLOUR["train"][4:], [0, 1])
    two_shards(tmp_path, table if names is None else named(table, names))
    with matches(DataError, "train-00000-of-00002.parquet and ", "train-00001-of-00002.parquet", message):
        load_data(tmp_path)


def test_two_classes_of_one_name_cannot_be_mapped(tmp_path: Path) -> None:
    first = named(parquet_table(COLOUR["train"][:4], [0, 1, 2, 0]), ["crane", "bee", "crane"])
    two_shards(tmp_path, named(parquet_table(COLOUR["train"][4:], [0, 1]), ["bee", "crane", "crane"]), first)
    with matches(DataError, "in another order, and two of them alike", "a name of its own"):
        load_data(tmp_path)


def test_a_label_that_stands_for_no_class_is_not_mapped_to_one(tmp_path: Path) -> None:
    for label in (-1, 3):
        two_shards(tmp_path, named(parquet_table(COLOUR["train"][4:], [0, label]), ["cow", "bee", "ant"]))
        with matches(DataError, str(tmp_path), "labels outside the 3 classes", f": {label}."):
            load_data(tmp_path)


def test_splits_that_name_other_classes_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    for part, names in (("train", ["ant", "bee", "cow"]), ("test", ["ant", "bee", "dog"])):
        pq.write_table(named(parquet_table(COLOUR[part], LABELS[part]), names), tmp_path / f"{part}.parquet")
    with matches(DataError, "train.parquet", "test.parquet", "name different classes: ant, bee, cow and ant, bee, dog"):
        load_data(tmp_path)


def test_the_label_column_is_one_that_all_files_have(tmp_path: Path) -> None:
    both = parquet_table(COLOUR["train"], [9, 9, 9, 8, 8, 7], label="fine_label")
    both = both.append_column("coarse_label", pa.array(LABELS["train"]))
    pq.write_table(both, tmp_path / "train.parquet")
    pq.write_table(parquet_table(COLOUR["test"], LABELS["test"], label="coarse_label"), tmp_path / "test.parquet")
    with unused("column fine_label. Images are read from img, labels from coarse_label"):
        check_colour(tmp_path)
    pq.write_table(both.drop_columns("coarse_label"), tmp_path / "train.parquet")
    with matches(DataError, "The label column of", "train.parquet is fine_label", "test.parquet is coarse_label"):
        load_data(tmp_path)
    pq.write_table(parquet_table(COLOUR["train"], LABELS["train"], "image", "coarse_label"), tmp_path / "train.parquet")
    with matches(DataError, "The image column of", "train.parquet is image", "test.parquet is img", "Name the columns"):
        load_data(tmp_path)


def test_shards_with_labels_of_two_kinds_are_refused(tmp_path: Path) -> None:
    two_shards(
        tmp_path, parquet_table(COLOUR["train"][4:], ["0", "2"]), parquet_table(COLOUR["train"][:4], [2, 0, 1, 1])
    )
    with matches(DataError, "train-00001-of-00002.parquet has labels that are strings", "train-00000", "has integers"):
        load_data(tmp_path)


def test_categories_of_a_table_are_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    for part in ("train", "test"):
        column = pa.array(animals_of(part)).dictionary_encode()
        pq.write_table(parquet_table(COLOUR[part], column), tmp_path / f"{part}.parquet")
    check_colour(tmp_path, ANIMALS)
    missing = pa.array([*animals_of("train")[:5], None]).dictionary_encode()
    pq.write_table(parquet_table(COLOUR["train"], missing), tmp_path / "train.parquet")
    with matches(DataError, "Column label", "has missing values"):
        load_data(tmp_path)


@pytest.mark.parametrize(("train", "test"), [("f4", "u1"), ("?", "u1"), ("u1", "f8"), ("?", "f4")])
def test_arrays_of_two_scales_are_refused(tmp_path: Path, train: str, test: str) -> None:
    arrays = {name: (COLOUR[name[2:]] > 127).astype(dtype) for name, dtype in (("x_train", train), ("x_test", test))}
    path = write_npz(tmp_path / "set.npz", **arrays)
    dtypes = [np.dtype(train).name, np.dtype(test).name]
    with matches(DataError, f"(train) has pixels of dtype {dtypes[0]}", f"(test) of {dtypes[1]}", "Save both alike"):
        load_data(path)


def test_floats_of_two_widths_are_one_scale(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "set.npz", x_train=COLOUR["train"] / 255, x_test=(COLOUR["test"] / 255).astype("f4"))
    train, test = load_data(path)
    assert np.array_equal(train.images, COLOUR["train"] / 255)
    np.testing.assert_allclose(test.images, COLOUR["test"] / 255, atol=1e-7)


# Pixels that rounding took out of their range.


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_a_float_pixel_a_hair_outside_is_at_the_end(tmp_path: Path, dtype: str) -> None:
    images = (COLOUR["train"] / 255).astype(dtype)
    one = np.array(1, dtype)
    images[0, 0, 0, :2] = np.nextafter(one, np.array(2, dtype)), -np.finfo(dtype).eps
    train, _ = load_data(write_npz(tmp_path / "set.npz", x_train=images, x_test=(COLOUR["test"] / 255).astype(dtype)))
    assert train.images[0, 0, 0, :2].tolist() == [1, 0]
    assert (train.images.min(), train.images.max()) == (0, 1)
    np.testing.assert_array_equal(train.images[1:], images[1:].astype(np.float64))


@pytest.mark.parametrize(("value", "shown"), [(1.00001, "to 1.00001."), (-1e-5, "-1e-05 to"), (2.0, "to 2.")])
def test_a_float_pixel_beyond_rounding_is_refused(tmp_path: Path, value: float, shown: str) -> None:
    images = COLOUR["train"] / 255
    images[0, 0, 0, 0] = value
    with matches(DataError, "must lie in [0, 1]; they range from", shown):
        load_data(write_npz(tmp_path / "set.npz", x_train=images, x_test=COLOUR["test"] / 255))


# Sets that are whole.


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00003", "train-00002-of-00003"], "announce [3]: train-00001-of-00003.parquet is missing"),
        (["train-00001-of-00002"], "holds 1 train files whose names announce [2]: train-00000-of-00002.parquet"),
        (["train-00000-of-00002", "train-00002-of-00002"], "train-00001-of-00002.parquet is missing"),
        (["train-00000-of-00002-ab12"], "train-00001-of-00002.parquet is missing"),
        (["train-00000-of-00001", "train-00000-of-00001-ab12"], "announce [1]: there are more than that"),
        (["train-00000-of-00001", "train-00000-of-00002"], "announce [1, 2]: they are of several sets"),
        (["train-00000-of-00001", "train-more"], "announce [1]: train-more.parquet is none of them"),
        (["train-00000-of-00001", "train"], "announce [1]: train.parquet is none of them"),
        (["train-a", "train"], "train.parquet is a whole set by itself"),
        (["train-00000-of-99999999999"], "train-00001-of-99999999999.parquet is missing"),
    ],
)
def test_shards_that_are_not_a_whole_set(tmp_path: Path, names: list[str], message: str) -> None:
    write_parquet(tmp_path)
    table = pq.read_table(tmp_path / "train.parquet")
    (tmp_path / "train.parquet").unlink()
    for name in names:
        pq.write_table(table, tmp_path / f"{name}.parquet")
    with matches(DataError, str(tmp_path), message, "Get the missing ones"):
        load_data(tmp_path)


def test_shards_whose_names_end_in_a_hash(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    (tmp_path / "train.parquet").rename(tmp_path / "train-00000-of-00001-a09b74b3ef9c3b56.parquet")
    check_colour(tmp_path)


def test_a_batch_that_is_missing_between_others(tmp_path: Path) -> None:
    binary, pickles = write_cifar10(tmp_path / "binary"), write_batches(tmp_path / "pickles")
    (binary / "data_batch_1.bin").rename(binary / "data_batch_3.bin")
    with matches(DataError, f"{binary} has no training batch data_batch_1.bin. Put"):
        load_data(binary)
    (pickles / "data_batch_2").rename(pickles / "data_batch_4")
    with matches(DataError, f"{pickles} has no training batch data_batch_2. Put"):
        load_data(pickles)
    extra = python2_batch(np.zeros((1, 3072), np.uint8), [0])
    archive = write_archive(tmp_path / "cifar.tar.gz", **{"cifar-10-batches/data_batch_4": extra})
    with matches(DataError, f"{archive} has no training batch data_batch_3. Put"):
        load_data(archive)


def test_batches_of_the_official_size_are_five(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_cifar10(tmp_path / "binary")
    monkeypatch.setattr(cifar10, "OFFICIAL_SIZE", 2)
    with matches(DataError, "has no training batch data_batch_3.bin"):
        load_data(folder)
    for number in (3, 4, 5):
        (folder / f"data_batch_{number}.bin").write_bytes((folder / "data_batch_2.bin").read_bytes())
    train, _ = load_data(folder)
    assert train.labels.tolist() == [0, 9, *[3, 3] * 4]


def test_ten_batches_are_joined_by_their_numbers(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "binary")
    for number in range(3, 11):
        record = np.full((1, 3073), number, np.uint8)
        record[0, 0] = number % 10
        (folder / f"data_batch_{number}.bin").write_bytes(record.tobytes())
    assert load_data(folder)[0].labels.tolist() == [0, 9, 3, 3, 3, 4, 5, 6, 7, 8, 9, 0]


def test_the_names_beside_the_batches_are_those_of_the_classes(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "binary")
    names = [f"kind {number}" for number in range(10)]
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    train, test = load_data(folder)
    assert train.classes == test.classes == tuple(names)
    (folder / "batches.meta.txt").write_text("\n".join(names[:9]))
    with matches(DataError, "labels outside the 9 classes", ": 9."):
        load_data(folder)
    (folder / "batches.meta.txt").write_text("cat\ndog\ncat\n")
    with matches(DataError, "batches.meta.txt: it names 3 classes, of which 2 differ"):
        load_data(folder)


# Images without a label.


def npz_labels(folder: Path, train: Any) -> Path:
    labels = np.array(train)
    return write_npz(folder / "set.npz", y_train=labels, y_test=labels[:4])


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 2, -1, 0, 1],
        [-1, -1, 0, 0, 0, 0],
        [0, 1, np.iinfo(np.int64).min, 0, 1, 0],
        ["0", "1", "-1", "0", "1", "0"],
        ["cat", "dog", "  ", "cat", "dog", "cat"],
        ["cat", "dog", "N/A", "cat", "dog", "cat"],
        ["cat", "dog", "", "cat", "dog", "cat"],
        ["cat", "dog", "nan", "cat", "dog", "cat"],
        ["cat", "dog", "None", "cat", "dog", "cat"],
        ["cat", "dog", "<NA>", "cat", "dog", "cat"],
        ["cat", "dog", "Unlabelled", "cat", "dog", "cat"],
    ],
)
def test_images_without_a_label_are_no_class(tmp_path: Path, labels: list[Any]) -> None:
    with matches(DataError, "(train) has images of the label", "stands for images without a label", "Take them out"):
        load_data(npz_labels(tmp_path, labels))
    folder = write_parquet(tmp_path / "tables")
    for part in ("train", "test"):
        pq.write_table(parquet_table(COLOUR["train"], labels), folder / f"{part}.parquet")
    with matches(DataError, "train.parquet has images of the label", "stands for images without a label"):
        load_data(folder)


def test_labels_of_which_some_are_nan_are_refused(tmp_path: Path) -> None:
    with matches(DataError, "(train) has 2 images whose label is NaN, which is none. Take them out, and save"):
        load_data(npz_labels(tmp_path, [0, 1, np.nan, 1, 0, np.nan]))


@pytest.mark.parametrize("kind", [int, str])
def test_minus_one_against_one_are_two_classes(tmp_path: Path, kind: type) -> None:
    train, _ = load_data(npz_labels(tmp_path, [kind(label) for label in (1, -1, -1, 1, 1, -1)]))
    assert train.classes == ("-1", "1")


def test_hidden_labels_of_a_test_set_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    for names in (None, list(ANIMALS)):
        for part, labels in (("train", LABELS["train"]), ("test", np.full(4, -1))):
            table = parquet_table(COLOUR[part], labels)
            pq.write_table(named(table, names) if names else table, tmp_path / f"{part}.parquet")
        with matches(DataError, "test.parquet has labels outside the 3 classes", ": -1.", "without a label"):
            load_data(tmp_path)


def test_a_folder_of_unlabelled_images_is_no_class(tmp_path: Path) -> None:
    write_folders(tmp_path)
    (tmp_path / "train" / "c").rename(tmp_path / "train" / "unlabeled")
    with matches(DataError, "has images of the label 'unlabeled'"):
        load_data(tmp_path)


# Each file is used, or named.


@pytest.mark.parametrize("name", ["boxes.txt", "labels.csv", "notes", "archive.zip"])
def test_a_file_among_images_that_is_none_is_named_where_few_are_decoded(tmp_path: Path, name: str) -> None:
    write_folders(tmp_path)
    (tmp_path / "train" / "b" / name).write_text("something")
    for load in (load_data, load_one):
        with matches(DataError, f"Can't read {tmp_path / 'train' / 'b' / name}", "take it out"):
            load(tmp_path)


def test_images_of_any_name_are_images(tmp_path: Path) -> None:
    write_folders(tmp_path)
    expected = load_data(tmp_path)[0]
    for path in list((tmp_path / "train").rglob("*.png")):
        path.rename(path.with_suffix("" if path.stem == "1" else ".upload"))
    assert np.array_equal(load_data(tmp_path)[0].images, expected.images)


def test_images_in_folders_of_a_class_are_of_the_class(tmp_path: Path) -> None:
    write_folders(tmp_path)
    expected = load_data(tmp_path)
    for part in ("train", "test"):
        for path in list((tmp_path / part).rglob("[13].png")):
            deeper = path.parent / "more" / "and more"
            deeper.mkdir(parents=True, exist_ok=True)
            path.rename(deeper / path.name)
    for found, known in zip(load_data(tmp_path), expected, strict=True):
        assert found.classes == known.classes
        keys = [sorted(zip(s.labels, map(bytes, s.images), strict=True)) for s in (found, known)]
        assert keys[0] == keys[1]


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "thumbs.DB", "desktop.ini", "._1.png", "__MACOSX/1.png"])
def test_what_systems_leave_behind_is_no_image(tmp_path: Path, name: str) -> None:
    write_folders(tmp_path)
    for place in (tmp_path, tmp_path / "train", tmp_path / "train" / "a", tmp_path / "test"):
        path = place / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    train, test = load_data(tmp_path)
    assert (len(train), len(test), train.classes) == (6, 4, ("a", "b", "c"))
    images, names = load_images(str(tmp_path / "train" / "a"))
    assert len(images) == len(names) == 2


def add(relative: str, content: bytes = b"something") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return write


def add_empty_class(folder: Path) -> None:
    (folder / "train" / "zebra").mkdir()


def add_link_to_nothing(folder: Path) -> None:
    (folder / "train" / "lost").symlink_to(folder / "nowhere")


@pytest.mark.parametrize(
    ("write", "change", "texts"),
    [
        (write_folders, add("train/7.png", encode(COLOUR["train"][0])), ["7.png"]),
        (write_folders, add("test/notes.txt"), ["notes.txt"]),
        (write_folders, add("val/a/1.png"), ["val"]),
        (write_folders, add("labels.csv"), ["labels.csv"]),
        (write_folders, add_empty_class, ["the empty class zebra"]),
        (write_folders, add_link_to_nothing, ["lost"]),
        (write_parquet, add("validation-00000-of-00001.parquet"), ["validation-00000-of-00001.parquet"]),
        (write_parquet, add("train/a/1.png"), ["train"]),
        (write_parquet, add("training.parquet"), ["training.parquet"]),
        (write_idx, add("extra-images-idx3-ubyte", idx_bytes(np.zeros((1, 5, 4), np.uint8))), ["extra-images"]),
        (write_idx, add("notes.txt"), ["notes.txt"]),
        (write_batches, add("data_batch_3.bak"), ["data_batch_3.bak"]),
        (write_batches, add("val/1.png"), ["val"]),
    ],
)
def test_files_that_are_not_used_are_named(
    tmp_path: Path, write: Callable[[Path], Path], change: Callable[[Path], None], texts: list[str]
) -> None:
    folder = write(tmp_path / "set") if write is not write_folders else write_folders(tmp_path / "set")
    expected = load_data(folder)
    change(folder)
    with unused(*texts):
        found = load_data(folder)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.images, other.images) and np.array_equal(one.labels, other.labels)


@pytest.mark.parametrize("write", [write_folders, write_parquet, write_idx, write_cifar10, write_batches])
@pytest.mark.parametrize("name", ["README.md", "readme.txt", "LICENSE", "CITATION.cff", "index.html", ".gitattributes"])
def test_what_is_written_about_a_data_set_is_not_named(
    tmp_path: Path, write: Callable[[Path], Path], name: str
) -> None:
    folder = write(tmp_path / "set")
    (folder / name).write_text("about")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_data(folder)


def test_an_archive_beside_what_was_in_it_is_not_named(tmp_path: Path) -> None:
    write_batches(tmp_path / "cifar-10-batches-py")
    write_archive(tmp_path / "cifar-10-python.tar.gz")
    assert len(load_data(tmp_path)[0]) == 4
    (tmp_path / "notes.txt").write_text("something")
    with unused("notes.txt"):
        load_data(tmp_path)


def test_columns_that_are_not_used_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    for part in ("train", "test"):
        table = pq.read_table(tmp_path / f"{part}.parquet")
        count = len(table)
        table = table.append_column("__index_level_0__", pa.array(range(count))).append_column("url", [["x"] * count])
        pq.write_table(table.append_column(f"of_{part}", [[0] * count]), tmp_path / f"{part}.parquet")
    with unused("column url, column of_train, column of_test. Images are read from img, labels from label"):
        check_colour(tmp_path)


def test_arrays_that_are_not_used_are_named(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "set.npz", x_val=COLOUR["test"], y_val=LABELS["test"])
    with unused("x_val, y_val. Put images"):
        check_colour(path)


def test_of_many_files_that_are_not_used_five_are_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    for number in range(12):
        (tmp_path / f"{number:02d}.txt").write_text("something")
    with unused(r"00\.txt, 01\.txt, 02\.txt, 03\.txt, 04\.txt and 7 more\."):
        load_data(tmp_path)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    write_folders(tmp_path / "set")
    (tmp_path / "set" / "train" / "a").rename(elsewhere)
    (tmp_path / "set" / "train" / "a").symlink_to(elsewhere)
    assert len(load_data(tmp_path / "set")[0]) == 6
    (elsewhere / "again").symlink_to(elsewhere)
    with matches(DataError, "again is a link to a folder that it is in. Take it out"):
        load_data(tmp_path / "set")


def test_a_link_to_nothing_among_the_images_of_a_class_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    link = tmp_path / "train" / "a" / "9.png"
    link.symlink_to(tmp_path / "nowhere.png")
    for load in (load_data, load_one, lambda folder: load_images(str(folder / "train" / "a"))):
        with matches(DataError, f"Can't read {link}: there is no file", "take it out"):
            load(tmp_path)


def test_images_in_subfolders_are_predicted_too(tmp_path: Path) -> None:
    for name in ("b.png", "a/2.png", "a/deep/1.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), len(name), np.uint8)).save(path)
    images, names = load_images(str(tmp_path))
    assert names == ["a/2.png", "a/deep/1.png", "b.png"]
    assert np.array_equal(images[:, 0, 0, 0] * 255, [7, 12, 5])


def test_the_command_line_says_in_one_line_what_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, _ = load_data(write_folders(tmp_path / "set"))
    block = eq2_block(gates=5, reg=1.0, penalty="dense")
    save_model(LayerwiseCNN(layers=1, block=block).fit(train.images, np.eye(3)[train.labels]), tmp_path / "model")
    (tmp_path / "set" / "val\n\x1bid").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main([str(tmp_path / "model"), str(tmp_path / "set")]) == 0
    shown = capsys.readouterr()
    assert r"set holds what is not used: 'val\n\x1bid'. Put images" in shown.err
    assert (shown.err.count("\n"), shown.out.count("\n")) == (1, 5)


def test_idx_files_of_images_without_labels(tmp_path: Path) -> None:
    write_idx(tmp_path)
    for name in ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        with matches(DataError, "has 0 IDX files of", "labels", "and one is needed"):
            load_data(tmp_path)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 2) + bytes(2))
    with matches(DataError, "has labels of shape (2,) for images of shape (6, 5, 4)"):
        load_data(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="a pipe of POSIX")
def test_what_is_neither_file_nor_folder_is_named(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "tables")
    os.mkfifo(folder / "pipe")
    with unused("pipe"):
        check_colour(folder)
    write_folders(tmp_path / "images")
    pipe = tmp_path / "images" / "train" / "a" / "7.png"
    os.mkfifo(pipe)  # nobody will ever write to it
    for load in (load_data, load_one, lambda folder: load_images(str(folder / "train" / "a"))):
        with matches(DataError, f"Can't read {pipe}: there is no file", "take it out"):
            load(tmp_path / "images")
