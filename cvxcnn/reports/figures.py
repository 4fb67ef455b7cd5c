"""The figures of a run by layer: objective with its bounds, and accuracy; ``FIGURES`` lists them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..drawing.style import (
    COLOURS,
    MARKERS,
    Target,
    in_lines,
    literal,
    logarithmic,
    new_figure,
    save_png,
    tidy,
)
from ..errors import InputError
from .bounds import bounded_networks, bounded_words
from .summary import UNJUDGED, ConvexNumbers, RunSummary, number
from .table import titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "RunFigure", "plot_accuracy", "plot_objective", "series"]

# Inches.
_WIDTH = 7.0
# Of a layer: how far methods are drawn from each other.
_DODGE = 0.1
_LOG_RANGE = 20.0


def series(summary: RunSummary, method: str, name: str, scale: float = 1.0) -> dict[int, float]:
    """Return a number of each layer that has it.

    Parameters
    ----------
    summary : RunSummary
    method : str
        "convex", "nonconvex" or another rival.
    name : str
        Of a field of the method's numbers.
    scale : float
        That it is multiplied by.

    Examples
    --------
    >>> layers = [{"layer": 1, "convex": {"test_accuracy": 0.5}}, {"layer": 2, "convex": {}}]
    >>> series(RunSummary.from_json({"layers": layers}), "convex", "test_accuracy", 100.0)
    {1: 50.0}
    """
    found = {layer: scale * number(getattr(numbers, name)) for layer, own, numbers in summary.rows() if own == method}
    return {layer: value for layer, value in found.items() if math.isfinite(value)}


def _dodges(summary: RunSummary, name: str) -> dict[str, float]:
    """Return how far from the middle of a layer each method that has a number is drawn."""
    methods = [method for method in summary.labels() if series(summary, method, name)]
    return {method: _DODGE * (place - (len(methods) - 1) / 2) for place, method in enumerate(methods)}


def _panels(summary: RunSummary, title: str, heights: Sequence[float], width: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of its own, outside pyplot's, with panels one above the other and one tick a layer."""
    layers = sorted({layer for layer, _, _ in summary.rows()})
    if not layers:
        raise InputError("summary has no finished layer to draw. Train one layer at least.")
    figure = new_figure(width, sum(heights))
    panels: list[Axes] = list(figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0])
    for axes in panels:
        tidy(axes)
    panels[0].set_title(literal(titled(summary, title)), fontsize=12)
    panels[-1].set_xlabel("layer")
    panels[-1].set_xticks(layers)
    panels[-1].set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    figure.align_ylabels(panels)
    return figure, panels


def _save(figure: Figure, axes: Axes, path: Target) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if len(labels) > 1 and figure.get_figwidth() >= _WIDTH else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    save_png(figure, path)


@dataclass(frozen=True)
class _Bound:
    """The strongest lower bound of a layer: over networks with any gates where there is one."""

    value: float
    overall: bool
    label: str


def _bound(summary: RunSummary, convex: ConvexNumbers) -> _Bound | None:
    overall, sampled = number(convex.global_bound), number(convex.dual_bound)
    if math.isfinite(overall):
        words = bounded_words(bounded_networks(summary, convex))
        return _Bound(overall, True, in_lines(f"lower bound over {words} ({convex.certificate})"))
    return _Bound(sampled, False, "lower bound over the gates at hand") if math.isfinite(sampled) else None


def plot_objective(summary: RunSummary, path: Target, *, width: float = _WIDTH) -> None:
    """Draw objective.png: Eq. 1 of each layer, convex and in other ways, with the lower bound.

    Above, the objectives themselves, on a logarithmic axis if the largest is more than twenty times the
    smallest; below, how far they are above the bound, in per cent of it. A bound over the gates at hand bounds
    the convex program alone, so there the non-convex objective is left out below.

    Parameters
    ----------
    summary : RunSummary
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
    known = {entry.layer: _bound(summary, entry.convex) for entry in summary.layers}
    bounds = {layer: bound for layer, bound in known.items() if bound}
    figure, panels = _panels(summary, "training objective of each layer", (3.8, 2.2) if bounds else (4.6,), width)
    axes = panels[0]
    axes.set_ylabel("training objective (Eq. 1)")
    drawn = [bound.value for bound in bounds.values()]
    labels, dodges = summary.labels(), _dodges(summary, "objective")
    for method in dodges:
        values = series(summary, method, "objective")
        drawn += values.values()
        places = [layer + dodges[method] for layer in values]
        label = f"{labels[method]} (another objective)" if method in UNJUDGED else labels[method]
        look: dict[str, Any] = {"color": COLOURS[method], "marker": MARKERS[method], "markersize": 7}
        # A line would compare the objectives of layers, which have no lambda in common.
        axes.plot(places, list(values.values()), label=label, linestyle=_line(summary), linewidth=1, **look)
        excess = {
            layer: 100.0 * (values[layer] - bound.value) / abs(bound.value)
            for layer, bound in bounds.items()
            if layer in values and bound.value != 0 and (bound.overall or method == "convex") and method not in UNJUDGED
        }
        if excess:
            _draw_excess(panels[-1], excess, dodges[method], look)
    _draw_bounds(axes, bounds, max(dodges.values(), default=0.0) + _DODGE)
    if min(drawn, default=0.0) > 0 and max(drawn) > _LOG_RANGE * min(drawn):
        logarithmic(axes)
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.margins(y=0.12)
    if bounds:
        panels[-1].set_ylabel("above bound (%)")
        panels[-1].axhline(0.0, color="black", linewidth=1)
        panels[-1].margins(y=0.2)
    _save(figure, axes, path)


def _line(summary: RunSummary) -> str:
    """Return the line between the objectives of layers: none where their lambdas differ."""
    return "-" if len({entry.reg for entry in summary.layers}) == 1 else "none"


def _draw_excess(axes: Axes, excess: Mapping[int, float], dodge: float, look: Mapping[str, Any]) -> None:
    """Draw how far a method is above each layer's bound, with the numbers beside the marks, away from the middle."""
    places, values = [layer + dodge for layer in excess], list(excess.values())
    axes.plot(places, values, linewidth=1, linestyle="none", **look)
    axes.vlines(places, 0.0, values, color=look["color"], linewidth=2)
    left = dodge < 0
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            f"{value:.2g}",
            (place, value),
            xytext=(-7 if left else 7, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="bottom",
            fontsize=9,
        )


