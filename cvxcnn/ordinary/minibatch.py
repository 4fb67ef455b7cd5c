"""Minibatch Adam and SGD on Eq. 1 of a block: one training run, from checked arguments to the best of its weights."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.checks import as_int
from ..core.threads import coarse_threads
from ..errors import InputError, SolverError
from ..losses import get_loss
from ..patches.patches import Patches
from ..program.design import FilterDesign
from ..program.units import Units
from .network import Network, block_features, rebalance

__all__ = ["BaselineCallback", "BaselineResult", "Minibatches", "check_problem", "rate_unit"]

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
    softplus : float or None
        The zeta of a network of softplus neurons; None for one of ReLUs. Its weights are not balanced, and its
        objective is not that of a ReLU network.
    guarantee : str
        Of two-phase training: what is guaranteed, in words; "" for other trainings, of which nothing is.
    """

    filters: Tensor
    readout: Tensor
    objective: float
    epochs: int
    seconds: float
    history: list[tuple[float, float]]
    stopped: str
    learning_rate: float
    softplus: float | None = None
    guarantee: str = ""


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
        filters, readout = filters.double(), readout.double()
        if self.network.softplus is None:
            judged = self._balanced(filters, readout)
        else:  # it isn't homogeneous: no other weights are the same network
            features = block_features(self.exact, filters, self.network.softplus)
            judged = [(filters, readout, torch.einsum("ncm,mco->no", features, readout))]
        for inner, outer, prediction in judged:
            value = self._value(prediction, self.exact_targets, inner, outer)
            if not math.isfinite(value):
                raise _DivergedError
            if value <= self.objective:
                self.filters, self.readout, self.objective = inner, outer, value
        self._note(self.objective)

    def _balanced(self, filters: Tensor, readout: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return balanced weights with their outputs, with all neurons and without the negligible ones."""
        filters, readout = rebalance(filters, readout)
        sizes = filters.norm(dim=1)
        candidates = []
        for least in (0.0, NEGLIGIBLE * float(sizes.max())):
            kept = (sizes > least).to(filters)
            candidates.append((filters * kept[:, None], readout * kept[:, None, None]))
        # One pass over the images, chunk by chunk: their features may not fit.
        design = FilterDesign(self.exact, filters)
        predictions = design.predict(torch.cat([outer for _, outer in candidates], dim=2).unsqueeze(2)).chunk(2, dim=1)
        return [(*weights, prediction) for weights, prediction in zip(candidates, predictions, strict=True)]

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


def check_problem(
    patches: Patches,
    targets: Tensor,
    width: int,
    connect: str,
    optimizer: str,
    known: Sequence[str] = OPTIMIZERS,
) -> None:
    """Raise InputError if there is no such network, or targets don't fit the patches."""
    if connect not in CONNECTIONS:
        raise InputError(f"connect must be one of {list(CONNECTIONS)}; got {connect!r}.")
    if optimizer not in known:
        raise InputError(f"optimizer must be one of {list(known)}; got {optimizer!r}.")
    as_int("width", width)
    if targets.ndim != 2 or len(targets) != patches.n_images:
        raise InputError(
            f"targets must be (n, outputs) with n = {patches.n_images}, one row an image; got {tuple(targets.shape)}."
        )


def rate_unit(units: Units, optimizer: str) -> float:
    """Return the learning rate that is one in these units: a length of weights, over a gradient's unit for SGD."""
    return math.sqrt(units.weights) if optimizer == "adam" else units.weights / units.objective


@dataclass(frozen=True)
class Minibatches:
    """How a block is trained: the settings of ``train_baseline``, checked.

    Attributes
    ----------
    connect, optimizer, learning_rate, epochs, batch_size, warmup, tol, seed, loss, callback
        As ``train_baseline`` has them; the optimizer is "adam" or "sgd".
    weights : Tensor or None, shape (n,)
        Of the images.
    softplus : float or None
        The zeta of softplus neurons in place of ReLUs.
    """

    connect: str = "dense"
    optimizer: str = "adam"
    learning_rate: float | None = None
    epochs: int | None = None
    batch_size: int = 64
    warmup: float = 0.05
    tol: float = 1e-3
    seed: int = 0
    loss: str = "squared"
    weights: Tensor | None = None
    softplus: float | None = None
    callback: BaselineCallback | None = None

    def train(self, patches: Patches, targets: Tensor, reg: float, width: int) -> BaselineResult:
        """Train a block with ``width`` neurons on Eq. 1, or raise SolverError if training diverges at every rate."""
        began = time.perf_counter()
        # Adam's own constant is absolute, and the training is in float32.
        units = Units.of(patches, targets, get_loss(self.loss, self.weights))
        patches, targets, reg = units.scaled(patches), targets / units.targets, reg / units.reg
        # softplus(c z, zeta / c) = c softplus(z, zeta): responses of unit weights are in units of images and weights.
        softplus = None if self.softplus is None else self.softplus * units.images * math.sqrt(units.weights)
        unit, length = rate_unit(units, self.optimizer), math.sqrt(units.weights)

        def report(epoch: int, seconds: float, objective: float) -> None:
            if self.callback is not None:
                self.callback(epoch, seconds, objective * units.objective)

        with torch.no_grad(), coarse_threads():
            exact = patches.astype(torch.float64)
            near_one = get_loss(self.loss, self.weights).in_unit(units.importance)
            network = Network(patches.astype(torch.float32), targets, near_one, width, self.connect, softplus)
            start = network.start(self.seed)
            peak = network.learning_rate(self.optimizer, start[0])
            if self.learning_rate is not None:
                peak = self.learning_rate / unit
            steps = -(-len(targets) // self.batch_size)
            epochs = max(LEAST_EPOCHS, -(-ALL_STEPS // steps)) if self.epochs is None else self.epochs
            cycles = _cycles(epochs, -(-FIRST_CYCLE_STEPS // steps))
            for _ in range(1 + RETRIES):
                run = _Run(network, exact, targets.to(exact.like), reg, began, report)
                try:
                    self._run(run, start, peak, cycles)
                except _DivergedError:
                    logger.info(
                        "baseline: %s diverged at learning rate %.2e; trying a quarter.", self.optimizer, peak * unit
                    )
                    peak *= RETRY_FACTOR
                    continue
                history = [(seconds, objective * units.objective) for seconds, objective in run.history]
                return BaselineResult(
                    run.filters * length, run.readout * length, run.objective * units.objective, run.epoch,
                    history[-1][0], history, run.stopped, peak * unit, self.softplus,
                )  # fmt: skip
        raise SolverError(
            f"{self.optimizer} diverged at every learning rate down to {peak * unit / RETRY_FACTOR:.1e}. Pass a "
            "smaller learning_rate, or rescale images and targets to about 1."
        )

    def _run(self, run: _Run, start: tuple[Tensor, Tensor], peak: float, cycles: Sequence[int]) -> None:
        """Run the cycles; raise _DivergedError if one ends above the start."""
        weights = [weight.clone() for weight in start]
        steps = _optimizer(self.optimizer, weights, peak)
        generator = torch.Generator().manual_seed(int(self.seed))
        worst = previous = run.record(*weights)
        for length in cycles:
            run.cycle(weights, steps, peak, length, self.batch_size, self.warmup, generator)
            if run.objective > worst:
                raise _DivergedError
            if previous - run.objective < self.tol * abs(previous):
                run.stopped = "converged"
                break
            previous = run.objective
            peak *= CYCLE_DECAY
