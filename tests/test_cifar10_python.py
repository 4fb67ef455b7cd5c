"""The official python batches of CIFAR-10 and both archives: pickles that are read, and never unpickled."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvxcnn.data import load_data
from cvxcnn.data.readers import cifar10_archive
from cvxcnn.data.readers.cifar10_python import parse
from cvxcnn.data.readers.pickled import MAX_OPCODES, pickled_value
from cvxcnn.errors import DataError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (6, 3072), dtype=np.uint8)
LABELS = [0, 9, 3, 3, 1, 0]
PARTS = {"data_batch_1": slice(0, 2), "data_batch_2": slice(2, 4), "test_batch": slice(4, 6)}


def python2_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """Return a batch opcode for opcode as Python 2 and NumPy 1 wrote the official ones."""

    def short(text: str) -> bytes:
        return b"U" + bytes([len(text)]) + text.encode("latin-1")

    raw = images.tobytes()
    shape = struct.pack("<cHcH", b"M", len(images), b"M", images.shape[1])
    pixels = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85" + short("b") + b"\x87Rq\x09(K\x01"
        + shape + b"\x86cnumpy\ndtype\nq\x0a" + short("u1") + b"K\x00K\x01\x87Rq\x0b(K\x03" + short("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )  # fmt: skip
    names = b"".join(short(f"image_{index}.png") for index in range(len(labels)))
    return (
        b"\x80\x02}q\x01(" + short("batch_label") + b"q\x02" + short("training batch 1 of 5") + b"q\x03"
        + short("labels") + b"q\x04]q\x05(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
        + short("data") + b"q\x06" + pixels + short("filenames") + b"q\x0c]q\x0d(" + names + b"eu."
    )  # fmt: skip


def batch(part: slice = slice(0, 2), keys: Callable[[str], Any] = str.encode, **changes: Any) -> dict[Any, Any]:
    images, labels = IMAGES[part], LABELS[part]
    entries = {"batch_label": b"training batch 1 of 5", "labels": labels, "data": images, "filenames": [b"a.png"] * 2}
    return {keys(name): value for name, value in {**entries, **changes}.items() if value is not None}


def write_batches(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, part in PARTS.items():
        (folder / name).write_bytes(python2_batch(IMAGES[part], LABELS[part]))
    (folder / "batches.meta").write_bytes(b"not read")
    (folder / "readme.html").write_text("not read")
    return folder


def binary_batch(part: slice) -> bytes:
    return np.c_[np.array(LABELS[part], dtype=np.uint8), IMAGES[part]].tobytes()


def write_archive(path: Path, mode: str = "w:gz", binary: bool = False, **others: bytes) -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("cifar-10-batches")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        contents = {
            f"cifar-10-batches/{name}" + ".bin" * binary: (
                binary_batch(part) if binary else python2_batch(IMAGES[part], LABELS[part])
            )
            for name, part in PARTS.items()
        }
        for name, content in {**contents, **others}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def check(source: Path) -> None:
    train, test = load_data(source)
    np.testing.assert_array_equal(np.r_[train.images, test.images].reshape(6, -1) * 255, IMAGES)
    assert [*train.labels, *test.labels] == LABELS
    assert (train.image_shape, train.classes[9], len(test)) == ((3, 32, 32), "truck", 2)


# What is read.


def test_the_official_layout(tmp_path: Path) -> None:
    check(write_batches(tmp_path / "cifar-10-batches-py"))
    check(tmp_path)
    content = (tmp_path / "cifar-10-batches-py" / "data_batch_1").read_bytes()
    reference = pickle.loads(content, encoding="bytes")  # written by this test
    np.testing.assert_array_equal(reference[b"data"], IMAGES[:2])


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("keys", [str, str.encode])
@pytest.mark.parametrize("order", ["C", "F"])
def test_batches_pickled_by_this_python(protocol: int, keys: Callable[[str], Any], order: Any) -> None:
    content = pickle.dumps(batch(keys=keys, data=np.array(IMAGES[:2], order=order)), protocol=protocol)
    raw = parse(content, "batch")
    np.testing.assert_array_equal(raw.images.reshape(2, -1), IMAGES[:2])
    assert raw.labels.tolist() == LABELS[:2]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_archives(tmp_path: Path, binary: bool, mode: str) -> None:
    check(write_archive(tmp_path / "cifar", mode, binary))
    assert [path.name for path in tmp_path.iterdir()] == ["cifar"]


def test_archives_in_a_folder_by_their_official_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar10").mkdir()
    write_archive(tmp_path / "cifar10" / "cifar-10-python.tar.gz", note=b"not read")
    check(tmp_path / "cifar10")
    monkeypatch.setenv("CVXCNN_DATA", str(tmp_path))
    assert load_data("cifar10")[0].name == "cifar10"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=5) | st.binary(min_size=1, max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3) | st.tuples(inner)
    ),
    max_leaves=12,
)


@given(PLAIN, st.sampled_from([3, 4]))
def test_plain_values_come_out_as_by_unpickling(value: Any, protocol: int) -> None:
    assert pickled_value(pickle.dumps(value, protocol), ()) == value


# What is refused.


def refused(content: bytes, *texts: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(content, "the batch")
    message = str(caught.value)
    assert message.startswith("Can't read the batch: ")
    assert "\n" not in message
    assert len(message) < 400
    for text in texts:
        assert text in message


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data": None}, "it has no 'data': it has batch_label, labels, filenames"),
        ({"labels": None}, "it has no 'labels'"),
        ({"labels": [1]}, "no list of 2 labels"),
        ({"labels": (1, 2)}, "no list of 2 labels"),
        ({"labels": [1, 10]}, "not all ints from 0 to 9"),
        ({"labels": [1, True]}, "not all ints"),
        ({"labels": [1, "2"]}, "not all ints"),
        ({"data": IMAGES[:2].tolist()}, "no array of unsigned bytes"),
        ({"data": IMAGES[:2].astype(np.int8)}, "no array of unsigned bytes"),
        ({"data": IMAGES[:2].astype(object)}, "no array of unsigned bytes"),
        ({"data": IMAGES[:2, :3000]}, "its data has shape (2, 3000)"),
        ({"data": IMAGES[:2].reshape(2, 3, 32, 32)}, "its data has shape (2, 3, 32, 32)"),
        ({"data": IMAGES[:0], "labels": []}, "it asks for"),
        ({"x" * 70: 1}, "keys that are no names"),
        ({"filenames": [1.5]}, "opcode BINFLOAT"),
        ({"filenames": {1: 2}}, "keys that are no names"),
        ({"filenames": {1, 2}}, "nothing was run"),
    ],
)
def test_batches_with_other_contents(changes: dict[str, Any], text: str) -> None:
    refused(pickle.dumps(batch(**changes), protocol=2), text)


def test_a_pickle_of_something_else() -> None:
    refused(pickle.dumps([1, 2], protocol=2), "it holds no dict")
    refused(pickle.dumps(batch(), protocol=5), "it asks for 'numpy")
    content = python2_batch(IMAGES[:2], LABELS[:2])
    refused(content + b"more", "goes on for 4 bytes after its end")
    refused(b"(" + content, "1 marks")
    refused(b"K\x01" + content, "2 values")
    refused(
        content.replace(struct.pack("<cH", b"M", 2), struct.pack("<cH", b"M", 3)), "announces 9216 bytes and has 6144"
    )


class Bomb:
    """Fails the test run when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def hostile() -> dict[str, bytes]:
    """Return pickles that would run code, fill the memory or never end; none needs to be unpickled to be refused."""
    exit_ = Bomb(pytest.exit, "a file was unpickled")
    official = python2_batch(IMAGES[:2], LABELS[:2])
    huge = struct.pack("<i", 2**31 - 1)
    # Every list holds the one before twice: 2^n leaves for whoever walks or compares it.
    lists = b"]q\x00" + b"".join(b"](h\x00h\x00eq\x00" for _ in range(60))
    tuples = b")q\x00" + b"h\x00h\x00\x86q\x00" * 200
    return {
        "exit": pickle.dumps(exit_),
        "exit as data": pickle.dumps(batch(data=exit_), protocol=2),
        "exit as a label": pickle.dumps(batch(labels=[exit_, exit_]), protocol=2),
        "eval": pickle.dumps(Bomb(eval, "__import__('pytest').exit('a file was unpickled')"), protocol=4),
        "system": b"cos\nsystem\n(S'exit 1'\ntR.",
        "system by STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x06exit 1\x85R.",
        "system by INST": b"(S'exit 1'\nios\nsystem\n.",
        "system by OBJ": b"(cos\nsystem\nS'exit 1'\no.",
        "system by NEWOBJ": b"\x80\x02cos\nsystem\nU\x06exit 1\x85\x81.",
        "system under the name of numpy": b"cnumpy\nos.system\n(S'exit 1'\ntR.",
        "numpy's exec": b"cnumpy.testing._private.utils\nrunstring\n(S'raise SystemExit'\n}tR.",
        "numpy's load": b"cnumpy\nload\n(S'/etc/passwd'\ntR.",
        "numpy's reconstruct of a class": official.replace(b"cnumpy\nndarray\n", b"cnumpy\nmatrix\n"),
        "an array of objects": official.replace(b"U\x02u1", b"U\x02O8"),
        "a persistent id": b"Pos.system\n.",
        "an extension": b"\x80\x02\x82\x01.",
        "state of an allowed name": b"cnumpy\nndarray\n}U\x01aU\x01bsb.",
        "a call of a call": b"cnumpy\ndtype\n(tR(tR.",
        "ndarray of 2^62 bytes": official.replace(b"M\x00\x0c", b"\x8a\x08" + struct.pack("<q", 2**62)),
        "a string of 2 GiB": b"\x80\x02T" + huge + b"a.",
        "a string of 2^63 bytes": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fa.",
        "bytes of 2^64 bytes": b"\x80\x04\x8e" + b"\xff" * 8 + b"a.",
        "a frame of 2^63 bytes": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.",
        "a negative length": b"\x80\x02T" + struct.pack("<i", -5) + b"a.",
        "an int of 100,000 digits": b"I" + b"9" * 100_000 + b"\n.",
        "lists of lists": lists + b".",
        "lists of lists as labels": b"}(U\x06labels" + lists + b"U\x04data" + lists + b"u.",
        "tuples of tuples as a key": b"}(" + tuples + b"K\x01u.",
        "a nest of 200,000 lists": b"]" * 200_000 + b"a" * 199_999 + b".",
        "too many opcodes": b"]" + b"0" * (MAX_OPCODES + 1) + b".",
        "a long memo": b"}" + b"".join(b"r" + struct.pack("<I", i * 7919) for i in range(MAX_OPCODES + 5)) + b".",
        "a megabyte copied as many keys": (
            b"}c_codecs\nencode\nq\x01(X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x020U\x06latin1q\x03"
            + b"h\x01h\x02h\x03\x86RK\x01" * 1000 + b"u."
        ),
        "a list in itself": b"]q\x00h\x00a.",
        "no end": official[:-1],
        "an end alone": b".",
        "marks alone": b"(" * 1000 + b".",
        "a missing memo": b"h\x05.",
        "an opcode that isn't": b"\xff.",
        "text": b"hello\n",
        "nothing": b"",
    }  # fmt: skip


