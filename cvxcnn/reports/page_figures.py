"""Pictures of the report, as bytes of PNG files: convergence of a block, and its filters."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..activations.neurons import Neurons
from ..drawing.kernels import kernel_png, png
from ..drawing.style import COLOURS, LABELS, MARKERS, logarithmic, new_figure, save_png, tidy
from ..models.block import ConvexConvBlock
from ..program.program import relative_gap
from .history import Point
from .summary import UNJUDGED

__all__ = ["WIDTH", "Tile", "filter_tiles", "gaps", "input_norms", "plot_gaps", "shares"]

# Inches: a telephone shows that many at 80 pixels each, where text of 9 points is 10 pixels high.
WIDTH = 4.2

# Characters beside an axis of three inches.
_AXIS_WIDTH = 36

_DARK = np.array([8, 48, 107])


def gaps(points: Sequence[Point], method: str) -> list[tuple[float, float]]:
    """Return (seconds, relative gap) of a layer's points, where there is a gap.

    Of the convex block, by the bound known at each time, or by the last one where that is lower: the last search is
    the most thorough, and what it refutes was no bound. Of ordinary training, which knows none, by the convex block's
    last one over networks with any gates.

    Parameters
    ----------
    points : sequence of Point
        Of one layer.
    method : {"convex", "nonconvex"}
    """
    convex = [p for p in points if p.method == "convex"]
    bound = convex[-1].bound if convex and convex[-1].overall else math.nan
    if method == "convex":
        last = bound if math.isfinite(bound) else math.inf
        pairs = [(p.seconds, relative_gap(p.objective, min(p.bound, last))) for p in convex]
    else:
        pairs = [(p.seconds, relative_gap(p.objective, bound)) for p in points if p.method == method]
    return [(seconds, gap) for seconds, gap in pairs if math.isfinite(seconds) and math.isfinite(gap) and gap > 0]


def plot_gaps(points: Sequence[Point]) -> bytes | None:
    """Draw the gap of a layer against time, on a logarithmic axis; None where no gap is known.

    Parameters
    ----------
    points : sequence of Point
        Of one layer.
    """
    lines = {method: found for method in LABELS if method not in UNJUDGED and (found := gaps(points, method))}
    if "convex" not in lines:
        return None
    figure = new_figure(WIDTH, 3.0)
    axes = figure.subplots()
    for method, found in lines.items():
        seconds, values = zip(*found, strict=True)
        axes.plot(
            seconds, [100 * value for value in values], label=LABELS[method], color=COLOURS[method],
            marker=MARKERS[method], markersize=4, linewidth=1.2, linestyle="-" if method == "convex" else "--",
        )  # fmt: skip
    over = next(p.bound_over for p in points if p.method == "convex")
    axes.set_ylabel(textwrap.fill(f"gap over {over} (%)", _AXIS_WIDTH))
    axes.set_xlabel("seconds")
    axes.set_xlim(left=0)
    drawn = [gap for found in lines.values() for _, gap in found]
    if max(drawn) < 1e3 * min(drawn):
        logarithmic(axes)
    else:
        axes.set_yscale("log")
    tidy(axes)
    axes.legend(frameon=False, fontsize=9)
    buffer = io.BytesIO()
    save_png(figure, buffer)
    return buffer.getvalue()


# Filters.


@dataclass(frozen=True)
class Tile:
    """A filter as a picture.

    Attributes
    ----------
    png : bytes
        A pixel an entry.
    share : float
        Of all filters' contributions, in [0, 1].
    output : int or None
        The output that it moves most, averaged over the pooling cells; None for gated networks.
    sign : int
        1 if it raises that output, -1 if it lowers it, 0 if unknown.
    channel : int or None
        The input channel that is shown, from 0; None if all are.
    """

    png: bytes
    share: float
    output: int | None
    sign: int
    channel: int | None


def shares(neurons: Neurons) -> NDArray[np.float64]:
    """Return the share of each filter, shape (m,): ||u_i|| ||w_i|| over their sum; of a gate, by its weights' norm."""
    values = neurons.norms().double().cpu().numpy()
    return np.asarray(values / max(float(values.sum()), np.finfo(float).tiny))


def _kernels(block: ConvexConvBlock, neurons: Neurons) -> NDArray[np.float64]:
    """Return filters (m, C, kh, kw) of a block's shape without their biases."""
    geometry = block.geometry_
    filters = neurons.filters.double().cpu().numpy()
    weights = filters[:, :-1] if geometry.bias else filters
    return np.asarray(weights.reshape(len(filters), block.image_shape_[0], *np.broadcast_to(geometry.kernel_size, 2)))


def filter_tiles(block: ConvexConvBlock, order: NDArray[np.int64], neurons: Neurons | None = None) -> list[Tile]:
    """Return pictures of these filters: in grey or colour images the whole kernel, else its strongest channel.

    Parameters
    ----------
    block : ConvexConvBlock
    order : array of int
        Which filters, the first one first.
    neurons : Neurons, optional
        Others of the same shape, such as those of ordinary training; None for the block's own.
    """
    neurons = neurons or block.neurons_
    kernels, share = _kernels(block, neurons), shares(neurons)
    channels = kernels.shape[1]
    effects = neurons.effects()
    readout = None if effects is None else effects.double().cpu().numpy()
    tiles = []
    for row in order:
        kernel, channel = kernels[row], None
        if channels not in (1, 3):
            channel = int(np.square(kernel).sum(axis=(1, 2)).argmax())
            kernel = kernel[channel : channel + 1]
        output, sign = None, 0
        if readout is not None:
            output = int(np.abs(readout[row]).argmax())
            sign = int(np.sign(readout[row, output]))
        tiles.append(Tile(kernel_png(kernel), float(share[row]), output, sign, channel))
    return tiles


def input_norms(
    block: ConvexConvBlock, order: NDArray[np.int64], channels: NDArray[np.int64], neurons: Neurons | None = None
) -> bytes:
    """Return a picture of how strongly filters (rows) read input channels (columns): white is 0, dark the largest.

    Parameters
    ----------
    block : ConvexConvBlock
    order, channels : array of int
        Which filters and channels, the first ones first.
    neurons : Neurons, optional
        Others than the block's own.
    """
    norms = np.sqrt(np.square(_kernels(block, neurons or block.neurons_)).sum(axis=(2, 3)))[order][:, channels]
    weight = (norms / max(float(norms.max()), np.finfo(float).tiny))[..., None]
    return png((1 - weight) * 255 + weight * _DARK)
