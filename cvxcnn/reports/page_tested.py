"""The section of report.html about the test images: confusion matrices, mistakes, and whether confidence is earned."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..drawing.style import COLOURS, LABELS, MARKERS, new_figure, save_png, tidy
from .page import image, text
from .page_figures import WIDTH
from .predictions import Predictions
from .words import capital, percent, wilson

__all__ = ["calibration_error", "confusions", "mistakes", "reliability"]

# Classes whose matrix has room on a screen; of more, so many pairs are named.
_MOST_CLASSES, _MOST_PAIRS = 12, 10
_BINS = 8


def confusions(predictions: Predictions, classes: Sequence[str], labels: Mapping[str, str] = LABELS) -> str:
    """Return a table a network: images of each class (rows) by the class that they are taken for (columns).

    ``labels`` says what each network is called, here and below.
    """
    parts = []
    for method in predictions.predicted:
        counts = predictions.confusion(method, len(classes))
        show = _matrix if len(classes) <= _MOST_CLASSES else _pairs
        name = labels[method]
        parts.append(f"<div><h3>{capital(name)}</h3>{show(counts, classes, name)}</div>")
    return f'<div class="pair">{"".join(parts)}</div>'


def _matrix(counts: NDArray[np.int64], classes: Sequence[str], network: str) -> str:
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in classes)
    most = max(int(counts.max()), 1)
    rows = []
    for place, (name, row) in enumerate(zip(classes, counts, strict=True)):
        cells = []
        for column, count in enumerate(row):
            right = column == place
            shade = (
                f' style="background:rgba({"0,114,178" if right else "213,94,0"},{_strength(count, most, right):.2f})"'
            )
            cells.append(f"<td{shade if count else ''}>{count or ''}</td>")
        rows.append(f'<tr><th scope="row">{text(name)}</th>{"".join(cells)}</tr>')
    label = f"Confusion matrix, {network}: true classes in rows, predicted ones in columns"
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table class="confusion">\n'
        f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _strength(count: int, most: int, right: bool) -> float:
    """Return how strong a cell's colour is: a single mistake is seen beside a hundred right answers."""
    return 0.1 + 0.4 * count / most if right else min(0.25 + 0.05 * count, 0.7)


