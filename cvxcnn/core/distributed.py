"""Several processes, each with a share of the images: sums over images become sums over processes.

Nothing here does anything outside ``process_group``: there is then one process, of rank 0. Inside, every process
calls the same functions in the same order, on equal shapes and dtypes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import CvxcnnError, InputError

__all__ = [
    "all_mean",
    "all_sum",
    "alone",
    "broadcast",
    "gather_rows",
    "process_group",
    "rank",
    "row_counts",
    "shard",
    "size",
    "take_rows",
]

logger = logging.getLogger(__name__)

# A program that uses torch.distributed for its own ends, and fits a block in each process, must not have them summed.
_joined = False


def rank() -> int:
    """Return the number of this process, from 0; 0 outside a process group."""
    return dist.get_rank() if _joined else 0


def size() -> int:
    """Return the number of processes; 1 outside a process group."""
    return dist.get_world_size() if _joined else 1


def shard(count: int, rank: int, size: int) -> slice:
    """Return the rows of process ``rank`` of ``size``: consecutive shares of range(count), equal up to one.

    Examples
    --------
    >>> [shard(7, rank, 3) for rank in range(3)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    return slice(count * rank // size, count * (rank + 1) // size)


def all_sum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes, the same in all of them to the last bit.

    Outside a process group it is the tensor itself; inside it is a new one.

    Raises
    ------
    CvxcnnError
        If another process is gone.

    Examples
    --------
    >>> float(all_sum(torch.tensor(3.0)))
    3.0
    """
    if not _joined:
        return tensor
    total = tensor.clone(memory_format=torch.contiguous_format)
    with _contact():
        dist.all_reduce(total)
    return total


def all_mean(tensor: Tensor) -> Tensor:
    """Return the mean of the rows of all processes, shape (n_rank, ...) to (...).

    Raises
    ------
    CvxcnnError
        If another process is gone.

    Examples
    --------
    >>> all_mean(torch.tensor([[1.0, 2.0], [3.0, 6.0]])).tolist()
    [2.0, 4.0]
    """
    if not _joined:
        return tensor.mean(dim=0)
    return all_sum(tensor.sum(dim=0)) / sum(row_counts(tensor))


def broadcast(tensor: Tensor, source: int = 0) -> Tensor:
    """Return the tensor of process ``source``; the others give one of its shape and dtype.

    Raises
    ------
    CvxcnnError
        If another process is gone.
    """
    if not _joined:
        return tensor
    copy = tensor.clone(memory_format=torch.contiguous_format)
    with _contact():
        dist.broadcast(copy, source)
    return copy


def gather_rows(tensor: Tensor) -> Tensor:
    """Return the rows of all processes in the order of their ranks; each may have another number of them.

    Parameters
    ----------
    tensor : Tensor, shape (n_rank, ...)

    Returns
    -------
    Tensor, shape (sum of n_rank, ...)

    Raises
    ------
    CvxcnnError
        If another process is gone.
    """
    if not _joined:
        return tensor
    counts = row_counts(tensor)
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    with _contact():
        dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def row_counts(tensor: Tensor) -> list[int]:
    """Return the number of rows in each process.

    Raises
    ------
    CvxcnnError
        If another process is gone.

    Examples
    --------
    >>> row_counts(torch.zeros(3, 2))
    [3]
    """
    counts = torch.zeros(size(), dtype=torch.int64)
    counts[rank()] = len(tensor)
    return [int(count) for count in all_sum(counts)]


def take_rows(tensor: Tensor, index: Tensor) -> Tensor:
    """Return the rows with these numbers, which count the rows of all processes in the order of their ranks.

    Raises
    ------
    CvxcnnError
        If another process is gone.

    Examples
    --------
    >>> take_rows(torch.tensor([10, 11, 12]), torch.tensor([2, 0])).tolist()
    [12, 10]
    """
    if not _joined:
        return tensor[index.to(tensor.device)]
    counts = row_counts(tensor)
    own = index.cpu() - sum(counts[: rank()])
    held = ((own >= 0) & (own < counts[rank()])).nonzero().flatten()
    order = torch.argsort(gather_rows(held)).to(tensor.device)
    return gather_rows(tensor[own[held].to(tensor.device)])[order]


@contextmanager
def alone() -> Iterator[None]:
    """Work without the others inside ``process_group``, each process on what it has."""
    global _joined
    before, _joined = _joined, False
    try:
        yield
    finally:
        _joined = before


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, and leave them at the end; nothing where there is one process.

    Parameters
    ----------
    device : str
        "cpu", or "cuda": process r of a machine then takes its GPU r as the current one.

    Raises
    ------
    InputError
        If the machine has fewer GPUs than processes, or the environment's variables are no numbers of processes.
    CvxcnnError
        If the processes don't find each other.
    """
    global _joined
    started = dist.is_available() and dist.is_initialized()
    if _joined or (not started and _environment("WORLD_SIZE", 1, 1) < 2):
        yield
        return
    if not started and os.environ.get("RANK") is not None:
        _check_rank()
    if device.startswith("cuda"):
        _take_gpu()
    if not started:
        try:
            # Both, because a few small counts stay on the CPU whatever the device.
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
        except (AttributeError, RuntimeError, ValueError) as error:
            raise CvxcnnError(
                f"the {os.environ['WORLD_SIZE'].strip()} processes can't be joined: {_reason(error)}. Start them by "
                "torchrun, with a torch that has torch.distributed."
            ) from error
    _joined = True
    try:
        all_sum(torch.zeros(1))  # nobody goes on before all are here
        yield
    finally:
        _joined = False
        if not started:
            dist.destroy_process_group()


def _environment(name: str, least: int, default: int | None = None) -> int:
    """Return an int that torchrun sets; the default where it is empty or not set."""
    text = os.environ.get(name, "").strip()
    if not text and default is not None:
        return default
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise InputError(
            f"the environment variable {name} must be an int >= {least}, the number that torchrun sets; got {text!r}. "
            "Start the processes by torchrun, or unset WORLD_SIZE for a single one."
        )
    return value


def _check_rank() -> None:
    number, processes = _environment("RANK", 0), _environment("WORLD_SIZE", 1)
    if number >= processes:
        raise InputError(
            f"the environment variable RANK must be below WORLD_SIZE; got {number} and {processes}. Start the "
            "processes by torchrun."
        )


def _take_gpu() -> None:
    local, found = _environment("LOCAL_RANK", 0, 0), torch.cuda.device_count()
    if local >= found:
        raise InputError(
            f"process {local + 1} of this machine has no GPU of its own: torch finds {found}. "
            f"Use --nproc-per-node {max(found, 1)}, or --device cpu."
        )
    torch.cuda.set_device(local)


@contextmanager
def _contact() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        logger.info("%s", error)
        raise CvxcnnError(
            f"process {rank()} of {size()} lost contact with another one. What that one says is the reason; if it says "
            "nothing, use --verbose."
        ) from error


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
