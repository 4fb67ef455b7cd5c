"""Threads: what workers and other threads are given, whenever they began."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Barrier, Thread

import pytest
import torch

import cvxcnn.threads
from cvxcnn.threads import coarse_threads, map_items, map_shares

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads_and_no_workers() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    cvxcnn.threads._pool.cache_clear()
    yield
    torch.set_num_threads(before)


def test_workers_keep_to_one_thread_wherever_they_began() -> None:
    # Sums of products depend on the number of threads in their last digits: a worker that began inside
    # coarse_threads, and computed for the first time outside, once had two.
    together = Barrier(2)
    with coarse_threads():
        map_shares(lambda _: together.wait(10), 2, CPU)

    def threads(_: int) -> int:
        together.wait(10)
        return torch.get_num_threads()

    assert map_items(threads, [0, 1], CPU) == [1, 1]
    with coarse_threads():
        assert map_items(threads, [0, 1], CPU) == [1, 1]


def test_other_threads_are_as_they_would_be_without_workers() -> None:
    map_shares(lambda _: None, 2, CPU)
    found: list[int] = []
    thread = Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [2] and torch.get_num_threads() == 2
