"""The two files of a model: written together or not at all, read within bounds, and sealed by checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from ..errors import CvxcnnError, ModelFileError

__all__ = [
    "CONFIG_FILE",
    "ENCODING",
    "FORMAT",
    "FORMAT_VERSION",
    "SAVE_AGAIN",
    "WEIGHTS_FILE",
    "config_checksum",
    "parse_config",
    "read_bytes",
    "read_config",
    "read_tensors",
    "reason",
    "write_atomically",
    "write_output",
    "write_together",
]

FORMAT = "cvxcnn"
FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
SAVE_AGAIN = "Save the model again, or take another copy of the folder."
# The configuration has a few kilobytes a layer; the rest is room for ``extra``.
CONFIG_BYTES = 64 << 20
# Of what is read: editors on Windows put a mark at the beginning of a file.
ENCODING = "utf-8-sig"


def write_output(path: Path, content: bytes) -> None:
    """Write to a place that a user named, as the shell's ``>`` would, and whole where that can be had.

    A pipe, a device, or a file with other hard links is written through and stays what it is; the process's own
    standard output, by whatever name, has the content after what it has already. Any other file is there as a whole or
    as it was before.

    Parameters
    ----------
    path : Path
        In a folder that exists.
    content : bytes

    Raises
    ------
    OSError
        If it can't be written.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     os.symlink("target", Path(folder, "link"))
    ...     write_output(Path(folder, "link"), b"content")
    ...     Path(folder, "target").read_bytes(), Path(folder, "link").is_symlink()
    (b'content', True)
    """
    there = path.stat() if path.exists() else None
    if there is not None:
        if stat.S_ISREG(there.st_mode) and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        own = next((number for number in (1, 2) if _is_open_as(number, there)), None)
        replaceable = there.st_nlink == 1 and os.access(os.path.dirname(os.path.realpath(path)), os.W_OK)
        if own is not None or not stat.S_ISREG(there.st_mode) or not replaceable:
            with open(path if own is None else own, "wb", closefd=own is None) as file:
                file.write(content)
            return
    write_atomically(path, content)


def _is_open_as(number: int, status: os.stat_result) -> bool:
    """Return whether a file is the one behind a descriptor."""
    try:
        return os.path.samestat(os.fstat(number), status)
    except OSError:
        return False


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is either there as a whole or as it was before.

    Parameters
    ----------
    path : Path
        In a folder that exists. A link stays, and the file that it points to is written.
    content : bytes

    Raises
    ------
    OSError
        If it can't be written, or something is there that is no regular file; nothing is left behind then.
    """
    write_together(path.parent, {path.name: content})


def write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files of a folder that exists, none of them before all are on the disk under other names.

    Raises
    ------
    OSError
        If one can't be written. Nothing new is left behind then, and files that were there are as they were, unless
        the last step, renaming, failed after the first file.
    """
    waiting: dict[Path, str] = {}
    placed: list[str | Path] = []
    try:
        for name, content in contents.items():
            path = _replaceable(folder / name)
            handle, waiting[path] = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        # mkstemp gives the file to its owner alone; what is published is as readable as any new file, or as before.
        mask = os.umask(0)
        os.umask(mask)
        for path, name in list(waiting.items()):
            new = not path.exists()
            if new:
                os.chmod(name, 0o666 & ~mask)
            else:
                _take_after(name, path.stat())
            os.replace(name, path)
            del waiting[path]
            placed += [path] if new else []
    except BaseException:
        for leftover in [*placed, *waiting.values()]:
            with suppress(OSError):
                os.unlink(leftover)
        raise


def _replaceable(path: Path) -> Path:
    """Return the file at the end of links, or raise OSError: what is there and no file is not to be replaced."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, "Not a regular file", str(path))
    return Path(os.path.realpath(path))


def _take_after(name: str, before: os.stat_result) -> None:
    """Give a file the owner, where that is allowed, and the permissions of the one that it is to replace."""
    if hasattr(os, "chown"):
        with suppress(OSError):
            os.chown(name, before.st_uid, before.st_gid)
    os.chmod(name, stat.S_IMODE(before.st_mode))


def reason(error: BaseException) -> str:
    """Return what an error says, on one line."""
    text = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def read_bytes(path: Path, limit: float = math.inf) -> bytes:
    """Return the content of a file of a model, or raise ModelFileError."""
    try:
        # A pipe or a device would block or never end.
        if path.exists() and not path.is_file():
            raise ModelFileError(f"{path} isn't a regular file. {SAVE_AGAIN}")
        size = path.stat().st_size
        if size > limit:
            raise ModelFileError(f"{path} has {size} bytes, more than the {limit} of any such file. {SAVE_AGAIN}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelFileError(f"There is no model in {path.parent}: {path.name} is missing. Check the path.") from error
    except (OSError, ValueError, MemoryError) as error:
        if isinstance(error, CvxcnnError):
            raise
        raise ModelFileError(f"The model file {str(path)!r} can't be read: {reason(error)}.") from error


def read_tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or raise ModelFileError; ``path`` is for the message."""
    try:
        return load_tensors(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AssertionError, OverflowError) as error:
        raise ModelFileError(
            f"{path} is truncated or isn't a safetensors file: {reason(error)[:200]}. {SAVE_AGAIN}"
        ) from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _int(text: str) -> int:
    if len(text) > 20:  # those of 64 bits have 20 characters at most
        raise ValueError(f"the number {text[:20]}... is too large")
    return int(text)


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"it has {name[:60]!r} twice")
        table[name] = value
    return table


def parse_config(text: str) -> Any:
    """Return the value of JSON text, or raise ValueError: for NaN, numbers beyond 64 bits, and repeated names too."""
    try:
        return json.loads(
            text, parse_constant=_refuse_constant, parse_float=_float, parse_int=_int, object_pairs_hook=_table
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def config_checksum(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a configuration, in a form that doesn't depend on spaces and the order of names."""
    rest = {name: value for name, value in config.items() if name != "config_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def read_config(path: Path) -> dict[str, Any]:
    """Return the configuration of a model of this package and of a version that is known, or raise ModelFileError."""
    content = read_bytes(path, CONFIG_BYTES)
    try:
        config = parse_config(content.decode(ENCODING))
    except ValueError as error:
        raise ModelFileError(f"{path} isn't valid JSON: {reason(error)}. {SAVE_AGAIN}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelFileError(f'{path} isn\'t of a model of this package: it doesn\'t say "format": "{FORMAT}".')
    version = config.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ModelFileError(
            f"{path} is damaged: format_version must be an int >= 1; got {str(version)[:60]!r}. {SAVE_AGAIN}"
        )
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format version {version}, and this cvxcnn reads up to {FORMAT_VERSION}. "
            f"Upgrade cvxcnn; the file was written by {str(config.get('package_version'))[:60]!r}."
        )
    return config
