"""What entries of a configuration must be, and the words for those that aren't."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..core.checks import is_int, is_number
from .files import CONFIG_FILE

__all__ = [
    "MisfitError",
    "entry",
    "is_bool",
    "is_int",
    "is_number",
    "is_number_or_none",
    "is_size",
    "is_table",
    "is_text",
    "number",
    "short",
]


class MisfitError(Exception):
    """Something in a model file isn't as it must be; the message says what."""


def is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def is_size(value: Any) -> bool:
    return is_int(value, 1, 1 << 31)


def is_number_or_none(value: Any) -> bool:
    return value is None or is_number(value)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_table(value: Any) -> bool:
    return isinstance(value, dict)


def entry(table: Mapping[str, Any], name: str, valid: Callable[[Any], bool], expected: str, where: str) -> Any:
    """Return an entry of the configuration, or say what is wrong with it."""
    if name not in table:
        raise MisfitError(f"{CONFIG_FILE} has no {where}{name}")
    if not valid(table[name]):
        raise MisfitError(f"{where}{name} in {CONFIG_FILE} must be {expected}; it is {short(table[name])}")
    return table[name]


def short(value: Any) -> str:
    """Return a value's representation, cut to a length that fits a message."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} of many levels"
    return text if len(text) <= 60 else f"{text[:57]}..."


def number(value: float | None) -> float:
    """Return a number that was written as null if it wasn't finite."""
    return math.nan if value is None else float(value)
