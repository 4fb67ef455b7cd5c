"""Threads: what workers and other threads are given, whenever they began."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from threading import Barrier, Event, Thread

import joblib
import numpy as np
import pytest
import torch

import cvxcnn.core.threads
from cvxcnn import ConvexConvBlock
from cvxcnn.core.threads import all_threads, coarse_threads, map_items, map_shares

CPU = torch.device("cpu")

# Python 3.12 and later warn of every fork of a process with threads; that is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def two_threads_and_no_workers() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    cvxcnn.core.threads._pool.cache_clear()
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


# Children of fork.

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
IMAGES = np.random.default_rng(0).random((60, 8, 8))


def fit(seed: int) -> float:
    block = ConvexConvBlock(gates=20, reg=0.1, random_state=seed)
    return block.fit(IMAGES, IMAGES.mean(axis=(1, 2))).result_.objective


def in_a_child(work: Callable[[], object], seconds: float = 60.0) -> int | None:
    """Return the exit code of a forked child, None for one that had to be killed."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(seconds)
    if child.is_alive():
        child.kill()
        child.join()
        return None
    return child.exitcode


@needs_fork
def test_a_forked_child_fits_what_its_parent_fits() -> None:
    before = fit(0)

    def work() -> None:
        # Here too torch's own threads, of which nothing is left, must not be waited for.
        large = torch.rand(400, 400, dtype=torch.float64)
        (large @ large).exp().sum()
        assert np.isclose(fit(0), before, rtol=1e-9)

    large = torch.rand(400, 400, dtype=torch.float64)
    (large @ large).exp().sum()
    assert in_a_child(work) == 0
    # Nor a child of a child, nor the parent afterwards.
    assert in_a_child(lambda: sys.exit(in_a_child(work))) == 0
    assert fit(0) == before and torch.get_num_threads() == 2


@needs_fork
def test_a_child_may_be_forked_while_its_parents_workers_are_busy() -> None:
    done, begun = Event(), Event()

    def wait(_: int) -> None:
        begun.set()
        done.wait(60)

    def busy() -> None:
        with coarse_threads():
            map_items(wait, [0, 1, 2], CPU)

    thread = Thread(target=busy)
    thread.start()
    begun.wait(60)
    try:
        assert in_a_child(lambda: fit(0)) == 0
    finally:
        done.set()
        thread.join()
    assert torch.get_num_threads() == 2


@needs_fork
def test_a_child_forked_inside_a_fit_keeps_to_one_thread() -> None:
    # The child returns through what ends the parent's fit, which sets threads back.
    with coarse_threads(), all_threads():
        parent = os.getpid()
        child = os.fork()
    if os.getpid() != parent:
        os._exit(torch.get_num_threads())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert torch.get_num_threads() == 2


@needs_fork
def test_joblib_may_fork_after_a_fit_in_a_thread_too() -> None:
    expected = [fit(seed) for seed in (0, 1)]
    found: list[float] = []

    def search() -> None:
        found.extend(joblib.Parallel(n_jobs=2, backend="multiprocessing")(joblib.delayed(fit)(s) for s in (0, 1)))

    search()
    thread = Thread(target=search)
    thread.start()
    thread.join(120)
    np.testing.assert_allclose(found, [*expected, *expected], rtol=1e-9)
