"""A device that isn't there: tensors that say they are elsewhere, and refuse to meet tensors of the CPU.

They hold numbers of the CPU and say that they lie on "meta". As on a GPU, an operation on tensors of both places
raises, but for copies, indices and single numbers, and ``numpy`` raises: what a GPU would refuse is refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["ELSEWHERE", "pretended_device"]

ELSEWHERE, HERE = torch.device("meta"), torch.device("cpu")
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
# These take indices of both places.
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


def _as_index(index: Any) -> Any:
    """Return an index whose lists are tensors: torch would make true meta tensors of them."""
    if isinstance(index, tuple):
        return tuple(map(_as_index, index))
    return torch.as_tensor(index) if isinstance(index, (list, np.ndarray)) else index


class Elsewhere(Tensor):
    """A tensor that holds its numbers here."""

    held: Tensor
    # The library refuses tensors of "meta", which have no values; these do.
    is_meta = False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=ELSEWHERE,
        )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.held!r})"

    # What torch answers from a tensor's own memory.
    def item(self) -> Any:
        return self.held.item()

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __float__(self) -> float:
        return float(self.held)

    def __int__(self) -> int:
        return int(self.held)

    def __bool__(self) -> bool:
        return bool(self.held)

    def __index__(self) -> int:
        return self.held.__index__()

    def __getitem__(self, index: Any) -> Any:
        return Tensor.__getitem__(self, _as_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        Tensor.__setitem__(self, _as_index(index), value)

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(ELSEWHERE)

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert a tensor of another device to numpy")

    def __array__(self, *_: Any) -> Any:
        raise TypeError("can't convert a tensor of another device to numpy")


def _refuse_both(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Raise if tensors of both places meet that may not."""
    real = [value for value in tensors if value.device == ELSEWHERE and not isinstance(value, Elsewhere)]
    if real:
        raise NotImplementedError(f"{func} of a true meta tensor: the pretended device doesn't know where it is from")
    if func in COPIES or not any(isinstance(value, Elsewhere) for value in tensors):
        return
    meeting = [args[0], *args[2:3]] if func in INDEXING else [value for value in tensors if value.ndim]
    least = 2 if func in INDEXING else 0
    here = [value for value in meeting if not isinstance(value, Elsewhere) and value.numel() >= least]
    if here:
        raise RuntimeError(f"{func}: a tensor of the CPU, of shape {tuple(here[0].shape)}, meets one of the device")


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do an operation of torch, here, and say that the result is where a device would have it."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    _refuse_both(func, args, tensors)
    asked = kwargs.get("device")
    if func is aten.copy_.default:
        there = isinstance(args[0], Elsewhere)
    elif asked is not None:
        there = torch.device(asked) == ELSEWHERE
    else:
        there = any(isinstance(value, Elsewhere) for value in tensors)
    wrappers = {id(value.held): value for value in tensors if isinstance(value, Elsewhere)}
    inner = tree_map(lambda value: value.held if isinstance(value, Elsewhere) else value, (args, kwargs))
    found = func(*inner[0], **(inner[1] | ({"device": HERE} if asked is not None else {})))
    if func._schema.name.endswith("_"):  # in place; of lists of tensors there is nothing to return
        return args[0] if isinstance(args[0], Tensor) else None
    if not there:
        return found

    def given(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, Elsewhere):
            return value
        known = wrappers.get(id(value))
        return Elsewhere(value) if known is None else known

    return tree_map(given, found)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


@contextmanager
def pretended_device() -> Iterator[str]:
    """Give the name of a device that is there within."""

    def moving(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(data: Any, *, device: Any = None, **settings: Any) -> Tensor:
            found = data if isinstance(data, Tensor) and not settings else make(data, **settings)
            return found if device is None else found.to(device)

        return made

    # These make their tensor before the mode hears of it.
    with _Mode(), patch.multiple(torch, tensor=moving(torch.tensor), as_tensor=moving(torch.as_tensor)):
        yield ELSEWHERE.type
