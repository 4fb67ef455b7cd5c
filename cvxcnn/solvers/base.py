"""What a solver is: a program and a start in, a SolveResult out, with every number recomputed by us."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

import torch
from torch import Tensor

from ..core.checks import as_int_or_none, as_tol
from ..core.distributed import broadcast, size
from ..core.threads import coarse_threads
from ..errors import InputError, SolverError
from ..program.program import Evaluation, Program, relative_gap
from .needs import Needs

__all__ = ["Callback", "Outcome", "Progress", "SolveResult", "Solver", "Status"]

logger = logging.getLogger(__name__)


class Status(str, Enum):
    """How a solve ended; a message with the cause belongs to each."""

    OPTIMAL = "optimal"
    INACCURATE = "inaccurate"
    ITERATION_LIMIT = "iteration_limit"
    TIME_LIMIT = "time_limit"

    @property
    def message(self) -> str:
        """The cause in a sentence."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.OPTIMAL: "The relative gap reached the tolerance.",
    Status.INACCURATE: "The solver stopped above the tolerance; its best point is kept.",
    Status.ITERATION_LIMIT: "The iteration limit came first; the best point is kept.",
    Status.TIME_LIMIT: "The time limit came first; the best point is kept.",
}


@dataclass(frozen=True)
class Progress:
    """Where a solve stands: handed to the callback.

    Attributes
    ----------
    iteration : int
    seconds : float
    objective, dual_bound : float
    feasible : bool
        Whether the objective is that of weights in their cones. If not they are moved into them at the end, which
        raises it.
    over_all : bool
        Whether the bound is that over all gates, from a search, in place of the gates at hand.

    Examples
    --------
    >>> str(Progress(2, 0.5, 8.0, 6.0))
    'round 2, objective 8, bound over the gates at hand 6, gap 2.5e-01'
    """

    iteration: int
    seconds: float
    objective: float
    dual_bound: float
    feasible: bool = True
    over_all: bool = False

    @property
    def relative_gap(self) -> float:
        """(objective - bound) / |objective|."""
        return relative_gap(self.objective, self.dual_bound)

    def __str__(self) -> str:
        """Say what each number is."""
        of = "objective" if self.feasible else "objective before weights are in their cones"
        over = "all gates, as searched," if self.over_all else "the gates at hand"
        return (
            f"round {self.iteration}, {of} {self.objective:.6g}, bound over {over} {self.dual_bound:.6g}, "
            f"gap {self.relative_gap:.1e}"
        )


Callback = Callable[[Progress], None]


@dataclass(frozen=True)
class Outcome:
    """What a solver's own loop hands back, before anything is checked."""

    weights: Tensor
    iterations: int
    stopped: Status = Status.OPTIMAL


@dataclass(frozen=True)
class SolveResult:
    """A solution with its certificate.

    Attributes
    ----------
    weights : Tensor, shape (blocks, cells, rows, outputs)
        Feasible weights: projected onto their cones after the solver returned them.
    objective, dual_bound, relative_gap : float
        Recomputed in float64 from ``weights``; the gap is (objective - bound) / |objective|.
    violation : float
        Largest cone violation of what the solver returned, before the projection.
    status : str
        A value of ``Status``; "optimal" only if the recomputed gap is at most the tolerance.
    solver : str
        What ran.
    iterations : int
    seconds : float
        Wall time: of a solver's own result that of the solve, without building the program and without this
        certificate; of a block or layer that was fitted, of all of it, from gates and reg_max, or the path that chose
        reg, to the search for a bound. Points of a path have those of their solves.
    history : list of Progress
        What the callback saw.
    intercepts : Tensor or None, shape (outputs,)
        The optimal intercept for ``weights``, zero if the program has none; float64.
    prediction : Tensor or None, shape (n, outputs)
        For the images that were fitted, float64, where it came for nothing and they have no weights of their own.
    """

    weights: Tensor
    objective: float
    dual_bound: float
    relative_gap: float
    violation: float
    status: str
    solver: str
    iterations: int
    seconds: float
    history: list[Progress] = field(default_factory=list)
    intercepts: Tensor | None = field(default=None, compare=False)
    prediction: Tensor | None = field(default=None, compare=False)

    def within(self, before: float, seconds: float) -> SolveResult:
        """Return this as a part of what took so many seconds, of which so many went by before it."""
        history = [replace(progress, seconds=before + progress.seconds) for progress in self.history]
        return replace(self, seconds=seconds, history=history)


