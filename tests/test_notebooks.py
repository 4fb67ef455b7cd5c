"""The notebooks: their scripts run, and each is paired with an .ipynb of the same cells that holds its pictures."""

from __future__ import annotations

import runpy
from pathlib import Path

import jupytext
import matplotlib
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))
# More than a few seconds each; the first one runs always.
MARKED = [SCRIPTS[0], *(pytest.param(script, marks=pytest.mark.slow) for script in SCRIPTS[1:])]


def test_every_notebook_is_a_pair() -> None:
    pairs = [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]
    assert [path.stem for path in SCRIPTS] == pairs
    assert pairs == [
        "01_first_block", "02_convex_against_nonconvex", "03_certificates", "04_explanations", "05_circular",
        "06_landscapes",
    ]  # fmt: skip


@pytest.mark.parametrize("script", MARKED, ids=lambda path: path.stem)
def test_script_runs(script: Path) -> None:
    with matplotlib.rc_context():
        matplotlib.use("Agg")
        from matplotlib import pyplot

        try:
            runpy.run_path(str(script))
            assert pyplot.get_fignums()
            for number in pyplot.get_fignums():
                pyplot.figure(number).canvas.draw()
        finally:
            pyplot.close("all")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_halves_have_the_same_cells_and_the_pictures_are_stored(script: Path) -> None:
    stored = jupytext.read(script.with_suffix(".ipynb"))
    edited = jupytext.read(script)
    cells = [[(cell.cell_type, cell.source) for cell in half.cells] for half in (stored, edited)]
    assert cells[0] == cells[1], "run notebooks/refresh.py"
    outputs = [output for cell in stored.cells for output in cell.get("outputs", [])]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert script.with_suffix(".ipynb").stat().st_size < 400_000
