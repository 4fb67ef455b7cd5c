"""Whether maps depend on the weights at all: they are compared with those of a network whose weights are random."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from torch import nn

from ..core.checks import as_int
from ..errors import InputError
from .attribution import attributes

__all__ = ["SanityStep", "rank_correlation", "sanity_check", "sanity_checks"]


@dataclass(frozen=True)
class SanityStep:
    """A depth of a sanity check.

    Attributes
    ----------
    randomised : str
        Name of the module whose weights became random at this step, as all above it were before; "" for none. Modules
        that share their weights are named together.
    correlation : array, shape (n,)
        ``rank_correlation`` of each image's map with the map of the trained network, in [-1, 1], averaged over the
        draws; NaN where no draw has one.
    """

    randomised: str
    correlation: NDArray[np.float64]


def rank_correlation(first: Any, second: Any) -> NDArray[np.float64]:
    """Return Spearman's rank correlation of the magnitudes of two maps, image by image.

    It is the correlation coefficient of the ranks of |c|, ties given their mean rank.

    Parameters
    ----------
    first, second : array-like, shape (n, h, w)

    Returns
    -------
    array, shape (n,), float64
        In [-1, 1]; NaN where a map has equal magnitudes everywhere.

    Raises
    ------
    InputError
        If the shapes differ.

    Examples
    --------
    >>> rank_correlation([[[1, 2], [3, 4]]], [[[-1, 4], [9, 16]]])
    array([1.])
    """
    sides = [np.asarray(maps, dtype=np.float64) for maps in (first, second)]
    if sides[0].shape != sides[1].shape or sides[0].ndim < 2:
        raise InputError(f"maps must have one shape (n, h, w); got {sides[0].shape} and {sides[1].shape}.")
    ranks = [rankdata(np.abs(maps.reshape(len(maps), -1)), axis=1) for maps in sides]
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    covariance = (centred[0] * centred[1]).sum(axis=1)
    scale = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    return np.asarray(np.divide(covariance, scale, where=scale > 0, out=np.full_like(scale, np.nan)))


def sanity_check(
    module: nn.Module,
    images: Any,
    target: int | ArrayLike,
    method: str = "gradcam",
    *,
    layer: int = -1,
    draws: int = 3,
    seed: int = 0,
) -> list[SanityStep]:
    """Return how alike the maps stay while the weights are made random from the top layer downwards.

    A map that explains what the network has learnt loses its likeness; one that keeps it shows the image instead.

    Parameters
    ----------
    module : nn.Module
        Left as it is. Modules whose weights ask for no gradient, such as the standardisation of ``to_torch``, are
        no layers here.
    images, target, method, layer
        As for ``attribute``.
    draws : int
        Random networks at each depth, at least 1: the chance likeness of a single one can be large.
    seed : int
        Of the random weights.

    Returns
    -------
    list of SanityStep
        The first is the trained network itself, with correlation 1; then one for each module with weights, from the
        last in the order of ``module.named_modules()`` to the first, all above it staying random.

    Raises
    ------
    InputError
        As for ``attribute``, or if no module has weights.

    Notes
    -----
    The cascading randomisation of Adebayo et al. 2018, arXiv:1810.03292, Section 4.1. New weights and biases are
    Gaussian with mean 0 and the root mean square of the old ones, so the network keeps its scale. Maps are compared by
    ``rank_correlation``, the paper's with absolute values.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).double()
    >>> images = np.random.default_rng(0).normal(size=(3, 4, 4))
    >>> [(step.randomised, step.correlation.shape) for step in sanity_check(network, images, 0, "gradient")]
    [('', (3,)), ('3', (3,)), ('0', (3,))]
    """
    return sanity_checks(module, images, target, (method,), layer=layer, draws=draws, seed=seed)[method]


def sanity_checks(
    module: nn.Module,
    images: Any,
    target: int | ArrayLike,
    methods: Sequence[str],
    *,
    layer: int = -1,
    draws: int = 3,
    seed: int = 0,
) -> dict[str, list[SanityStep]]:
    """Return the ``sanity_check`` of several methods, all on the same random networks.

    Parameters
    ----------
    module, images, target, layer, draws, seed
        As for ``sanity_check``.
    methods : sequence of str

    Raises
    ------
    InputError
        As for ``sanity_check``.
    """
    draws = as_int("draws", draws)
    names = [name for name, _ in _layers(module)]
    if not names:
        raise InputError("module has no weights that ask for a gradient, so there is nothing to make random.")
    trained = attributes(module, images, target, methods, layer=layer)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[list[NDArray[np.float64]]]] = {method: [[] for _ in names] for method in methods}
    for _ in range(draws):
        network = copy.deepcopy(module)
        for place, (_, part) in enumerate(_layers(network)):
            _randomise(part, generator)
            for method, maps in attributes(network, images, target, methods, layer=layer).items():
                found[method][place].append(rank_correlation(trained[method], maps))
    return {
        method: [
            SanityStep("", rank_correlation(trained[method], trained[method])),
            *(SanityStep(name, _mean(values)) for name, values in zip(names, found[method], strict=True)),
        ]
        for method in methods
    }


def _layers(module: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """Return the layers with weights, from the top: the names of each, and what is made random.

    Modules that share their weights are one layer, at the place of the topmost: one can't be random without the others.
    """
    found: dict[nn.Parameter, tuple[list[str], dict[nn.Parameter, None]]] = {}
    for name, part in reversed(list(module.named_modules(remove_duplicate=False))):
        if isinstance(weight := getattr(part, "weight", None), nn.Parameter) and weight.requires_grad:
            names, parameters = found.setdefault(weight, ([], {}))
            names.append(name)
            parameters.update(dict.fromkeys(part.parameters(recurse=False)))
    return [(" and ".join(reversed(names)), list(parameters)) for names, parameters in found.values()]


def _randomise(layer: Iterable[nn.Parameter], generator: torch.Generator) -> None:
    with torch.no_grad():
        for values in layer:
            random = torch.randn(values.shape, generator=generator, dtype=values.dtype)
            values.copy_(random.to(values.device) * values.square().mean().sqrt())


def _mean(draws: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the mean over draws of what is not NaN."""
    values = np.array(draws)
    count = np.isfinite(values).sum(axis=0)
    return np.asarray(np.divide(np.nansum(values, axis=0), count, where=count > 0, out=np.full(count.shape, np.nan)))
