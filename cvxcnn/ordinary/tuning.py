"""Learning rates of the ordinary training: the one that is taken, and the best of several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.threads import coarse_threads
from ..errors import InputError, SolverError
from ..losses import get_loss
from ..patches.patches import Patches
from ..program.units import Units
from .baseline import check_problem, rate_unit, train_baseline
from .network import Network

__all__ = ["default_learning_rate", "tune"]

TUNING_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def default_learning_rate(
    patches: Patches, targets: Tensor, width: int, *, connect: str = "dense", optimizer: str = "adam", seed: int = 0
) -> float:
    """Return the peak learning rate that ``train_baseline`` takes when none is given.

    It follows the scale s of the starting weights, which follows images and targets: 0.11 s / d^(1/4) for
    Adam, 8 s^2 / mean ||y_j||^2 for SGD. Multiplying images, targets or reg by a constant in the way that
    leaves Eq. 1's problem the same then leaves the training the same.

    Parameters
    ----------
    patches, targets, width, connect, optimizer, seed
        As for ``train_baseline``.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> patches = Patches(torch.ones(2, 1, 3, 3, dtype=torch.float64), PatchGeometry(3))
    >>> targets = torch.ones(2, 1, dtype=torch.float64)
    >>> small = default_learning_rate(patches, targets, 4)
    >>> round(default_learning_rate(patches, 4 * targets, 4) / small, 4)
    2.0
    """
    check_problem(patches, targets, width, connect, optimizer)
    kind = get_loss("squared")
    units = Units.of(patches, targets, kind)
    with torch.no_grad(), coarse_threads():
        near_one = units.scaled(patches).astype(torch.float32)
        network = Network(near_one, targets / units.targets, kind, width, connect)
        return network.learning_rate(optimizer, network.start(seed)[0]) * rate_unit(units, optimizer)


def tune(
    patches: Patches,
    targets: Tensor,
    reg: float,
    width: int,
    *,
    learning_rates: Sequence[float] | None = None,
    connect: str = "dense",
    optimizer: str = "adam",
    epochs: int = 30,
    batch_size: int = 64,
    seed: int = 0,
    loss: str = "squared",
    sample_weight: Tensor | None = None,
) -> float:
    """Return the learning rate that reaches the lowest Eq. 1 in a short run.

    Parameters
    ----------
    learning_rates : sequence of float or None
        Rates to try; None for 1/4, 1/2, 1, 2 and 4 times ``default_learning_rate``.
    epochs : int
        Length of each run.
    patches, targets, reg, width, connect, optimizer, batch_size, seed, loss, sample_weight
        As for ``train_baseline``.

    Returns
    -------
    float
        One of the rates.

    Raises
    ------
    InputError
        As for ``train_baseline``, or if there is no rate to try.
    SolverError
        If every rate diverges.

    Notes
    -----
    Only training images are looked at. Long runs like somewhat smaller rates than short ones.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> images = torch.linspace(-1, 1, 36, dtype=torch.float64).view(4, 1, 3, 3)
    >>> patches = Patches(images, PatchGeometry(kernel_size=2))
    >>> targets = torch.tensor([[1.0], [0.0], [0.0], [1.0]], dtype=torch.float64)
    >>> tune(patches, targets, 0.1, 4, learning_rates=[1e-6, 1e-2], epochs=20)
    0.01
    """
    if learning_rates is None:
        base = default_learning_rate(patches, targets, width, connect=connect, optimizer=optimizer, seed=seed)
        learning_rates = [factor * base for factor in TUNING_FACTORS]
    if not learning_rates:
        raise InputError("learning_rates is empty; pass one rate at least, or None for the default grid.")
    best: tuple[float, float] | None = None
    for rate in learning_rates:
        try:
            result = train_baseline(
                patches,
                targets,
                reg,
                width,
                connect=connect,
                optimizer=optimizer,
                learning_rate=rate,
                epochs=epochs,
                batch_size=batch_size,
                seed=seed,
                loss=loss,
                sample_weight=sample_weight,
            )
        except SolverError:
            continue
        # A run that had to lower its rate speaks for the rate that worked.
        found = (result.objective, result.learning_rate)
        best = found if best is None else min(best, found)
    if best is None:
        raise SolverError(f"{optimizer} diverged at every one of the learning rates {list(learning_rates)}.")
    return best[1]
