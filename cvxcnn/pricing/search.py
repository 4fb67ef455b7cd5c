"""The pricing problem: which direction breaks the dual constraint most? Batched search on the unit sphere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.products import adjoint_product
from ..patches.activity import softly_active
from ..patches.patches import Patches
from ..patches.pooling import get_pooling
from ..penalties import Penalty
from ..program.design import FilterDesign
from .climb import climbed
from .gate_climb import GateClimb

__all__ = ["SEARCHES", "FilterSearch", "GateSearch", "Search", "thinned"]

# Of the ascent over filters: lengths on the unit sphere. Chosen on 40 digits, where they found violations three
# times as large as a monotone line search of the same cost.
_FIRST_STEP, _LAST_STEP, _MOMENTUM = 0.5, 0.001, 0.8
# Of the ascent over gates: lengths, and how sharp the edges of patterns are, at first (at least, at most) and at last.
_FIRST_TURN, _LAST_TURN = 0.3, 0.01
_SOFTEST, _SHARPER, _SHARPEST = 3.0, 30.0, 100.0
# Of the climb over gates: most numbers of patches and their coefficients.
_CLIMB_NUMBERS = 1 << 24
# Values that are equal but for rounding differ by less than this, relative to them.
_ROUNDING = 1e-13
# Of thinned patches: places from one to the next, at most.
_LARGEST_STEP = 4


def thinned(patches: Patches, most: int, generator: torch.Generator) -> tuple[Patches, Tensor]:
    """Return about ``most`` patches or fewer, and the images (indices, in order) that they are of; all if so few.

    Of more, first only every second to fourth place of a feature map is kept, pooled as before: neighbouring patches
    overlap, so that they say less than those of another image. Then images are drawn at random. Sums over a cell are
    scaled to the places left out.
    """
    geometry = patches.geometry
    step = 1
    while step < _LARGEST_STEP and patches.n_images * patches.n_patches > most * step**2:
        if min(patches.map_shape) < 2 * (step + 1) * geometry.pool_cells:
            break
        step += 1
    rows = torch.arange(patches.n_images)
    stride = (step * patches.stride[0], step * patches.stride[1])
    per_image = -(-patches.map_shape[0] // step) * -(-patches.map_shape[1] // step)
    if len(rows) * per_image > most:
        rows = torch.randperm(len(rows), generator=generator)[: max(1, most // per_image)].sort().values
    rows = rows.to(patches.images.device)
    if step == 1 and len(rows) == patches.n_images:
        return patches, rows
    thin = Patches(patches.images[rows], replace(geometry, stride=stride))
    if not get_pooling(geometry.pooling).averages:
        thin = Patches(thin.images, thin.geometry, scale=patches.n_patches / thin.n_patches)
    return thin, rows


class Search(ABC):
    """A pricing problem: maximise a dual norm of nu^T features(u) over directions u, from many starts at once.

    Parameters
    ----------
    patches : Patches
        In the dtype of the search; float32 is enough, because what is found is priced again in float64.
    dual : Tensor, shape (n, outputs)
        nu.
    penalty : Penalty
        Its dual norm is what is maximised; where its groups are columns, each start keeps to one (cell, output).
    """

    def __init__(self, patches: Patches, dual: Tensor, penalty: Penalty) -> None:
        self.patches = patches
        self.dual = dual.to(patches.dtype)
        self.penalty = penalty

    @classmethod
    def knows(cls, penalty: Penalty, pairs: int) -> bool:
        """Return whether the dual norm of a penalty is what is maximised here, for so many cells times outputs."""
        # The matrix of a single pair is a column, of which every grouping makes one group.
        return penalty.columnwise or penalty.spectral or (pairs == 1 and penalty.group_axes is not None)

    @abstractmethod
    def correlation(self, directions: Tensor) -> Tensor:
        """Return nu^T features(u_i), shape (m, cells, rows, outputs)."""

    @abstractmethod
    def ascend(self, directions: Tensor, steps: int) -> Tensor:
        """Return unit directions after a local ascent from each of those given; none gets worse."""

    @abstractmethod
    def climb(self, directions: Tensor, steps: int, pairs: Tensor | None) -> Tensor:
        """Return unit directions at a local maximum that each of those given leads to; none gets worse.

        ``pairs`` (m, cells * outputs) is one-hot, the (cell, output) that each makes large, where groups are columns.
        """

    def starts(self, count: int, generator: torch.Generator) -> Tensor:
        """Return unit starts, half Gaussian, half centred data patches with either sign; shape (count, d)."""
        patches = self.patches
        device = patches.images.device
        gaussian = torch.randn(count - count // 2, patches.dim, generator=generator, dtype=torch.float64)
        images = torch.randint(patches.n_images, (count // 2,), generator=generator)
        places = torch.randint(patches.n_patches, (count // 2,), generator=generator)
        signs = torch.randint(2, (count // 2, 1), generator=generator) * 2 - 1
        drawn = patches.take(images.to(device), places.to(device))
        drawn = (drawn - drawn.mean(dim=0)) * signs.to(device)
        noise = 1e-3 * torch.randn(drawn.shape, generator=generator, dtype=torch.float64).to(drawn)
        return F.normalize(torch.cat([gaussian.to(drawn), drawn + noise]), dim=1)

    def _pairs(self, points: Tensor, pairs: int) -> Tensor | None:
        """Deal the starts out over the (cell, output) pairs where groups are columns: one-hot (m, pairs)."""
        if not self.penalty.columnwise:
            return None
        dealt = torch.arange(len(points), device=points.device) % pairs
        return F.one_hot(dealt, pairs).to(points)


class FilterSearch(Search):
    """Pricing of ReLU filters: features(u) = pooled (R u)_+, maximised by steps along the gradient."""

    @classmethod
    def knows(cls, penalty: Penalty, pairs: int) -> bool:
        return penalty.group_axes == () or super().knows(penalty, pairs)

    design: ClassVar[type[FilterDesign]] = FilterDesign
    """What the filters respond with; ``climb`` is of the ReLU."""

    def correlation(self, directions: Tensor) -> Tensor:
        responses = self.design.responses(self.patches, directions)
        # One product, whose slopes of the responses lie as these do; einsum copies both.
        sums = self.dual.T @ responses.flatten(1)
        return sums.view(-1, *responses.shape[1:]).permute(2, 1, 0).unsqueeze(2)

    def ascend(self, directions: Tensor, steps: int) -> Tensor:
        # Steps of a fixed, shrinking length with momentum, the best point kept: the function has ridges where
        # patches change sign, and an ascent that only ever accepts higher values gets stuck on them.
        points = F.normalize(directions.to(self.dual), dim=1)
        pairs = self._pairs(points, self.patches.n_cells * self.dual.shape[1])
        best, best_values = points, points.new_full((len(points),), -1.0)
        velocity = torch.zeros_like(points)
        for step in range(steps + 1):
            values, gradients = self._value_and_gradient(points, pairs)
            better = values > best_values
            best = torch.where(better[:, None], points, best)
            best_values = torch.where(better, values, best_values)
            velocity = _MOMENTUM * velocity + gradients
            length = _FIRST_STEP * (_LAST_STEP / _FIRST_STEP) ** (step / max(steps, 1))
            points = F.normalize(points + length * F.normalize(velocity, dim=1), dim=1)
        return best

    def climb(self, directions: Tensor, steps: int, pairs: Tensor | None) -> Tensor:
        return climbed(self.patches, self.dual, directions, steps, pairs)

    def _value_and_gradient(self, points: Tensor, pairs: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            correlation = self.correlation(leaf).flatten(1)
            values = correlation.norm(dim=1) if pairs is None else (correlation * pairs).sum(dim=1).abs()
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        # Only the part along the sphere turns the point.
        tangent = gradient - (gradient * points).sum(dim=1, keepdim=True) * points
        return values.detach(), F.normalize(tangent, dim=1)


class GateSearch(Search):
    """Pricing of gates: features(g) = pooled D(g) R, piecewise constant in g.

    The ascent follows the slope of patterns with soft edges, which are sharpened from step to step.
    """

    def __init__(self, patches: Patches, dual: Tensor, penalty: Penalty) -> None:
        super().__init__(patches, dual, penalty)
        self._climb: GateClimb | None = None

    def correlation(self, directions: Tensor) -> Tensor:
        return self.patches.gated_correlation(directions, self.dual)

    def ascend(self, directions: Tensor, steps: int) -> Tensor:
        starts = F.normalize(directions.to(self.dual), dim=1)
        pairs = self._pairs(starts, self.patches.n_cells * self.dual.shape[1])
        # Soft edges lead many starts to the same few gates, sharp ones leave them near where they are: both are needed.
        first = torch.rand(len(starts), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(starts)
        first = _SOFTEST * (_SHARPER / _SOFTEST) ** first
        points, velocity = starts, torch.zeros_like(starts)
        for step in range(steps):
            share = step / max(steps - 1, 1)
            slopes = self._slopes(points, first * (_SHARPEST / first) ** share, pairs)
            velocity = _MOMENTUM * velocity + slopes
            length = _FIRST_TURN * (_LAST_TURN / _FIRST_TURN) ** share
            points = F.normalize(points + length * F.normalize(velocity, dim=1), dim=1)
        return self._higher(points, starts, pairs)

    def climb(self, directions: Tensor, steps: int, pairs: Tensor | None) -> Tensor:
        points = F.normalize(directions.to(self.dual), dim=1)
        patches = self.patches
        numbers = patches.n_images * patches.n_patches * (patches.dim + patches.n_cells * self.dual.shape[1])
        if not len(points) or numbers > _CLIMB_NUMBERS:
            return points
        if self._climb is None:
            self._climb = GateClimb(patches, self.dual)
        columns = [-1] * len(points) if pairs is None else pairs.argmax(dim=1).tolist()
        pairs_of = zip(points.double().cpu().numpy(), columns, strict=True)
        reached = np.stack([self._climb.climb(gate, column) for gate, column in pairs_of])
        return self._higher(torch.from_numpy(reached).to(points), points, pairs)

    def _higher(self, points: Tensor, starts: Tensor, pairs: Tensor | None) -> Tensor:
        """Return the points, or the starts where those are higher: on a hyperplane a gate has a pattern of its own."""
        reached = _along(self.correlation(points), pairs)[0]
        fallen = reached < _along(self.correlation(starts), pairs)[0] * (1 - _ROUNDING)
        return torch.where(fallen[:, None], starts, points)

    def _slopes(self, points: Tensor, sharpness: Tensor, pairs: Tensor | None) -> Tensor:
        """Return unit directions along the sphere in which the value with soft edges grows, (m, d)."""
        patches = self.patches
        _, pulls, toward = _along(patches.gated_correlation(points, self.dual, sharpness), pairs)
        toward = toward.view(len(points), patches.n_cells, -1)

        def work(share: slice) -> Tensor:
            total = torch.zeros_like(points)
            for rows, chunk in patches.chunks(3 * len(points), share):
                soft = softly_active(chunk, points, sharpness)
                spread = torch.einsum("no,mco->ncm", self.dual[rows], toward)
                weights = soft * (1 - soft) * (chunk @ pulls.T) * (patches.pool.T @ spread)
                total += adjoint_product(weights.flatten(0, 1), F.normalize(chunk, dim=2).flatten(0, 1))
            return total

        slopes = sum(patches.map_shares(work), torch.zeros_like(points))
        return F.normalize(slopes - (slopes * points).sum(dim=1, keepdim=True) * points, dim=1)


def _along(correlation: Tensor, pairs: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value of each correlation matrix M (m,), and the v (m, d) and w (m, pairs) with value v^T M w."""
    matrices = correlation.transpose(1, 2).flatten(2)
    if pairs is not None:
        pull = (matrices @ pairs.unsqueeze(2)).squeeze(2)
        return pull.norm(dim=1), F.normalize(pull, dim=1), pairs
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    return values[:, 0], left[:, :, 0], right[:, 0]


SEARCHES: dict[str, type[Search]] = {"filters": FilterSearch, "gates": GateSearch}
"""What is looked for, by ``Design.directions_are``."""
