"""The kinds of models: each is written as a stack, with a table of its own for what a stack doesn't have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from ..core.checks import is_int
from ..errors import InputError
from ..fitting.priced import PricedGates
from ..persistence.checks import (
    MisfitError,
    entry,
    is_bool,
    is_number,
    is_number_or_none,
    is_size,
    is_table,
    is_text,
    short,
)
from ..persistence.files import CONFIG_FILE
from .block import ConvexConvBlock
from .estimator import ConvexCNNClassifier, ConvexCNNRegressor
from .reading import unfitted_block
from .stack import LayerwiseCNN, given_blocks
from .writing import block_settings, plain

__all__ = ["KINDS", "estimator_config", "fitted_stack", "kind_of", "of_kind"]

KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (ConvexConvBlock, LayerwiseCNN, ConvexCNNClassifier, ConvexCNNRegressor)
}
# Of the classes: those of numbers, and strings. Anything else has no JSON value that gives it back.
LABEL_DTYPES = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
LABEL_DTYPES += ("float16", "float32", "float64", "str", "object")


def kind_of(model: type[Any]) -> str:
    """Return the kind of a class, that of its base if it is derived; empty if it is none."""
    return next((name for name, kind in KINDS.items() if issubclass(model, kind)), "")


def fitted_stack(model: Any) -> LayerwiseCNN | None:
    """Return a model as a stack, or None if it isn't fitted."""
    if isinstance(model, ConvexConvBlock):
        if not hasattr(model, "neurons_"):
            return None
        stack = LayerwiseCNN(layers=1, standardize=False)
        stack.blocks_, stack.standardizers_, stack.image_shape_ = [model], [None], model.image_shape_
        return stack
    fitted: LayerwiseCNN | None = model if isinstance(model, LayerwiseCNN) else getattr(model, "stack_", None)
    return fitted if getattr(fitted, "blocks_", None) else None


def _label_config(classes: NDArray[Any]) -> dict[str, Any]:
    dtype = "str" if classes.dtype.kind == "U" else classes.dtype.name
    values = classes.tolist()
    if dtype not in LABEL_DTYPES or not all(isinstance(value, (bool, int, float, str)) for value in values):
        raise InputError(
            f"labels of dtype {classes.dtype} can't be written as JSON, such as {short(values[0])}. "
            "Fit the classifier to strings or numbers."
        )
    return {"dtype": dtype, "values": values}


def estimator_config(model: ConvexCNNClassifier | ConvexCNNRegressor) -> dict[str, Any]:
    """Return what the stack of a fitted estimator doesn't say of it."""
    block = model.block
    given: Any = block
    if block is not None:
        # Others come back from the tensors, one a layer.
        given = "layers"
        if isinstance(block, ConvexConvBlock) and (is_int(block.gates) or isinstance(block.gates, (str, PricedGates))):
            given = block_settings(block)
    names = getattr(model, "feature_names_in_", None)
    return {
        **{name: plain(getattr(model, name)) for name in ("layers", "downsample", "reg_fraction", "image_shape")},
        "standardize": bool(model.standardize),
        "block": given,
        "own_reg": any(one.reg is not None for one in given_blocks(block)),
        "feature_names_in": None if names is None else [str(name) for name in names],
        **({"classes": _label_config(model.classes_)} if isinstance(model, ConvexCNNClassifier) else {}),
    }


