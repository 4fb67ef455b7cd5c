"""What a block is known to be: bounds over its own gates and over all of them, of which networks, and the words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .program import relative_gap

__all__ = ["NETWORKS", "Certificate", "networks_of"]

# The networks that a bound over all gates is a bound of.
NETWORKS = {
    "all": "all networks",
    "separate": "all networks whose neurons each feed one pooling cell and one output",
    "gated": "all gated networks",
    "gated_separate": "all gated networks whose filters each feed one pooling cell and one output",
}


def networks_of(activation: str, separable: bool, n_pairs: int) -> str:
    """Return which networks the program of a block is exact for: a key of ``NETWORKS``.

    Parameters
    ----------
    activation : str
    separable : bool
        Whether the penalty is a sum over (cell, output), as "group" is.
    n_pairs : int
        Cells times outputs; with one of them every neuron feeds it.

    Examples
    --------
    >>> networks_of("relu", True, 1), networks_of("relu", True, 40), networks_of("gated_relu", False, 40)
    ('all', 'separate', 'gated')
    """
    if activation == "gated_relu":
        return "gated_separate" if separable and n_pairs > 1 else "gated"
    return "separate" if separable and n_pairs > 1 else "all"


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
    networks : {"all", "separate", "gated", "gated_separate"}
        Of which networks ``global_bound`` is a bound, in the words of ``NETWORKS``: with the "group" penalty each
        neuron feeds one (cell, output), and an ordinary network, whose neurons feed them all, may be below it.
    n_distinct : int
        Distinct local maxima within a tenth of the highest that the search met, the lower ones counting as one; 0 if
        they were not told apart.
    expected_unseen : float
        How many more there are expected to be, given how often the starts met the same ones (Boender & Rinnooy Kan
        1987); nan if they were not told apart.
    """

    objective: float
    sampled_bound: float
    global_bound: float
    kind: str
    n_searched: int = 0
    networks: str = "all"
    n_distinct: int = 0
    expected_unseen: float = math.nan

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
        above = f"at most {self.global_gap:.1e} above the best of {NETWORKS[self.networks]}"
        over = {
            "proved": f"{above} (proved)",
            "searched": (
                f"{above} if none of the directions that a search from {self.n_searched} starts missed is worse than "
                f"those it found{self._missed()}"
            ),
            "none": "not compared with other gates",
        }[self.kind]
        own = f"{self.sampled_gap:.1e} from optimal over its own gates (proved)"
        return f"objective {self.objective:.6g}: {own}; {over}"

    def _missed(self) -> str:
        if not self.n_distinct:
            return ""
        more = "too many to tell" if not math.isfinite(self.expected_unseen) else f"{self.expected_unseen:.2g}"
        return f" ({self.n_distinct} distinct maxima; more expected: {more})"
