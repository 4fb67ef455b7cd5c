"""How concentrated maps are, as numbers between 0 and 1, and how sure a mean over images is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.checks import as_int, as_number
from ..errors import InputError

__all__ = ["Interval", "bootstrap_interval", "gini", "half_mass_share"]

# Resampled values held at a time.
CHUNK_ENTRIES = 1 << 22


def _magnitudes(maps: Any) -> NDArray[np.float64]:
    """Return |c| of every map as a row (n, entries), largest last; NaN in the rows of maps that are zero."""
    values = np.asarray(maps, dtype=np.float64)
    if values.ndim < 2 or values[:1].size == 0:
        raise InputError(f"maps must have shape (n, h, w), with one map and one entry at least; got {values.shape}.")
    if not np.isfinite(values).all():
        raise InputError(f"maps must be finite; {int((~np.isfinite(values)).sum())} entries are NaN or infinite.")
    rows = np.sort(np.abs(values.reshape(len(values), -1)), axis=1)
    # By the largest first, so that no sum is out of range.
    return np.asarray(np.divide(rows, rows[:, -1:], where=rows[:, -1:] > 0, out=np.full_like(rows, np.nan)))


def gini(maps: Any) -> NDArray[np.float64]:
    """Return the Gini index of each map: 0 if all entries are equally large, 1 - 1/N if one holds everything.

    With the magnitudes |c| of the N entries in ascending order,

        G = 1 - 2 sum_k |c_k| / ||c||_1 (N - k + 1/2) / N,    k = 1..N.

    Parameters
    ----------
    maps : array-like, shape (n, h, w)
        Signs are ignored.

    Returns
    -------
    array, shape (n,), float64
        In [0, 1); NaN for a map of zeros.

    Raises
    ------
    InputError
        If there are no maps, or values are not finite.

    Notes
    -----
    Source: Hurley & Rickard 2009, arXiv:0811.4706, Table I; it doesn't change with the scale of a map.

    Examples
    --------
    >>> gini([[[1, 1], [1, 1]], [[0, -5], [0, 0]]])
    array([0.  , 0.75])
    """
    rows = _magnitudes(maps)
    count = rows.shape[1]
    weights = (count - np.arange(1, count + 1) + 0.5) / count
    return np.asarray(1 - 2 * (rows @ weights) / rows.sum(axis=1))


def half_mass_share(maps: Any) -> NDArray[np.float64]:
    """Return the smallest share of each map's entries that holds half of its mass; small for sparse maps.

    With the magnitudes |c| of the N entries in descending order, it is

        min { m : |c_1| + ... + |c_m| >= ||c||_1 / 2 } / N.

    Parameters
    ----------
    maps : array-like, shape (n, h, w)
        Signs are ignored.

    Returns
    -------
    array, shape (n,), float64
        From 1/N to about 1/2; NaN for a map of zeros.

    Raises
    ------
    InputError
        If there are no maps, or values are not finite.

    Examples
    --------
    >>> half_mass_share([[[1, 1], [1, 1]], [[0, -5], [0, 0]], [[4, 3], [2, 1]]])
    array([0.5 , 0.25, 0.5 ])
    """
    mass = np.cumsum(_magnitudes(maps)[:, ::-1], axis=1)
    # Half is reached also where rounding leaves it a hair short.
    reached = mass >= mass[:, -1:] * (0.5 - 1e-12)
    share = (reached.argmax(axis=1) + 1) / mass.shape[1]
    return np.where(np.isfinite(mass[:, -1]), share, np.nan)


@dataclass(frozen=True)
class Interval:
    """A mean over images and its bootstrap confidence interval.

    Attributes
    ----------
    mean, low, high : float
        NaN if there is no value.
    n : int
        Values that it is the mean of: those that are not NaN.
    """

    mean: float
    low: float
    high: float
    n: int


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the mean of values and its percentile bootstrap interval.

    The interval is from the (1 - confidence)/2 to the (1 + confidence)/2 quantile of the means of ``resamples`` draws
    of n values with replacement (Efron 1979). It speaks of other images from the same source, not of another training.

    Parameters
    ----------
    values : array-like, shape (n,)
        One an image; NaN are left out. For a comparison of two networks, the differences image by image.
    confidence : float
        In (0, 1).
    resamples : int
        At least 1.
    seed : int
        Of the draws: the same seed gives the same interval.

    Raises
    ------
    InputError
        If an argument is out of its range.

    Examples
    --------
    >>> interval = bootstrap_interval([1.0, 2.0, 3.0, float("nan")])
    >>> interval.mean, interval.n, interval.low < 2.0 < interval.high
    (2.0, 3, True)
    """
    confidence, resamples = as_number("confidence", confidence, 0, 1), as_int("resamples", resamples)
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1:
        raise InputError(f"values must be of shape (n,); got {sample.shape}.")
    sample = sample[~np.isnan(sample)]
    count = len(sample)
    if not count:
        return Interval(np.nan, np.nan, np.nan, 0)
    random = np.random.default_rng(seed)
    chunk = max(1, CHUNK_ENTRIES // count)
    sizes = [min(chunk, resamples - start) for start in range(0, resamples, chunk)]
    means = np.concatenate([sample[random.integers(count, size=(size, count))].mean(axis=1) for size in sizes])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(sample.mean()), float(low), float(high), count)
