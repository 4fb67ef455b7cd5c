"""CIFAR-10 python batches, data_batch_1 ... and test_batch: pickled dicts, read by ``pickled`` without unpickling.

Each has ``data``, a uint8 array (n, 3072) of red, green and blue planes, and ``labels``, a list of n ints from 0 to 9.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cifar10 import CIFAR10_CLASSES, KNOWN, join
from .pickled import Built, Call, Name, byte_string, pickled_value
from .raw import RawSplit, files, reading, warn_of_others

__all__ = ["MAX_BATCH_BYTES", "parse", "read", "recognises"]

FOLDER = "cifar-10-batches-py"
NAME = re.compile(r"data_batch_\d+|test_batch")
SIDE = 32
# The official batches have 31,035,704 bytes.
MAX_BATCH_BYTES = 64 << 20
# What pickles of uint8 arrays mention, by NumPy 1 and 2, and strings of bytes by Python 3 for Python 2.
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
NAMES = frozenset((*_RECONSTRUCT, "numpy.ndarray", "numpy.dtype", "_codecs.encode"))


def _folder(path: Path) -> Path:
    return path / FOLDER if (path / FOLDER).is_dir() else path


def recognises(path: Path) -> bool:
    """Return whether the layout is there."""
    return any(NAME.fullmatch(p.name) for p in files(_folder(path)))


def _array(value: Any) -> NDArray[np.uint8]:
    """Return a pickled uint8 array: its state is (version, shape, dtype, whether columns come first, bytes)."""
    match value:
        case Built(
            Call(Name(function), (Name("numpy.ndarray"), *_)),
            (1, tuple() as shape, Built(Call(Name("numpy.dtype"), ("u1", *_))), bool() as columns_first, content),
        ) if function in _RECONSTRUCT:
            if not all(type(size) is int and size >= 0 for size in shape):
                raise ValueError("its array has sides that are no sizes")
            pixels = byte_string(content)
            if math.prod(shape) != len(pixels):
                raise ValueError(f"its array announces {math.prod(shape)} bytes and has {len(pixels)}")
            return np.frombuffer(pixels, dtype=np.uint8).reshape(shape, order="F" if columns_first else "C")
    raise ValueError("its data is no array of unsigned bytes")


def parse(content: bytes, origin: str) -> RawSplit:
    """Return the images and labels of one batch.

    Parameters
    ----------
    content : bytes
    origin : str
        The file, for error messages.

    Raises
    ------
    DataError
        If it isn't a batch of CIFAR-10.
    """
    with reading(origin):
        batch = pickled_value(content, NAMES)
        if not isinstance(batch, dict):
            raise ValueError("it holds no dict")
        for name in ("data", "labels"):
            if name not in batch:
                raise ValueError(f"it has no {name!r}: it has {', '.join(batch)[:100] or 'nothing'}")
        pixels, labels = _array(batch["data"]), batch["labels"]
        if pixels.ndim != 2 or pixels.shape[1] != 3 * SIDE**2 or not len(pixels):
            raise ValueError(f"its data has shape {pixels.shape}, not (n, {3 * SIDE**2})")
        if not isinstance(labels, list) or len(labels) != len(pixels):
            raise ValueError(f"it has no list of {len(pixels)} labels")
        if not all(type(label) is int and 0 <= label < len(CIFAR10_CLASSES) for label in labels):
            raise ValueError(f"its labels are not all ints from 0 to {len(CIFAR10_CLASSES) - 1}")
    return RawSplit(pixels.reshape(-1, 3, SIDE, SIDE), np.array(labels), origin, CIFAR10_CLASSES)


def read(path: Path) -> tuple[RawSplit, RawSplit]:
    """Return the raw training and test split; DataError if they can't be read."""
    folder = _folder(path)
    found = [p for p in files(folder) if NAME.fullmatch(p.name)]
    batches = {}
    for file in found:
        with reading(file):
            if file.stat().st_size > MAX_BATCH_BYTES:
                raise ValueError(f"it has more than {MAX_BATCH_BYTES} bytes")
            content = file.read_bytes()
        batches[file.name] = parse(content, str(file))
    splits = join(batches, str(folder))
    warn_of_others(folder, found, KNOWN)
    if folder != path:
        warn_of_others(path, [folder], KNOWN)
    return splits
