"""Seeds: an int gives the same result each time, None another one, as in scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..errors import InputError
from .checks import is_int, scalar
from .distributed import broadcast

__all__ = ["check_seed", "seed_of"]

_SEEDS = 1 << 63


def check_seed(random_state: Any) -> None:
    """Raise InputError if this is neither an int in [0, 2^63) nor None."""
    if random_state is not None and not is_int(random_state, 0, _SEEDS):
        raise InputError(
            f"random_state must be an int in [0, 2^63); got {random_state!r}. None stands for another one each time."
        )


def seed_of(random_state: Any) -> int:
    """Return a seed: the one given, or for None one of fresh entropy, the same in all processes."""
    if random_state is not None:
        return int(scalar(random_state))
    fresh = np.random.SeedSequence().generate_state(1, np.uint64)[0] >> np.uint64(1)
    return int(broadcast(torch.tensor([int(fresh)], dtype=torch.int64)))
