"""The rival: the same Conv+ReLU+pooling+Linear block, trained on Eq. 1 with Adam or SGD as torch users would."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.checks import as_int, is_number
from ..core.plainly import plainly
from ..core.threads import coarse_threads
from ..data.checks import check_weights
from ..errors import InputError, SolverError
from ..losses import get_loss
from ..patches.patches import Patches
from ..program.design import FilterDesign
from ..program.units import Units
from .network import Network, rebalance

__all__ = ["BaselineCallback", "BaselineResult", "train_baseline"]

logger = logging.getLogger(__name__)

BaselineCallback = Callable[[int, float, float], None]

CONNECTIONS = ("dense", "group")
OPTIMIZERS = ("adam", "sgd")

# How these were chosen: see the notes of train_baseline.
ADAM_BETAS = (0.9, 0.99)
SGD_MOMENTUM = 0.9
FIRST_CYCLE_STEPS = 1150
ALL_STEPS = 7 * FIRST_CYCLE_STEPS
LEAST_EPOCHS = 20
CYCLE_GROWTH = 2
CYCLE_DECAY = 0.5**0.5
FINAL_RATE = 1e-3
RECORDS_PER_CYCLE = 10
NEGLIGIBLE = 0.03
RETRIES = 5
RETRY_FACTOR = 0.25


@dataclass(frozen=True)
class BaselineResult:
    """A block trained in the ordinary way.

    Attributes
    ----------
    filters : Tensor, shape (m, d), float64
        u_i, with the bias last; balanced, ||u_i|| = ||w_i||. Rows of unused neurons are zero.
    readout : Tensor, shape (m, cells, outputs), float64
        w_ico.
    objective : float
        Eq. 1 of these weights over all images, computed in float64.
    epochs : int
        Passes over the images.
    seconds : float
        Wall time of the training that these weights come from, restarts after divergence included.
    history : list of (float, float)
        (seconds, objective) now and then; the last entry is the result itself.
    stopped : {"converged", "max_epochs"}
        "converged": a whole cycle of the learning rate improved the objective by less than ``tol``, relatively.
    learning_rate : float
        Peak rate of the first cycle, as used.
    """

    filters: Tensor
    readout: Tensor
    objective: float
    epochs: int
    seconds: float
    history: list[tuple[float, float]]
    stopped: str
    learning_rate: float


def _cycles(epochs: int, length: int) -> list[int]:
    """Return the lengths of the cycles: each twice the one before, a short remainder joined to the last."""
    lengths = []
    while epochs > 0:
        taken = epochs if epochs < (1 + CYCLE_GROWTH) * length else length
        lengths.append(taken)
        epochs -= taken
        length *= CYCLE_GROWTH
    return lengths


def _rate(step: int, steps: int, warmup: int) -> float:
    """Return the share of the peak rate at this step: a linear rise, then half a cosine down to FINAL_RATE."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return FINAL_RATE + (1.0 - FINAL_RATE) * 0.5 * (1.0 + math.cos(math.pi * progress))


class _DivergedError(Exception):
    """The learning rate is too large for this problem."""


