"""What a neuron is. A new kind is one file here and one line in ``ACTIVATIONS``."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from .base import Activation
from .gated_relu import GatedRelu
from .linear import Linear
from .neurons import Neurons
from .quadratic import Quadratic
from .relu import Relu

__all__ = ["ACTIVATIONS", "Activation", "GatedRelu", "Linear", "Neurons", "Quadratic", "Relu", "get_activation"]

ACTIVATIONS: dict[str, type[Activation]] = {kind.name: kind for kind in (Relu, GatedRelu, Quadratic, Linear)}


def get_activation(name: Any, decay: Any = None) -> Activation:
    """Return an activation by its name, or raise InputError with the names that there are.

    ``decay`` is of quadratic neurons (``program.decay``).

    Examples
    --------
    >>> get_activation("relu").networks_of(separable=True, n_pairs=40)
    'separate'
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        names = [f'"{known}"' for known in ACTIVATIONS]
        raise InputError(f"activation must be {', '.join(names[:-1])} or {names[-1]}; got {name!r}.")
    return ACTIVATIONS[name](decay)
