"""Parquet files in the Hugging Face layout: train.parquet and test.parquet, or train-00000-of-00002.parquet ..."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from .encoded import EncodedImages
from .raw import RawSplit, files, in_one_order, reading, warn_of_others, warn_of_unused

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label", "coarse_label")
# What pandas writes beside the columns of a table.
_ROW_NUMBERS = re.compile("__index_level_")
_ROWS_AT_ONCE = 1024


def _shards(folder: Path, split: str) -> list[Path]:
    """Return the files of a split: one, or several that are all there."""
    shards = [p for p in files(folder) if re.fullmatch(rf"{split}(-.*)?\.parquet", p.name)]
    if not shards:
        raise DataError(
            f"{folder} has no {split} split: neither {split}.parquet nor {split}-*.parquet. "
            "Put both a training and a test file there."
        )
    announced, wrong = _disagreement([p.name for p in shards], split)
    if wrong:
        raise DataError(
            f"{folder} holds {len(shards)} {split} files whose names announce {announced}: {wrong}. "
            "Get the missing ones, or take out those of another data set."
        )
    return shards


def _disagreement(names: list[str], split: str) -> tuple[list[int], str]:
    """Return how many files their names announce, and what is wrong with that; nothing if they are all there."""
    # Their number, of how many, and often a hash.
    found = {name: re.fullmatch(rf"{split}-(\d+)-of-(\d+)(-.*)?\.parquet", name) for name in names}
    numbers = {int(match[1]) for match in found.values() if match}
    announced = sorted({int(match[2]) for match in found.values() if match})
    if not numbers:
        single = f"{split}.parquet"
        return [1], f"{single} is a whole set by itself" if single in names and len(names) > 1 else ""
    others = [name for name, match in found.items() if not match]
    if others:
        return announced, f"{others[0]} is none of them"
    if len(announced) > 1:
        return announced, "they are of several sets"
    missing = next((number for number in range(announced[0]) if number not in numbers), None)
    if missing is not None:
        return announced, f"{split}-{missing:05d}-of-{announced[0]:05d}.parquet is missing"
    return announced, "there are more than that" if len(names) > announced[0] else ""


def _column(schemas: Mapping[Path, Any], candidates: tuple[str, ...], kind: str) -> str:
    """Return the first name that all files of a data set have a column of."""
    for path, schema in schemas.items():
        if not set(candidates) & set(schema.names):
            raise DataError(
                f"{path} has no {kind} column: it has {', '.join(schema.names) or 'no columns'}, "
                f"and one named {' or '.join(candidates)} was expected. Rename the column."
            )
    for name in candidates:
        if all(name in schema.names for schema in schemas.values()):
            return name
    columns = {next(name for name in candidates if name in schema.names): path for path, schema in schemas.items()}
    (one, first), (other, second) = list(columns.items())[:2]
    raise DataError(
        f"The {kind} column of {first} is {one}, that of {second} is {other}, and they have none in common. "
        "Name the columns alike, if they mean the same."
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

    @property
    def origin(self) -> str:
        """Return the file, for error messages."""
        return str(self.path)

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


def _schema(path: Path) -> Any:
    with _opened(path) as file:
        return file.schema_arrow


def _open_shard(path: Path, image: str, label: str) -> _Shard:
    import pyarrow as pa

    with _opened(path) as file:
        schema = file.schema_arrow
        encoded, kind = schema.field(image).type, schema.field(label).type
        nested = pa.types.is_struct(encoded) and encoded.get_field_index("bytes") >= 0
        content = encoded.field("bytes").type if nested else encoded
        if not (pa.types.is_binary(content) or pa.types.is_large_binary(content)):
            raise DataError(
                f"Column {image} of {path} holds {encoded}, not encoded images. "
                "Store JPEG or PNG bytes, as binary or as struct{bytes, path}."
            )
        column = file.read(columns=[label]).column(label)
        if pa.types.is_dictionary(kind):  # categories of a table, which are stored beside their numbers
            kind = kind.value_type
            column = column.cast(kind)
        if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise DataError(f"Column {label} of {path} holds {kind}, not labels. Store integers or strings.")
        if column.null_count:
            raise DataError(f"Column {label} of {path} has missing values. Fill them in, or take out the rows.")
        if not len(column):
            raise DataError(f"{path} is empty: it has no rows. Get the file again, or take it out.")
        labels = column.to_numpy()
        names = _class_names(schema, label) if pa.types.is_integer(kind) else None
    return _Shard(path, labels if pa.types.is_integer(kind) else labels.astype(str), names, image, nested)


def _joined(shards: list[_Shard], folder: Path) -> RawSplit:
    """Return a split of the files that hold it."""
    kinds = {shard.labels.dtype.kind == "U": shard.path for shard in shards}
    if len(kinds) > 1:
        raise DataError(
            f"{kinds[True]} has labels that are strings, {kinds[False]} has integers. Save all as one or the other."
        )
    labels = np.concatenate(in_one_order(shards))

    def contents(rows: NDArray[np.int64]) -> Iterator[tuple[str, bytes]]:
        first = 0
        for shard in shards:
            last = first + len(shard.labels)
            own = rows[(rows >= first) & (rows < last)] - first
            if len(own):
                yield from shard.contents(own)
            first = last

    origin = shards[0].origin if len(shards) == 1 else str(folder)
    return RawSplit(EncodedImages(len(labels), origin, contents), labels, origin, shards[0].names)


def read(path: Path) -> tuple[RawSplit, RawSplit]:
    """Return the raw training and test split; DataError if they can't be read."""
    folder = _folder(path)
    paths = {split: _shards(folder, split) for split in ("train", "test")}
    schemas = {shard: _schema(shard) for shards in paths.values() for shard in shards}
    image, label = _column(schemas, IMAGE_COLUMNS, "image"), _column(schemas, LABEL_COLUMNS, "label")
    train, test = (_joined([_open_shard(shard, image, label) for shard in shards], folder) for shards in paths.values())
    warn_of_others(folder, schemas)
    if folder != path:
        warn_of_others(path, [folder])
    columns = dict.fromkeys(name for schema in schemas.values() for name in schema.names)
    others = [f"column {name}" for name in columns if name not in (image, label) and not _ROW_NUMBERS.match(name)]
    warn_of_unused(others, folder, f"Images are read from {image}, labels from {label}.")
    return train, test


def _folder(path: Path) -> Path:
    """Return where the files are: there, or in ``data``, as the Hub has them."""
    there = any(p.suffix == ".parquet" for p in files(path))
    return path if there else path / "data"


def recognises(path: Path) -> bool:
    """Return whether the layout is there."""
    return any(p.suffix == ".parquet" for p in files(_folder(path)))
