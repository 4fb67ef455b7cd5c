"""What a fit says: while it goes on, if it is asked to, and when it stopped above its tolerance."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

from sklearn.exceptions import ConvergenceWarning

from ..fitting import Task
from ..pricing.certificate import Certificate
from ..solvers import Callback, Progress, SolveResult, Status

__all__ = ["Telling", "outside", "slowness", "warn_of_gap"]

# Rounds closer to one another than this many seconds are one line.
_EVERY = 1.0


def slowness(activation: str, penalty: str, priced: bool) -> str:
    """Return what is to be said before a program that can't be fast is solved, or "".

    Examples
    --------
    >>> slowness("relu", "dense", False), slowness("relu", "group", False)[:28]
    ('', 'every gate brings a cone wit')
    """
    if activation != "relu" or penalty != "group" or priced:
        return ""
    return (
        "every gate brings a cone with a row a patch: of ten million gates times patches that takes about half a "
        'minute, of more it takes minutes. Filters, penalty="dense", take seconds'
    )


class Telling:
    """Lines on standard error about the blocks that are fitted.

    Parameters
    ----------
    verbose : bool
        Whether anything is said.

    Examples
    --------
    >>> Telling(False).say("not heard")
    """

    def __init__(self, verbose: bool) -> None:
        self.console: Any = None
        if verbose:
            from rich.console import Console

            self.console = Console(stderr=True)
        self._began = self._last = time.perf_counter()

    def say(self, text: str) -> None:
        """Say a line."""
        if self.console is not None:
            self._last = time.perf_counter()
            seconds = self._last - self._began
            self.console.print(f"{seconds:7.1f} s  {text}", markup=False, highlight=False, soft_wrap=True)

    def begin(self, name: str, task: Task) -> None:
        """Say what is about to be fitted."""
        patches, problem = task.problem.patches, task.problem
        gates = "gates that are searched for" if task.priced else "fixed gates"
        self.say(
            f"{name}: {patches.n_images} images of {patches.n_patches} patches with {patches.dim} numbers, "
            f"{problem.targets.shape[1]} outputs, penalty {problem.penalty.name}, {gates}"
        )
        slow = slowness(task.activation.name, problem.penalty.name, task.priced)
        if slow:
            self.say(f"{name}: {slow}")

    def end(self, name: str, certificate: Certificate) -> None:
        """Say how good what was fitted is."""
        self.say(f"{name}: {certificate}")

    def hears(self, name: str, callback: Callback | None) -> Callback:
        """Return a callback that says where a solve stands, and tells another one."""

        def report(progress: Progress) -> None:
            if not progress.iteration or time.perf_counter() - self._last >= _EVERY:
                self.say(f"{name}: {progress}")
            if callback is not None:
                callback(progress)

        return report


def warn_of_gap(result: SolveResult, tol: float, max_iter: int | None) -> None:
    """Warn of a solve that ended above its tolerance."""
    if result.status != Status.OPTIMAL.value:
        warnings.warn(
            f"{result.solver}: {Status(result.status).message} Relative gap {result.relative_gap:.2e}, tol {tol:g}. "
            f"{'Ask for a larger tol.' if max_iter is None else 'Raise max_iter, or tol.'}",
            ConvergenceWarning,
            stacklevel=outside(),
        )


def outside() -> int:
    """Return the stack level, for a warning of the caller, at which the package was called."""
    package = __name__.partition(".")[0]
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    return level
