"""Whatever precision torch is told to multiply in, the library multiplies in the whole one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cvxcnn.core.plainly import _precisions, plain_torch


def now() -> list[Any]:
    return [getattr(owner, name) for owner, name, _ in _precisions()]


@pytest.fixture(params=["as it is", "matmul", "everything"])
def told(request: pytest.FixtureRequest) -> Any:
    """Torch, told to multiply float32 in less, where there is less."""
    if request.param == "everything" and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("torch before 2.9 has no such switch")
    before = torch.get_float32_matmul_precision()
    if request.param == "matmul":
        torch.set_float32_matmul_precision("medium")
    elif request.param == "everything":
        torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    yield request.param
    if request.param == "everything":
        torch.backends.fp32_precision = "none"  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision(before)


def test_float32_is_float32(told: str) -> None:
    before = now()
    assert any(value not in (whole, "none") for value, (_, _, whole) in zip(before, _precisions(), strict=True))
    with plain_torch():
        for value, (_, _, whole) in zip(now(), _precisions(), strict=True):
            assert value in (whole, "none")
        with plain_torch():
            pass
        assert all(value in (whole, "none") for value, (_, _, whole) in zip(now(), _precisions(), strict=True))
    assert now() == before
