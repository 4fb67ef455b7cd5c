"""The parts of report.html, each as a piece of HTML; everything that comes from outside is escaped."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..activations import get_activation
from ..activations.neurons import Neurons
from ..core.text import printable
from ..drawing.kernels import data_uri
from ..drawing.style import LABELS
from ..models.block import ConvexConvBlock
from ..models.stack import LayerwiseCNN
from .bounds import bound_heading, bound_notes
from .figures import FIGURES
from .history import Point
from .metrics import METRICS, decimal
from .page_figures import WIDTH, Tile, filter_tiles, gaps, input_norms, plot_gaps, shares
from .summary import UNJUDGED, RunSummary
from .words import percent

__all__ = ["convergence", "exciting", "explanations", "filters", "limits", "overview", "results", "settings"]

# Filters that are shown of a layer.
MOST_FILTERS = 18
# Pixels of a figure of `explain` for each pixel on a screen, at most: its text is small, so it may be scrolled.
DENSITY = 150 / 85


def text(value: Any) -> str:
    """Return a value as HTML text."""
    return escape(printable(str(value)))


def image(png: bytes, alt: str, extra: str = "") -> str:
    """Return a picture that is inside the page."""
    width, height = _size(png)
    return f'<img src="{data_uri(png)}" alt="{text(alt)}" width="{width}" height="{height}"{extra}>'


def _size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as picture:
        return picture.size


def _figure(png: bytes, alt: str, caption: str) -> str:
    return f"<figure>{image(png, alt)}<figcaption>{text(caption)}</figcaption></figure>"


def _wide(png: bytes, alt: str, caption: str) -> str:
    """Return a figure that scrolls sideways where the screen is narrower than its text needs."""
    inside = image(png, alt, f' style="width:{round(_size(png)[0] / DENSITY)}px"')
    label = f'role="region" tabindex="0" aria-label="{text(caption)}"'
    return f'<figure><div class="scroll" {label}>{inside}</div><figcaption>{text(caption)}</figcaption></figure>'


LIMITS = (
    "Every bound is of one layer, on the inputs that the layers below hand to it and with the same architecture and "
    "penalty: it says nothing of all layers together. Objectives and bounds over a layer's own gates are recomputed in "
    "double precision from the saved weights, on all training images. Every training ran once, with one seed: "
    "another may give ordinary training another result. Bounds are on the training objective, not on test accuracy."
)


def limits() -> str:
    """Return what no number here says."""
    return f'<p class="note">{text(LIMITS)}</p>'


# The table.


def results(summary: RunSummary) -> str:
    """Return all numbers as a table: the columns of ``metrics.METRICS`` that have one here."""
    shown = [(metric, metric.page) for metric in METRICS if metric.page]
    bound = bound_heading(summary)
    labels = summary.labels()
    headings = ["Layer", "Training", *(column.heading.replace("{bound}", bound) for _, column in shown)]
    head = "".join(f'<th scope="col">{text(heading)}</th>' for heading in headings)
    groups: dict[int, list[str]] = {}
    for layer, method, numbers in summary.rows():
        cells = "".join(f"<td>{text(column.show(metric.of(numbers), numbers))}</td>" for metric, column in shown)
        first = f'<th scope="row">{layer}</th><th scope="row">{text(labels[method])}</th>'
        groups.setdefault(layer, []).append(f"<tr>{first}{cells}</tr>")
    body = "\n".join(f'<tbody class="group">{"".join(rows)}</tbody>' for rows in groups.values())
    notes = [f'<p class="note">{text(note)}</p>' for note in bound_notes(summary)]
    caption = "Gaps are relative to the objective, in per cent. The same numbers are in metrics.csv and summary.json."
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Table of all numbers">'
        '<table class="numbers">\n'
        f"<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n{body}\n</table></div>\n" + "\n".join(notes)
    )


# Figures.


def overview(summary: RunSummary) -> str:
    """Return the figures of a run by layer."""
    parts = []
    for figure in FIGURES:
        buffer = io.BytesIO()
        figure.draw(summary, buffer, width=WIDTH)
        parts.append(_figure(buffer.getvalue(), figure.alt(summary), figure.caption))
    return f'<div class="pair">{"".join(parts)}</div>'


def convergence(points: Sequence[Point]) -> str:
    """Return a figure of the gap against time for each layer."""
    figures = []
    for layer in sorted({point.layer for point in points}):
        own = [point for point in points if point.layer == layer]
        png = plot_gaps(own)
        if png is not None:
            figures.append(_figure(png, _gap_words(layer, own), f"Layer {layer}"))
    if not figures:
        return '<p class="note">No history was stored with this run.</p>'
    over = " or ".join(dict.fromkeys(point.bound_over for point in points if point.overall))
    note = (
        f"Convex: the gap to the bound over {over} that was known at that time, or to the final one where that is "
        "lower. Non-convex: its objective against the convex block's final bound, since it has none of its own. The "
        "time of the convex block includes the search for its bound. How far the bound can be trusted is said above."
        if over
        else "The gap to the bound over the gates at hand, which is proved; it says nothing of other gates."
    )
    return f'<p>{note}</p>\n<div class="pair">{"".join(figures)}</div>'


def _gap_words(layer: int, points: Sequence[Point]) -> str:
    said = [f"Gap of layer {layer} against time."]
    for method, name in LABELS.items():
        found = [] if method in UNJUDGED else gaps(points, method)
        if found:
            (start, first), (end, last) = found[0], found[-1]
            said.append(f"{name}: {percent(first)} at {start:.1f} s, {percent(last)} at {end:.1f} s.")
    return " ".join(said)


def filters(model: LayerwiseCNN, rivals: Mapping[str, Sequence[Neurons]], labels: Mapping[str, str]) -> str:
    """Return the filters of every layer as pictures, those that contribute most first, beside those of its rivals.

    Parameters
    ----------
    model : LayerwiseCNN
    rivals : mapping of str to sequence of Neurons
        What ordinary training made of each layer; none if it was left out.
    labels : mapping
        What each training is called.
    """
    classes = [str(name) for name in getattr(model, "extra_", {}).get("classes", ())]
    parts, above = [], np.arange(model.image_shape_[0])
    for layer, block in enumerate(model.blocks_, start=1):
        if layer > 1 and model.project is not None:
            above = np.arange(block.image_shape_[0])
        networks = {"convex": block.neurons_, **{name: found[layer - 1] for name, found in rivals.items()}}
        columns = [
            f"<div>{_tiles(labels.get(name, name), block, neurons, classes, above)}</div>"
            for name, neurons in networks.items()
        ]
        parts.append(f'<h3>Layer {layer}</h3>\n<div class="pair">{"".join(columns)}</div>')
        # The channels of the next layer, as the filters that hand their maps on are sorted here.
        order = np.argsort(-shares(block.neurons_), kind="stable")
        channel = {int(neuron): place for place, neuron in enumerate(model.handed_on(layer - 1).tolist())}
        above = np.array([channel[int(neuron)] for neuron in order if int(neuron) in channel], dtype=np.int64)
    kinds = dict.fromkeys(get_activation(block.activation).contribution for block in model.blocks_)
    note = (
        f"Sorted by contribution, the percentage below each: {' '.join(kinds)} "
        "Red entries are positive, blue ones negative (colour images: around grey), each filter on its own scale, "
        "without its bias. Filters of deeper layers have a kernel for every map of the convex layer before; shown is "
        "the strongest, with the number of that map's filter below"
        + (", or of the principal direction of its patches" if model.project is not None else "")
        + ". The picture below them has a row a filter and a column a map, the darker the larger the norm."
    )
    return f"<p>{text(note)}</p>\n" + "\n".join(parts)


def _tiles(
    label: str, block: ConvexConvBlock, neurons: Neurons, classes: Sequence[str], above: NDArray[np.int64]
) -> str:
    """Return the filters of a training of a layer, and below them how strongly they read each map."""
    order = np.argsort(-shares(neurons), kind="stable")
    order = order[shares(neurons)[order] > 0]
    shown = order[:MOST_FILTERS]
    tiles = [_tile(tile, number, classes, above) for number, tile in enumerate(filter_tiles(block, shown, neurons), 1)]
    heading = f"<h4>{text(label[:1].upper() + label[1:])}: {len(shown)} of {len(order)}</h4>"
    listed = f'{heading}\n<ul class="tiles">{"".join(tiles)}</ul>'
    channels = block.image_shape_[0]
    if channels in (1, 3) or not len(shown):
        return listed
    alt = f"Strength with which {len(shown)} {label} filters read {channels} input maps"
    return listed + image(input_norms(block, shown, above, neurons), alt, ' class="heat"')


def _tile(tile: Tile, number: int, classes: Sequence[str], above: np.ndarray) -> str:
    name = ""
    if tile.output is not None and tile.sign:
        label = classes[tile.output] if tile.output < len(classes) else str(tile.output)
        name = f"{'raises' if tile.sign > 0 else 'lowers'} {label}"
    source = "" if tile.channel is None else f" map {int(np.flatnonzero(above == tile.channel)[0]) + 1}"
    alt = f"Filter {number}: {percent(tile.share)} of the contributions"
    picture = image(tile.png, f"{alt}, {name}" if name else alt)
    lines = [part for part in (name, percent(tile.share), source.strip()) if part]
    return f"<li>{picture}{'<br>'.join(map(text, lines))}</li>"


def exciting(png: bytes | None) -> str:
    """Return the figure of the patches that excite neurons most; nothing in the folders of older versions."""
    if png is None:
        return ""
    said = (
        "Patches of training images that excite a neuron most, each from another image: all that it sees there. "
        "Of each layer the neurons that contribute most, with their share and the class that they move most; "
        "pale blue is beyond the edge of an image."
    )
    return f"<h3>What excites them</h3>\n{_wide(png, said, said)}"


def explanations(pictures: Mapping[str, bytes], found: Mapping[str, Any] | None) -> str:
    """Return the figures of `explain`, or the quick one of a training run.

    Parameters
    ----------
    pictures : mapping
        "explanations" and "sanity", or "quick"; whatever is there.
    found : mapping or None
        What is in explanations.json.
    """
    if found is not None and "explanations" in pictures:
        said = (
            f"Layer {found.get('layer')}: test images and the maps of {', '.join(map(str, found.get('methods', ())))}, "
            f"for {found.get('target')}."
        )
        side = found.get("resolution")
        if isinstance(side, list) and len(side) == 2:
            said += f" CAM and Grad-CAM lie over the image and are as fine as this layer's maps: {side[0]} x {side[1]}."
        for method, why in found.get("left_out", {}).items():
            said += f" Left out: {LABELS.get(method, method)}, for {why}."
        parts = [_wide(pictures["explanations"], f"Maps. {said}", said)]
        if "sanity" in pictures:
            caption = (
                "Sanity check: how alike the maps stay while layers are made random from the top. A map that explains "
                "what the network has learnt loses its likeness."
            )
            parts.append(_wide(pictures["sanity"], caption, caption))
        return "\n".join(parts)
    command = "<code>cvxcnn explain</code> with this folder adds all methods, their sparsity and a sanity check."
    if "quick" not in pictures:
        return f'<p class="note">No explanations yet: {command}</p>'
    said = (
        "Test images and maps for their true class, by the networks of the last layer; wrong predictions in red. "
        "Grad-CAM lies over the image, and is as fine as the maps of its layer, whose sides are in brackets."
    )
    return f'{_wide(pictures["quick"], said, said)}\n<p class="note">A first look; {command}</p>'


def settings(summary: RunSummary) -> str:
    """Return the settings of a run."""
    rows = []
    for name, value in (("date", summary.date), ("processor", summary.processor)):
        if value:
            rows.append(f"<div><dt>{name}</dt><dd>{text(value)}</dd></div>")
    for name, value in summary.settings.items():
        rows.append(f"<div><dt>{text(str(name).replace('_', ' '))}</dt><dd>{text(_setting(value))}</dd></div>")
    show = decimal(".6g")
    for entry in summary.layers:
        label = f"reg (lambda) of layer {entry.layer}"
        rows.append(f"<div><dt>{label}</dt><dd>{show(entry.reg, entry.convex)}</dd></div>")
    again = f"<p>To repeat it: <code>{text(summary.command)}</code></p>\n" if summary.command else ""
    return f'{again}<dl class="settings">{"".join(rows)}</dl>'


def _setting(value: Any) -> Any:
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else value
