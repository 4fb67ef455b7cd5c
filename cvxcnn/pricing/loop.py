"""The pricing loop: solve over what is at hand, search for the direction that is missing, add it, repeat.

The dual of Eq. 1, with any number of neurons, is (squared loss shown)

    max_nu  nu . y - 1/2 ||nu||^2   subject to   max_{||u|| <= 1}  || nu^T pooled (R u)_+ ||  <=  lam

Solve a master program over the directions at hand, search the sphere for one whose response breaks the constraint,
have the master grow by it, repeat. What the search finds is evidence, not proof: the bound that comes with it is valid
if no direction is worse than the worst one found.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.checks import as_tol
from ..program.cones import Cones
from ..program.problem import Problem
from ..program.program import Program, relative_gap
from ..program.units import Units
from ..solvers import Callback, Progress
from .certificate import Certificate
from .options import PricingOptions
from .separation import Worst, check_search, check_searchable, worst_direction

__all__ = ["Master", "Point", "PricedSolution", "price", "solve_over"]

logger = logging.getLogger(__name__)

# While the worst direction violates by more than this factor, searches may be cut short.
_NEARLY = 1.1


@dataclass(frozen=True)
class Point:
    """A solution over the directions at hand.

    Attributes
    ----------
    program : Program
    weights : Tensor, shape (blocks, cells, rows, outputs)
    prediction : Tensor, shape (n, outputs)
    objective : float
    final : bool
        Whether no search from here can change it.
    """

    program: Program
    weights: Tensor
    prediction: Tensor
    objective: float
    final: bool = False

    @classmethod
    def of(cls, program: Program, weights: Tensor, final: bool = False) -> Point:
        """Return the point of these weights."""
        prediction = program.design.predict(weights)
        return cls(program, weights, prediction, program.objective(weights, prediction), final)


@dataclass(frozen=True)
class PricedSolution:
    """A solution over the directions that were priced, and the two certificates.

    Attributes
    ----------
    weights : Tensor, shape (blocks, cells, rows, outputs)
    program : Program
        The convex program over the directions found.
    objective, dual_bound : float
        Of that program: proved.
    global_bound : float
        Over all directions, given the worst one found in the search.
    worst : Worst
        The search, or the proof, that gave ``global_bound``.
    rounds : int
    seconds : float
    history : list of Progress
        One entry a round, with the bound over all directions.
    converged : bool
        Whether the gap to ``global_bound`` reached the one asked for.
    """

    weights: Tensor
    program: Program
    objective: float
    dual_bound: float
    global_bound: float
    worst: Worst
    rounds: int
    seconds: float
    history: list[Progress] = field(default_factory=list)
    converged: bool = True

    @property
    def filters(self) -> Tensor:
        """The filters or gates, shape (m, d)."""
        return self.program.design.directions

    @property
    def certificate(self) -> Certificate:
        """Both bounds, and how sure the one over all directions is."""
        worst = self.worst._replace(bound=self.global_bound)
        return worst.certificate(self.program, self.objective, self.dual_bound)

    def of(self, problem: Problem, units: Units) -> PricedSolution:
        """Return the solution of a problem, of which this is the one in other units."""
        design = self.program.design.on(problem.patches)
        program = replace(self.program, design=design, targets=problem.targets, reg=problem.reg, loss=problem.loss)
        if self.program.cones is not None:
            program.cones = Cones(problem.patches, self.filters)
        return replace(
            self,
            weights=self.weights * units.weights,
            program=program,
            objective=self.objective * units.objective,
            dual_bound=self.dual_bound * units.objective,
            global_bound=self.global_bound * units.objective,
            history=[_scaled(progress, units) for progress in self.history],
        )


class Master(ABC):
    """The program that pricing grows: over filters, over gates, or over patterns.

    Parameters
    ----------
    problem : Problem
    options : PricingOptions
    tol : float
        Relative gap of each solve over what is at hand.
    generator : torch.Generator
    """

    hasty: bool = False
    """Whether searches are cut short as long as the worst direction is far from feasible."""

    def __init__(self, problem: Problem, options: PricingOptions, tol: float, generator: torch.Generator) -> None:
        self.problem, self.options, self.generator = problem, options, generator
        self.tol = as_tol(tol)
        check_search(options)
        check_searchable(self.over(problem.patches.pool.new_zeros(0, problem.patches.dim)))
        self.quick = problem.patches.astype(torch.float32)

    @abstractmethod
    def over(self, directions: Tensor) -> Program:
        """Return the program over directions (m, d)."""

    @abstractmethod
    def first(self, start: Tensor | None, last: bool) -> Point:
        """Return the solution before the first search, from directions (m, d) or from none; it may be the last one."""

    @abstractmethod
    def grown(self, point: Point, met: Worst, converged: bool, last: bool) -> Point | None:
        """Return the solution with what a search met, or None if nothing is to be added.

        Parameters
        ----------
        point : Point
        met : Worst
            What the search at it found.
        converged : bool
            Whether the gap is small enough.
        last : bool
            Whether the round to come is the last one.
        """

    def finished(self, point: Point) -> Point:
        """Return the last point without what it doesn't use."""
        return point


