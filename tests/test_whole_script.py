"""The rival that trains a whole network: how its rate is chosen."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from scripts import script as loaded


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("benchmarks/whole.py")


@pytest.mark.parametrize(
    ("best", "expected", "tried"),
    [
        (0.1, 0.1, [0.05, 0.1, 0.2]),
        (0.03, 0.025, [0.05, 0.1, 0.2, 0.025, 0.0125]),
        (1e-9, 0.05 / 8, [0.05, 0.1, 0.2, 0.025, 0.0125, 0.00625]),
        (0.5, 0.4, [0.05, 0.1, 0.2, 0.4, 0.8]),
    ],
)
def test_rates_beyond_those_given_are_tried(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, best: float, expected: float, tried: list[float]
) -> None:
    seen: list[float] = []

    def train(network: Any, images: Any, rate: float, *_: Any) -> int:
        seen.append(rate)
        return 1

    monkeypatch.setattr(script, "train", train)
    monkeypatch.setattr(script, "judge", lambda network, images: -abs(seen[-1] - best))
    images = SimpleNamespace(labels=torch.arange(40) % 2, subset=lambda rows: None)
    found = script.best_rate(lambda: torch.nn.Linear(1, 1), images, [0.1, 0.05, 0.2], 1.0, 8, False)
    assert found == pytest.approx(expected) and seen == pytest.approx(tried)
