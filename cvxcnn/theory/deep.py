"""Gram matrices of deep networks: the limit of infinite width, and those of a torch module as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.arrays import Array, as_double, as_given, check_bytes
from ..core.checks import as_int
from ..core.distributed import gather_rows
from ..core.plainly import plainly
from ..data.checks import check_destination
from ..errors import InputError
from ..ordinary.expressivity import softplus
from .angles import pair_angles, shortfall

__all__ = ["ACTIVATIONS", "deep_gram", "layer_grams"]

# Each with its derivative, and how far from the real line its nearest singularity is.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], float]] = {
    "softplus": (lambda z: _tensor(softplus(z)), torch.sigmoid, math.pi),
    "sigmoid": (torch.sigmoid, lambda z: torch.sigmoid(z) * torch.sigmoid(-z), math.pi),
    "tanh": (torch.tanh, lambda z: 1 / torch.cosh(z).square(), math.pi / 2),
}
# Nodes of the quadrature on each axis.
_NODES = 80
_MOST_NODES = 400
# The error of q nodes falls with sqrt(q) h / deviation, h the distance of the singularity; with so many nodes times
# (deviation / h)^2 it was below 1e-12 for each of these activations.
_NODES_PER_SQUARE = 420
# Numbers of the largest temporary.
_ENTRIES = 1 << 23


def _place(device: str | None) -> torch.device | None:
    if device is None:
        return None
    check_destination(torch.float64, device)
    return torch.device(device)


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(values)


@plainly
def deep_gram(
    x: Any, depth: int, activation: str = "softplus", *, device: str | None = None, memory: float | None = None
) -> Array:
    """Return K^(H), the infinitely wide limit of the last hidden layer's Gram matrix of a fully connected network.

    The network is x_h = sqrt(c / m_h) s(W_h x_{h-1}) with standard normal W_h and c = 1 / E s(z)^2. With (u, v) normal,
    of covariance K^(h-1) at the two inputs:

        K^(0) = X X^T,  K^(h) = c E s(u) s(v) for h < H,  K^(H) = c K^(H-1) E s'(u) s'(v)

    Parameters
    ----------
    x : array-like, shape (n, d)
        Inputs; under ``process_group`` those of this process, and the matrix is of those of all processes.
    depth : int
        H >= 1, the hidden layers.
    activation : {"softplus", "sigmoid", "tanh", "relu"}
        s. For "relu", which the theorem of the source doesn't cover, c = 2 and the expectations are closed forms.

    device : str, optional
        Where to compute; where the inputs are by default.
    memory : float, optional
        GiB that may be used.

    Returns
    -------
    ndarray or Tensor, shape (n, n), float64

    Raises
    ------
    InputError
        If there is no such activation, shapes don't fit, inputs are so long that the quadrature isn't exact, or more
        memory is needed than allowed.

    Notes
    -----
    Source: Du, Lee, Li, Wang & Zhai 2018. It is the limit of the term of layer H alone; the tangent kernel is the sum
    over all layers, and larger. Gauss-Hermite quadrature with 80 nodes on each axis, more where inputs are long. Cost:
    6400 n^2 evaluations of s a layer, 32 n^2 bytes and 256 MiB.

    Examples
    --------
    >>> np.round(deep_gram([[1.0, 0.0], [0.0, 1.0]], depth=1, activation="relu"), 12).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    inputs = gather_rows(as_double("x", x, ("n", "d"), _place(device)))
    n = len(inputs)
    check_bytes(f"the Gram matrix of {n} inputs", 32 * n**2 + 32 * _ENTRIES, memory, "Give fewer inputs.")
    layers = as_int("depth", depth)
    if activation == "relu":
        return as_given(_relu_gram(inputs, layers), x)
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        names = ", ".join(f'"{name}"' for name in (*ACTIVATIONS, "relu"))
        raise InputError(f"activation must be one of {names}; got {activation!r}.")
    function, slope, distance = ACTIVATIONS[activation]
    kernel = inputs @ inputs.T
    one = kernel.new_ones(1, 1)
    factor = 1 / float(_quadrature(function, one, _nodes(one, distance)))
    for _ in range(layers - 1):
        kernel = factor * _quadrature(function, kernel, _nodes(kernel, distance))
    return as_given(factor * kernel * _quadrature(slope, kernel, _nodes(kernel, distance)), x)


def _relu_gram(inputs: Tensor, layers: int) -> Tensor:
    """Return the closed form with c = 2, which keeps the lengths; angles are followed, since they keep their digits."""
    lengths = inputs.norm(dim=1)
    theta = pair_angles(inputs, inputs)
    for _ in range(layers - 1):
        # 1 - cos of the next angle is shortfall / pi.
        theta = 2 * torch.asin((shortfall(theta) / (2 * math.pi)).sqrt().clamp_max(1.0))
    return torch.outer(lengths, lengths) * theta.cos() * (math.pi - theta) / math.pi


