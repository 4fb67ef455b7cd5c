"""Threads: one for the small dense algebra of the solvers, and coarse shares of images for the patch work.

Machines are shared. Threads that meet after every matrix product wait for the slowest each time, and a busy
core then costs a factor of ten; a share of the images for each thread meets once.

A forked child has none of its parent's threads, and torch's OpenMP waits for them for ever. So a child begins with one
torch thread, and with pools of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from itertools import pairwise
from threading import Barrier
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController

__all__ = ["all_threads", "coarse_threads", "map_items", "map_shares"]

Item = TypeVar("Item")
Result = TypeVar("Result")

# Threads for the patch work inside coarse_threads; None outside.
_workers: ContextVar[int | None] = ContextVar("workers", default=None)


@contextmanager
def _restoring_threads() -> Iterator[int]:
    """Set torch's number of threads back at the end, but not in a child that was forked meanwhile."""
    threads, process = torch.get_num_threads(), os.getpid()
    try:
        yield threads
    finally:
        if os.getpid() == process:
            torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _controller() -> Any:
    # Searching for the loaded libraries takes milliseconds, so it is done once. numpy and scipy must be
    # in the process by then, because each brings a BLAS of its own.
    import numpy.linalg  # noqa: F401
    import scipy.linalg  # noqa: F401

    return ThreadpoolController()


@contextmanager
def coarse_threads() -> Iterator[None]:
    """One thread for small dense algebra, in numpy, scipy and torch; the patch work keeps all of torch's threads.

    Examples
    --------
    >>> with coarse_threads():
    ...     torch.get_num_threads()
    1
    """
    if _workers.get() is not None:
        yield
        return
    with _restoring_threads() as threads:
        token = _workers.set(threads)
        torch.set_num_threads(1)
        try:
            with _controller().limit(limits=1, user_api="blas"):
                yield
        finally:
            _workers.reset(token)


@contextmanager
def all_threads() -> Iterator[None]:
    """All of torch's threads for large dense algebra, inside ``coarse_threads`` too.

    Examples
    --------
    >>> threads = torch.get_num_threads()
    >>> with coarse_threads(), all_threads():
    ...     torch.get_num_threads() == threads
    True
    """
    with _restoring_threads() as before:
        torch.set_num_threads(_workers.get() or before)
        yield


@lru_cache(maxsize=4)
def _pool(workers: int) -> ThreadPoolExecutor:
    started = Barrier(workers, timeout=60)

    def one_thread() -> None:
        # At its first question a thread is given the number that was set last, in whichever thread: ask, then set.
        torch.get_num_threads()
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="cvxcnn", initializer=one_thread)
    with _restoring_threads():
        list(pool.map(lambda _: started.wait(), range(workers)))
    return pool


def _begin_child() -> None:
    _pool.cache_clear()
    torch.set_num_threads(1)


# Windows has no fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)


def map_shares(function: Callable[[slice], Result], length: int, device: torch.device, least: int = 1) -> list[Result]:
    """Return ``function`` of consecutive shares of range(length), one share for each torch thread.

    Parameters
    ----------
    function : callable
        Takes a slice; runs without gradient, on torch with one thread.
    length : int
    device : torch.device
        Off the CPU there is one share, in the calling thread.
    least : int
        Length of a share, at least, where there are several: a thread may not be worth waking for less.

    Examples
    --------
    >>> sum(map_shares(lambda share: share.stop - share.start, 10, torch.device("cpu")))
    10
    """
    threads = _workers.get() or torch.get_num_threads()
    workers = min(threads, length // least) if device.type == "cpu" else 1
    if workers <= 1:
        with torch.no_grad():
            return [function(slice(0, length))]

    def without_gradient(share: slice) -> Result:
        # Gradient mode belongs to a thread.
        with torch.no_grad():
            return function(share)

    bounds = [length * worker // workers for worker in range(workers + 1)]
    shares = [slice(start, stop) for start, stop in pairwise(bounds)]
    return list(_pool(workers).map(without_gradient, shares))


def map_items(function: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> list[Result]:
    """Return ``function`` of each item, items handed out one by one to as many workers as torch has threads.

    Parameters
    ----------
    function : callable
        Takes an item; runs without gradient, on torch with one thread.
    items : sequence
        Pieces of work of unequal length.
    device : torch.device
        Off the CPU everything runs in the calling thread.

    Examples
    --------
    >>> map_items(abs, [-1, 2], torch.device("cpu"))
    [1, 2]
    """
    threads = _workers.get() or torch.get_num_threads()
    workers = min(threads, len(items)) if device.type == "cpu" else 1

    def without_gradient(item: Item) -> Result:
        with torch.no_grad():
            return function(item)

    if workers <= 1:
        return [without_gradient(item) for item in items]
    return list(_pool(workers).map(without_gradient, items))
