"""Folders of images: train/<class>/<any name> and test/<class>/<any name>, or in folders of theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from .encoded import EncodedImages, check_kinds
from .raw import RawSplit, entries, reading, warn_of_others, warn_of_unused

__all__ = ["class_files", "class_folders", "files_within", "read", "recognises", "split_of"]


def class_folders(folder: Path) -> list[Path]:
    """Return the visible folders in a folder, sorted by name."""
    return [path for path in entries(folder) if path.is_dir()]


def files_within(folder: Path, outer: tuple[Path, ...] = ()) -> list[Path]:
    """Return the visible files of a folder and of all folders in it, sorted; links to nothing are among them.

    Raises
    ------
    DataError
        If a link leads back to a folder that it is in.
    """
    inside = (*outer, folder.resolve())
    found = []
    for path in entries(folder):
        if not path.is_dir():
            found.append(path)
        elif path.resolve() in inside:
            raise DataError(f"{path} is a link to a folder that it is in. Take it out.")
        else:
            found += files_within(path, inside)
    return found


def recognises(path: Path) -> bool:
    """Return whether the layout is there."""
    return bool(class_folders(path / "train"))


def class_files(folder: Path) -> tuple[list[Path], NDArray[np.str_]]:
    """Return the images in the folders of the classes, and the names of these, and warn of what else is there.

    Raises
    ------
    DataError
        If there are none, or files among them that are no images.
    """
    with reading(folder, "Check the folder and its permissions."):
        groups = {group: files_within(group) for group in class_folders(folder)}
        paths = [path for group in groups.values() for path in group]
        labels = [group.name for group, members in groups.items() for _ in members]
        if not paths:
            raise DataError(f"{folder} holds no images. Put them there as {folder.name}/<class>/<image>.")
    check_kinds(paths)
    warn_of_others(folder, groups)
    empty = [f"the empty class {group.name}" for group, members in groups.items() if not members]
    warn_of_unused(empty, folder, "Put images into it, or take it out.")
    return paths, np.array(labels)


def split_of(paths: Sequence[Path], labels: NDArray[np.str_], folder: Path) -> RawSplit:
    """Return images that stay encoded in their files until they are asked for.

    Parameters
    ----------
    paths : sequence of Path, length n
    labels : array, shape (n,)
    folder : Path
        For error messages.
    """

    def contents(rows: NDArray[np.int64]) -> Iterator[tuple[str, bytes]]:
        for row in rows:
            with reading(paths[row], "Check the file and its permissions."):
                content = paths[row].read_bytes()
            yield str(paths[row]), content

    images = EncodedImages(len(paths), str(folder), contents)
    return RawSplit(images, labels, str(folder))


def read(folder: Path) -> tuple[RawSplit, RawSplit]:
    """Return the raw training and test split; DataError if they can't be read."""
    splits = folder / "train", folder / "test"
    warn_of_others(folder, splits)
    train, test = (split_of(*class_files(part), part) for part in splits)
    return train, test
