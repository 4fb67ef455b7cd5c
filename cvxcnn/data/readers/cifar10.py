"""CIFAR-10 binary batches, data_batch_1.bin ... and test_batch.bin: records of a label and 3 x 32 x 32 bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from .mapped import JoinedImages, map_bytes
from .raw import DAMAGED, RawSplit, files, reading, warn_of_others

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_RECORD = 1 + 3 * 32 * 32
NAME = re.compile(r"(data_batch_\d+|test_batch)\.bin")
OFFICIAL_COUNT, OFFICIAL_SIZE = 5, 10_000
ARCHIVES = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
CLASS_NAMES = "batches.meta.txt"
# What is beside the batches: the names of the classes, and archives of the same images.
KNOWN = ("batches.meta", CLASS_NAMES, *ARCHIVES)


def recognises(path: Path) -> bool:
    """Return whether the layout is there."""
    return any(NAME.fullmatch(p.name) for p in files(path))


def parse(content: NDArray[np.uint8], origin: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the images (n, 3, 32, 32) and labels (n,) of one batch; DataError if it has another size."""
    if len(content) == 0 or len(content) % CIFAR10_RECORD:
        raise DataError(
            f"{origin} has {len(content)} bytes, not a positive multiple of the {CIFAR10_RECORD} of a CIFAR-10 "
            f"image. {DAMAGED}"
        )
    records = content.reshape(-1, CIFAR10_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), np.array(records[:, 0])


def join(batches: Mapping[str, RawSplit], origin: str, suffix: str = "") -> tuple[RawSplit, RawSplit]:
    """Return the training and test split of batches.

    Parameters
    ----------
    batches : dict
        By the names of their files, without the suffix.
    origin, suffix : str
        Where they are, and what their names end in, for error messages.

    Raises
    ------
    DataError
        If one is missing: of several, a number between; of batches of the official size, one of the five.
    """
    training = [batches[name] for name in sorted(batches, key=lambda name: (len(name), name)) if name != "test_batch"]
    official = all(len(batch.labels) == OFFICIAL_SIZE for batch in training)
    numbers = [int(name.removeprefix("data_batch_")) for name in batches if name != "test_batch"]
    last = max([OFFICIAL_COUNT if official else 1, *numbers])
    first_missing = next(number for number in count(1) if f"data_batch_{number}" not in batches)
    if first_missing <= last or "test_batch" not in batches:
        missing = f"training batch data_batch_{first_missing}" if first_missing <= last else "test_batch"
        raise DataError(
            f"{origin} has no {missing}{suffix}. Put data_batch_1{suffix} to 5 and test_batch{suffix} there."
        )
    images = JoinedImages([np.asanyarray(batch.images) for batch in training])
    labels = np.concatenate([batch.labels for batch in training])
    return RawSplit(images, labels, origin, training[0].names), batches["test_batch"]


def _classes(folder: Path) -> tuple[str, ...]:
    """Return the names that a file beside the batches gives the classes, one a line, or else those of CIFAR-10."""
    path = folder / CLASS_NAMES
    if not path.is_file():
        return CIFAR10_CLASSES
    with reading(path):
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
        if len(set(names)) < len(names) or len(names) < 2:
            raise ValueError(f"it names {len(names)} classes, of which {len(set(names))} differ")
    return names


def read(folder: Path) -> tuple[RawSplit, RawSplit]:
    """Return the raw training and test split; DataError if they can't be read."""
    paths = [p for p in files(folder) if NAME.fullmatch(p.name)]
    batches, classes = {}, _classes(folder)
    for path in paths:
        with reading(path):
            content = map_bytes(path, (path.stat().st_size,))
        batches[path.stem] = RawSplit(*parse(content, str(path)), str(path), classes)
    splits = join(batches, str(folder), ".bin")
    warn_of_others(folder, paths, KNOWN)
    return splits
