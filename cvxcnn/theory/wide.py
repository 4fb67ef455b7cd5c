"""Wide convolutional layers: the full weight matrix of a convolution, and the premises of the wide-layer theorem."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.arrays import Array, as_double, as_given, check_bytes
from ..core.checks import is_int
from ..core.plainly import plainly
from ..core.text import one_line
from ..data.checks import check_images
from ..errors import InputError
from ..ordinary.expressivity import decided, singular_values

__all__ = ["Premise", "WideLayerReport", "full_weight_adjoint", "full_weight_matrix", "wide_layer_report"]

VERDICTS = ("holds", "fails", "measured")
_ANALYTIC = (nn.Softplus, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU)
_MONOTONE = (nn.Softplus, nn.Sigmoid, nn.Tanh)
_ACTIVATIONS = (*_ANALYTIC, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Hardtanh, nn.ReLU6)
_PASSING = (nn.Flatten, nn.Identity, nn.Dropout)
# Full weight matrices beyond so many entries are not made, nor singular values taken.
_MOST_ENTRIES = 1 << 24
# Images whose patches are compared.
_MOST_IMAGES = 2000


def _check_conv(conv: Any, image_shape: Any) -> tuple[int, int, int]:
    if not isinstance(conv, nn.Conv2d):
        raise InputError(f"conv must be a torch.nn.Conv2d; got {type(conv).__name__}.")
    shape = tuple(image_shape) if isinstance(image_shape, Sequence) else ()
    if len(shape) != 3 or not all(is_int(side, 1) for side in shape) or shape[0] != conv.in_channels:
        raise InputError(f"image_shape must be (C, H, W) with C = {conv.in_channels}; got {image_shape!r}.")
    return int(shape[0]), int(shape[1]), int(shape[2])


def _apply(conv: nn.Conv2d, weight: Tensor, images: Tensor) -> Tensor:
    """Return the convolution of images with another weight and no bias, in its own padding mode."""
    twin = copy.deepcopy(conv)
    twin.bias = None
    found: Tensor = torch.func.functional_call(twin, {"weight": weight}, (images,))
    return found


@plainly
def full_weight_matrix(conv: nn.Conv2d, image_shape: Sequence[int], *, memory: float | None = None) -> Tensor:
    """Return U = M(W), the matrix by which a convolution multiplies whole images.

        conv(images).flatten(1) = images.flatten(1) @ U + biases

    Parameters
    ----------
    conv : nn.Conv2d
        Of any stride, padding, dilation and groups.
    image_shape : (int, int, int)
        (C, H, W).
    memory : float, optional
        GiB that may be used.

    Returns
    -------
    Tensor, shape (C H W, m H' W'), float64
        Rows and columns in torch's order, channel-major: the maps of a filter are together. (In the source position is
        major, h = (p - 1) T + t for patch p and filter t.)

    Raises
    ------
    InputError
        If there is no Conv2d, the images are too small for it, or more memory is needed than allowed.

    Notes
    -----
    Source: Nguyen & Hein 2018, Section 2. M is linear in the filters; ``full_weight_adjoint`` is its adjoint.

    Examples
    --------
    >>> conv = nn.Conv2d(1, 1, (1, 2), bias=False)
    >>> _ = nn.init.constant_(conv.weight, 2.0)
    >>> full_weight_matrix(conv, (1, 1, 3)).tolist()
    [[2.0, 0.0], [2.0, 2.0], [0.0, 2.0]]
    """
    shape = _check_conv(conv, image_shape)
    entries = math.prod(shape)
    weight = conv.weight.detach().double()
    try:
        outputs = _apply(conv, weight, weight.new_zeros(1, *shape)).numel()
    except RuntimeError as error:
        raise InputError(f"conv doesn't take images of shape {shape}: {one_line(error)}.") from error
    check_bytes("the full weight matrix", 8.0 * entries * (outputs + entries), memory, "Give smaller images.")
    units = torch.eye(entries, dtype=torch.float64, device=weight.device).view(entries, *shape)
    return _apply(conv, weight, units).flatten(1)


@plainly
def full_weight_adjoint(matrix: Any, conv: nn.Conv2d, image_shape: Sequence[int]) -> Array:
    """Return M*(G), the adjoint of ``full_weight_matrix`` as a function of the filters: <M(W), G> = <W, M*(G)>.

    Parameters
    ----------
    matrix : array-like, shape (C H W, m H' W')
        G.
    conv : nn.Conv2d
        Its geometry alone is used.
    image_shape : (int, int, int)
        (C, H, W).

    Returns
    -------
    ndarray or Tensor, float64
        Of the shape of ``conv.weight``.

    Raises
    ------
    InputError
        If shapes don't fit.

    Examples
    --------
    >>> import numpy as np
    >>> full_weight_adjoint(np.ones((3, 2)), nn.Conv2d(1, 1, (1, 2)), (1, 1, 3)).ravel().tolist()
    [2.0, 2.0]
    """
    shape = _check_conv(conv, image_shape)
    weight = conv.weight.detach().double().requires_grad_()
    units = torch.eye(math.prod(shape), dtype=torch.float64, device=weight.device).view(-1, *shape)
    with torch.enable_grad():
        full = _apply(conv, weight, units).flatten(1)
        given = as_double("matrix", matrix, tuple(full.shape), weight.device)
        (found,) = torch.autograd.grad(full, weight, given)
    return as_given(found, matrix)


@dataclass(frozen=True)
class Premise:
    """A premise of a theorem, held against a network.

    Attributes
    ----------
    name : str
    verdict : {"holds", "fails", "measured"}
    words : str
        What was found, and why it matters.
    value : float or None
        What was measured.
    """

    name: str
    verdict: str
    words: str
    value: float | None = None


@dataclass(frozen=True)
class WideLayerReport:
    """The premises of the wide-layer theorem at a network, and the factors of its lower bound on the gradient.

    Attributes
    ----------
    layers : tuple of str
        Names of the layers that have weights.
    widths : tuple of int
        Numbers that each gives for an image, after what follows it.
    wide_layer : str or None
        The first layer that gives at least n numbers an image, for n images.
    premises : tuple of Premise
    factors : dict of str to float
        Of |grad| >= product * |F_L - Y|: smallest singular values of the wide layer's features and of the weights above
        it, and smallest slopes of the activations above it; NaN where one is not computed.
    guarantee : bool
        Whether all premises hold, so that a zero gradient implies zero loss.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    wide_layer: str | None
    premises: tuple[Premise, ...]
    factors: dict[str, float]
    guarantee: bool

    def premise(self, name: str) -> Premise:
        """Return the premise of a name."""
        return next(premise for premise in self.premises if premise.name == name)