def _nodes(kernel: Tensor, distance: float) -> int:
    """Return how many nodes make the quadrature exact for the longest of the inputs."""
    longest = float(kernel.diagonal().max()) if len(kernel) else 0.0
    needed = max(_NODES, math.ceil(_NODES_PER_SQUARE * longest / distance**2))
    if needed > _MOST_NODES:
        raise InputError(
            f"the longest input has a squared length of {longest:.3g}, where the activation is too steep for "
            f"quadrature with {_MOST_NODES} nodes. Scale the inputs to length one."
        )
    return needed


def _quadrature(function: Callable[[Tensor], Tensor], kernel: Tensor, nodes: int) -> Tensor:
    """Return E s(u) s(v) for (u, v) normal with the covariance of each pair of rows."""
    points, weights = (torch.from_numpy(part).to(kernel) for part in np.polynomial.hermite_e.hermegauss(nodes))
    weights = weights / math.sqrt(2 * math.pi)
    deviation = kernel.diagonal().clamp_min(0.0).sqrt()
    # s(u) with u = deviation * z1, once for each input; v = share * z1 + rest * z2.
    first = function(deviation[:, None] * points) * weights  # (n, nodes)
    rows = []
    step = max(1, _ENTRIES // (len(kernel) * nodes**2))
    for some in torch.split(torch.arange(len(kernel), device=kernel.device), step):
        scale = torch.where(deviation[some] > 0, deviation[some], 1.0)[:, None]
        share = kernel[some] / scale
        rest = (deviation.square() - share.square()).clamp_min(0.0).sqrt()
        v = share[..., None, None] * points[:, None] + rest[..., None, None] * points
        rows.append(torch.einsum("ap,abp->ab", first[some], function(v) @ weights))
    found = torch.cat(rows)
    return (found + found.T) / 2


@plainly
def layer_grams(
    module: nn.Module, x: Any, *, device: str | None = None, memory: float | None = None
) -> dict[str, Array]:
    """Return the tangent kernel of a torch module, layer by layer: J_h J_h^T, J_h its Jacobian in a layer's weights.

    Parameters
    ----------
    module : nn.Module
        Any module that treats each input by itself; evaluated as by ``module.eval()``, in float64; left unchanged. Its
        layers are the modules that have parameters of their own, those that ask for a gradient.
    x : array-like, shape (n, ...)
        Inputs; under ``process_group`` those of this process.
    device : str, optional
        Where to compute; where the module is by default.
    memory : float, optional
        GiB that may be used.

    Returns
    -------
    dict of str to (ndarray or Tensor, shape (n o, n o), float64)
        By the layers' names, in their order; image-major. Their sum is the tangent kernel of the module. Of the inputs
        of all processes, in each of them.

    Raises
    ------
    InputError
        If there is no module, no layer with parameters, or more memory is needed than allowed.

    Notes
    -----
    Cost: n o backward passes, 16 n o p bytes with p parameters of the largest layer, 8 (n o)^2 bytes a layer.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> for parameter in net.parameters(): _ = nn.init.constant_(parameter, 2.0)
    >>> {name: gram.tolist() for name, gram in layer_grams(net, np.array([[1.0, 0.0], [1.0, 1.0]])).items()}
    {'0': [[4.0, 4.0], [4.0, 8.0]], '1': [[4.0, 8.0], [8.0, 16.0]]}
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"layer_grams takes a torch.nn.Module; got {type(module).__name__}.")
    layers = {
        name: [f"{name}.{own}" if name else own for own, p in part.named_parameters(recurse=False) if p.requires_grad]
        for name, part in module.named_modules()
    }
    layers = {name: own for name, own in layers.items() if own}
    if not layers:
        raise InputError("the module has no parameters that ask for a gradient. Set requires_grad, or give another.")
    sides = tuple(f"side {axis}" for axis in range(1, np.ndim(x) if not isinstance(x, Tensor) else x.ndim))
    place = _place(device)
    weights = {name: value.detach().to(place, torch.float64) for name, value in module.state_dict().items()}
    inputs = as_double("x", x, ("n", *sides), next(iter(weights.values())).device)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()

    def outputs(chosen: dict[str, Tensor], image: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(module, {**weights, **chosen}, (image[None],))
        return found.flatten()

    grams: dict[str, Array] = {}
    try:
        for name, own in layers.items():
            chosen = {key: weights[key] for key in own}
            count = sum(value.numel() for value in chosen.values())
            width = outputs(chosen, inputs[0]).numel()
            check_bytes(
                f"the Jacobian of layer {name}", 16.0 * len(inputs) * width * count + 8 * (len(inputs) * width) ** 2,
                memory, "Give fewer inputs.",
            )  # fmt: skip
            by_weight = [torch.func.jacrev(outputs)(chosen, image) for image in inputs]
            jacobian = torch.stack(
                [torch.cat([part[key].reshape(width, -1) for key in own], dim=1) for part in by_weight]
            )
            jacobian = gather_rows(jacobian.detach()).flatten(0, 1)
            grams[name] = as_given(jacobian @ jacobian.T, x)
    finally:
        for part, training in modes:
            part.training = training
    return grams
