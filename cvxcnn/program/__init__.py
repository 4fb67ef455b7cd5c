"""The convex programs: operators, objective, dual bound, cones; and Eq. 1 of a torch module."""

from .eq1 import nonconvex_objective
from .program import (
    Evaluation,
    Program,
    filter_program,
    gated_program,
    relative_gap,
    relu_program,
)

__all__ = [
    "Evaluation",
    "Program",
    "filter_program",
    "gated_program",
    "nonconvex_objective",
    "relative_gap",
    "relu_program",
]
