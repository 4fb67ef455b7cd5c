"""The script of all GPU checks runs on the CPU, so that it works when there is a card."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from scripts import script as loaded

from cvxcnn.errors import SolverError


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("benchmarks/device.py")


@pytest.mark.parametrize(
    "piece", ["unfold", "features", "gram", "working_set", "gated", "quadratic", "stack", "processes"]
)
def test_a_piece_does_the_same_on_both_devices(script: ModuleType, piece: str) -> None:
    train, _ = script.large_digits()
    line = script.compare(piece, script.PIECES[piece], getattr(script.Work(train, script.QUICK), piece), "cpu")
    assert line.passed and line.difference == 0.0, line
    assert set(line.seconds) == {"cpu", "device"}


def test_other_numbers_and_failures_are_lines_that_did_not_pass(script: ModuleType) -> None:
    answers = iter((torch.ones(2), torch.tensor([1.0, 1.1])))
    other = script.compare("other", 1e-5, lambda _: script.Result(next(answers)), "cpu")
    assert not other.passed and other.difference == pytest.approx(0.1 / 2**0.5)

    def fails(device: str) -> None:
        raise SolverError("no such luck")

    failed = script.compare("fails", 1e-5, fails, "cpu")
    assert not failed.passed and failed.error == "SolverError: no such luck"
    table = script.table_of([other, failed], "cpu")
    assert table.row_count == 2


def test_a_card_that_is_not_there_is_one_sentence(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    sys_argv, sys.argv = sys.argv, ["device.py"]
    try:
        with pytest.raises(SystemExit):
            script.main()
    finally:
        sys.argv = sys_argv
    assert "no GPU is there; --device cpu --quick runs the same code without one" in capsys.readouterr().err
