"""What counts as a number, in one place: Python's, numpy's, and 0-d arrays and tensors; a truth value is none."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import InputError

__all__ = ["as_flag", "as_int", "as_number", "as_tol", "is_flag", "is_int", "is_number", "scalar"]


def scalar(value: Any) -> Any:
    """Return what a numpy scalar, or an array or tensor without axes, holds, as Python's own; other values as they are.

    Examples
    --------
    >>> scalar(np.int64(3)), scalar(np.array(0.5)), scalar("priced")
    (3, 0.5, 'priced')
    """
    if isinstance(value, np.generic) or (isinstance(value, (np.ndarray, Tensor)) and value.ndim == 0):
        return value.item()
    return value


def is_int(value: Any, least: float = -math.inf, below: float = math.inf) -> bool:
    """Return whether a value is an integer in [least, below): no float, not even a whole one, and no truth value.

    Examples
    --------
    >>> is_int(np.uint8(3), 1), is_int(True), is_int(2.0)
    (True, False, False)
    """
    number: Any = scalar(value)
    return isinstance(number, Integral) and not isinstance(number, bool) and bool(least <= int(number) < below)


def is_number(value: Any, above: float = -math.inf, below: float = math.inf) -> bool:
    """Return whether a value is a finite real number strictly between two others, and no truth value.

    Examples
    --------
    >>> is_number(np.float32(0.5), above=0, below=1), is_number(float("nan")), is_number("1")
    (True, False, False)
    """
    number: Any = scalar(value)
    if not isinstance(number, Real) or isinstance(number, bool):
        return False
    try:
        return math.isfinite(number) and bool(above < float(number) < below)
    except OverflowError:  # an int beyond all floats
        return False


def is_flag(value: Any) -> bool:
    """Return whether a value is True or False, Python's or numpy's."""
    return isinstance(scalar(value), bool)


def as_int(name: str, value: Any, least: int = 1, what: str = "") -> int:
    """Return a parameter as an int, or raise InputError: it must be an int >= ``least``, which counts ``what``."""
    if not is_int(value, least):
        raise InputError(f"{name} must be an int >= {least}{what and f', {what}'}; got {value!r}.")
    return int(scalar(value))


def as_int_or_none(name: str, value: Any, least: int = 1) -> int | None:
    """Return a parameter as an int or None, or raise InputError: it must be an int >= ``least``, or None."""
    if value is None:
        return None
    if not is_int(value, least):
        raise InputError(f"{name} must be an int >= {least}, or None; got {value!r}.")
    return int(scalar(value))


def as_number(name: str, value: Any, above: float = 0.0, below: float = math.inf) -> float:
    """Return a parameter as a float, or raise InputError: it must lie strictly between two numbers."""
    if not is_number(value, above, below):
        expected = (
            "a positive, finite number" if (above, below) == (0, math.inf) else f"between {above:g} and {below:g}"
        )
        raise InputError(f"{name} must be {expected}; got {value!r}.")
    return float(scalar(value))


def as_tol(value: Any) -> float:
    """Return a tolerance as a float, or raise InputError: it must be a positive number."""
    if not is_number(value, above=0):
        raise InputError(f"tol must be a positive number; got {value!r}.")
    return float(scalar(value))


def as_flag(name: str, value: Any) -> bool:
    """Return a parameter as a bool, or raise InputError: it must be True or False."""
    if not is_flag(value):
        raise InputError(f"{name} must be True or False; got {value!r}.")
    return bool(scalar(value))
