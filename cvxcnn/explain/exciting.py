"""The patches of images that excite the neurons of a layer most: what deep filters look for, in pixels.

A filter of a deeper layer has a kernel for every map of the layer before, and no picture of its own. The patches that
it answers most strongly show what it has learnt (Zeiler & Fergus 2014, arXiv:1311.2901, Section 4). captum, which the
other explanations rest on, has no such function.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..activations.gated_relu import GatedConv
from ..core.checks import as_int
from ..core.plainly import plainly
from ..data.checks import check_images
from ..errors import InputError

__all__ = ["Exciting", "exciting_patches", "receptive_field"]

# Images that go through a network together.
BATCH = 64
# Modules of to_torch after the maps of the last layer: pooling, Flatten, Linear.
_HEAD = 3


@dataclass(frozen=True)
class Exciting:
    """The patches that excite m neurons most, those neurons first that contribute most.

    Attributes
    ----------
    neurons : array of int, shape (m,)
        Which maps of the layer.
    shares : array, shape (m,)
        Of all contributions of the layer, norm of the filter times norm of its output weights; in [0, 1].
    outputs, signs : array of int, shape (m,)
        The output that each moves most, averaged over the pooling cells, and 1 if it raises it, -1 if it lowers it.
    images : array of int, shape (m, count)
        From which images the patches are, the most exciting first, each from another one.
    responses : array, shape (m, count)
        What the neuron answers; where it is not positive nothing excites it.
    patches : array, shape (m, count, C, h, w)
        What it sees of the image, as large as its receptive field; NaN beyond the edge of the image, and where nothing
        excites it. Where all of a map sees a whole side of the image, that side and no more.
    """

    neurons: NDArray[np.int64]
    shares: NDArray[np.float64]
    outputs: NDArray[np.int64]
    signs: NDArray[np.int64]
    images: NDArray[np.int64]
    responses: NDArray[np.float64]
    patches: NDArray[np.float64]


def receptive_field(modules: Sequence[nn.Module]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return (size, step, first), upright and across: the entry at p sees size pixels from first + p step on.

    Parameters
    ----------
    modules : sequence of nn.Module
        Convolutions and average or max pooling, one after the other; others take each entry by itself.

    Examples
    --------
    >>> receptive_field([nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, padding=1)])
    ((8, 2, -3), (8, 2, -3))
    """
    found = []
    for axis in (0, 1):
        size, step, first = 1, 1, 0
        for kernel, stride, padding in _windows(modules, axis):
            size, first, step = size + (kernel - 1) * step, first - padding * step, step * stride
        found.append((size, step, first))
    return found[0], found[1]


def _windows(modules: Sequence[nn.Module], axis: int) -> Iterator[tuple[int, int, int]]:
    """Yield kernel, stride and padding of the modules that see more than one entry."""

    def side(value: Any) -> int:
        return int(value[axis] if isinstance(value, tuple) else value)

    for module in modules:
        part = module.filters if isinstance(module, GatedConv) else module
        if isinstance(part, nn.Conv2d):
            yield side(part.dilation) * (side(part.kernel_size) - 1) + 1, side(part.stride), side(part.padding)
        elif isinstance(part, (nn.AvgPool2d, nn.MaxPool2d)):
            yield side(part.kernel_size), side(part.stride), side(part.padding)


