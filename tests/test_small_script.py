"""The script of small sizes runs in small: its rows have what it prints, and its figure is drawn."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from scripts import script as loaded


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("benchmarks/small.py")


@pytest.mark.parametrize("row", ["group", "gated", "relu", "path"])
def test_each_entry_of_a_row_is_timed_and_reaches_its_gap(script: ModuleType, row: str) -> None:
    lines = script.measured(row, script.QUICK)
    assert lines[0].times == 1.0
    for line in lines:
        assert line.seconds > 0 and float(line.remark.split()[-1]) < 1e-4, line
    assert script.table_of(lines).row_count == len(lines)


def test_the_figure_of_growth_is_drawn(script: ModuleType, tmp_path: Path) -> None:
    found = {"images n": {"cvxcnn": [(10, 0.1), (100, 1.0)]}, "gates P": {"cvxcnn": [(5, 0.2)]}}
    script.draw(found, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 0


def test_busy_processes_end_with_the_work(script: ModuleType) -> None:
    with script.occupied(1) as nothing:
        assert nothing is None
