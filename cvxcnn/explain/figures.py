"""Figures: maps of the convex network and its rivals side by side, their check, and what excites deep filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..drawing.style import COLOURS, LABELS, MARKERS, literal, new_figure, save_png, tidy
from ..errors import InputError
from .exciting import Exciting
from .sanity import SanityStep
from .sparsity import bootstrap_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["METHOD_NAMES", "plot_exciting", "plot_explanations", "plot_sanity"]

METHOD_NAMES = {
    "cam": "CAM",
    "gradcam": "Grad-CAM",
    "guided_gradcam": "Guided Grad-CAM",
    "gradient": "gradient",
    "deconvolution": "deconvolution",
    "guided_backprop": "guided backprop.",
}

# Methods whose maps are enlarged from feature maps, and how much of the image their least and largest values cover.
COARSE = ("cam", "gradcam")
_THINNEST, _THICKEST = 0.15, 0.85

# Inches.
_CELL = 1.05
_TEXT = 1.15
_HEAD, _FOOT = 0.95, 0.75
_NAME_LENGTH = 12
# Patches of a neuron that are beside one another, and the colour of what is no image.
_ABREAST = 3
_BEYOND = np.array([0.80, 0.87, 0.95])


def _picture(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an image (C, h, w) in [0, 1] as matplotlib shows it: colours, or the mean of channels in grey."""
    if len(image) == 3:
        return np.clip(image.transpose(1, 2, 0), 0.0, 1.0)
    return np.asarray(image.mean(axis=0))


def _short(name: str) -> str:
    return literal(name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 3] + "...")