def _scaled(progress: Progress, units: Units) -> Progress:
    objective, bound = progress.objective * units.objective, progress.dual_bound * units.objective
    return replace(progress, objective=objective, dual_bound=bound)


def price(master: Master, start: Tensor | None = None, callback: Callback | None = None) -> PricedSolution:
    """Return the solution of a master program that has grown until the gap is small or its options end it.

    Parameters
    ----------
    master : Master
    start : Tensor, shape (m, d), optional
        Directions to begin with.
    callback : callable, optional
        Called with a ``Progress`` after each round.
    """
    began, options = time.perf_counter(), master.options

    def ends(rounds: int) -> bool:
        return rounds == options.max_rounds or time.perf_counter() - began > options.time_limit

    last = ends(0)
    point = master.first(start, last)
    history: list[Progress] = []
    violation = float("inf")
    for rounds in range(options.max_rounds + 1):
        # In float64, where what a dual point must keep is kept: a mean of zero, shares that sum to one.
        dual = point.program.double().dual_point(point.prediction.double())
        enough = None if last else point.objective * (1 - options.gap)
        rough = master.hasty and not last and violation >= _NEARLY
        met = worst_direction(point.program, master.quick, dual, options, master.generator, enough=enough, rough=rough)
        violation = float(met.scores.max())
        gap = relative_gap(point.objective, met.bound)
        history.append(Progress(rounds, time.perf_counter() - began, point.objective, met.bound))
        logger.info(
            "pricing round %d: objective %.6g, worst violation %.5f, gap %.2e, %d blocks, %.1f s",
            rounds,
            point.objective,
            violation,
            gap,
            len(point.weights),
            history[-1].seconds,
        )
        if callback is not None:
            callback(history[-1])
        converged = gap <= options.gap
        if last:
            break
        last = ends(rounds + 1)
        following = master.grown(point, met, converged, last)
        if following is not None:
            point = following
        if following is None or following.final:
            break
    point = master.finished(point)
    final = point.program.double().evaluate(point.weights.double())
    return PricedSolution(
        weights=point.weights,
        program=point.program,
        objective=final.objective,
        dual_bound=final.dual_bound,
        global_bound=min(met.bound, final.objective),
        worst=met,
        rounds=rounds,
        seconds=time.perf_counter() - began,
        history=history,
        converged=converged,
    )


def solve_over(
    problem: Problem, solve: Callable[[Problem, Callback | None], PricedSolution], callback: Callback | None
) -> PricedSolution:
    """Return ``solve`` of a problem in units near one, its solution given back in the units of the problem.

    Searches, line searches and ordinary training have absolute constants, and run in float32.
    """
    units = problem.units
    if units == Units():
        return solve(problem, callback)

    def report(progress: Progress) -> None:
        if callback is not None:
            callback(_scaled(progress, units))

    return solve(problem.in_units(units), report).of(problem, units)
