"""Which patches a gate is active on: the one place where a pattern is decided.

Two computations of x . g round differently, and a filter that was found by optimisation lies on hyperplanes of patches:
there rounding would give the program one pattern, its cones another and the exported network a third.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["active", "on_hyperplane", "softly_active", "tie_width", "winning"]

# x . g counts as zero if it is below so many roundings of float64, each of |x| |g|, for every entry and eight more.
_TIE = 4.0
_MORE_ENTRIES = 8


def tie_width(dim: int) -> float:
    """Return how far below zero x . g / (|x| |g|) of d entries may be and still count as zero."""
    return _TIE * (dim + _MORE_ENTRIES) * torch.finfo(torch.float64).eps


def _total(terms: Tensor) -> Tensor:
    """Return the sums of (..., d) terms, always added up in the same order: halves upon halves."""
    while terms.shape[-1] > 1:
        half = (terms.shape[-1] + 1) // 2
        terms = F.pad(terms[..., half:], (0, 2 * half - terms.shape[-1])) + terms[..., :half]
    return terms[..., 0]


def _exact(patches: Tensor, gates: Tensor) -> Tensor:
    """Return the patterns of pairs (..., d), from sums in float64 that have the same bits wherever the pair is met."""
    patches, gates = patches.double(), gates.double()
    lengths = _total(patches * patches).sqrt() * _total(gates * gates).sqrt()
    return _total(patches * gates) >= -tie_width(gates.shape[1]) * lengths


def active(patches: Tensor, gates: Tensor) -> Tensor:
    """Return the patterns D(g) = 1[x . g >= 0] of patches, zero up to rounding counting as zero.

    A patch is active if x . g >= -4 (d + 8) eps |x| |g| in float64, whatever the dtype of x and g: where their product
    in their own dtype leaves a doubt it is added up again, always in the same order, so that the same patch and gate
    have the same pattern in every chunk, program, cone and module.

    Parameters
    ----------
    patches : Tensor, shape (..., d)
    gates : Tensor, shape (P, d)
        In the dtype and on the device of the patches.

    Returns
    -------
    Tensor of bool, shape (..., P)

    Examples
    --------
    >>> active(torch.tensor([[3.0, 1.0], [-1.0, 3.0], [0.1, -0.3]]), torch.tensor([[1.0, 3.0]])).flatten().tolist()
    [True, True, False]
    >>> x = torch.tensor([[0.3, -0.1]], dtype=torch.float64)
    >>> g = torch.tensor([[0.1, 0.3 + 1e-17]], dtype=torch.float64)
    >>> active(x, g).item(), active(x, -g).item()  # on the hyperplane, from either side
    (True, True)
    """
    with torch.no_grad():
        if torch.compiler.is_compiling():  # as in torch.export: which sums leave a doubt is not known there
            return _exact(patches.unsqueeze(-2), gates)
        responses = patches @ gates.T
        dim = gates.shape[1]
        width = dim * torch.finfo(patches.dtype).eps + 2 * tie_width(dim)
        longest = torch.linalg.vector_norm(gates, dim=1).amax() if len(gates) else 0.0
        # Zero patches are active for every gate, and leave no doubt.
        doubt = torch.linalg.vector_norm(patches, dim=-1, keepdim=True) * (width * longest)
        pattern: Tensor = responses >= doubt
        lowest = responses >= -doubt
        if not torch.equal(pattern, lowest):
            *places, gate = (pattern != lowest).nonzero(as_tuple=True)
            pattern[(*places, gate)] = _exact(patches[tuple(places)], gates[gate])
    return pattern


def on_hyperplane(patches: Tensor, gates: Tensor) -> Tensor:
    """Return which patches lie on a gate's hyperplane, up to rounding: active for the gate and for its opposite.

    Shapes are those of ``active``; zero patches lie on every hyperplane.
    """
    return active(patches, gates) & active(patches, -gates)


def winning(patches: Tensor, gates: Tensor) -> Tensor:
    """Return the patterns of max pooling: which patch of a cell wins, if one is active, for each image and gate.

    The winner is the first patch whose x . g is the largest, up to the rounding of ``active``, and it is on if that
    calls it active. As there, doubts are settled by sums in float64 that have the same bits wherever they are met.

    Parameters
    ----------
    patches : Tensor, shape (b, k, d)
        Of one cell.
    gates : Tensor, shape (P, d)
        In the dtype and on the device of the patches.

    Returns
    -------
    Tensor of bool, shape (b, k, P)
        With one True at most along the patches.

    Examples
    --------
    >>> cell = torch.tensor([[[3.0, 1.0], [1.0, 3.0], [1.0, 3.0]]])
    >>> winning(cell, torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))[0].T.int().tolist()
    [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    """
    with torch.no_grad():
        responses = patches @ gates.T
        dim = gates.shape[1]
        width = dim * torch.finfo(patches.dtype).eps + 2 * tie_width(dim)
        longest = torch.linalg.vector_norm(gates, dim=1).amax() if len(gates) else 0.0
        doubt = torch.linalg.vector_norm(patches, dim=-1, keepdim=True) * (width * longest)
        possible: Tensor = responses + doubt >= (responses - doubt).amax(dim=1, keepdim=True)
        several = possible.sum(dim=1, keepdim=True) > 1
        images, places, which = (possible & several).nonzero(as_tuple=True)
        if len(images):
            points, vectors = patches[images, places].double(), gates[which].double()
            lengths = _total(points * points).sqrt() * _total(vectors * vectors).sqrt()
            values = responses.new_full(responses.shape, -torch.inf, dtype=torch.float64)
            margins = torch.zeros_like(values)
            values[images, places, which] = _total(points * vectors)
            margins[images, places, which] = tie_width(dim) * lengths
            highest = (values - margins).amax(dim=1, keepdim=True)
            possible &= ~several | (values + margins >= highest)
        first = possible & (possible.cumsum(dim=1) == 1)
        return first & active(patches, gates)


def softly_active(patches: Tensor, gates: Tensor, sharpness: Tensor) -> Tensor:
    """Return patterns with soft edges, 1 / (1 + exp(-sharpness x . g / |x|)) in [0, 1], for unit gates.

    Parameters
    ----------
    patches : Tensor, shape (..., d)
    gates : Tensor, shape (P, d)
        Unit rows.
    sharpness : Tensor, shape (P,)

    Returns
    -------
    Tensor, shape (..., P)
    """
    return torch.sigmoid(F.normalize(patches, dim=-1) @ (gates * sharpness[:, None]).T)
