"""One Conv+Linear block: choose gates, solve the convex program, read the neurons back, certify."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from ..activations.neurons import GatedConv, Neurons, convolution, read_neurons, to_module
from ..arrangements import Gates, resolve
from ..core.checks import as_flag, as_number, as_tol, is_int
from ..core.distributed import size
from ..core.plainly import plainly
from ..core.seeds import check_seed, seed_of
from ..core.threads import coarse_threads
from ..data.checks import are_flat, check_images, check_targets
from ..data.layout import check_layout, check_same_shape
from ..errors import InputError
from ..fitting.priced import PricedSolution, solve_priced, solve_priced_gates
from ..fitting.priced_patterns import solve_priced_patterns
from ..losses import get_loss
from ..patches.geometry import PatchGeometry
from ..patches.patches import Patches
from ..patches.pooling import pooling
from ..penalties import DensePenalty, Penalty, get_penalty
from ..pricing.certificate import Certificate
from ..pricing.options import PricedGates, PricingOptions
from ..pricing.separation import global_bound, networks_in, searched_reg_max
from ..program.cones import Cones
from ..program.program import Program, filter_program, gated_program, relative_gap, relu_program
from ..program.units import unit_rows
from ..solvers import Callback, Solver, SolveResult, Status, get_solver
from .savable import Savable

__all__ = ["DEFAULT_FRACTION", "DEFAULT_SEARCH", "ConvexConvBlock", "warn_of_labels"]

logger = logging.getLogger(__name__)

DTYPES = {"float64": torch.float64, "float32": torch.float32}

# Of reg_max, where reg is None; chosen on a validation split of the digits (benchmarks/choose_reg.py).
DEFAULT_FRACTION = 0.01
# Of the main job, of stacks and of estimators: a bound within some per cent, in a third of the time of one within 1e-4,
# which is what a block by itself is asked for (PricingOptions()).
DEFAULT_SEARCH = PricingOptions(starts=96, max_rounds=3)
# Eq. 1 of neurons rounded to another type differs by less than so many of its roundings.
_AS_KEPT = 100


def _stored(images: Any, dtype: torch.dtype) -> torch.dtype:
    """Return the type that images are kept in: float16 tensors stay so beside float32, to half the memory."""
    halved = isinstance(images, Tensor) and images.dtype == torch.float16 and dtype == torch.float32
    return torch.float16 if halved else dtype


def warn_of_labels(targets: Any, loss: Any) -> None:
    """Warn of integer class labels where numbers are to be fitted; -1 and +1 are numbers as good as labels."""
    if isinstance(targets, Tensor):
        targets = None if targets.is_floating_point() else targets.detach().cpu().numpy()
    try:
        values = np.asarray(targets)
    except (TypeError, ValueError, RuntimeError):  # what can't be an array is refused where targets are read
        return
    if loss != "squared" or values.dtype.kind not in "biu" or values.size != len(np.atleast_1d(values)):
        return
    found = np.unique(values).astype(np.int64)
    numbered = np.array_equal(found - found[:1], np.arange(len(found)))
    if len(found) > 1 and not np.isin(found, (-1, 1)).all() and (numbered or 2 * len(found) <= values.size):
        warnings.warn(
            f"targets are {len(found)} different integers, which are fitted as numbers by the squared loss. "
            "If they are class labels, use ConvexCNNClassifier, or one_hot(labels, n_classes); if not, pass floats.",
            UserWarning,
            stacklevel=5,
        )


class ConvexConvBlock(Savable, BaseEstimator):
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
    pooling : {"sum", "mean"}
        How the responses in a cell are pooled.
    pool_cells : int
        Each feature map is pooled into a grid of ``pool_cells`` x ``pool_cells`` cells.
    bias : bool
        Append a constant 1 to every patch: the bias belongs to the filter and is regularised with it.
    activation : {"relu", "gated_relu"}
    penalty : {"group", "nuclear", "dense"}
        "group": each neuron feeds one (cell, output). "dense": each feeds them all, as in an ordinary network;
        the gates are then the directions of its filters. Of a gated network the program of that is a nuclear norm:
        "nuclear" is its name there, and "dense" means the same.
    loss : {"squared", "logistic", "softmax"}
        A sum over images, not a mean. "logistic" takes targets of -1 and +1, "softmax" one-hot targets; the outputs
        are then log-odds.
    reg : float or None
        lam > 0; None for 0.01 of ``reg_max``. ``reg_`` has the one used.
    gates : int, array (P, d), gate sampler, PricedGates or "priced"
        A number of Gaussian gates; given vectors; a sampler such as ``PatchGates(100)``; or ``PricedGates(...)``:
        found by the optimisation itself, until the gap over all gates is small. "priced" is the same, as hard as
        ``pricing`` says.
    solver : str
        "auto", "working_set", "cone_working_set", "fista", "proximal_newton", "streamed", "cvxpy:CLARABEL",
        "cvxpy:SCS" or "cvxpy:MOSEK".
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

    @plainly
    def fit(self, images: Any, targets: Any, callback: Callback | None = None) -> ConvexConvBlock:
        """Train on images (n, C, H, W) or (n, H, W) and targets (n,) or (n, outputs).

        Parameters
        ----------
        images, targets : array-like or Tensor
            Images (n, H, W, C) are refused. Integer targets other than -1 and +1 bring a UserWarning: they look like
            class labels.
        callback : callable, optional
            Called with a ``Progress`` now and then; may raise to stop.

        Raises
        ------
        InputError
            If a parameter, or what is given here, can't be used.
        SolverUnavailableError, SolverError
            If the solver is missing here, or ended without a point; the block is then as it was.
        """
        self._at_the_door(images, targets)
        return self._fit(images, targets, DEFAULT_FRACTION, callback)

    def _at_the_door(self, images: Any, targets: Any) -> None:
        """Refuse or warn of what users give by mistake; maps and targets of other blocks come in behind it."""
        check_layout(images)
        warn_of_labels(targets, self.loss)

    def _fit(self, images: Any, targets: Any, fraction: float, callback: Callback | None) -> ConvexConvBlock:
        """Fit; without a ``reg`` of the block's own, at this share of ``reg_max``."""
        patches, expected = self._training_set(images, targets)
        options = self._priced()
        with torch.no_grad(), coarse_threads():
            if options is None:
                program, gates = self._fixed_program(patches, expected)
                solver = self._solver(program)
                if self.reg is None:
                    program = replace(program, reg=_share(fraction, solver.reg_max(program)))
                self._finish(program, gates, solver, are_flat(targets), callback=callback)
            else:
                reg = self.reg
                if reg is None:
                    reg = _share(fraction, self._searched_reg_max(patches, expected, options))
                fitted = self._fit_priced(patches, expected, options, float(reg), callback=callback)
                self._store(*fitted, patches, are_flat(targets))
        return self

    def _solver(self, program: Program) -> Solver:
        return get_solver(self.solver, program, tol=self.tol, max_iter=self.max_iter)

    def _finish(
        self,
        program: Program,
        gates: Gates,
        solver: Solver,
        flat: bool,
        *,
        start: Tensor | None = None,
        callback: Callback | None = None,
    ) -> None:
        """Solve over fixed gates, certify, and keep what was found."""
        self.n_duplicate_gates_, self.n_zero_gates_ = gates.n_duplicates, gates.n_zero
        result = solver.solve(program, start=start, callback=callback)
        certificate = self._certify(program, gates, result, self._search())
        self._store(program, result, certificate, program.design.patches, flat)

    def _priced(self) -> PricingOptions | None:
        """Return the options of the pricing, or None if the gates are fixed."""
        if isinstance(self.gates, PricedGates):
            return self.gates
        return self._search() if isinstance(self.gates, str) else None

    def _search(self) -> PricingOptions:
        return PricingOptions() if self.pricing is None else self.pricing

    @property
    def program_penalty(self) -> str:
        """The penalty of the program: neurons that feed everything are the "nuclear" penalty for gated networks."""
        return "nuclear" if self.activation == "gated_relu" and self.penalty == "dense" else self.penalty

    def _penalty(self, patches: Patches, targets: Tensor) -> Penalty:
        # A matrix of one column has one norm, and the programs of the group penalty have faster solvers.
        single = self.penalty != self.program_penalty and patches.n_cells * targets.shape[1] == 1
        return get_penalty("group" if single else self.program_penalty)

    def _check_parameters(self) -> PatchGeometry:
        geometry = PatchGeometry(self.kernel_size, self.stride, self.padding, self.pooling, self.pool_cells, self.bias)
        if self.activation not in ("relu", "gated_relu"):
            raise InputError(f'activation must be "relu" or "gated_relu"; got {self.activation!r}.')
        get_penalty(self.penalty)
        get_loss(self.loss)
        if self.activation == "relu" and self.penalty == "nuclear":
            raise InputError('penalty="nuclear" is a gated program. Use activation="gated_relu", or penalty="dense".')
        if self.reg is not None:
            as_number("reg", self.reg)
        as_tol(self.tol)
        as_flag("intercept", self.intercept)
        if self.pricing is not None and not isinstance(self.pricing, PricingOptions):
            raise InputError(f"pricing must be PricingOptions(...), or None; got {self.pricing!r}.")
        if isinstance(self.gates, str) and self.gates != "priced":
            raise InputError(f'gates must be a number, an array, a sampler or "priced"; got {self.gates!r}.')
        if isinstance(self.gates, PricedGates) and self.pricing is not None:
            raise InputError('PricedGates brings its own options: leave pricing out, or use gates="priced" with it.')
        if self._priced() is not None and self.solver != "auto":
            raise InputError(f'gates="priced" brings its own solver: use solver="auto"; got {self.solver!r}.')
        if self.max_iter is not None and not is_int(self.max_iter, 1):
            raise InputError(f"max_iter must be an int >= 1, or None; got {self.max_iter!r}.")
        if self.max_iter is not None and self._priced() is not None:
            raise InputError("priced gates have no max_iter: limit their rounds, PricingOptions(max_rounds=...).")
        if self._priced() is not None and size() > 1:
            raise InputError(f"priced gates need all images in one process; there are {size()}. Use a number of gates.")
        if self.dtype not in DTYPES:
            raise InputError(f"dtype must be one of {sorted(DTYPES)}; got {self.dtype!r}.")
        try:
            torch.device(self.device)
        except (RuntimeError, TypeError):
            raise InputError(f'device must be "cpu", "cuda" or "cuda:<number>"; got {self.device!r}.') from None
        if str(self.device).startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f'device={self.device!r} was asked for, but torch finds no GPU. Use device="cpu".')
        check_seed(self.random_state)
        return geometry

    def _training_set(self, images: Any, targets: Any) -> tuple[Patches, Tensor]:
        geometry = self._check_parameters()
        dtype, device = DTYPES[self.dtype], torch.device(self.device)
        inputs = check_images(images, dtype=_stored(images, dtype), device=device)
        expected = check_targets(targets, len(inputs), dtype=dtype, device=device)
        return Patches(inputs, geometry, dtype), expected

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self.random_state))

    @plainly
    def reg_max(self, images: Any, targets: Any) -> float:
        """Return the smallest ``reg`` whose solution is zero: exact over fixed gates, searched if they are priced.

        Parameters
        ----------
        images : array-like, shape (n, C, H, W) or (n, H, W)
        targets : array-like, shape (n,) or (n, outputs)
        """
        check_layout(images)
        patches, expected = self._training_set(images, targets)
        options = self._priced()
        with torch.no_grad(), coarse_threads():
            if options is None:
                return self._fixed_program(patches, expected)[0].reg_max()
            return self._searched_reg_max(patches, expected, options)

    def _searched_reg_max(self, patches: Patches, targets: Tensor, options: PricingOptions) -> float:
        make = filter_program if self.activation == "relu" else gated_program
        empty = make(
            patches,
            patches.pool.new_zeros(0, patches.dim),
            targets,
            1.0,
            penalty=self._penalty(patches, targets),
            loss=get_loss(self.loss),
            intercept=bool(self.intercept),
        )
        return searched_reg_max(empty, options, self._generator())

    def _fixed_program(self, patches: Patches, targets: Tensor) -> tuple[Program, Gates]:
        gates = resolve(self.gates, patches, seed_of(self.random_state), targets)
        if gates.n_duplicates + gates.n_zero:
            logger.info(
                "%d gates kept; %d repeated a pattern, %d never active", len(gates), gates.n_duplicates, gates.n_zero
            )
        make: Callable[..., Program] = {"gated_relu": gated_program, "relu": relu_program}[self.activation]
        vectors = gates.vectors
        penalty = self._penalty(patches, targets)
        if isinstance(penalty, DensePenalty):
            make, vectors = filter_program, unit_rows(vectors)
        program = make(
            patches,
            vectors,
            targets,
            1.0 if self.reg is None else float(self.reg),
            penalty=penalty,
            loss=get_loss(self.loss),
            intercept=bool(self.intercept),
        )
        return program, gates

    def _certify(self, program: Program, gates: Gates, result: SolveResult, search: PricingOptions) -> Certificate:
        networks = networks_in(program)
        certificate = Certificate(result.objective, result.dual_bound, float("nan"), "none", networks=networks)
        if gates.complete and program.cones is not None:
            # Only for cones: a gated network also has the patterns of gates that lie on a patch's hyperplane.
            return replace(certificate, global_bound=result.dual_bound, kind="proved")
        if not search.starts or size() > 1:  # the search needs all images
            return certificate
        worst = global_bound(program, result.weights, search, self._generator())
        if not worst.proved:
            # Other gates lower the optimum, so that a bound over all is no news above the one over these.
            worst = worst._replace(bound=min(worst.bound, result.dual_bound))
        return worst.certificate(program, result.objective, result.dual_bound)

    def _fit_priced(
        self,
        patches: Patches,
        targets: Tensor,
        options: PricingOptions,
        reg: float,
        *,
        start: Tensor | None = None,
        callback: Callback | None = None,
    ) -> tuple[Program, SolveResult, Certificate]:
        """Solve by pricing, from filters or gates (m, d) if there are any."""
        solve = solve_priced if self.activation == "relu" else solve_priced_gates
        if self.activation == "relu" and self.penalty == "group" and options.neighbours:
            solve = solve_priced_patterns
        solution: PricedSolution = solve(
            patches,
            targets,
            reg,
            penalty=self._penalty(patches, targets),
            loss=get_loss(self.loss),
            intercept=bool(self.intercept),
            tol=as_tol(self.tol),
            start=start,
            generator=self._generator(),
            options=options,
            callback=callback,
        )
        gap = relative_gap(solution.objective, solution.dual_bound)
        result = SolveResult(
            weights=solution.weights,
            objective=solution.objective,
            dual_bound=solution.dual_bound,
            relative_gap=gap,
            violation=solution.program.violation(solution.weights),
            status=(Status.OPTIMAL if gap <= self.tol else Status.INACCURATE).value,
            solver="priced",
            iterations=solution.rounds,
            seconds=solution.seconds,
            history=solution.history,
        )
        return solution.program, result, solution.certificate

    def _store(
        self, program: Program, result: SolveResult, certificate: Certificate, patches: Patches, flat: bool
    ) -> None:
        self.result_ = result
        self.certificate_ = certificate
        self.reg_ = program.reg
        self.geometry_ = patches.geometry
        _, channels, height, width = patches.images.shape
        self.image_shape_ = (channels, height, width)
        self.n_outputs_ = program.n_outputs
        self.flat_targets_ = flat
        design = program.design
        count = len(program.cones.gates) if program.cones is not None else design.n_blocks
        self.gates_ = design.vectors[:count].cpu().numpy()
        if self.activation == "gated_relu":
            active = result.weights.flatten(1).any(dim=1)
            self.gated_vectors_ = design.vectors[active]
            self.gated_weights_ = result.weights[active]
            self.gated_intercept_ = (
                program.intercepts(design.predict(result.weights))
                if result.intercepts is None
                else result.intercepts.to(result.weights)
            )
            # What is handed on: the ReLU responses of the active gates.
            self.neurons_ = Neurons(
                unit_rows(self.gated_vectors_) if len(self.gated_vectors_) else design.vectors[:1] * 0,
                design.vectors.new_zeros(max(1, len(self.gated_vectors_)), patches.n_cells, program.n_outputs),
                self.gated_intercept_,
            )
            self.n_neurons_ = int(active.sum())
        else:
            self.neurons_ = read_neurons(program, result.weights, result.intercepts)
            self.n_neurons_ = len(self.neurons_)
            self._judge_as_kept(program)

    def _judge_as_kept(self, program: Program) -> None:
        """Have no bound above Eq. 1 of the neurons that are kept, which rounding to float32 moved a little."""
        dtype = self.neurons_.filters.dtype
        # A pass over the images in float64, where rounding may have the last word.
        if dtype == torch.float64 or self.result_.relative_gap > _AS_KEPT * torch.finfo(dtype).eps:
            return
        exact = program.double()
        kept = Neurons(self.neurons_.filters.double(), self.neurons_.readout.double(), self.neurons_.intercept.double())
        squares = float(kept.filters.square().sum() + kept.readout.square().sum())
        fitted = kept.predict(exact.design.patches)
        value = exact.loss.value(fitted, exact.targets) + 0.5 * program.reg * squares
        lower = self.certificate_.global_bound
        # Filters that turned in rounding may be better than any weights of those that were solved for.
        if value < self.result_.dual_bound:
            self.result_ = replace(self.result_, objective=value, dual_bound=value, relative_gap=0.0)
            self.certificate_ = replace(self.certificate_, objective=value, sampled_bound=value)
        if value < lower and self.certificate_.kind != "proved":
            self.certificate_ = replace(self.certificate_, global_bound=value)

    def _patches(self, images: Any) -> Patches:
        if not hasattr(self, "neurons_"):
            raise NotFittedError("This ConvexConvBlock isn't fitted yet. Call fit first.")
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
        return self._predict(self._patches(images))

    def _predict(self, patches: Patches) -> Tensor:
        with torch.no_grad():
            if self.activation == "gated_relu":
                if not len(self.gated_vectors_):
                    return patches.pool.new_zeros(patches.n_images, self.n_outputs_) + self.gated_intercept_
                return patches.gated_prediction(self.gated_vectors_, self.gated_weights_) + self.gated_intercept_
            return self.neurons_.predict(patches)

    def transform(self, images: Any) -> np.ndarray:
        """Return the ReLU feature maps of the active neurons, shape (n, m, H', W'): the next block's input.

        For a gated block they are the ReLU responses of its active gates, scaled to unit length.
        """
        return np.asarray(self.relu_maps(images).cpu().numpy())

    @plainly
    def relu_maps(
        self, images: Any, neurons: Tensor | None = None, then: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return ``transform`` as a tensor, on the block's device.

        Of the neurons with these indices, and what ``then`` makes of each image's maps, if they are given.
        """
        patches = self._patches(images)
        filters = self.neurons_.filters
        with torch.no_grad():
            return patches.relu_maps(filters if neurons is None else filters[neurons], then)

    def neuron_norms(self) -> Tensor:
        """Return how much each neuron of ``neurons_`` contributes: ||u_i|| ||w_i||, or ||z_i|| for a gated block."""
        if self.activation == "gated_relu" and len(self.gated_weights_):
            norms: Tensor = self.gated_weights_.flatten(1).norm(dim=1)
        else:
            norms = self.neurons_.filters.norm(dim=1) * self.neurons_.readout.flatten(1).norm(dim=1)
        return norms

    @plainly
    def to_torch(self) -> nn.Sequential:
        """Return the block as Conv2d -> ReLU -> pooling -> Flatten -> Linear, with the same predictions.

        A gated block gives gated convolutions instead, which is no ReLU network; ``decompose`` gives one
        with the same outputs on the training images.
        """
        if not hasattr(self, "neurons_"):
            raise NotFittedError("This ConvexConvBlock isn't fitted yet. Call fit first.")
        if self.activation == "gated_relu":
            return self._gated_module()
        return to_module(self.neurons_, self.geometry_, self.image_shape_, intercept=self.intercept)

    def _gated_module(self) -> nn.Sequential:
        gates, weights = self.gated_vectors_, self.gated_weights_
        if not len(gates):
            gates, weights = gates.new_zeros(1, self.gates_.shape[1]), weights.new_zeros(1, *weights.shape[1:])
        count, cells, dim, outputs = weights.shape
        channels, height, width = self.image_shape_
        filters = weights.permute(0, 1, 3, 2).reshape(-1, dim)
        # Map (gate, cell, output) is read in its own cell by its own output, with weight one.
        selection = torch.einsum("ce,op->ocpe", torch.eye(cells), torch.eye(outputs)).reshape(outputs, -1)
        linear = nn.Linear(count * selection.shape[1], outputs, bias=self.intercept).to(weights)
        with torch.no_grad():
            linear.weight.copy_(selection.repeat(1, count))
            if self.intercept:
                linear.bias.copy_(self.gated_intercept_)
        geometry = self.geometry_
        return nn.Sequential(
            GatedConv(convolution(gates, geometry, channels), convolution(filters, geometry, channels)),
            pooling(geometry, geometry.map_shape((height, width)), weights),
            nn.Flatten(),
            linear,
        )

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
        patches = self._patches(images)
        if self.activation != "gated_relu":
            raise InputError('decompose is for activation="gated_relu"; this block is a ReLU network already.')
        with torch.no_grad():
            doubled = decomposed_weights(Cones(patches, self.gated_vectors_), self.gated_weights_)
            program = relu_program(
                patches,
                self.gated_vectors_,
                patches.pool.new_zeros(patches.n_images, self.n_outputs_),
                self.reg_,
            )
            neurons = read_neurons(program, doubled)
        neurons = Neurons(neurons.filters, neurons.readout, self.gated_intercept_)
        return to_module(neurons, self.geometry_, self.image_shape_, intercept=self.intercept)


def _share(fraction: float, largest: float) -> float:
    """Return this share of reg_max; where that is zero the solution is zero whatever reg is."""
    return fraction * largest if largest > 0 else 1.0


def decomposed_weights(cones: Cones, weights: Tensor) -> Tensor:
    """Return weights (2 P, cells, d, outputs) of the ReLU program with the gated weights' outputs."""
    positive, negative = weights.clone(), torch.zeros_like(weights)
    values = weights.cpu().double().numpy()
    for gate, cell, output in (weights.norm(dim=2) > 0).nonzero().tolist():
        first, second = cones.decompose(gate, values[gate, cell, :, output])
        positive[gate, cell, :, output] = torch.from_numpy(first).to(weights)
        negative[gate, cell, :, output] = torch.from_numpy(second).to(weights)
    return torch.cat([positive, negative])
