"""Parquet files in the Hugging Face layout: train.parquet and test.parquet, or train-00000-of-00002.parquet ..."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .encoded import decode_all
from .raw import RawSplit, files, reading

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label", "coarse_label")


def _shards(folder: Path, split: str) -> list[Path]:
    single = folder / f"{split}.parquet"
    if single.is_file():
        return [single]
    shards = [p for p in files(folder) if re.fullmatch(rf"{split}-.*\.parquet", p.name)]
    announced = {int(found[1]) for p in shards if (found := re.search(r"-of-(\d+)\.parquet$", p.name))}
    if announced and announced != {len(shards)}:
        raise DataError(
            f"{folder} holds {len(shards)} {split} files whose names announce {sorted(announced)}. "
            "Get the missing ones, or take out those of another data set."
        )
    return shards


def _column(path: Path, schema: Any, candidates: tuple[str, ...], kind: str) -> str:
    for name in candidates:
        if name in schema.names:
            return name
    raise DataError(
        f"{path} has no {kind} column: it has {', '.join(schema.names) or 'no columns'}, "
        f"and one named {' or '.join(candidates)} was expected. Rename the column."
    )


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """Return the class names that the datasets library stores in a file's metadata, if they are there."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _read_split(folder: Path, split: str) -> RawSplit:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards = _shards(folder, split)
    if not shards:
        raise DataError(
            f"{folder} has no {split} split: neither {split}.parquet nor {split}-*.parquet. "
            "Put both a training and a test file there."
        )
    labels: list[NDArray[Any]] = []
    names: tuple[str, ...] | None = None

    def rows(path: Path) -> Iterator[tuple[str, bytes]]:
        nonlocal names
        with reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            image = _column(path, schema, IMAGE_COLUMNS, "image")
            label = _column(path, schema, LABEL_COLUMNS, "label")
            names = _class_names(schema, label) if pa.types.is_integer(schema.field(label).type) else None
            encoded, kind = schema.field(image).type, schema.field(label).type
            nested = pa.types.is_struct(encoded) and encoded.get_field_index("bytes") >= 0
            content = encoded.field("bytes").type if nested else encoded
            if not (pa.types.is_binary(content) or pa.types.is_large_binary(content)):
                raise DataError(
                    f"Column {image} of {path} holds {encoded}, not encoded images. "
                    "Store JPEG or PNG bytes, as binary or as struct{bytes, path}."
                )
            if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise DataError(f"Column {label} of {path} holds {kind}, not labels. Store integers or strings.")
            row = 0
            for batch in file.iter_batches(1024, columns=[f"{image}.bytes" if nested else image, label]):
                if batch.column(label).null_count:
                    raise DataError(f"Column {label} of {path} has missing values. Fill them in, or take out the rows.")
                values = batch.column(label).to_numpy(zero_copy_only=False)
                labels.append(values if pa.types.is_integer(kind) else values.astype(str))
                for value in batch.column(image).to_pylist():
                    value = value["bytes"] if nested and value is not None else value
                    if value is None:
                        raise DataError(f"Row {row} of {path} has no image bytes. Embed the images, not their paths.")
                    yield f"image {row} of {path}", value
                    row += 1
            if row == 0:
                raise DataError(f"{path} is empty: it has no rows. Get the file again, or take it out.")

    images = decode_all(entry for path in shards for entry in rows(path))
    return RawSplit(images, np.concatenate(labels), str(shards[0] if len(shards) == 1 else folder), names)


def read(folder: Path) -> tuple[RawSplit, RawSplit]:
    """Return the raw training and test split; DataError if they can't be read."""
    return _read_split(folder, "train"), _read_split(folder, "test")


def recognises(path: Path) -> bool:
    """Return whether the layout is there."""
    return any(p.suffix == ".parquet" for p in files(path))
