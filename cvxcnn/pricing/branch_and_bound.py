"""A proved answer to the pricing problem of ReLU filters: branch and bound on the sphere of directions.

With coefficients C_k = P_ck nu_jo of the distinct patches x_k, the responses of a unit filter u are

    A(u) = sum_k C_k (x_k . u)_+,   one number for each (cell, output),

and the dual of Eq. 1 needs max_u ||A(u)||. The sphere is covered by cones of r edges, r the rank of the patches. On
a cone most patches keep their sign and are linear; each of the others is bounded there by two linear functions. What
is lost is quadratic in the width of the cone, and so is the fall of ||A|| around a maximum: halving cones until each
bound is low enough takes a number of them that grows with r exponentially but with the accuracy only logarithmically.
With max pooling the responses of a cell are max_k (x_k . u)_+, convex and linear in pieces like those of a patch.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import as_int
from ..core.threads import coarse_threads
from ..errors import InputError
from ..patches.patches import Patches
from ..penalties import Penalty
from .tree import Tree

__all__ = ["ResponseBound", "bound_responses"]

# A bound is made of a few sums over at most N patches, those in one direction added up first, whose terms add up to at
# most S = sum_k ||C_k|| ||x_k|| in absolute value, divided by a cosine that is at least 0.1; each sum is wrong by at
# most N roundings of S. A bisection moves u by a few roundings, and there are far fewer than 1000, one inside the
# other.
_ROUNDING = 100 * torch.finfo(torch.float64).eps  # times (N + 1000) S
# Bytes of cones that wait, from which on the newest go first (depth first), so that few are added.
_WAITING_BYTES = 1 << 29
# Largest rank of the patches: the first cones are 2^rank orthants.
_MAX_RANK = 12


@dataclass(frozen=True)
class ResponseBound:
    """How large the dual norm of a filter's responses can be, over all unit filters.

    Attributes
    ----------
    upper : Tensor, shape (outputs,)
        Proved: no unit filter has a dual norm above it. For the penalty "dense" all entries are the same number.
    best : Tensor, shape (outputs,)
        Attained at ``argmax``.
    argmax : Tensor, shape (outputs, d)
        Unit filters (zero where every response is).
    regions : int
        Cones bounded.
    complete : bool
        Whether ``upper`` is within the tolerance of the larger one of ``best`` and the floor.
    seconds : float
    """

    upper: Tensor
    best: Tensor
    argmax: Tensor
    regions: int
    complete: bool
    seconds: float


def _merged(patches: Patches, dual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return distinct directions (N, 1, d) of the non-zero patches, sums of C_k (N, cells, outputs), and of |C_k|."""
    points = patches.unfold().flatten(0, 1).double()
    weights = torch.einsum("ck,no->nkco", patches.pool.double(), dual.double()).flatten(0, 1)
    kept = points.any(dim=1)
    points, weights = points[kept], weights[kept]
    # Scaled by the largest entry, multiples of a patch are equal to the last bit, or nearly.
    scales = points.abs().amax(dim=1)
    points, inverse = torch.unique(points / scales.unsqueeze(1), dim=0, return_inverse=True)
    zero, weights = weights.new_zeros(len(points), *weights.shape[1:]), weights * scales.view(-1, 1, 1)
    # Coefficients of patches in one direction may cancel, but not their rounding.
    summed, sizes = (zero.index_add(0, inverse, each) for each in (weights, weights.abs()))
    return points.unsqueeze(1), summed, sizes


