"""report.html: a training run on one page that needs no other file, no network and no script."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from ..activations.neurons import Neurons
from ..core.text import one_line
from ..errors import ModelFileError
from ..models.saving import load_model
from ..models.stack import LayerwiseCNN
from ..persistence.files import ENCODING, read_bytes, write_atomically
from . import page, page_diagnosis, page_tested, page_verdict
from .history import HISTORY_FILE, read_history
from .predictions import MISTAKES_FILE, PREDICTIONS_FILE, Predictions, read_predictions
from .rivals import BASELINE_FILE, read_rivals
from .summary import SUMMARY_FILE, RunSummary
from .words import headline

__all__ = ["DIAGNOSIS_FILE", "EXCITING_FILE", "FINDINGS", "QUICK_FILE", "REPORT_FILE", "headline", "write_report"]

logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"
DIAGNOSIS_FILE = "diagnosis.json"
EXPLANATION_FILES = ("explanations.png", "sparsity.csv", "sanity.png", "explanations.json")
# What `explain` and `diagnose` write of the layers that are there.
FINDINGS = (*EXPLANATION_FILES, DIAGNOSIS_FILE)
# The small figure that a training run draws itself.
QUICK_FILE = "explanations_quick.png"
EXCITING_FILE = "exciting_patches.png"
PICTURES = {
    "explanations": "explanations.png",
    "sanity": "sanity.png",
    "quick": QUICK_FILE,
    "exciting": EXCITING_FILE,
    "mistakes": MISTAKES_FILE,
}


def write_report(folder: str | os.PathLike[str]) -> None:
    """Write report.html into the folder of a finished run, from the other files there.

    It shows which method won at each layer and how sure that is, all numbers, objective and accuracy by layer, the
    convergence of each block, the filters, explanations if there are any, and the settings. Figures are inside it; one
    that can't be drawn is left out, which the page and the log say.

    Parameters
    ----------
    folder : str or path
        With ``summary.json`` and the model; ``history.csv`` and the files of ``explain`` and ``diagnose`` are
        shown if they are there.

    Raises
    ------
    ModelFileError
        If files are missing or damaged.
    OSError
        If the report can't be written.
    """
    source = Path(folder)
    content = _read_json(source / SUMMARY_FILE)
    if content is None:
        raise ModelFileError(f"There is no {SUMMARY_FILE} in {source}. Give the folder of a finished run.")
    found, diagnosis = _read_json(source / "explanations.json"), _read_json(source / DIAGNOSIS_FILE)
    pictures = {key: path.read_bytes() for key, name in PICTURES.items() if (path := source / name).is_file()}
    try:
        summary = RunSummary.from_json(content)
        if not summary.layers:
            raise ValueError("it has no finished layer")
        written = _page(summary, source, pictures, found, diagnosis)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelFileError(
            f"{source / SUMMARY_FILE} is damaged: {type(error).__name__} {error}. Train the run again."
        ) from error
    write_atomically(source / REPORT_FILE, written.encode())


def _page(
    summary: RunSummary,
    source: Path,
    pictures: dict[str, bytes],
    found: dict[str, Any] | None,
    diagnosis: dict[str, Any] | None,
) -> str:
    data = summary.data
    channels, height, width = data["image_shape"]
    history, model = read_history(source / HISTORY_FILE), load_model(source)
    outputs = model.blocks_[-1].n_outputs_
    classes = [str(name) for name in getattr(model, "extra_", {}).get("classes", range(outputs))]
    tested, labels = read_predictions(source / PREDICTIONS_FILE, outputs), summary.labels()
    return Template(files(__package__).joinpath("template.html").read_text(encoding="utf-8")).substitute(
        title=page.text(f"{summary.name}: convex and ordinary training, layer by layer"),
        data=page.text(
            f"{data['n_train']} training and {data['n_test']} test images of {height} x {width} pixels, "
            f"{'1 channel' if channels == 1 else f'{channels} channels'}, {data['n_classes']} classes"
        ),
        headline=page_verdict.sentence(summary),
        closing=_drawn("the first screen", lambda: page_verdict.closing(summary, history)),
        verdicts=page_verdict.verdicts(summary),
        words=page_verdict.in_words(summary),
        limits=page.limits(),
        definitions=page_verdict.definitions(),
        tested=_drawn(
            "the test images", lambda: _tested(tested, pictures.get("mistakes"), classes, (height, width), labels)
        ),
        diagnosis=page_diagnosis.diagnosis(diagnosis),
        table=page.results(summary),
        overview=_drawn("objective and accuracy", lambda: page.overview(summary)),
        convergence=_drawn("convergence", lambda: page.convergence(history)),
        filters=_drawn("filters", lambda: page.filters(model, _rivals(source, model), labels)),
        exciting=_drawn("exciting patches", lambda: page.exciting(pictures.get("exciting"))),
        explanations=_drawn("explanations", lambda: page.explanations(pictures, found)),
        settings=page.settings(summary),
        footer=page.text(f"Written by cvxcnn {summary.version} from the files beside it."),
    )


def _tested(
    tested: Predictions | None,
    mistakes: bytes | None,
    classes: list[str],
    size: tuple[int, int],
    labels: Mapping[str, str],
) -> str:
    if tested is None:
        return '<p class="note">No predictions were stored with this run.</p>'
    return (
        "<p>Rows are true classes, columns what they are taken for.</p>\n"
        f"{page_tested.confusions(tested, classes, labels)}"
        f"<h3>Mistakes</h3>\n{page_tested.mistakes(tested, mistakes, classes, size, labels)}"
        f'<h3><a href="#reliability">Reliability</a></h3>\n{page_tested.reliability(tested, labels)}'
    )


def _rivals(source: Path, model: LayerwiseCNN) -> dict[str, list[Neurons]]:
    """Return what ordinary training made of each layer; nothing if it was left out."""
    return read_rivals(source, len(model.blocks_)) if (source / BASELINE_FILE).is_file() else {}


def _drawn(name: str, draw: Callable[[], str]) -> str:
    """Return a part of the page with figures, or what is there in its place."""
    try:
        return draw()
    except Exception as error:  # numbers and words are worth having, whatever a drawing library raises
        reason = one_line(error)
        logger.error("%s is without the figures of %s: %s", REPORT_FILE, name, reason)
        return f'<p class="note">{page.text(f"These figures could not be drawn: {reason}.")}</p>'


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file, None if there is no such file."""
    if not path.exists():
        return None
    try:
        content = json.loads(read_bytes(path).decode(ENCODING))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is damaged: {error}. Train the run again.") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} is damaged: it holds no object. Train the run again.")
    return content
