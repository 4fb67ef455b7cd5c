"""Solvers: each takes a program and a start and returns a certified result; a new one is one file and one entry."""

from __future__ import annotations

from ..core.distributed import size
from ..errors import InputError
from ..program.program import Program
from .base import Callback, Progress, Solver, SolveResult, Status
from .cone_working_set import ConeWorkingSet
from .cost import choose
from .cvxpy_solver import Clarabel, Mosek, Scs
from .fista import Fista
from .proximal_newton import ProximalNewton
from .semismooth_newton import SemismoothNewton
from .spectral_cones import SpectralCones
from .streamed import Streamed
from .working_set import WorkingSet

__all__ = ["SOLVERS", "Callback", "Progress", "SolveResult", "Solver", "Status", "get_solver"]

SOLVERS: dict[str, type[Solver]] = {
    solver.name: solver
    for solver in (
        WorkingSet,
        ConeWorkingSet,
        SemismoothNewton,
        Fista,
        ProximalNewton,
        SpectralCones,
        Streamed,
        Clarabel,
        Scs,
        Mosek,
    )
}

# What "auto" tries, in this order: the first that accepts the program runs, and the result records it. Before them
# comes ``Streamed``, where it accepts the program and the cost model says that it is cheaper, or where several
# processes share the images.
_AUTO = (WorkingSet, ConeWorkingSet, SemismoothNewton, Fista, ProximalNewton, SpectralCones)


def get_solver(name: str, program: Program, tol: float = 1e-6, max_iter: int | None = None) -> Solver:
    """Return the solver of that name; "auto" is the cheapest of our own that accepts the program.

    Raises
    ------
    InputError
        If the name is unknown, or no solver of ours accepts the program.
    """
    if name == "auto":
        streamed = Streamed(tol=tol, max_iter=max_iter)
        if streamed.refusal(program) is None and (choose(program) or size() > 1):
            return streamed
        for candidate in _AUTO:
            solver = candidate(tol=tol, max_iter=max_iter)
            if solver.objection(program) is None and solver.suits(program):
                return solver
        raise InputError("no solver of this package accepts the program; name a cvxpy solver instead.")
    if name not in SOLVERS:
        raise InputError(f'solver must be "auto" or one of {sorted(SOLVERS)}; got {name!r}.')
    return SOLVERS[name](tol=tol, max_iter=max_iter)
