"""What a block is proved to be: bounds over its own gates and over all of them, and the words for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .branch_and_bound import ResponseBound, bound_responses
from .design import GatedDesign
from .program import Program, relative_gap

__all__ = ["Certificate", "Proof", "prove"]


@dataclass(frozen=True)
class Certificate:
    """How good a block is, and how sure that is.

    Attributes
    ----------
    objective : float
        Eq. 1 (or the gated program's objective) on the training images.
    sampled_bound : float
        Proved lower bound of the program over the gates or filters at hand.
    global_bound : float
        Lower bound over ALL gates: of the non-convex problem with any number of neurons.
    kind : {"proved", "searched", "none"}
        "proved": all patterns were enumerated, or the pricing problem was bounded over the whole sphere by branch
        and bound. "searched": valid unless some direction is worse than the worst
        that the search found: evidence, not proof. "none": no search was asked for (``global_bound`` is nan).
    n_searched : int
        Starts of that search; 0 unless "searched".
    """

    objective: float
    sampled_bound: float
    global_bound: float
    kind: str
    n_searched: int = 0

    @property
    def sampled_gap(self) -> float:
        """Relative gap to the bound over the gates at hand."""
        return relative_gap(self.objective, self.sampled_bound)

    @property
    def global_gap(self) -> float:
        """Relative gap to the bound over all gates."""
        return relative_gap(self.objective, self.global_bound)

    def __str__(self) -> str:
        """Say it in words that claim no more than was done."""
        over = {
            "proved": f"at most {self.global_gap:.1e} above the best of all networks (proved)",
            "searched": (
                f"at most {self.global_gap:.1e} above the best of all networks if none of the directions that a "
                f"search from {self.n_searched} starts missed is worse than those it found"
            ),
            "none": "not compared with other gates",
        }[self.kind]
        own = f"{self.sampled_gap:.1e} from optimal over its own gates (proved)"
        return f"objective {self.objective:.6g}: {own}; {over}"


@dataclass(frozen=True)
class Proof:
    """A proved lower bound over all networks, from one dual point.

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
    """Return a proved bound over all ReLU networks, or None if branch and bound ended before it was tight.

    With m >= max_u ||nu^T pooled (R u)_+||, the multiple reg / m of nu is feasible for the dual of Eq. 1.

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
    if isinstance(program.design, GatedDesign):
        return None
    found: ResponseBound = bound_responses(
        program.design.patches, dual, program.penalty, floor=program.reg, tol=tol, candidates=candidates
    )
    if not found.complete:
        return None
    largest = (program.reg / found.upper.clamp_min(1e-300)).to(dual)
    bound = program.loss.dual_value(dual, program.centre(program.targets), largest)
    lengths = found.argmax.norm(dim=1)
    attained = lengths > 0
    directions = F.normalize(found.argmax[attained], dim=1).to(dual)
    return Proof(bound, directions, (found.best[attained] / program.reg).to(dual))
