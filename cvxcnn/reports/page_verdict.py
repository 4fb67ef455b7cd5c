"""The first screen of report.html, and its table: who won at each layer, by how much, and how sure that is."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..drawing.style import COLOURS, LABELS, new_figure, save_png, tidy
from ..program.program import relative_gap
from .bounds import bounded_networks
from .history import Point
from .page import image, text
from .page_figures import WIDTH
from .summary import LayerSummary, RunSummary, number
from .words import accuracy_words, at_most, certainty, chance_of, comparable, comparison, headline, kind, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["closing", "definitions", "in_words", "sentence", "verdicts"]

# Panels in a row, and how far a bound may be below, as a multiple of how far objectives are above, before it is cut.
_IN_A_ROW, _CUT = 5, 12.0
# What a heading says, and the definition that it is linked to.
HEADINGS = (
    ("Layer", ""),
    ("Convex objective", "objective"),
    ("Non-convex", "objective"),
    ("Convex lower by", ""),
    ("Best possible lower by", "bound"),
    ("Known", "certificate"),
    ("Test accuracy, convex", "interval"),
    ("Non-convex", "interval"),
    ("Right alone", "alone"),
    ("By chance", "alone"),
)


def link(name: str, anchor: str) -> str:
    """Return a word that leads to its definition on the page."""
    return f'<a href="#{anchor}">{text(name)}</a>' if anchor else text(name)


def sentence(summary: RunSummary) -> str:
    """Return the result of a run, its first sentence set off."""
    first, stop, rest = headline(summary).partition(". ")
    return f"<strong>{text(first + stop.strip())}</strong> {text(rest)}"


# The figure.


def closing(summary: RunSummary, points: Sequence[Point]) -> str:
    """Return the figure of the first screen: objective and bound of each layer, closing on one another in time.

    Layers are beside one another and share nothing but the axis of per cents: each has its own lambda, so that its
    objective can't be held against another's.
    """
    layers = [entry for entry in summary.layers if math.isfinite(number(entry.convex.objective))]
    if not layers:
        return ""
    columns = min(len(layers), _IN_A_ROW)
    rows = -(-len(layers) // columns)
    figure = new_figure(WIDTH * 1.25, 0.55 + 2.15 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    extent = [0.0, 0.0]
    for axes, entry in zip(grid, layers, strict=False):
        own = [point for point in points if point.layer == entry.layer]
        low, high = _panel(axes, entry, own)
        extent = [min(extent[0], low), max(extent[1], high)]
    for axes in list(figure.axes)[len(layers) :]:
        axes.set_visible(False)
    span = max(extent[1] - extent[0], 1e-6)
    for axes in figure.axes:
        axes.set_ylim(extent[0] - 0.06 * span, extent[1] + 0.08 * span)
    figure.supylabel("% above the convex result", fontsize=9)
    handles, labels = [], []
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    buffer = io.BytesIO()
    save_png(figure, buffer)
    said = " ".join(_alt(entry) for entry in layers)
    caption = (
        "Above 0, what the objective still had to lose (ordinary training: the best so far); below, what its bound "
        "leaves open."
    )
    return f"<figure>{image(buffer.getvalue(), said)}<figcaption>{text(caption)}</figcaption></figure>"


def _alt(entry: LayerSummary) -> str:
    convex, rival = entry.convex, entry.nonconvex
    said = f"Layer {entry.layer}: objective {number(convex.objective):.6g}"
    if math.isfinite(number(convex.global_bound)):
        said += f", bound {number(convex.global_bound):.6g}"
    if rival is not None and math.isfinite(number(rival.objective)):
        said += f", non-convex {number(rival.objective):.6g}"
    return f"{said}."


def _panel(axes: Axes, entry: LayerSummary, points: Sequence[Point]) -> tuple[float, float]:
    """Draw a layer, and return the lowest and the highest value that must be seen."""
    reached = number(entry.convex.objective)
    final = number(entry.convex.global_bound)
    if not math.isfinite(final):
        final = number(entry.convex.dual_bound)

    def share(value: float) -> float:
        return 100.0 * (value - reached) / abs(reached) if reached else math.nan

    convex = [p for p in points if p.method == "convex"]
    above = [(p.seconds, share(p.objective)) for p in convex if math.isfinite(p.objective)]
    # A bound that a later, more thorough search refuted was none; of the others, the best one is known.
    bounds = [(p.seconds, share(min(p.bound, final))) for p in convex if math.isfinite(p.bound)]
    best = itertools.accumulate((value for _, value in bounds), max)
    below = [(seconds, value) for (seconds, _), value in zip(bounds, best, strict=True)]
    above = above or [(0.0, 0.0)]
    if math.isfinite(final) and not below:
        below = [(above[-1][0], share(final))]
    rival = _best_so_far([(p.seconds, share(p.objective)) for p in points if p.method == "nonconvex"])
    if entry.nonconvex is not None and not rival and math.isfinite(number(entry.nonconvex.objective)):
        rival = [(above[-1][0], share(number(entry.nonconvex.objective)))]
    look: dict[str, Any] = {"color": COLOURS["convex"], "markersize": 3.5, "linewidth": 1.4}
    axes.plot(*zip(*above, strict=True), marker="o", label="convex", **look)
    if below:
        axes.step(
            *zip(*below, strict=True), where="post", linestyle="--", label="lower bound", color="black", linewidth=1.2
        )
    if rival:
        axes.plot(*zip(*rival, strict=True), label=LABELS["nonconvex"], color=COLOURS["nonconvex"], linewidth=1.4)
        axes.plot(*rival[-1], marker="s", markersize=4, color=COLOURS["nonconvex"])
    axes.axhline(0.0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_title(f"layer {entry.layer}", fontsize=10)
    axes.set_xlabel("seconds", fontsize=8)
    axes.set_xlim(left=0.0)
    axes.locator_params(axis="x", nbins=3)
    axes.tick_params(labelsize=8)
    tidy(axes)
    ends = [0.0, *(pair[-1][1] for pair in (above, below, rival) if pair)]
    # The last points, and as much of the way to them as leaves these apart.
    reach = max(max(map(abs, ends)), 1e-4)
    lowest = min([0.0, *(value for _, value in below)])
    highest = max([0.0, *(value for _, value in above)])
    return max(lowest, -_CUT * reach), min(max(highest, max(ends)), _CUT * reach)


def _best_so_far(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the least value up to each time: ordinary training starts anew with other learning rates."""
    finite = sorted((seconds, value) for seconds, value in points if math.isfinite(value))
    least = itertools.accumulate((value for _, value in finite), min)
    return [(seconds, value) for (seconds, _), value in zip(finite, least, strict=True)]


