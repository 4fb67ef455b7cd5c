"""Two-phase training: ordinary training, a perturbation, and a convex phase whose rate is certified step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.checks import as_int, as_number, is_number
from ..core.plainly import plainly
from ..core.products import adjoint_product
from ..core.threads import coarse_threads
from ..errors import InputError
from ..patches.patches import Patches
from .expressivity import Expressivity, expressivity
from .minibatch import BaselineResult, Minibatches, check_problem
from .network import block_features, rebalance

__all__ = ["NOISE", "STEPS", "TwoPhaseResult", "train_two_phase", "two_phases"]

# Of the perturbation, as a share of a filter's norm, and the most steps of phase 2.
NOISE, STEPS = 1e-2, 1000

# Of |Y|^2: the weight decay of a first phase that is asked for none, which ordinary training here can't be without.
_LEAST_REG = 1e-9


@dataclass(frozen=True)
class TwoPhaseResult:
    """A block trained in two phases.

    Attributes
    ----------
    filters : Tensor, shape (m, d), float64
        Of phase 1, perturbed.
    readout : Tensor, shape (m, cells, outputs), float64
        Of phase 2.
    objective : float
        1/2 |f - Y|^2 + reg/2 (|filters|^2 + |readout|^2).
    first : BaselineResult
        Phase 1.
    rank : Expressivity
        Of the features after the perturbation; "full" is the premise of the guarantee.
    losses : Tensor, shape (steps + 1,)
        |f - Y| before phase 2 and after each of its steps.
    bounds : Tensor, shape (steps + 1,)
        (1 - lambda_min / lambda_max)^t |f_0 - Y|, which the theory has above ``losses``.
    predicted_steps : float
        ln(1 / tol) lambda_max / lambda_min: steps after which the theory promises tol |f_0 - Y|.
    guarantee : str
        In words: what is guaranteed, and of what use that is.
    """

    filters: Tensor
    readout: Tensor
    objective: float
    first: BaselineResult
    rank: Expressivity
    losses: Tensor
    bounds: Tensor
    predicted_steps: float
    guarantee: str

    def as_baseline(self, reg: float, seconds: float) -> BaselineResult:
        """Return what ordinary training hands back: ReLU weights balanced, which only lowers Eq. 1.

        Parameters
        ----------
        reg : float
            That it was trained with.
        seconds : float
            Of both phases.
        """
        filters, readout, objective = self.filters, self.readout, self.objective
        if self.first.softplus is None:
            before = float(filters.square().sum() + readout.square().sum())
            filters, readout = rebalance(filters, readout)
            objective += 0.5 * reg * (float(filters.square().sum() + readout.square().sum()) - before)
        return replace(
            self.first, filters=filters, readout=readout, objective=objective, seconds=seconds,
            history=[*self.first.history, (seconds, objective)], guarantee=self.guarantee,
        )  # fmt: skip


@plainly
def train_two_phase(
    patches: Patches,
    targets: Tensor,
    width: int,
    *,
    reg: float = 0.0,
    optimizer: str = "adam",
    softplus: float | None = None,
    noise: float = NOISE,
    epochs: int | None = None,
    steps: int = STEPS,
    tol: float = 1e-3,
    seed: int = 0,
) -> TwoPhaseResult:
    """Train a block by Adam or SGD, perturb its filters, check the rank of its features, and train its readout on.

    Phase 2 is gradient descent on 1/2 |F w - Y|^2 with the step 1 / lambda_max(F F^T), for which

        |r_t| <= (1 - lambda_min / lambda_max)^t |r_0|,   r = F w - Y

    With reg > 0 it is instead the ridge regression that Eq. 1 is for fixed filters, solved at once.

    Parameters
    ----------
    patches : Patches
        Of the training images.
    targets : Tensor, shape (n, outputs)
    width : int
        m; m times the cells must be at least n where reg is 0.
    reg : float
        lam >= 0.
    optimizer : {"adam", "sgd"}
        Of phase 1.
    softplus : float, optional
        The zeta of softplus neurons log(1 + exp(zeta t)) / zeta, analytic as the theorem has them; ReLUs if not given.
    noise : float
        Of the norm of a filter, the perturbation's. 0 for none.
    epochs : int, optional
        Of phase 1, as for ``train_baseline``.
    steps : int
        Of phase 2, at most.
    tol : float
        Phase 2 ends when |r_t| <= tol |r_0|.
    seed : int

    Returns
    -------
    TwoPhaseResult

    Raises
    ------
    InputError
        If an argument is out of its range, or there are fewer features than images, so that no rank can be full.

    Notes
    -----
    Source: Kawaguchi & Sun 2021, made explicit. The theorem is about the loss without a regulariser and analytic
    activations; for ReLU the rank is of these filters, and is checked. A softmax or logistic loss has no minimum here.

    Examples
    --------
    >>> from ..patches.geometry import PatchGeometry
    >>> images = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> patches = Patches(images, PatchGeometry(2, pool_cells=2))
    >>> result = train_two_phase(patches, images.mean(dim=(1, 2, 3))[:, None], 8, epochs=5)
    >>> result.rank.decision, bool((result.losses <= result.bounds * (1 + 1e-9)).all())
    ('full', True)
    """
    check_problem(patches, targets, width, "dense", optimizer)
    width, steps = int(width), as_int("steps", steps)
    tol = as_number("tol", tol, below=1)
    for name, value in (("reg", reg), ("noise", noise)):
        if not is_number(value) or value < 0:
            raise InputError(f"{name} must be a number >= 0; got {value!r}.")
    how = Minibatches(
        optimizer=optimizer,
        epochs=None if epochs is None else as_int("epochs", epochs),
        seed=int(seed),
        softplus=None if softplus is None else as_number("softplus", softplus),
    )
    return two_phases(patches, targets, float(reg), width, how, noise=float(noise), steps=steps, tol=tol)


def two_phases(
    patches: Patches,
    targets: Tensor,
    reg: float,
    width: int,
    how: Minibatches,
    *,
    noise: float = NOISE,
    steps: int = STEPS,
    tol: float = 1e-3,
) -> TwoPhaseResult:
    """Train in two phases, the first one as ``how`` says, with arguments that are checked; see ``train_two_phase``.

    Raises
    ------
    InputError
        For what has no second phase: other losses than the squared one, whose minimum isn't attained, networks whose
        neurons feed one cell and output, and, without reg, fewer features than images.
    """
    if how.loss != "squared":
        raise InputError(
            f"two-phase training ends at a minimum, and the {how.loss} loss of features of full rank has none: it "
            'falls for ever. Use loss="squared", or optimizer="adam".'
        )
    if how.connect != "dense":
        raise InputError(
            f"two-phase training is of neurons that feed all cells and outputs; got connect={how.connect!r}. "
            'Use connect="dense".'
        )
    if reg == 0 and width * patches.n_cells < patches.n_images:
        raise InputError(
            f"two-phase training of {patches.n_images} images needs as many features; {width} neurons in "
            f"{patches.n_cells} cells have {width * patches.n_cells}. Use at least "
            f"{-(-patches.n_images // patches.n_cells)} neurons, or reg > 0."
        )
    decay = reg or _LEAST_REG * max(float(targets.double().square().sum()), 1e-300)
    first = how.train(patches, targets, decay, width)
    exact, expected = patches.astype(torch.float64), targets.double()
    filters = _perturbed(first.filters, noise, torch.Generator().manual_seed(how.seed))
    with torch.no_grad(), coarse_threads():
        features = block_features(exact, filters, how.softplus).flatten(1)
        rank = expressivity(features, bias=False)
        if how.weights is not None:  # a weighted loss is that of rows times the roots of their weights
            root = how.weights.to(features)[:, None].sqrt()
            features, expected = root * features, root * expected
        start = first.readout.transpose(0, 1).flatten(0, 1)
        if reg > 0:
            readout = _ridge(features, expected, reg)
            losses = torch.stack([(features @ w - expected).norm() for w in (start, readout)])
            bounds, predicted = torch.full_like(losses, math.inf), math.nan
        else:
            readout, losses, bounds, predicted = _descend(features, expected, start, steps, tol)
        squares = float(filters.square().sum() + readout.square().sum())
        objective = 0.5 * float(losses[-1]) ** 2 + 0.5 * reg * squares
    return TwoPhaseResult(
        filters, readout.view(patches.n_cells, width, -1).transpose(0, 1), objective, first, rank, losses, bounds,
        predicted, _words(rank, reg, predicted),
    )  # fmt: skip


def _perturbed(filters: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Return filters with normal noise; those that are zero get the mean norm of the others."""
    lengths = filters.norm(dim=1, keepdim=True)
    typical = lengths[lengths > 0].mean() if bool(lengths.any()) else torch.ones(()).to(filters)
    random = torch.randn(filters.shape, generator=generator, dtype=torch.float64).to(filters) / filters.shape[1] ** 0.5
    return torch.where(lengths > 0, filters + noise * lengths * random, typical * random)


