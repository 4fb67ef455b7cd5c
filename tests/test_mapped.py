"""Arrays that stay in their files: what is read of them, and what is refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from numpy.typing import NDArray

from cvxcnn.data import load_data
from cvxcnn.data.loading import load_rows
from cvxcnn.data.readers.mapped import JoinedImages, map_bytes, map_member
from cvxcnn.errors import DataError

COUNT, SIDE = 4000, 28


def images(count: int = COUNT) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)


def write_npz(path: Path) -> Path:
    pixels = images()
    labels = np.arange(COUNT) % 10
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels[:20], y_test=labels[:20])
    return path


def write_idx(folder: Path) -> Path:
    folder.mkdir()
    pixels = images()
    for name, count in (("train", COUNT), ("t10k", 20)):
        head = bytes([0, 0, 8, 3]) + np.array([count, SIDE, SIDE], ">u4").tobytes()
        (folder / f"{name}-images-idx3-ubyte").write_bytes(head + pixels[:count].tobytes())
        head = bytes([0, 0, 8, 1]) + np.array([count], ">u4").tobytes()
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(head + (np.arange(count) % 10).astype(np.uint8).tobytes())
    return folder


def write_batches(folder: Path) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        records = random.integers(0, 256, (800, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(800) % 10
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


@pytest.mark.parametrize("write", [write_npz, write_idx, write_batches])
def test_rows_that_are_asked_for_are_those_of_the_whole_and_take_no_more_memory(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "set.npz")
    whole, _ = load_data(path)
    rows = np.array([3, 700, 1500])
    tracemalloc.start()
    try:
        some, _ = load_rows(path, lambda which, *_: rows if which == "train" else np.arange(10), lambda shape, _: shape)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(some.images, whole.images[rows])
    np.testing.assert_array_equal(some.labels, whole.labels[rows])
    assert whole.images.flags.writeable and type(whole.images) is np.ndarray
    # The checksum of an archive takes a part of it at a time; here that is all of it.
    if write is not write_npz:
        assert peak < whole.images.nbytes / 8 / 2


@pytest.mark.parametrize("dtype", ["u1", "<f8", ">f8", "f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_an_archive_are_what_numpy_reads(tmp_path: Path, dtype: str, order: str) -> None:
    values = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=dtype, order=order)  # type: ignore[call-overload]
    np.savez(tmp_path / "values.npz", values=values)
    with ZipFile(tmp_path / "values.npz") as archive:
        mapped = map_member(tmp_path / "values.npz", archive, "values.npy")
    assert isinstance(mapped, np.memmap) and mapped.dtype == values.dtype
    np.testing.assert_array_equal(mapped, values)


def test_compressed_and_empty_arrays_are_left_to_numpy(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "packed.npz", values=np.ones(100))
    np.savez(tmp_path / "others.npz", empty=np.ones((0, 3)), objects=np.array([None, 1], dtype=object))
    with ZipFile(tmp_path / "packed.npz") as archive:
        assert map_member(tmp_path / "packed.npz", archive, "values.npy") is None
    with ZipFile(tmp_path / "others.npz") as archive:
        assert map_member(tmp_path / "others.npz", archive, "empty.npy") is None
        assert map_member(tmp_path / "others.npz", archive, "objects.npy") is None


@pytest.mark.parametrize("place", [200, 5000, -3000])
def test_one_changed_byte_of_an_archive_is_an_error(tmp_path: Path, place: int) -> None:
    path = write_npz(tmp_path / "set.npz")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"Can't read .*set\.npz"):
        load_data(path)


def test_bytes_that_are_more_or_fewer_than_announced(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(bytes(10))
    assert map_bytes(path, (2, 4), offset=2).shape == (2, 4)
    with pytest.raises(ValueError, match=r"announces shape \(2, 4\) and holds more"):
        map_bytes(path, (2, 4))
    with pytest.raises(ValueError, match="holds 6 bytes"):
        map_bytes(path, (2, 4), offset=4)


def test_joined_images_in_any_order_of_rows() -> None:
    parts = [np.arange(6).reshape(3, 2), np.arange(6, 10).reshape(2, 2)]
    joined = JoinedImages(parts)
    whole = np.concatenate(parts)
    assert joined.shape == whole.shape and joined.dtype == whole.dtype
    for rows in ([0, 4], [3], [], [1, 2, 3]):
        np.testing.assert_array_equal(joined[np.array(rows, dtype=np.int64)], whole[np.array(rows, dtype=np.int64)])
    np.testing.assert_array_equal(joined[...], whole)
