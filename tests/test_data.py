"""Arrays and files: what is read comes out as it went in, and what can't be read is one error that says why."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from eq2 import eq2_block
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_cifar10_python import write_archive, write_batches

from cvxcnn import ConvexCNNClassifier, ConvexCNNRegressor, LayerwiseCNN, reg_path
from cvxcnn.data import (
    ImageSet,
    check_images,
    check_labels,
    check_targets,
    limit,
    load_data,
    one_hot,
    shifted,
    split,
)
from cvxcnn.data.loading import load_rows
from cvxcnn.data.readers import READERS, encoded
from cvxcnn.errors import CvxcnnError, DataError, DataWarning, InputError


def matches(error: type[Exception], *texts: str) -> Any:
    """Return a context that expects an error whose message holds the texts, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, texts)))


# Images.


def test_images_of_any_kind_become_one_tensor() -> None:
    expected = torch.arange(2 * 3 * 4, dtype=torch.float64).view(2, 1, 3, 4)
    array = np.arange(24).reshape(2, 3, 4)
    for images in (
        array,
        array[:, None],
        array.tolist(),
        array.astype(np.float64)[::-1][::-1],
        array.astype(">f4"),
        array.astype(np.uint16),
        array.astype(np.float16),
        np.asfortranarray(array),
        torch.from_numpy(array),
        torch.from_numpy(array).to(torch.uint8),
        torch.from_numpy(array).float().requires_grad_(),
    ):
        checked = check_images(images)
        assert torch.equal(checked, expected)
        assert not checked.requires_grad


def test_booleans_become_zero_and_one() -> None:
    assert check_images(np.eye(2, dtype=bool)[None]).tolist() == [[[[1, 0], [0, 1]]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_images_have_the_dtype_asked_for(dtype: torch.dtype) -> None:
    for images in (np.ones((1, 2, 2)), torch.ones(1, 2, 2), [[[1]]]):
        assert check_images(images, dtype=dtype).dtype == dtype


def test_tensors_of_other_kinds_and_numbers_kept_as_objects_are_images() -> None:
    expected = torch.arange(12, dtype=torch.float64).view(3, 1, 2, 2)
    plain = expected[:, 0]
    for images in (
        plain.to(torch.bfloat16),
        plain.half(),
        plain.to_sparse(),
        plain.clone().requires_grad_() * 1,
        list(plain.to(torch.bfloat16)),
        [image.clone().requires_grad_() for image in plain],
        [[row.to(torch.float32) for row in image] for image in plain],
        plain.numpy().astype(object),
        np.array([[[Fraction(int(v)) for v in row] for row in image] for image in plain]),
        np.ma.masked_array(plain.numpy()),
        np.ma.masked_array(plain.numpy(), mask=np.zeros((3, 2, 2), dtype=bool)),
    ):
        assert torch.equal(check_images(images), expected)


class NAType:
    """As the NA of pandas: neither equal nor unequal to anything, itself among it."""

    def __repr__(self) -> str:
        return "NA"

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    def __eq__(self, other: object) -> Any:
        return self

    def __ne__(self, other: object) -> Any:
        return self

    __hash__ = object.__hash__


NA = NAType()


@pytest.mark.parametrize(
    "values",
    [
        np.ma.masked_array([1.0, 2.0], mask=[False, True]),
        [1.0, np.ma.masked],
        [np.ma.masked_array(1.0), np.ma.masked_array(2.0, mask=True)],
        np.array([1, None], dtype=object),
        np.array([1.5, NA], dtype=object),
        np.array([True, NA], dtype=object),
        np.array([1, float("nan")], dtype=object),
        [1, None],
        [NA, 1],
    ],
    ids=str,
)
def test_missing_values_are_named_everywhere(values: Any) -> None:
    message = "must be there for every image; missing (masked, None, NA or NaN): 1. Fill them in, or leave those"
    with matches(InputError, "targets " + message):
        check_targets(values, 2)
    for take in (check_labels, lambda labels: one_hot(labels, 2), lambda labels: split(labels, 0.5, 0)):
        with matches(InputError, "labels " + message):
            take(values)
    with matches(InputError, "images " + message):
        check_images([values] if isinstance(values, list) else np.ma.reshape(values, (1, 1, 2)))


@pytest.mark.parametrize("missing", [None, NA, float("nan"), np.float32("nan")])
@pytest.mark.parametrize("kind", [list, lambda labels: np.array(labels, dtype=object)])
def test_names_of_which_some_are_missing_are_no_labels(missing: Any, kind: Callable[[list[Any]], Any]) -> None:
    with matches(InputError, "labels must be there for every image", ": 2. Fill them in, or leave those images out."):
        check_labels(kind(["cat", missing, "dog", missing]))
    images = np.random.default_rng(0).random((4, 5, 5))
    model = ConvexCNNClassifier(block=eq2_block(gates=3, reg=0.1, penalty="dense"))
    with matches(InputError, "labels must be there for every image", ": 2."):
        model.fit(images, kind(["cat", missing, "dog", missing]))


def test_missing_targets_and_pixels_of_an_estimator_are_named() -> None:
    images = np.random.default_rng(0).random((4, 9))
    block = eq2_block(gates=3, reg=0.1, penalty="dense")
    with matches(InputError, "targets must be there for every image", ": 1."):
        ConvexCNNRegressor(block=block).fit(images, np.array([1.0, 2.0, NA, 3.0], dtype=object))
    with matches(InputError, "targets must be there for every image", ": 1."):
        ConvexCNNRegressor(block=block).fit(images, np.ma.masked_array([1.0, 2, 3, 4], mask=[0, 0, 1, 0]))
    with matches(InputError, "images must be there for every image", ": 9."):
        masked = np.ma.masked_array(images, mask=np.arange(4)[:, None] == np.ones(9))
        ConvexCNNClassifier(block=block).fit(masked, [0, 1, 0, 1])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_lists_of_tensors_fit_as_one_tensor_does(kind: torch.dtype) -> None:
    images, targets = torch.rand(12, 5, 5).to(kind), torch.arange(12).to(kind) % 3
    block = eq2_block(gates=4, reg=0.1, penalty="dense")
    expected = block.fit(images, targets).predict(images)
    assert expected.shape == (12,)
    parts = (
        [image.clone().requires_grad_() for image in images],
        [target.clone().requires_grad_() for target in targets],
    )
    for model in (block, LayerwiseCNN(layers=1, block=block, standardize=False)):
        np.testing.assert_array_equal(model.fit(*parts).predict(parts[0]), expected)
    path = reg_path(*parts, block=block, points=3)
    assert path.blocks[0].predict(images).shape == (12,)


def test_labels_of_one_kind() -> None:
    assert check_labels(np.array([3, 1], dtype=object)).dtype.kind == "i"
    assert check_labels([torch.tensor(1), torch.tensor(0)]).tolist() == [1, 0]
    assert check_labels([np.array(1), np.array(0)]).tolist() == [1, 0]
    assert check_labels(np.array(["b", "a"], dtype=object)).tolist() == ["b", "a"]
    with matches(InputError, "labels must be of one kind; got int, str. Make all of them numbers"):
        check_labels(np.array([1, "a"], dtype=object))


@pytest.mark.parametrize("number", [np.int64, np.uint8, np.array, torch.tensor])
def test_counts_and_seeds_of_any_kind_of_int(number: Callable[[int], Any]) -> None:
    whole = image_set([5, 5])
    assert np.array_equal(limit(whole, number(4), number(1)).images, limit(whole, 4, 1).images)
    assert torch.equal(one_hot([0, 1], number(2)), one_hot([0, 1], 2))
    assert np.array_equal(split(whole.labels, 0.5, number(3))[0], split(whole.labels, 0.5, 3)[0])
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(shifted(images, number(5)), shifted(images, 5))


@pytest.mark.parametrize("number", [np.float32, np.float64, np.array])
def test_fractions_of_any_kind_of_float(number: Callable[[float], Any]) -> None:
    assert len(split([0, 0, 1, 1], number(0.5), 0)[1]) == 2


@pytest.mark.parametrize("seed", [-1, 0.5, "a", None])
def test_seeds_are_checked(seed: Any) -> None:
    whole = image_set([5, 5])
    for draw in (lambda: limit(whole, 4, seed), lambda: split(whole.labels, 0.5, seed)):
        with matches(InputError, "seed must be an int", f"got {seed!r}."):
            draw()


def test_read_only_images_are_taken_without_a_warning() -> None:
    images = np.ones((1, 2, 2))
    images.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_images(images).zero_()
    assert images.all()


def test_flat_images_are_refused() -> None:
    message = "images must be (n, c, h, w) or (n, h, w); got (1797, 64). Reshape flat images first."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        check_images(np.zeros((1797, 64)))


@pytest.mark.parametrize("shape", [(), (4,), (1, 1, 1, 1, 1)])
def test_images_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with matches(InputError, "images must be (n, c, h, w) or (n, h, w)", f"got {shape}"):
        check_images(np.zeros(shape))


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (3, 0, 4, 4), (3, 4, 0)])
def test_empty_images_are_refused(shape: tuple[int, ...]) -> None:
    with matches(InputError, "images are empty", str(shape), "at least one"):
        check_images(np.zeros(shape))


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
def test_values_that_are_not_finite_are_counted(convert: Callable[[Any], Any]) -> None:
    images = np.zeros((2, 1, 3, 3))
    images[0, 0, 0] = np.nan, np.inf, -np.inf
    with matches(InputError, "images must be finite; 3 of 18 values are NaN or infinite", "Remove or replace them"):
        check_images(convert(images))


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
def test_values_too_large_for_the_dtype_are_refused(convert: Callable[[Any], Any]) -> None:
    images = convert(np.full((1, 2, 2), 1e300))
    assert check_images(images).max() == 1e300
    with matches(InputError, "4 of 4 values are NaN or infinite as torch.float32"):
        check_images(images, dtype=torch.float32)


