"""Arrays or tensors in, arrays or tensors out, computed with in float64; and a refusal of too much memory."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .checks import is_number

__all__ = ["Array", "as_double", "as_given", "check_bytes"]

Array: TypeAlias = Tensor | NDArray[np.float64]


def as_double(name: str, values: Any, shape: tuple[int | str, ...], device: torch.device | None = None) -> Tensor:
    """Return numbers as a float64 tensor of a shape, without a gradient.

    Parameters
    ----------
    name : str
        For the error.
    values : array-like
    shape : tuple of int or str
        Lengths, and names of lengths that are free.
    device : torch.device, optional

    Raises
    ------
    InputError
        If they are no finite real numbers, or have another shape.

    Examples
    --------
    >>> as_double("filter", [1, 2], ("d",))
    tensor([1., 2.], dtype=torch.float64)
    """
    expected = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
    try:
        given = values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values, dtype=np.float64))
        if given.is_complex():
            raise TypeError("they are complex")
        tensor = given.to(device, torch.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be real numbers of shape {expected}; they can't be read: {error}.") from error
    fits = tensor.ndim == len(shape) and all(
        isinstance(length, str) or length == found for length, found in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        raise InputError(f"{name} must have shape {expected}; got {tuple(tensor.shape)}.")
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{name} must be finite; got NaN or infinity.")
    return tensor


def as_given(result: Tensor, *given: Any) -> Array:
    """Return a result as a tensor if one of the things given was one, and as an array otherwise."""
    return result if any(isinstance(value, Tensor) for value in given) else np.asarray(result.cpu().numpy())


def check_bytes(what: str, needed: float, memory: float | None, remedy: str) -> None:
    """Raise InputError if so many bytes are more than ``memory`` GiB; None is no limit.

    Examples
    --------
    >>> check_bytes("a Gram matrix", 2**31, 1.0, "Give fewer images.")
    Traceback (most recent call last):
        ...
    cvxcnn.errors.InputError: a Gram matrix needs about 2 GiB, more than memory=1. Give fewer images.
    """
    if memory is None:
        return
    if not is_number(memory, above=0):
        raise InputError(f"memory must be a positive number of GiB, or None; got {memory!r}.")
    if needed > memory * 2**30:
        raise InputError(f"{what} needs about {needed / 2**30:.3g} GiB, more than memory={memory:g}. {remedy}")
