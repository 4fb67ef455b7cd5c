"""The one list of what is said of each trained layer in metrics.csv, in the table of a run, and on its page.

A number of your own takes a function of a fitted block and the images that it sees, in a file of its own, and a line at
the end of ``METRICS``::

    Metric("dead", text=Column("Dead"), page=Column("Dead filters"), measure=dead_filters),

Every run has it from then on, in summary.json too. ``METRICS`` is a list, so a script may append to it instead.
"""

from __future__ import annotations

import csv
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..core.text import one_line
from ..models.block import ConvexConvBlock
from .summary import Numbers, RunSummary, number

__all__ = ["METRICS", "MISSING", "Column", "Metric", "decimal", "measured", "per_cent", "word", "write_metrics"]

logger = logging.getLogger(__name__)

MISSING = "-"

# A metric's value, and the other numbers of the same training, as a cell.
Show = Callable[[Any, Numbers], str]
# A fitted block and the images (n, C, H, W) that it was fitted on: in a deep layer, the maps of the layers below.
Measure = Callable[[ConvexConvBlock, Tensor], float | None]


def decimal(pattern: str, unit: str = "", scale: float = 1.0) -> Show:
    """Return what shows a number in a format, with a unit behind it.

    Examples
    --------
    >>> decimal(".1f", " s")(1.25, Numbers()), decimal(".1f")(None, Numbers())
    ('1.2 s', '-')
    """

    def show(value: Any, numbers: Numbers) -> str:
        scaled = scale * number(value)
        return format(scaled, pattern) + unit if math.isfinite(scaled) else MISSING

    return show


def per_cent(pattern: str, unit: str = " %") -> Show:
    """Return what shows a share in per cent.

    Examples
    --------
    >>> per_cent(".1f")(0.5, Numbers()), per_cent(".1f")(math.nan, Numbers())
    ('50.0 %', '-')
    """
    return decimal(pattern, unit, 100.0)


def word(value: Any, numbers: Numbers) -> str:
    """Return a word as it is."""
    return str(value or MISSING)


def _bound_and_kind(value: Any, numbers: Numbers) -> str:
    bound = decimal(".6g")(value, numbers)
    return bound if bound == MISSING else f"{bound} ({getattr(numbers, 'certificate', None)})"


@dataclass(frozen=True)
class Column:
    """How a table shows a metric.

    Attributes
    ----------
    heading : str
        "{bound}" in it stands for "Bound over" and the networks that the run's bounds are of.
    show : callable
        Called with the value and with all numbers of the same training.
    min_width : int or None
        Characters of a column of the text table that may be broken into lines beyond; None for one that may not.
    """

    heading: str
    show: Show = field(default_factory=lambda: decimal(".4g"))
    min_width: int | None = None


@dataclass(frozen=True)
class Metric:
    """Something that is said of a trained layer: a number, or a word.

    Attributes
    ----------
    name : str
        In summary.json and metrics.csv: the field of ``ConvexNumbers`` and ``NonconvexNumbers`` that is read, if there
        is no ``measure``. A training whose numbers have no such field has an empty cell.
    text, page : Column or None
        In the table that a run prints, and on its page; None for not there.
    csv_place : float
        Where in metrics.csv, whose first columns keep the order of older versions; behind all others by default.
    measure : callable or None
        Called with each fitted block and its images (n, C, H, W), on each process with its share of them; the value
        goes into ``Numbers.measures``. None is written for values that are not finite.
    """

    name: str
    text: Column | None = None
    page: Column | None = None
    csv_place: float = math.inf
    measure: Measure | None = None

    def of(self, numbers: Numbers) -> Any:
        """Return the value of one training, None if it has none.

        Examples
        --------
        >>> Metric("sharpness", measure=lambda block, images: 0.5).of(Numbers(measures={"sharpness": 0.5}))
        0.5
        """
        return numbers.measures.get(self.name) if self.measure else getattr(numbers, self.name, None)


_GAP, _ACCURACY = per_cent(".3g"), per_cent(".1f")

# In the order of the tables.
METRICS: list[Metric] = [
    Metric("objective", Column("Objective", decimal(".6g")), Column("Objective (Eq. 1)", decimal(".6g")), csv_place=0),
    Metric(
        "dual_bound", Column("Dual\nbound", decimal(".6g")), Column("Bound over own gates", decimal(".6g")), csv_place=1
    ),
    Metric("relative_gap", Column("Rel.\ngap", decimal(".1e")), Column("Gap", _GAP), csv_place=2),
    Metric(
        "global_bound",
        Column("{bound}", _bound_and_kind, len("(searched)")),
        Column("{bound}", decimal(".6g")),
        csv_place=3,
    ),
    Metric("certificate", page=Column("Certificate", word), csv_place=5),
    Metric("global_gap", page=Column("Gap", _GAP), csv_place=4),
    Metric("networks", csv_place=6),
    Metric("solver", csv_place=8),
    Metric(
        "train_accuracy", Column("Train\n%", per_cent(".1f", "")), Column("Training accuracy", _ACCURACY), csv_place=10
    ),
    Metric("test_accuracy", Column("Test\n%", per_cent(".1f", "")), Column("Test accuracy", _ACCURACY), csv_place=11),
    Metric("n_neurons", Column("Neu-\nrons", decimal(".0f")), Column("Neurons", decimal(".0f")), csv_place=9),
    Metric("seconds", Column("Time\ns", decimal(".1f")), Column("Seconds", decimal(".1f")), csv_place=12),
    Metric("status", page=Column("Status", word), csv_place=7),
]


def measured(block: ConvexConvBlock, images: Tensor) -> dict[str, float | None]:
    """Return the metrics of a fitted block that are no fields of ``ConvexNumbers``, by name.

    One that fails is None, and an error in the log.

    Parameters
    ----------
    block : ConvexConvBlock
    images : tensor, shape (n, C, H, W)
        That it was fitted on.
    """
    found: dict[str, float | None] = {}
    for metric in METRICS:
        if metric.measure:
            try:
                value = number(metric.measure(block, images))
            except Exception as error:  # a layer that took hours isn't lost for the lack of a number about it
                logger.error("%s can't be measured: %s", metric.name, one_line(error))
                value = math.nan
            found[metric.name] = value if math.isfinite(value) else None
    return found


def write_metrics(summary: RunSummary, path: str | os.PathLike[str]) -> None:
    """Write metrics.csv: a header, then one row for each layer and method.

    The columns are layer, method ("convex" or "nonconvex") and ``METRICS``; accuracies are in [0, 1], numbers
    in full precision, and missing ones empty.

    Parameters
    ----------
    summary : RunSummary
    path : str or path
        Written over if it is there.

    Raises
    ------
    OSError
        If the file can't be written.
    """
    metrics = sorted(METRICS, key=lambda metric: metric.csv_place)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["layer", "method", *(metric.name for metric in metrics)])
        for layer, method, numbers in summary.rows():
            writer.writerow([layer, method, *(metric.of(numbers) for metric in metrics)])