def _cells(patches: Patches, dual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the patches (N, w, d) of each image and cell, with max pooling, and C_k and |C_k| as ``_merged`` does."""
    exact = patches.astype(torch.float64)
    members = exact.pooler.members()
    # Zero patches, which fill up smaller cells, are never above the zero of the ReLU.
    unfolded = F.pad(exact.unfold(), (0, 0, 0, 1))
    places = torch.nn.utils.rnn.pad_sequence(members, batch_first=True, padding_value=patches.n_patches)
    eye = torch.eye(len(members)).to(unfolded)
    weights = patches.scale * torch.einsum("ec,no->neco", eye, dual.double()).flatten(0, 1)
    points = unfolded[:, places].flatten(0, 1)
    kept = points.flatten(1).any(dim=1)
    return points[kept], weights[kept], weights[kept].abs()


def _span(points: Tensor) -> Tensor:
    """Return an orthonormal basis (d, r) of the span of the points; the axes themselves if it is all of R^d."""
    dim = points.shape[1]
    if not len(points):
        return points.new_zeros(dim, 0)
    _, values, right = torch.linalg.svd(points, full_matrices=False)
    rank = int((values > 1e-12 * values[0]).sum())
    return torch.eye(dim).to(points) if rank == dim else right[:rank].T


def _groups(axes: tuple[str, ...], cells: int, outputs: int) -> list[tuple[Tensor, list[int]]]:
    """Return the responses (cell * outputs + output) of each group, and the outputs that a bound of it is one for."""
    places = torch.arange(cells * outputs).view(cells, outputs)
    by_cell = torch.split(places, 1 if "cell" in axes else cells, dim=0)
    parts = [part for rows in by_cell for part in torch.split(rows, 1 if "output" in axes else outputs, dim=1)]
    return [(part.flatten(), (part[0] % outputs).tolist()) for part in parts]


class _Forest:
    """A tree for each group of responses; those of one output share the level that they needn't undercut."""

    def __init__(self, patches: Patches, dual: Tensor, axes: tuple[str, ...], floor: float, tol: float) -> None:
        self.floor, self.tol, self.n_outputs = floor, tol, dual.shape[1]
        points, weights, sizes = _merged(patches, dual) if patches.pooler.linear else _cells(patches, dual)
        self.basis = _span(points.flatten(0, 1))
        if self.basis.shape[1] > _MAX_RANK:
            raise InputError(
                f"responses are bounded for patches that span at most {_MAX_RANK} dimensions, whose 2^{_MAX_RANK} "
                f"orthants are cones to begin with; these span {self.basis.shape[1]}. Use a smaller kernel or fewer "
                "channels."
            )
        reduced = points @ self.basis
        missed = (points - reduced @ self.basis.T).norm(dim=2).amax(dim=1)
        reach = points.norm(dim=2).amax(dim=1)
        n_patches = patches.n_images * patches.n_patches
        self.trees: list[Tree] = []
        self.outputs: list[list[int]] = []
        self.margins: list[float] = []
        for columns, outputs in _groups(axes, *weights.shape[1:]):
            coefficients = weights.flatten(1)[:, columns]
            kept = coefficients.norm(dim=1) > 0
            lengths = sizes.flatten(1)[:, columns].norm(dim=1)
            size = (lengths * reach).sum()
            self.margins.append(float(_ROUNDING * (n_patches + 1000) * size + (lengths * missed).sum()))
            self.trees.append(Tree(reduced[kept], coefficients[kept]))
            self.outputs.append(outputs)

    def level(self, index: int) -> float:
        """Return what the bounds of a tree needn't undercut."""
        output = self.outputs[index][0]
        best = max(tree.best for tree, outputs in zip(self.trees, self.outputs, strict=True) if output in outputs)
        return max((1 + self.tol) * max(self.floor, best), self.margins[index])

    def plant(self, candidates: Tensor | None) -> int:
        """Evaluate the axes and candidates (m, d), and bound the first cones; return how many."""
        axes = torch.eye(self.basis.shape[1]).to(self.basis)
        given = [] if candidates is None else [candidates.to(self.basis) @ self.basis]
        starts = torch.cat([axes, -axes, *given])
        starts = F.normalize(starts[starts.any(dim=1)], dim=1)
        for tree in self.trees:
            tree.evaluate(starts)
        regions = 0
        for index, tree in enumerate(self.trees):
            if len(tree.points) > 1:  # beside the zero patch
                for roots in tree.roots():
                    regions += len(roots.upper)
                    tree.push(tree.close(tree.settle(roots), self.level(index)))
        return regions

    def grow(self) -> int:
        """Halve some cones of the tree that is farthest above its level; return how many that makes, 0 if none is."""
        levels = [self.level(index) for index in range(len(self.trees))]
        excess = [tree.highest() / at if at else 0.0 for tree, at in zip(self.trees, levels, strict=True)]
        worst = max(range(len(self.trees)), key=excess.__getitem__)
        if excess[worst] <= 1:
            return 0
        tree = self.trees[worst]
        n_bytes = sum(cones.n_bytes() for each in self.trees for cones in each.waiting)
        halves = tree.bisect(tree.pop(newest=n_bytes > _WAITING_BYTES))
        tree.push(tree.close(tree.settle(halves), levels[worst]))
        return len(halves.upper)

    def result(self, regions: int, seconds: float) -> ResponseBound:
        """Return what is proved so far."""
        upper, best = self.basis.new_zeros(self.n_outputs), self.basis.new_zeros(self.n_outputs)
        argmax = self.basis.new_zeros(self.n_outputs, len(self.basis))
        complete = True
        for index, (tree, outputs) in enumerate(zip(self.trees, self.outputs, strict=True)):
            highest = max(tree.highest(), tree.closed, tree.best)
            complete = complete and highest <= self.level(index)
            for output in outputs:
                upper[output] = max(float(upper[output]), highest + self.margins[index])
                if tree.best > float(best[output]):
                    best[output], argmax[output] = tree.best, self.basis @ tree.argmax
        return ResponseBound(upper, best, argmax, regions, complete, seconds)


def _check(
    patches: Patches,
    dual: Tensor,
    penalty: Penalty,
    floor: float,
    tol: float,
    candidates: Tensor | None,
    max_regions: int,
    time_limit: float,
) -> None:
    if penalty.group_axes is None:
        raise InputError(
            'responses of ReLU filters are bounded for a penalty that says its group_axes, such as penalty "dense" or '
            f'"group"; got {penalty.name!r}. The gates of a gated network are another pricing problem.'
        )
    if dual.ndim != 2 or len(dual) != patches.n_images:
        raise InputError(
            f"dual must have shape (n, outputs) with n = {patches.n_images} images; got {tuple(dual.shape)}."
        )
    if not torch.isfinite(dual).all() or not torch.isfinite(patches.images).all():
        raise InputError("dual and images must be finite; some entries are not.")
    if not 0 <= floor < math.inf:
        raise InputError(f"floor must be a finite number >= 0; got {floor!r}.")
    if not 1e-9 <= tol < math.inf:
        raise InputError(f"tol must be a finite number >= 1e-9, above what rounding costs; got {tol!r}.")
    if candidates is not None and (candidates.ndim != 2 or candidates.shape[1] != patches.dim):
        raise InputError(
            f"candidates must have shape (m, d) with the patch length d = {patches.dim}; got {tuple(candidates.shape)}."
        )
    as_int("max_regions", max_regions)
    if not time_limit > 0:
        raise InputError(f"time_limit must be a positive number of seconds; got {time_limit!r}.")


def bound_responses(
    patches: Patches,
    dual: Tensor,
    penalty: Penalty,
    *,
    floor: float = 0.0,
    tol: float = 1e-3,
    candidates: Tensor | None = None,
    max_regions: int = 2_000_000,
    time_limit: float = math.inf,
) -> ResponseBound:
    """Return a proved bound of the dual norm of nu^T pooled (R u)_+ over ALL unit filters u.

    For the penalty "group" it bounds max_u max_c |sum_jk nu_jo P_ck (x_jk . u)_+| for each output o; for "dense"
    max_u ||nu^T pooled (R u)_+||_F; with max pooling the largest of a cell takes the place of the sum. Scaled by
    min(1, reg / upper), nu is feasible for the dual of Eq. 1 with any number of neurons, so that its dual value is a
    proved bound of the non-convex problem.

    Parameters
    ----------
    patches : Patches
        n images; computed in float64 whatever their dtype.
    dual : Tensor, shape (n, outputs)
        nu.
    penalty : Penalty
        One that says its ``group_axes``, as "dense" and "group" do.
    floor : float
        A value >= 0 that need not be undercut: reg, when only a violation of the dual constraint matters.
    tol : float
        Stop when ``upper`` <= (1 + tol) * max(floor, best); >= 1e-9.
    candidates : Tensor, shape (m, d), optional
        Directions that are probably good, such as the filters of the solution; they save work.
    max_regions : int
        Stop after about this many cones; ``upper`` is then what is proved so far.
    time_limit : float
        Stop after this many seconds, likewise.

    Returns
    -------
    ResponseBound

    Raises
    ------
    InputError
        If an argument is out of its range or does not fit the others, or the patches span more than 12 dimensions.

    Notes
    -----
    The number of cones grows exponentially with the rank of the patches: ranks up to 4 take seconds, 5 takes minutes.
    Rounding is covered by 2.3e-14 * (N + 1000) * sum_k ||C_k|| ||x_k|| for N patches, part of ``upper``.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> from cvxcnn.penalties import GroupPenalty
    >>> patches = Patches(torch.tensor([[[[3.0, 4.0]]], [[[0.0, -5.0]]]]), PatchGeometry(kernel_size=(1, 2)))
    >>> bound = bound_responses(patches, torch.tensor([[1.0], [-1.0]]), GroupPenalty())
    >>> [round(float(value), 3) for value in (bound.upper, bound.best)], bound.complete
    ([5.0, 5.0], True)
    """
    began = time.perf_counter()
    _check(patches, dual, penalty, floor, tol, candidates, max_regions, time_limit)
    with torch.no_grad(), coarse_threads():
        forest = _Forest(patches, dual, penalty.group_axes or (), floor, tol)
        regions = forest.plant(candidates)
        while regions < max_regions and time.perf_counter() - began < time_limit:
            fresh = forest.grow()
            if not fresh:
                break
            regions += fresh
        return forest.result(regions, time.perf_counter() - began)