@dataclass
class _Run:
    """One training run: where it is, what it has seen, and its best weights."""

    network: Network
    exact: Patches
    exact_targets: Tensor
    reg: float
    began: float
    callback: BaselineCallback | None
    epoch: int = 0
    history: list[tuple[float, float]] = field(default_factory=list)
    filters: Tensor = field(init=False)
    readout: Tensor = field(init=False)
    objective: float = math.inf
    stopped: str = "max_epochs"

    def _value(self, prediction: Tensor, targets: Tensor, filters: Tensor, readout: Tensor) -> float:
        squares = float(filters.double().square().sum() + readout.double().square().sum())
        return self.network.loss.value(prediction.double(), targets.double()) + 0.5 * self.reg * squares

    def record(self, filters: Tensor, readout: Tensor) -> float:
        """Note the objective of these weights, computed from predictions in the training's own dtype."""
        prediction = self.network.predict(filters, readout)
        value = self._value(prediction, self.network.targets, filters, readout)
        if not math.isfinite(value):
            raise _DivergedError
        self._note(value)
        return value

    def _note(self, value: float) -> None:
        self.history.append((time.perf_counter() - self.began, value))
        if self.callback is not None:
            self.callback(self.epoch, *self.history[-1])

    def keep(self, filters: Tensor, readout: Tensor) -> None:
        """Balance these weights, judge them in float64 with and without the negligible, and keep the best so far."""
        filters, readout = rebalance(filters.double(), readout.double())
        sizes = filters.norm(dim=1)
        candidates = []
        for least in (0.0, NEGLIGIBLE * float(sizes.max())):
            kept = (sizes > least).to(filters)
            candidates.append((filters * kept[:, None], readout * kept[:, None, None]))
        # One pass over the images, chunk by chunk: their features may not fit.
        design = FilterDesign(self.exact, filters)
        predictions = design.predict(torch.cat([outer for _, outer in candidates], dim=2).unsqueeze(2)).chunk(2, dim=1)
        for (inner, outer), prediction in zip(candidates, predictions, strict=True):
            value = self._value(prediction, self.exact_targets, inner, outer)
            if not math.isfinite(value):
                raise _DivergedError
            if value <= self.objective:
                self.filters, self.readout, self.objective = inner, outer, value
        self._note(self.objective)

    def cycle(
        self,
        weights: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        peak: float,
        epochs: int,
        batch: int,
        warmup: float,
        generator: torch.Generator,
    ) -> None:
        """Train for one rise and fall of the learning rate."""
        filters, readout = weights
        n = len(self.network.targets)
        steps = epochs * -(-n // batch)
        rise = round(warmup * steps)
        every = max(1, epochs // RECORDS_PER_CYCLE)
        step = 0
        for epoch in range(1, epochs + 1):
            order = torch.randperm(n, generator=generator).to(filters.device)
            for rows in torch.split(order, batch):
                for group in optimizer.param_groups:
                    group["lr"] = peak * _rate(step, steps, rise)
                gradients = self.network.gradients(filters, readout, rows)
                for weight, gradient in zip(weights, gradients, strict=True):
                    # The batch's share of Eq. 1, as a mean over images: the rate then doesn't depend on n.
                    weight.grad = gradient.div_(len(rows)).add_(weight, alpha=self.reg / n)
                optimizer.step()
                step += 1
            self.epoch += 1
            if epoch % every == 0 and epoch < epochs:
                self.record(filters, readout)
        self.keep(filters, readout)


def _optimizer(name: str, weights: Sequence[Tensor], rate: float) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(weights, lr=rate, betas=ADAM_BETAS, foreach=True)
    return torch.optim.SGD(weights, lr=rate, momentum=SGD_MOMENTUM, nesterov=True, foreach=True)


def check_problem(patches: Patches, targets: Tensor, width: int, connect: str, optimizer: str) -> None:
    """Raise InputError if there is no such network, or targets don't fit the patches."""
    if connect not in CONNECTIONS:
        raise InputError(f"connect must be one of {list(CONNECTIONS)}; got {connect!r}.")
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer must be one of {list(OPTIMIZERS)}; got {optimizer!r}.")
    as_int("width", width)
    if targets.ndim != 2 or len(targets) != patches.n_images:
        raise InputError(
            f"targets must be (n, outputs) with n = {patches.n_images}, one row an image; got {tuple(targets.shape)}."
        )


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not is_number(value, above=0):
            raise InputError(f"{name} must be a positive number; got {value!r}.")


def rate_unit(units: Units, optimizer: str) -> float:
    """Return the learning rate that is one in these units: a length of weights, over a gradient's unit for SGD."""
    return math.sqrt(units.weights) if optimizer == "adam" else units.weights / units.objective


@plainly
def train_baseline(
    patches: Patches,
    targets: Tensor,
    reg: float,
    width: int,
    *,
    connect: str = "dense",
    optimizer: str = "adam",
    learning_rate: float | None = None,
    epochs: int | None = None,
    batch_size: int = 64,
    warmup: float = 0.05,
    tol: float = 1e-3,
    seed: int = 0,
    loss: str = "squared",
    sample_weight: Tensor | None = None,
    callback: BaselineCallback | None = None,
) -> BaselineResult:
    """Train one Conv+ReLU+pooling+Linear block on Eq. 1 by minibatch Adam or SGD.

        minimise  loss(f, Y) + reg/2 (sum_i ||u_i||^2 + sum_ico w_ico^2),
        f_jo = sum_ic w_ico sum_k P_ck (x_jk . u_i)_+

    with sums over images and outputs, not means; for the squared loss, 1/2 ||f - Y||_F^2.

    Parameters
    ----------
    patches : Patches
        Patches of the n training images. Training runs in float32, whatever their dtype.
    targets : Tensor, shape (n, outputs)
        Y.
    reg : float
        lam > 0, as in Eq. 1.
    width : int
        m, number of neurons, 1 or more.
    connect : {"dense", "group"}
        "dense": every neuron feeds every (cell, output). "group": each feeds one, fixed at the start and
        spread evenly over cells, outputs and signs: the network of the group program. Take a multiple of
        2 * cells * outputs neurons then.
    optimizer : {"adam", "sgd"}
        Adam with betas (0.9, 0.99), or SGD with Nesterov momentum 0.9.
    learning_rate : float or None
        Peak rate of the first cycle; steps follow gradients of Eq. 1 divided by n. None for
        ``default_learning_rate``; see ``tune``.
    epochs : int or None
        Most passes over the images; None for as many as make 8,050 steps, and at least 20.
    batch_size : int
        Images a step.
    warmup : float
        Part of each cycle in which the rate rises, in [0, 1).
    tol : float
        Stop after a cycle that improves the objective by less than this, relatively.
    seed : int
        Of the starting weights and the order of the images. The same seed on the same machine gives the
        same result.
    loss : str
        Name of a loss.
    sample_weight : Tensor, shape (n,), optional
        The loss is sum_j s_j l(f_j, Y_j) with these s_j >= 0.
    callback : callable, optional
        Called as ``callback(epoch, seconds, objective)`` about ten times a cycle; may raise to stop.

    Returns
    -------
    BaselineResult
        The best weights of all cycle ends.

    Raises
    ------
    InputError
        If an argument is out of its range, unknown, or the targets don't fit the patches.
    SolverError
        If training diverges at every one of six learning rates, each a quarter of the one before.

    Notes
    -----
    The learning rate rises linearly, then falls by half a cosine to a thousandth of its peak, in cycles of
    1,150, 2,300, 4,600, ... steps (whole epochs), each peak lower by sqrt(2) (warm restarts, Loshchilov &
    Hutter 2017, arXiv:1608.03983). Training goes on until a whole cycle gains less than ``tol``. Weights
    start at random with ||u_i|| = ||w_i||, scaled so that ||f|| = 0.1 ||Y||. At each cycle's end every neuron
    is rebalanced (``rebalance``), which changes no output and never raises the penalty, and neurons shorter
    than 3 % of the longest become zero if Eq. 1 is no higher without them.

    Tuned on the training objective alone, reached in about 15 s, on two blocks: the 1,437 training digits
    (3x3 patches, 2x2 cells, d = 10, reg 3.5, 200 neurons) and 64 ReLU maps of such a block (d = 577, reg 2).
    Tried: rates in factors of 1.4 to 3; batches of 32, 64, 128, 256 and all images; second-moment decay 0.99
    to 0.999; starting scales; one cycle against several; a full-batch finish. On the digits, batches of 64
    reached 297.7 to 298.1, full-batch Adam in the same time 311.6.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> images = torch.linspace(-1, 1, 36, dtype=torch.float64).view(4, 1, 3, 3)
    >>> patches = Patches(images, PatchGeometry(kernel_size=2))
    >>> targets = torch.tensor([[1.0], [0.0], [0.0], [1.0]], dtype=torch.float64)
    >>> result = train_baseline(patches, targets, reg=0.1, width=4, epochs=50)
    >>> result.readout.shape, result.objective < 1.0  # zero weights give 1/2 ||Y||^2 = 1
    (torch.Size([4, 1, 1]), True)
    """
    check_problem(patches, targets, width, connect, optimizer)
    width, batch_size = int(width), as_int("batch_size", batch_size)
    epochs = None if epochs is None else as_int("epochs", epochs)
    _check_positive(reg=reg, tol=tol, **({} if learning_rate is None else {"learning_rate": learning_rate}))
    reg, tol = float(reg), float(tol)
    learning_rate = None if learning_rate is None else float(learning_rate)
    if not is_number(warmup, below=1) or warmup < 0:
        raise InputError(f"warmup is the part of a cycle in which the rate rises, in [0, 1); got {warmup!r}.")
    warmup = float(warmup)
    began = time.perf_counter()
    # Adam's own constant is absolute, and the training is in float32.
    weights = None if sample_weight is None else check_weights(sample_weight, len(targets), device=targets.device)
    units = Units.of(patches, targets, get_loss(loss, weights))
    patches, targets, reg = units.scaled(patches), targets / units.targets, reg / units.reg
    unit, length = rate_unit(units, optimizer), math.sqrt(units.weights)

    def report(epoch: int, seconds: float, objective: float) -> None:
        if callback is not None:
            callback(epoch, seconds, objective * units.objective)

    with torch.no_grad(), coarse_threads():
        exact = patches.astype(torch.float64)
        near_one = get_loss(loss, weights).in_unit(units.importance)
        network = Network(patches.astype(torch.float32), targets, near_one, width, connect)
        start = network.start(seed)
        peak = network.learning_rate(optimizer, start[0]) if learning_rate is None else learning_rate / unit
        steps = -(-len(targets) // batch_size)
        epochs = max(LEAST_EPOCHS, -(-ALL_STEPS // steps)) if epochs is None else epochs
        cycles = _cycles(epochs, -(-FIRST_CYCLE_STEPS // steps))
        for _ in range(1 + RETRIES):
            run = _Run(network, exact, targets.to(exact.pool), reg, began, report)
            try:
                _train(run, start, optimizer, peak, cycles, batch_size, warmup, tol, seed)
            except _DivergedError:
                logger.info(
                    "baseline: %s diverged at learning rate %.2e; trying a quarter of it.", optimizer, peak * unit
                )
                peak *= RETRY_FACTOR
                continue
            history = [(seconds, objective * units.objective) for seconds, objective in run.history]
            return BaselineResult(
                run.filters * length, run.readout * length, run.objective * units.objective, run.epoch,
                history[-1][0], history, run.stopped, peak * unit,
            )  # fmt: skip
    raise SolverError(
        f"{optimizer} diverged at every learning rate down to {peak * unit / RETRY_FACTOR:.1e}. Pass a smaller "
        "learning_rate, or rescale images and targets to about 1."
    )


def _train(
    run: _Run,
    start: tuple[Tensor, Tensor],
    optimizer: str,
    peak: float,
    cycles: Sequence[int],
    batch: int,
    warmup: float,
    tol: float,
    seed: int,
) -> None:
    """Run the cycles; raise _DivergedError if one ends above the start."""
    weights = [weight.clone() for weight in start]
    steps = _optimizer(optimizer, weights, peak)
    generator = torch.Generator().manual_seed(int(seed))
    worst = previous = run.record(*weights)
    for length in cycles:
        run.cycle(weights, steps, peak, length, batch, warmup, generator)
        if run.objective > worst:
            raise _DivergedError
        if previous - run.objective < tol * abs(previous):
            run.stopped = "converged"
            break
        previous = run.objective
        peak *= CYCLE_DECAY
