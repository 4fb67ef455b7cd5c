"""Damaged, foreign and hostile files: each ends in one error that names it, runs nothing and leaves nothing.

What counts as damage is what can be seen: a flipped bit in pixels without a checksum gives other pixels, so bits are
flipped there only where the format has a checksum or a meaning.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from eq2 import eq2_block
from test_cifar10_python import Bomb, hostile, write_archive, write_batches
from test_data import COLOUR, LABELS, parquet_table, write_cifar10, write_folders, write_idx, write_npz, write_parquet

from cvxcnn import ConvexCNNClassifier, ConvexConvBlock, LayerwiseCNN, PricingOptions
from cvxcnn.data import load_data
from cvxcnn.errors import CvxcnnError, DataError, ModelFileError
from cvxcnn.persistence import CONFIG_FILE, WEIGHTS_FILE
from cvxcnn.persistence.files import config_checksum

Damage = Callable[[Path], Any]

# What running a pickle, or a way out of it, would set off. Audit hooks can't be taken out again, so it asks.
FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.")
heard: list[str] | None = None


def _hear(event: str, _: Any) -> None:
    if heard is not None and event.startswith(FORBIDDEN):
        heard.append(event)


sys.addaudithook(_hear)


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_size for path in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a check that a call on a damaged file is one clear error, and nothing else."""
    global heard
    monkeypatch.chdir(tmp_path)

    def check(call: Callable[[], Any], error: type[Exception], named: Path) -> None:
        global heard
        before, heard = tree(tmp_path), []
        with pytest.raises(error) as caught:
            call()
        events, heard = heard, None
        assert not events
        assert tree(tmp_path) == before
        message = str(caught.value)
        assert isinstance(caught.value, CvxcnnError)
        assert str(named) in message
        assert "\n" not in message
        assert message.endswith(".")
        assert len(message) < 1000

    yield check
    heard = None


def test_the_watch_hears_unpickling() -> None:
    global heard
    heard = []
    assert pickle.loads(pickle.dumps(os.path.join)) is os.path.join
    events, heard = heard, None
    assert events == ["pickle.find_class"]


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def cut(name: str, share: float) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * (len(content) - 1))])

    return damage


def replace(name: str, content: bytes | Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content((folder / name).read_bytes()))

    return damage


# Models.


@lru_cache
def model(kind: str) -> Any:
    images = np.random.default_rng(0).normal(size=(20, 1, 5, 5))
    block = eq2_block(padding=1, penalty="dense", gates=6, reg=0.5, pricing=PricingOptions(starts=0))
    labels = np.array(["even", "odd"])[np.arange(20) % 2]
    if kind == "block":
        return block.fit(images, images[:, 0, 2, 2])
    if kind == "stack":
        return LayerwiseCNN(layers=2, block=block, downsample=2).fit(images, images[:, 0, 2, 2])
    return ConvexCNNClassifier(block=block).fit(images, labels)


def flip_weights(seed: int) -> Damage:
    def damage(content: bytes) -> bytes:
        rng = np.random.default_rng(seed)
        return flipped(content, int(rng.integers(len(content))), int(rng.integers(8)))

    return replace(WEIGHTS_FILE, damage)


def flip_config(seed: int) -> Damage:
    def damage(content: bytes) -> bytes:
        rng = np.random.default_rng(seed)
        while True:
            changed = flipped(content, int(rng.integers(len(content))), int(rng.integers(8)))
            try:
                # "1E-05" is no damage, nor is a digit more than a number has.
                if json.loads(changed) != json.loads(content):
                    return changed
            except ValueError:
                return changed

    return replace(CONFIG_FILE, damage)


