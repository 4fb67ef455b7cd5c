"""history.csv: how the objective and the bound of each layer moved while it was trained."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelFileError
from ..models.block import ConvexConvBlock
from ..ordinary.baseline import BaselineResult
from ..persistence.files import ENCODING, read_bytes
from ..pricing.certificate import NETWORKS

__all__ = ["HISTORY_FILE", "Point", "history_of", "read_history", "write_history"]

HISTORY_FILE = "history.csv"
COLUMNS = ("layer", "method", "seconds", "objective", "bound", "bound_over")
OWN_GATES = "gates at hand"


@dataclass(frozen=True)
class Point:
    """Where the training of a layer stood.

    Attributes
    ----------
    layer : int
        From 1.
    method : str
        "convex", "nonconvex" or another rival.
    seconds : float
        Since the layer's training began.
    objective : float
    bound : float
        Lower bound known at that time; NaN for none.
    bound_over : str
        What it bounds: the best over the "gates at hand", or of networks in the words of ``certificate.NETWORKS``
        ("all gates" in older files); "" for none.
    """

    layer: int
    method: str
    seconds: float
    objective: float
    bound: float = math.nan
    bound_over: str = ""

    @property
    def overall(self) -> bool:
        """Whether the bound is of networks with any gates."""
        return self.bound_over not in ("", OWN_GATES)


def history_of(layer: int, block: ConvexConvBlock, rivals: Mapping[str, BaselineResult] | None = None) -> list[Point]:
    """Return the points of a layer, in time, the final ones last: of its block, and of its rivals trained in torch.

    Parameters
    ----------
    layer : int
        From 1.
    block : ConvexConvBlock
        Fitted here, not loaded: model files hold no history.
    rivals : mapping, optional
        By method: "nonconvex", and further ones by their names.
    """
    result, certificate = block.result_, block.certificate_
    # A priced solve reports the bound of its search over all networks, any other the bound of its own program, which is
    # one over all networks if that is what proved it.
    priced = result.solver.startswith("priced")
    overall = priced or (certificate.kind == "proved" and certificate.global_bound == result.dual_bound)
    over = NETWORKS[certificate.networks] if overall else OWN_GATES
    points = [Point(layer, "convex", p.seconds, p.objective, p.dual_bound, over) for p in result.history]
    last = certificate.global_bound if priced else result.dual_bound
    points.append(Point(layer, "convex", result.seconds, result.objective, last, over))
    for method, rival in (rivals or {}).items():
        points += [Point(layer, method, seconds, objective) for seconds, objective in rival.history]
    return points


def write_history(points: Iterable[Point], path: str | os.PathLike[str]) -> None:
    """Write points as CSV, numbers in full precision, those that are not finite empty.

    Raises
    ------
    OSError
        If the file can't be written.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for p in points:
            numbers = [value if math.isfinite(value) else None for value in (p.seconds, p.objective, p.bound)]
            writer.writerow([p.layer, p.method, *numbers, p.bound_over])


def read_history(path: str | os.PathLike[str]) -> Sequence[Point]:
    """Return the points in a file; none if there is no such file, as in the folders of older versions.

    Raises
    ------
    ModelFileError
        If the file is damaged.
    """
    if not os.path.exists(path):
        return []
    content = read_bytes(Path(path))
    try:
        return [
            Point(
                int(row["layer"]),
                row["method"],
                seconds=_number(row["seconds"]),
                objective=_number(row["objective"]),
                bound=_number(row["bound"]),
                bound_over=row["bound_over"],
            )
            for row in csv.DictReader(io.StringIO(content.decode(ENCODING), newline=""))
        ]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ModelFileError(f"{path} is damaged: {type(error).__name__} {error}. Train the run again.") from error


def _number(cell: str) -> float:
    return float(cell) if cell else math.nan