@pytest.mark.parametrize(
    "images",
    [
        np.full((1, 2, 2), None),
        np.full((1, 2, 2), "a"),
        np.zeros((1, 2, 2), dtype=complex),
        torch.zeros(1, 2, 2, dtype=torch.complex64),
        np.zeros((1, 2, 2), dtype="datetime64[s]"),
        np.array([[["1", "2"]]], dtype=object),
        "a picture",
        None,
    ],
)
def test_images_that_are_not_real_numbers_are_refused(images: Any) -> None:
    with matches(InputError, "images must be real numbers; got ", "Pass pixels"):
        check_images(images)


def test_ragged_images_are_refused() -> None:
    with matches(InputError, "images must form one array", "unequal lengths"):
        check_images([[[1, 2], [3]]])
    with matches(InputError, "images must form one array", "unequal lengths"):
        check_images([torch.ones(2, 2), torch.ones(2, 3)])


def test_tensors_without_values_are_refused() -> None:
    with matches(InputError, "images are a tensor on the meta device, which has no values"):
        check_images(torch.ones(1, 2, 2, device="meta"))


def test_destinations_are_checked() -> None:
    for check in (check_images, lambda values, **options: check_targets(values, 1, **options)):
        with matches(InputError, "dtype must be a real floating-point type", "torch.int64"):
            check([[[1.0]]], dtype=torch.int64)
        with matches(InputError, "device 'toaster' can't be used", 'Use "cpu"'):
            check([[[1.0]]], device="toaster")
    if not torch.cuda.is_available():
        with matches(InputError, "device 'cuda' can't be used"):
            check_images([[[1.0]]], device="cuda")


# Targets.


def test_targets_have_a_column_an_output() -> None:
    assert check_targets([1, 2], 2).tolist() == [[1], [2]]
    assert check_targets(np.array([[1, 2], [3, 4]], dtype=np.int8), 2).tolist() == [[1, 2], [3, 4]]
    assert check_targets(torch.tensor([True, False]), 2, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([1, 2, 3], "targets must be one an image; got 3 targets for 2 images"),
        (np.zeros((2, 1, 1)), "targets must be (n,) or (n, outputs); got (2, 1, 1)"),
        (5.0, "targets must be (n,) or (n, outputs); got ()"),
        (np.zeros((2, 0)), "targets are empty: got shape (2, 0)"),
        ([1, np.nan], "targets must be finite; 1 of 2 values"),
        (["cat", "dog"], "targets must be real numbers; got dtype <U3. Encode class labels by one_hot"),
        (np.array(["cat", None]), "targets must be real numbers; got dtype object. Encode class labels by one_hot"),
        ([1j, 2], "targets must be real numbers; got dtype complex128"),
        ([[1], [2, 3]], "targets must form one array"),
    ],
)
def test_targets_are_checked(targets: Any, message: str) -> None:
    with matches(InputError, message):
        check_targets(targets, 2)


