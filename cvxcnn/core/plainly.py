"""The same numbers whatever state torch is in: autocast, TF32, inference mode, another default dtype or device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

import torch

__all__ = ["plain_torch", "plainly"]

Function = TypeVar("Function", bound=Callable[..., Any])


def _precisions() -> list[tuple[Any, str, Any]]:
    """Return (owner, attribute, value) of what lets float32 products be made of less than float32, with the value that
    forbids it: convolutions on a GPU are by default.
    """
    backends = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):  # torch before 2.9
        return [(backends.cudnn, "allow_tf32", False), (backends.cuda.matmul, "allow_tf32", False)]
    owners = [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]  # type: ignore[attr-defined]
    return [(owner, "fp32_precision", "ieee") for owner in owners]


@contextmanager
def _whole_products() -> Iterator[None]:
    with ExitStack() as stack:
        for owner, name, whole in _precisions():
            before = getattr(owner, name)
            if before not in (whole, "none"):  # "none" is the whole too, unless one that it inherits from is not
                stack.callback(setattr, owner, name, before)
                setattr(owner, name, whole)
        yield


@contextmanager
def plain_torch() -> Iterator[None]:
    """Torch as it is when it is imported, but for its threads, its gradient mode and its random state.

    Precision is a parameter of each model here, and a certificate says what it was, so nothing from outside may
    change it. Tensors made within are no inference tensors, and so can be used anywhere.

    Examples
    --------
    >>> with torch.autocast("cpu"), plain_torch():
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float32
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_whole_products())
        # A device in force intercepts every call of torch, so none is set where there is none to undo.
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield


def plainly(function: Function) -> Function:
    """Return a function that runs in ``plain_torch``."""

    @wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        with plain_torch():
            return function(*args, **kwargs)

    return cast(Function, inner)
