"""What is seen of a run while it goes on: bars on a terminal, lines of text elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..core.text import printable
from ..solvers import Progress as SolverProgress

__all__ = ["Reporter"]

# Lines of a log that nobody watches: one in this many seconds.
LOG_EVERY = 10.0


class Reporter:
    """Shows a run: a bar for each solve on a terminal, lines of text elsewhere.

    Parameters
    ----------
    console : Console
        A quiet one shows nothing.
    target_gap : float
        The gap that a bar is full at.
    """

    def __init__(self, console: Console, target_gap: float) -> None:
        self.console = console
        self.target_gap = target_gap
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal or console.quiet,
        )
        self._task: TaskID | None = None
        self._last_line = time.monotonic()

    def say(self, text: str) -> None:
        """Show a line, whole, however narrow the console is."""
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def update(self, name: str, completed: float, state: str) -> None:
        """Show how far a step is: ``state`` beside the bar, or as a line now and then."""
        if not self.bars.disable:
            if self._task is None:
                self._task = self.bars.add_task(name, total=1.0, state="")
            self.bars.update(self._task, description=name, completed=completed, state=state)
        elif time.monotonic() - self._last_line >= LOG_EVERY:
            self.say(f"{name}: {state}")
            self._last_line = time.monotonic()

    def finish(self) -> None:
        """Take the bar away: its step is over."""
        if self._task is not None:
            self.bars.remove_task(self._task)
            self._task = None

    def begin(self, layer: int) -> None:
        """Show that a block is being solved, before its first round is over."""
        self.update(f"layer {layer + 1}", 0.0, "begins: patches, reg, and a first solution")

    def solver(self, layer: int, progress: SolverProgress) -> None:
        """Show a round of a block's solve."""
        gap = progress.relative_gap
        # A gap falls by factors: the bar is half full at the root of what is asked for.
        asked = math.log(min(self.target_gap, 0.5))
        share = math.log(min(max(gap, self.target_gap), 1.0)) / asked if math.isfinite(gap) else 0.0
        self.update(f"layer {layer + 1}", min(share, 1.0), str(progress))

    def baseline(self, layer: int, epochs: int) -> Callable[[int, float, float], None]:
        """Return a callback for the baseline of a layer."""

        def show(epoch: int, seconds: float, objective: float) -> None:
            self.update(f"layer {layer + 1} in torch", epoch / epochs, f"epoch {epoch}, objective {objective:.6g}")

        return show