# One column a class.


@given(st.integers(2, 6).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(0, c - 1)))))
def test_one_hot_marks_the_label(case: tuple[int, list[int]]) -> None:
    n_classes, labels = case
    targets = one_hot(np.array(labels, dtype=np.int64), n_classes)
    assert targets.shape == (len(labels), n_classes)
    assert targets.dtype == torch.float64
    assert set(targets.flatten().tolist()) <= {0.0, 1.0}
    assert targets.sum(1).tolist() == [1.0] * len(labels)
    assert targets.argmax(1).tolist() == labels


def test_one_hot_takes_tensors_booleans_and_a_dtype() -> None:
    expected = [[0, 1], [1, 0]]
    assert one_hot(torch.tensor([1, 0]), 2).tolist() == expected
    assert one_hot([True, False], 2, dtype=torch.float32).tolist() == expected
    assert one_hot(np.array([1, 0], dtype=np.uint8), 2, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "n_classes", "message"),
    [
        ([0, 0], 1, "Classification needs two classes at least; got 1."),
        ([0, 2], 2, "labels must be class indices 0 to 1; got 0 to 2."),
        ([-1, 1], 2, "labels must be class indices 0 to 1; got -1 to 1."),
        ([0.0, 1.0], 2, "labels must be class indices, integers of shape (n,); got float64 (2,)."),
        (["a", "b"], 2, "labels must be class indices"),
        ([[0, 1]], 2, "integers of shape (n,); got int64 (1, 2)."),
        ([[0], [0, 1]], 2, "labels must form one array; got nested values of unequal lengths"),
        (torch.tensor([0.0, 1.0], dtype=torch.bfloat16), 2, "integers of shape (n,); got float32 (2,)."),
        ([0, 1], 2.0, "Classification needs two classes at least; got 2.0."),
        ([0, 1], "2", "Classification needs two classes at least; got 2."),
    ],
)
def test_one_hot_refuses(labels: Any, n_classes: int, message: str) -> None:
    with matches(InputError, message):
        one_hot(labels, n_classes)


# Splits and subsets.


@given(
    st.lists(st.integers(6, 20), min_size=2, max_size=4),
    st.floats(0.2, 0.8),
    st.integers(0, 1000),
)
def test_split_is_stratified_and_complete(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    rest, part = split(labels, fraction, seed)
    assert sorted([*rest, *part]) == list(range(len(labels)))
    assert len(part) == int(np.ceil(fraction * len(labels)))
    assert (np.diff(rest) > 0).all()
    assert (np.diff(part) > 0).all()
    share = len(part) / len(labels)
    for label, count in enumerate(counts):
        assert abs((labels[part] == label).sum() - share * count) < 1 + 1e-9
    again = split(labels, fraction, seed)
    assert np.array_equal(rest, again[0])
    assert np.array_equal(part, again[1])


def test_split_depends_on_the_seed() -> None:
    labels = np.repeat([0, 1], 50)
    assert not np.array_equal(split(labels, 0.5, 0)[0], split(labels, 0.5, 1)[0])


@pytest.mark.parametrize(
    ("labels", "fraction", "message"),
    [
        ([0, 0, 1], 0.5, "two images of every class at least; class 1 has 1"),
        ([], 0.5, "there are none"),
        ([0, 0, 1, 1], 0.0, "fraction must lie strictly between 0 and 1; got 0.0"),
        ([0, 0, 1, 1], 1.0, "fraction must lie strictly between 0 and 1; got 1.0"),
        ([0, 0, 1, 1], float("nan"), "fraction must lie strictly between 0 and 1; got nan"),
        ([0, 0, 1, 1], 0.2, "fraction 0.2 of 4 images leaves a side with 1, fewer than the 2 classes"),
        ([0, 0, 1, 1], 0.9, "fraction 0.9 of 4 images leaves a side with 0"),
        ([[0, 0, 1, 1]], 0.5, "labels must be of shape (n,); got (1, 4)"),
    ],
)
def test_split_refuses(labels: Any, fraction: float, message: str) -> None:
    with matches(InputError, message):
        split(labels, fraction, 0)


def image_set(counts: list[int]) -> ImageSet:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    images = np.arange(len(labels), dtype=np.float64)[:, None, None, None] / len(labels)
    return ImageSet(images, labels, tuple(map(str, range(len(counts)))), "numbered")


@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), st.data(), st.integers(0, 1000))
def test_limit_keeps_every_class_and_nests(counts: list[int], data: st.DataObject, seed: int) -> None:
    whole = image_set(counts)
    n = data.draw(st.integers(len(counts), sum(counts)))
    smaller = data.draw(st.integers(len(counts), n))
    part, inside = limit(whole, n, seed), limit(whole, smaller, seed)
    assert len(part) == n
    assert set(inside.images.flatten()) <= set(part.images.flatten()) <= set(whole.images.flatten())
    assert len(set(part.images.flatten())) == n
    assert np.array_equal(np.unique(part.labels), np.arange(len(counts)))
    assert np.array_equal(part.images, limit(whole, n, seed).images)
    # The pairs of image and label stay together.
    rows = np.round(part.images.flatten() * len(whole)).astype(int)
    assert np.array_equal(whole.labels[rows], part.labels)


def test_limit_keeps_the_shares_of_the_classes() -> None:
    assert np.bincount(limit(image_set([600, 300, 100]), 100, 0).labels).tolist() == [60, 30, 10]


def test_limit_depends_on_the_seed() -> None:
    whole = image_set([50, 50])
    assert not np.array_equal(limit(whole, 20, 0).images, limit(whole, 20, 1).images)


@pytest.mark.parametrize("n", [-1, 0, 1, 11])
def test_limit_refuses_numbers_out_of_range(n: int) -> None:
    with matches(InputError, f"n must be from 2 (one image a class) to 10 (all there are); got {n}."):
        limit(image_set([5, 5]), n, 0)


@pytest.mark.parametrize("n", [2.5, "4", None])
def test_limit_refuses_what_is_no_int(n: Any) -> None:
    with matches(InputError, f"n must be an int; got {n!r}."):
        limit(image_set([5, 5]), n, 0)