@pytest.mark.parametrize("name", hostile())
def test_hostile_pickles_end_in_one_error_and_run_nothing(name: str) -> None:
    refused(hostile()[name])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("system", "it asks for 'os.system', which this data set doesn't need; nothing was run"),
        ("system by STACK_GLOBAL", "it asks for 'os.system'"),
        ("system by INST", "it has the opcode INST"),
        ("ndarray of 2^62 bytes", "announces"),
        ("tuples of tuples as a key", "keys that are no names"),
    ],
)
def test_the_error_says_what_was_found(name: str, text: str) -> None:
    refused(hostile()[name], text)


@given(st.binary(max_size=60))
def test_any_bytes_end_in_an_error(content: bytes) -> None:
    refused(b"\x80\x02}" + content)


@given(st.data())
def test_a_batch_with_a_wrong_byte_is_refused_or_has_other_values(data: st.DataObject) -> None:
    content = bytearray(python2_batch(IMAGES[:2], LABELS[:2]))
    # Among the opcodes: in the pixels nothing can be seen.
    places = [*range(content.index(IMAGES[:2].tobytes())), *range(len(content) - 60, len(content))]
    content[data.draw(st.sampled_from(places))] ^= data.draw(st.integers(1, 255))
    try:
        raw = parse(bytes(content), "the batch")
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert raw.images.shape == (len(raw.labels), 3, 32, 32)


