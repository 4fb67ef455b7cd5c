"""Gates taken from the filters of a torch module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError

__all__ = ["gates_of"]


def gates_of(module: nn.Module) -> Tensor:
    """Return the filters of the one Conv2d in a module as gate vectors.

    A trained network's filters are gates like any others. With one output and one pooling cell, the optimum of the
    ReLU program over them is at most the network's own training objective: each filter lies in its gate's cone.

    Parameters
    ----------
    module : torch.nn.Module
        A module that is, or contains, exactly one ``nn.Conv2d`` with groups=1 and dilation=1.

    Returns
    -------
    Tensor, shape (m, d)
        One filter a row, in the order of ``F.unfold`` (channels, kernel height, kernel width), with the bias
        last if the Conv2d has one; a copy, in the module's dtype and on its device.

    Raises
    ------
    InputError
        If there is no Conv2d, more than one, or one with groups or dilation.

    Examples
    --------
    >>> gates_of(nn.Sequential(nn.Conv2d(2, 5, kernel_size=3), nn.ReLU())).shape
    torch.Size([5, 19])
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"gates_of takes a torch.nn.Module; got {type(module).__name__}.")
    found = {name: child for name, child in module.named_modules() if isinstance(child, nn.Conv2d)}
    if len(found) != 1:
        raise InputError(
            f"gates come from exactly one nn.Conv2d, but the module {type(module).__name__} has {len(found)}"
            + (f" ({', '.join(found)}). Pass the one that you mean." if found else ".")
        )
    (conv,) = found.values()
    if conv.groups != 1 or conv.dilation != (1, 1):
        raise InputError(
            f"gates come from a Conv2d with groups=1 and dilation=1, whose filters see whole patches; "
            f"got groups={conv.groups}, dilation={conv.dilation}."
        )
    with torch.no_grad():
        filters = conv.weight.flatten(1)
        return filters.clone() if conv.bias is None else torch.cat([filters, conv.bias[:, None]], 1)