def setting(*path: Any, reseal: bool = True) -> Damage:
    """Return a change of the configuration, the last argument to where the others point, by one who knows checksums."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG_FILE).read_text())
        *way, name, value = path
        place: Any = config
        for step in way:
            place = place[step]
        place[name] = value
        if reseal:
            config["config_sha256"] = config_checksum(config)
        (folder / CONFIG_FILE).write_text(json.dumps(config))

    return damage


def tensor_file(header: bytes | dict[str, Any], data: bytes = bytes(64), length: int | None = None) -> Damage:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return replace(WEIGHTS_FILE, struct.pack("<Q", len(text) if length is None else length) + text + data)


def array(shape: list[int], start: int, stop: int, dtype: str = "F64") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def saved_by_torch() -> bytes:
    buffer = io.BytesIO()
    torch.save({"layers.0.filters": torch.zeros(2)}, buffer)
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def pipe(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def link(name: str, target: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return damage


BLOCK = ("layers", 0, "block")
EXIT = Bomb(pytest.exit, "a file was unpickled")
MODELS: dict[str, tuple[str, Damage]] = {
    **{f"weights cut at {i}/16": ("stack", cut(WEIGHTS_FILE, i / 16)) for i in range(17)},
    **{f"config cut at {i}/16": ("classifier", cut(CONFIG_FILE, i / 16)) for i in range(16)},
    **{f"weights with bit {i} flipped": ("block", flip_weights(i)) for i in range(24)},
    **{f"config with bit {i} flipped": ("classifier", flip_config(i)) for i in range(24)},
    **{
        f"{name} is {what}": ("stack", replace(name, content))
        for name in (WEIGHTS_FILE, CONFIG_FILE)
        for what, content in {
            "a hostile pickle": pickle.dumps(EXIT),
            "a hostile pickle of protocol 0": pickle.dumps(EXIT, 0),
            "a file of torch": saved_by_torch(),
            "a zip that climbs out": zipped("../../evil.py", "/etc/evil"),
            "text": b"import os\n",
            "null": b"null",
            "zeros": bytes(4096),
            "ones": b"\xff" * 4096,
        }.items()
    },
    **{
        f"config with {what}": ("block", replace(CONFIG_FILE, lambda c, n=n: c.replace(b'"reg": 0.5', b'"reg":' + n)))
        for what, n in {"NaN": b"NaN", "an infinity": b"1e999", "a long int": b"9" * 99_999}.items()
    },
    "config with a name twice": ("block", replace(CONFIG_FILE, lambda c: c.replace(b"{", b'{"kind": "x",', 1))),
    "config as a deep list": ("block", replace(CONFIG_FILE, b"[" * 100_000 + b"]" * 100_000)),
    "config as a deep table": ("block", replace(CONFIG_FILE, b'{"a":' * 100_000 + b"1" + b"}" * 100_000)),
    "config in UTF-16": ("block", replace(CONFIG_FILE, lambda c: c.decode().encode("utf-16"))),
    "config is a pipe": ("block", pipe(CONFIG_FILE)),
    "weights are a pipe": ("block", pipe(WEIGHTS_FILE)),
    "config is endless": ("block", link(CONFIG_FILE, "/dev/zero")),
    "weights are endless": ("block", link(WEIGHTS_FILE, "/dev/zero")),
    "config leads to itself": ("block", link(CONFIG_FILE, CONFIG_FILE)),
    "weights of another model": ("block", lambda folder: model("stack").save(folder / "other") or os.replace(
        folder / "other" / WEIGHTS_FILE, folder / WEIGHTS_FILE)),
    "a newer version": ("stack", setting("format_version", 2)),
    "a much newer version": ("stack", setting("format_version", 1 << 62)),
    "another program": ("stack", setting("format", "torch")),
    "another kind": ("stack", setting("kind", "os.system")),
    "another kind of ours": ("stack", setting("kind", "ConvexConvBlock")),
    "a number changed": ("stack", setting(*BLOCK, "reg", 0.25, reseal=False)),
    "layers without end": ("stack", setting("stack", "layers", 2**31 - 1)),
    "a kernel without end": ("block", setting(*BLOCK, "kernel_size", 2**62)),
    "a negative kernel": ("block", setting(*BLOCK, "kernel_size", -3)),
    "cells without end": ("block", setting(*BLOCK, "pool_cells", 2**62)),
    "a stride of text": ("block", setting(*BLOCK, "stride", "../../etc")),
    "padding in a table": ("block", setting(*BLOCK, "padding", {"a": [1]})),
    "a penalty with a path": ("block", setting(*BLOCK, "penalty", "../penalties/dense.py")),
    "a loss that is code": ("block", setting(*BLOCK, "loss", "__import__('os').system('exit 1')")),
    "an unknown setting": ("block", setting(*BLOCK, "__class__", "os.system")),
    "options that are methods": ("block", setting(*BLOCK, "pricing", {"__init__": 1})),
    "gates in a foreign table": ("block", setting(*BLOCK, "gates", {"starts": "many"})),
    "outputs without end": ("block", setting("layers", 0, "n_outputs", 2**31 - 1)),
    "an estimator without labels": ("classifier", setting("estimator", "classes", {})),
    "a label twice": ("classifier", setting("estimator", "classes", "values", ["odd", "odd"])),
    "labels of numbers": ("classifier", setting("estimator", "classes", "values", [1, 2])),
    "three labels": ("classifier", setting("estimator", "classes", "values", ["a", "b", "c"])),
    "labels in lists": ("classifier", setting("estimator", "classes", "values", [["a"], ["b"]])),
    "labels of a hostile dtype": ("classifier", setting("estimator", "classes", "dtype", "O,O")),
    "labels too large": ("classifier", setting("estimator", "classes", {"dtype": "int8", "values": [1, 1000]})),
    "an image shape without end": ("classifier", setting("estimator", "image_shape", [2**30, 2**30])),
    "an estimator of other layers": ("classifier", setting("estimator", "layers", 7)),
    "a header of 2^63 bytes": ("block", tensor_file(b"{}", length=2**63 - 1)),
    "a header of 2^64 bytes": ("block", tensor_file(b"{}", length=2**64 - 1)),
    "no tensors": ("block", tensor_file({})),
    "a tensor beyond the end": ("block", tensor_file({"layers.0.filters": array([6, 9], 0, 432)})),
    "a tensor of 2^60 numbers": ("block", tensor_file({"layers.0.filters": array([2**30, 2**30], 0, 64)})),
    "a tensor of overflowing size": ("block", tensor_file({"layers.0.filters": array([2**63, 2], 0, 64)})),
    "overlapping tensors": ("block", tensor_file({"a": array([8], 0, 64), "b": array([8], 0, 64)})),
    "tensors with a hole": ("block", tensor_file({"a": array([2], 0, 16), "b": array([2], 32, 48)})),
    "negative offsets": ("block", tensor_file({"a": array([8], -64, 0)})),
    "tensors with paths": ("block", tensor_file({"../../evil": array([4], 0, 32), "/etc/evil": array([4], 32, 64)})),
    "tensors of another type": ("block", tensor_file({"layers.0.filters": array([64], 0, 64, "U8")})),
    "tensors of no type": ("block", tensor_file({"layers.0.filters": array([8], 0, 64, "OBJECT")})),
    "a deep header": ("block", tensor_file(b"[" * 100_000)),
    "a tensor twice": ("block", tensor_file(b'{"a": %s, "a": %s}' % ((json.dumps(array([8], 0, 64)).encode(),) * 2))),
}  # fmt: skip
CLASSES = {"block": ConvexConvBlock, "stack": LayerwiseCNN, "classifier": ConvexCNNClassifier}


@pytest.mark.parametrize("name", MODELS)
def test_damaged_models(name: str, tmp_path: Path, refused: Callable[..., None]) -> None:
    kind, damage = MODELS[name]
    folder = tmp_path / "model"
    model(kind).save(folder)
    damage(folder)
    refused(lambda: CLASSES[kind].load(folder), ModelFileError, folder)


@pytest.mark.parametrize("kind", CLASSES)
def test_undamaged_models(kind: str, tmp_path: Path) -> None:
    model(kind).save(tmp_path)
    setting("extra", "note", "resealed")(tmp_path)
    assert CLASSES[kind].load(tmp_path).extra_ == {"note": "resealed"}


# Data.


def write_checked_parquet(folder: Path) -> Path:
    write_parquet(folder)
    for part, images in COLOUR.items():
        table = parquet_table(images, LABELS[part])
        pq.write_table(table, folder / f"{part}.parquet", compression="none", write_page_checksum=True)
    return folder


# How a data set is written, and the file of it that is damaged.
FORMATS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "parquet": (write_checked_parquet, "train.parquet"),
    "npz": (lambda folder: write_npz(folder / "shapes.npz"), "shapes.npz"),
    "idx": (write_idx, "train-images-idx3-ubyte"),
    "idx labels": (write_idx, "train-labels-idx1-ubyte"),
    "idx.gz": (lambda folder: write_idx(folder, compress=True), "train-images-idx3-ubyte.gz"),
    "images": (write_folders, "train/a/1.png"),
    "cifar binary": (lambda folder: folder.rmdir() or write_cifar10(folder), "data_batch_1.bin"),
    "cifar python": (write_batches, "data_batch_1"),
    "cifar tar": (lambda folder: write_archive(folder / "cifar.tar", "w"), "cifar.tar"),
    "cifar tar.gz": (lambda folder: write_archive(folder / "cifar.tar.gz"), "cifar.tar.gz"),
    "cifar binary tar.gz": (lambda folder: write_archive(folder / "cifar.tar.gz", binary=True), "cifar.tar.gz"),
}
SINGLE = ("npz", "cifar tar", "cifar tar.gz", "cifar binary tar.gz")

FOREIGN = {
    "nothing": b"",
    "text": b"import os\n",
    "a hostile pickle": pickle.dumps(EXIT),
    "a file of torch": saved_by_torch(),
    "a zip that climbs out": zipped("../../evil.py", "x_train.npy"),
    "zeros": bytes(2048),
}


def shortened(share: float) -> Callable[[bytes], bytes]:
    # A little more than the share: a binary batch cut after a whole image is a smaller batch.
    return lambda content: content[: int((share + 0.03) * len(content))]


def flip(seed: int, first: int = 0, last: int | None = None) -> Callable[[bytes], bytes]:
    def damage(content: bytes) -> bytes:
        rng = np.random.default_rng(seed)
        return flipped(content, int(rng.integers(first, last or len(content))), int(rng.integers(8)))

    return damage


def flip_pixels(seed: int) -> Callable[[bytes], bytes]:
    """Return a flip in the images as they are stored, for the formats that check them."""

    def damage(content: bytes) -> bytes:
        stored = [COLOUR["train"].tobytes(), b"IDAT"]
        place = next(content.index(part) for part in stored if part in content)
        return flip(seed, place, place + 40)(content)

    return damage


def flip_shape(seed: int) -> Callable[[bytes], bytes]:
    """Return a flip in the shape of the array that a python batch announces."""

    def damage(content: bytes) -> bytes:
        place = content.index(b"M\x02\x00M")
        return flip(seed, place, place + 6)(content)

    return damage


def npz_of(**changes: Any) -> bytes:
    buffer = io.BytesIO()
    arrays = {f"{k}_{part}": v for part in COLOUR for k, v in (("x", COLOUR[part]), ("y", LABELS[part]))}
    np.savez(buffer, **{**arrays, **changes})
    return buffer.getvalue()


def npz_with(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO(npz_of())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def npz_header(text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", npy_header(text) + bytes(64))
    return buffer.getvalue()


def tar_of(name: str, content: bytes = b"evil", **changes: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        for key, value in changes.items():
            setattr(member, key, value)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


SHAPE = "{'descr': '|u1', 'fortran_order': False, 'shape': (%s,), }\n"
DATA: dict[str, tuple[str, bytes | Callable[[bytes], bytes]]] = {
    **{
        f"{name} cut at {i}/10": (name, shortened(i / 10)) for name in FORMATS for i in range(7) if name != "idx labels"
    },
    **{f"{name} is {what}": (name, content) for name in FORMATS for what, content in FOREIGN.items()},
    **{f"idx.gz with bit {i} flipped": ("idx.gz", flip(i, 10)) for i in range(8)},
    **{f"cifar tar.gz with bit {i} flipped": ("cifar tar.gz", flip(i, 10)) for i in range(8)},
    **{f"npz with pixel bit {i} flipped": ("npz", flip_pixels(i)) for i in range(6)},
    **{f"png with pixel bit {i} flipped": ("images", flip_pixels(i)) for i in range(6)},
    **{f"idx with shape bit {i} flipped": ("idx", flip(i, 4, 16)) for i in range(6)},
    **{f"cifar python with shape bit {i} flipped": ("cifar python", flip_shape(i)) for i in range(6)},
    "parquet with its end mark flipped": ("parquet", lambda c: flipped(c, len(c) - 1, 0)),
    "parquet with its footer's length flipped": ("parquet", lambda c: flipped(c, len(c) - 6, 6)),
    "parquet with a pixel bit flipped": ("parquet", lambda c: flipped(c, c.index(b"IDAT") + 20, 3)),
    "idx of floats": ("idx", lambda c: c[:2] + b"\x0d" + c[3:]),
    "idx of 2^96 bytes": ("idx", lambda c: c[:4] + b"\xff" * 12 + c[16:]),
    "idx of 255 axes": ("idx", lambda c: c[:3] + b"\xff" + c[4:]),
    "idx labels for fewer images": ("idx labels", lambda c: c[:7] + b"\x05" + c[8:-1]),
    "idx.gz of a bomb": ("idx.gz", gzip.compress(b"\0\0\x08\x03" + b"\0\0\0\1" * 3 + bytes(1 << 24))),
    "cifar binary with an eleventh class": ("cifar binary", lambda c: b"\x0a" + c[1:]),
    "cifar binary with a byte more": ("cifar binary", lambda c: c + b"\0"),
    "npz with a member above it": ("npz", npz_with("../../evil.py", b"x")),
    "npz with a member at the root": ("npz", npz_with("/etc/evil", b"x")),
    "npz with a Windows path": ("npz", npz_with("..\\evil.py", b"x")),
    "npz with hostile labels": ("npz", npz_of(y_train=np.array([EXIT] * 6, dtype=object))),
    "npz with hostile images": ("npz", npz_of(x_train=np.array([EXIT] * 6, dtype=object))),
    "npz of no arrays": ("npz", zipped("x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy")),
    "npz of 2^62 bytes": ("npz", npz_header(SHAPE % 2**62)),
    "npz of a negative shape": ("npz", npz_header(SHAPE % -5)),
    "npz with code in its header": ("npz", npz_header("__import__('os').system('exit 1')\n")),
    "npz with a deep header": ("npz", npz_header("(" * 9000 + "\n")),
    "npz with an object dtype": ("npz", npz_header(SHAPE.replace("|u1", "|O") % 4)),
    "npz of NaN": ("npz", npz_of(x_train=np.full((6, 3, 5, 4), np.nan))),
    "npz of text": ("npz", npz_of(x_train=np.full((6, 3, 5, 4), "a"))),
    "tar with a member above it": ("cifar tar", tar_of("../data_batch_1")),
    "tar with a member at the root": ("cifar tar", tar_of("/data_batch_1")),
    "tar with a link": ("cifar tar", tar_of("data_batch_1", type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0)),
    "tar with a hard link": ("cifar tar", tar_of("data_batch_1", type=tarfile.LNKTYPE, linkname="../x", size=0)),
    "tar with a pipe": ("cifar tar", tar_of("data_batch_1", type=tarfile.FIFOTYPE, size=0)),
    "tar with a device": ("cifar tar", tar_of("data_batch_1", type=tarfile.CHRTYPE, size=0)),
    "tar with a foreign batch": ("cifar tar", tar_of("data_batch_1")),
    "tar of something else": ("cifar tar", tar_of("notes.txt")),
    **{f"cifar python: {name}": ("cifar python", content) for name, content in hostile().items()},
    **{
        f"cifar tar: {name}": ("cifar tar", tar_of("data_batch_1", content))
        for name, content in hostile().items()
        if name.startswith("system")
    },
}  # fmt: skip


@lru_cache
def source_files(name: str, folder: Path) -> dict[str, bytes]:
    FORMATS[name][0](folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Return the files of every format, undamaged."""
    return {name: source_files(name, tmp_path_factory.mktemp("data")) for name in FORMATS}


def lay_out(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("name", DATA)
def test_damaged_data(
    name: str, written: dict[str, dict[str, bytes]], tmp_path: Path, refused: Callable[..., None]
) -> None:
    layout, damage = DATA[name]
    folder, file = tmp_path / "data", FORMATS[layout][1]
    content = written[layout][file]
    lay_out({**written[layout], file: damage if isinstance(damage, bytes) else damage(content)}, folder)
    source = folder / file if layout in SINGLE else folder
    refused(lambda: load_data(source), DataError, source)


@pytest.mark.parametrize("name", FORMATS)
def test_undamaged_data(name: str, written: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    lay_out(written[name], tmp_path)
    train, _ = load_data(tmp_path / FORMATS[name][1] if name in SINGLE else tmp_path)
    assert len(train) >= 4


def test_there_are_enough_of_them() -> None:
    assert len(MODELS) >= 60
    assert len(DATA) >= 60
