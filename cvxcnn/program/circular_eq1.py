"""Eq. 1 of a circular torch module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..core.checks import is_number
from ..core.plainly import plainly
from ..data.checks import check_images, check_targets, check_weights
from ..errors import InputError
from ..losses import get_loss
from .eq1 import nonconvex_objective

__all__ = ["circular_objective"]

# Filters of unit length may be longer by rounding.
_LONGEST = 1 + 1e-9


@plainly
def circular_objective(
    module: nn.Module, images: Any, targets: Any, reg: float, loss: str = "squared", *, sample_weight: Any = None
) -> float:
    """Return Eq. 1 of a circular torch module, in float64.

        loss(f, targets) + reg/2 sum_i (||u_i||^2 + ||w_i||^2)     of Conv2d, Flatten, Linear
        loss(f, targets) + reg/2 sum_i (||w_i||^2 + s_i^2)         of Conv2d, Conv2d in groups, ReLU, Flatten, Linear

    with ||u_i|| <= 1 in the second. A bias of the Linear layer is free.

    Parameters
    ----------
    module : nn.Module
        As ``CircularCNN.to_torch`` returns it, with whatever weights.
    images : array-like, shape (n, C, H, W) or (n, H, W)
    targets : array-like, shape (n,) or (n, outputs)
    reg : float
        lam >= 0.
    loss : {"squared", "logistic", "softmax"}
    sample_weight : array-like, shape (n,), optional
        s >= 0: the loss is sum_j s_j l(f_j, y_j).

    Raises
    ------
    InputError
        If the module is neither, its filters are longer than one, or images and targets don't fit it.

    Examples
    --------
    >>> conv = nn.Conv2d(1, 1, (1, 2), padding="same", padding_mode="circular", bias=False)
    >>> places, linear = nn.Conv2d(1, 1, (1, 2), bias=False), nn.Linear(1, 1, bias=False)
    >>> net = nn.Sequential(conv, places, nn.ReLU(), nn.Flatten(), linear)
    >>> for parameter in net.parameters(): _ = nn.init.constant_(parameter, 0.5)
    >>> circular_objective(net, [[[1.0, 3.0]]], [3.0], reg=2.0)  # f = 0.5 (2 + 2) / 2 = 1, and 1/4 + 1/4 + 1/4
    2.75
    """
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    if len(convolutions) == 1:
        return nonconvex_objective(module, images, targets, reg, loss, sample_weight=sample_weight)
    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if len(convolutions) != 2 or len(linear) != 1:
        raise InputError(
            "Eq. 1 of circular networks is defined for one Conv2d and one Linear, or two and one; got "
            f"{len(convolutions)} and {len(linear)}. Pass what CircularCNN.to_torch returns."
        )
    if not is_number(reg) or reg < 0:
        raise InputError(f"reg must be a number >= 0; got {reg!r}.")
    longest = float(convolutions[0].weight.detach().double().flatten(1).norm(dim=1).max())
    if longest > _LONGEST:
        raise InputError(
            f"filters of three layers aren't decayed, and must be no longer than one; one has length {longest:g}. "
            "Divide it by that, and multiply the weights of its places."
        )
    inputs = check_images(images)
    expected = check_targets(targets, len(inputs))
    double = {name: value.detach().double().cpu() for name, value in module.state_dict().items()}
    try:
        with torch.no_grad():
            prediction = torch.func.functional_call(module, double, (inputs,)).reshape(len(inputs), -1)
    except RuntimeError as error:
        raise InputError(f"the module doesn't take images of shape {tuple(inputs.shape)}: {error}") from error
    if prediction.shape != expected.shape:
        raise InputError(
            f"the module's outputs have shape {tuple(prediction.shape)} but the targets {tuple(expected.shape)}. "
            "Pass one column of targets for each output."
        )
    kind = get_loss(loss, None if sample_weight is None else check_weights(sample_weight, len(inputs)))
    kind.check_targets(expected)
    squares = sum(float(part.weight.detach().double().square().sum()) for part in (convolutions[1], linear[0]))
    return kind.value(prediction, expected) + 0.5 * float(reg) * squares
