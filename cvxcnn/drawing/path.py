"""The figure of a regularisation path."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..pricing.certificate import NETWORKS
from .style import COLOURS, in_lines, new_figure, save_png, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PathCurves", "plot_path"]

Array = NDArray[Any]

# A zero gap has no place on a logarithmic axis; rounding is at least this large.
_LEAST_GAP = 1e-16
_LOOK: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1}


class PathCurves(Protocol):
    """What is drawn of a path, one entry for each reg: see ``models.path.RegPath``, which is one."""

    @property
    def regs(self) -> Array:
        """The grid."""

    @property
    def objective(self) -> Array:
        """Training objectives."""

    @property
    def relative_gap(self) -> Array:
        """Gaps over the gates or filters at hand."""

    @property
    def global_bound(self) -> Array:
        """Bounds over the networks that ``networks`` names; NaN for none."""

    @property
    def global_gap(self) -> Array:
        """Gaps to ``global_bound``."""

    @property
    def kinds(self) -> Sequence[str]:
        """How sure each ``global_bound`` is: "proved", "searched" or "none"."""

    @property
    def networks(self) -> Sequence[str]:
        """Keys of ``certificate.NETWORKS``."""

    @property
    def n_neurons(self) -> Array:
        """Active neurons."""

    @property
    def train_error(self) -> Array:
        """Mean squared errors."""

    @property
    def train_accuracy(self) -> Array:
        """Shares of right images; NaN where targets are no classes."""

    @property
    def validation_error(self) -> Array:
        """The same of images that were not trained on; NaN for none."""

    @property
    def validation_accuracy(self) -> Array:
        """The same of images that were not trained on; NaN for none."""


def plot_path(path: PathCurves, target: str | os.PathLike[str]) -> None:
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
        tidy(axes, "both")
    values, gaps, counts, shares = panels
    values.set_title("regularisation path", fontsize=12)
    values.set_xscale("log")
    _draw_bounds(path, values, gaps)
    counts.plot(path.regs, path.n_neurons, color=COLOURS["convex"], **_LOOK)
    counts.set_ylabel("neurons")
    _draw_shares(path, shares)
    shares.set_xlabel("reg")
    figure.align_ylabels(panels)
    for axes in (values, gaps, shares):
        axes.legend(frameon=False, fontsize=9)
    save_png(figure, target)


def _draw_bounds(path: PathCurves, values: Axes, gaps: Axes) -> None:
    """Draw objectives above and gaps below, over the gates at hand, and over networks where there are such bounds."""
    colour = COLOURS["convex"]
    values.plot(path.regs, path.objective, color=colour, label="objective", **_LOOK)
    values.set_ylabel("training objective")
    own = np.maximum(path.relative_gap, _LEAST_GAP)
    gaps.plot(path.regs, own, color=colour, label="over the gates at hand", **_LOOK)
    overall = np.isfinite(path.global_bound)
    if overall.any():
        regs = path.regs[overall]
        kind = " and ".join(sorted({kind for kind in path.kinds if kind != "none"}))
        over = f"over {NETWORKS[path.networks[0]]} ({kind})"
        look: dict[str, Any] = {"color": "black", "marker": "_", "linestyle": "none"}
        values.plot(regs, path.global_bound[overall], label=in_lines(f"bound {over}"), **look)
        gaps.plot(regs, np.maximum(path.global_gap[overall], _LEAST_GAP), color="black", label=in_lines(over), **_LOOK)
    gaps.set_yscale("log")
    gaps.set_ylabel("relative gap")


def _draw_shares(path: PathCurves, axes: Axes) -> None:
    """Draw what part of the images is right, or the error where they have no classes."""
    parts = {"training": (path.train_accuracy, path.train_error)}
    if np.isfinite(path.validation_error).any():
        parts["validation"] = (path.validation_accuracy, path.validation_error)
    coded = bool(np.isfinite(path.train_accuracy).all())
    for (name, (accuracy, error)), colour in zip(parts.items(), COLOURS.values(), strict=False):
        axes.plot(path.regs, 100 * accuracy if coded else error, color=colour, label=f"{name} images", **_LOOK)
    axes.set_ylabel("correct images (%)" if coded else "mean squared error")
