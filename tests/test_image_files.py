"""Image files are read as a viewer shows them, or refused in words."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cvxcnn.commands.predict import load_images
from cvxcnn.data import load_data
from cvxcnn.data.readers.encoded import decode_all
from cvxcnn.errors import DataError

ORIENTATION = 0x0112
# An image whose corners differ, so that no two orientations are alike.
SHOWN = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
# How the pixels of a file are turned so that a viewer shows the image, by the number in its metadata (EXIF 2.3).
STORED = {
    1: SHOWN,
    2: SHOWN[:, ::-1],
    3: SHOWN[::-1, ::-1],
    4: SHOWN[::-1],
    5: SHOWN.T,
    6: np.rot90(SHOWN),
    7: SHOWN[::-1, ::-1].T,
    8: np.rot90(SHOWN, -1),
}


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    """Return one image (C, h, w)."""
    return np.asarray(decode_all([("image", content)])[0])


def turned(number: int, format: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = number
    return encoded(Image.fromarray(np.ascontiguousarray(STORED[number])), format, exif=exif)


def refused(content: bytes, text: str) -> None:
    with pytest.raises(DataError) as caught:
        decode_all([("image 3 of x", content)])
    assert str(caught.value).startswith("Can't read image 3 of x: ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", STORED)
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_orientation(number: int, format: str) -> None:
    np.testing.assert_array_equal(decoded(turned(number, format))[0], SHOWN)


def test_orientation_of_photographs() -> None:
    plain = decoded(encoded(Image.fromarray(SHOWN), "JPEG", quality=95))[0]
    found = decoded(turned(3, "JPEG"))[0]
    assert np.abs(found.astype(int) - plain).max() <= 40
    assert found[0, 0] < found[-1, -1]


def test_orientation_wherever_images_are_read(tmp_path: Path) -> None:
    tables, folder = tmp_path / "tables", tmp_path / "folder"
    tables.mkdir()
    for part in ("train", "test"):
        images = [{"bytes": turned(number), "path": None} for number in (6, 8)]
        pq.write_table(pa.table({"image": images, "label": [0, 1]}), tables / f"{part}.parquet")
        for label, number in enumerate((6, 8)):
            path = folder / part / str(label) / "1.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(turned(number))
    for source in (tables, folder):
        for loaded in load_data(source):
            np.testing.assert_array_equal(loaded.images, np.stack([SHOWN[None], SHOWN[None]]) / 255)
    images, _ = load_images(str(folder / "train" / "0" / "1.png"))
    np.testing.assert_array_equal(images[0, 0], SHOWN / 255)


def test_what_is_transparent_is_laid_over_white() -> None:
    colours = np.zeros((1, 3, 4), np.uint8)
    colours[0, :, 0], colours[0, :, 3] = 200, (0, 51, 255)
    expected = np.array([[[255, 244, 200]], [[255, 204, 0]], [[255, 204, 0]]])
    assert np.abs(decoded(encoded(Image.fromarray(colours))).astype(int) - expected).max() <= 1
    grey = Image.merge("LA", [Image.new("L", (2, 1), 100), Image.fromarray(np.array([[0, 255]], np.uint8))])
    assert decoded(encoded(grey)).tolist() == [[[255, 100]]]


@pytest.mark.parametrize(
    ("mode", "colour", "transparent"),
    [("P", 1, 0), ("RGB", (0, 0, 200), (9, 9, 9)), ("L", 77, 9), ("1", 0, 255)],
)
def test_a_transparent_colour_is_laid_over_white(mode: str, colour: Any, transparent: Any) -> None:
    image = Image.new(mode, (2, 1), colour)
    if mode == "P":
        image.putpalette([9, 9, 9, 0, 0, 200])
    image.putpixel((1, 0), transparent)
    found = decoded(encoded(image, transparency=transparent))
    shown = {"P": [0, 0, 200], "RGB": [0, 0, 200], "L": [77], "1": [0]}[mode]
    assert found[:, 0].tolist() == [[value, 255] for value in shown]


def test_a_palette_with_shades_of_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0] * 3)
    image.putdata([0, 1, 2])
    assert decoded(encoded(image, transparency=bytes([0, 255, 51]))).tolist() == [[[255, 0, 204]]] * 3


def test_an_opaque_alpha_channel_changes_nothing() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (5, 4, 4), np.uint8)
    colours[..., 3] = 255
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(colours))), colours[..., :3].transpose(2, 0, 1))


def test_palettes_bits_and_inks_become_what_they_show() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    image.putdata([2, 0, 1])
    for format in ("PNG", "GIF", "BMP"):
        assert decoded(encoded(image, format)).tolist() == [[[10, 255, 0]], [[20, 0, 255]], [[30, 0, 0]]]
    bits = Image.fromarray(np.array([[True, False]]))
    assert decoded(encoded(bits)).tolist() == [[[255, 0]]]
    assert decoded(encoded(Image.new("CMYK", (1, 1), (255, 0, 0, 0)), "TIFF")).tolist() == [[[0]], [[255]], [[255]]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_keep_all_of_them(format: str) -> None:
    pixels = np.array([[0, 1, 256], [4095, 65534, 65535]], np.uint16)
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(pixels), format))[0], pixels / 65535)


def test_sixteen_bits_among_eight_are_on_one_scale(tmp_path: Path) -> None:
    eight = np.array([[0, 77], [128, 255]], np.uint8)
    sixteen = Image.fromarray(eight.astype(np.uint16) * 257)
    mixed = decode_all([("a", encoded(Image.fromarray(eight))), ("b", encoded(sixteen))])
    np.testing.assert_array_equal(mixed, np.stack([eight[None], eight[None]]) / 255)
    colour = Image.merge("RGB", [Image.fromarray(eight)] * 3)
    mixed = decode_all([("a", encoded(colour)), ("b", encoded(sixteen))])
    np.testing.assert_array_equal(mixed[0], mixed[1])
    assert mixed.shape == (2, 3, 2, 2)
    path = tmp_path / "one.png"
    sixteen.save(path)
    np.testing.assert_array_equal(load_images(str(path))[0][0, 0], eight / 255)


def test_a_transparent_value_of_sixteen_bits_is_laid_over_white() -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 1, 16, 0, 0, 0, 0))
    content += chunk(b"tRNS", struct.pack(">H", 1000)) + chunk(
        b"IDAT", zlib.compress(struct.pack(">B3H", 0, 0, 1000, 999))
    )
    assert decoded(content + chunk(b"IEND", b"")).tolist() == [[[0, 1, 999 / 65535]]]


def test_damaged_metadata_leave_the_pixels_as_they_are() -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010E] = 6, "a description"
    image = Image.fromarray(np.ascontiguousarray(STORED[6]))
    content = encoded(image, "JPEG", exif=exif)
    expected = decoded(content)
    assert expected.shape == (1, 4, 6)
    # A type that isn't, for the description.
    entry = content.index(struct.pack(">H", 0x010E)) + 2
    np.testing.assert_array_equal(decoded(content[:entry] + b"\xff\xff" + content[entry + 2 :]), expected)


def test_a_portable_graymap_of_sixteen_bits() -> None:
    assert decoded(b"P5 2 1 65535\n\x00\x01\xff\xff").tolist() == [[[1 / 65535, 1.0]]]


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        (np.array([[0.5]], np.float32), "it has floating-point pixels, whose scale isn't known"),
        (np.array([[70_000]], np.int32), "it has more than 16 bits a channel: pixels from 70000 to 70000"),
        (np.array([[-1]], np.int32), "it has more than 16 bits a channel: pixels from -1 to -1"),
    ],
)
def test_pixels_without_a_scale_are_refused(pixels: np.ndarray, text: str) -> None:
    refused(encoded(Image.fromarray(pixels), "TIFF"), text)


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_animations_and_pages_are_refused(format: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    refused(content, "it has 3 frames or pages, and one image is expected")
    assert decoded(encoded(frames[0], format, **({"lossless": True} if format == "WEBP" else {}))).shape == (3, 4, 4)


def test_of_a_cameras_several_pictures_the_first_is_read() -> None:
    first, second = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (4, 4), "black")
    assert (decoded(encoded(first, "MPO", save_all=True, append_images=[second])) == 255).all()
