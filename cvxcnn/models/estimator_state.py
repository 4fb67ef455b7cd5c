"""What is written of an estimator beside its stack, and an estimator from what was written."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from ..core.checks import is_int
from ..errors import InputError
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
from ..persistence.state import State, StateReader, plain
from ..pricing.options import PricedGates
from .block import ConvexConvBlock
from .block_state import block_settings
from .blocks import OfBlocks, given_blocks
from .stack import LayerwiseCNN

__all__ = ["EstimatorState", "class_weight_config", "class_weight_of", "classes_of", "label_config"]

Self = TypeVar("Self", bound="EstimatorState")

# Of the classes: those of numbers, and strings. Anything else has no JSON value that gives it back.
LABEL_DTYPES = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
LABEL_DTYPES += ("float16", "float32", "float64", "str", "object")


class EstimatorState(OfBlocks):
    """What both estimators write of themselves, and are made of again."""

    stack_: LayerwiseCNN
    layers: int
    standardize: bool
    n_features_in_: int

    def own_config(self) -> dict[str, Any]:
        """Return what one kind of estimator alone has to write."""
        return {}

    def take_own(self, table: dict[str, Any]) -> None:
        """Check and take what one kind of estimator alone has written."""

    def check_device(self) -> None:
        self.stack_.check_device()

    def state(self) -> State:
        if not hasattr(self, "stack_"):
            raise NotFittedError(f"This {type(self).__name__} isn't fitted yet. Call fit first.")
        stack = self.stack_.state()
        given: Any = self.block
        if given is not None:
            # Others come back from the tensors, one a layer.
            single = isinstance(given, ConvexConvBlock)
            priced = single and (is_int(given.gates) or isinstance(given.gates, (str, PricedGates)))
            given = block_settings(given) if priced else "layers"
        names = getattr(self, "feature_names_in_", None)
        table = {
            **{name: plain(getattr(self, name)) for name in ("layers", "downsample", "reg_fraction", "image_shape")},
            "standardize": bool(self.standardize),
            "block": given,
            "own_reg": any(one.reg is not None for one in given_blocks(self.block)),
            "feature_names_in": None if names is None else [str(name) for name in names],
            **self.own_config(),
        }
        return State(self.kind, {**stack.config, "estimator": table}, stack.tensors)

    @classmethod
    def from_state(cls: type[Self], reader: StateReader) -> Self:
        stack = LayerwiseCNN.from_state(reader)
        table = entry(reader.config, "estimator", is_table, "an object", "")
        model: Self = cls(**_settings(table, stack))
        model.stack_ = stack
        model.n_features_in_ = math.prod(stack.image_shape_)
        names = entry(table, "feature_names_in", _is_names, "a list of texts or null", "estimator.")
        if names is not None:
            if len(names) != model.n_features_in_:
                raise MisfitError(f"estimator.feature_names_in in {CONFIG_FILE} has {len(names)} names")
            model.feature_names_in_ = np.array(names, dtype=object)
        model.take_own(table)
        return model


def label_config(classes: NDArray[Any]) -> dict[str, Any]:
    dtype = "str" if classes.dtype.kind == "U" else classes.dtype.name
    values = classes.tolist()
    if dtype not in LABEL_DTYPES or not all(isinstance(value, (bool, int, float, str)) for value in values):
        raise InputError(
            f"labels of dtype {classes.dtype} can't be written as JSON, such as {short(values[0])}. "
            "Fit the classifier to strings or numbers."
        )
    return {"dtype": dtype, "values": values}


def class_weight_config(given: Any) -> Any:
    """Return a classifier's ``class_weight`` for JSON, whose objects have no names but texts: pairs for a dict."""
    return [[plain(name), float(weight)] for name, weight in given.items()] if isinstance(given, dict) else given


def class_weight_of(table: dict[str, Any]) -> Any:
    """Return the ``class_weight`` that was written; None of files of before."""

    def is_pair(value: Any) -> bool:
        named = isinstance(value, list) and len(value) == 2 and isinstance(value[0], (bool, int, float, str))
        return named and is_number(value[1]) and value[1] >= 0

    def can_be(value: Any) -> bool:
        return value in (None, "balanced") or (isinstance(value, list) and all(map(is_pair, value)))

    found = entry({"class_weight": None, **table}, "class_weight", can_be, 'null, "balanced" or pairs', "estimator.")
    return dict(found) if isinstance(found, list) else found


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
        settings["block"] = ConvexConvBlock.unfitted(settings["block"], f"{where}block.")
    if settings["block"] is not None and not own:
        for block in given_blocks(settings["block"]):
            block.reg = None
    return settings


def classes_of(table: dict[str, Any], stack: LayerwiseCNN) -> NDArray[Any]:
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
