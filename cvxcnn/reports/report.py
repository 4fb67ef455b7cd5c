"""Tables, files and figures from the summary of a training run: convex blocks beside the same ones trained in torch."""

from __future__ import annotations

import csv
import io
import math
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import InputError
from ..penalties import get_penalty
from ..persistence import write_output
from ..pricing.certificate import NETWORKS, beyond, networks_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..models.path import RegPath

__all__ = [
    "METRICS",
    "bound_notes",
    "bounded_networks",
    "bounded_words",
    "plot_accuracy",
    "plot_objective",
    "plot_path",
    "render_text",
    "results_table",
    "write_metrics",
]

METHODS = ("convex", "nonconvex")
LABELS = {"convex": "convex", "nonconvex": "non-convex"}

# The columns of metrics.csv after layer and method.
METRICS = (
    "objective",
    "dual_bound",
    "relative_gap",
    "global_bound",
    "global_gap",
    "certificate",
    "networks",
    "status",
    "solver",
    "n_neurons",
    "train_accuracy",
    "test_accuracy",
    "seconds",
)

_KINDS = {
    "proved": "proved: {}, with any number of neurons, are at or above the bound of their layer.",
    "searched": (
        "searched: {}, with any number of neurons, are at or above the bound of their layer, if the search met the "
        "worst direction: evidence, not proof."
    ),
}
# Of summaries that don't say which.
_SOME_NETWORKS = "all networks of the kind that is trained"

# Blue and vermilion of Okabe and Ito, which readers with any colour vision tell apart; markers differ too.
_COLOURS = {"convex": "#0072B2", "nonconvex": "#D55E00"}
_MARKERS = {"convex": "o", "nonconvex": "s"}
_DODGE = {"convex": -0.05, "nonconvex": 0.05}
_BOUND_HALF = 0.15
_MISSING = "-"
_NAME_WIDTH = 40
_LONG_NAME = 24
_HEADING_WIDTH = 24
_LOG_RANGE = 20.0
_DPI = 150
# Characters of a line of a legend.
_LABEL_WIDTH = 44
_WIDTH = 7.0


def _rows(summary: Mapping[str, Any]) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Yield (layer, method, numbers) for what was run."""
    if not isinstance(summary, Mapping) or not isinstance(summary.get("layers"), list):
        raise InputError(
            'summary must be a dict with a list "layers", as in summary.json; '
            f"got {type(summary).__name__} {summary!r:.60}."
        )
    for entry in summary["layers"]:
        for method in METHODS:
            if entry.get(method):
                yield entry["layer"], method, entry[method]


def _name(summary: Mapping[str, Any]) -> str:
    # Names of files may hold bytes that are no characters, and line breaks.
    name = str(summary.get("data", {}).get("name", "data")).encode("utf-8", "backslashreplace").decode("utf-8")
    name = " ".join(name.split())
    return name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 3] + "..."


def _title(summary: Mapping[str, Any], text: str) -> str:
    name = _name(summary)
    return f"{name}\n{text}" if len(name) > _LONG_NAME else f"{name}: {text}"


def _number(value: Any) -> float:
    """Return a float, NaN for what is missing."""
    return float("nan") if value is None else float(value)


def _format(value: Any, pattern: str) -> str:
    number = _number(value)
    return format(number, pattern) if math.isfinite(number) else _MISSING


def bounded_networks(summary: Mapping[str, Any], values: Mapping[str, Any]) -> str | None:
    """Return of which networks the bound of a layer is: a key of ``certificate.NETWORKS``.

    Parameters
    ----------
    summary : dict
        As in ``summary.json``.
    values : dict
        The layer's "convex".

    Returns
    -------
    str or None
        From the settings where the layer doesn't say, as in the runs of older versions; None where they don't either.

    Examples
    --------
    >>> settings = {"penalty": "group", "activation": "relu", "pool_cells": 2}
    >>> bounded_networks({"settings": settings, "data": {"n_classes": 10}}, {}), bounded_networks({}, {})
    ('separate', None)
    """
    if values.get("networks") in NETWORKS:
        return str(values["networks"])
    try:
        settings, outputs = summary["settings"], int(summary["data"]["n_classes"])
        pairs = int(settings["pool_cells"]) ** 2 * outputs
        return networks_of(settings["activation"], get_penalty(settings["penalty"]).separable, pairs)
    except (KeyError, TypeError, ValueError, InputError):
        return None


def bounded_words(networks: str | None) -> str:
    """Return the words of ``certificate.NETWORKS``, or those for networks that aren't known."""
    return NETWORKS[networks] if networks else _SOME_NETWORKS


