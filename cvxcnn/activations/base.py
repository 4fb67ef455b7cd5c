"""What a neuron is: the programs that train it, how it is priced, what is read back, and what is refused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..patches.pooling import Pooling, get_pooling
from ..penalties import Penalty
from ..pricing.certificate import Certificate, networks_of
from ..pricing.loop import PricedSolution
from ..pricing.options import PricingOptions
from ..pricing.separation import global_bound
from ..program.problem import Problem
from ..program.program import Program
from ..solvers import Callback
from .neurons import Neurons

__all__ = ["Activation", "Shapes"]

Shapes = Mapping[str, tuple["int | str", ...]]


class Activation(ABC):
    """A kind of neuron. One file, and one line in ``ACTIVATIONS``."""

    name: ClassVar[str]
    penalties: ClassVar[tuple[str, ...]]
    """Names of the penalties that it goes with, the one of the command line first; ``refusal`` refuses others."""
    networks: ClassVar[str] = "all"
    """Of which networks its programs are exact: "all", or a kind of them (``certificate.NETWORKS``)."""
    ordinary: ClassVar[bool] = True
    """Whether an ordinary ReLU network minimises the same objective, so that the two can be compared."""
    whole: ClassVar[bool] = False
    """Whether its program has no gates and is over all neurons at once: ``unpriced``, with a proved bound."""
    contribution: ClassVar[str] = (
        "the norm of the filter times that of its output weights, as a share of the sum over all. The class is the one "
        "whose output the filter moves most, averaged over the pooling cells."
    )
    """What ``Neurons.norms`` is, in words, for the page of a run."""

    def __init__(self, decay: Any = None) -> None:
        if decay is not None:
            raise InputError(
                f'decay is for activation="quadratic"; {self.name} neurons have that of Eq. 1, the squares of all '
                f"weights. Leave decay out; got {decay!r}."
            )

    def check(self, penalty: str, pooling: str = "mean") -> None:
        """Raise InputError if a penalty or a pooling doesn't go with it."""
        refused = self.refusal(penalty) or self.pooling_refusal(get_pooling(pooling))
        if refused:
            raise InputError(refused)

    def refusal(self, penalty: str) -> str:
        """Return why a penalty doesn't go with it, and the remedy; "" if it does."""
        return ""

    def pooling_refusal(self, pooling: Pooling) -> str:
        """Return why a pooling doesn't go with it, and the remedy; "" if it does, as all that are linear do."""
        if pooling.linear:
            return ""
        return (
            f"pooling={pooling.name!r} has no convex program that is known for {self.name} neurons. Use "
            'activation="relu", or pooling="mean", "sum" or "bilinear".'
        )

    def program_penalty(self, penalty: str, pairs: int | None = None) -> str:
        """Return the name of the program's penalty, of a block with so many (cell, output) pairs if they are known."""
        return penalty

    @abstractmethod
    def program(self, problem: Problem, gates: Tensor) -> Program:
        """Return the program over fixed gates (P, d); there may be none, for ``reg_max``."""

    @abstractmethod
    def unpriced(self, problem: Problem) -> Program:
        """Return the program over no filters or gates yet, from which pricing begins."""

    @abstractmethod
    def price(
        self,
        problem: Problem,
        *,
        tol: float,
        start: Tensor | None,
        generator: torch.Generator,
        options: PricingOptions,
        callback: Callback | None,
    ) -> PricedSolution:
        """Solve a problem by pricing: ``pricing.solve_priced`` with this activation's master."""

    def certify(
        self,
        program: Program,
        weights: Tensor,
        certificate: Certificate,
        options: PricingOptions,
        generator: torch.Generator,
    ) -> Certificate:
        """Return the certificate of a solution over fixed gates with a bound over all of them, searched or proved."""
        worst = global_bound(program, weights, options, generator)
        if not worst.proved:
            # Other gates lower the optimum, so that a bound over all is no news above the one over these.
            worst = worst._replace(bound=min(worst.bound, certificate.sampled_bound))
        return worst.certificate(program, certificate.objective, certificate.sampled_bound)

    @abstractmethod
    def read(self, program: Program, weights: Tensor, intercepts: Tensor | None) -> Neurons:
        """Return the neurons that a solution stands for."""

    def eq1(self, neurons: Neurons, program: Program) -> float | None:
        """Return Eq. 1 of neurons, in float64, on the program's images; None if the objective is not Eq. 1."""
        exact, kept = program.double(), neurons.double()
        return exact.loss.value(kept.predict(exact.design.patches), exact.targets) + program.reg * kept.decay()

    def shapes(self, dim: int, cells: int, outputs: int) -> Shapes:
        """Return the shapes of the tensors of ``Neurons.state``; numbers of neurons have a name, "m" for one."""
        return {"filters": ("m", dim), "readout": ("m", cells, outputs), "intercept": (outputs,)}

    def from_state(self, state: Mapping[str, Tensor]) -> Neurons:
        """Return the neurons with these tensors, whose shapes are right.

        Raises
        ------
        ValueError
            If they don't fit together: what there is too much or too little of.
        """
        return Neurons(state["filters"], state["readout"], state["intercept"])

    @abstractmethod
    def blocks(self, gates: int, penalty: Penalty) -> tuple[int, bool]:
        """Return how many blocks the program over so many gates has, and whether they are of gated patches."""

    def decompose(self, neurons: Neurons, problem: Problem) -> Neurons:
        """Return ReLU neurons with the outputs of these on the problem's images.

        Raises
        ------
        InputError
            If they are ReLU neurons already, or there are none.
        """
        raise InputError(f'decompose is for activation="gated_relu"; this block has activation={self.name!r}.')

    def networks_of(self, separable: bool, n_pairs: int) -> str:
        """Return which networks the program of a block is exact for: a key of ``certificate.NETWORKS``."""
        return networks_of(self.networks, separable, n_pairs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: Any) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))
