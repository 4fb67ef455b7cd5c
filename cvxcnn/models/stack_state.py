"""What is written of a stack, and a stack from what was written."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import Tensor

from ..errors import InputError
from ..fitting import DTYPES
from ..persistence.checks import MisfitError, entry, is_int, is_number
from ..persistence.files import CONFIG_FILE
from ..persistence.state import State, StateReader, plain
from .block import ConvexConvBlock
from .block_state import FLAGS, NUMBERS, check_all_used, layer_config, layer_tables, layer_tensors
from .blocks import OfBlocks
from .layers import Layers
from .notebook import stack_html
from .plan import LayerPlan
from .projection import PatchPCA
from .standardizer import Standardizer

__all__ = ["StackState"]

Self = TypeVar("Self", bound="StackState")

PROJECTION = ("channels", "channel_bias", "directions", "bias")


class StackState(Layers, OfBlocks):
    """What ``LayerwiseCNN`` writes of itself, and is made of again."""

    kind = "LayerwiseCNN"

    downsample: Any
    project: int | None

    def _repr_html_(self) -> str:
        """Return the stack as a notebook shows it."""
        return stack_html(self)

    def check_device(self) -> None:
        for block in self.blocks_:
            block.check_device()

    def state(self) -> State:
        if not getattr(self, "blocks_", None):
            raise NotFittedError(f"This {type(self).__name__} isn't fitted yet. Call fit first.")
        layers: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        for layer, (block, part) in enumerate(zip(self.blocks_, self.standardizers_, strict=True)):
            padding = {"padding": list(part.padding)} if isinstance(part, PatchPCA) else {}
            layers.append({**layer_config(block), **padding})
            tensors |= layer_tensors(block, layer)
            if isinstance(part, PatchPCA):
                tensors |= {f"layers.{layer}.projection.{name}": getattr(part, name) for name in PROJECTION}
            elif part is not None:
                tensors |= {f"layers.{layer}.standardizer.{name}": getattr(part, name) for name in ("mean", "scale")}
        stack = {
            "layers": len(self.blocks_),
            "downsample": plain(1 if self.used.downsample is None else self.used.downsample),
            **{name: plain(getattr(self.used, name)) for name in (*FLAGS, *NUMBERS)},
            "image_shape": plain(self.image_shape_),
            "input_range": plain(getattr(self, "input_range_", None)),
        }
        return State(self.kind, {"stack": stack, "layers": layers}, tensors)

    @classmethod
    def from_state(cls: type[Self], reader: StateReader) -> Self:
        stack, layers = layer_tables(reader.config)
        settings = {name: stack[name] for name in ("layers", "downsample", *FLAGS, *NUMBERS)}
        model: Self = cls(**settings)
        inputs: tuple[int, int, int] = tuple(stack["image_shape"])
        model.image_shape_ = inputs
        # Files of before have none.
        ends = entry({"input_range": None, **stack}, "input_range", _is_range, "two rising numbers or null", "stack.")
        if ends is not None:
            model.input_range_ = float(ends[0]), float(ends[1])
        model.blocks_, model.standardizers_ = [], []
        for layer, table in enumerate(layers):
            part: Standardizer | PatchPCA | None = None
            if layer and model.project is not None:
                part = _projection(reader, layer, table, inputs)
                inputs = part.n_directions, *part.geometry.map_shape(inputs[1:])
            block = ConvexConvBlock.of_layer(reader, layer, table, inputs)
            if part is None and model.standardize:
                part = _standardizer(reader, layer, block, inputs[0])
            model.blocks_.append(block)
            model.standardizers_.append(part)
            plan = LayerPlan.of(inputs, block.geometry_, model.pooling_after(layer))
            inputs = plan.handed_on(len(model.handed_on(layer)))
            if min(inputs[1:]) < 1 and layer + 1 < len(layers):
                raise MisfitError(f"the maps of layer {layer} are too small for stack.downsample in {CONFIG_FILE}")
        check_all_used(reader)
        if len({(block.n_outputs_, block.flat_targets_, block.dtype) for block in model.blocks_}) > 1:
            raise MisfitError(f"the layers in {CONFIG_FILE} differ in their outputs or dtypes")
        if model.half_maps and model.blocks_[0].dtype != "float32":
            raise MisfitError(f"stack.half_maps in {CONFIG_FILE} is true, but the layers are not float32")
        model.block = [clone(block) for block in model.blocks_]
        for block, part in zip(model.block, model.standardizers_, strict=True):
            if isinstance(part, PatchPCA):
                block.set_params(kernel_size=tuple(part.directions.shape[2:]), padding=part.padding)
        return model


def _is_range(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) == 2 and all(map(is_number, value)) and value[0] <= value[1]
    )


def _standardizer(reader: StateReader, layer: int, block: ConvexConvBlock, channels: int) -> Standardizer:
    dtype = DTYPES[block.dtype]
    mean = reader.tensor(f"layers.{layer}.standardizer.mean", dtype, (channels,))
    scale = reader.tensor(f"layers.{layer}.standardizer.scale", dtype, (channels,))
    if not bool((scale > 0).all()):
        raise MisfitError(f"layers.{layer}.standardizer.scale has values that are not positive")
    return Standardizer(reader.placed(mean), reader.placed(scale))


def _projection(reader: StateReader, layer: int, table: dict[str, Any], shape: tuple[int, int, int]) -> PatchPCA:
    name = f"layers.{layer}.projection."
    dtype = getattr(reader.tensors.get(f"{name}bias"), "dtype", torch.float64)
    channels = reader.tensor(f"layers.{layer}.projection.channels", dtype, (None, shape[0]))
    directions = reader.tensor(f"layers.{layer}.projection.directions", dtype, (None, len(channels), None, None))
    padding = entry(
        table, "padding", lambda v: isinstance(v, list) and len(v) == 2 and all(is_int(p) and p >= 0 for p in v),
        "two ints >= 0", f"layers[{layer}].",
    )  # fmt: skip
    projection = PatchPCA(
        reader.placed(channels),
        reader.placed(reader.tensor(f"layers.{layer}.projection.channel_bias", dtype, (len(channels),))),
        reader.placed(directions),
        reader.placed(reader.tensor(f"layers.{layer}.projection.bias", dtype, (len(directions),))),
        (padding[0], padding[1]),
    )
    try:
        projection.geometry.map_shape(shape[1:])
    except InputError as error:
        raise MisfitError(f"{name}directions doesn't fit: {str(error).rstrip('.')}") from error
    return projection
