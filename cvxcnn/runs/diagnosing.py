"""What the layers of a training run are, from its folder into its folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.version import __version__
from ..data.class_weights import by_class
from ..data.images import one_hot
from ..models.saving import load_model
from ..persistence.files import write_atomically
from ..reports.history import HISTORY_FILE, Point, read_history
from ..reports.html import DIAGNOSIS_FILE, write_report
from ..reports.summary import RunSummary
from ..theory import diagnose
from .checkpoint import read_state
from .explaining import read_summary, run_images
from .settings import resolve_device

__all__ = ["diagnose_run"]


def diagnose_run(
    folder: str | os.PathLike[str],
    *,
    device: str = "cpu",
    data: str | None = None,
    memory: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Say what point of Eq. 1 each network of a finished run is, into ``diagnosis.json`` and ``report.html``.

    Parameters
    ----------
    folder : str or path
        Of a finished run.
    device : {"auto", "cpu", "cuda"}
    data : str, optional
        Where the run's images are now; None for where they were.
    memory : float, optional
        GiB that may be used.
    say : callable, optional
        Called with a line of text as the work goes on.

    Returns
    -------
    dict
        What is in ``diagnosis.json``: ``blocks``, an entry a layer and network (``theory.BlockDiagnosis``), each with
        ``history_rate``, at which log Eq. 1 fell over the last half of its training, in 1/s; ``labels``, what each
        training is called; and ``left_out``, those that can't be diagnosed, with the reason.

    Raises
    ------
    ModelFileError
        If the folder isn't that of a finished run, or its files are damaged.
    InputError
        If a layer can't be diagnosed, or more memory is needed than allowed.
    DataError
        If the run's images can't be found, or what is there are others.
    OSError
        If the files can't be written.
    """
    source = Path(folder)
    summary = read_summary(source)
    model = load_model(source, device=resolve_device(device))
    train, _ = run_images(summary, model, data, say)
    rivals = read_state(source).rivals
    targets = torch.as_tensor(one_hot(train.labels, len(train.classes)))
    weights = by_class(summary["settings"].get("class_weight"), train.labels, train.classes)
    diagnosis = diagnose(model, train.images, targets, rivals=rivals, memory=memory, sample_weight=weights)
    history = read_history(source / HISTORY_FILE)
    blocks = [
        {**block.to_json(), "history_rate": _rate(history, block.layer, block.method)} for block in diagnosis.blocks
    ]
    labels = RunSummary.from_json(summary).labels()
    left_out = {method: _why(method) for method in labels if method != "convex" and method not in rivals}
    found = {"version": __version__, "labels": labels, "blocks": blocks, "left_out": left_out}
    write_atomically(source / DIAGNOSIS_FILE, json.dumps(found, indent=2, allow_nan=False).encode() + b"\n")
    write_report(source)
    return found


def _why(method: str) -> str:
    """Return why a rival can't be diagnosed."""
    if method == "kernel":
        return "it is infinitely wide, and has no weights that could be a point of Eq. 1"
    return "its weights aren't in the folder: an older version kept those of the first rival alone"


def _rate(history: Sequence[Point], layer: int, method: str) -> float | None:
    """Return at which rate log Eq. 1 fell over the last half of a training; None if that isn't known."""
    own = [point for point in history if (point.layer, point.method) == (layer, method) and point.objective > 0]
    if len(own) < 2:
        return None
    last = own[-1]
    first = max((point for point in own if point.seconds <= last.seconds / 2), key=lambda p: p.seconds, default=own[0])
    if not last.seconds > first.seconds:
        return None
    return math.log(first.objective / last.objective) / (last.seconds - first.seconds)
