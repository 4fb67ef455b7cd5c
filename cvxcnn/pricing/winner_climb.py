"""Local maxima of the pricing problem of ReLU filters with max pooling, to the last digit.

A cell with the patches x_k responds with m(u) = max(0, max_k x_k . u), a convex function, and counts c = W . C along
W = A(u) / ||A(u)||. As for sums (``climb``), cells with c > 0 are replaced by their tangent at u, c x_w . u of the
winner w, and what is left is concave, with its maximum over the unit ball along the shortest of the vectors

    sum_{c > 0} c x_w  -  sum_{c < 0} |c| z,   z in the convex hull of 0 and the patches of each cell,

a polytope. Wolfe's method finds it exactly: the vertex that lies lowest along a vector is that of the winners.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..patches.patches import Patches

__all__ = ["WinnerClimb", "shortest"]

Floats = NDArray[np.float64]

# Vertices that are tried for one shortest vector, and weights below which one is given up.
_VERTICES = 400
_NO_WEIGHT = 1e-13
# A vertex has to lie lower by so many roundings, of the longest vertex times the vector.
_ROUNDINGS = 16 * float(np.finfo(np.float64).eps)


def shortest(lowest: Callable[[Floats], Floats], start: Floats) -> Floats:
    """Return the shortest vector of a polytope.

    Parameters
    ----------
    lowest : callable
        Of a vector x (d,), the vertex v with the least x . v.
    start : ndarray, shape (d,)
        A vertex.

    Notes
    -----
    Source: Wolfe 1976, Finding the nearest point in a polytope.

    Examples
    --------
    >>> corners = np.array([[2.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    >>> shortest(lambda x: corners[np.argmin(corners @ x)], corners[2]).round(12).tolist()
    [1.0, 1.0]
    """
    vertices, weights, point = start[None], np.ones(1), start
    for _ in range(_VERTICES):
        vertex = lowest(point)
        longest = max(float(np.linalg.norm(vertices, axis=1).max()), float(np.linalg.norm(vertex)))
        if point @ (point - vertex) <= _ROUNDINGS * longest * float(np.linalg.norm(point)):
            break
        if (vertices == vertex).all(axis=1).any():  # rounding decides
            break
        vertices, weights = np.vstack([vertices, vertex]), np.append(weights, 0.0)
        while True:
            affine = _affine(vertices)
            if (affine > _NO_WEIGHT).all():
                weights = affine
                break
            falling = affine <= _NO_WEIGHT
            steps = weights[falling] / np.maximum(weights[falling] - affine[falling], 1e-300)
            weights = weights + min(1.0, float(steps.min())) * (affine - weights)
            kept = weights > _NO_WEIGHT
            if kept.all():
                kept[np.flatnonzero(falling)[steps.argmin()]] = False
            vertices, weights = vertices[kept], weights[kept] / weights[kept].sum()
        moved = weights @ vertices
        if moved @ moved >= point @ point:
            break
        point = moved
    return point


def _affine(vertices: Floats) -> Floats:
    """Return the weights, of sum one, of the shortest vector in the affine hull of some vertices."""
    # Relative to the first, so that what they have in common doesn't cost digits.
    edges = vertices[1:] - vertices[0]
    others = np.linalg.lstsq(edges.T, -vertices[0], rcond=None)[0]
    return np.concatenate([[1.0 - others.sum()], others])


class WinnerClimb:
    """Some directions at once, each with the (cell, output) that it keeps to if there are pairs.

    Parameters
    ----------
    patches : Patches
        Of max pooling.
    dual : Tensor, shape (n, outputs)
        nu.
    pairs : Tensor, shape (m, cells * outputs), or None
    """

    def __init__(self, patches: Patches, dual: Tensor, pairs: Tensor | None) -> None:
        exact = patches.astype(torch.float64)
        self.points, self.pooler = exact.unfold(), exact.pooler
        self.dual, self.pairs = dual.double(), pairs
        # Cells of fewer places than others repeat their first one.
        members = [places.cpu().numpy() for places in self.pooler.members()]
        width = max(map(len, members))
        places = np.stack([np.append(each, np.full(width - len(each), each[0])) for each in members])
        self.cells: Floats = patches.scale * self.points.cpu().numpy()[:, places]  # (n, cells, width, d)

    def value(self, directions: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ||A(u)|| (m,), W (m, cells, outputs) and pooled responses (n, cells, m) of directions (m, d)."""
        pooled = self.pooler.pool((self.points @ directions.T).relu_())[0]
        sums = torch.einsum("ncm,no->mco", pooled, self.dual)
        if self.pairs is not None:
            sums = sums * self.pairs[which].view_as(sums)
        norms = torch.linalg.vector_norm(sums.flatten(1), dim=1)
        return norms, sums / norms.clamp_min(1e-300).view(-1, 1, 1), pooled

    def step(self, directions: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return the directions after a step, and their values before it."""
        values, toward, _ = self.value(directions, which)
        coefficients = torch.einsum("no,mco->mnc", self.dual, toward).cpu().numpy()
        given = directions.cpu().numpy()
        pairs = zip(given, coefficients, strict=True)
        moved = np.stack([self._over_winners(direction, each) for direction, each in pairs])
        return F.normalize(torch.from_numpy(moved).to(directions), dim=1), values

    def _over_winners(self, direction: Floats, coefficients: Floats) -> Floats:
        """Return a vector along the maximum of the concave function that touches at a direction (d,)."""
        convex, concave = coefficients > 0, coefficients < 0
        tangent = _combined(self.cells[convex], coefficients[convex], direction)
        cells, sizes = self.cells[concave], -coefficients[concave]

        def lowest(vector: Floats) -> Floats:
            return tangent - _combined(cells, sizes, vector)

        found = shortest(lowest, lowest(direction))
        return found if found.any() else direction


def _combined(cells: Floats, sizes: Floats, direction: Floats) -> Floats:
    """Return sum_g sizes_g x_w of the winners of cells (g, width, d) that are on, (d,)."""
    heights = cells @ direction
    winners = heights.argmax(axis=1)[:, None]
    on = np.take_along_axis(heights, winners, axis=1)[:, 0] > 0
    combined: Floats = (sizes * on) @ np.take_along_axis(cells, winners[:, :, None], axis=1)[:, 0]
    return combined
