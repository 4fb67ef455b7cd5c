"""How hard pricing searches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.checks import as_int, is_number, scalar
from ..errors import InputError

__all__ = ["LEAST_GAP", "PricedGates", "PricingOptions"]

# No smaller gap can be asked for: it is what the proof's own rounding costs.
LEAST_GAP = 1e-9

# Neurons that pricing begins with, of few images and of more.
_FEW_IMAGES, _FILTERS_OF_FEW, _FILTERS = 200, 64, 128


@dataclass(frozen=True)
class PricingOptions:
    """How hard to search.

    Parameters
    ----------
    starts : int
        Random starts of each search, half Gaussian and half data patches; the bound that is reported at the end comes
        from three times as many, and from up to 16 times as many (64 times for filters over few patches) while
        maxima are expected to be missing. Above 262,144 patches, climbing is on every second to fourth patch of as
        many images as make that number, from the best of eight times as many starts, which are whitened patches too;
        what is found is scored on all patches.
    ascent_steps : int
        Steps of the local ascent from each start.
    additions : int
        Filters added in a round, at most.
    improvement_steps : int
        L-BFGS steps on Eq. 1 between rounds, on half a million patches at most; where patches are few, more than three
        times as many before the first.
    initial_filters : int or None
        Neurons of the short ordinary training that the first filters come from (ReLU filters only); None for 64 of up
        to 200 images and 128 of more, for the optimum of few images has few.
    max_rounds : int
        Rounds of search and improvement.
    time_limit : float
        Seconds after which no new round is begun.
    gap : float
        Relative gap to the bound over all filters to stop at, at least 1e-9.
    prove_up_to : int
        Patch dimension (bias included) up to which the last bound of a ReLU block is proved, by branch and bound
        over the whole sphere, if there are at most 32,768 patches; otherwise, or with 0, it is searched. Dimension 4
        takes seconds to a minute, 5 takes minutes, 6 was not closed in five.
    neighbours : int
        For ReLU blocks with ``penalty="group"``: end with Eq. 2 over the patterns of the filters found and of this
        many neighbours of each, across the hyperplanes nearest to it; 0 ends with the filters themselves.
    """

    starts: int = 128
    ascent_steps: int = 40
    additions: int = 32
    improvement_steps: int = 60
    initial_filters: int | None = None
    max_rounds: int = 40
    time_limit: float = float("inf")
    gap: float = 1e-4
    prove_up_to: int = 4
    neighbours: int = 0

    def __post_init__(self) -> None:
        least = {"starts": 0, "ascent_steps": 1, "additions": 1, "improvement_steps": 1, "initial_filters": 1}
        for name, low in {**least, "max_rounds": 1, "prove_up_to": 0, "neighbours": 0}.items():
            if name != "initial_filters" or self.initial_filters is not None:
                object.__setattr__(self, name, as_int(name, getattr(self, name), low))
        # Both may be infinite: no limit, and no search for more.
        time_limit, gap = scalar(self.time_limit), scalar(self.gap)
        if time_limit != math.inf and not is_number(time_limit, above=0):
            raise InputError(f"time_limit must be a positive number of seconds; got {self.time_limit!r}.")
        if gap != math.inf and not (is_number(gap) and gap >= LEAST_GAP):
            raise InputError(f"gap must be a number >= {LEAST_GAP:g}, above what rounding costs; got {self.gap!r}.")
        object.__setattr__(self, "time_limit", float(time_limit))
        object.__setattr__(self, "gap", float(gap))

    def first_filters(self, images: int) -> int:
        """Return ``initial_filters`` for so many images.

        Examples
        --------
        >>> PricingOptions().first_filters(150), PricingOptions(initial_filters=30).first_filters(150)
        (64, 30)
        """
        usual = _FILTERS_OF_FEW if images <= _FEW_IMAGES else _FILTERS
        return usual if self.initial_filters is None else self.initial_filters


@dataclass(frozen=True)
class PricedGates(PricingOptions):
    """Gates or filters found by the optimisation itself: ``gates="priced"`` with its search options.

    Solve, search the unit ball for a u with |nu^T sum_k (X_k u)_+| > lam, add it, repeat until none is found; for
    gated programs, for a gate whose gradient sum_k X_k^T D_k nu is longer than lam. The patches alone don't
    determine these gates, so this is no ``GateSampler``: a block finds them while it solves.

    Parameters and errors are those of ``PricingOptions``.

    Examples
    --------
    >>> import torch
    >>> from cvxcnn import ConvexConvBlock
    >>> images = torch.linspace(-1, 1, 90, dtype=torch.float64).view(10, 3, 3)
    >>> block = ConvexConvBlock(
    ...     kernel_size=2, padding=0, pool_cells=1, bias=False, gates=PricedGates(starts=16, gap=0.01), reg=0.1
    ... )
    >>> block.fit(images, images.mean(dim=(1, 2))).certificate_.kind  # patches of 4 numbers are few enough for a proof
    'proved'
    """
