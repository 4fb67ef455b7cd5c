"""Pieces of HTML for notebooks; everything that comes from outside is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from .text import printable

__all__ = ["sparkline", "table"]

_WIDTH, _HEIGHT = 160, 40


def table(rows: Iterable[tuple[str, str]], caption: str = "") -> str:
    """Return names and what belongs to them as a table of two columns.

    Examples
    --------
    >>> table([("bound", "1 < 2")])
    '<table><tr><th style="text-align:left">bound</th><td style="text-align:left">1 &lt; 2</td></tr></table>'
    """
    left = ' style="text-align:left"'
    body = "".join(
        f"<tr><th{left}>{escape(printable(name))}</th><td{left}>{escape(printable(said))}</td></tr>"
        for name, said in rows
    )
    head = f"<caption{left}>{escape(printable(caption))}</caption>" if caption else ""
    return f"<table>{head}{body}</table>"


def sparkline(seconds: Sequence[float], above: Sequence[float], below: Sequence[float], words: str) -> str:
    """Return a small SVG of two lines that close on one another in time, as large as a line of text; "" for no points.

    Parameters
    ----------
    seconds, above, below : sequences of float, of one length
        Such as objectives and bounds; what isn't finite is left out.
    words : str
        For those who don't see it.
    """
    lines = [[(t, v) for t, v in zip(seconds, values, strict=True) if math.isfinite(v)] for values in (above, below)]
    points = [point for line in lines for point in line]
    if len(points) < 2:
        return ""
    (start, end), (low, high) = ((min(part), max(part)) for part in zip(*points, strict=True))
    across, up = (_WIDTH - 6) / max(end - start, 1e-12), (_HEIGHT - 6) / max(high - low, 1e-300)
    drawn = []
    for line, look in zip(lines, ('stroke="#0072B2"', 'stroke="black" stroke-dasharray="3 2"'), strict=True):
        path = " ".join(f"{3 + across * (t - start):.1f},{_HEIGHT - 3 - up * (v - low):.1f}" for t, v in line)
        drawn.append(f'<polyline points="{path}" fill="none" {look}/>')
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{escape(words)}" '
        f'style="background:white">{"".join(drawn)}</svg>'
    )
