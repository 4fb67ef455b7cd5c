"""Run the notebooks and store their outputs; write the README's picture.

    python -m pip install -c constraints.txt -e ".[notebooks]" && python notebooks/refresh.py

The .py halves are what is edited; the .ipynb halves are made from them.
"""

import base64
import os
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "images" / "pricing.png"


def refresh(script: Path) -> None:
    """Run a notebook's .py half and write its .ipynb half with outputs."""
    began = time.perf_counter()
    notebook = jupytext.read(script)
    notebook.metadata["jupytext"] = {"formats": "ipynb,py:percent"}
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(HERE)}}).execute()
    for index, cell in enumerate(notebook.cells):
        # Identifiers and times of execution would change with every run.
        cell["id"] = f"cell-{index}"
        cell.metadata.pop("execution", None)
        if "picture" in cell.metadata.get("tags", []):
            (image,) = (output.data["image/png"] for output in cell.outputs if "data" in output)
            PICTURE.parent.mkdir(exist_ok=True)
            PICTURE.write_bytes(base64.b64decode(image))
    notebook.metadata.pop("language_info", None)
    nbformat.write(notebook, script.with_suffix(".ipynb"))
    print(f"{script.name}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    # What captum's progress bars say about a missing widget is no output of a notebook.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    for script in sorted(HERE.glob("[0-9]*.py")):
        refresh(script)
