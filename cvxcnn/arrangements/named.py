"""Gates by name, as on the command line; a new sampler is one new file and one entry here."""

from __future__ import annotations

from collections.abc import Callable

from ..core.text import did_you_mean
from ..errors import InputError
from .base import GateSampler
from .data_patches import PatchGates
from .gaussian import GaussianGates
from .gradient_gates import GradientGates
from .trained_gates import TrainedGates
from .waves import WaveGates

__all__ = ["GATES", "parse_gates"]

GATES: dict[str, Callable[[int], GateSampler]] = {
    "gaussian": GaussianGates,
    "gradient": GradientGates,
    "patches": PatchGates,
    "trained": TrainedGates,
    "waves": WaveGates,
}


def parse_gates(text: str) -> int | str | GateSampler:
    """Return what a text means as ``gates`` of a block: "priced", a number, or a sampler's name and its count.

    Parameters
    ----------
    text : str
        "priced"; "N"; or a name in ``GATES`` and a number, such as "gaussian:N"; with N >= 1.

    Raises
    ------
    InputError
        If it is none of these.

    Examples
    --------
    >>> parse_gates("priced"), parse_gates("50"), parse_gates("gaussian:50")
    ('priced', 50, GaussianGates(count=50))
    """
    if text == "priced":
        return text
    kind, colon, number = text.rpartition(":")
    known = not colon or kind in GATES
    if not known or not (number.isascii() and number.isdigit() and int(number) > 0):
        kinds = ", ".join(f"{name}:N" for name in sorted(GATES))
        # A name that is right lacks its number.
        near = "" if text in GATES or (known and colon) else did_you_mean(kind or text, ("priced", *GATES))
        raise InputError(f'gates must be "priced", a number N >= 1, or one of {kinds}; got {text!r}{near or "."}')
    return GATES[kind](int(number)) if colon else int(number)
