"""Eq. 1 of a torch module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..core.checks import is_number
from ..core.plainly import plainly
from ..data.checks import check_images, check_targets, check_weights
from ..errors import InputError
from ..losses import get_loss
from .decay import Decay

__all__ = ["nonconvex_objective"]


def _only(module: nn.Module, kind: type[nn.Module]) -> Any:
    found = [part for part in module.modules() if isinstance(part, kind)]
    if len(found) != 1:
        raise InputError(
            f"Eq. 1 is defined for a module with exactly one {kind.__name__}; got {len(found)}. "
            "Pass one Conv2d -> ReLU -> pooling -> Linear block."
        )
    return found[0]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Have a module and its parts in evaluation mode for a while, and then each as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@plainly
def nonconvex_objective(
    module: nn.Module,
    images: Any,
    targets: Any,
    reg: float,
    loss: str = "squared",
    decay: Any = None,
    sample_weight: Any = None,
) -> float:
    """Return Eq. 1 of a torch Conv2d -> ReLU -> pooling -> Linear module, in float64.

        loss(module(images), targets) + reg/2 * (sum_i ||u_i||^2 + ||w||^2)

    with u_i the i-th filter with its bias, and w the weights of the Linear layer, whose own bias is free. The module is
    evaluated as by ``module.eval()``, without Dropout. With ``decay``, that of quadratic networks,

        loss(module(images), targets) + reg * sum_i [(2/p) ||u_i||^p + (1/q) ||w_i||^q]

    with w_i all weights that read filter i, of which a neuron of the "group" penalty has one.

    Parameters
    ----------
    module : nn.Module
        Holds exactly one ``Conv2d`` and one ``Linear``; left unchanged.
    images : array-like, shape (n, C, H, W) or (n, H, W)
    targets : array-like, shape (n,) or (n, outputs)
    reg : float
        lam >= 0.
    loss : {"squared", "logistic", "softmax"}
        Sums over images and outputs. "logistic" takes targets of -1 and +1, "softmax" one-hot targets.
    decay : {"path", "fixed_sign"}, (p, q) or None
        None for Eq. 1's own, of any activation; otherwise 2/p + 1/q = 1, or reg * sum_i ||w_i|| ||u_i||^2 for "path",
        or reg * sum_i ||u_i||^2 for "fixed_sign".
    sample_weight : array-like, shape (n,), optional
        The loss is sum_j s_j l(f_j, y_j) with these s_j >= 0.

    Raises
    ------
    InputError
        If the module is no such block, images and targets don't fit it, or reg is negative.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(1, 1, bias=False))
    >>> for parameter in net.parameters(): _ = nn.init.constant_(parameter, 2.0)
    >>> nonconvex_objective(net, [[[1.0]]], [3.0], reg=0.5)  # 1/2 (4 - 3)^2 + 0.25 (4 + 4)
    2.5
    """
    convolution, linear = _only(module, nn.Conv2d), _only(module, nn.Linear)
    if not is_number(reg) or reg < 0:
        raise InputError(f"reg must be a number >= 0; got {reg!r}.")
    counted = {id(parameter) for part in (convolution, linear) for parameter in part.parameters()}
    if any(id(parameter) not in counted for parameter in module.parameters()):
        raise InputError(
            "Eq. 1 has no term for the module's other parameters (a normalisation, say): only those of one Conv2d and "
            "one Linear. Fold them into the convolution first."
        )
    device = convolution.weight.device
    inputs = check_images(images, dtype=torch.float64, device=device)
    expected = check_targets(targets, len(inputs), dtype=torch.float64, device=device)
    double = {name: value.detach().double() for name, value in module.state_dict().items()}
    calls: list[nn.Module] = []
    hooks = [part.register_forward_hook(lambda part, *_: calls.append(part)) for part in (convolution, linear)]
    try:
        with torch.no_grad(), _evaluating(module):
            first, again = (torch.func.functional_call(module, double, (inputs[:1],)) for _ in range(2))
            parts = [torch.func.functional_call(module, double, (part,)) for part in torch.split(inputs, 1024)]
    except RuntimeError as error:
        raise InputError(f"the module doesn't take images of shape {tuple(inputs.shape)}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    passes = len(parts) + 2
    for part in (convolution, linear):
        if calls.count(part) > passes:
            raise InputError(
                f"Eq. 1 is of a module that uses its {type(part).__name__} once; this one does so "
                f"{calls.count(part) // passes} times. Pass one Conv2d -> ReLU -> pooling -> Linear block."
            )
    if not torch.allclose(first, again, equal_nan=True):
        raise InputError(
            "the module's outputs differ from call to call even in evaluation mode, so it has no Eq. 1. Take out what "
            "is random in its forward."
        )
    prediction = torch.cat(parts).reshape(len(inputs), -1)
    if prediction.shape != expected.shape:
        raise InputError(
            f"the module's outputs have shape {tuple(prediction.shape)} but the targets {tuple(expected.shape)}. "
            "Pass one column of targets for each output."
        )
    weights = None if sample_weight is None else check_weights(sample_weight, len(inputs), device=device)
    kind = get_loss(loss, weights)
    kind.check_targets(expected)
    return kind.value(prediction, expected) + float(reg) * _decay_of(convolution, linear, decay)


def _decay_of(convolution: nn.Conv2d, linear: nn.Linear, decay: Any) -> float:
    """Return what reg multiplies."""
    filters, readout = convolution.weight.detach().double(), linear.weight.detach().double()
    squares = filters.square().flatten(1).sum(dim=1)
    if convolution.bias is not None:
        squares = squares + convolution.bias.detach().double().square()
    if decay is None:
        return 0.5 * float(squares.sum() + readout.square().sum())
    kind = Decay.of(decay)
    if readout.shape[1] % len(filters):
        raise InputError(
            f"decay needs the output weights of each filter, and the Linear layer reads {readout.shape[1]} numbers of "
            f"{len(filters)} maps. Pass one Conv2d -> Square -> pooling -> Linear block."
        )
    # Flatten lays maps out one after another, each with its cells.
    sizes = readout.view(len(readout), len(filters), -1).square().sum(dim=(0, 2)).sqrt()
    return kind.value(squares.sqrt(), sizes)
