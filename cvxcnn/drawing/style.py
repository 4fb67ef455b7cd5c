"""The look of every figure: sizes, colours, axes, words, and how a figure becomes a PNG."""

from __future__ import annotations

import io
import os
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from ..persistence.files import write_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "LABELS",
    "MARKERS",
    "Target",
    "import_matplotlib",
    "in_lines",
    "literal",
    "logarithmic",
    "new_figure",
    "save_png",
    "tidy",
]

# Where a figure goes: a path, or an open binary file.
Target = str | os.PathLike[str] | IO[bytes]

# Trainings by the names that files have for them, and what figures, tables and words call them.
LABELS = {
    "convex": "convex",
    "nonconvex": "non-convex",
    "adam": "Adam",
    "sgd": "SGD",
    "two-phase": "two-phase",
    "softplus": "softplus",
    "kernel": "kernel",
}

# Of Okabe and Ito, which readers with any colour vision tell apart; markers differ too.
COLOURS = {
    "convex": "#0072B2",
    "nonconvex": "#D55E00",
    "adam": "#E69F00",
    "sgd": "#009E73",
    "two-phase": "#CC79A7",
    "softplus": "#56B4E9",
    "kernel": "#000000",
}
MARKERS = {"convex": "o", "nonconvex": "s", "adam": "P", "sgd": "^", "two-phase": "D", "softplus": "v", "kernel": "X"}

_DPI = 150
# Characters of a line of a legend.
_LABEL_WIDTH = 44


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

    Examples
    --------
    >>> buffer = io.BytesIO()
    >>> save_png(new_figure(1.0, 0.5), buffer)
    >>> buffer.getvalue()[1:4]
    b'PNG'
    """
    import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: Target) -> None:
    """Write a figure of ``new_figure`` to a file, a pipe or a device, or into an open binary file.

    Raises
    ------
    OSError
        If it can't be written.
    """
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    canvas: Any = figure.canvas
    # savefig draws twice, the first time for the layout alone.
    canvas.draw()
    imsave(buffer, canvas.buffer_rgba(), format="png", origin="upper", dpi=figure.dpi)
    if isinstance(path, (str, os.PathLike)):
        write_output(Path(path), buffer.getvalue())
    else:
        path.write(buffer.getvalue())


def tidy(axes: Axes, grid: Literal["both", "x", "y"] = "y") -> None:
    """Give axes a pale grid behind what is drawn, and no frame at the top and at the right."""
    axes.grid(axis=grid, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def logarithmic(axes: Axes) -> None:
    """Make the upright axis logarithmic, with ticks in plain numbers: for ranges of few powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def literal(text: str) -> str:
    r"""Return text that figures show as it is: they read $...$ as mathematics, and names of files don't mean it.

    Examples
    --------
    >>> literal("5 $")
    '5 \\$'
    """
    return text.replace("$", r"\$")


def in_lines(words: str) -> str:
    """Return words in lines that a legend has room for.

    Examples
    --------
    >>> in_lines("lower bound over all networks of the kind (searched)")
    'lower bound over all networks of the kind\\n(searched)'
    """
    return textwrap.fill(words, _LABEL_WIDTH)
