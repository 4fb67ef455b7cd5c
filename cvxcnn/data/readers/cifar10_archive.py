"""The archives that CIFAR-10 comes in, cifar-10-python.tar.gz and cifar-10-binary.tar.gz: read without extracting."""

from __future__ import annotations

import gzip
import re
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import numpy as np

from . import cifar10, cifar10_python
from .raw import RawSplit, first_bytes, reading, warn_of_others

__all__ = ["read", "recognises"]

# The official archives unpack to 186 MB in nine members.
MAX_BYTES = 1 << 29
MAX_MEMBERS = 64


class _Bounded:
    """A file that ends in an error, not in memory, where it unpacks to more than is expected."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.left = MAX_BYTES

    def read(self, size: int = 1 << 20) -> bytes:
        content = self.file.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
        return content


def _file(path: Path) -> Path:
    """Return the archive: the path itself, or the one in it under its official name."""
    return next((path / name for name in cifar10.ARCHIVES if (path / name).is_file()), path)


def recognises(path: Path) -> bool:
    """Return whether the layout is there."""
    file = _file(path)
    if not file.is_file():
        return False
    return file.name.endswith((".tar", ".tar.gz", ".tgz")) or first_bytes(file, 262)[257:] == b"ustar"


def _check(member: tarfile.TarInfo) -> None:
    """Refuse what the official archives don't have; nothing is extracted, so this is to name the damage."""
    parts = PurePosixPath(member.name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in member.name:
        raise ValueError(f"it has a member with the path {member.name[:60]!r}")
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise ValueError(f"it has a member that is a link, a device or sparse: {member.name[:60]!r}")
    if member.size > cifar10_python.MAX_BATCH_BYTES:
        raise ValueError(f"its member {member.name[:60]!r} has {member.size} bytes")


def _parse(content: bytes, name: str, origin: str) -> RawSplit:
    if not name.endswith(".bin"):
        return cifar10_python.parse(content, origin)
    images, labels = cifar10.parse(np.frombuffer(content, dtype=np.uint8), origin)
    return RawSplit(images, labels, origin, cifar10.CIFAR10_CLASSES)


def read(path: Path) -> tuple[RawSplit, RawSplit]:
    """Return the raw training and test split; DataError if they can't be read."""
    file = _file(path)
    batches: dict[str, RawSplit] = {}
    with reading(file):
        with file.open("rb") as start:
            compressed = start.read(2) == b"\x1f\x8b"
        with (gzip.open if compressed else open)(file, "rb") as opened:
            stream = _Bounded(cast(IO[bytes], opened))
            with tarfile.open(fileobj=cast(Any, stream), mode="r|") as archive:
                for count, member in enumerate(archive):
                    if count >= MAX_MEMBERS:
                        raise ValueError(f"it has more than {MAX_MEMBERS} members")
                    _check(member)
                    name = PurePosixPath(member.name).name
                    found = re.fullmatch(r"(data_batch_\d+|test_batch)(\.bin)?", name)
                    content = archive.extractfile(member) if found and member.isreg() else None
                    if found and content is not None:
                        if found[1] in batches:
                            raise ValueError(f"it has {found[1]} twice")
                        batches[found[1]] = _parse(content.read(), name, f"{name} in {file}")
            # To the end, where the checksum is.
            while stream.read():
                pass
    splits = cifar10.join(batches, str(file))
    if file != path:
        warn_of_others(path, [file], cifar10.KNOWN)
    return splits
