"""Newton systems of large group lassos, by conjugate gradients on the features: no Gram matrix is formed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch

from ...core.threads import map_shares
from .newton import Quadratic

__all__ = ["DenseFeatures", "FeatureQuadratic", "Features", "MaskedFeatures"]

Array = np.ndarray

_MAX_STEPS = 100
# The preconditioner looks at no more images than this.
_SAMPLE = 512
# A thread is not worth waking for fewer entries.
_SHARE_ENTRIES = 1 << 17


def _by_rows(work: Callable[[slice], Array], matrix: Array) -> list[Array]:
    """Return ``work`` of consecutive shares of the rows, one for each thread where the matrix is large."""
    if matrix.size < 2 * _SHARE_ENTRIES:
        return [work(slice(None))]
    least = -(-_SHARE_ENTRIES // max(matrix.shape[1], 1))
    return map_shares(work, len(matrix), torch.device("cpu"), least)


class Features(ABC):
    """A matrix A of n rows whose columns fall into groups of equal size; one output."""

    n_groups: int
    size: int

    @abstractmethod
    def forward(self, weights: Array) -> Array:
        """Return A w, shape (n,), for weights (groups, size)."""

    @abstractmethod
    def adjoint(self, values: Array) -> Array:
        """Return A^T r, shape (groups, size)."""

    @abstractmethod
    def group_forward(self, group: int, weights: Array) -> Array:
        """Return A_g w_g, shape (n,)."""

    @abstractmethod
    def group_adjoint(self, group: int, values: Array) -> Array:
        """Return A_g^T r, shape (size,)."""

    @abstractmethod
    def group_gram(self, group: int) -> Array:
        """Return A_g^T A_g, shape (size, size)."""

    @abstractmethod
    def select(self, groups: Array) -> Features:
        """Return a copy of some groups in float32, for directions that need not be exact."""

    @abstractmethod
    def moments(self) -> tuple[Array, Array, Array]:
        """Return C (groups, groups), S (size, size) and m (groups, size) with A^T A ~ C (x) S + m m^T."""


class DenseFeatures(Features):
    """Features as a matrix, shape (n, groups, size)."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.flat = values.reshape(len(values), -1)
        self.n_groups, self.size = values.shape[1:]

    def forward(self, weights: Array) -> Array:
        flat = weights.ravel()
        return np.concatenate(_by_rows(lambda rows: self.flat[rows] @ flat, self.flat))

    def adjoint(self, values: Array) -> Array:
        product: Array = np.sum(_by_rows(lambda rows: values[rows] @ self.flat[rows], self.flat), axis=0)
        return product.reshape(self.n_groups, self.size)

    def group_forward(self, group: int, weights: Array) -> Array:
        product: Array = self.values[:, group] @ weights
        return product

    def group_adjoint(self, group: int, values: Array) -> Array:
        product: Array = values @ self.values[:, group]
        return product

    def group_gram(self, group: int) -> Array:
        columns = self.values[:, group]
        gram: Array = columns.T @ columns
        return gram

    def select(self, groups: Array) -> DenseFeatures:
        return DenseFeatures(self.values[:, groups].astype(np.float32))

    def moments(self) -> tuple[Array, Array, Array]:
        step = -(-len(self.values) // _SAMPLE)
        sample = self.values[::step].astype(np.float64) * np.sqrt(step)
        mean = sample.mean(axis=0)
        centred = sample - mean
        flat = np.ascontiguousarray(centred.transpose(1, 0, 2)).reshape(self.n_groups, -1)
        columns = centred.reshape(-1, self.size)
        # The best Kronecker product in the sense of partial traces; C has the scale, S has trace one.
        overlap, shape = flat @ flat.T, columns.T @ columns
        return overlap, shape / max(np.trace(shape), 1e-300), mean * np.sqrt(len(sample))


class MaskedFeatures(Features):
    """Features D_g X of single patches: masks (n, groups) times patches (n, size), never multiplied out."""

    def __init__(self, patches: Array, masks: Array) -> None:
        self.patches, self.masks = patches, masks
        self.n_groups, self.size = masks.shape[1], patches.shape[1]

    def forward(self, weights: Array) -> Array:
        columns = weights.T

        def share(rows: slice) -> Array:
            product: Array = np.einsum("ng,ng->n", self.patches[rows] @ columns, self.masks[rows])
            return product

        return np.concatenate(_by_rows(share, self.masks))

    def adjoint(self, values: Array) -> Array:
        def share(rows: slice) -> Array:
            product: Array = (self.masks[rows] * values[rows, None]).T @ self.patches[rows]
            return product

        total: Array = np.sum(_by_rows(share, self.masks), axis=0)
        return total

    def group_forward(self, group: int, weights: Array) -> Array:
        product: Array = self.masks[:, group] * (self.patches @ weights)
        return product

    def group_adjoint(self, group: int, values: Array) -> Array:
        product: Array = (self.masks[:, group] * values) @ self.patches
        return product

    def group_gram(self, group: int) -> Array:
        active = self.patches[self.masks[:, group] > 0]
        gram: Array = active.T @ active
        return gram

    def select(self, groups: Array) -> MaskedFeatures:
        patches, masks = self.patches.astype(np.float32), self.masks[:, groups].astype(np.float32)
        return MaskedFeatures(patches, np.ascontiguousarray(masks))

    def moments(self) -> tuple[Array, Array, Array]:
        patches, masks = self.patches.astype(np.float64), self.masks.astype(np.float64)
        squares = np.einsum("nd,nd->n", patches, patches)
        overlap = masks.T @ (masks * squares[:, None])
        shape = patches.T @ patches
        mean = masks.T @ patches / np.sqrt(len(patches))
        return overlap, shape / max(np.trace(shape), 1e-300), mean


class _Preconditioner:
    """The inverse of C (x) S + diag(weight) (x) I + m m^T: one small system an eigenvalue of S."""

    def __init__(self, features: Features, weight: Array) -> None:
        overlap, shape, mean = features.moments()
        values, self.vectors = np.linalg.eigh(shape)
        diagonal = np.arange(len(overlap))
        systems = np.maximum(values, 0.0)[:, None, None] * overlap
        systems[:, diagonal, diagonal] += weight * (1 + 1e-10)
        self.inverses = np.linalg.inv(systems)
        self.mean = mean
        self.along = self._kronecker(mean)
        self.scale = 1 + float((mean * self.along).sum())

    def _kronecker(self, values: Array) -> Array:
        turned = (values @ self.vectors).T[:, :, None]
        result: Array = (self.inverses @ turned)[:, :, 0].T @ self.vectors.T
        return result

    def __call__(self, values: Array) -> Array:
        result = self._kronecker(values)
        return result - self.along * (float((self.mean * result).sum()) / self.scale)


class FeatureQuadratic(Quadratic):
    """The quadratic from its features, for one output; Newton systems by preconditioned conjugate gradients.

    Parameters
    ----------
    features : Features
    target : ndarray, shape (n,)
    spectra : (ndarray, ndarray), optional
        Computed if they are not given.
    """

    def __init__(self, features: Features, target: Array, spectra: tuple[Array, Array] | None = None) -> None:
        self.features, self.target = features, target
        self.size, self.n_groups = features.size, features.n_groups
        self.squared_norm = float(target @ target)
        if spectra is None:
            spectra = np.linalg.eigh(np.stack([features.group_gram(group) for group in range(self.n_groups)]))
        self.spectra = spectra
        self.move_to(np.zeros((self.n_groups * self.size, 1)))

    def move_to(self, weights: Array) -> None:
        self.weights = weights.copy()
        self.rest = self.target - self.features.forward(weights.reshape(self.n_groups, self.size))

    def change(self, rows: slice, delta: Array) -> None:
        self.weights[rows] += delta
        self.rest = self.rest - self.features.group_forward(rows.start // self.size, delta[:, 0])

    def pull(self, rows: slice) -> Array:
        return self.features.group_adjoint(rows.start // self.size, self.rest)[:, None]

    def pulls(self) -> Array:
        return self.features.adjoint(self.rest).reshape(-1, 1)

    def residual(self, pulls: Array) -> float:
        return float(self.rest @ self.rest)

    def state(self) -> tuple[Array, Array]:
        return self.weights, self.rest

    def restore(self, state: tuple[Array, Array]) -> None:
        self.weights, self.rest = state

    def direction(
        self, support: Array, norms: Array, gradient: Array, reg: float, damping: float, enough: float
    ) -> Array | None:
        count = len(support)
        features = self.features.select(support)
        units = self.weights[self.rows(support)].reshape(count, -1) / norms[:, None]
        weight = reg / norms + damping * self.spectra[0].mean()
        precondition = _Preconditioner(features, weight)

        def hessian(values: Array) -> Array:
            smooth = features.adjoint(features.forward(values.astype(np.float32))).astype(np.float64)
            radial = (units * values).sum(axis=1, keepdims=True)
            result: Array = smooth + weight[:, None] * values - (reg / norms)[:, None] * units * radial
            return result

        right = -gradient.reshape(count, -1)
        # Steps far from the optimum need few digits; near it the Newton iteration is as fast as they are exact.
        accuracy = min(0.1, max(float(np.linalg.norm(gradient)) / (reg * np.sqrt(count)), enough))
        solution, rest = np.zeros_like(right), right
        turned = precondition(rest)
        search, product = turned, float((rest * turned).sum())
        first = product
        for _ in range(_MAX_STEPS):
            curved = hessian(search)
            bend = float((search * curved).sum())
            if not bend > 0:
                break
            length = product / bend
            solution = solution + length * search
            rest = rest - length * curved
            turned = precondition(rest)
            following = float((rest * turned).sum())
            if not following > accuracy**2 * first:
                break
            search = turned + (following / product) * search
            product = following
        return solution.reshape(-1, 1)
