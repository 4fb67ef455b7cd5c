"""What is written of a block, and a block from what was written.

Layer j of a model, counted from 0, has the tensors ``layers.{j}.filters`` (m, d), ``.readout`` (m, cells, outputs),
``.intercept`` (outputs,) and ``.gates`` (P, d), the gates or filter directions of its program; if it is gated
``.gated_vectors`` (m, d), ``.gated_weights`` (m, cells, d, outputs) and ``.gated_intercept``; if inputs are
standardized ``.standardizer.mean`` and ``.standardizer.scale`` (C,). Everything else is in the configuration. A block
by itself is written as a stack of one layer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor

from ..activations import Activation, Neurons, get_activation
from ..activations.base import Shapes
from ..core.checks import scalar
from ..errors import InputError
from ..fitting import DTYPES
from ..patches.geometry import PatchGeometry
from ..penalties import get_penalty
from ..persistence.checks import (
    MisfitError,
    entry,
    is_bool,
    is_int,
    is_number,
    is_number_or_none,
    is_size,
    is_table,
    is_text,
    number,
    short,
)
from ..persistence.files import CONFIG_FILE, WEIGHTS_FILE
from ..persistence.state import State, StateReader, plain
from ..pricing.certificate import NETWORKS, Certificate
from ..pricing.options import PricedGates, PricingOptions
from ..solvers import SolveResult, Status
from .notebook import block_html
from .savable import Savable

__all__ = [
    "BlockState",
    "block_settings",
    "check_all_used",
    "layer_config",
    "layer_neurons",
    "layer_tables",
    "layer_tensors",
    "outcome_config",
    "read_outcome",
]

Self = TypeVar("Self", bound="BlockState")

RESULT = ("objective", "dual_bound", "relative_gap", "violation", "seconds")
CERTIFICATE = ("objective", "sampled_bound", "global_bound")
# Settings of a stack that decide its predictions: flags, then numbers or None.
FLAGS, NUMBERS = ("standardize", "residual", "mirror", "half_maps"), ("project", "hand_on")
# Without these a block would predict something else, so no default may stand in for them.
ESSENTIAL = (
    "kernel_size",
    "stride",
    "padding",
    "pooling",
    "pool_cells",
    "bias",
    "activation",
    "penalty",
    "loss",
    "dtype",
)


def block_settings(block: BlockState) -> dict[str, Any]:
    """Return a block's parameters as JSON values; gates that are an array or a sampler come back from the tensors."""
    settings = {name: scalar(value) for name, value in block.get_params(deep=False).items()}
    gates, pricing = settings["gates"], settings["pricing"]
    if isinstance(gates, PricedGates):
        settings["gates"] = asdict(gates)
    elif isinstance(gates, (np.ndarray, Tensor, list, tuple)):
        settings["gates"] = "array"
    elif not isinstance(gates, (Integral, str)):
        settings["gates"] = repr(gates)
    settings["pricing"] = None if pricing is None else asdict(pricing)
    return {name: plain(value) for name, value in settings.items()}


def layer_config(block: BlockState) -> dict[str, Any]:
    """Return what the tensors don't say of a fitted block."""
    return {"block": block_settings(block), **outcome_config(block)}


def outcome_config(model: Any) -> dict[str, Any]:
    """Return the result, the certificate and the counts of a fitted block, or of a model with the same attributes."""
    result, certificate = model.result_, model.certificate_
    return {
        "reg": plain(model.reg_),
        "result": {
            **{name: plain(getattr(result, name)) for name in RESULT},
            "status": str(result.status),
            "solver": str(result.solver),
            "iterations": int(result.iterations),
        },
        "certificate": {
            **{name: plain(getattr(certificate, name)) for name in CERTIFICATE},
            "kind": certificate.kind,
            "n_searched": int(certificate.n_searched),
            "networks": certificate.networks,
            "n_distinct": int(certificate.n_distinct),
            "expected_unseen": plain(certificate.expected_unseen),
        },
        "n_neurons": int(model.n_neurons_),
        "n_outputs": int(model.n_outputs_),
        "flat_targets": bool(model.flat_targets_),
    }