@dataclass
class _Layer:
    """A layer with weights, its input, and what it gives after the modules that follow it."""

    name: str
    module: nn.Conv2d | nn.Linear
    inputs: Tensor
    responses: Tensor
    outputs: Tensor
    following: list[nn.Module]

    @property
    def activation(self) -> nn.Module | None:
        return next((part for part in self.following if isinstance(part, _ACTIVATIONS)), None)


def _trace(module: nn.Module, images: Tensor) -> list[_Layer]:
    """Run a sequence of modules and return its layers."""
    parts = list(module.named_children()) if isinstance(module, nn.Sequential) else []
    layers: list[_Layer] = []
    values = images
    for name, part in parts:
        before, values = values, part.double()(values)
        if isinstance(part, (nn.Conv2d, nn.Linear)) and part.weight.requires_grad:
            layers.append(_Layer(name, part, before, values, values, []))
        elif layers:
            layers[-1].outputs = values
            layers[-1].following.append(part)
    if not layers:
        raise InputError(
            "module must be a flat nn.Sequential with a Conv2d or Linear whose weights ask for a gradient; got "
            f"{type(module).__name__}. Give block.to_torch() or stack.to_torch(alone=True)."
        )
    return layers


@plainly
def wide_layer_report(module: nn.Module, images: Any, *, of_images: Sequence[Premise] = ()) -> WideLayerReport:
    """Hold the premises of the wide-layer theorem against a network and its training images.

    The theorem: if a hidden layer k is as wide as there are images, n_k >= n, its features have rank n, the layers
    above are pyramidal (n_{k+1} >= ... >= n_L) with weights of full rank and a strictly monotone, analytic activation,
    then every critical point of the unregularised squared loss has zero loss. Quantitatively

        |dPhi/dU_{k+1}| >= s_min(F_k) prod_{l > k+1} s_min(U_l) prod_{l > k} min |s'| |F_L - Y|

    and the factor that is tiny says where the signal is lost.

    Parameters
    ----------
    module : nn.Sequential
        Flat, of Conv2d, Linear, activations, pooling and Flatten; left unchanged. Layers whose weights ask for no
        gradient (``standardize``) belong to the input.
    images : array-like, shape (n, C, H, W) or (n, H, W)
    of_images : sequence of Premise, optional
        The first two premises, of images and patches, if another network with the first layer's geometry has them.

    Returns
    -------
    WideLayerReport
        A premise holds or fails for certain; what rests on rounding is "measured".

    Raises
    ------
    InputError
        If the module is no such sequence or doesn't take the images.

    Notes
    -----
    Source: Nguyen & Hein 2018, Theorems 2.3 and 2.4. Their convolutions have a bias of its own for every neuron; with
    one bias a filter, as torch's, ranks may be smaller, down to 1. The theorem says nothing of a regularised loss.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1))
    >>> report = wide_layer_report(net, torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(0)))
    >>> report.premise("width").verdict, report.premise("activation").verdict, report.guarantee
    ('holds', 'fails', False)
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"wide_layer_report takes a torch.nn.Module; got {type(module).__name__}.")
    twin = copy.deepcopy(module).eval()
    device = next((parameter.device for parameter in twin.parameters()), torch.device("cpu"))
    inputs = check_images(images, dtype=torch.float64, device=device)
    try:
        with torch.no_grad():
            layers = _trace(twin, inputs)
    except RuntimeError as error:
        raise InputError(
            f"the module doesn't take images of shape {tuple(inputs.shape)}: {one_line(error)}."
        ) from error
    n = len(inputs)
    widths = tuple(layer.outputs[0].numel() for layer in layers)
    hidden = layers[:-1]
    wide = next((number for number, layer in enumerate(hidden) if widths[number] >= n), None)
    rank = _rank(hidden, wide, widths)
    premises = [
        *(of_images or (_distinct_images(inputs), _distinct_patches(layers[0]))),
        _biases(hidden),
        _width(hidden, widths, n, wide),
        _pyramid(widths, wide),
        _activation(hidden),
        _pooling(hidden),
        _above(layers, wide),
    ]
    return WideLayerReport(
        tuple(layer.name for layer in layers),
        widths,
        None if wide is None else layers[wide].name,
        (*premises, rank),
        {} if wide is None else _factors(layers, wide),
        all(premise.verdict == "holds" for premise in premises) and rank.value == n,
    )


def _distinct_images(images: Tensor) -> Premise:
    count = len(torch.unique(images.flatten(1), dim=0))
    if count == len(images):
        return Premise("images", "holds", "all images are distinct")
    return Premise("images", "fails", f"{len(images) - count} of {len(images)} images are copies of another one", count)


def _distinct_patches(layer: _Layer) -> Premise:
    """Return whether different images share no patch: the share of pairs that do is the value."""
    conv, n = layer.module, min(len(layer.inputs), _MOST_IMAGES)
    if not isinstance(conv, nn.Conv2d) or isinstance(conv.padding, str) or n < 2:
        return Premise("patches", "holds", "the first layer sees whole images")
    size = (conv.kernel_size[0], conv.kernel_size[1])
    padding, stride = (conv.padding[0], conv.padding[1]), (conv.stride[0], conv.stride[1])
    patches = F.unfold(layer.inputs[:n], size, (conv.dilation[0], conv.dilation[1]), padding, stride).transpose(1, 2)
    _, kinds = torch.unique(patches.flatten(0, 1), dim=0, return_inverse=True)
    held = torch.zeros(n, int(kinds.max()) + 1, device=kinds.device).scatter_(1, kinds.view(n, -1), 1.0)
    held = held[:, held.sum(dim=0) > 1]
    pairs = held @ held.T > 0
    share = float(pairs.sum() - pairs.diagonal().sum()) / (n * (n - 1))
    of = "" if n == len(layer.inputs) else f" among the first {n} images"
    if not share:
        return Premise("patches", "measured" if of else "holds", f"different images share no patch{of}", 0.0)
    return Premise("patches", "fails", f"{100 * share:.1f} % of the pairs of images share a patch{of}", share)


def _biases(hidden: Sequence[_Layer]) -> Premise:
    shared = [
        layer.name for layer in hidden if isinstance(layer.module, nn.Conv2d) and layer.responses[0, 0].numel() > 1
    ]
    without = [layer.name for layer in hidden if layer.module.bias is None]
    if without:
        return Premise("biases", "fails", f"no biases in {', '.join(without)}; the theorem has one for every neuron")
    if shared:
        words = f"one bias a filter in {', '.join(shared)}; the theorem has one for every neuron, at every place"
        return Premise("biases", "fails", words)
    return Premise("biases", "holds", "every neuron has a bias of its own")


def _width(hidden: Sequence[_Layer], widths: Sequence[int], n: int, wide: int | None) -> Premise:
    if wide is None:
        most = max(widths[: len(hidden)], default=0)
        return Premise("width", "fails", f"the widest hidden layer gives {most} numbers for {n} images", most)
    return Premise("width", "holds", f"{hidden[wide].name} gives {widths[wide]} numbers for {n} images", widths[wide])


def _pyramid(widths: Sequence[int], wide: int | None) -> Premise:
    above = widths[(0 if wide is None else wide) + 1 :]
    if all(one >= other for one, other in pairwise(above)):
        return Premise("pyramid", "holds", f"widths above: {', '.join(map(str, above))}")
    return Premise("pyramid", "fails", f"widths above are not falling: {', '.join(map(str, above))}")


def _activation(hidden: Sequence[_Layer]) -> Premise:
    kinds = dict.fromkeys(type(layer.activation).__name__ if layer.activation else "none" for layer in hidden)
    names = ", ".join(kinds) or "none"
    if hidden and all(isinstance(layer.activation, _MONOTONE) for layer in hidden):
        return Premise("activation", "holds", f"{names}: analytic and strictly monotone")
    return Premise("activation", "fails", f"{names}: not analytic and strictly monotone, so the theorem says nothing")


def _pooling(hidden: Sequence[_Layer]) -> Premise:
    largest = [layer.name for layer in hidden if any("MaxPool" in type(part).__name__ for part in layer.following)]
    if largest:
        return Premise("pooling", "fails", f"max pooling after {', '.join(largest)}, which is not analytic")
    known = (*_ACTIVATIONS, *_PASSING)
    others = [type(part).__name__ for layer in hidden for part in layer.following if not isinstance(part, known)]
    return Premise("pooling", "holds", f"linear: {', '.join(others)}" if others else "none")


def _above(layers: Sequence[_Layer], wide: int | None) -> Premise:
    if wide is None:
        return Premise("layer above", "fails", "there is no wide layer")
    above = layers[wide + 1]
    if isinstance(above.module, nn.Linear):
        return Premise("layer above", "holds", f"{above.name} is fully connected")
    return Premise("layer above", "fails", f"{above.name} is a convolution; Theorem 2.4 needs a fully connected layer")


def _rank(hidden: Sequence[_Layer], wide: int | None, widths: Sequence[int]) -> Premise:
    if not hidden:
        return Premise("rank", "fails", "there is no hidden layer", 0.0)
    chosen = max(range(len(hidden)), key=lambda number: widths[number]) if wide is None else wide
    columns = hidden[chosen].outputs.flatten(1)
    values = singular_values(columns)
    found = decided(columns, values, bias=False)
    # As torch.linalg.matrix_rank does, which would take them once more.
    count = float((values > max(columns.shape) * torch.finfo(columns.dtype).eps * values.max()).sum())
    return Premise("rank", "measured", f"features of {hidden[chosen].name}: {found.decision}, {found.reason}", count)


def _factors(layers: Sequence[_Layer], wide: int) -> dict[str, float]:
    """Return the factors of the lower bound on the gradient of the layer above the wide one."""
    values = singular_values(layers[wide].outputs.flatten(1))
    factors = {f"s_min of the features of {layers[wide].name}": float(values[len(layers[wide].outputs) - 1])}
    for layer in layers[wide + 2 :]:
        factors[f"s_min of the weights of {layer.name}"] = _smallest_value(layer)
    for layer in layers[wide + 1 : -1]:
        factors[f"least slope after {layer.name}"] = _least_slope(layer)
    factors["product"] = math.prod(factors.values())
    return factors


def _smallest_value(layer: _Layer) -> float:
    if isinstance(layer.module, nn.Linear):
        return float(torch.linalg.svdvals(layer.module.weight.detach().double()).min())
    shape = (layer.inputs.shape[1], layer.inputs.shape[2], layer.inputs.shape[3])
    if math.prod(shape) * layer.responses[0].numel() > _MOST_ENTRIES:
        return math.nan
    return float(torch.linalg.svdvals(full_weight_matrix(layer.module, shape)).min())


def _least_slope(layer: _Layer) -> float:
    if layer.activation is None:
        return 1.0
    with torch.enable_grad():
        responses = layer.responses.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(layer.activation(responses).sum(), responses)
    return float(slope.abs().min())
