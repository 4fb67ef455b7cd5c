"""What a block is known to be: bounds over its own gates and over all of them, of which networks, and the words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.markup import table
from ..program.program import relative_gap

__all__ = ["NETWORKS", "Certificate", "beyond", "maxima", "networks_of"]

# The networks that a bound over all gates is a bound of.
NETWORKS = {
    "all": "all networks",
    "separate": "all networks whose neurons each feed one pooling cell and one output",
    "gated": "all gated networks",
    "gated_separate": "all gated networks whose filters each feed one pooling cell and one output",
    "quadratic": "all quadratic networks",
    "quadratic_separate": "all quadratic networks whose neurons each feed one pooling cell and one output",
    "linear": "all linear networks",
    "linear_separate": "all linear networks whose neurons each feed one pooling cell and one output",
    "circular": "all circular linear networks of full-length filters",
    "circular_relu": "all circular ReLU networks of full-length filters",
    "circular_relu_separate": "all circular ReLU networks of full-length filters whose neurons each feed one output",
}

# Networks that such a bound says nothing of, though they are of the same layer.
_BEYOND = {
    "separate": "an ordinary network, whose neurons feed all cells and outputs, may be below the bound",
    "gated_separate": "a gated network whose filters feed all cells and outputs may be below the bound",
    "quadratic_separate": "a quadratic network whose neurons feed all cells and outputs may be below the bound",
    "linear_separate": "a linear network whose neurons feed all cells and outputs may be below the bound",
    "circular_relu_separate": "a circular ReLU network whose neurons feed all outputs may be below the bound",
}


def networks_of(networks: str, separable: bool, n_pairs: int) -> str:
    """Return which networks the program of a block is exact for: a key of ``NETWORKS``.

    Parameters
    ----------
    networks : {"all", "gated", "quadratic", "linear"}
        Of which its activation is.
    separable : bool
        Whether the penalty is a sum over (cell, output), as "group" is.
    n_pairs : int
        Cells times outputs; with one of them every neuron feeds it.

    Examples
    --------
    >>> networks_of("all", True, 1), networks_of("all", True, 40), networks_of("gated", False, 40)
    ('all', 'separate', 'gated')
    """
    if separable and n_pairs > 1:
        return "separate" if networks == "all" else f"{networks}_separate"
    return networks


def beyond(networks: str | None) -> str:
    """Return which networks of a layer may be below a bound of ``networks``, in words; "" for none.

    Examples
    --------
    >>> beyond("separate")
    'an ordinary network, whose neurons feed all cells and outputs, may be below the bound'
    """
    return _BEYOND.get(networks or "", "")


def maxima(n_distinct: int, expected_unseen: float) -> str:
    """Return what a search met and may have missed, in words; "" if maxima were not told apart.

    Examples
    --------
    >>> maxima(4, 0.2083), maxima(90, float("inf"))
    ('4 distinct maxima; more expected: 0.21', '90 distinct maxima; more expected: too many to tell')
    >>> maxima(90, 1873.2), maxima(2, 3e-5)
    ('90 distinct maxima; more expected: 1,900', '2 distinct maxima; more expected: under 0.01')
    """
    if not n_distinct:
        return ""
    more = "too many to tell"
    if math.isfinite(expected_unseen):
        rounded = float(f"{expected_unseen:.2g}")
        more = "under 0.01" if 0 < rounded < 0.01 else f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"
    return f"{n_distinct} distinct {'maximum' if n_distinct == 1 else 'maxima'}; more expected: {more}"


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
        and bound, or it is an eigenvalue problem (quadratic and linear neurons). "searched": valid unless some
        direction is worse than the worst that the search found: evidence, not proof. "none": no search was asked for
        (``global_bound`` is nan).
    n_searched : int
        Starts of that search; 0 unless "searched".
    networks : {"all", "gated", "quadratic", "linear"}, or these with "separate"
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
        said = [
            f"objective {self.objective:.6g}: {self.sampled_gap:.1e} from optimal over its own gates (proved)",
            {"proved": self._above("(proved)"), "searched": self._above(self._condition())}.get(
                self.kind, "not compared with other gates"
            ),
            beyond(self.networks) if self.kind in ("proved", "searched") else "",
        ]
        return "; ".join(filter(None, said))

    def _repr_html_(self) -> str:
        """Return the certificate as a notebook shows it."""
        rows = [
            ("objective", f"{self.objective:.6g}"),
            ("bound over its own gates", f"{self.sampled_bound:.6g} (proved)"),
            ("gap", f"{100 * self.sampled_gap:.3g} %"),
        ]
        if self.kind in ("proved", "searched"):
            rows += [
                (f"bound over {NETWORKS[self.networks]}", f"{self.global_bound:.6g} ({self.kind})"),
                ("gap", f"{100 * self.global_gap:.3g} %"),
                ("known", "proved" if self.kind == "proved" else self._condition()),
            ]
        return table(rows)

    def _above(self, known: str) -> str:
        return f"at most {self.global_gap:.1e} above the best of {NETWORKS[self.networks]} {known}"

    def _condition(self) -> str:
        met = maxima(self.n_distinct, self.expected_unseen)
        return (
            f"if none of the directions that a search from {self.n_searched} starts missed is worse than those it "
            f"found{f' ({met})' if met else ''}"
        )
