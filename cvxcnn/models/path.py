"""Regularisation path: one block solved for a grid of reg, from the zero solution down, each from the one before."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from ..core.checks import as_flag, as_int, as_number
from ..core.distributed import all_sum
from ..core.plainly import plainly
from ..core.threads import coarse_threads
from ..data.checks import are_flat
from ..drawing.path import plot_path
from ..errors import InputError
from ..fitting import Fit, OverAllNeurons, OverFixedGates, OverPricedGates, Task
from ..pricing.options import PricingOptions
from ..program.problem import Problem
from ..solvers import Callback
from .block import ConvexConvBlock
from .door import check_given
from .telling import Telling

__all__ = ["RegPath", "reg_path"]

logger = logging.getLogger(__name__)

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class RegPath:
    """Blocks fitted for falling ``reg``; every array has one entry for each of them.

    Attributes
    ----------
    blocks : list of ConvexConvBlock
        Fitted; the first at ``reg_max``, with zero neurons.
    train_error, validation_error : ndarray
        Mean over images of ||f - y||^2, by their weights if they have some; NaN without validation images.
    train_accuracy, validation_accuracy : ndarray
        Share of images on the right side of the middle (one output, training targets of two values), or whose largest
        output is the right one (training targets of two values, the larger one once a row); NaN for other targets.
    seconds : ndarray
        Wall time of each solve; the first includes finding ``reg_max``.
    """

    blocks: list[ConvexConvBlock]
    train_error: Array
    train_accuracy: Array
    validation_error: Array
    validation_accuracy: Array
    seconds: Array

    @property
    def regs(self) -> Array:
        """The grid, falling from reg_max."""
        return np.array([block.reg_ for block in self.blocks])

    @property
    def objective(self) -> Array:
        """Eq. 1, or the gated program's objective."""
        return np.array([block.certificate_.objective for block in self.blocks])

    @property
    def dual_bound(self) -> Array:
        """Proved bound over the gates or filters at hand."""
        return np.array([block.certificate_.sampled_bound for block in self.blocks])

    @property
    def relative_gap(self) -> Array:
        """Relative gap to ``dual_bound``."""
        return np.array([block.certificate_.sampled_gap for block in self.blocks])

    @property
    def global_bound(self) -> Array:
        """Bound over all networks of the class in ``networks``, known as ``kinds`` says; NaN where there is none."""
        return np.array([block.certificate_.global_bound for block in self.blocks])

    @property
    def global_gap(self) -> Array:
        """Relative gap to ``global_bound``."""
        return np.array([block.certificate_.global_gap for block in self.blocks])

    @property
    def kinds(self) -> list[str]:
        """How sure each ``global_bound`` is: "proved", "searched" or "none"."""
        return [block.certificate_.kind for block in self.blocks]

    @property
    def n_searched(self) -> Array:
        """Starts of the search behind each ``global_bound``; fewer between the ends of the path."""
        return np.array([block.certificate_.n_searched for block in self.blocks])

    @property
    def networks(self) -> list[str]:
        """Of which networks each ``global_bound`` is a bound: keys of ``certificate.NETWORKS``."""
        return [block.certificate_.networks for block in self.blocks]

    @property
    def n_distinct(self) -> Array:
        """Distinct maxima near the highest that each search met; 0 where they were not told apart."""
        return np.array([block.certificate_.n_distinct for block in self.blocks])

    @property
    def expected_unseen(self) -> Array:
        """How many more maxima are expected: NaN where they were not told apart, inf if too many to tell."""
        return np.array([block.certificate_.expected_unseen for block in self.blocks])

    @property
    def n_neurons(self) -> Array:
        """Active neurons."""
        return np.array([block.n_neurons_ for block in self.blocks])

    @property
    def best(self) -> ConvexConvBlock:
        """The block of the highest validation accuracy, then the lowest validation error.

        Raises
        ------
        InputError
            If the path has no validation images.
        """
        if np.isnan(self.validation_error).any():
            raise InputError("best needs validation images: reg_path(..., validation=(images, targets)).")
        # Without accuracies the error alone decides; at equal errors the sparser network, which comes first.
        order = np.lexsort((self.validation_error, -np.nan_to_num(self.validation_accuracy)))
        return self.blocks[int(order[0])]

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw objective with bounds, gap, neurons, and accuracy or error against reg, as a PNG."""
        plot_path(self, path)


@plainly
def reg_path(
    images: Any,
    targets: Any,
    *,
    block: ConvexConvBlock | None = None,
    points: int = 30,
    smallest: float = 1e-2,
    validation: tuple[Any, ...] | None = None,
    between: PricingOptions | None = None,
    sample_weight: Any = None,
    callback: Callable[[int, ConvexConvBlock], None] | None = None,
    verbose: bool = False,
) -> RegPath:
    """Fit a block for a geometric grid of ``reg`` from reg_max, where the solution is zero, down.

    Fixed gates are chosen once, and each solve starts from the weights before it. Priced filters or gates start from
    those before; the searches between the first and the last point are light (``between``), the last one has the
    block's own options. Every point is solved to the block's ``tol`` over the gates or filters at hand.

    Parameters
    ----------
    images : array-like, shape (n, C, H, W) or (n, H, W)
    targets : array-like, shape (n,) or (n, outputs)
    block : ConvexConvBlock, optional
        Settings of every point but for ``reg``; it isn't fitted itself.
    points : int
        At least 2.
    smallest : float
        The last ``reg`` as a share of reg_max, in (0, 1).
    validation : (images, targets) or (images, targets, weights), optional
        For ``validation_accuracy``, ``validation_error`` and ``best``.
    between : PricingOptions, optional
        Searches at the points between; by default an eighth of the block's own starts, a third of its steps, three
        rounds at most, and a gap of 1 %.
    sample_weight : array-like, shape (n,), optional
        As for ``ConvexConvBlock.fit``.
    callback : callable, optional
        Called with the index and the block after each point; may raise to stop.
    verbose : bool
        Say on standard error how far the path is.

    Returns
    -------
    RegPath

    Raises
    ------
    InputError
        If an argument can't be used, or reg_max is zero.

    Notes
    -----
    Over fixed gates only ``EnumeratedGates`` give a bound over all networks at every point; the search for one would
    cost more than the path, so it is made at the last point alone.

    Examples
    --------
    >>> images = np.random.default_rng(0).normal(size=(20, 6, 6))
    >>> path = reg_path(images, images.mean(axis=(1, 2)), block=ConvexConvBlock(gates=10), points=5)
    >>> int(path.n_neurons[0]), bool((path.relative_gap <= 1e-6).all()), bool((np.diff(path.objective) < 0).all())
    (0, True, True)
    """
    points, smallest = as_int("points", points, 2), as_number("smallest", smallest, 0, 1)
    settings = clone(block) if block is not None else ConvexConvBlock()
    check_given(images, targets, settings.loss)
    training = images, targets, sample_weight
    telling = Telling(as_flag("verbose", verbose))
    return _reg_path(training, settings, points, smallest, validation, between, callback, telling)


def _reg_path(
    training: tuple[Any, Any, Any],
    settings: ConvexConvBlock,
    points: int,
    smallest: float,
    validation: tuple[Any, ...] | None = None,
    between: PricingOptions | None = None,
    callback: Callable[[int, ConvexConvBlock], None] | None = None,
    telling: Telling | None = None,
) -> RegPath:
    """Return ``reg_path`` of what has been checked at the door, or comes from a stack."""
    began = time.perf_counter()
    task, telling = settings.task(*training), telling or Telling(False)
    telling.begin("path", task)
    held_out = None if validation is None else _held_out(settings, task.problem, validation)
    flat, middle = are_flat(training[1]), _middle(task.problem.targets)
    blocks: list[ConvexConvBlock] = []
    scores: list[tuple[float, ...]] = []
    seconds: list[float] = []
    with torch.no_grad(), coarse_threads():
        points_at = _points(task, between)
        largest = points_at.reg_max()
    if not largest > 0:
        raise InputError("reg_max is zero: targets (or images) are zero, so there is no path. Check the targets.")
    grid = largest * smallest ** (np.arange(points) / (points - 1))
    for index, reg in enumerate(grid.tolist()):
        name = f"point {index + 1} of {points}, reg {reg:.4g}"
        with torch.no_grad(), coarse_threads():
            found = points_at.fit(reg, index == points - 1, telling.hears(name, None))
            point = clone(settings).set_params(reg=reg).keep(found, flat)
            seconds.append(time.perf_counter() - began)
            own = _scores(point, task.problem, middle)
            scores.append((*own, *(_scores(point, held_out, middle) if held_out else (float("nan"),) * 2)))
        blocks.append(point)
        logger.info("%s: %s", name, point.certificate_)
        telling.end(name, point.certificate_)
        if callback is not None:
            callback(index, point)
        began = time.perf_counter()
    train_error, train_accuracy, validation_error, validation_accuracy = np.array(scores).T
    return RegPath(blocks, train_error, train_accuracy, validation_error, validation_accuracy, np.array(seconds))


def choose_reg(
    block: ConvexConvBlock,
    training: tuple[Tensor, Tensor, Tensor | None],
    held_out: tuple[Tensor, Tensor, Tensor | None],
    *,
    points: int,
    smallest: float,
    flat: bool = False,
    callback: Callback | None = None,
) -> ConvexConvBlock:
    """Return the block fitted with the ``reg`` of the lowest error on held-out images, along a path that falls.

    Unless gates are priced the path ends early, when the error has risen twice in a row, and only its best point is
    judged.

    Parameters
    ----------
    block : ConvexConvBlock
        Settings; its ``reg`` is replaced.
    training, held_out : (images, targets, weights)
        Targets (n, outputs), and weights of images or None.
    points, smallest
        As for ``reg_path``.
    flat : bool
        Whether the block's predictions are to be (n,).
    callback : callable, optional
        Of the last solve.
    """
    task = block.task(*training)
    if task.priced and not task.activation.whole:
        own, held = ((x, y[:, 0] if flat else y, weights) for x, y, weights in (training, held_out))
        path = _reg_path(own, clone(block), points, smallest, held)
        return path.blocks[int(np.argmin(path.validation_error))]
    held_problem = block.task(*held_out).problem
    best: tuple[float, float, Tensor | None] = (float("inf"), 1.0, None)
    weights: Tensor | None = None
    with torch.no_grad(), coarse_threads():
        fits = OverAllNeurons(task) if task.activation.whole else OverFixedGates(task)
        program, solver = fits.program, fits.solver
        largest, worse = fits.reg_max(), 0
        # From below reg_max, where weights are zero: a layer that does nothing is never chosen.
        for fraction in smallest ** (np.arange(1, points) / (points - 1)):
            point = replace(program, reg=float(largest * fraction))
            weights = solver.passed(point.unweighted(), weights)
            prediction = program.design.on(held_problem.patches).predict(weights)
            residual = prediction + solver.intercepts(program, weights) - held_problem.targets
            square = residual.double().square().sum(dim=1)
            error = float(all_sum((square * _beside(held_problem, square)).sum()))
            logger.info("reg %.3g of reg_max: held-out squared error %.6g", fraction, error)
            worse = worse + 1 if error >= best[0] else 0
            if not worse:
                best = error, point.reg, weights
            if worse == 2:
                break
        block.reg = best[1]
        return block.keep(fits.fit(best[1], start=best[2], callback=callback), flat)


class _Points(Protocol):
    """Fits along a path, each from the one before."""

    def reg_max(self) -> float: ...

    def fit(self, reg: float, last: bool, callback: Callback) -> Fit: ...


def _points(task: Task, between: PricingOptions | None) -> _Points:
    if task.activation.whole:
        return _Started(OverAllNeurons(task, keep=True))
    return _Priced(task, between or _light(task.search)) if task.priced else _Started(OverFixedGates(task, keep=True))


class _Started:
    """Points over fixed gates or all neurons: each solve begins with the weights of the point before."""

    def __init__(self, fits: OverFixedGates | OverAllNeurons) -> None:
        self.fits = fits
        self.unsearched = replace(fits.task.search, starts=0)
        self.weights: Tensor | None = None

    def reg_max(self) -> float:
        return self.fits.reg_max()

    def fit(self, reg: float, last: bool, callback: Callback) -> Fit:
        search = None if last else self.unsearched
        found = self.fits.fit(reg, start=self.weights, search=search, callback=callback)
        self.weights = found.result.weights
        return found


class _Priced:
    """Points over priced filters or gates: each search begins with those of the point before."""

    def __init__(self, task: Task, light: PricingOptions) -> None:
        self.fits, self.light = OverPricedGates(task), light
        self.filters = task.problem.patches.like.new_zeros(0, task.problem.patches.dim)
        self.largest = float("inf")

    def reg_max(self) -> float:
        self.largest = self.fits.reg_max()
        return self.largest

    def fit(self, reg: float, last: bool, callback: Callback) -> Fit:
        search = None if last else self.light
        if reg == self.largest:
            # Zero by the definition of reg_max; should this search find more, the bound says so.
            search = replace(self.light, gap=float("inf"))
        found = self.fits.fit(reg, start=self.filters, search=search, callback=callback)
        filters = found.neurons.filters
        self.filters = filters[filters.any(dim=1)]
        return found


def _light(options: PricingOptions) -> PricingOptions:
    """Return the default search at the points between."""
    return replace(
        options,
        starts=max(8, options.starts // 8),
        ascent_steps=max(10, options.ascent_steps // 2),
        improvement_steps=max(10, options.improvement_steps // 3),
        max_rounds=min(3, options.max_rounds),
        gap=max(1e-2, options.gap),
        prove_up_to=0,
    )


def _held_out(block: ConvexConvBlock, problem: Problem, validation: tuple[Any, ...]) -> Problem:
    """Return the problem of validation images and targets, or raise InputError."""
    if not isinstance(validation, (tuple, list)) or len(validation) not in (2, 3):
        raise InputError("validation must be a pair (images, targets), or (images, targets, weights).")
    held = block.task(*validation).problem
    own, other = problem.patches.images.shape[1:], held.patches.images.shape[1:]
    if own != other or held.targets.shape[1] != problem.targets.shape[1]:
        raise InputError(
            f"validation must have images and targets of the training shapes, {tuple(own)} (c, h, w) and "
            f"{problem.targets.shape[1]} outputs; got {tuple(other)} and {held.targets.shape[1]}."
        )
    return held


def _beside(problem: Problem, values: Tensor) -> Tensor:
    """Return the weights of a problem's images beside values (n,): ones if they have none."""
    weights = problem.loss.weights
    return torch.ones_like(values) if weights is None else weights.to(values)


