"""CIFAR-10 binary batches, data_batch_1.bin ... and test_batch.bin: records of a label and 3 x 32 x 32 bytes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .raw import DAMAGED, RawSplit, files, reading

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_RECORD = 1 + 3 * 32 * 32


def recognises(path: Path) -> bool:
    """Return whether the layout is there."""
    return any(re.fullmatch(r"(data_batch_\d+|test_batch)\.bin", p.name) for p in files(path))


def parse(content: NDArray[np.uint8], origin: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the images (n, 3, 32, 32) and labels (n,) of one batch; DataError if it has another size."""
    if len(content) == 0 or len(content) % CIFAR10_RECORD:
        raise DataError(
            f"{origin} has {len(content)} bytes, not a positive multiple of the {CIFAR10_RECORD} of a CIFAR-10 "
            f"image. {DAMAGED}"
        )
    records = content.reshape(-1, CIFAR10_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def _read_split(folder: Path, pattern: str, wanted: str) -> RawSplit:
    paths = [p for p in files(folder) if re.fullmatch(pattern, p.name)]
    if not paths:
        raise DataError(f"{folder} has no {wanted}. Put data_batch_1.bin to 5 and test_batch.bin there.")
    batches = []
    for path in paths:
        with reading(path):
            content = np.fromfile(path, dtype=np.uint8)
        batches.append(parse(content, str(path)))
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return RawSplit(images, labels, str(paths[0] if len(paths) == 1 else folder), CIFAR10_CLASSES)


def read(folder: Path) -> tuple[RawSplit, RawSplit]:
    """Return the raw training and test split; DataError if they can't be read."""
    train = _read_split(folder, r"data_batch_\d+\.bin", "training batch data_batch_1.bin")
    return train, _read_split(folder, r"test_batch\.bin", "test_batch.bin")
