"""Threads: one for the small dense algebra of the solvers, and coarse shares of images for the patch work.

Machines are shared. Threads that meet after every matrix product wait for the slowest each time, and a busy
core then costs a factor of ten; a share of the images for each thread meets once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController

__all__ = ["map_shares", "serial_blas"]

Result = TypeVar("Result")


@lru_cache(maxsize=1)
def _controller() -> Any:
    # Searching for the loaded libraries takes milliseconds, so it is done once. numpy and scipy must be
    # in the process by then, because each brings a BLAS of its own.
    import numpy.linalg  # noqa: F401
    import scipy.linalg  # noqa: F401

    return ThreadpoolController()


def serial_blas() -> AbstractContextManager[Any]:
    """Return a context in which the BLAS of numpy and scipy uses one thread; torch keeps its threads.

    Examples
    --------
    >>> with serial_blas():
    ...     pass
    """
    limited: AbstractContextManager[Any] = _controller().limit(limits=1, user_api="blas")
    return limited


@lru_cache(maxsize=4)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="cvxcnn", initializer=torch.set_num_threads, initargs=(1,))


def map_shares(function: Callable[[slice], Result], length: int, device: torch.device) -> list[Result]:
    """Return ``function`` of consecutive shares of range(length), one share for each torch thread.

    Parameters
    ----------
    function : callable
        Takes a slice; runs without gradient, on torch with one thread.
    length : int
    device : torch.device
        Off the CPU there is one share, in the calling thread.

    Examples
    --------
    >>> sum(map_shares(lambda share: share.stop - share.start, 10, torch.device("cpu")))
    10
    """
    workers = min(torch.get_num_threads(), length) if device.type == "cpu" else 1
    if workers <= 1:
        with torch.no_grad():
            return [function(slice(0, length))]

    def without_gradient(share: slice) -> Result:
        # Gradient mode belongs to a thread.
        with torch.no_grad():
            return function(share)

    bounds = [length * worker // workers for worker in range(workers + 1)]
    shares = [slice(start, stop) for start, stop in zip(bounds, bounds[1:], strict=False)]
    return list(_pool(workers).map(without_gradient, shares))