def _draw_bounds(axes: Axes, bounds: Mapping[int, _Bound], half: float) -> None:
    for label in dict.fromkeys(bound.label for bound in bounds.values()):
        shown = {layer: bound for layer, bound in bounds.items() if bound.label == label}
        axes.hlines(
            [bound.value for bound in shown.values()],
            [layer - half for layer in shown],
            [layer + half for layer in shown],
            # Kinds differ in strength, so they differ in their marks.
            color="black" if next(iter(shown.values())).overall else "0.55",
            linewidth=2,
            label=label,
        )


def plot_accuracy(summary: RunSummary, path: Target, *, width: float = _WIDTH) -> None:
    """Draw accuracy.png: training and test accuracy of each layer in per cent, of all trainings.

    Parameters
    ----------
    summary : RunSummary
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
    figure, (axes,) = _panels(summary, "accuracy after each layer", (4.6,), width)
    axes.set_ylabel("correct images (%)")
    drawn: list[float] = []
    labels, dodges = summary.labels(), _dodges(summary, "test_accuracy")
    for method in dodges:
        for part, style, fill in (("train", "--", "white"), ("test", "-", COLOURS[method])):
            values = series(summary, method, f"{part}_accuracy", 100.0)
            if values:
                drawn += values.values()
                axes.plot(
                    [layer + dodges[method] for layer in values],
                    list(values.values()),
                    linestyle=style,
                    linewidth=1.2,
                    marker=MARKERS[method],
                    markersize=7,
                    markerfacecolor=fill,
                    color=COLOURS[method],
                    label=f"{labels[method]}, {'training' if part == 'train' else 'test'} images",
                )
    if drawn:
        spread = max(2.0, max(drawn) - min(drawn))
        axes.set_ylim(max(-1.0, min(drawn) - 0.15 * spread), min(101.0, max(drawn) + 0.15 * spread))
    axes.ticklabel_format(axis="y", useOffset=False)
    _save(figure, axes, path)


class Draw(Protocol):
    """Draws a figure of a run; its width is in inches of 150 pixels, and has a default."""

    def __call__(self, summary: RunSummary, path: Target, *, width: float = ...) -> None:
        """Draw it as a PNG into a file or an open binary file."""


@dataclass(frozen=True)
class RunFigure:
    """A figure of a run by layer, in a file of its own and on the page.

    Attributes
    ----------
    file : str
        Its name in the folder of the run.
    draw : callable
        Such as ``plot_objective``.
    caption : str
        Below it on the page.
    alt : callable
        Says, of a run, what is to be seen: for those who don't see it.
    """

    file: str
    draw: Draw
    caption: str
    alt: Callable[[RunSummary], str]


def _said(name: str, scale: float = 1.0) -> Callable[[RunSummary], str]:
    """Return what lists a number by layer in words."""

    def alt(summary: RunSummary) -> str:
        values = {label: series(summary, method, name, scale).values() for method, label in summary.labels().items()}
        said = [f"{label} {', '.join(f'{value:.4g}' for value in found)}" for label, found in values.items() if found]
        return f"{name.replace('_', ' ').capitalize()} by layer: {'; '.join(said)}."

    return alt


# A list, so that a script may append to it; a figure of the package has its line here.
FIGURES: list[RunFigure] = [
    RunFigure(
        "objective.png",
        plot_objective,
        "Training objective; below, how far it is above the bound, in per cent of the bound (gaps elsewhere are in per "
        "cent of the objective).",
        _said("objective"),
    ),
    RunFigure(
        "accuracy.png",
        plot_accuracy,
        "Training and test accuracy, in per cent.",
        _said("test_accuracy", 100.0),
    ),
]