class Solver(ABC):
    """A method for some of the programs.

    Parameters
    ----------
    tol : float
        Relative duality gap to stop at, > 0.
    max_iter : int or None
        Limit of the method's own iterations; None for its default.
    """

    name: str
    needs: Needs = Needs()
    """What it needs of a program."""
    outside_cones: bool = False
    """Whether what it reports is of weights that are not in their cones yet."""
    shares_images: bool = False
    """Whether it works where every process has some of the images only."""

    def __init__(self, tol: float = 1e-6, max_iter: int | None = None) -> None:
        self.tol = as_tol(tol)
        self.max_iter = as_int_or_none("max_iter", max_iter)

    def refusal(self, program: Program) -> str | None:
        """Return why this method can't solve the program, with the remedy, or None if it can."""
        return self.needs.refusal(program)

    def suits(self, program: Program) -> bool:
        """Return whether "auto" may choose it for a program that it takes."""
        return True

    def objection(self, program: Program) -> str | None:
        """Return ``refusal``, or that the method needs all images in one process and there are several."""
        if size() > 1 and not self.shares_images:
            return f'it needs all images in one process, and there are {size()}. Use solver="auto".'
        return self.refusal(program)

    def reg_max(self, program: Program) -> float:
        """Return the smallest reg at which zero weights are optimal; what is computed for it may serve ``solve``."""
        return program.reg_max()

    def intercepts(self, program: Program, weights: Tensor) -> Tensor:
        """Return the optimal intercept (outputs,) for weights."""
        return program.intercepts(program.design.predict(weights))

    @abstractmethod
    def run(self, program: Program, start: Tensor | None, report: Callable[[int, float, float], None]) -> Outcome:
        """Solve; call ``report(iteration, objective, dual_bound)`` now and then."""

    def passed(self, program: Program, start: Tensor | None) -> Tensor:
        """Return weights of a point that a path only passes: to the tolerance by the method's own word.

        The solver may keep what doesn't depend on reg: all programs that it is asked for are those of one path.
        """
        return self.run(program, start, lambda *_: None).weights

    def judge(self, program: Program, weights: Tensor) -> Evaluation:
        """Return what is true of weights, in float64, whatever the method believes."""
        return program.double().evaluate(weights.double())

    def solve(self, program: Program, start: Tensor | None = None, callback: Callback | None = None) -> SolveResult:
        """Solve a program and certify the answer.

        Parameters
        ----------
        program : Program
        start : Tensor, shape (blocks, cells, rows, outputs), optional
            Warm start; ignored by the cvxpy solvers.
        callback : callable, optional
            Called with a ``Progress``; may raise to stop the solve.

        Raises
        ------
        InputError
            If the method can't solve this kind of program, or the start has the wrong shape.
        SolverUnavailableError, SolverError
            If the solver is missing here, or ended without a point.
        """
        given, program = program, program.unweighted()
        objection = self.objection(program)
        if objection is not None:
            raise InputError(f"solver {self.name!r} can't solve this program: {objection}")
        if start is not None and tuple(start.shape) != program.design.shape(program.n_outputs):
            raise InputError(
                f"start must have shape {program.design.shape(program.n_outputs)}; got {tuple(start.shape)}."
            )
        history: list[Progress] = []
        began = time.perf_counter()

        def report(iteration: int, objective: float, bound: float) -> None:
            seconds, feasible = time.perf_counter() - began, program.cones is None or not self.outside_cones
            history.append(Progress(iteration, seconds, objective, bound, feasible))
            if callback is not None:
                callback(history[-1])

        with torch.no_grad(), coarse_threads():
            outcome = self.run(program, start, report)
            seconds = time.perf_counter() - began
            if not bool(torch.isfinite(outcome.weights).all()):
                raise SolverError(f"{self.name} returned weights that are not finite. Rescale images, or change reg.")
            exact = program.double()
            violation = exact.violation(outcome.weights.double())
            # The weights are made feasible before they are judged: the objective is then Eq. 1's own.
            weights = broadcast(exact.repair(outcome.weights.double()).to(outcome.weights))
            final = self.judge(program, weights)
        gap = final.relative_gap
        status = Status.OPTIMAL
        if gap > self.tol:
            status = Status.INACCURATE if outcome.stopped is Status.OPTIMAL else outcome.stopped
            # A limit that nobody gave can't be raised: a priced block has none, for one.
            limited = status is Status.ITERATION_LIMIT and self.max_iter is not None
            remedy = "Raise max_iter, or tol." if limited else "Ask for a larger tol."
            logger.warning("%s: %s Relative gap %.2e, tol %.2e. %s", self.name, status.message, gap, self.tol, remedy)
        return SolveResult(
            weights=weights,
            objective=final.objective,
            dual_bound=final.dual_bound,
            relative_gap=gap,
            violation=violation,
            status=status.value,
            solver=self.name,
            iterations=outcome.iterations,
            seconds=seconds,
            history=history,
            intercepts=final.intercepts,
            prediction=final.prediction if program is given else None,
        )
