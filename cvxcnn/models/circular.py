"""Circular convolutional networks, linear or with a ReLU, whose programs are norms of spectra."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from ..activations import Activation
from ..activations.circular import CircularLinear, CircularNeurons, CircularRelu, CircularReluNeurons
from ..arrangements import WaveGates
from ..core.checks import as_flag, as_int_or_none, as_number, as_tol, is_int, scalar
from ..core.plainly import plainly
from ..core.seeds import check_seed, seed_of
from ..core.threads import coarse_threads
from ..data.checks import are_flat, check_images, check_targets
from ..data.layout import check_layout, check_same_shape
from ..errors import InputError
from ..fitting import Task, fit, over
from ..losses import get_loss
from ..patches.geometry import PatchGeometry
from ..patches.patches import Patches
from ..penalties import DensePenalty
from ..persistence.checks import MisfitError, entry, is_bool, is_size, is_table
from ..persistence.files import CONFIG_FILE
from ..persistence.state import State, StateReader, plain
from ..pricing.certificate import Certificate
from ..pricing.options import PricingOptions
from ..program.problem import Problem
from ..solvers import Callback, SolveResult
from .block import DEFAULT_FRACTION
from .block_state import check_all_used, layer_neurons, outcome_config, read_outcome
from .door import check_given, weighing
from .savable import Savable

__all__ = ["CircularCNN"]

DEFAULT_GATES = 50

_KINDS: dict[int, type[Activation]] = {2: CircularLinear, 3: CircularRelu}


class CircularCNN(Savable, BaseEstimator):
    """A circular convolutional network with filters as long as the images, trained by convex optimisation.

    With circular convolutions U_i of filters u_i, images x_j of d places and F the unitary discrete Fourier transform,

        layers=2   f_j = sum_i x_j U_i w_i             Eq. 1: loss + lam/2 sum_i (||u_i||^2 + ||w_i||^2)
        layers=3   f_j = sum_i s_i (x_j U_i w_i)_+     Eq. 1: loss + lam/2 sum_i (||w_i||^2 + s_i^2),  ||u_i|| <= 1

    The first is, over any number of filters, the convex program

        min loss(X z, y) + lam / sqrt(d) |F z|_1

    and the second, over the sign patterns D_i of the images that the gates give,

        min loss(sum_i D_i X (v_i - w_i), y) + lam / sqrt(d) sum_i (|F v_i|_1 + |F w_i|_1)
        subject to (2 D_i - I) X v_i >= 0, (2 D_i - I) X w_i >= 0.

    So such networks look for signals of few frequencies. Filters and weights are read back, with the same Eq. 1
    (``program.circular_eq1.circular_objective``). Everything is in float64, on the CPU.

    Parameters
    ----------
    layers : {2, 3}
    loss : {"squared", "logistic", "softmax"}
        A sum over images, not a mean; targets as for ``ConvexConvBlock``.
    reg : float or None
        lam > 0; None for 0.01 of ``reg_max``. ``reg_`` has the one used.
    gates : int, array (P, C * H * W), gate sampler or None
        Of three layers: a number of ``WaveGates``, 50 for None; given ones; another sampler, or ``EnumeratedGates()``,
        with which the bound is over all networks. Two layers have no gates.
    solver : str
        "auto", or a solver of the package: of three layers "spectral_cones" for the squared loss, "proximal_newton" for
        the others, or one of cvxpy's.
    tol : float
        Relative duality gap.
    random_state : int or None
        Seed of the gates.
    intercept : bool
        An unregularised output intercept, for the squared loss.
    max_iter : int or None
        Limit of the solver's iterations; None for its default.
    filter_size : int, (int, int) or None
        Of the filters: None, or the height and width of the images. Others are refused: of shorter filters the program
        is a lower bound only.
    decay : {"last_two", "all"}
        Which layers' weights are decayed: the last two, as above. For two layers "all" is the same; for three it is
        refused, as it has no convex program.

    Attributes
    ----------
    result_ : SolveResult
        Objective, dual bound, relative gap, status, solver, iterations, seconds.
    certificate_ : Certificate
        "proved" over all networks for two layers, and for three with all gates; else its kind is "none".
    reg_ : float
    gates_ : ndarray, shape (P, C * H * W)
    neurons_ : CircularNeurons or CircularReluNeurons
    n_neurons_ : int

    Raises
    ------
    InputError
        If an argument, or a combination of them, can't be used.

    Notes
    -----
    For C channels the norm is a sum over frequencies of Euclidean norms over channels; for two layers, several channels
    and several outputs, of nuclear norms. With three layers each neuron feeds one output. Signals of one dimension are
    images of one row, (n, 1, L).
    Source: Ergen & Pilanci 2021, Implicit Convex Regularizers of CNN Architectures.

    Examples
    --------
    >>> wave = np.cos(2 * np.pi * 3 * np.arange(16) / 16)
    >>> signals = np.random.default_rng(0).normal(size=(30, 1, 16))
    >>> model = CircularCNN(reg=5.0).fit(signals, signals[:, 0] @ wave)
    >>> model.n_neurons_, np.flatnonzero(model.spectra()[0, 0] > 1e-9).tolist()  # the wave, and its mirror image
    (1, [3, 13])
    """

    kind: ClassVar[str] = "CircularCNN"

    def __init__(
        self,
        *,
        layers: int = 2,
        loss: str = "squared",
        reg: float | None = None,
        gates: Any = None,
        solver: str = "auto",
        tol: float = 1e-6,
        random_state: int | None = 0,
        intercept: bool = False,
        max_iter: int | None = None,
        filter_size: int | tuple[int, int] | None = None,
        decay: str = "last_two",
    ) -> None:
        self.layers = layers
        self.loss = loss
        self.reg = reg
        self.gates = gates
        self.solver = solver
        self.tol = tol
        self.random_state = random_state
        self.intercept = intercept
        self.max_iter = max_iter
        self.filter_size = filter_size
        self.decay = decay

    result_: SolveResult
    certificate_: Certificate
    reg_: float
    neurons_: CircularNeurons | CircularReluNeurons
    gates_: np.ndarray
    image_shape_: tuple[int, int, int]
    n_neurons_: int
    n_outputs_: int
    flat_targets_: bool

    @plainly
    def fit(
        self, images: Any, targets: Any, sample_weight: Any = None, callback: Callback | None = None
    ) -> CircularCNN:
        """Train on images (n, C, H, W) or (n, H, W) and targets (n,) or (n, outputs).

        Parameters
        ----------
        images, targets : array-like or Tensor
        sample_weight : array-like, shape (n,), optional
            s >= 0: the loss is sum_j s_j l(f_j, y_j).
        callback : callable, optional
            Called with a ``Progress`` now and then; may raise to stop.

        Raises
        ------
        InputError
            If a parameter, or what is given here, can't be used.
        SolverUnavailableError, SolverError
            If the solver is missing here, or ended without a point; the model is then as it was.
        """
        check_given(images, targets, self.loss)
        task = self.task(images, targets, sample_weight)
        fitted = fit(task, DEFAULT_FRACTION, callback)
        self.result_, self.certificate_, self.reg_ = fitted.result, fitted.certificate, fitted.program.reg
        # What this kind of task reads.
        neurons: Any = fitted.neurons
        self.neurons_, self.n_neurons_ = neurons, len(neurons)
        _, channels, height, width = task.problem.patches.images.shape
        self.image_shape_ = (channels, height, width)
        self.n_outputs_, self.flat_targets_ = fitted.program.n_outputs, are_flat(targets)
        vectors = task.problem.patches.images.new_zeros(0, task.problem.patches.dim)
        self.gates_ = (vectors if fitted.gates is None else fitted.gates.vectors).numpy()
        return self

    def task(self, images: Any, targets: Any, sample_weight: Any = None) -> Task:
        """Return what is to be fitted to images, targets and weights of images, every setting checked."""
        self.check_parameters()
        inputs = check_images(images)
        expected = check_targets(targets, len(inputs))
        inputs, expected, weights = weighing(inputs, expected, sample_weight)
        self._check_filters((int(inputs.shape[2]), int(inputs.shape[3])))
        reg = None if self.reg is None else float(self.reg)
        problem = Problem(
            self._whole(inputs), expected, 1.0 if reg is None else reg, DensePenalty(),
            get_loss(self.loss, weights), bool(self.intercept),
        )  # fmt: skip
        return Task(
            problem, self._activation(), self._gates(), False,
            PricingOptions(starts=0), reg, solver=self.solver, tol=as_tol(self.tol),
            max_iter=as_int_or_none("max_iter", self.max_iter), seed=seed_of(self.random_state),
        )  # fmt: skip

    def _gates(self) -> Any:
        count = DEFAULT_GATES if self.gates is None else self.gates
        return WaveGates(count) if is_int(count) else count

    def _activation(self) -> Activation:
        return _KINDS[int(scalar(self.layers))]()

    @staticmethod
    def _whole(images: Tensor) -> Patches:
        """Return images as patches of their own size."""
        return Patches(images, PatchGeometry(kernel_size=(int(images.shape[2]), int(images.shape[3]))))

    def check_parameters(self) -> None:
        """Check all parameters that can be checked without images.

        Raises
        ------
        InputError
            If a parameter, or a combination of them, can't be used.
        """
        if not is_int(self.layers, 2, 4):
            raise InputError(
                f"layers must be 2 (linear) or 3 (with a ReLU); got {self.layers!r}. LayerwiseCNN has more."
            )
        get_loss(self.loss)
        if self.reg is not None:
            as_number("reg", self.reg)
        as_tol(self.tol)
        as_flag("intercept", self.intercept)
        as_int_or_none("max_iter", self.max_iter)
        check_seed(self.random_state)
        if self.layers == 2 and self.gates is not None:
            raise InputError(f"two layers are linear and have no gates. Leave gates out; got {self.gates!r}.")
        if self.decay not in ("last_two", "all"):
            raise InputError(f'decay must be "last_two" or "all"; got {self.decay!r}.')
        if self.layers == 3 and self.decay == "all":
            raise InputError(
                'decay="all" of three layers has no convex program: the least of (||u||^2 + ||w||^2 + s^2) / 2 for '
                's U w = v is 3/2 N(v)^(2/3), N(v) = |F v|_1 / sqrt(d), which is no norm. Use decay="last_two", with '
                "||u|| <= 1."
            )

    def _check_filters(self, shape: tuple[int, int]) -> None:
        size: Any = (self.filter_size,) * 2 if is_int(self.filter_size) else self.filter_size
        if size is not None and (np.shape(size) != (2,) or tuple(map(scalar, size)) != shape):
            raise InputError(
                f"filter_size must be None or the height and width of the images, {shape}; got {self.filter_size!r}. "
                "The spectrum of a shorter filter is not free, so that the program would only be a lower bound of "
                "Eq. 1; ConvexConvBlock has short filters."
            )

    @plainly
    def reg_max(self, images: Any, targets: Any, sample_weight: Any = None) -> float:
        """Return the smallest ``reg`` whose solution is zero, over the gates if there are any.

        Parameters
        ----------
        images : array-like, shape (n, C, H, W) or (n, H, W)
        targets : array-like, shape (n,) or (n, outputs)
        sample_weight : array-like, shape (n,), optional
        """
        check_layout(images)
        with torch.no_grad(), coarse_threads():
            return over(self.task(images, targets, sample_weight)).reg_max()

    def _check_fitted(self) -> None:
        if not hasattr(self, "neurons_"):
            raise NotFittedError("This CircularCNN isn't fitted yet. Call fit first.")

    @plainly
    def predict(self, images: Any) -> np.ndarray:
        """Return predictions, shape (n,) or (n, outputs) as the targets were, for images of the shape fitted.

        Raises
        ------
        NotFittedError
            Before ``fit``.
        InputError
            If the images have another shape or are not finite.
        """
        self._check_fitted()
        inputs = check_images(images)
        check_same_shape(inputs.shape, self.image_shape_, "model")
        with torch.no_grad():
            prediction = self.neurons_.predict(self._whole(inputs))
        return np.asarray((prediction[:, 0] if self.flat_targets_ else prediction).numpy())

    @plainly
    def spectra(self) -> np.ndarray:
        """Return |F v_i| of what each neuron multiplies images by, v_i = U_i w_i, over channels, shape (m, H, W).

        F is unitary; place (0, 0) is the mean, and (k, l) the wave with k periods down and l across. With two layers a
        neuron's outputs are taken together.
        """
        self._check_fitted()
        return np.asarray(self.neurons_.spectra(self.image_shape_).numpy())

    @plainly
    def to_torch(self) -> nn.Sequential:
        """Return the network as a torch module with the same predictions.

        Conv2d with circular padding, then Flatten and Linear; or, of three layers, a Conv2d in groups with the weights
        of the places of each map, ReLU, Flatten and Linear.
        """
        self._check_fitted()
        geometry = PatchGeometry(kernel_size=self.image_shape_[1:])
        return self.neurons_.to_module(geometry, self.image_shape_, intercept=bool(self.intercept))

    def check_device(self) -> None:
        """Do nothing: ``from_state`` has refused any device but the CPU."""

    def state(self) -> State:
        self._check_fitted()
        settings = {name: scalar(value) for name, value in self.get_params(deep=False).items()}
        if not (settings["gates"] is None or is_int(settings["gates"])):
            settings["gates"] = "array"
        config = {"circular": {name: plain(value) for name, value in settings.items()}, **outcome_config(self)}
        tensors = {**self.neurons_.state(), "gates": torch.from_numpy(self.gates_)}
        return State(
            self.kind,
            {**config, "image_shape": plain(self.image_shape_)},
            {f"layers.0.{name}": value for name, value in tensors.items()},
        )

    @classmethod
    def from_state(cls, reader: StateReader) -> CircularCNN:
        if torch.device(reader.device).type != "cpu":
            raise InputError(f'circular networks are on the CPU only. Use device="cpu"; got {reader.device!r}.')
        config = reader.config
        model = cls._unfitted(entry(config, "circular", is_table, "an object", ""))
        shape = entry(
            config, "image_shape", lambda v: isinstance(v, list) and len(v) == 3 and all(map(is_size, v)),
            "three ints >= 1", "",
        )  # fmt: skip
        outputs = entry(config, "n_outputs", is_size, "an int >= 1", "")
        flat = entry(config, "flat_targets", is_bool, "true or false", "")
        if flat and outputs != 1:
            raise MisfitError(f"flat_targets in {CONFIG_FILE} is true, but there are {outputs} outputs")
        dim, activation = math.prod(shape), model._activation()
        shapes = activation.shapes(dim, shape[1] * shape[2], outputs)
        neurons: Any = layer_neurons(reader, 0, activation, shapes, torch.float64)
        model.neurons_, model.n_neurons_ = neurons, len(neurons)
        model.gates_ = reader.tensor("layers.0.gates", torch.float64, (None, dim)).numpy()
        if model.gates is not None and not is_int(model.gates):
            model.gates = model.gates_
        model.image_shape_, model.n_outputs_, model.flat_targets_ = tuple(shape), outputs, flat
        read_outcome(model, config, "", activation.networks_of(activation.networks == "circular_relu", outputs))
        check_all_used(reader)
        return model

    @classmethod
    def _unfitted(cls, table: dict[str, Any]) -> CircularCNN:
        """Return a model with settings that were written, checked."""
        known = cls().get_params(deep=False)
        if set(table) != set(known):
            names = ", ".join(sorted(set(table) ^ set(known)))
            raise MisfitError(f"the settings in {CONFIG_FILE} are not those of a CircularCNN: {names}")
        settings: dict[str, Any] = dict(table)
        if isinstance(settings["filter_size"], list):
            settings["filter_size"] = tuple(settings["filter_size"])
        if settings["gates"] is not None and not is_int(settings["gates"]):
            settings["gates"] = np.zeros((0, 0))
        model = cls(**settings)
        try:
            model.check_parameters()
        except InputError as error:
            raise MisfitError(f"circular in {CONFIG_FILE} can't be used: {str(error).rstrip('.')}") from error
        return model
