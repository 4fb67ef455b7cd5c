"""Images, targets and labels of any kind, checked once and made tensors and arrays of plain numbers."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.distributed import all_sum
from ..errors import InputError

__all__ = [
    "are_flat",
    "check_destination",
    "check_images",
    "check_labels",
    "check_present",
    "check_targets",
    "check_weights",
]

# Numbers that are tested for NaN and infinity at once.
_TESTED_AT_ONCE = 1 << 24


def check_destination(dtype: torch.dtype, device: torch.device | str) -> None:
    """Raise InputError if tensors can't be of this dtype, or not on this device."""
    if not dtype.is_floating_point:
        raise InputError(f"dtype must be a real floating-point type such as torch.float64; got {dtype}.")
    try:
        torch.empty(0, device=device)
    # torch raises AssertionError for a device that it was built without, RuntimeError for the rest.
    except (AssertionError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(
            f'device {str(device)!r} can\'t be used: {reason} Use "cpu", or a device that is there.'
        ) from error


def _is_missing(value: Any) -> bool:
    """Return whether an object stands for no value; NA and NaT of pandas are known by their names."""
    nan = isinstance(value, (float, np.floating)) and bool(np.isnan(value))
    return value is None or nan or type(value).__name__ in ("NAType", "NaTType")


def _count_masked(values: Any) -> int:
    if isinstance(values, np.ma.MaskedArray):
        return int(np.ma.getmaskarray(values).sum())
    return sum(map(_count_masked, values)) if isinstance(values, (list, tuple)) else 0


def check_present(name: str, values: Any) -> None:
    """Raise InputError if some values are missing: masked, or None, NA, NaT or NaN among objects.

    Parameters
    ----------
    name : str
        What they are, for the error.
    values : array, tensor, table or list
        NaN in an array of floats is left to the checks of numbers.

    Examples
    --------
    >>> check_present("labels", ["cat", None])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    cvxcnn.errors.InputError: labels must be there for every image; missing (masked, None, NA or NaN): 1. Fill ...
    """
    missing = _count_masked(values)
    if isinstance(values, (list, tuple)):
        # Not as an array: one of strings would have the string "nan".
        missing += sum(map(_is_missing, values))
    elif not isinstance(values, (Tensor, np.ma.MaskedArray)):
        array = np.asarray(values)
        missing = sum(map(_is_missing, array.flat)) if array.dtype == object else 0
    if missing:
        raise InputError(
            f"{name} must be there for every image; missing (masked, None, NA or NaN): {missing}. "
            "Fill them in, or leave those images out."
        )


def _dense(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of plain numbers: sparse and quantized ones are laid out."""
    if tensor.is_meta:
        raise InputError(f"{name} are a tensor on the meta device, which has no values. Give one with values.")
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    return (tensor if tensor.layout == torch.strided else tensor.to_dense()).detach()


def _array(name: str, values: Any, remedy: str) -> NDArray[Any]:
    """Return values of any kind as an array; numbers that are kept as objects become numbers."""

    def plain(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = _dense(name, value).cpu()
        # numpy has no bfloat16.
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()

    if _count_masked(values):
        check_present(name, values)
    try:
        array = np.asarray([plain(value) for value in values] if isinstance(values, (list, tuple)) else plain(values))
    except ValueError as error:
        raise InputError(f"{name} must form one array; got nested values of unequal lengths. {remedy}") from error
    except (TypeError, RuntimeError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise InputError(f"{name} must form one array; they can't: {reason}. {remedy}") from error
    if array.dtype == object:
        there = [value for value in array.flat if not _is_missing(value)]
        if there and all(isinstance(value, (Real, np.bool_)) for value in there):
            check_present(name, array)
            array = np.array(array.tolist())
            array = array.astype(np.float64) if array.dtype == object else array
    return array


def _numbers(name: str, values: Any, dtype: torch.dtype, device: torch.device | str, remedy: str) -> Tensor:
    """Return numeric values of any kind as a tensor without NaN and infinities."""
    check_destination(dtype, device)
    if isinstance(values, Tensor):
        if values.is_complex():
            raise InputError(f"{name} must be real numbers; got {values.dtype}. {remedy}")
        tensor = _dense(name, values).to(device, dtype)
    else:
        array = _array(name, values, remedy)
        if array.dtype.kind not in "biuf":
            raise InputError(f"{name} must be real numbers; got dtype {array.dtype}. {remedy}")
        # torch knows neither every numpy dtype nor byte order, and warns of arrays that can't be written to.
        target = np.float64 if dtype == torch.float64 else np.float32
        with np.errstate(over="ignore"):  # reported below, as infinite values
            array = np.require(array, target, ["C", "W"])
        tensor = torch.from_numpy(array).to(device, dtype)
    # In parts: the test makes several copies of what it is given.
    parts = torch.split(tensor.reshape(-1), _TESTED_AT_ONCE)
    bad = tensor.numel() - sum(int(torch.isfinite(part).sum()) for part in parts)
    if bad:
        raise InputError(
            f"{name} must be finite; {bad} of {tensor.numel()} values are NaN or infinite as {dtype}. "
            "Remove or replace them."
        )
    return tensor


def check_images(images: Any, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
    """Return images as one checked float tensor.

    Parameters
    ----------
    images : array, tensor or nested lists, shape (n, C, H, W) or (n, H, W)
        Real numbers; integers and booleans are converted, not scaled. The result may share their memory.
    dtype : torch.dtype
        Floating-point type of the result.
    device : torch.device or str
        Where the result lives.

    Returns
    -------
    Tensor, shape (n, C, H, W)
        With C = 1 for images of shape (n, H, W).

    Raises
    ------
    InputError
        If the shape isn't one of these, the set is empty, or values are not finite real numbers.

    Examples
    --------
    >>> check_images([[[0, 1], [2, 3]]]).shape
    torch.Size([1, 1, 2, 2])
    """
    tensor = _numbers("images", images, dtype, device, "Pass pixels, shape (n, c, h, w) or (n, h, w).")
    if tensor.ndim not in (3, 4):
        remedy = "Reshape flat images first." if tensor.ndim == 2 else "One image needs a first axis of length 1."
        raise InputError(f"images must be (n, c, h, w) or (n, h, w); got {tuple(tensor.shape)}. {remedy}")
    if tensor.numel() == 0:
        raise InputError(f"images are empty: got shape {tuple(tensor.shape)}. Pass at least one image of one pixel.")
    return tensor if tensor.ndim == 4 else tensor.unsqueeze(1)


def check_targets(
    targets: Any, n_images: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Tensor:
    """Return numeric targets as one checked float tensor with a column an output.

    Parameters
    ----------
    targets : array, tensor or list, shape (n,) or (n, outputs)
        Real numbers. The result may share their memory.
    n_images : int
        The number of images they belong to.
    dtype : torch.dtype
        Floating-point type of the result.
    device : torch.device or str
        Where the result lives.

    Returns
    -------
    Tensor, shape (n, outputs)

    Raises
    ------
    InputError
        If there isn't one target an image, there are no outputs, or values are not finite real numbers.

    Examples
    --------
    >>> check_targets([1, -1, 1], 3).shape
    torch.Size([3, 1])
    """
    remedy = "Encode class labels by one_hot, or use ConvexCNNClassifier."
    tensor = _numbers("targets", targets, dtype, device, remedy)
    if tensor.ndim not in (1, 2):
        raise InputError(f"targets must be (n,) or (n, outputs); got {tuple(tensor.shape)}.")
    if len(tensor) != n_images:
        raise InputError(f"targets must be one an image; got {len(tensor)} targets for {n_images} images.")
    if tensor.numel() == 0:
        raise InputError(f"targets are empty: got shape {tuple(tensor.shape)}. Pass one output at least.")
    return tensor if tensor.ndim == 2 else tensor.unsqueeze(1)


def check_weights(weights: Any, n_images: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Return the weights of images as one checked float64 tensor.

    Parameters
    ----------
    weights : array, tensor or list, shape (n,)
        Finite numbers >= 0; 0 is as if the image weren't there, 2 as if it were there twice.
    n_images : int
        The number of images they belong to.
    device : torch.device or str
        Where the result lives.

    Returns
    -------
    Tensor, shape (n,)

    Raises
    ------
    InputError
        If there isn't one weight an image, some are negative or not finite, or those of all processes are zero.

    Examples
    --------
    >>> check_weights([2, 0.5], 2)
    tensor([2.0000, 0.5000], dtype=torch.float64)
    """
    check_present("sample_weight", weights)
    remedy = "Pass one number >= 0 an image."
    tensor = _numbers("sample_weight", weights, torch.float64, device, remedy)
    if tensor.ndim != 1 or len(tensor) != n_images:
        raise InputError(
            f"sample_weight must be (n,), one weight for each of the {n_images} images; got {tuple(tensor.shape)}."
        )
    if bool((tensor < 0).any()):
        raise InputError(
            f"sample_weight must not be negative; got {float(tensor.min()):g}, for one. Use 0 to leave an image out."
        )
    if not bool(all_sum((tensor > 0).sum())):
        raise InputError("sample_weight is zero for every image, which leaves none to fit. Give some a weight above 0.")
    return tensor


def are_flat(targets: Any) -> bool:
    """Return whether checked targets are (n,), so that predictions are to be (n,) too.

    Examples
    --------
    >>> are_flat([0.5, 1.0]), are_flat([[0.5], [1.0]])
    (True, False)
    """
    return bool((targets if isinstance(targets, Tensor) else _array("targets", targets, "")).ndim == 1)


def check_labels(labels: Any) -> NDArray[Any]:
    """Return class labels of any kind as an array.

    Parameters
    ----------
    labels : array, tensor, table or list
        Numbers or names.

    Raises
    ------
    InputError
        If some are missing, or they are of several kinds.

    Examples
    --------
    >>> check_labels(np.array([2, 0], dtype=object))
    array([2, 0])
    """
    check_present("labels", labels)
    array = _array("labels", labels, "Pass one label an image.")
    kinds = {str if isinstance(v, str) else type(v) for v in array.flat} if array.dtype == object else set()
    if len(kinds) > 1:
        raise InputError(
            f"labels must be of one kind; got {', '.join(sorted(kind.__name__ for kind in kinds))}. "
            "Make all of them numbers, or all of them strings."
        )
    return array