def layer_tensors(block: BlockState, layer: int) -> dict[str, Tensor]:
    """Return the tensors of a fitted block, layer ``layer`` (from 0) of its model."""
    own = {**block.neurons_.state(), "gates": torch.from_numpy(block.gates_)}
    return {f"layers.{layer}.{name}": value for name, value in own.items()}


def layer_tables(config: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the tables of the stack and of its layers, the stack's own entries checked."""
    stack = entry(config, "stack", is_table, "an object", "")
    layers = entry(config, "layers", lambda v: isinstance(v, list) and len(v) > 0, "a list of layers", "")
    count = entry(stack, "layers", is_size, "an int >= 1", "stack.")
    if count != len(layers):
        raise MisfitError(f"stack.layers in {CONFIG_FILE} is {count}, but there are {len(layers)} layers")
    for name in FLAGS:
        entry(stack, name, is_bool, "true or false", "stack.")
    for name in NUMBERS:
        entry(stack, name, lambda v: v is None or is_size(v), "an int >= 1 or null", "stack.")
    entry(
        stack, "downsample", lambda v: is_size(v) or (isinstance(v, list) and len(v) > 0 and all(map(is_size, v))),
        "an int >= 1 or a list of them", "stack.",
    )  # fmt: skip
    entry(
        stack, "image_shape", lambda v: isinstance(v, list) and len(v) == 3 and all(map(is_size, v)), "three ints >= 1",
        "stack.",
    )  # fmt: skip
    for layer, table in enumerate(layers):
        if not isinstance(table, dict):
            raise MisfitError(f"layers[{layer}] in {CONFIG_FILE} must be an object; it is {short(table)}")
    return stack, layers


def check_all_used(reader: StateReader) -> None:
    """Raise MisfitError if there is a tensor that belongs to no layer."""
    for name in reader.unused():
        raise MisfitError(f"{WEIGHTS_FILE} has a tensor {short(name)} that belongs to no layer")


class BlockState(Savable, BaseEstimator):
    """What ``ConvexConvBlock`` writes of itself, and is made of again."""

    kind = "ConvexConvBlock"

    neurons_: Neurons
    gates_: np.ndarray
    geometry_: PatchGeometry
    image_shape_: tuple[int, int, int]
    result_: SolveResult
    certificate_: Certificate
    reg_: float
    gates: Any
    penalty: str
    n_neurons_: int
    n_outputs_: int
    flat_targets_: bool

    @abstractmethod
    def check_parameters(self) -> PatchGeometry:
        """Return the geometry of the patches, after checking all parameters."""

    def _repr_html_(self) -> str:
        """Return the block as a notebook shows it."""
        return block_html(self)

    def check_device(self) -> None:
        if torch.device(self.device).type != "cpu":
            self.check_parameters()

    def state(self) -> State:
        if not hasattr(self, "neurons_"):
            raise NotFittedError(f"This {type(self).__name__} isn't fitted yet. Call fit first.")
        config = {
            "stack": {
                "layers": 1,
                "downsample": 1,
                **dict.fromkeys(FLAGS, False),
                **dict.fromkeys(NUMBERS),
                "image_shape": plain(self.image_shape_),
            },
            "layers": [layer_config(self)],
        }
        return State(self.kind, config, layer_tensors(self, 0))

    @classmethod
    def from_state(cls: type[Self], reader: StateReader) -> Self:
        stack, layers = layer_tables(reader.config)
        if len(layers) != 1 or stack["standardize"]:
            raise MisfitError(f"{CONFIG_FILE} has the layers of a stack for a single block")
        shape: Any = tuple(stack["image_shape"])
        block = cls.of_layer(reader, 0, layers[0], shape)
        check_all_used(reader)
        return block

    @classmethod
    def unfitted(cls: type[Self], table: dict[str, Any], where: str) -> Self:
        """Return a block with settings that were written, on the CPU; without gates that were an array or a sampler."""
        return cls(**_settings_of(cls().get_params(deep=False), table, where))

    @classmethod
    def of_layer(
        cls: type[Self], reader: StateReader, layer: int, table: dict[str, Any], shape: tuple[int, int, int]
    ) -> Self:
        """Return the block of layer ``layer`` (from 0), whose images have this shape."""
        where = f"layers[{layer}]."
        block = cls.unfitted(entry(table, "block", is_table, "an object", where), f"{where}block.")
        outputs = entry(table, "n_outputs", is_size, "an int >= 1", where)
        flat = entry(table, "flat_targets", is_bool, "true or false", where)
        if flat and outputs != 1:
            raise MisfitError(f"{where}flat_targets in {CONFIG_FILE} is true, but there are {outputs} outputs")
        try:
            geometry = block.check_parameters()
            geometry.map_shape(shape[1:])
        except InputError as error:
            raise MisfitError(f"{where}block in {CONFIG_FILE} can't be used: {str(error).rstrip('.')}") from error
        block.device = reader.device
        block.geometry_, block.image_shape_ = geometry, shape
        block.n_outputs_, block.flat_targets_ = outputs, flat
        block._read_neurons(reader, layer)
        # Files of before had the reg that was used among the settings, whatever had chosen it.
        read_outcome(block, {"reg": block.reg, **table}, where, block._networks())
        return block

    def _networks(self) -> str:
        """Return of which networks the certificate is, for files of before these were kept."""
        pairs = self.geometry_.pool_cells**2 * self.n_outputs_
        return get_activation(self.activation).networks_of(get_penalty(self.penalty).separable, pairs)

    def _read_neurons(self, reader: StateReader, layer: int) -> None:
        dtype, outputs, cells = DTYPES[self.dtype], self.n_outputs_, self.geometry_.pool_cells**2
        kernel = self.geometry_.sizes()[0]
        dim = self.image_shape_[0] * kernel[0] * kernel[1] + int(self.geometry_.bias)
        activation = get_activation(self.activation)
        self.neurons_ = layer_neurons(reader, layer, activation, activation.shapes(dim, cells, outputs), dtype)
        gates = reader.tensor(f"layers.{layer}.gates", dtype, (None, dim))
        self.n_neurons_ = len(self.neurons_)
        self.gates_ = gates.numpy()
        if isinstance(self.gates, np.ndarray):
            self.gates = self.gates_


def layer_neurons(
    reader: StateReader, layer: int, activation: Activation, shapes: Shapes, dtype: torch.dtype
) -> Neurons:
    """Return the neurons of layer ``layer`` (from 0), whose tensors have these shapes."""
    tensors: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for name, sides in shapes.items():
        shape = tuple(counts.get(side) if isinstance(side, str) else side for side in sides)
        tensors[name] = reader.tensor(f"layers.{layer}.{name}", dtype, shape)
        counts |= {str(side): size for side, size in zip(sides, tensors[name].shape, strict=True)}
        if name == "filters" and not len(tensors[name]):
            raise MisfitError(f"layers.{layer}.filters has no filter")
    placed = {name: reader.placed(value) for name, value in tensors.items()}
    try:
        return activation.from_state(placed)
    except ValueError as error:
        raise MisfitError(f"layers.{layer} has {error}") from error


def read_outcome(model: Any, table: dict[str, Any], where: str, networks: str) -> None:
    """Give a model with neurons the rest of what ``outcome_config`` wrote; ``networks`` where the file doesn't say."""
    saved = entry(table, "n_neurons", is_int, "an int", where)
    if saved != model.n_neurons_:
        raise MisfitError(f"{where}n_neurons in {CONFIG_FILE} is {saved}, but there are {model.n_neurons_}")
    used: Any = entry(table, "reg", is_number, "a number", where)
    if not is_number(used, above=0):
        raise MisfitError(f"{where}reg in {CONFIG_FILE} must be a positive number; it is {short(used)}")
    model.reg_ = float(used)
    model.result_ = _result(table, where, model.neurons_)
    model.certificate_ = _certificate(table, where, networks)


def _result(table: dict[str, Any], where: str, neurons: Neurons) -> SolveResult:
    table = entry(table, "result", is_table, "an object", where)
    where += "result."
    values = {name: number(entry(table, name, is_number_or_none, "a number or null", where)) for name in RESULT}
    statuses = [status.value for status in Status]
    return SolveResult(
        weights=neurons.filters.new_zeros(0),
        status=entry(table, "status", lambda v: v in statuses, f"one of {statuses}", where),
        solver=entry(table, "solver", is_text, "a text", where),
        iterations=entry(table, "iterations", is_int, "an int", where),
        objective=values["objective"],
        dual_bound=values["dual_bound"],
        relative_gap=values["relative_gap"],
        violation=values["violation"],
        seconds=values["seconds"],
    )


def _certificate(table: dict[str, Any], where: str, networks: str) -> Certificate:
    table = entry(table, "certificate", is_table, "an object", where)
    where += "certificate."
    kinds = ["proved", "searched", "none"]
    further = {"networks": networks, "n_distinct": 0, "expected_unseen": None, **table}
    return Certificate(
        **{name: number(entry(table, name, is_number_or_none, "a number or null", where)) for name in CERTIFICATE},
        kind=entry(table, "kind", lambda v: v in kinds, f"one of {kinds}", where),
        n_searched=entry(table, "n_searched", is_int, "an int", where),
        networks=entry(further, "networks", lambda v: v in list(NETWORKS), f"one of {list(NETWORKS)}", where),
        n_distinct=entry(further, "n_distinct", is_int, "an int", where),
        expected_unseen=number(entry(further, "expected_unseen", is_number_or_none, "a number or null", where)),
    )


def _options(kind: type[PricingOptions], table: dict[str, Any], where: str) -> PricingOptions:
    """Return options of the pricing."""
    if not all(is_number_or_none(value) for value in table.values()):
        raise MisfitError(f"{where} in {CONFIG_FILE} must hold numbers")
    try:
        # null stands for infinity, which is the default of the only option that may be infinite.
        return kind(**{name: value for name, value in table.items() if value is not None})
    except (TypeError, InputError) as error:
        raise MisfitError(f"{where} in {CONFIG_FILE} can't be used: {str(error).rstrip('.')}") from error


# What entries of a block's settings must be, and in words.
_VALID: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("pooling", "activation", "penalty", "loss", "solver", "dtype"), (is_text, "a text")),
    **dict.fromkeys(("bias", "intercept"), (is_bool, "true or false")),
    "tol": (is_number, "a number"),
    "reg": (is_number_or_none, "a number or null"),
    "gates": (lambda v: is_int(v) or is_text(v) or is_table(v), "a number, a text or an object"),
    "max_iter": (lambda v: v is None or is_size(v), "an int >= 1 or null"),
    "pricing": (lambda v: v is None or is_table(v), "an object or null"),
    "decay": (lambda v: v is None or is_text(v) or isinstance(v, tuple), "a text, two numbers or null"),
}


def _settings_of(known: dict[str, Any], table: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a block's parameters, of which these are ``known``; the device is chosen by who loads."""
    for name in ESSENTIAL:
        if name not in table:
            raise MisfitError(f"{CONFIG_FILE} has no {where}{name}")
    settings: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise MisfitError(f"{CONFIG_FILE} has an unknown setting {where}{short(name)}")
        settings[name] = tuple(value) if isinstance(value, list) else value
    for name, (check, expected) in _VALID.items():
        if name in settings:
            entry(settings, name, check, expected, where)
    if settings.get("pricing") is not None:
        settings["pricing"] = _options(PricingOptions, settings["pricing"], f"{where}pricing")
    gates: Any = settings.get("gates", "array")
    if is_table(gates):
        gates = _options(PricedGates, gates, f"{where}gates")
    elif gates != "priced" and not is_int(gates):
        gates = np.zeros((0, 0))
    return {**settings, "gates": gates, "device": "cpu"}