def of_kind(kind: str, stack: LayerwiseCNN, config: dict[str, Any]) -> Any:
    """Return a stack that was read as the kind of model that was written."""
    if kind == "LayerwiseCNN":
        return stack
    if kind == "ConvexConvBlock":
        if len(stack.blocks_) != 1 or stack.standardize:
            raise MisfitError(f"{CONFIG_FILE} has the layers of a stack for a single block")
        return stack.blocks_[0]
    table = entry(config, "estimator", is_table, "an object", "")
    model = KINDS[kind](**_settings(table, stack))
    model.stack_ = stack
    model.n_features_in_ = math.prod(stack.image_shape_)
    names = entry(table, "feature_names_in", _is_names, "a list of texts or null", "estimator.")
    if names is not None:
        if len(names) != model.n_features_in_:
            raise MisfitError(f"estimator.feature_names_in in {CONFIG_FILE} has {len(names)} names")
        model.feature_names_in_ = np.array(names, dtype=object)
    if isinstance(model, ConvexCNNClassifier):
        model.classes_ = _classes(table, stack)
    elif {block.loss for block in stack.blocks_} != {"squared"}:
        raise MisfitError(f"{CONFIG_FILE} has a regressor of another loss than the squared one")
    return model


def _is_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(is_text, value)))


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(is_size, value))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(is_number, value))


def _settings(table: dict[str, Any], stack: LayerwiseCNN) -> dict[str, Any]:
    where, features = "estimator.", math.prod(stack.image_shape_)
    settings = {
        "layers": entry(table, "layers", is_size, "an int >= 1", where),
        "standardize": entry(table, "standardize", is_bool, "true or false", where),
        "downsample": entry(table, "downsample", lambda v: is_size(v) or _is_sizes(v), "ints >= 1", where),
        "reg_fraction": entry(
            table, "reg_fraction", lambda v: is_number_or_none(v) or _is_numbers(v), "a number, a list or null", where
        ),
        "image_shape": entry(
            table, "image_shape", lambda v: v is None or (_is_sizes(v) and math.prod(v) == features),
            f"null or the sides of an image with {features} entries", where,
        ),
        "block": entry(
            table, "block", lambda v: v is None or v == "layers" or is_table(v), 'null, "layers" or an object', where
        ),
    }  # fmt: skip
    if settings["layers"] != len(stack.blocks_) or settings["standardize"] != stack.standardize:
        raise MisfitError(f"estimator and stack in {CONFIG_FILE} differ in their layers or in standardize")
    if settings["image_shape"] is not None:
        settings["image_shape"] = tuple(settings["image_shape"])
    # Of files of before, a fraction took the place of whatever the blocks had.
    own = entry({"own_reg": settings["reg_fraction"] is None, **table}, "own_reg", is_bool, "true or false", where)
    if settings["block"] == "layers":
        settings["block"] = [clone(block) for block in stack.blocks_]
    elif settings["block"] is not None:
        settings["block"] = unfitted_block(settings["block"], f"{where}block.")
    if settings["block"] is not None and not own:
        for block in given_blocks(settings["block"]):
            block.reg = None
    return settings


def _classes(table: dict[str, Any], stack: LayerwiseCNN) -> NDArray[Any]:
    labels = entry(table, "classes", is_table, "an object", "estimator.")
    where = "estimator.classes."

    def is_list(value: Any) -> bool:
        return isinstance(value, list) and len(value) > 1

    dtype = entry(labels, "dtype", lambda v: v in LABEL_DTYPES, f"one of {list(LABEL_DTYPES)}", where)
    values = entry(
        labels, "values", lambda v: isinstance(v, list) and len(v) > 1, "a list of two labels or more", where
    )
    kinds: Any = {"bool": bool, "str": str, "object": (bool, int, float, str)}.get(
        dtype, int if "int" in dtype else float
    )
    try:
        with np.errstate(over="ignore"):
            classes = np.array(values, dtype=dtype)
        if not all(isinstance(value, kinds) for value in values) or (classes[1:] <= classes[:-1]).any():
            raise ValueError("they are of another kind, or not in order")
    except (TypeError, ValueError, OverflowError) as error:
        raise MisfitError(f"{where}values in {CONFIG_FILE} can't be used: {error}") from error
    last = stack.blocks_[-1]
    expected = 1 if last.loss == "logistic" and len(classes) == 2 else len(classes)
    if last.n_outputs_ != expected:
        raise MisfitError(f"{where}values in {CONFIG_FILE} has {len(classes)} labels for {last.n_outputs_} outputs")
    return classes