def test_missing_batches(tmp_path: Path) -> None:
    folder = write_batches(tmp_path / "cifar")
    (folder / "test_batch").unlink()
    with pytest.raises(DataError, match="has no test_batch"):
        load_data(folder)
    for name in ("data_batch_1", "data_batch_2"):
        (folder / name).unlink()
    write = write_batches(tmp_path / "other")
    (folder / "test_batch").write_bytes((write / "test_batch").read_bytes())
    with pytest.raises(DataError, match="has no training batch data_batch_1"):
        load_data(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("../data_batch_3", "a member with the path '../data_batch_3'"),
        ("/etc/data_batch_3", "a member with the path '/etc/data_batch_3'"),
        ("a\\..\\data_batch_3", "a member with the path"),
        ("more/data_batch_1", "it has data_batch_1 twice"),
        ("data_batch_3", "Can't read data_batch_3 in"),
    ],
)
def test_archives_with_other_members(tmp_path: Path, name: str, text: str) -> None:
    path = write_archive(tmp_path / "cifar.tar.gz", **{name: b"x"})
    with pytest.raises(DataError) as caught:
        load_data(path)
    assert text in str(caught.value)
    assert str(path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar.tar.gz"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_archives_with_links_and_devices(tmp_path: Path, kind: bytes) -> None:
    path = write_archive(tmp_path / "cifar.tar", "w")
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("data_batch_3")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataError, match="a link, a device or sparse: 'data_batch_3'"):
        load_data(path)


def test_archives_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_archive(tmp_path / "cifar.tar.gz")
    monkeypatch.setattr(cifar10_archive, "MAX_BYTES", 30_000)
    with pytest.raises(DataError, match="unpacks to more than 30000 bytes"):
        load_data(path)
    monkeypatch.undo()
    monkeypatch.setattr(cifar10_archive, "MAX_MEMBERS", 2)
    with pytest.raises(DataError, match="more than 2 members"):
        load_data(path)
    # A header that announces what isn't there.
    member = tarfile.TarInfo("data_batch_1")
    member.size = 1 << 40
    path.write_bytes(member.tobuf() + bytes(1024))
    with pytest.raises(DataError, match="'data_batch_1' has 1099511627776 bytes"):
        load_data(path)
