"""One Conv+Linear block: its settings checked once, fitted, its neurons kept, exported and certified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from ..activations import get_activation
from ..core.checks import as_flag, as_int_or_none, as_number, as_tol
from ..core.distributed import size
from ..core.plainly import plainly
from ..core.seeds import check_seed, seed_of
from ..core.threads import coarse_threads
from ..data.checks import are_flat, check_images, check_targets
from ..data.layout import check_layout, check_same_shape
from ..errors import InputError
from ..fitting import DTYPES, Fit, Task, check_place, fit, over
from ..losses import get_loss
from ..patches.geometry import PatchGeometry
from ..patches.patches import Patches
from ..penalties import get_penalty
from ..pricing.options import PricedGates, PricingOptions
from ..program.problem import Problem
from ..solvers import Callback
from .block_state import BlockState
from .door import check_given, weighing
from .telling import Telling, warn_of_gap

__all__ = ["DEFAULT_FRACTION", "DEFAULT_SEARCH", "ConvexConvBlock"]

# Of reg_max, where reg is None; chosen on a validation split of the digits (benchmarks/choose_reg.py).
DEFAULT_FRACTION = 0.01
# Of the main job, of stacks and of estimators: a bound within some per cent, in a third of the time of one within 1e-4,
# which is what a block by itself is asked for (PricingOptions()).
DEFAULT_SEARCH = PricingOptions(starts=96, max_rounds=3)


def _stored(images: Any, dtype: torch.dtype) -> torch.dtype:
    """Return the type that images are kept in: float16 tensors stay so beside float32, to half the memory."""
    halved = isinstance(images, Tensor) and images.dtype == torch.float16 and dtype == torch.float32
    return torch.float16 if halved else dtype


class ConvexConvBlock(BlockState):
    """A two-layer CNN, Conv -> ReLU -> pooling -> Linear, trained by convex optimisation.

    Minimises 1/2 ||f - y||^2 + reg/2 * sum_i (||u_i||^2 + ||w_i||^2), Eq. 1, over the network's neurons. By default
    that is a group lasso over ReLU filters, which the optimisation finds by itself. With ``penalty="group"`` and a
    number of gates it is Eq. 2 of the ReLU program as published, over the sign patterns D_i of the patches that the
    gates give,

        min 1/2 || sum_ik D_i^k X_k (v_i - w_i) - y ||^2 + reg * sum_i (||v_i|| + ||w_i||)
        subject to (2 D_i - I) R v_i >= 0, (2 D_i - I) R w_i >= 0

    which equals Eq. 1 at the neurons read back from it. The defaults are those of ``LayerwiseCNN``, of the estimators
    and of the command line.

    Parameters
    ----------
    kernel_size, stride, padding : int or (int, int)
        Of the convolution, in pixels.
    pooling : {"mean", "sum", "bilinear", "max"}
        How the responses in a cell are pooled; "max" for ReLU neurons alone.
    pool_cells : int
        Each feature map is pooled into a grid of ``pool_cells`` x ``pool_cells`` cells.
    bias : bool
        Append a constant 1 to every patch: the bias belongs to the filter and is regularised with it.
    activation : {"relu", "gated_relu", "quadratic", "linear"}
        Quadratic and linear neurons need no gates: one finite program is over all of them, and its bound is proved.
    penalty : {"group", "nuclear", "dense"}
        "group": each neuron feeds one (cell, output). "dense": each feeds them all, as in an ordinary network;
        the gates are then the directions of its filters. Of a gated network the program of that is a nuclear norm:
        "nuclear" is its name there, and of a linear one, and "dense" means the same. Quadratic neurons have "group".
    loss : {"squared", "logistic", "softmax"}
        A sum over images, not a mean. "logistic" takes targets of -1 and +1, "softmax" one-hot targets; the outputs
        are then log-odds.
    reg : float or None
        lam > 0; None for 0.01 of ``reg_max``. ``reg_`` has the one used.
    gates : int, array (P, d), gate sampler, PricedGates or "priced"
        A number of Gaussian gates; given vectors; a sampler such as ``PatchGates(100)``; or ``PricedGates(...)``:
        found by the optimisation itself, until the gap over all gates is small. "priced" is the same, as hard as
        ``pricing`` says; of quadratic and linear neurons, all of them at once.
    solver : str
        "auto", "working_set", "cone_working_set", "semismooth_newton", "fista", "proximal_newton", "streamed",
        "cvxpy:CLARABEL", "cvxpy:SCS" or "cvxpy:MOSEK".
        With priced gates only "auto".
    tol : float
        Relative duality gap over the gates at hand.
    device : str
        Where patches and features live.
    dtype : {"float64", "float32"}
    random_state : int or None
        Seed of the gates and of the searches; None for another one each time.
    intercept : bool
        An unregularised output intercept.
    max_iter : int or None
        Limit of the solver's iterations; None for its default. With priced gates only None.
    pricing : PricingOptions or None
        How hard to search, for ``gates="priced"`` and, over fixed gates, for the bound over all of them, where
        ``starts=0`` skips the search; None for ``PricingOptions()``, until the gap is 1e-4 or 40 rounds are over. The
        command line, and stacks and estimators whose ``block`` isn't given, take three rounds of 96 starts.
        ``PricedGates`` brings its own options.
    decay : {"path", "fixed_sign"}, (p, q) or None
        Of quadratic neurons: which regulariser of the network the program is (``program.decay``), and so how the size
        of a neuron is shared between its filter and its output weight; None for (4, 2). Predictions are the same.

    Attributes
    ----------
    result_ : SolveResult
        Objective, dual bound, relative gap, status, solver, iterations, seconds.
    certificate_ : Certificate
    reg_ : float
        The lam of the program that was solved.
    gates_ : ndarray, shape (P, d)
        Gate vectors (or filter directions) of the program.
    n_duplicate_gates_, n_zero_gates_ : int
        Gates that were dropped because they repeat a pattern, or are active on no patch (fixed gates only).
    neurons_ : Neurons
        The ReLU neurons (``activation="relu"``).
    n_neurons_ : int
        How many are active.

    Raises
    ------
    InputError
        If an argument, or a combination of them, can't be used.

    Notes
    -----
    Sources: Ergen & Pilanci 2021, Theorem 2.1 (the program); Mishkin, Sahiner & Pilanci 2022 (gated networks);
    Sahiner et al. 2021 (several outputs).

    Examples
    --------
    >>> images = np.random.default_rng(0).normal(size=(20, 6, 6))
    >>> block = ConvexConvBlock(gates=10).fit(images, images.mean(axis=(1, 2)))
    >>> block.result_.status
    'optimal'
    >>> bool(np.allclose(block.predict(images), block.to_torch()(torch.tensor(images[:, None])).flatten().detach()))
    True
    """

    def __init__(
        self,
        *,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 1,
        pooling: str = "mean",
        pool_cells: int = 2,
        bias: bool = True,
        activation: str = "relu",
        penalty: str = "dense",
        loss: str = "squared",
        reg: float | None = None,
        gates: Any = "priced",
        solver: str = "auto",
        tol: float = 1e-6,
        device: str = "cpu",
        dtype: str = "float64",
        random_state: int | None = 0,
        intercept: bool = False,
        max_iter: int | None = None,
        pricing: PricingOptions | None = None,
        decay: Any = None,
    ) -> None:
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.pooling = pooling
        self.pool_cells = pool_cells
        self.bias = bias
        self.activation = activation
        self.penalty = penalty
        self.loss = loss
        self.reg = reg
        self.gates = gates
        self.solver = solver
        self.tol = tol
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.intercept = intercept
        self.max_iter = max_iter
        self.pricing = pricing
        self.decay = decay

    @plainly
    def fit(
        self,
        images: Any,
        targets: Any,
        sample_weight: Any = None,
        callback: Callback | None = None,
        *,
        verbose: bool = False,
    ) -> ConvexConvBlock:
        """Train on images (n, C, H, W) or (n, H, W) and targets (n,) or (n, outputs).

        Parameters
        ----------
        images, targets : array-like or Tensor
            Images (n, H, W, C) are refused. Integer targets other than -1 and +1 bring a UserWarning: they look like
            class labels.
        sample_weight : array-like, shape (n,), optional
            s >= 0: the loss is sum_j s_j l(f_j, y_j). An image of weight 0 is left out, one of weight 2 is as good as
            there twice. Gates that are drawn from images, or chosen by targets, see no weights.
        callback : callable, optional
            Called with a ``Progress`` now and then; may raise to stop.
        verbose : bool
            Say on standard error how far the fit is.

        Raises
        ------
        InputError
            If a parameter, or what is given here, can't be used.
        SolverUnavailableError, SolverError
            If the solver is missing here, or ended without a point; the block is then as it was.
        """
        check_given(images, targets, self.loss)
        task, telling = self.task(images, targets, sample_weight), Telling(as_flag("verbose", verbose))
        telling.begin("block", task)
        self.fit_task(task, are_flat(targets), DEFAULT_FRACTION, telling.hears("block", callback))
        telling.end("block", self.certificate_)
        return self

    def fit_task(self, task: Task, flat: bool, fraction: float, callback: Callback | None = None) -> Tensor | None:
        """Fit this block's ``task``; without a ``reg`` of the block's own, at this share of ``reg_max``.

        Return what it predicts for the images that it was fitted on, (n, outputs), if that is known.
        """
        fitted = fit(task, fraction, callback)
        self.keep(fitted, flat)
        warn_of_gap(self.result_, task.tol, task.max_iter)
        return fitted.result.prediction

    def task(self, images: Any, targets: Any, sample_weight: Any = None) -> Task:
        """Return what is to be fitted to images, targets and weights of images, every setting checked."""
        geometry = self.check_parameters()
        dtype, device = DTYPES[self.dtype], torch.device(self.device)
        inputs = check_images(images, dtype=_stored(images, dtype), device=device)
        expected = check_targets(targets, len(inputs), dtype=dtype, device=device)
        inputs, expected, weights = weighing(inputs, expected, sample_weight)
        activation, search = get_activation(self.activation, self.decay), self.priced_options()
        penalty = activation.program_penalty(self.penalty, geometry.pool_cells**2 * expected.shape[1])
        reg = None if self.reg is None else float(self.reg)
        problem = Problem(
            Patches(inputs, geometry, dtype), expected, 1.0 if reg is None else reg, get_penalty(penalty),
            get_loss(self.loss, weights), bool(self.intercept),
        )  # fmt: skip
        return Task(
            problem,
            activation,
            self.gates,
            search is not None,
            search or self.pricing or PricingOptions(),
            reg,
            solver=self.solver,
            tol=as_tol(self.tol),
            max_iter=as_int_or_none("max_iter", self.max_iter),
            seed=seed_of(self.random_state),
        )

    def priced_options(self) -> PricingOptions | None:
        """Return the options of the pricing, or None if the gates are fixed."""
        if isinstance(self.gates, PricedGates):
            return self.gates
        return (self.pricing or PricingOptions()) if isinstance(self.gates, str) else None

    @property
    def program_penalty(self) -> str:
        """The penalty of the program: neurons that feed everything are the "nuclear" penalty for gated networks."""
        return get_activation(self.activation).program_penalty(self.penalty)

    def check_parameters(self) -> PatchGeometry:
        """Return the geometry of the patches, after checking all parameters.

        Raises
        ------
        InputError
            If a parameter, or a combination of them, can't be used.
        """
        geometry = PatchGeometry(self.kernel_size, self.stride, self.padding, self.pooling, self.pool_cells, self.bias)
        activation = get_activation(self.activation, self.decay)
        get_penalty(self.penalty)
        get_loss(self.loss)
        activation.check(self.penalty, self.pooling)
        if self.reg is not None:
            as_number("reg", self.reg)
        as_tol(self.tol)
        as_flag("intercept", self.intercept)
        if self.pricing is not None and not isinstance(self.pricing, PricingOptions):
            raise InputError(f"pricing must be PricingOptions(...), or None; got {self.pricing!r}.")
        if isinstance(self.gates, str) and self.gates != "priced":
            raise InputError(f'gates must be a number, an array, a sampler or "priced"; got {self.gates!r}.')
        as_int_or_none("max_iter", self.max_iter)
        if activation.whole:
            self._check_whole()
        elif self.priced_options() is not None:
            self._check_priced()
        check_place(self.dtype, self.device)
        check_seed(self.random_state)
        return geometry

    def _check_whole(self) -> None:
        if self.priced_options() is None:
            raise InputError(
                f"{self.activation} neurons have no gates: their program is over all of them at once. Leave gates out, "
                f'or use gates="priced"; got {self.gates!r}.'
            )

    def _check_priced(self) -> None:
        if isinstance(self.gates, PricedGates) and self.pricing is not None:
            raise InputError('PricedGates brings its own options: leave pricing out, or use gates="priced" with it.')
        if self.solver != "auto":
            raise InputError(f'gates="priced" brings its own solver: use solver="auto"; got {self.solver!r}.')
        if self.max_iter is not None:
            raise InputError("priced gates have no max_iter: limit their rounds, PricingOptions(max_rounds=...).")
        if size() > 1:
            raise InputError(f"priced gates need all images in one process; there are {size()}. Use a number of gates.")

    @plainly
    def reg_max(self, images: Any, targets: Any, sample_weight: Any = None) -> float:
        """Return the smallest ``reg`` whose solution is zero: exact over fixed gates, searched if they are priced.

        Parameters
        ----------
        images : array-like, shape (n, C, H, W) or (n, H, W)
        targets : array-like, shape (n,) or (n, outputs)
        sample_weight : array-like, shape (n,), optional
            As for ``fit``.
        """
        check_layout(images)
        with torch.no_grad(), coarse_threads():
            return over(self.task(images, targets, sample_weight)).reg_max()

    def keep(self, fitted: Fit, flat: bool) -> ConvexConvBlock:
        """Take what was fitted with this block's settings; ``flat`` says that predictions are to be (n,)."""
        program, design = fitted.program, fitted.program.design
        # A block is of a size that doesn't depend on the number of images.
        self.result_ = replace(fitted.result, prediction=None)
        self.certificate_, self.neurons_ = fitted.certificate, fitted.neurons
        self.reg_ = program.reg
        self.geometry_ = design.patches.geometry
        _, channels, height, width = design.patches.images.shape
        self.image_shape_ = (channels, height, width)
        self.n_outputs_ = program.n_outputs
        self.flat_targets_ = flat
        self.gates_ = design.directions.cpu().numpy()
        self.n_neurons_ = len(fitted.neurons)
        if fitted.gates is not None:
            self.n_duplicate_gates_, self.n_zero_gates_ = fitted.gates.n_duplicates, fitted.gates.n_zero
        return self

    def _check_fitted(self) -> None:
        if not hasattr(self, "neurons_"):
            raise NotFittedError("This ConvexConvBlock isn't fitted yet. Call fit first.")

    def patches(self, images: Any) -> Patches:
        """Return the patches of images of the shape fitted.

        Raises
        ------
        NotFittedError
            Before ``fit``.
        InputError
            If the images have another shape or are not finite.
        """
        self._check_fitted()
        like = self.neurons_.filters
        inputs = check_images(images, dtype=_stored(images, like.dtype), device=like.device)
        check_same_shape(inputs.shape, self.image_shape_, "block")
        return Patches(inputs, self.geometry_, like.dtype)

    def predict(self, images: Any) -> np.ndarray:
        """Return predictions, shape (n,) or (n, outputs) as the targets were, for images of the shape fitted.

        Raises
        ------
        NotFittedError
            Before ``fit``.
        InputError
            If the images have another shape or are not finite.
        """
        prediction = self.outputs(images)
        return np.asarray((prediction[:, 0] if self.flat_targets_ else prediction).cpu().numpy())

    @plainly
    def outputs(self, images: Any) -> Tensor:
        """Return ``predict`` as a tensor on the block's device, always of shape (n, outputs)."""
        with torch.no_grad():
            patches = self.patches(images)  # says so first if nothing is fitted
            return self.neurons_.predict(patches)

    def transform(self, images: Any) -> np.ndarray:
        """Return the ReLU feature maps of the active neurons, shape (n, m, H', W'): the next block's input.

        For a gated block they are the ReLU responses of its active gates, scaled to unit length.
        """
        return np.asarray(self.maps(images).cpu().numpy())

    @plainly
    def maps(
        self, images: Any, neurons: Tensor | None = None, then: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return ``transform`` as a tensor, on the block's device.

        Of the neurons with these indices, and what ``then`` makes of each image's maps, if they are given.
        """
        with torch.no_grad():
            patches = self.patches(images)
            return self.neurons_.maps(patches, neurons, then)

    def neuron_norms(self) -> Tensor:
        """Return how much each neuron of ``neurons_`` contributes: ||u_i|| ||w_i||, or ||z_i|| for a gated block."""
        return self.neurons_.norms()

    @plainly
    def to_torch(self) -> nn.Sequential:
        """Return the block as Conv2d -> ReLU -> pooling -> Flatten -> Linear, with the same predictions.

        A gated block gives gated convolutions instead, which is no ReLU network; ``decompose`` gives one
        with the same outputs on the training images.
        """
        self._check_fitted()
        return self.neurons_.to_module(self.geometry_, self.image_shape_, intercept=bool(self.intercept))

    @plainly
    def decompose(self, images: Any) -> nn.Sequential:
        """Return a ReLU network with the outputs of this gated block on the given training images.

        Each gated filter z = a - b is split into two vectors in the cone of its gate (cone decomposition);
        the network's norms are larger, so its Eq. 1 is above the gated objective.

        Parameters
        ----------
        images : array-like, shape (n, C, H, W) or (n, H, W)
            The images that the block was fitted on.

        Raises
        ------
        InputError
            If the block is not gated, or a patch lies on a gate's hyperplane.
        """
        patches = self.patches(images)
        problem = Problem(patches, patches.like.new_zeros(patches.n_images, self.n_outputs_), self.reg_)
        with torch.no_grad():
            neurons = get_activation(self.activation).decompose(self.neurons_, problem)
        return neurons.to_module(self.geometry_, self.image_shape_, intercept=bool(self.intercept))
