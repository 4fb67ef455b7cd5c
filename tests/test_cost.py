"""The cost model: numbers worked out by hand, and what "auto" makes of them."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.penalties import DensePenalty
from cvxcnn.penalties.symmetric import SymmetricPenalty
from cvxcnn.program import filter_program, gated_program
from cvxcnn.program.design import PART_BYTES_CPU
from cvxcnn.program.lifts import QuadraticDesign
from cvxcnn.program.program import Program
from cvxcnn.solvers import cost, get_solver
from cvxcnn.solvers.cost import Size, matmul_rate, predict_memory, prefers_streamed

GEOMETRY = PatchGeometry(5, 1, 2, "mean", 2, bias=True)
LARGE = Size.of_block(100_000, (3, 32, 32), GEOMETRY, blocks=1000, outputs=10)


def test_the_size_of_a_program_is_that_of_its_block() -> None:
    images = torch.zeros(7, 3, 8, 8)
    patches = Patches(images.half(), GEOMETRY, torch.float32)
    filters, targets = torch.ones(5, patches.dim), torch.zeros(7, 2)
    dense = filter_program(patches, filters, targets, 1.0, penalty=DensePenalty())
    gated = gated_program(patches, filters, targets, 1.0)
    shape = (3, 8, 8)
    assert Size.of(dense) == Size.of_block(7, shape, GEOMETRY, blocks=5, outputs=2, image_itemsize=2)
    expected = Size.of_block(7, shape, GEOMETRY, blocks=5, outputs=2, gated=True, separable=True, image_itemsize=2)
    assert Size.of(gated) == expected
    assert expected.columns == 5 * 4 * 76


def test_bytes_by_hand() -> None:
    # 1.2 GB of images, 16 MB of targets, two matrices of 4,000 x 4,000, four parts; the patches are too many to keep.
    images = 100_000 * (3072 * 4 + 2 * 10 * 8)
    assert LARGE.streamed().bytes == images + 2 * 8 * 4000**2 + 4 * PART_BYTES_CPU
    assert LARGE.working_set().bytes == images + 2 * 4 * 100_000 * 4000 + 4 * PART_BYTES_CPU
    shared = replace(LARGE, processes=4, image_itemsize=2)
    own = 25_000 * (3072 * 2 + 2 * 10 * 8)
    assert shared.streamed().bytes == own + 3 * 8 * 4000**2 + 4 * PART_BYTES_CPU
    assert predict_memory(LARGE, "streamed") == LARGE.streamed().bytes
    assert predict_memory(LARGE) == LARGE.streamed().bytes


def test_operations_by_hand() -> None:
    features = 2.0 * 100_000 * 1024 * 1000 * 76
    algebra = 2 * (4 * 4000**3 / 3 + 240 * 10 * 4000**2)
    assert LARGE.streamed().operations == pytest.approx(3 * features + 1e5 * 4000 * (4000 + 1024) + algebra)
    assert LARGE.working_set().operations == pytest.approx(28 * features + 2 * 1e5 * 4000**2 + algebra)


def test_programs_without_gates_look_at_many_images_as_seldom_as_can_be() -> None:
    geometry = PatchGeometry(1, 1, 0, "mean", 3, bias=True)
    patches = Patches(torch.zeros(2, 40, 32, 32), geometry)
    targets, penalty = torch.zeros(2, 10), SymmetricPenalty()
    size = Size.of(Program(QuadraticDesign(patches), targets, 1.0, penalty))
    assert (size.columns, size.whole, size.separable) == (9 * 861, True, True)
    many, few = replace(size, images=50_000), replace(size, images=3000)
    features = 2.0 * 50_000 * 1024 * 861
    algebra = 2 * 2 * 500 * 10 * 7749**2
    assert many.streamed().operations == pytest.approx(3 * features + 5e4 * 7749 * (7749 + 1024) + algebra)
    assert many.working_set().operations == pytest.approx(many.streamed().operations + 3 * features)
    assert prefers_streamed(many)
    assert not prefers_streamed(few)  # their features are a smaller matrix than the Gram matrix


def test_small_programs_stay_with_the_working_set(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Size.of_block(1000, (1, 8, 8), PatchGeometry(3), blocks=100, outputs=1)
    assert prefers_streamed(LARGE)
    assert not prefers_streamed(small)
    monkeypatch.setattr(cost, "memory_here", lambda _: 1 << 30)
    assert not prefers_streamed(LARGE)  # its Gram matrix would not fit


def test_auto_takes_it_and_says_why(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(200, 1, 6, 6, generator=generator, dtype=torch.float64)
    patches = Patches(images, PatchGeometry(3))
    filters = torch.nn.functional.normalize(torch.randn(5, 9, generator=generator, dtype=torch.float64), dim=1)
    targets = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    problem = filter_program(patches, filters, targets, 1.0, penalty=DensePenalty())
    assert get_solver("auto", problem).name == "working_set"
    assert not caplog.messages
    monkeypatch.setattr(cost, "_LEAST_OPERATIONS", 1.0)
    with caplog.at_level(logging.INFO, logger="cvxcnn"):
        assert get_solver("auto", problem).name == "streamed"
    assert [message.split(":")[0] for message in caplog.messages] == ["streamed (chosen)", "working_set"]
    assert "GiB" in caplog.messages[0]


def test_the_rate_is_measured() -> None:
    assert matmul_rate("cpu", torch.float32) > 1e6
