"""A task, whose settings were checked once, and what a fit of it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..activations import Activation, Neurons
from ..arrangements import Gates
from ..errors import InputError
from ..pricing.certificate import Certificate
from ..pricing.options import PricingOptions
from ..program.problem import Problem
from ..program.program import Program, relative_gap
from ..solvers import Solver, SolveResult, get_solver

__all__ = ["DTYPES", "Fit", "Task", "check_place"]

DTYPES = {"float64": torch.float64, "float32": torch.float32}

# Eq. 1 of neurons rounded to another type differs by less than so many of its roundings.
_AS_KEPT = 100
# Roundings of the objective at zero weights that two orders of adding up may differ by.
_LAST_DIGITS = 16


def check_place(dtype: Any, device: Any) -> None:
    """Raise InputError if a block can't be of this dtype, or on this device.

    Examples
    --------
    >>> check_place("float64", "cpu")
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {sorted(DTYPES)}; got {dtype!r}.")
    try:
        torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f'device must be "cpu", "cuda" or "cuda:<number>"; got {device!r}.') from None
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f'device={device!r} was asked for, but torch finds no GPU. Use device="cpu".')


@dataclass(frozen=True)
class Task:
    """What is to be fitted, and how.

    Attributes
    ----------
    problem : Problem
        Its reg is 1 if none was given.
    activation : Activation
    gates : int, array or sampler
        As given; of no account if they are priced.
    priced : bool
    search : PricingOptions
        Of the pricing, or of the search for a bound over all gates where they are fixed.
    reg : float or None
        lam, if it was given.
    solver : str
    tol : float
    max_iter : int or None
    seed : int
        Of gates and searches.
    """

    problem: Problem
    activation: Activation
    gates: Any
    priced: bool
    search: PricingOptions
    reg: float | None = None
    solver: str = "auto"
    tol: float = 1e-6
    max_iter: int | None = None
    seed: int = 0

    def generator(self) -> torch.Generator:
        """Return a source of random numbers, the same each time."""
        return torch.Generator().manual_seed(self.seed)

    def at(self, reg: float) -> Problem:
        """Return the problem at another reg."""
        return replace(self.problem, reg=float(reg))

    def method(self, program: Program) -> Solver:
        """Return the solver of a program over fixed gates."""
        return get_solver(self.solver, program, tol=self.tol, max_iter=self.max_iter)


@dataclass(frozen=True)
class Fit:
    """A fitted task.

    Attributes
    ----------
    program : Program
        Over the gates or filters that were fixed or found.
    result : SolveResult
    certificate : Certificate
    neurons : Neurons
    gates : Gates or None
        What became of fixed gates.
    """

    program: Program
    result: SolveResult
    certificate: Certificate
    neurons: Neurons
    gates: Gates | None = None

    @classmethod
    def of(
        cls, task: Task, program: Program, result: SolveResult, certificate: Certificate, gates: Gates | None = None
    ) -> Fit:
        """Return the fit of a solution, judged as its neurons are kept."""
        neurons = task.activation.read(program, result.weights, result.intercepts)
        return cls(program, result, certificate, neurons, gates)._as_kept(task.activation)

    def _as_kept(self, activation: Activation) -> Fit:
        """Return this with no bound above Eq. 1 of the neurons that are kept, which rounding to float32 moved."""
        dtype, result, certificate = self.neurons.filters.dtype, self.result, self.certificate
        # A pass over the images in float64, where rounding may have the last word.
        if dtype == torch.float64 or result.relative_gap > _AS_KEPT * torch.finfo(dtype).eps:
            return self
        value = activation.eq1(self.neurons, self.program)
        if value is None:
            return self
        lower = certificate.global_bound
        # Who adds Eq. 1 up in another order gets another last digit.
        rounding = _LAST_DIGITS * self.program.double().rounding
        bound = value - rounding
        # Filters that turned in rounding may be better than any weights of those that were solved for.
        if bound < result.dual_bound:
            gap = relative_gap(value, bound, rounding)
            result = replace(result, objective=value, dual_bound=bound, relative_gap=gap)
            certificate = replace(certificate, objective=value, sampled_bound=bound)
        if bound < lower and certificate.kind != "proved":
            certificate = replace(certificate, global_bound=bound)
        return replace(self, result=result, certificate=certificate)