def _ridge(features: Tensor, targets: Tensor, reg: float) -> Tensor:
    """Return the minimiser of 1/2 |F w - Y|^2 + reg/2 |w|^2, by the smaller of the two Gram matrices."""
    n, p = features.shape
    if n < p:
        kernel = features @ features.T + reg * torch.eye(n).to(features)
        dual: Tensor = torch.linalg.solve(kernel, targets)
        return adjoint_product(features, dual)
    kernel = features.T @ features + reg * torch.eye(p).to(features)
    solved: Tensor = torch.linalg.solve(kernel, adjoint_product(features, targets))
    return solved


def _descend(
    features: Tensor, targets: Tensor, readout: Tensor, steps: int, tol: float
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return the readout after gradient descent, the losses and their bounds, and how many steps are predicted."""
    values = torch.linalg.svdvals(features)
    largest, smallest = float(values[0] ** 2), float(values[len(features) - 1] ** 2)
    share = smallest / largest if largest > 0 else 0.0
    losses = [(features @ readout - targets).norm()]
    for _ in range(steps):
        if losses[-1] <= tol * losses[0]:
            break
        readout = readout - adjoint_product(features, features @ readout - targets) / largest
        losses.append((features @ readout - targets).norm())
    found = torch.stack(losses)
    bounds = found[0] * (1 - share) ** torch.arange(len(found)).to(found)
    return readout, found, bounds, math.log(1 / tol) / share if share > 0 else math.inf


def _words(rank: Expressivity, reg: float, predicted: float) -> str:
    if reg > 0:
        return (
            "Nothing is guaranteed: the theorem is about the loss without reg. With reg, phase 2 is the convex program "
            "over fixed filters, which is solved."
        )
    if rank.decision != "full":
        return f"Nothing is guaranteed: the rank of the features is {rank.decision}, {rank.reason}."
    useless = " True, and useless." if predicted > 1e6 else ""
    return f"Zero loss is guaranteed, after {predicted:.3g} steps at the certified rate.{useless}"
