"""The table of a run in a terminal: each layer's convex block above the same block trained in other ways."""

from __future__ import annotations

import io

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .bounds import bound_heading, bound_notes
from .metrics import METRICS
from .summary import RunSummary

__all__ = ["render_text", "results_table", "titled"]

_HEADING_WIDTH = 24
_LONG_NAME = 24


def titled(summary: RunSummary, text: str) -> str:
    """Return a title behind the name of the images, below it where that is long."""
    name = summary.name
    return f"{name}\n{text}" if len(name) > _LONG_NAME else f"{name}: {text}"


def results_table(summary: RunSummary) -> Table:
    """Return a table with each layer's convex block above the same block trained in other ways.

    Its columns are those of ``metrics.METRICS`` that have one.

    Parameters
    ----------
    summary : RunSummary

    Examples
    --------
    >>> convex = {"objective": 9.4, "dual_bound": 9.3, "relative_gap": 0.01, "n_neurons": 7, "seconds": 1.0,
    ...           "train_accuracy": 0.9, "test_accuracy": 0.8, "global_bound": 9.2, "certificate": "proved"}
    >>> run = RunSummary.from_json({"data": {"name": "toy"}, "layers": [{"layer": 1, "convex": convex}]})
    >>> table = results_table(run)
    >>> table.row_count, len(table.columns)
    (1, 10)
    """
    notes = bound_notes(summary)
    table = Table(
        title=Text(titled(summary, "training objective (Eq. 1) and accuracy by layer")),
        caption=Text("\n".join(notes)) if notes else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        # The box puts a space between columns; more would not leave room for them in 80 characters.
        padding=0,
    )
    table.add_column("Layer", justify="right", no_wrap=True)
    table.add_column("Training", no_wrap=True)
    # Long names of networks have no room beside numbers: the notes have them.
    bound = bound_heading(summary)
    bound = bound if len(bound) <= _HEADING_WIDTH else "Bound over networks named below"
    bound = bound.replace("over ", "over\n")
    shown = [(metric, metric.text) for metric in METRICS if metric.text]
    for _, column in shown:
        heading = column.heading.replace("{bound}", bound)
        table.add_column(heading, justify="right", no_wrap=column.min_width is None, min_width=column.min_width)
    rows, labels = list(summary.rows()), summary.labels()
    for index, (layer, method, numbers) in enumerate(rows):
        table.add_row(
            str(layer) if method == "convex" else "",
            labels[method],
            *(column.show(metric.of(numbers), numbers) for metric, column in shown),
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
