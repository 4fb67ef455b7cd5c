"""Which images are held out: a share of every class, decided by what an image is and never by where it stands."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.distributed import gather_rows, rank, row_counts
from ..errors import InputError

__all__ = ["held_out", "set_apart"]

# Images that are hashed together.
_AT_ONCE = 512
# Between the darkest and the brightest pixel of all images: few enough that neither the images' unit nor float32
# decides, and so many that two images are seldom alike.
_LEVELS = 4096


def held_out(images: Tensor, targets: Tensor, share: float, seed: int) -> Tensor:
    """Return which images are held out: the same ones in any order, and with any number of processes.

    Images with equal targets are a class; so are, of those whose targets no other image has, the ones with the largest
    output in common (of one output: all of them). Each class gives its share, up to one image, and keeps one at least.
    Its images are taken in the order of a keyed hash of their pixels.

    Parameters
    ----------
    images : Tensor, shape (n, C, H, W)
        Of this process.
    targets : Tensor, shape (n, outputs)
    share : float
        Of the images of all processes, rounded down; in (0, 1).
    seed : int
        Of the choice, in [0, 2^63).

    Returns
    -------
    Tensor, shape (n,), bool
        On the CPU.

    Raises
    ------
    InputError
        If so small a share is no image, or so large a one leaves a class without any.

    Examples
    --------
    >>> images = torch.arange(8.0).view(8, 1, 1, 1)
    >>> classes = torch.tensor([[0.0], [1.0]]).repeat(4, 1)
    >>> held = held_out(images, classes, 0.5, seed=0)
    >>> classes[held].flatten().sort().values
    tensor([0., 0., 1., 1.])
    """
    counts = row_counts(images)
    found = gather_rows(torch.from_numpy(_identities(images, targets, seed))).numpy()
    classes = np.unique(_classes(found), axis=0, return_inverse=True)[1].reshape(-1)
    chosen = set_apart(classes, found, share, "validation")
    first = sum(counts[: rank()])
    return torch.from_numpy(chosen[first : first + len(images)])


def set_apart(classes: NDArray[np.int64], identities: NDArray[np.int64], share: float, name: str) -> NDArray[np.bool_]:
    """Return which images are set apart, a share of every class, in the order of the numbers that they are known by.

    Parameters
    ----------
    classes : array, shape (n,)
        From 0.
    identities : array, shape (n, k)
        Images with other numbers may stand in any order.
    share : float
        Of all images, rounded down; each class keeps one.
    name : str
        What an error calls the share.

    Returns
    -------
    array, shape (n,), bool

    Raises
    ------
    InputError
        If so small a share is no image, or so large a one leaves a class without any.

    Examples
    --------
    >>> set_apart(np.array([0, 0, 1, 1]), np.array([[5], [3], [8], [9]]), 0.5, "share")
    array([False,  True,  True, False])
    """
    count = int(share * len(classes) + 1e-9)
    if not count:
        raise InputError(f"{name}={share:g} of {len(classes)} images leaves none to train on or none to judge by.")
    # The r-th of the m images of a class is due at (r + 1/2) / m, but the last one never.
    order = np.lexsort((*identities.T, classes))
    sizes = np.bincount(classes)
    turn = np.empty(len(classes))
    turn[order] = np.arange(len(classes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    due = np.where(turn + 1 == sizes[classes], np.inf, (turn + 0.5) / sizes[classes])
    if count > int(np.isfinite(due).sum()):
        raise InputError(
            f"{name}={share:g} would hold out {count} of {len(classes)} images, and each of the {len(sizes)} classes "
            "needs one to train on. Hold out fewer, or add images."
        )
    chosen = np.zeros(len(classes), dtype=bool)
    chosen[np.lexsort((*identities.T, due))[:count]] = True
    return chosen


def _classes(found: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return two numbers for each image that are those of its class."""
    largest, targets = found[:, 0], found[:, 1]
    _, inverse, counts = np.unique(targets, return_inverse=True, return_counts=True)
    shared = counts[inverse] > 1
    return np.stack([shared, np.where(shared, targets, largest)], axis=1).astype(np.int64)


def _identities(images: Tensor, targets: Tensor, seed: int) -> NDArray[np.int64]:
    """Return four numbers for each image: its largest output, and hashes of its targets, pixels and levels.

    By levels images are sorted, which don't depend on their unit; the pixels tell those apart that are alike in them.
    """
    ends = gather_rows(torch.stack([images.min(), images.max()])[None].double().cpu())
    low, span = float(ends[:, 0].min()), float(ends[:, 1].max() - ends[:, 0].min())
    key = int(seed).to_bytes(8, "little")

    def hashes(rows: NDArray[np.generic]) -> list[int]:
        # Of the same bytes on every machine.
        rows = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))
        digests = (hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest() for row in rows)
        return [int.from_bytes(digest, "little", signed=True) for digest in digests]

    parts = []
    for part, expected in zip(torch.split(images, _AT_ONCE), torch.split(targets, _AT_ONCE), strict=True):
        # Plus zero: of two zeros, one is negative.
        pixels = part.double().cpu().flatten(1).numpy() + 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            levels = np.rint((pixels - low) / (span or 1.0) * _LEVELS).astype(np.int16)
        largest = expected.argmax(dim=1).tolist()
        parts.append([largest, hashes(expected.double().cpu().numpy() + 0.0), hashes(pixels), hashes(levels)])
    return np.concatenate([np.array(part, dtype=np.int64).T for part in parts])
