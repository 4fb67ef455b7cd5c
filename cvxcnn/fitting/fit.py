"""One way from a task to its fit."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from ..core.threads import coarse_threads
from ..solvers import Callback, Progress
from .fixed import OverFixedGates
from .priced import OverPricedGates
from .task import Fit, Task
from .whole import OverAllNeurons

__all__ = ["fit", "over", "share_of"]


def over(task: Task, *, keep: bool = False) -> OverFixedGates | OverPricedGates | OverAllNeurons:
    """Return what fits a task at any reg; ``keep`` says that there will be many fits."""
    if task.activation.whole:
        return OverAllNeurons(task, keep=keep)
    return OverPricedGates(task) if task.priced else OverFixedGates(task, keep=keep)


def share_of(fraction: float, largest: float) -> float:
    """Return this share of reg_max; where that is zero the solution is zero whatever reg is.

    Examples
    --------
    >>> share_of(0.01, 50.0), share_of(0.01, 0.0)
    (0.5, 1.0)
    """
    return fraction * largest if largest > 0 else 1.0


def fit(task: Task, fraction: float, callback: Callback | None = None) -> Fit:
    """Return the fit of a task; without a reg of its own, at a share of reg_max.

    Its seconds, and those of its history, count from here: gates, reg_max, features and the certificate are part of it.

    Parameters
    ----------
    task : Task
    fraction : float
        In (0, 1).
    callback : callable, optional
        Called with a ``Progress`` now and then.
    """
    began = time.perf_counter()
    with torch.no_grad(), coarse_threads():
        fits = over(task)
        reg = share_of(fraction, fits.reg_max()) if task.reg is None else task.reg
        before = time.perf_counter() - began

        def later(progress: Progress) -> None:
            if callback is not None:
                callback(replace(progress, seconds=before + progress.seconds))

        found = fits.fit(reg, callback=later)
        return replace(found, result=found.result.within(before, time.perf_counter() - began))
