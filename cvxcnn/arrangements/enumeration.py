"""All activation patterns of patches that span at most three dimensions.

The hyperplanes {g : x . g = 0} of the patches cut gate space into cones, the cells of a central arrangement; a
pattern is constant inside a cell. A gate on a hyperplane has a pattern of its own, since D(g) counts x . g = 0 as
active, but the filters with that pattern form a lower-dimensional cone that is a face of a neighbouring cell's cone:
there x . u = 0 contributes nothing either way. So one gate strictly inside each cell is all that the program needs.
With max pooling the hyperplanes are those of the patches and of the differences of the patches of a pooling cell; on
one of these two patches respond alike, and either may be taken for the winner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from ..core.checks import as_int
from ..core.distributed import size
from ..errors import InputError
from ..patches.activity import tie_width
from ..patches.patches import Patches
from .base import Gates, GateSampler, distinct

__all__ = ["EnumeratedGates", "arrangement_count", "enumerate_gates"]

Floats = NDArray[np.float64]
Bits = NDArray[np.bool_]

EPS = float(np.finfo(np.float64).eps)
# Unit vectors closer than this are one direction: a few roundings of float64.
SAME_LINE = 16 * EPS
# A line passes through the meeting point of two others when it misses it by less than this over the sine of
# their angle, which is what rounding the meeting point may cost.
THROUGH_VERTEX = 64 * EPS
MAX_RANK = 3
MAX_POINTS = 400
ENTRIES_AT_ONCE = 1 << 21
# What is cut by beside the patches: whether pooling is linear says it.
_ALSO = {True: "", False: ", with the differences of those of one pooling cell,"}


def arrangement_count(n_points: int, dim: int) -> int:
    """Return the number of patterns of N points in general position in R^d, 2 sum_{i < d} C(N - 1, i).

    It is the number of cells of the arrangement of their hyperplanes, and an upper bound in other positions (Cover
    1965, Geometrical and statistical properties of systems of linear inequalities).

    Parameters
    ----------
    n_points, dim : int
        N and d, >= 1.

    Raises
    ------
    InputError
        If one of them is not an int >= 1.

    Examples
    --------
    >>> arrangement_count(10, 2), arrangement_count(10, 3), arrangement_count(3, 9)
    (20, 92, 8)
    """
    n_points, dim = as_int("n_points", n_points), as_int("dim", dim)
    return 2 * sum(math.comb(n_points - 1, i) for i in range(min(dim, n_points)))


def _merge_lines(rows: Floats) -> Floats:
    """Return unit vectors along the distinct lines through the origin that the non-zero rows span."""
    rows = rows[np.any(rows != 0, axis=1)]
    if len(rows) == 0:
        return rows
    # Scaled by the largest entry first: squares of tiny entries would vanish.
    rows = rows / np.abs(rows).max(axis=1, keepdims=True)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    leading = np.take_along_axis(units, np.argmax(units != 0, axis=1)[:, None], axis=1)
    units = np.unique(units * np.sign(leading), axis=0)
    # Both directions go into the tree: the sign chosen above is not stable when the leading entry is nearly zero.
    count = len(units)
    pairs = cKDTree(np.concatenate([units, -units])).query_pairs(SAME_LINE, output_type="ndarray") % count
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    return units[np.unique(labels, return_index=True)[1]]


def _span(lines: Floats) -> Floats:
    """Return an orthonormal basis, shape (d, rank), of the span of unit vectors."""
    _, values, right = np.linalg.svd(lines, full_matrices=False)
    rank = int(np.sum(values > values[0] * max(lines.shape) * EPS))
    basis: Floats = right[:rank].T
    return basis


def _lines_of(patches: Patches, max_points: int) -> tuple[Floats, Floats]:
    """Return the distinct lines of the normals of the hyperplanes, shape (N, d), and a basis of their span."""
    lines = np.empty((0, patches.dim))
    basis = np.empty((patches.dim, 0))
    for _, chunk in patches.astype(torch.float64).chunks(patches.dim):
        lines = _merge_lines(np.concatenate([lines, patches.pooler.boundaries(chunk).cpu().numpy()]))
        if len(lines) == 0:
            continue
        basis = _span(lines)
        if basis.shape[1] > MAX_RANK:
            raise InputError(
                f"all patterns can be enumerated only for patches that span at most {MAX_RANK} dimensions; these have "
                f"{patches.dim} entries and span more. Use a smaller kernel or fewer channels, or sample gates."
            )
        if len(lines) > max_points:
            raise InputError(
                f"the patches{_ALSO[patches.pooler.linear]} have more than max_points={max_points} distinct directions "
                f"({len(lines)} so far); "
                f"N directions in {MAX_RANK} dimensions have N^2 - N + 2 patterns and cost N^3 operations. "
                "Use fewer images, sample gates, or raise max_points."
            )
    if len(lines) == 0:
        raise InputError("every patch is zero, so no gate tells patches apart. Check the images.")
    return lines, basis


def _cells_line(lines: Floats) -> Floats:
    """Return a vector inside each of the two halves that the origin cuts from a line."""
    return np.array([[1.0], [-1.0]])


def _cells_plane(lines: Floats) -> Floats:
    """Return a vector inside each of the 2N sectors that N distinct lines of normals ``lines`` cut from a plane."""
    boundaries = np.sort(np.mod(np.arctan2(lines[:, 1], lines[:, 0]) + np.pi / 2, np.pi))
    middles = (boundaries + np.append(boundaries[1:], boundaries[0] + np.pi)) / 2
    half = np.stack([np.cos(middles), np.sin(middles)], axis=1)
    return np.concatenate([half, -half])


def _sides_at_vertex(vertex: Floats, lines: Floats) -> Bits:
    """Return the sides that the 2m sectors around a vertex take of the m lines through it, shape (2m, m)."""
    plane = np.linalg.svd(vertex[None])[2][1:].T
    sides: Bits = _cells_plane(lines @ plane) @ (lines @ plane).T > 0
    return sides


def _cells_space(lines: Floats) -> Floats:
    """Return a vector inside each cell that N distinct planes of unit normals ``lines``, of rank 3, cut from R^3.

    Each cell is the cone of the vertices (rays where planes meet) on its boundary, so the sum of its unit vertices
    lies strictly inside. Around a vertex, the planes that miss it keep their side and the m through it cut 2m
    sectors, each a corner of one cell: collecting corners by their sides of all planes collects every cell's vertices.
    Cells come in opposite pairs; the one on the positive side of the first plane stands for both.
    """
    count = len(lines)
    first, second = np.triu_indices(count, 1)
    corner_keys: list[NDArray[np.uint8]] = []
    corner_vertices: list[Floats] = []
    n_pairs_met = 0
    half_cells = 1
    step = max(1, ENTRIES_AT_ONCE // count)
    for start in range(0, len(first), step):
        a, b = first[start : start + step], second[start : start + step]
        crosses = np.cross(lines[a], lines[b])
        sines = np.linalg.norm(crosses, axis=1, keepdims=True)
        vertices = crosses / sines
        heights = vertices @ lines.T
        through = np.abs(heights) * sines <= THROUGH_VERTEX
        pairs = np.arange(len(a))
        through[pairs, a] = through[pairs, b] = True
        # A vertex of m planes is met by each pair of them; the first two stand for it.
        later = through.copy()
        later[pairs, a] = False
        new = (through.argmax(1) == a) & (later.argmax(1) == b)
        degree = through.sum(1)
        n_pairs_met += int((degree * (degree - 1) // 2)[new].sum())
        half_cells += int((degree - 1)[new].sum())

        simple = (new & (degree == 2)).nonzero()[0]
        for side_a in (False, True):
            for side_b in (False, True):
                sides = heights[simple] > 0
                each = np.arange(len(simple))
                sides[each, a[simple]], sides[each, b[simple]] = side_a, side_b
                _add_corners(sides, vertices[simple], corner_keys, corner_vertices)
        for v in (new & (degree > 2)).nonzero()[0]:
            local = _sides_at_vertex(vertices[v], lines[through[v]])
            sides = np.repeat(heights[v : v + 1] > 0, len(local), axis=0)
            sides[:, through[v]] = local
            _add_corners(sides, np.repeat(vertices[v : v + 1], len(local), axis=0), corner_keys, corner_vertices)

    corners = np.concatenate(corner_keys)
    keys, cell = np.unique(corners.view(f"V{corners.shape[1]}").ravel(), return_inverse=True)
    summed = np.stack([np.bincount(cell.ravel(), column) for column in np.concatenate(corner_vertices).T], axis=1)
    # Every two planes meet in one vertex, cells number 2 (1 + sum over vertices of m - 1) (Zaslavsky 1975), and each
    # vector has the sides that its corners had: all hold unless rounding made the incidences contradict each other.
    consistent = n_pairs_met == len(first) and len(summed) == half_cells
    for start in range(0, len(summed) if consistent else 0, step):
        rows = slice(start, start + step)
        sides = np.packbits(summed[rows] @ lines.T > 0, axis=1)
        consistent = consistent and sides.tobytes() == keys[rows].tobytes()
    if not consistent:
        raise _too_degenerate("where their hyperplanes meet can't be told in float64")
    half = summed / np.linalg.norm(summed, axis=1, keepdims=True)
    return np.concatenate([half, -half])


def _add_corners(sides: Bits, vertices: Floats, keys: list[NDArray[np.uint8]], found: list[Floats]) -> None:
    """Append corners, turned to the positive side of the first plane, as packed sides and vertices."""
    positive = sides[:, :1]
    keys.append(np.packbits(sides == positive, axis=1))
    found.append(np.where(positive, vertices, -vertices))


def _too_degenerate(reason: str) -> InputError:
    return InputError(
        f"the patches are too close to a degenerate position to enumerate their patterns: {reason}. Use float64 "
        "images, round them to a grid (patches that coincide are merged), or sample gates."
    )


def _check_strict(lines: Floats, vectors: Floats, dtype: torch.dtype) -> None:
    """Raise InputError if a gate, rounded to ``dtype``, is not beyond doubt on its side of each line and its copies."""
    dim = lines.shape[1]
    needed = max((dim + 2) * float(torch.finfo(dtype).eps), 2 * tie_width(dim)) + SAME_LINE
    step = max(1, ENTRIES_AT_ONCE // len(lines))
    margin = min(float(np.abs(vectors[i : i + step] @ lines.T).min()) for i in range(0, len(vectors), step))
    if margin <= needed:
        name = str(dtype).removeprefix("torch.")
        raise _too_degenerate(f"the thinnest cell leaves a margin of {margin:.1e} where {name} needs {needed:.1e}")


def enumerate_gates(patches: Patches, max_points: int = MAX_POINTS) -> Gates:
    """Return one gate strictly inside every cell: all patterns of patches that span at most three dimensions.

    Patches on one line through the origin share a hyperplane: N distinct lines give ``arrangement_count(N, d)``
    gates in general position, fewer when three of their hyperplanes meet in a line. The pattern that is active on
    no patch, where there is one, is among them. Gates on a hyperplane add nothing to the program (their cones are
    faces of the cells'), so that open cells suffice. With max pooling differences of patches count as lines; where
    one of them is negative anyway, two gates may have one pattern, and ``EnumeratedGates`` drops the second.

    Parameters
    ----------
    patches : Patches
        Patches of rank at most 3, with d of any size.
    max_points : int
        Most distinct lines, >= 1. In three dimensions N lines cost about 2 N^3 multiplications and give
        N^2 - N + 2 gates: 159,602 for the default, 400.

    Returns
    -------
    Gates
        With ``complete=True``, in the dtype and on the device of the patches.

    Raises
    ------
    InputError
        If the patches span more than three dimensions, have more lines than ``max_points``, are all zero, or lie so
        close to a degenerate position that their dtype can't hold a gate of every cell; or if they are shared by
        several processes.

    Notes
    -----
    Computed in float64. Patches whose directions differ by less than 3.6e-15 are one line, and three planes that miss
    a common line by less than 1.4e-14, over the sine of the angle between the first two, meet in it. The result is
    checked: the number of cells by Zaslavsky's count, the sides of every gate, and its margin beyond rounding.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> images = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    >>> patches = Patches(images.view(4, 1, 1, 3), PatchGeometry(kernel_size=(1, 3)))
    >>> len(enumerate_gates(patches)), arrangement_count(4, 3)
    (14, 14)
    """
    max_points = as_int("max_points", max_points)
    if size() > 1:
        raise InputError(f"patterns are enumerated in one process; there are {size()}. Use one, or sample gates.")
    lines, basis = _lines_of(patches, max_points)
    cells = (_cells_line, _cells_plane, _cells_space)[basis.shape[1] - 1](lines @ basis)
    vectors = torch.from_numpy(cells @ basis.T).to(patches.like)
    _check_strict(lines, vectors.to("cpu", torch.float64).numpy(), patches.dtype)
    return Gates(vectors, complete=True)


@dataclass(frozen=True)
class EnumeratedGates(GateSampler):
    """All patterns of patches that span at most three dimensions, as a sampler; see ``enumerate_gates``.

    Parameters
    ----------
    max_points : int
        Most distinct lines that the patches may span, >= 1.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> patches = Patches(torch.tensor([[[[1.0, -2.0, 3.0]]]]), PatchGeometry(kernel_size=1, bias=True))
    >>> gates = EnumeratedGates().draw(patches, torch.Generator())
    >>> len(gates), gates.n_zero, gates.complete
    (5, 1, True)
    """

    max_points: int = MAX_POINTS

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_points", as_int("max_points", self.max_points))

    def sample(self, patches: Patches, count: int, generator: torch.Generator) -> Tensor:
        """Return ``count`` gates, shape (count, d), of cells drawn uniformly with replacement."""
        vectors = enumerate_gates(patches, self.max_points).vectors
        return vectors[torch.randint(len(vectors), (count,), generator=generator).to(vectors.device)]

    def draw(self, patches: Patches, generator: torch.Generator, targets: Tensor | None = None) -> Gates:
        """Return every pattern but the one that is active on no patch."""
        gates = enumerate_gates(patches, self.max_points)
        return replace(distinct(patches, gates.vectors), complete=True)