def plot_explanations(
    images: NDArray[np.float64],
    labels: Sequence[int] | NDArray[np.int64],
    classes: Sequence[str],
    maps: Mapping[str, Mapping[str, NDArray[np.float64]]],
    predictions: Mapping[str, Sequence[int] | NDArray[np.int64]],
    path: str | IO[bytes],
    *,
    title: str = "",
    resolution: tuple[int, int] | None = None,
    names: Mapping[str, str] = LABELS,
) -> None:
    """Draw images in rows, and beside each the maps of every method, networks side by side on one colour scale.

    The scale of a method is the same for all its maps, so that strengths can be compared over rows and networks. Maps
    with negative values have a diverging scale around 0. CAM and Grad-CAM, which are as coarse as the feature maps, lie
    over the image: the stronger, the less of it is seen. Predictions that are wrong are set in red.

    Parameters
    ----------
    images : array, shape (n, C, h, w)
        In [0, 1].
    labels : sequence of int, length n
        True classes.
    classes : sequence of str
        Their names.
    maps : mapping
        ``maps[method][network]``, each (n, h, w), of networks that have predictions: "convex", "nonconvex".
    predictions : mapping
        ``predictions[network]``, classes as ints, length n.
    path : str or binary file
        A PNG, written over if it is there.
    title : str
    resolution : (int, int), optional
        Height and width of the feature maps that CAM and Grad-CAM are enlarged from, to be said beside their names.
    names : mapping
        What networks are called.

    Raises
    ------
    InputError
        If there are no images or no maps, or they don't fit together.
    OSError
        If the file can't be written.
    """
    count = len(images)
    every = [(method, network) for method in maps for network in predictions if network in maps[method]]
    if not count or not every:
        raise InputError("there is nothing to draw: give at least one image, one method and one network.")
    shape = (count, *images.shape[2:])
    for method, network in every:
        given = maps[method][network]
        if given.shape != shape:
            raise InputError(
                f"maps[{method!r}][{network!r}] must have shape {shape}, a map an image; got {given.shape}."
            )
    columns = 1 + len(every)
    figure = new_figure(_TEXT + _CELL * columns, _HEAD + _FOOT + _CELL * count)
    grid: NDArray[Any] = figure.subplots(count, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    grid[0, 0].set_title("image", fontsize=9)
    for row, axes in enumerate(grid[:, 0]):
        drawn = axes.imshow(_picture(images[row]), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        _label_row(axes, int(labels[row]), {names.get(n, n): int(predictions[n][row]) for n in predictions}, classes)
    # Colour images have no scale, but a column without a bar would not be level with the others.
    _bar(figure, drawn, grid[:, 0], [0.0, 1.0]).set_visible(images.shape[1] != 3)
    for number, (method, network) in enumerate(every):
        shown = maps[method]
        networks = [name for name in predictions if name in shown]
        largest = max(float(np.abs(shown[name]).max()) for name in networks) or 1.0
        signed = any(bool((shown[name] < 0).any()) for name in networks)
        column = grid[:, 1 + number]
        label, name = names.get(network, network), METHOD_NAMES.get(method, method)
        if method in COARSE and resolution is not None:
            name += f" ({resolution[0]} x {resolution[1]})"
        # An empty line leaves room for the method's name, which stands above all its columns.
        column[0].set_title(f"\n{label}" if len(networks) > 1 else name.replace(" ", "\n") + f"\n{label}", fontsize=9)
        if len(networks) > 1 and network == networks[0]:
            _title_above(column[0], name, len(networks))
        for row, axes in enumerate(column):
            values = shown[network][row]
            look = {"cmap": "RdBu_r" if signed else "viridis", "vmin": -largest if signed else 0.0, "vmax": largest}
            # For the bar, which must be opaque; over the image the map covers it.
            drawn = axes.imshow(values, interpolation="nearest", **look)
            if method in COARSE:
                axes.imshow(_picture(images[row]), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
                strength = _THINNEST + (_THICKEST - _THINNEST) * np.abs(values) / largest
                axes.imshow(values, alpha=strength, interpolation="nearest", **look)
        if network == networks[-1]:
            first = 2 + number - len(networks)
            ticks = [-largest, 0.0, largest] if signed else [0.0, largest]
            _bar(figure, drawn, grid[:, first : first + len(networks)], ticks)
    if title:
        # At the left, where a page begins to show a wide figure.
        figure.suptitle(literal(title), fontsize=11, x=0.01, ha="left")
    save_png(figure, path)


def _bar(figure: Figure, drawn: Any, columns: NDArray[Any], ticks: Sequence[float]) -> Axes:
    """Draw a colour bar below columns of the grid."""
    bar = figure.colorbar(drawn, ax=list(columns.flat), location="bottom", aspect=14, shrink=0.8, pad=0.02)
    bar.set_ticks(list(ticks), labels=[f"{tick:.2g}" for tick in ticks], fontsize=8)
    return bar.ax


def _title_above(axes: Axes, name: str, width: int) -> None:
    """Write the name of a method above the middle of its ``width`` columns, the first of which is given."""
    # Cells are about a twelfth of their side apart.
    middle = 0.5 * (width + 0.08 * (width - 1))
    text = axes.text(middle, 1.24, name, transform=axes.transAxes, ha="center", va="bottom", fontsize=10)
    # Otherwise the layout would widen the first column to hold it.
    text.set_in_layout(False)


def _label_row(axes: Axes, label: int, found: Mapping[str, int], classes: Sequence[str]) -> None:
    """Write the true class of an image, and each network's, at its left."""
    lines = [(f"true: {_short(classes[label])}", "black")]
    lines += [
        (f"{name}: {_short(classes[guess])}", "black" if guess == label else "#C00000") for name, guess in found.items()
    ]
    for number, (text, colour) in enumerate(lines):
        height = 0.5 + min(0.22, 0.95 / len(lines)) * ((len(lines) - 1) / 2 - number)
        axes.text(
            -0.08, height, text, transform=axes.transAxes, ha="right", va="center", fontsize=8, color=colour
        )  # fmt: skip


def plot_sanity(
    steps: Mapping[str, Mapping[str, Sequence[SanityStep]]],
    path: str | IO[bytes],
    *,
    title: str = "",
    seed: int = 0,
    names: Mapping[str, str] = LABELS,
) -> None:
    """Draw how alike maps stay while layers become random, a panel a method.

    Parameters
    ----------
    steps : mapping
        ``steps[method][network]``, as ``sanity_check`` gives them.
    path : str or binary file
        A PNG, written over if it is there.
    title : str
    seed : int
        Of the bootstrap intervals (95 %).
    names : mapping
        What networks are called.

    Raises
    ------
    InputError
        If there is no method.
    OSError
        If the file can't be written.
    """
    if not steps:
        raise InputError("there is nothing to draw: give at least one method.")
    across = min(3, len(steps))
    down = -(-len(steps) // across)
    figure = new_figure(1.2 + 2.9 * across, 1.5 + 2.5 * down)
    panels: list[Axes] = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    for axes in panels[len(steps) :]:
        axes.remove()
    lowest = -0.25
    for number, (axes, (method, networks)) in enumerate(zip(panels, steps.items(), strict=False)):
        for shift, (network, found) in enumerate(networks.items()):
            intervals = [bootstrap_interval(step.correlation, seed=seed) for step in found]
            mean, low, high = (np.array([getattr(i, name) for i in intervals]) for name in ("mean", "low", "high"))
            lowest = min([lowest, *(value - 0.05 for value in low if np.isfinite(value))])
            axes.errorbar(
                np.arange(len(found)) + 0.08 * (shift - (len(networks) - 1) / 2),
                mean,
                [mean - low, high - mean],
                color=COLOURS.get(network),
                marker=MARKERS.get(network, "o"),
                markersize=5,
                linewidth=1,
                capsize=2,
                label=names.get(network, network),
            )
        modules = {tuple(step.randomised for step in found) for found in networks.values()}
        # Networks of different kinds have different modules: then steps are counted.
        labels = next(iter(modules)) if len(modules) == 1 else range(max(map(len, modules)))
        ticks = [str(label) or "none" for label in labels]
        axes.set_xticks(range(len(ticks)), ["none", *(f"+ {tick}" for tick in ticks[1:])], rotation=30, fontsize=8)
        axes.set_title(METHOD_NAMES.get(method, method), fontsize=10)
        axes.axhline(0.0, color="0.6", linewidth=0.8)
        tidy(axes)
        if number % across == 0:
            axes.set_ylabel("rank correlation\nwith the trained map", fontsize=9)
    panels[0].set_ylim(lowest, 1.08)
    figure.supxlabel("layers made random, from the top", fontsize=10)
    # Not every network may have the maps of the first panel.
    known: dict[str, Any] = {}
    for axes in panels[: len(steps)]:
        handles, labels_ = axes.get_legend_handles_labels()
        known |= dict(zip(labels_, handles, strict=True))
    figure.legend(
        list(known.values()), list(known), loc="outside upper right", ncols=len(known), frameon=False, fontsize=9
    )
    if title:
        figure.suptitle(literal(title), fontsize=11, x=0.01, ha="left")
    save_png(figure, path)


def plot_exciting(
    found: Mapping[str, Exciting], classes: Sequence[str], path: str | IO[bytes], *, title: str = ""
) -> None:
    """Draw the patches that excite neurons most, a row a layer of a network, the strongest neuron at the left.

    Parameters
    ----------
    found : mapping
        By what the row is called.
    classes : sequence of str
        Names of the outputs.
    path : str or binary file
        A PNG, written over if it is there.
    title : str

    Raises
    ------
    InputError
        If there is no row, or no neuron.
    OSError
        If the file can't be written.
    """
    across = max((len(one.neurons) for one in found.values()), default=0)
    if not across:
        raise InputError("there is nothing to draw: no layer has a neuron.")
    figure = new_figure(0.5 + 1.1 * across, 0.8 + 1.35 * len(found))
    grid: NDArray[Any] = figure.subplots(len(found), across, squeeze=False)
    for row, (name, one) in zip(grid, found.items(), strict=True):
        for axes in row[len(one.neurons) :]:
            axes.remove()
        for place, axes in enumerate(row[: len(one.neurons)]):
            axes.imshow(_mosaic(one.patches[place]), interpolation="nearest")
            axes.set_axis_off()
            what = "raises" if one.signs[place] > 0 else "lowers"
            axes.set_title(f"{what} {_short(classes[one.outputs[place]])}\n{100 * one.shares[place]:.2g} %", fontsize=8)
        if len(one.neurons):
            row[0].text(-0.12, 0.5, literal(name), transform=row[0].transAxes, rotation=90, ha="right", va="center")
    if title:
        figure.suptitle(literal(title), fontsize=11)
    save_png(figure, path)


def _mosaic(patches: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return patches (count, C, h, w) as one picture, beside and below one another."""
    count, channels, height, width = patches.shape
    down = -(-count // _ABREAST)
    picture = np.tile(_BEYOND, (down * (height + 1) - 1, _ABREAST * (width + 1) - 1, 1))
    for number, patch in enumerate(patches):
        top, left = (number // _ABREAST) * (height + 1), (number % _ABREAST) * (width + 1)
        colours = np.clip(patch if channels == 3 else patch.mean(axis=0, keepdims=True).repeat(3, axis=0), 0.0, 1.0)
        seen = np.where(np.isnan(colours), _BEYOND[:, None, None], colours)
        picture[top : top + height, left : left + width] = seen.transpose(1, 2, 0)
    return picture