def _middle(targets: Tensor) -> float | None:
    """Return what is halfway between the two values that encode classes, None if the targets encode none."""
    low, high = targets.amin(), targets.amax()
    coded = bool(((targets == low) | (targets == high)).all() and low < high)
    if coded and targets.shape[1] > 1:
        coded = bool(((targets == high).sum(dim=1) == 1).all())
    return float(low + high) / 2 if coded else None


def _scores(block: ConvexConvBlock, problem: Problem, middle: float | None) -> tuple[float, float]:
    """Return mean ||f - y||^2 over images, and accuracy, NaN where the training targets encode no classes.

    Means are by weights of images, over those of all processes: each must choose the same point of a path.
    """
    targets = problem.targets
    prediction = block.neurons_.predict(problem.patches)
    error = (prediction - targets).square().sum(dim=1)
    if middle is None:
        right = torch.full_like(error, float("nan"))
    elif targets.shape[1] == 1:
        right = ((prediction > middle) == (targets > middle)).flatten().to(error)
    else:
        right = (prediction.argmax(dim=1) == targets.argmax(dim=1)).to(error)
    weights = _beside(problem, error.double())
    sums = all_sum((torch.stack([error, right, torch.ones_like(error)]).double() * weights).sum(dim=1))
    return float(sums[0] / sums[2]), float(sums[1] / sums[2])
