"""A proved bound over the ReLU networks of a penalty, from one dual point and branch and bound on the sphere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..program.program import Program
from .branch_and_bound import ResponseBound, bound_responses

__all__ = ["Proof", "prove"]


@dataclass(frozen=True)
class Proof:
    """A proved lower bound over all networks of the penalty's kind, from one dual point.

    Attributes
    ----------
    bound : float
    directions : Tensor, shape (m, d)
        Unit filters at which the dual constraint is most broken, or nearest to it.
    scores : Tensor, shape (m,)
        Their dual norms / reg.
    """

    bound: float
    directions: Tensor
    scores: Tensor


def prove(program: Program, dual: Tensor, candidates: Tensor, tol: float) -> Proof | None:
    """Return a proved bound over all ReLU networks of the penalty's kind, or None if there is none, or not in time.

    With m >= max_u ||nu^T pooled (R u)_+||, the multiple reg / m of nu is feasible for the dual of Eq. 1. All in
    float64, whatever the dtype of the program.

    Parameters
    ----------
    program : Program
        Over ReLU patterns or filters; not a gated one.
    dual : Tensor, shape (n, outputs)
        nu.
    candidates : Tensor, shape (m, d)
        Directions that are probably among the worst.
    tol : float
        How far m may be above the largest value, relative to it.
    """
    if program.design.directions_are != "filters" or program.penalty.group_axes is None:
        return None
    program, dual = program.double(), dual.double()
    found: ResponseBound = bound_responses(
        program.design.patches, dual, program.penalty, floor=program.reg, tol=tol, candidates=candidates
    )
    if not found.complete:
        return None
    largest = program.reg / found.upper.to(dual).clamp_min(torch.finfo(dual.dtype).tiny)
    bound = program.loss.dual_value(dual, program.centre(program.targets), largest)
    lengths = found.argmax.norm(dim=1)
    attained = lengths > 0
    directions = F.normalize(found.argmax[attained], dim=1).to(dual)
    return Proof(bound, directions, (found.best[attained] / program.reg).to(dual))