@plainly
def exciting_patches(network: nn.Sequential, images: Any, neurons: int = 8, count: int = 6) -> Exciting:
    """Return the patches of images that excite the strongest neurons of a network's last layer most.

    Parameters
    ----------
    network : nn.Sequential
        As ``to_torch(layer, alone=True)`` gives: it ends in pooling, Flatten and Linear.
    images : array-like, shape (n, C, h, w) or (n, h, w)
    neurons : int
        How many, those first whose filter and output weights have the largest product of norms.
    count : int
        Patches of each, from as many images.

    Returns
    -------
    Exciting

    Raises
    ------
    InputError
        If the network doesn't end so, or doesn't take the images.

    Examples
    --------
    >>> conv, linear = nn.Conv2d(1, 1, 1, bias=False), nn.Linear(1, 1)
    >>> _ = [nn.init.constant_(part.weight, 1.0) for part in (conv, linear)]
    >>> network = nn.Sequential(conv, nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), linear)
    >>> exciting_patches(network, [[[1.0, 0.0], [-1.0, 3.0]], [[0.0, 0.0], [4.0, 0.0]]]).patches.ravel()
    array([4., 3.])
    """
    neurons, count = as_int("neurons", neurons), as_int("count", count)
    body, head = list(network)[:-_HEAD], network[-1]
    if not body or not isinstance(head, nn.Linear):
        raise InputError(
            "exciting_patches takes a network that ends in pooling, Flatten and Linear, as to_torch(layer, alone=True) "
            f"gives; got {type(network).__name__} of {len(network)} modules."
        )
    given = check_images(images, dtype=head.weight.dtype, device=head.weight.device)
    with torch.no_grad():
        strengths, effects = _strengths(body, head, given[:1])
        chosen = strengths.argsort(descending=True, stable=True)[:neurons]
        chosen = chosen[strengths[chosen] > 0]
        best = [_best(nn.Sequential(*body)(part)[:, chosen]) for part in torch.split(given, BATCH)]
        values, places = (torch.cat(parts) for parts in zip(*best, strict=True))
        responses, rows = values.T.topk(min(count, len(given)), dim=1)
        map_shape = nn.Sequential(*body)(given[:1]).shape[2:]
        patches = _cut(given, rows, places.T.gather(1, rows), map_shape, receptive_field(body))
        patches[responses <= 0] = torch.nan
    outputs = effects[chosen].abs().argmax(dim=1)
    signs = effects[chosen].gather(1, outputs[:, None]).sign()[:, 0]
    shares = strengths[chosen] / strengths.sum().clamp_min(torch.finfo(strengths.dtype).tiny)
    found = (chosen, shares.double(), outputs, signs.long(), rows, responses.double(), patches.double())
    return Exciting(*(part.cpu().numpy() for part in found))


def _strengths(body: Sequence[nn.Module], head: nn.Linear, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return |u_i||w_i| of each map (m,), and how it moves each output, averaged over the cells (m, outputs)."""
    count = int(nn.Sequential(*body)(image).shape[1])
    readout = head.weight.view(len(head.weight), count, -1)
    convolutions = [part.filters if isinstance(part, GatedConv) else part for part in body]
    last = [part for part in convolutions if isinstance(part, nn.Conv2d)][-1]
    squares = last.weight.flatten(1).square().sum(dim=1)
    if last.bias is not None:
        squares = squares + last.bias.square()
    return squares.sqrt() * readout.square().sum(dim=(0, 2)).sqrt(), readout.mean(dim=2).T


def _best(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest response of each neuron to each image, (n, m), and its place."""
    found = maps.flatten(2).max(dim=2)
    return found.values, found.indices


def _cut(
    images: Tensor,
    rows: Tensor,
    places: Tensor,
    map_shape: Sequence[int],
    field: tuple[tuple[int, int, int], tuple[int, int, int]],
) -> Tensor:
    """Return what is seen at places of images, (m, count, C, h, w), NaN beyond the edges."""
    across = map_shape[1]
    (height, down, top), (width, right, left) = (
        (side, 0, 0) if first + size >= side and first + step * (count - 1) <= 0 else (size, step, first)
        for side, count, (size, step, first) in zip(images.shape[2:], map_shape, field, strict=True)
    )
    padded = F.pad(images[rows.flatten()], (width, width, height, height), value=torch.nan)
    cut = [
        image[:, y : y + height, x : x + width]
        for image, y, x in zip(
            padded,
            (height + top + down * (places.flatten() // across)).tolist(),
            (width + left + right * (places.flatten() % across)).tolist(),
            strict=True,
        )
    ]
    shape = (*rows.shape, images.shape[1], height, width)
    return torch.stack(cut).view(shape) if cut else images.new_zeros(shape)