# Image sets.


def test_image_set() -> None:
    whole = image_set([2, 3])
    assert len(whole) == 5
    assert whole.image_shape == (1, 1, 1)
    part = whole.subset([4, 0])
    assert part.labels.tolist() == [1, 0]
    assert part.images.flatten().tolist() == [0.8, 0.0]
    assert (part.classes, part.name) == (whole.classes, whole.name)
    assert len(whole.subset(whole.labels == 1)) == 3


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4)), np.zeros(2, np.int64), "images must be float64 of shape (n, c, h, w); got float64"),
        (np.zeros((2, 1, 4, 4), np.float32), np.zeros(2, np.int64), "got float32 (2, 1, 4, 4)"),
        (np.zeros((2, 1, 4, 4)), np.zeros(3, np.int64), "one an image (2 images); got int64 (3,)"),
        (np.zeros((2, 1, 4, 4)), np.zeros(2), "labels must be int64"),
        (np.zeros((2, 1, 4, 4)), np.array([0, 2]), "labels must be class indices 0 to 1; got 0 to 2"),
        (np.zeros((2, 1, 4, 4)), np.array([-1, 0]), "labels must be class indices 0 to 1; got -1 to 0"),
    ],
)
def test_image_set_refuses(images: Any, labels: Any, message: str) -> None:
    with matches(InputError, message):
        ImageSet(images, labels, ("a", "b"), "wrong")


# Digits.


def test_digits() -> None:
    train, test = load_data("digits")
    assert (len(train), len(test)) == (1437, 360)
    assert train.image_shape == test.image_shape == (1, 8, 8)
    assert train.classes == test.classes == tuple("0123456789")
    assert train.name == "digits"
    assert train.images.dtype == np.float64
    assert (train.images.min(), train.images.max()) == (0, 1)
    assert set(np.bincount(test.labels)) == {35, 36, 37}
    # Sixteenths, and every digit of the source in one of the two.
    assert np.array_equal(train.images * 16, np.round(train.images * 16))
    assert (train.images.sum() + test.images.sum()) * 16 == 561718
    again, _ = load_data("digits")
    assert np.array_equal(train.images, again.images)


# Files that are read.

RANDOM = np.random.default_rng(0)
COLOUR = {split: RANDOM.integers(0, 256, (n, 3, 5, 4), dtype=np.uint8) for split, n in (("train", 6), ("test", 4))}
LABELS = {"train": np.array([2, 0, 1, 1, 0, 2]), "test": np.array([0, 1, 2, 2])}


def encode(image: np.ndarray, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image if image.ndim == 2 else image.transpose(1, 2, 0))).save(buffer, format)
    return buffer.getvalue()