def _certified(summary: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield (kind, networks) of each bound over more than a layer's own gates."""
    for _, _, values in _rows(summary):
        if values.get("certificate") in _KINDS:
            yield values["certificate"], bounded_networks(summary, values)


def _bound_heading(summary: Mapping[str, Any]) -> str:
    """Return "bound over" and the networks that all bounds are of; of several, each note says which."""
    found = {networks for _, networks in _certified(summary)}
    return f"Bound over {bounded_words(found.pop())}" if len(found) == 1 else "Bound over networks"


def bound_notes(summary: Mapping[str, Any]) -> list[str]:
    """Return what each kind of bound in a summary says: of which networks, how it is known, what is beyond it.

    Examples
    --------
    >>> convex = {"certificate": "proved", "networks": "all"}
    >>> bound_notes({"layers": [{"layer": 1, "convex": convex}]})
    ['proved: all networks, with any number of neurons, are at or above the bound of their layer.']
    """
    found = dict.fromkeys(sorted(_certified(summary), key=lambda pair: list(_KINDS).index(pair[0])))
    notes = [_KINDS[kind].format(bounded_words(networks)) for kind, networks in found]
    others = dict.fromkeys(beyond(networks) for _, networks in found)
    return notes + [f"{other[0].upper()}{other[1:]}." for other in others if other]


def results_table(summary: Mapping[str, Any]) -> Table:
    """Return a table with each layer's convex block above the same block trained in torch.

    Parameters
    ----------
    summary : dict
        As in ``summary.json``; ``nonconvex`` and the bound over networks may be missing or None.

    Raises
    ------
    InputError
        If there is no list of layers.

    Examples
    --------
    >>> convex = {"objective": 9.4, "dual_bound": 9.3, "relative_gap": 0.01, "n_neurons": 7, "seconds": 1.0,
    ...           "train_accuracy": 0.9, "test_accuracy": 0.8, "global_bound": 9.2, "certificate": "proved"}
    >>> table = results_table({"data": {"name": "toy"}, "layers": [{"layer": 1, "convex": convex}]})
    >>> table.row_count, len(table.columns)
    (1, 10)
    """
    rows = list(_rows(summary))
    notes = bound_notes(summary)
    table = Table(
        title=Text(_title(summary, "training objective (Eq. 1) and accuracy by layer")),
        caption=Text("\n".join(notes)) if notes else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        # The box puts a space between columns; more would not leave room for them in 80 characters.
        padding=0,
    )
    table.add_column("Layer", justify="right", no_wrap=True)
    table.add_column("Training", no_wrap=True)
    for heading in ("Objective", "Dual\nbound", "Rel.\ngap"):
        table.add_column(heading, justify="right", no_wrap=True)
    # Long names of networks have no room beside numbers: the notes have them.
    heading = _bound_heading(summary)
    short = heading if len(heading) <= _HEADING_WIDTH else "Bound over networks named below"
    table.add_column(short.replace("over ", "over\n"), justify="right", min_width=len("(searched)"))
    for heading in ("Train\n%", "Test\n%", "Neu-\nrons", "Time\ns"):
        table.add_column(heading, justify="right", no_wrap=True)
    for index, (layer, method, values) in enumerate(rows):
        bound = _format(values.get("global_bound"), ".6g")
        if bound != _MISSING:
            bound += f" ({values['certificate']})"
        table.add_row(
            str(layer) if method == "convex" else "",
            LABELS[method],
            _format(values.get("objective"), ".6g"),
            _format(values.get("dual_bound"), ".6g"),
            _format(values.get("relative_gap"), ".1e"),
            bound,
            _format(100 * _number(values.get("train_accuracy")), ".1f"),
            _format(100 * _number(values.get("test_accuracy")), ".1f"),
            _format(values.get("n_neurons"), ".0f"),
            _format(values.get("seconds"), ".1f"),
            end_section=index + 1 == len(rows) or rows[index + 1][0] != layer,
        )
    return table


def render_text(table: Table, width: int = 100) -> str:
    """Return a table as plain text, for files and logs.

    Parameters
    ----------
    table : rich.table.Table
    width : int
        Characters a line, at most.

    Examples
    --------
    >>> table = Table(box=None)
    >>> table.add_column("layer")
    >>> table.add_row("1")
    >>> render_text(table, 10).split()
    ['layer', '1']
    """
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def write_metrics(summary: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write metrics.csv: a header, then one row for each layer and method.

    The columns are layer, method ("convex" or "nonconvex") and ``METRICS``; accuracies are in [0, 1], numbers
    in full precision, and missing ones empty.

    Parameters
    ----------
    summary : dict
        As in ``summary.json``.
    path : str or path
        Written over if it is there.

    Raises
    ------
    InputError
        If there is no list of layers.
    OSError
        If the file can't be written.
    """
    rows = list(_rows(summary))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["layer", "method", *METRICS])
        for layer, method, values in rows:
            writer.writerow([layer, method, *(values.get(key) for key in METRICS)])


def _plain(text: str) -> str:
    # Figures read $...$ as mathematics; names of files don't mean it.
    return text.replace("$", r"\$")


def import_matplotlib() -> None:
    """Import matplotlib, whatever backend the environment names: none is used here.

    Notebooks hand the name of theirs to each process that they start; where it isn't installed, importing matplotlib
    fails for that alone. A backend that can be used is set as matplotlib would.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of its own, outside pyplot's.

    Parameters
    ----------
    width, height : float
        Inches of 150 pixels.
    """
    import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: str | os.PathLike[str] | IO[bytes]) -> None:
    """Write a figure of ``new_figure`` to a file, a pipe or a device, or into an open binary file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    if isinstance(path, (str, os.PathLike)):
        write_output(Path(path), buffer.getvalue())
    else:
        path.write(buffer.getvalue())


def _figure(
    summary: Mapping[str, Any], title: str, heights: Sequence[float], width: float
) -> tuple[Figure, list[Axes]]:
    """Return a figure of its own, outside pyplot's, with panels one above the other and one tick a layer."""
    layers = sorted({layer for layer, _, _ in _rows(summary)})
    if not layers:
        raise InputError("summary has no finished layer to draw. Train one layer at least.")
    figure = new_figure(width, sum(heights))
    panels: list[Axes] = list(figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0])
    for axes in panels:
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_title(_plain(_title(summary, title)), fontsize=12)
    panels[-1].set_xlabel("layer")
    panels[-1].set_xticks(layers)
    panels[-1].set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    figure.align_ylabels(panels)
    return figure, panels


def _series(summary: Mapping[str, Any], method: str, key: str, scale: float = 1.0) -> tuple[list[int], list[float]]:
    """Return the layers that have this number, and the numbers."""
    found = [(layer, scale * _number(values.get(key))) for layer, run, values in _rows(summary) if run == method]
    found = [pair for pair in found if math.isfinite(pair[1])]
    return [layer for layer, _ in found], [value for _, value in found]


@dataclass(frozen=True)
class _Bound:
    """The strongest lower bound of a layer: over networks with any gates where there is one."""

    layer: int
    value: float
    overall: bool
    label: str


def _bounds(summary: Mapping[str, Any]) -> list[_Bound]:
    bounds = []
    for layer, method, values in _rows(summary):
        overall, sampled = _number(values.get("global_bound")), _number(values.get("dual_bound"))
        if method == "convex" and math.isfinite(overall):
            words = bounded_words(bounded_networks(summary, values))
            label = _label(f"lower bound over {words} ({values['certificate']})")
            bounds.append(_Bound(layer, overall, True, label))
        elif method == "convex" and math.isfinite(sampled):
            bounds.append(_Bound(layer, sampled, False, "lower bound over the gates at hand"))
    return bounds


def _label(words: str) -> str:
    return textwrap.fill(words, _LABEL_WIDTH)


def _save(figure: Figure, axes: Axes, path: str | os.PathLike[str] | IO[bytes]) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if len(labels) > 1 and figure.get_figwidth() >= _WIDTH else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    save_png(figure, path)


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def plot_objective(
    summary: Mapping[str, Any], path: str | os.PathLike[str] | IO[bytes], *, width: float = _WIDTH
) -> None:
    """Draw objective.png: Eq. 1 of each layer, convex and non-convex, with the lower bound.

    Above, the objectives themselves, on a logarithmic axis if the largest is more than twenty times the
    smallest; below, how far they are above the bound, in per cent of it. A bound over the gates at hand bounds
    the convex program alone, so there the non-convex objective is left out below.

    Parameters
    ----------
    summary : dict
        As in ``summary.json``.
    path : str, path or binary file
        A PNG, written over if it is there.
    width : float
        Inches of 150 pixels.

    Raises
    ------
    InputError
        If there is no finished layer.
    OSError
        If the file can't be written.
    """
    bounds = _bounds(summary)
    figure, panels = _figure(summary, "training objective of each layer", (3.8, 2.2) if bounds else (4.6,), width)
    axes = panels[0]
    axes.set_ylabel("training objective (Eq. 1)")
    drawn = [bound.value for bound in bounds]
    for method in METHODS:
        layers, values = _series(summary, method, "objective")
        if not layers:
            continue
        drawn += values
        places = [layer + _DODGE[method] for layer in layers]
        look: dict[str, Any] = {"color": _COLOURS[method], "marker": _MARKERS[method], "markersize": 7, "linewidth": 1}
        axes.plot(places, values, label=LABELS[method], **look)
        found = dict(zip(layers, values, strict=True))
        compared = [b for b in bounds if b.layer in found and b.value != 0 and (b.overall or method == "convex")]
        if compared:
            places = [bound.layer + _DODGE[method] for bound in compared]
            excess = [100.0 * (found[bound.layer] - bound.value) / abs(bound.value) for bound in compared]
            panels[-1].plot(places, excess, **{**look, "linestyle": "none"})
            panels[-1].vlines(places, 0.0, excess, color=look["color"], linewidth=2)
            for place, value in zip(places, excess, strict=True):
                left = method == "convex"
                panels[-1].annotate(
                    f"{value:.2g}",
                    (place, value),
                    xytext=(-7 if left else 7, 0),
                    textcoords="offset points",
                    ha="right" if left else "left",
                    va="bottom",
                    fontsize=9,
                )
    for label in dict.fromkeys(bound.label for bound in bounds):
        shown = [bound for bound in bounds if bound.label == label]
        axes.hlines(
            [bound.value for bound in shown],
            [bound.layer - _BOUND_HALF for bound in shown],
            [bound.layer + _BOUND_HALF for bound in shown],
            # Kinds differ in strength, so they differ in their marks.
            color="black" if shown[0].overall else "0.55",
            linewidth=2,
            label=label,
        )
    if min(drawn, default=0.0) > 0 and max(drawn) > _LOG_RANGE * min(drawn):
        _logarithmic(axes)
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.margins(y=0.12)
    if bounds:
        panels[-1].set_ylabel("above bound (%)")
        panels[-1].axhline(0.0, color="black", linewidth=1)
        panels[-1].margins(y=0.2)
    _save(figure, axes, path)


def plot_accuracy(
    summary: Mapping[str, Any], path: str | os.PathLike[str] | IO[bytes], *, width: float = _WIDTH
) -> None:
    """Draw accuracy.png: training and test accuracy of each layer in per cent, convex and non-convex.

    Parameters
    ----------
    summary : dict
        As in ``summary.json``; accuracies in [0, 1].
    path : str, path or binary file
        A PNG, written over if it is there.
    width : float
        Inches of 150 pixels.

    Raises
    ------
    InputError
        If there is no finished layer.
    OSError
        If the file can't be written.
    """
    figure, (axes,) = _figure(summary, "accuracy after each layer", (4.6,), width)
    axes.set_ylabel("correct images (%)")
    drawn: list[float] = []
    for method in METHODS:
        for part, style, fill in (("train", "--", "white"), ("test", "-", _COLOURS[method])):
            layers, values = _series(summary, method, f"{part}_accuracy", 100.0)
            if layers:
                drawn += values
                axes.plot(
                    [layer + _DODGE[method] for layer in layers],
                    values,
                    linestyle=style,
                    linewidth=1.2,
                    marker=_MARKERS[method],
                    markersize=7,
                    markerfacecolor=fill,
                    color=_COLOURS[method],
                    label=f"{LABELS[method]}, {'training' if part == 'train' else 'test'} images",
                )
    if drawn:
        spread = max(2.0, max(drawn) - min(drawn))
        axes.set_ylim(max(-1.0, min(drawn) - 0.15 * spread), min(101.0, max(drawn) + 0.15 * spread))
    axes.ticklabel_format(axis="y", useOffset=False)
    _save(figure, axes, path)


def plot_path(path: RegPath, target: str | os.PathLike[str]) -> None:
    """Draw a regularisation path against reg, on a logarithmic axis: objective and bound, gaps, neurons, accuracy.

    Where there is no accuracy, the last panel has the mean squared error.

    Parameters
    ----------
    path : RegPath
    target : str or path
        A PNG, 1,050 pixels wide, written over if it is there.

    Raises
    ------
    OSError
        If the file can't be written.
    """
    figure = new_figure(7.0, 9.0)
    panels: list[Axes] = list(figure.subplots(4, sharex=True, height_ratios=(3, 2, 2, 3)))
    for axes in panels:
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    values, gaps, counts, shares = panels
    values.set_title("regularisation path", fontsize=12)
    values.set_xscale("log")
    look: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1}
    convex, other = _COLOURS["convex"], _COLOURS["nonconvex"]
    values.plot(path.regs, path.objective, color=convex, label="objective", **look)
    values.set_ylabel("training objective")
    overall = np.isfinite(path.global_bound)
    # A zero gap has no place on a logarithmic axis; rounding is at least this large.
    gaps.plot(path.regs, np.maximum(path.relative_gap, 1e-16), color=convex, label="over the gates at hand", **look)
    if overall.any():
        kind = " and ".join(sorted({kind for kind in path.kinds if kind != "none"}))
        words = bounded_words(path.networks[0])
        bounds, regs = path.global_bound[overall], path.regs[overall]
        label = _label(f"bound over {words} ({kind})")
        values.plot(regs, bounds, color="black", marker="_", linestyle="none", label=label)
        label = _label(f"over {words} ({kind})")
        gaps.plot(regs, np.maximum(path.global_gap[overall], 1e-16), color="black", label=label, **look)
    gaps.set_yscale("log")
    gaps.set_ylabel("relative gap")
    counts.plot(path.regs, path.n_neurons, color=convex, **look)
    counts.set_ylabel("neurons")
    parts = {"training": (path.train_accuracy, path.train_error)}
    if np.isfinite(path.validation_error).any():
        parts["validation"] = (path.validation_accuracy, path.validation_error)
    coded = bool(np.isfinite(path.train_accuracy).all())
    for (name, (accuracy, error)), colour in zip(parts.items(), (convex, other), strict=False):
        shares.plot(path.regs, 100 * accuracy if coded else error, color=colour, label=f"{name} images", **look)
    shares.set_ylabel("correct images (%)" if coded else "mean squared error")
    shares.set_xlabel("reg")
    figure.align_ylabels(panels)
    for axes in (values, gaps, shares):
        axes.legend(frameon=False, fontsize=9)
    save_png(figure, target)
