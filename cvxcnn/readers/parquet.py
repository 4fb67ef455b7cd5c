"""Parquet files in the Hugging Face layout: train.parquet and test.parquet, or train-00000-of-00002.parquet ..."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .encoded import EncodedImages
from .raw import RawSplit, files, reading

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label", "coarse_label")
_ROWS_AT_ONCE = 1024


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


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        yield file


@dataclass(frozen=True, eq=False)
class _Shard:
    """One file: its labels, and the column that its images are read from when they are asked for."""

    path: Path
    labels: NDArray[Any]
    names: tuple[str, ...] | None
    column: str
    nested: bool

    def contents(self, rows: NDArray[np.int64]) -> Iterator[tuple[str, bytes]]:
        """Yield the origin and the bytes of these rows, which ascend; row groups without any aren't read."""
        with _opened(self.path) as file:
            stop = 0
            for group in range(file.num_row_groups):
                start, stop = stop, stop + file.metadata.row_group(group).num_rows
                if np.searchsorted(rows, start) == np.searchsorted(rows, stop):
                    continue
                columns = [f"{self.column}.bytes" if self.nested else self.column]
                for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns):
                    wanted = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + batch.num_rows)]
                    values = batch.column(self.column).take(wanted - start).to_pylist()
                    for row, value in zip(wanted, values, strict=True):
                        value = value["bytes"] if self.nested and value is not None else value
                        if value is None:
                            raise DataError(
                                f"Row {row} of {self.path} has no image bytes. Embed the images, not their paths."
                            )
                        yield f"image {row} of {self.path}", value
                    start += batch.num_rows


def _open_shard(path: Path) -> _Shard:
    import pyarrow as pa

    with _opened(path) as file:
        schema = file.schema_arrow
        image = _column(path, schema, IMAGE_COLUMNS, "image")
        label = _column(path, schema, LABEL_COLUMNS, "label")
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
        column = file.read(columns=[label]).column(label)
        if column.null_count:
            raise DataError(f"Column {label} of {path} has missing values. Fill them in, or take out the rows.")
        if not len(column):
            raise DataError(f"{path} is empty: it has no rows. Get the file again, or take it out.")
        labels = column.to_numpy()
        names = _class_names(schema, label) if pa.types.is_integer(kind) else None
    return _Shard(path, labels if pa.types.is_integer(kind) else labels.astype(str), names, image, nested)


def _read_split(folder: Path, split: str) -> RawSplit:
    paths = _shards(folder, split)
    if not paths:
        raise DataError(
            f"{folder} has no {split} split: neither {split}.parquet nor {split}-*.parquet. "
            "Put both a training and a test file there."
        )
    shards = [_open_shard(path) for path in paths]
    labels = np.concatenate([shard.labels for shard in shards])

    def contents(rows: NDArray[np.int64]) -> Iterator[tuple[str, bytes]]:
        first = 0
        for shard in shards:
            last = first + len(shard.labels)
            own = rows[(rows >= first) & (rows < last)] - first
            if len(own):
                yield from shard.contents(own)
            first = last

    origin = str(paths[0] if len(paths) == 1 else folder)
    return RawSplit(EncodedImages(len(labels), origin, contents), labels, origin, shards[-1].names)


def read(folder: Path) -> tuple[RawSplit, RawSplit]:
    """Return the raw training and test split; DataError if they can't be read."""
    return _read_split(folder, "train"), _read_split(folder, "test")


def recognises(path: Path) -> bool:
    """Return whether the layout is there."""
    return any(p.suffix == ".parquet" for p in files(path))
