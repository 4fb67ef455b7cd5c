"""From a configuration and its tensors to a fitted stack, every piece checked on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from ..activations.neurons import Neurons
from ..errors import InputError
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
from ..pricing.certificate import NETWORKS, Certificate, networks_of
from ..pricing.options import PricedGates, PricingOptions
from ..solvers import SolveResult, Status
from .block import DTYPES, ConvexConvBlock
from .projection import PatchPCA
from .stack import LayerwiseCNN
from .standardizer import Standardizer
from .writing import CERTIFICATE, RESULT, STACK

__all__ = ["Reader", "unfitted_block"]

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


class Reader:
    """Builds the stack from a configuration and its tensors, and checks every piece on the way."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor], device: str) -> None:
        self.config = config
        self.tensors = tensors
        self.device = device
        self.used: set[str] = set()

    def model(self) -> LayerwiseCNN:
        """Return the stack."""
        stack = entry(self.config, "stack", is_table, "an object", "")
        layers = entry(self.config, "layers", lambda v: isinstance(v, list) and len(v) > 0, "a list of layers", "")
        count = entry(stack, "layers", is_size, "an int >= 1", "stack.")
        if count != len(layers):
            raise MisfitError(f"stack.layers in {CONFIG_FILE} is {count}, but there are {len(layers)} layers")
        flags = {name: entry(stack, name, is_bool, "true or false", "stack.") for name in STACK[:4]}
        sizes = {
            name: entry(stack, name, lambda v: v is None or is_size(v), "an int >= 1 or null", "stack.")
            for name in STACK[4:]
        }
        steps = entry(
            stack,
            "downsample",
            lambda v: is_size(v) or (isinstance(v, list) and len(v) > 0 and all(map(is_size, v))),
            "an int >= 1 or a list of them",
            "stack.",
        )
        shape = entry(
            stack, "image_shape", lambda v: isinstance(v, list) and len(v) == 3 and all(map(is_size, v)),
            "three ints >= 1", "stack.",
        )  # fmt: skip
        model = LayerwiseCNN(layers=count, downsample=steps, **flags, **sizes)
        model.image_shape_ = tuple(shape)
        model.blocks_, model.standardizers_ = [], []
        channels, height, width = shape
        for layer, table in enumerate(layers):
            if not isinstance(table, dict):
                raise MisfitError(f"layers[{layer}] in {CONFIG_FILE} must be an object; it is {short(table)}")
            standardizer: Standardizer | PatchPCA | None = None
            if layer and model.project is not None:
                standardizer = self._projection(layer, table, (channels, height, width))
                channels = standardizer.n_directions
                height, width = standardizer.geometry.map_shape((height, width))
            block = self._block(layer, table, (channels, height, width))
            if standardizer is None and model.standardize:
                standardizer = self._standardizer(layer, block, channels)
            model.blocks_.append(block)
            model.standardizers_.append(standardizer)
            step = model.pooling_after(layer)
            height, width = (side // step for side in block.geometry_.map_shape((height, width)))
            channels = len(model.handed_on(layer))
            if min(height, width) < 1 and layer + 1 < count:
                raise MisfitError(f"the maps of layer {layer} are too small for stack.downsample in {CONFIG_FILE}")
        unknown = sorted(set(self.tensors) - self.used)
        if unknown:
            raise MisfitError(f"{WEIGHTS_FILE} has a tensor {short(unknown[0])} that belongs to no layer")
        if len({(block.n_outputs_, block.flat_targets_, block.dtype) for block in model.blocks_}) > 1:
            raise MisfitError(f"the layers in {CONFIG_FILE} differ in their outputs or dtypes")
        if model.half_maps and model.blocks_[0].dtype != "float32":
            raise MisfitError(f"stack.half_maps in {CONFIG_FILE} is true, but the layers are not float32")
        model.block = [clone(block) for block in model.blocks_]
        for block, standardizer in zip(model.block, model.standardizers_, strict=True):
            if isinstance(standardizer, PatchPCA):
                block.set_params(kernel_size=tuple(standardizer.directions.shape[2:]), padding=standardizer.padding)
        return model

    def _tensor(self, layer: int, name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> Tensor:
        """Return a tensor after checking it; None in the shape stands for any size."""
        key = f"layers.{layer}.{name}"
        if key not in self.tensors:
            raise MisfitError(f"{WEIGHTS_FILE} has no tensor {key}")
        self.used.add(key)
        tensor = self.tensors[key]
        fits = tensor.ndim == len(shape) and all(
            side is None or side == size for side, size in zip(shape, tensor.shape, strict=True)
        )
        if not fits or tensor.dtype != dtype:
            sides = ", ".join("any" if side is None else str(side) for side in shape)
            raise MisfitError(f"{key} must be {dtype} of shape ({sides}); it is {tensor.dtype} {tuple(tensor.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise MisfitError(f"{key} has values that are not finite")
        # Memory of torch's own, aligned as in training: some matrix products depend on that in the last bit.
        return tensor.clone()

    def _standardizer(self, layer: int, block: ConvexConvBlock, channels: int) -> Standardizer:
        dtype = DTYPES[block.dtype]
        mean = self._tensor(layer, "standardizer.mean", dtype, (channels,))
        scale = self._tensor(layer, "standardizer.scale", dtype, (channels,))
        if not bool((scale > 0).all()):
            raise MisfitError(f"layers.{layer}.standardizer.scale has values that are not positive")
        return Standardizer(self._placed(mean), self._placed(scale))

    def _projection(self, layer: int, table: dict[str, Any], shape: tuple[int, int, int]) -> PatchPCA:
        name = f"layers.{layer}.projection."
        dtype = getattr(self.tensors.get(f"{name}bias"), "dtype", torch.float64)
        channels = self._tensor(layer, "projection.channels", dtype, (None, shape[0]))
        directions = self._tensor(layer, "projection.directions", dtype, (None, len(channels), None, None))
        padding = entry(
            table, "padding", lambda v: isinstance(v, list) and len(v) == 2 and all(is_int(p) and p >= 0 for p in v),
            "two ints >= 0", f"layers[{layer}].",
        )  # fmt: skip
        projection = PatchPCA(
            self._placed(channels),
            self._placed(self._tensor(layer, "projection.channel_bias", dtype, (len(channels),))),
            self._placed(directions),
            self._placed(self._tensor(layer, "projection.bias", dtype, (len(directions),))),
            (padding[0], padding[1]),
        )
        try:
            projection.geometry.map_shape(shape[1:])
        except InputError as error:
            raise MisfitError(f"{name}directions doesn't fit: {str(error).rstrip('.')}") from error
        return projection

    def _placed(self, tensor: Tensor) -> Tensor:
        try:
            return tensor.to(self.device)
        # torch raises AssertionError for a device that it was built without.
        except (RuntimeError, AssertionError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(f'device {self.device!r} can\'t be used: {reason} Use device="cpu".') from error

    def _block(self, layer: int, table: dict[str, Any], shape: tuple[int, int, int]) -> ConvexConvBlock:
        """Return layer ``layer``, whose images have this shape."""
        where = f"layers[{layer}]."
        block = unfitted_block(entry(table, "block", is_table, "an object", where), f"{where}block.")
        outputs = entry(table, "n_outputs", is_size, "an int >= 1", where)
        flat = entry(table, "flat_targets", is_bool, "true or false", where)
        if flat and outputs != 1:
            raise MisfitError(f"{where}flat_targets in {CONFIG_FILE} is true, but there are {outputs} outputs")
        try:
            geometry: PatchGeometry = block._check_parameters()
            geometry.map_shape(shape[1:])
        except InputError as error:
            raise MisfitError(f"{where}block in {CONFIG_FILE} can't be used: {str(error).rstrip('.')}") from error
        block.device = self.device
        block.geometry_, block.image_shape_ = geometry, shape
        block.n_outputs_, block.flat_targets_ = outputs, flat
        self._weights(layer, block)
        saved = entry(table, "n_neurons", is_int, "an int", where)
        if saved != block.n_neurons_:
            raise MisfitError(f"{where}n_neurons in {CONFIG_FILE} is {saved}, but there are {block.n_neurons_}")
        # Files of before had the reg that was used among the settings, whatever had chosen it.
        used: Any = block.reg if "reg" not in table else entry(table, "reg", is_number, "a number", where)
        if not is_number(used, above=0):
            raise MisfitError(f"{where}reg in {CONFIG_FILE} must be a positive number; it is {short(used)}")
        block.reg_ = float(used)
        block.result_ = self._result(table, where, block)
        block.certificate_ = self._certificate(table, where, block)
        return block

    def _weights(self, layer: int, block: ConvexConvBlock) -> None:
        """Put the tensors of a layer into its block."""
        dtype, outputs, cells = DTYPES[block.dtype], block.n_outputs_, block.geometry_.pool_cells**2
        kernel = block.geometry_._sizes()[0]
        dim = block.image_shape_[0] * kernel[0] * kernel[1] + int(block.geometry_.bias)
        filters = self._tensor(layer, "filters", dtype, (None, dim))
        if not len(filters):
            raise MisfitError(f"layers.{layer}.filters has no filter")
        readout = self._tensor(layer, "readout", dtype, (len(filters), cells, outputs))
        intercept = self._tensor(layer, "intercept", dtype, (outputs,))
        gates = self._tensor(layer, "gates", dtype, (None, dim))
        block.neurons_ = Neurons(self._placed(filters), self._placed(readout), self._placed(intercept))
        block.n_neurons_ = len(block.neurons_)
        block.gates_ = gates.numpy()
        if block.activation == "gated_relu":
            vectors = self._tensor(layer, "gated_vectors", dtype, (None, dim))
            if len(filters) != max(1, len(vectors)):
                raise MisfitError(f"layers.{layer} has {len(filters)} filters for {len(vectors)} gates")
            weights = self._tensor(layer, "gated_weights", dtype, (len(vectors), cells, dim, outputs))
            block.gated_vectors_, block.gated_weights_ = self._placed(vectors), self._placed(weights)
            block.gated_intercept_ = self._placed(self._tensor(layer, "gated_intercept", dtype, (outputs,)))
            block.n_neurons_ = len(vectors)
        if isinstance(block.gates, np.ndarray):
            block.gates = block.gates_

    def _result(self, table: dict[str, Any], where: str, block: ConvexConvBlock) -> SolveResult:
        table = entry(table, "result", is_table, "an object", where)
        where += "result."
        values = {name: number(entry(table, name, is_number_or_none, "a number or null", where)) for name in RESULT}
        statuses = [status.value for status in Status]
        return SolveResult(
            weights=block.neurons_.filters.new_zeros(0),
            status=entry(table, "status", lambda v: v in statuses, f"one of {statuses}", where),
            solver=entry(table, "solver", is_text, "a text", where),
            iterations=entry(table, "iterations", is_int, "an int", where),
            objective=values["objective"],
            dual_bound=values["dual_bound"],
            relative_gap=values["relative_gap"],
            violation=values["violation"],
            seconds=values["seconds"],
        )

    def _certificate(self, table: dict[str, Any], where: str, block: ConvexConvBlock) -> Certificate:
        table = entry(table, "certificate", is_table, "an object", where)
        where += "certificate."
        kinds = ["proved", "searched", "none"]
        # Files of before these were kept say what they are by the settings of the block.
        pairs = block.geometry_.pool_cells**2 * block.n_outputs_
        networks = networks_of(block.activation, get_penalty(block.penalty).separable, pairs)
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


def unfitted_block(table: dict[str, Any], where: str) -> ConvexConvBlock:
    """Return a block with these settings, on the CPU; one whose gates were an array or a sampler has none yet."""
    known = ConvexConvBlock().get_params(deep=False)
    for name in ESSENTIAL:
        if name not in table:
            raise MisfitError(f"{CONFIG_FILE} has no {where}{name}")
    settings: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise MisfitError(f"{CONFIG_FILE} has an unknown setting {where}{short(name)}")
        settings[name] = tuple(value) if isinstance(value, list) else value
    valid: dict[str, tuple[Callable[[Any], bool], str]] = {
        **dict.fromkeys(("pooling", "activation", "penalty", "loss", "solver", "dtype"), (is_text, "a text")),
        **dict.fromkeys(("bias", "intercept"), (is_bool, "true or false")),
        "tol": (is_number, "a number"),
        "reg": (is_number_or_none, "a number or null"),
        "gates": (lambda v: is_int(v) or is_text(v) or is_table(v), "a number, a text or an object"),
        "max_iter": (lambda v: v is None or is_size(v), "an int >= 1 or null"),
        "pricing": (lambda v: v is None or is_table(v), "an object or null"),
    }
    for name, (check, expected) in valid.items():
        if name in settings:
            entry(settings, name, check, expected, where)
    if settings.get("pricing") is not None:
        settings["pricing"] = _options(PricingOptions, settings["pricing"], f"{where}pricing")
    gates: Any = settings.get("gates", "array")
    if is_table(gates):
        gates = _options(PricedGates, gates, f"{where}gates")
    elif gates != "priced" and not is_int(gates):
        gates = np.zeros((0, 0))
    # The device is chosen by who loads.
    return ConvexConvBlock(**{**settings, "gates": gates, "device": "cpu"})