# The table.


def verdicts(summary: RunSummary) -> str:
    """Return a row a layer: objectives, bound, accuracies with 95 % intervals, and whether chance explains them."""
    same, n_test = comparable(summary), summary.data.get("n_test")
    head = "".join(f'<th scope="col">{link(*heading)}</th>' for heading in HEADINGS)
    rows = []
    for entry in summary.layers:
        cells = "".join(f"<td>{text(cell)}</td>" for cell in _cells(entry, same, n_test))
        rows.append(f'<tr><th scope="row">{entry.layer}</th>{cells}</tr>')
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Table of the layers">'
        f'<table class="numbers verdicts">\n<thead><tr>{head}</tr></thead>\n<tbody>{"".join(rows)}</tbody>'
        "</table></div>"
    )


def _cells(entry: LayerSummary, same: bool, n_test: int | None) -> list[str]:
    convex, rival = entry.convex, entry.nonconvex
    ours, theirs = number(convex.objective), number(rival.objective if rival else None)
    bound, kind_ = number(convex.global_bound), convex.certificate
    known = kind_ in ("proved", "searched") and math.isfinite(ours - bound)
    gain = (theirs - ours) / abs(theirs) if same and theirs and math.isfinite(ours - theirs) else math.nan
    cells = [
        f"{ours:.6g}",
        f"{theirs:.6g}" if math.isfinite(theirs) else "-",
        percent(gain) if math.isfinite(gain) else "-",
        at_most(max(0.0, relative_gap(ours, bound))) if known else "-",
        str(kind_) if known else "own gates alone",
        accuracy_words(convex.test_accuracy, n_test),
        accuracy_words(rival.test_accuracy, n_test) if rival else "-",
    ]
    alone = (rival.only_convex_right, rival.only_nonconvex_right) if rival else (None, None)
    if rival is None or None in alone:
        return [*cells, "-", "-"]
    return [*cells, f"{alone[0]} : {alone[1]}", percent(chance_of(rival))]


def in_words(summary: RunSummary) -> str:
    """Return what the table says of the last layer, as sentences, and what is to be said of any other."""
    same = comparable(summary)
    last = summary.layers[-1]
    n_test = int(summary.data["n_test"])
    said = [
        " ".join(comparison(last, n_test, same, kind(summary))),
        " ".join(certainty(last, same, bounded_networks(summary, last.convex))),
    ]
    body = "".join(f"<p>{text(sentence)}</p>\n" for sentence in said)
    others = [text(line) for entry in summary.layers[:-1] for line in _refuted(entry, same)]
    return f"<h3>Layer {last.layer} in words</h3>\n{body}" + "".join(f"<p>{line}</p>\n" for line in others)


def _refuted(entry: LayerSummary, same: bool) -> list[str]:
    """Return what is wrong with the bound of a layer that a rival ended below."""
    return [f"Layer {entry.layer}: {said}" for said in certainty(entry, same) if "ended below this bound" in said]


# Anchors, words and what they mean here.
DEFINITIONS = {
    "objective": (
        "Objective",
        "What a layer's training minimises: the loss summed over the training images plus lambda times the norm of the "
        "weights (Eq. 1). Each layer has a lambda and inputs of its own: objectives of two layers can't be compared.",
    ),
    "gate": (
        "Gate",
        "A direction that says on which patches of the images a neuron is active. With gates fixed, training is "
        "convex; priced gates are found by the optimisation itself.",
    ),
    "bound": (
        "Lower bound, gap",
        "A number that no network of the kind in question can go below, however wide; the gap is the share of the "
        "objective that lies above it.",
    ),
    "certificate": (
        "Proved, searched",
        "A proved bound holds. A searched one holds if no direction was missed that is worse than those it rests on. "
        "Over its own gates, a layer's bound is always proved.",
    ),
    "interval": (
        "Interval",
        "In brackets, between which values the accuracy on all such images lies with 95 % confidence: Wilson's "
        "interval, from these test images.",
    ),
    "alone": (
        "Right alone, by chance",
        "Test images that one network alone has right (convex : non-convex), and how often chance would split as many "
        "at least as unevenly (two-sided sign test).",
    ),
    "reliability": (
        "Confidence, reliability",
        "The probability that a network's outputs give to the class it names: of the squared loss, the nearest "
        "probabilities to the outputs. A reliable network is right as often as it says.",
    ),
    "gradcam": (
        "Grad-CAM",
        "Where feature maps that raise the output for a class are active (arXiv:1610.02391). It is as fine as the maps "
        "of its layer, and enlarged to the image.",
    ),
}


def definitions() -> str:
    """Return the meaning of words, each where the page's links lead."""
    return "".join(
        f'<div id="{anchor}"><dt>{text(name)}</dt><dd>{text(said)}</dd></div>'
        for anchor, (name, said) in DEFINITIONS.items()
    )
