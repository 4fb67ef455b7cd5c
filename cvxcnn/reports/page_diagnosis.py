"""The section of report.html that says what `diagnose` has found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.text import in_percent
from ..drawing.style import LABELS
from .page import text

__all__ = ["diagnosis"]

COLUMNS = (
    ("Above bound", ("above_bound",)),
    ("Gradient", ("stationarity", "plain")),
    ("Gradient at kinks", ("stationarity", "clarke")),
    ("Descent gains", ("curvature", "descent")),
    ("Off kernel ridge", ("tangent", "ridge_error")),
)


def diagnosis(found: Mapping[str, Any] | None) -> str:
    """Return what is in diagnosis.json as a table and words, or how to make it."""
    if found is None:
        return (
            '<p class="note">Not diagnosed yet: <code>cvxcnn diagnose</code> with this folder says of each network '
            "whether it is a stationary point, a saddle, a spurious minimum, or optimal within its certificate.</p>"
        )
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in ("Layer", "Training", *(n for n, _ in COLUMNS)))
    rows, words = [], []
    labels = {**LABELS, **found.get("labels", {})}
    for block in found["blocks"]:
        layer, name = text(block["layer"]), text(labels.get(block["method"], block["method"]))
        cells = "".join(f"<td>{text(_share(block, path))}</td>" for _, path in COLUMNS)
        rows.append(f'<tr><th scope="row">{layer}</th><th scope="row">{name}</th>{cells}</tr>')
        said = text(" ".join(map(str, block["measured"])))
        theory = text(" ".join(map(str, block["theory"])))
        words.append(
            f"<li><strong>Layer {layer}, {name}: {text(block['verdict'])}.</strong> {said}<br>"
            f'<span class="note">What theorems say: {theory}</span></li>'
        )
    for method, why in found.get("left_out", {}).items():
        words.append(f"<li><strong>{text(labels.get(method, method))}: not diagnosed</strong>, for {text(why)}.</li>")
    table = (
        '<div class="scroll" role="region" tabindex="0" aria-label="Table of the diagnosis">'
        '<table class="numbers">\n<caption>Gradients are relative to lambda times the norm of the weights, gains and '
        "gaps to the objective. The same numbers are in diagnosis.json.</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{''.join(rows)}</tbody></table></div>"
    )
    items = "\n".join(words)
    return f'{table}\n<ul class="plain">\n{items}\n</ul>'


def _share(block: Mapping[str, Any], path: tuple[str, ...]) -> str:
    value: Any = block
    for name in path:
        value = value[name]
    return "-" if value is None else in_percent(float(value))
