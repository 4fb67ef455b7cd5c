"""From the ``gates`` that a user gives to gate vectors of distinct patterns."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.checks import is_int, scalar
from ..core.distributed import broadcast, gather_rows, size
from ..errors import InputError
from ..patches.patches import Patches
from .base import Gates, GateSampler, check_count, check_vectors, distinct, draw_distinct
from .gaussian import GaussianGates

__all__ = ["resolve"]

_CHOICES = (
    "gates must be the number of gates (an int >= 1), an array (P, d) of gate vectors, "
    'or a sampler such as GaussianGates(100); "priced" where pricing is offered'
)


def resolve(gates: Any, patches: Patches, seed: int = 0, targets: Tensor | None = None) -> Gates:
    """Return gate vectors of distinct patterns from a number, an array or a sampler.

    Parameters
    ----------
    gates : int, array of shape (P, d), or sampler
        A number is drawn by ``GaussianGates``; an array (tensor, NumPy array or nested list) is taken as it is; a
        ``GateSampler``, or any object with ``sample(patches, count, generator)`` and ``count``, draws its count.
        Gates that repeat a pattern or are active on no patch are dropped, and drawn again if they were drawn.
    patches : Patches
        n images with K patches each.
    seed : int
        Seed of the draws, in [0, 2^63).
    targets : Tensor, shape (n, outputs), optional
        For samplers that choose gates by them.

    Returns
    -------
    Gates
        In the dtype and on the device of the patches; fewer than asked for where the patches have no more patterns
        or the sampler finds none.

    Raises
    ------
    InputError
        If ``gates`` is none of these, if no gate is active on any patch, or if several processes don't get as many.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> patches = Patches(torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]]), PatchGeometry(kernel_size=1))
    >>> gates = resolve(100, patches)  # two patches in the plane have four patterns, one of them zero
    >>> len(gates), gates.vectors.shape
    (3, torch.Size([3, 2]))
    """
    if not is_int(seed, 0, 1 << 63):
        raise InputError(f"seed must be an int in [0, 2^63); got {seed!r}.")
    found = _resolve(gates, patches, torch.Generator().manual_seed(int(seed)), targets)
    if len(found) == 0:
        raise InputError(
            "no gate is active on any patch, so nothing could be fitted. "
            "Check that the images are not all zero; use more gates, or their negatives."
        )
    return found if size() == 1 else _agreed(found)


def _agreed(gates: Gates) -> Gates:
    """Return the gates of the first process, or raise InputError if another has more or fewer."""
    counts = gather_rows(torch.tensor([len(gates)])).tolist()
    if len(set(counts)) > 1:
        raise InputError(f"processes must get the same gates; they got {counts} of them. Use another sampler.")
    return replace(gates, vectors=broadcast(gates.vectors))


def _resolve(gates: Any, patches: Patches, generator: torch.Generator, targets: Tensor | None) -> Gates:
    if isinstance(gates, str):
        if gates == "priced":
            raise InputError(
                'gates="priced" can\'t be resolved from the patches alone: priced gates are found while '
                f"the program is solved. Here, {_CHOICES}."
            )
        raise InputError(f"{_CHOICES}; got {gates!r}.")
    gates = scalar(gates)
    if isinstance(gates, (bool, Integral)):
        count = check_count(gates, "gates")
        return draw_distinct(GaussianGates(count).sample, patches, count, generator)
    if isinstance(gates, (Tensor, np.ndarray, list, tuple)):
        return distinct(patches, check_vectors(_as_tensor(gates), patches))
    if isinstance(gates, type):
        raise InputError(f"gates got the class {gates.__name__}; pass an instance, {gates.__name__}(...).")
    if isinstance(gates, GateSampler):
        return gates.draw(patches, generator, targets)
    if callable(getattr(gates, "sample", None)):
        count = check_count(getattr(gates, "count", None), f"{type(gates).__name__}.count")
        return draw_distinct(gates.sample, patches, count, generator)
    if isinstance(gates, nn.Module):
        raise InputError("gates got a torch module; pass gates_of(module), its filters as an array.")
    raise InputError(f"{_CHOICES}; got {gates!r}.")


def _as_tensor(array: Any) -> Tensor:
    if isinstance(array, Tensor):
        return array
    try:
        return torch.as_tensor(np.array(array, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise InputError(f"{_CHOICES}; the array given is not numeric and rectangular ({error}).") from None
