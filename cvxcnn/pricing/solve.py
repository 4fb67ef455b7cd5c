"""A problem solved by pricing: over filters, over gates, or over filters and then their patterns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..program.problem import Problem
from ..solvers import Callback, Progress
from .filter_master import FilterMaster
from .loop import Master, PricedSolution, price, solve_over
from .options import PricingOptions
from .pattern_master import PatternMaster

__all__ = ["solve_priced"]


def solve_priced(
    problem: Problem,
    master: type[Master] = FilterMaster,
    *,
    tol: float = 1e-6,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    options: PricingOptions | None = None,
    callback: Callback | None = None,
) -> PricedSolution:
    """Minimise a problem over any number of neurons, by pricing.

    Parameters
    ----------
    problem : Problem
        Patches in float64.
    master : type of Master
        ``FilterMaster``: Eq. 1. ``GateMaster``: the gated program over all gates. ``PatternMaster``: Eq. 1 over
        filters, and then Eq. 2 over the patterns of these and of their neighbours, with the group penalty.
    tol : float
        Relative gap of each solve over the directions at hand.
    start : Tensor, shape (m, d), optional
        Filters or gates to begin with.
    generator : torch.Generator
        Source of the random starts.
    options : PricingOptions
    callback : callable
        Called with a ``Progress`` after each round.

    Raises
    ------
    InputError
        If the options ask for no search, or tol is no number in (0, 1).

    Examples
    --------
    >>> from cvxcnn.patches import Patches, PatchGeometry
    >>> images = torch.linspace(-1, 1, 90, dtype=torch.float64).view(10, 1, 3, 3).sin()
    >>> problem = Problem(Patches(images, PatchGeometry(2)), images.mean(dim=(1, 2, 3))[:, None], reg=0.1)
    >>> solve_priced(problem, options=PricingOptions(starts=16, gap=0.01)).converged
    True
    """
    options = options or PricingOptions()
    generator = generator or torch.Generator().manual_seed(0)
    solve = _over_patterns if master is PatternMaster else _over(master)
    return solve_over(
        problem, lambda near_one, report: solve(near_one, options, tol, generator, start, report), callback
    )


_Solve = Callable[[Problem, PricingOptions, float, torch.Generator, "Tensor | None", "Callback | None"], PricedSolution]


def _over(master: type[Master]) -> _Solve:
    def solve(
        problem: Problem,
        options: PricingOptions,
        tol: float,
        generator: torch.Generator,
        start: Tensor | None,
        callback: Callback | None,
    ) -> PricedSolution:
        return price(master(problem, options, tol, generator), start, callback)

    return solve


def _over_patterns(
    problem: Problem,
    options: PricingOptions,
    tol: float,
    generator: torch.Generator,
    start: Tensor | None,
    callback: Callback | None,
) -> PricedSolution:
    """Price filters, then the patterns that they are in."""
    began = time.perf_counter()
    first = price(FilterMaster(problem, options, tol, generator), start, callback)
    if not len(first.filters):
        return first
    passed = time.perf_counter() - began
    history = list(first.history)

    def report(progress: Progress) -> None:
        later = replace(progress, iteration=first.rounds + 1 + progress.iteration, seconds=passed + progress.seconds)
        history.append(later)
        if callback is not None:
            callback(later)

    left = max(options.time_limit - passed, 1e-9)
    second = price(PatternMaster(problem, replace(options, time_limit=left), tol, generator), first.filters, report)
    return replace(
        second, rounds=first.rounds + 1 + second.rounds, seconds=time.perf_counter() - began, history=history
    )
