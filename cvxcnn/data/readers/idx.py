"""IDX files (MNIST and its kin), plain or gzip: train-images, train-labels, t10k-images, t10k-labels."""

from __future__ import annotations

import gzip
import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from .mapped import map_bytes
from .raw import RawSplit, files, first_bytes, reading, warn_of_others


def _is_idx_file(path: Path) -> bool:
    # Two zero bytes, the type (8 to 14), the number of axes.
    start = first_bytes(path, 4)
    return len(start) == 4 and start[:2] == b"\0\0" and 8 <= start[2] <= 14 and 1 <= start[3] <= 4


def recognises(path: Path) -> bool:
    """Return whether the layout is there."""
    return any(_is_idx_file(p) for p in files(path))


def _read_file(path: Path) -> NDArray[np.uint8]:
    with reading(path):
        with path.open("rb") as start:
            compressed = start.read(2) == b"\x1f\x8b"
        with (gzip.open if compressed else open)(path, "rb") as file:
            head = file.read(4)
            kind, axes = head[2], head[3]
            if kind != 8:
                raise ValueError(f"it holds numbers of type {kind:#x}, not unsigned bytes (0x8)")
            shape = tuple(int(size) for size in np.frombuffer(file.read(4 * axes), dtype=">u4"))
            if not compressed and len(shape) == axes:
                return map_bytes(path, shape, file.tell())
            # One byte more than announced: it shows a longer file, and a gzip file ends with a checksum.
            content = file.read(math.prod(shape) + 1)
        if len(shape) != axes or len(content) != math.prod(shape):
            found = "more" if len(content) > math.prod(shape) else len(content)
            raise ValueError(f"it announces shape {shape} and holds {found} bytes")
        return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def read(folder: Path) -> tuple[RawSplit, RawSplit]:
    """Return the raw training and test split; DataError if they can't be read."""
    candidates = [p for p in files(folder) if _is_idx_file(p)]

    def only(split: str, kind: str, pattern: str) -> Path:
        found = [p for p in candidates if re.search(pattern, p.name) and kind in p.name]
        if len(found) != 1:
            raise DataError(
                f"{folder} has {len(found)} IDX files of {split} {kind} that can be read, and one is needed. Its IDX "
                f"files: {', '.join(p.name for p in candidates)}. Expected: train-images, train-labels, t10k-images "
                "(or test-images) and t10k-labels."
            )
        return found[0]

    pairs = [
        (only(split, "images", pattern), only(split, "labels", pattern))
        for split, pattern in (("training", "train"), ("test", "t10k|test"))
    ]
    warn_of_others(folder, [path for pair in pairs for path in pair])
    train, test = (RawSplit(_read_file(images), np.array(_read_file(labels)), str(images)) for images, labels in pairs)
    return train, test