def parquet_table(images: Any, labels: Any, image: str = "img", label: str = "label") -> pa.Table:
    rows = [None if i is None else {"bytes": i if isinstance(i, bytes) else encode(i), "path": None} for i in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({image: pa.array(rows, kind), label: pa.array(labels)})


def write_parquet(folder: Path, **columns: str) -> Path:
    folder.mkdir(exist_ok=True)
    for part, images in COLOUR.items():
        pq.write_table(parquet_table(images, LABELS[part], **columns), folder / f"{part}.parquet")
    return folder


def write_npz(path: Path, **changes: Any) -> Path:
    arrays = {f"{k}_{part}": v for part in ("train", "test") for k, v in (("x", COLOUR[part]), ("y", LABELS[part]))}
    np.savez(path, **{k: v for k, v in {**arrays, **changes}.items() if v is not None})
    return path


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, compress: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        for kind, array in (("images-idx3", COLOUR[part][:, 0]), ("labels-idx1", LABELS[part].astype(np.uint8))):
            name, content = f"{prefix}-{kind}-ubyte", idx_bytes(array)
            (folder / (name + ".gz" * compress)).write_bytes(gzip.compress(content) if compress else content)
    return folder


def write_cifar10(folder: Path) -> Path:
    folder.mkdir()
    records = np.random.default_rng(1).integers(0, 256, (6, 3073), dtype=np.uint8)
    records[:, 0] = [0, 9, 3, 3, 1, 0]
    for name, rows in (("data_batch_1", slice(0, 2)), ("data_batch_2", slice(2, 4)), ("test_batch", slice(4, 6))):
        (folder / f"{name}.bin").write_bytes(records[rows].tobytes())
    return folder


def write_folders(folder: Path) -> Path:
    for part, images in COLOUR.items():
        for i, (image, label) in enumerate(zip(images, LABELS[part], strict=True)):
            group = folder / part / "abc"[label]
            group.mkdir(parents=True, exist_ok=True)
            (group / f"{i}.png").write_bytes(encode(image))
    return folder


def write_class_folders(folder: Path) -> Path:
    """Write the training images as <class>/<image>, and copies of them that are a little brighter."""
    for i, (image, label) in enumerate(zip(COLOUR["train"], LABELS["train"], strict=True)):
        (folder / "abc"[label]).mkdir(parents=True, exist_ok=True)
        for copy in range(5):
            (folder / "abc"[label] / f"{5 * i + copy}.png").write_bytes(encode(np.minimum(image, 240) + np.uint8(copy)))
    return folder


def check_colour(source: Path, classes: tuple[str, ...] = ("0", "1", "2")) -> None:
    """Check that a source holds exactly the images and labels above."""
    for part, loaded in zip(("train", "test"), load_data(source), strict=True):
        assert np.array_equal(loaded.images, COLOUR[part] / 255)
        assert np.array_equal(loaded.labels, LABELS[part])
        assert loaded.classes == classes


def test_parquet_as_the_hub_lays_it_out(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data")
    (tmp_path / "README.md").write_text("about it")
    check_colour(tmp_path)
    (tmp_path / "more.txt").write_text("unknown")
    with pytest.warns(DataWarning, match="holds what is not used: more.txt"):
        load_data(tmp_path)


def rows(images: ImageSet) -> set[bytes]:
    return {image.tobytes() for image in images.images}


def test_folders_of_classes_are_split_by_what_is_in_them(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "first")
    train, test = load_data(source, test_fraction=0.3)
    count = len(train) + len(test)
    assert train.classes == ("a", "b", "c") and len(test) == int(0.3 * count)
    shares = np.bincount(test.labels) / np.bincount(np.concatenate([train.labels, test.labels]))
    assert np.all(np.abs(shares - 0.3) < 0.21)  # of five or ten images, in whole ones
    assert not rows(train) & rows(test)
    # Other names, another place: the same images.
    for path in sorted(source.rglob("*.png")):
        (tmp_path / "second" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "second" / path.parent.name / f"{path.stem[::-1]}-of.png")
    moved = load_data(tmp_path / "second", test_fraction=0.3)
    assert (rows(moved[0]), rows(moved[1])) == (rows(train), rows(test))
    # A larger share has the smaller one in it.
    assert rows(test) < rows(load_data(source, test_fraction=0.5)[1])
    assert len(load_data(source)[1]) == int(0.2 * count)


def test_folders_that_are_parts_are_no_classes(tmp_path: Path) -> None:
    for name in ("Train", "cats"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(encode(COLOUR["train"][0]))
    with matches(DataError, f"{tmp_path} is not a data set that can be read"):
        load_data(tmp_path)


def test_a_share_that_can_not_be_set_apart(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "classes")
    with matches(InputError, "test_fraction=0.001 of", "leaves none"):
        load_data(source, test_fraction=0.001)
    with matches(InputError, "test_fraction=0.99 would hold out"):
        load_data(source, test_fraction=0.99)
    with matches(InputError, "test_fraction must lie strictly between 0 and 1; got 1"):
        load_data(source, test_fraction=1)
    for other in (write_folders(tmp_path / "parts"), "digits"):
        with matches(InputError, "test_fraction is for images in folders of their classes"):
            load_data(other, test_fraction=0.2)


def test_parquet(tmp_path: Path) -> None:
    check_colour(write_parquet(tmp_path / "shapes"))
    assert load_data(str(tmp_path / "shapes"))[0].name == "shapes"


@pytest.mark.parametrize("label", ["label", "labels", "fine_label", "coarse_label"])
def test_parquet_column_names(tmp_path: Path, label: str) -> None:
    check_colour(write_parquet(tmp_path, image="image", label=label))


def test_parquet_shards_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    table = pq.read_table(tmp_path / "train.parquet")
    (tmp_path / "train.parquet").unlink()
    pq.write_table(table.slice(4), tmp_path / "train-00001-of-00002.parquet")
    with matches(DataError, str(tmp_path), "holds 1 train files whose names announce [2]", "Get the missing ones"):
        load_data(tmp_path)
    pq.write_table(table.slice(0, 4), tmp_path / "train-00000-of-00002.parquet")
    check_colour(tmp_path)


def write_parquet_pieces(folder: Path) -> Path:
    """Two files of row groups of two and three rows."""
    write_parquet(folder)
    table = pq.read_table(folder / "train.parquet")
    (folder / "train.parquet").unlink()
    pq.write_table(table.slice(0, 5), folder / "train-00000-of-00002.parquet", row_group_size=2)
    pq.write_table(table.slice(5), folder / "train-00001-of-00002.parquet", row_group_size=3)
    return folder


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_parquet_pieces, "pieces"),
        (write_npz, "shapes.npz"),
        (write_idx, "idx"),
        (write_cifar10, "batches"),
        (write_folders, "folders"),
        (lambda path: "digits", ""),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_some_rows_are_those_of_the_whole(
    write: Callable[[Path], Any], name: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / name)
    whole = load_data(source)
    chosen, decoded = [], []

    def choose(split: str, labels: np.ndarray, n_classes: int) -> np.ndarray:
        part = whole[split == "test"]
        assert np.array_equal(labels, part.labels) and n_classes == len(part.classes)
        chosen.append(np.flatnonzero(np.random.default_rng(seed).random(len(labels)) < 0.5))
        chosen[-1] = chosen[-1] if len(chosen[-1]) else np.array([len(labels) - 1])
        return chosen[-1]

    def decode(content: bytes) -> np.ndarray:
        decoded.append(content)
        return original(content)

    original = encoded._decode
    monkeypatch.setattr(encoded, "_decode", decode)
    some = load_rows(source, choose, lambda shape, _: (3, *shape[1:]))
    for part, all_there_are, rows in zip(some, whole, chosen, strict=True):
        assert np.array_equal(part.images, np.broadcast_to(all_there_are.images[rows], part.images.shape))
        assert np.array_equal(part.labels, all_there_are.labels[rows])
        assert (part.classes, part.name) == (all_there_are.classes, all_there_are.name)
    assert [part.image_shape[0] for part in some] == [1 if source == "digits" else 3] * 2
    assert len(decoded) in (0, sum(map(len, chosen)))


def test_files_that_change_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_parquet(tmp_path)
    path = folder / "train.parquet"
    shorter = pq.read_table(path).slice(0, 3)

    def choose(split: str, labels: np.ndarray, _: int) -> np.ndarray:
        pq.write_table(shorter, path)
        return np.arange(len(labels))

    with matches(DataError, str(path), "has 3 images where", "were announced", "get it again"):
        load_rows(folder, choose, lambda shape, _: shape)


def test_parquet_class_names_in_the_metadata(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    names = ["ant", "bee", "cow"]
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    for part in ("train", "test"):
        table = pq.read_table(tmp_path / f"{part}.parquet")
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    check_colour(tmp_path, tuple(names))
    without_label = parquet_table(COLOUR["test"], [0, 1, -1, 2]).replace_schema_metadata(
        {"huggingface": json.dumps(features)}
    )
    pq.write_table(without_label, tmp_path / "test.parquet")
    with matches(DataError, "test.parquet", "labels outside the 3 classes", ": -1.", "without a label"):
        load_data(tmp_path)


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": {"features": {"label": {"names": 3}}}}'])
def test_parquet_metadata_that_says_nothing_are_ignored(tmp_path: Path, metadata: bytes) -> None:
    write_parquet(tmp_path)
    table = pq.read_table(tmp_path / "train.parquet").replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, tmp_path / "train.parquet")
    check_colour(tmp_path)


def test_parquet_string_labels_and_plain_bytes(tmp_path: Path) -> None:
    for part, images in COLOUR.items():
        names = ["abc"[label] for label in LABELS[part]]
        table = pa.table({"image": pa.array(list(map(encode, images)), pa.large_binary()), "label": names})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    check_colour(tmp_path, ("a", "b", "c"))


def test_jpeg_grey_and_mixed_images(tmp_path: Path) -> None:
    grey = np.full((4, 8, 8), 100, dtype=np.uint8)
    table = parquet_table([encode(image, "JPEG") for image in grey], [0, 1, 0, 1])
    for part in ("train", "test"):
        pq.write_table(table, tmp_path / f"{part}.parquet")
    train, _ = load_data(tmp_path)
    assert train.image_shape == (1, 8, 8)
    assert np.array_equal(train.images, np.full((4, 1, 8, 8), 100 / 255))
    colour = np.full((3, 8, 8), 50, dtype=np.uint8)
    for part in ("train", "test"):
        pq.write_table(parquet_table([grey[0], colour], [0, 1]), tmp_path / f"{part}.parquet")
    train, _ = load_data(tmp_path)
    assert np.array_equal(train.images[:, :, 0, 0] * 255, [[100] * 3, [50] * 3])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_image_modes(tmp_path: Path, mode: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "white").convert(mode).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    for part in ("train", "test"):
        pq.write_table(parquet_table([buffer.getvalue()] * 2, [0, 1]), tmp_path / f"{part}.parquet")
    train, _ = load_data(tmp_path)
    assert train.image_shape == (1 if mode in ("1", "L", "LA") else 3, 2, 3)
    assert (train.images == 1).all()


def test_npz(tmp_path: Path) -> None:
    check_colour(write_npz(tmp_path / "shapes.npz"))
    assert load_data(tmp_path / "shapes.npz")[0].name == "shapes"


def test_npz_is_known_by_its_content(tmp_path: Path) -> None:
    write_npz(tmp_path / "shapes.npz").rename(tmp_path / "shapes")
    check_colour(tmp_path / "shapes")


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.transpose(0, 2, 3, 1),
        lambda x: x / 255,
    ],
    ids=["channels last", "floats"],
)
def test_npz_layouts(tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    changes = {f"x_{part}": change(images) for part, images in COLOUR.items()}
    check_colour(write_npz(tmp_path / "shapes.npz", **changes))


def test_npz_grey_boolean_images_and_other_labels(tmp_path: Path) -> None:
    grey = {f"x_{part}": images[:, 0] > 127 for part, images in COLOUR.items()}
    labels = {f"y_{part}": np.array(["ant", "bee", "cow"])[LABELS[part]] for part in LABELS}
    train, _ = load_data(write_npz(tmp_path / "grey.npz", **grey, **labels))
    assert train.classes == ("ant", "bee", "cow")
    assert np.array_equal(train.images, grey["x_train"][:, None])
    assert np.array_equal(train.labels, LABELS["train"])
    columns = {f"y_{part}": 10 * LABELS[part][:, None] - 10 for part in LABELS}
    check_colour(write_npz(tmp_path / "columns.npz", **columns), ("-10", "0", "10"))


@pytest.mark.parametrize("compress", [False, True])
def test_idx(tmp_path: Path, compress: bool) -> None:
    for part, loaded in zip(("train", "test"), load_data(write_idx(tmp_path, compress)), strict=True):
        assert np.array_equal(loaded.images, COLOUR[part][:, :1] / 255)
        assert np.array_equal(loaded.labels, LABELS[part])


def test_cifar10_binary_batches(tmp_path: Path) -> None:
    train, test = load_data(write_cifar10(tmp_path / "batches"))
    assert (train.image_shape, len(train), len(test)) == ((3, 32, 32), 4, 2)
    assert [train.classes[label] for label in train.labels] == ["airplane", "truck", "cat", "cat"]
    record = np.frombuffer((tmp_path / "batches" / "data_batch_2.bin").read_bytes(), np.uint8)[1:3073]
    assert np.array_equal(train.images[2].flatten() * 255, record)


def test_folders_of_images(tmp_path: Path) -> None:
    write_folders(tmp_path)
    (tmp_path / "train" / "a" / ".hidden").write_bytes(b"no image")
    train, test = load_data(tmp_path)
    assert train.classes == ("a", "b", "c")
    order = np.argsort(LABELS["train"], kind="stable")
    assert np.array_equal(train.images, COLOUR["train"][order] / 255)
    assert np.array_equal(train.labels, LABELS["train"][order])
    assert len(test) == 4


def test_cifar10_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CVXCNN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with matches(DataError, f"CIFAR-10 isn't at {Path('data', 'cifar10')}.", "--data PATH", "CVXCNN_DATA"):
        load_data("cifar10")
    (tmp_path / "data").mkdir()
    write_cifar10(tmp_path / "data" / "cifar10")
    assert load_data("cifar10")[0].name == "cifar10"
    monkeypatch.chdir(tmp_path / "data")
    for root in (tmp_path / "data", tmp_path / "data" / "cifar10"):
        monkeypatch.setenv("CVXCNN_DATA", str(root))
        assert load_data("cifar10")[0].classes[9] == "truck"
    monkeypatch.setenv("CVXCNN_DATA", str(tmp_path / "elsewhere"))
    with matches(DataError, "elsewhere (from CVXCNN_DATA)", "--data PATH"):
        load_data("cifar10")


def test_cifar10_class_names_without_metadata(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    images = np.zeros((10, 3, 2, 2), dtype=np.uint8)
    for part in ("train", "test"):
        pq.write_table(parquet_table(images, np.arange(10)), folder / f"{part}.parquet")
    assert load_data(folder)[1].classes[:2] == ("airplane", "automobile")


# Files that can't be read.


def test_every_error_is_of_the_package() -> None:
    assert issubclass(DataError, CvxcnnError)
    assert issubclass(DataError, OSError)


@pytest.mark.parametrize("source", ["nowhere", "", "\0", "~nobody-of-this-name/data", "digits.npz"])
def test_sources_that_are_not_there(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        load_data(source)


def test_a_missing_source_is_named_with_what_could_be_given(tmp_path: Path) -> None:
    with matches(DataError, f"There is no data set at {tmp_path / 'nowhere'}", '"digits"', '"cifar10"') as caught:
        load_data(tmp_path / "nowhere")
    assert all(reader.layout in str(caught.value) for reader in READERS)


@pytest.mark.parametrize("name", ["notes.txt", "empty", "image.png"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"" if name == "empty" else b"just some text")
    for source in (tmp_path, tmp_path / name):
        with matches(DataError, f"{source} is not a data set that can be read", "Give"):
            load_data(source)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Simulated: root, who runs the tests of many a machine, may read everything.
    path = write_npz(tmp_path / "shapes.npz")

    def refuse(path: Path, *_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with matches(DataError, f"Can't read {path}", "Permission denied"):
        load_data(path)


def rewrite(folder: Path, part: str, table: pa.Table) -> Path:
    path = write_parquet(folder) / f"{part}.parquet"
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("table", "messages"),
    [
        (lambda: pa.table({"label": [0, 1]}), ["has no image column: it has label", "img or image", "Rename"]),
        (lambda: parquet_table(COLOUR["train"], LABELS["train"], label="y"), ["has no label column: it has img, y"]),
        (lambda: pa.table({}), ["has no image column: it has no columns"]),
        (lambda: parquet_table([], pa.array([], pa.int64())), ["is empty: it has no rows"]),
        (lambda: pa.table({"img": [1, 2], "label": [0, 1]}), ["Column img", "holds int64, not encoded images"]),
        (
            lambda: pa.table({"img": [{"path": "a.png"}], "label": [0]}),
            ["Column img", "holds struct<path: string>, not encoded images"],
        ),
        (
            lambda: parquet_table([COLOUR["train"][0], None, COLOUR["train"][0]], [0, 1, 2]),
            ["Row 1", "has no image bytes", "Embed the images"],
        ),
        (lambda: parquet_table(COLOUR["train"][:2], [0, None]), ["Column label", "has missing values"]),
        (lambda: parquet_table(COLOUR["train"][:2], [0.5, 1]), ["Column label", "holds double, not labels"]),
        (lambda: parquet_table(COLOUR["train"][:2], [[0], [1]]), ["Column label", "holds list<", "not labels"]),
        (lambda: parquet_table(COLOUR["train"][:2], [1, 1]), ["has fewer than two classes (1)"]),
        (lambda: parquet_table(COLOUR["train"][:2], ["a", "b"]), ["has labels of dtype <U1", "test.parquet", "int64"]),
        (
            lambda: parquet_table([COLOUR["train"][0], b"no image", b"nor this"], [0, 1, 2]),
            ["Can't read image 1 of", "Mend the image"],
        ),
        (
            lambda: parquet_table([COLOUR["train"][0], encode(COLOUR["train"][1])[:-40], b""], [0, 1, 2]),
            ["Can't read image 1 of", "Mend the image"],
        ),
        (
            lambda: parquet_table([encode(np.zeros((5, 4), np.float32), "TIFF"), *COLOUR["train"][:2]], [0, 1, 2]),
            ["Can't read image 0 of", "it has floating-point pixels, whose scale isn't known", "8-bit PNG"],
        ),
        (
            lambda: parquet_table([COLOUR["train"][0], COLOUR["train"][0][:, :3], b""], [0, 1, 2]),
            ["must have one size: image 1 of", "is 3 x 4, those before it are 5 x 4", "Resize"],
        ),
    ],
)
def test_parquet_files_with_other_contents(tmp_path: Path, table: Callable[[], pa.Table], messages: list[str]) -> None:
    path = rewrite(tmp_path, "train", table())
    with matches(DataError, *messages) as caught:
        load_data(tmp_path)
    assert str(path) in str(caught.value)


def test_parquet_splits_that_do_not_fit_together(tmp_path: Path) -> None:
    grey = parquet_table(COLOUR["test"][:, 0], LABELS["test"])
    rewrite(tmp_path, "test", grey)
    with matches(DataError, "train.parquet", "(3, 5, 4)", "test.parquet", "(1, 5, 4)", "one shape"):
        load_data(tmp_path)
    rewrite(tmp_path, "test", parquet_table(COLOUR["test"], [0, 1, 2, 7]))
    with matches(DataError, "test.parquet has labels outside the 3 classes", ": 7."):
        load_data(tmp_path)
    (tmp_path / "test.parquet").unlink()
    with matches(DataError, f"{tmp_path} has no test split", "test.parquet", "Put both"):
        load_data(tmp_path)


def test_parquet_splits_that_name_different_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    features = {"info": {"features": {"label": {"names": ["ant", "bee", "cow"]}}}}
    table = parquet_table(COLOUR["test"], LABELS["test"]).replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "test.parquet")
    with matches(DataError, "train.parquet", "test.parquet", "name different classes", "Take both files"):
        load_data(tmp_path)


class Bomb:
    """Fails the test run when it is unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.exit, ("a file was unpickled",))


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"x_test": None}, ["has no array x_test: it has x_train, y_train, y_test"]),
        ({"y_train": np.array([Bomb()] * 6, dtype=object)}, ["Can't read", "Object arrays", "never read"]),
        ({"x_train": np.array([None] * 6)}, ["Can't read", "Object arrays"]),
        ({"x_train": COLOUR["train"][:5]}, ["(train) has labels of shape (6,) for images of shape (5, 3, 5, 4)"]),
        ({"y_test": np.zeros((4, 2), int)}, ["(test) has labels of shape (4, 2)"]),
        ({"y_train": LABELS["train"] / 1.0}, ["Labels of", "(train) have dtype float64. Save integers or strings."]),
        ({"y_train": np.zeros(6, int)}, ["has fewer than two classes (1)"]),
        ({"x_train": COLOUR["train"].astype(np.int64)}, ["have dtype int64. Save pixels as uint8"]),
        ({"x_train": COLOUR["train"].astype(complex)}, ["have dtype complex128"]),
        ({"x_train": COLOUR["train"] * 1.0}, ["must lie in [0, 1]; they range from 0 to 25", "save them as uint8"]),
        ({"x_train": np.full((6, 3, 5, 4), np.nan)}, ["hold 360 NaN or infinite values"]),
        ({"x_train": np.zeros((6, 60))}, ["must be (n, c, h, w), (n, h, w, c) or (n, h, w)", "they are (6, 60)"]),
        ({"x_train": np.zeros((6, 3, 0, 4))}, ["not empty"]),
        ({"x_train": np.float64(1)}, ["(train) has labels of shape (6,) for images of shape ()"]),
        ({"x_train": np.zeros((0, 3, 5, 4)), "y_train": np.zeros(0, int)}, ["has fewer than two classes (0)"]),
        ({"x_test": np.zeros((0, 3, 5, 4)), "y_test": np.zeros(0, int)}, ["(test)", "not empty"]),
        ({"x_test": COLOUR["test"][:, :, :4]}, ["(3, 5, 4)", "(3, 4, 4)", "must have one shape"]),
    ],
)
def test_npz_files_with_other_contents(tmp_path: Path, changes: dict[str, Any], messages: list[str]) -> None:
    path = write_npz(tmp_path / "shapes.npz", **changes)
    with matches(DataError, *messages) as caught:
        load_data(path)
    assert str(path) in str(caught.value)


def test_npz_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "shapes.npz"
    for content in (b"", b"text", pickle.dumps(Bomb())):
        path.write_bytes(content)
        with matches(DataError, f"Can't read {path}: it is not a zip archive"):
            load_data(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", b"not an array")
    with matches(DataError, str(path)):
        load_data(path)


def test_idx_files_that_do_not_fit_together(tmp_path: Path) -> None:
    write_idx(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    content = labels.read_bytes()
    labels.write_bytes(idx_bytes(LABELS["train"][:5].astype(np.uint8)))
    with matches(DataError, "train-images-idx3-ubyte has labels of shape (5,) for images of shape (6, 5, 4)"):
        load_data(tmp_path)
    labels.write_bytes(content[:2] + b"\x0d" + content[3:])
    with matches(DataError, f"Can't read {labels}: it holds numbers of type 0xd, not unsigned bytes"):
        load_data(tmp_path)
    labels.write_bytes(content[:-1])
    with matches(DataError, f"Can't read {labels}: it announces shape (6,) and holds 5 bytes", "get it again"):
        load_data(tmp_path)
    labels.unlink()
    with matches(DataError, "has 0 IDX files of training labels", "train-images-idx3-ubyte", "Expected"):
        load_data(tmp_path)


def test_cifar10_batches_of_another_size(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "batches")
    batch = folder / "data_batch_2.bin"
    content = batch.read_bytes()
    for other in (content[:-1], b""):
        batch.write_bytes(other)
        with matches(DataError, str(batch), f"has {len(other)} bytes, not a positive multiple of the 3073"):
            load_data(folder)
    batch.write_bytes(b"\x0a" + content[1:])
    with matches(DataError, str(folder), "labels outside the 10 classes", ": 10."):
        load_data(folder)
    batch.write_bytes(content)
    (folder / "test_batch.bin").unlink()
    with matches(DataError, f"{folder} has no test_batch.bin"):
        load_data(folder)


def test_folders_of_images_with_other_contents(tmp_path: Path) -> None:
    write_folders(tmp_path)
    stray = tmp_path / "test" / "b" / "notes.txt"
    stray.write_text("not an image")
    with matches(DataError, f"Can't read {stray}", "take it out"):
        load_data(tmp_path)
    stray.unlink()
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "z")
    with matches(DataError, str(tmp_path / "test"), "labels outside the 3 classes", ": z."):
        load_data(tmp_path)
    for path in (tmp_path / "test").rglob("*.png"):
        path.unlink()
    with matches(DataError, f"{tmp_path / 'test'} holds no images", "test/<class>/<image>"):
        load_data(tmp_path)


# Damage: a file that is cut short or has a wrong byte is an error of the package, or (where a format has no checksum)
# reads as other pixels; nothing else comes out.

LAYOUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "parquet": (write_parquet, "train.parquet"),
    "npz": (lambda folder: write_npz(folder / "shapes.npz").parent, "shapes.npz"),
    "idx": (write_idx, "train-images-idx3-ubyte"),
    "idx.gz": (lambda folder: write_idx(folder, compress=True), "train-images-idx3-ubyte.gz"),
    "images": (write_folders, "train/a/1.png"),
    "classes": (write_class_folders, "a/5.png"),
    "cifar10 python": (write_batches, "data_batch_1"),
    "cifar10.tar.gz": (lambda folder: write_archive(folder / "cifar.tar.gz").parent, "cifar.tar.gz"),
}


@pytest.fixture(scope="module", params=list(LAYOUTS))
def damageable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, bytes]:
    """Return the source, one of its files, and that file's content."""
    folder = tmp_path_factory.mktemp(request.param.replace(".", "-"))
    write, name = LAYOUTS[request.param]
    write(folder)
    file = folder / name
    return (file if request.param in ("npz", "cifar10.tar.gz") else folder), file, file.read_bytes()


@given(st.data())
def test_files_cut_short(damageable: tuple[Path, Path, bytes], data: st.DataObject) -> None:
    source, file, content = damageable
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    try:
        cut, tested = load_data(source)
    except DataError as error:
        file.write_bytes(content)
        assert str(source) in str(error)
    else:
        # A PNG that lost no more than its end mark has all its pixels.
        assert file.suffix == ".png"
        file.write_bytes(content)
        whole, rest = load_data(source)
        # Where the file decides which images are tested on, it may be another one.
        assert np.array_equal(cut.images, whole.images) or rows(cut) | rows(tested) == rows(whole) | rows(rest)


@given(st.data())
def test_files_with_a_wrong_byte(damageable: tuple[Path, Path, bytes], data: st.DataObject) -> None:
    source, file, content = damageable
    place = data.draw(st.integers(0, len(content) - 1))
    wrong = content[place] ^ data.draw(st.integers(1, 255))
    file.write_bytes(content[:place] + bytes([wrong]) + content[place + 1 :])
    try:
        train, test = load_data(source)
    except DataError as error:
        assert str(source) in str(error)
    else:
        assert train.image_shape == test.image_shape
        assert 0 <= train.images.min() <= train.images.max() <= 1
    finally:
        file.write_bytes(content)


def test_a_wrong_byte_in_a_compressed_array_is_found(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "shapes.npz")
    content = path.read_bytes()
    place = content.index(COLOUR["train"].tobytes())
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with matches(DataError, f"Can't read {path}", "CRC"):
        load_data(path)


def test_a_wrong_byte_in_a_page_with_a_checksum_is_found(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    path = tmp_path / "train.parquet"
    table = parquet_table(COLOUR["train"], LABELS["train"])
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    content = path.read_bytes()
    place = content.index(encode(COLOUR["train"][3])) + 30
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with matches(DataError, f"Can't read {path}", "get it again"):
        load_data(tmp_path)