def _pairs(counts: NDArray[np.int64], classes: Sequence[str], network: str) -> str:
    """Return the mistakes that are made most often: for more classes than a matrix has room for."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS]
    pairs = [divmod(int(place), len(classes)) for place in order if wrong.flat[place]]
    items = [
        f"<li>{text(classes[row])} taken for {text(classes[column])}: {wrong[row, column]}</li>"
        for row, column in pairs
    ]
    return f'<ul class="plain">{"".join(items)}</ul>' if items else "<p>No mistakes.</p>"


def mistakes(
    predictions: Predictions,
    png: bytes | None,
    classes: Sequence[str],
    size: tuple[int, int],
    labels: Mapping[str, str] = LABELS,
) -> str:
    """Return the test images that a network has wrong, with the answers of all.

    Parameters
    ----------
    predictions : Predictions
    png : bytes or None
        ``mistakes.png``.
    classes : sequence of str
    size : (int, int)
        Height and width of an image.
    labels : mapping
        What each network is called.
    """
    rows = predictions.mistaken()
    if not len(rows):
        return "<p>No test image is taken for another class.</p>"
    if png is None:
        return '<p class="note">The pictures of the mistakes are missing.</p>'
    height, width = size
    tiles = []
    with Image.open(io.BytesIO(png)) as strip:
        if strip.width != width or strip.height % height:
            raise ValueError("mistakes.png has another size than the images")
        for place, row in enumerate(rows[: strip.height // height]):
            buffer = io.BytesIO()
            strip.crop((0, place * height, width, (place + 1) * height)).save(buffer, "PNG")
            tiles.append(_mistake(buffer.getvalue(), predictions, int(row), classes, labels))
    shown = f"{len(tiles)} of the {len(rows)}" if len(tiles) < len(rows) else f"The {len(rows)}"
    note = f"{shown} that a network has wrong, first those where networks differ; in brackets, its confidence."
    return f'<p class="note">{text(note)}</p>\n<ul class="tiles answers">{"".join(tiles)}</ul>'


def _mistake(png: bytes, predictions: Predictions, row: int, classes: Sequence[str], labels: Mapping[str, str]) -> str:
    true = classes[int(predictions.true[row])]
    answers = []
    for method, predicted in predictions.predicted.items():
        guess = classes[int(predicted[row])]
        mark = "right" if predicted[row] == predictions.true[row] else "wrong"
        sure = percent(float(predictions.confidence[method][row]))
        answers.append(f'<span class="{mark}">{labels[method]}: {text(guess)} ({sure})</span>')
    picture = image(png, f"Test image {row} of class {true}")
    return f"<li>{picture}<strong>{text(true)}</strong><br>{'<br>'.join(answers)}</li>"


# Reliability.


def _bins(predictions: Predictions, method: str) -> list[tuple[float, float, int]]:
    """Return (mean confidence, share of right answers, images) of bins with equally many images, by confidence."""
    confidence = predictions.confidence[method]
    right = predictions.predicted[method] == predictions.true
    parts = np.array_split(np.argsort(confidence, kind="stable"), min(_BINS, max(len(right), 1)))
    return [(float(confidence[part].mean()), float(right[part].mean()), len(part)) for part in parts if len(part)]


def calibration_error(predictions: Predictions, method: str) -> float:
    """Return the expected calibration error: by how much confidence and accuracy of bins differ, on average.

    Of bins with equally many images (Nixon et al. 2019, arXiv:1904.01685); in [0, 1].

    Examples
    --------
    >>> sure = {"convex": np.array([1.0, 1.0, 0.5, 0.5])}
    >>> half = Predictions(np.array([0, 0, 0, 1]), {"convex": np.array([0, 0, 0, 0])}, sure)
    >>> calibration_error(half, "convex")
    0.25
    """
    found = _bins(predictions, method)
    total = sum(count for _, _, count in found)
    return sum(count * abs(said - right) for said, right, count in found) / max(total, 1)


def reliability(predictions: Predictions, labels: Mapping[str, str] = LABELS) -> str:
    """Return a figure of how often networks are right, against how sure they are, with 95 % intervals."""
    figure = new_figure(WIDTH, 3.0)
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="0.6", linewidth=1)
    said, least = [], 100.0
    for method in predictions.predicted:
        found = _bins(predictions, method)
        sure, right = ([100 * pair[place] for pair in found] for place in (0, 1))
        ends = [wilson(share, count) or (share, share) for _, share, count in found]
        errors = [
            [max(0.0, value - 100 * low) for value, (low, _) in zip(right, ends, strict=True)],
            [max(0.0, 100 * high - value) for value, (_, high) in zip(right, ends, strict=True)],
        ]
        axes.errorbar(
            sure, right, yerr=errors, color=COLOURS[method], marker=MARKERS[method], markersize=4, linewidth=1.2,
            elinewidth=0.8, label=labels[method], markerfacecolor=COLOURS[method] if method == "convex" else "white",
        )  # fmt: skip
        least = min([least, *sure, *(100 * low for low, _ in ends)])
        said.append(f"{labels[method]} {percent(calibration_error(predictions, method))}")
    axes.set_xlabel("confidence (%)")
    axes.set_ylabel("right (%)")
    axes.set_xlim(least - 3, 102)
    axes.set_ylim(least - 3, 102)
    tidy(axes, "both")
    axes.legend(frameon=False, fontsize=9)
    buffer = io.BytesIO()
    save_png(figure, buffer)
    words = (
        "How often networks are right, against how sure they are; on the line they are reliable. Mean distance from "
        f"it: {', '.join(said)}."
    )
    figure_ = f"<figure>{image(buffer.getvalue(), words)}<figcaption>{text(words)}</figcaption></figure>"
    return f'<div class="pair">{figure_}<div></div></div>'
