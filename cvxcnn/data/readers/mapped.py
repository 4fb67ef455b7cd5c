"""Arrays that stay in their files until some of their rows are asked for."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import IO, Any
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from numpy.typing import NDArray

__all__ = ["JoinedImages", "map_bytes", "map_member"]

# Of a member's own header in a zip archive: its fixed part, where the lengths of what follows it stand, and its mark.
_HEADER, _LENGTHS, _MARK = 30, slice(26, 30), b"PK\x03\x04"
_AT_ONCE = 1 << 24


def map_bytes(path: Path, shape: tuple[int, ...], offset: int = 0) -> NDArray[np.uint8]:
    """Return the bytes of a file, from an offset to its end, as an array that is read where it is asked for.

    Parameters
    ----------
    path : Path
    shape : tuple of int
        Of all bytes from the offset on.
    offset : int

    Raises
    ------
    ValueError
        If the file holds more or fewer.
    """
    count, found = int(np.prod(shape, dtype=object)), path.stat().st_size - offset
    if count != found:
        raise ValueError(f"it announces shape {shape} and holds {'more' if found > count else found} bytes")
    # An empty file can't be mapped.
    return np.memmap(path, np.uint8, "r", offset, shape) if count else np.zeros(shape, np.uint8)


def map_member(path: Path, archive: ZipFile, name: str) -> NDArray[Any] | None:
    """Return an array of an ``.npz`` file that is read where it is asked for; None if it can't be.

    That is one that is compressed, empty, or of objects.

    Its checksum is compared before: that takes a pass over its bytes, but no memory.

    Parameters
    ----------
    path : Path
    archive : ZipFile
        The file, opened.
    name : str
        Of the member, ``x_train.npy``.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    member = archive.getinfo(name)
    if member.compress_type != ZIP_STORED or member.flag_bits & 1:
        return None
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(_HEADER)
        if header[: len(_MARK)] != _MARK:
            raise ValueError(f"{name} isn't where the archive says")
        file.seek(int(np.frombuffer(header[_LENGTHS], dtype="<u2").sum()), 1)
        start = file.tell()
        _check_sum(file, member.file_size, member.CRC, name)
        file.seek(start)
        shape, fortran, dtype = _array_header(file)
        offset, count = file.tell(), int(np.prod(shape, dtype=object))
    if count == 0 or dtype.hasobject:
        return None
    if offset - start + count * dtype.itemsize > member.file_size:
        raise ValueError(f"{name} announces shape {shape} and holds fewer numbers")
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")


def _check_sum(file: IO[bytes], size: int, expected: int, name: str) -> None:
    found, left = 0, size
    while left:
        part = file.read(min(left, _AT_ONCE))
        if not part:
            raise ValueError(f"{name} ends early")
        found, left = zlib.crc32(part, found), left - len(part)
    if found != expected:
        raise ValueError(f"the checksum (CRC) of {name} is another")


def _array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    # From version 2 on headers may be longer, and from 3 on in UTF-8; numpy reads 3 as it reads 2.
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


@dataclass(frozen=True, eq=False)
class JoinedImages:
    """Images of several files, one after another, of which those that are asked for are read: ``images[rows]``.

    Parameters
    ----------
    parts : sequence of array, each of shape (n_i, ...)
        At least one; all alike but for their number.

    Examples
    --------
    >>> pair = JoinedImages([np.zeros((2, 4, 4)), np.ones((3, 4, 4))])
    >>> pair.shape, pair[np.array([1, 2])].mean(axis=(1, 2))
    ((5, 4, 4), array([0., 1.]))
    """

    parts: Sequence[NDArray[Any]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of all of them."""
        return (sum(map(len, self.parts)), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return their dtype."""
        return self.parts[0].dtype

    def __getitem__(self, rows: NDArray[np.int64] | EllipsisType) -> NDArray[Any]:
        """Return images as one array."""
        wanted = np.arange(self.shape[0])[rows]
        found = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        start = 0
        for part in self.parts:
            here = (wanted >= start) & (wanted < start + len(part))
            found[here] = part[wanted[here] - start]
            start += len(part)
        return found
