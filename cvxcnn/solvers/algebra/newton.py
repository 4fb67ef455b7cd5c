"""Group lasso by block coordinate descent and Newton steps on the support: small, exact, fast."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from scipy import linalg

__all__ = ["Descent", "GramQuadratic", "Quadratic", "group_lasso"]

Array = np.ndarray

# A Newton step's gap is about the error of its system times the gap before: this share of the one aimed at is enough.
_ENOUGH = 0.1
# Below this share of the gap on the support, groups outside it are what is missing.
_OUTSIDE = 0.1


class Quadratic(ABC):
    """The smooth part 1/2 ||A W - Y||^2 at a point W that moves; groups of ``size`` consecutive rows of W.

    Attributes
    ----------
    weights : ndarray, shape (groups * size, outputs)
        The point W.
    squared_norm : float
        ||Y||^2.
    spectra : (ndarray, ndarray)
        Eigenvalues (groups, size) and eigenvectors (groups, size, size) of each A_g^T A_g.
    """

    weights: Array
    squared_norm: float
    size: int
    n_groups: int
    spectra: tuple[Array, Array]

    @abstractmethod
    def move_to(self, weights: Array) -> None:
        """Set the point."""

    @abstractmethod
    def change(self, rows: slice, delta: Array) -> None:
        """Add ``delta`` to one group."""

    @abstractmethod
    def pull(self, rows: slice) -> Array:
        """Return A_g^T (Y - A W) of one group, shape (size, outputs)."""

    @abstractmethod
    def pulls(self) -> Array:
        """Return A^T (Y - A W), shape of the weights."""

    @abstractmethod
    def residual(self, pulls: Array) -> float:
        """Return ||Y - A W||^2."""

    @abstractmethod
    def state(self) -> Any:
        """Return what ``restore`` needs to come back to this point."""

    @abstractmethod
    def restore(self, state: Any) -> None:
        """Come back to a point."""

    @abstractmethod
    def direction(
        self, support: Array, norms: Array, gradient: Array, reg: float, damping: float, enough: float
    ) -> Array | None:
        """Return minus the inverse Hessian times the gradient, restricted to groups; None if it is singular.

        The Hessian of the objective on the support is A_s^T A_s plus reg / ||W_g|| (I - u_g u_g^T) a group,
        u_g = W_g / ||W_g||.

        Parameters
        ----------
        support : ndarray of int
            Groups.
        norms : ndarray, shape (len(support),)
            ||W_g||, all positive.
        gradient : ndarray, shape (len(support) * size, outputs)
        reg : float
        damping : float
            Added to the diagonal, relative to the mean of A^T A's.
        enough : float
            Relative error of the system, from which a smaller one is of no use.
        """

    def rows(self, groups: Array) -> Array:
        """Return the rows of groups."""
        result: Array = (groups[:, None] * self.size + np.arange(self.size)).ravel()
        return result

    def norms(self, values: Array) -> Array:
        """Return the length of each group."""
        result: Array = np.linalg.norm(values.reshape(self.n_groups, -1), axis=1)
        return result


class GramQuadratic(Quadratic):
    """The quadratic from its Gram matrix; Newton systems are solved directly.

    Parameters
    ----------
    gram : ndarray, shape (q, q)
        A^T A.
    linear : ndarray, shape (q, outputs)
        A^T Y.
    squared_norm : float
    size : int
    spectra : (ndarray, ndarray), optional
        Computed if they are not given.
    """

    def __init__(
        self, gram: Array, linear: Array, squared_norm: float, size: int, spectra: tuple[Array, Array] | None = None
    ) -> None:
        self.gram, self.linear = gram, linear
        self.squared_norm, self.size = squared_norm, size
        self.n_groups = len(gram) // size
        if spectra is None:
            index = np.arange(self.n_groups)
            blocks = gram.reshape(self.n_groups, size, self.n_groups, size)
            spectra = np.linalg.eigh(blocks[index, :, index, :])
        self.spectra = spectra
        self.move_to(np.zeros_like(linear))

    def move_to(self, weights: Array) -> None:
        self.weights = weights.copy()
        moved = np.flatnonzero(self.norms(weights) > 0)
        rows = self.rows(moved)
        self.product = self.gram[:, rows] @ weights[rows] if 2 * len(moved) < self.n_groups else self.gram @ weights

    def change(self, rows: slice, delta: Array) -> None:
        self.weights[rows] += delta
        # Rows of a symmetric matrix lie together, its columns don't.
        self.product += self.gram[rows].T @ delta

    def pull(self, rows: slice) -> Array:
        pull: Array = self.linear[rows] - self.product[rows]
        return pull

    def pulls(self) -> Array:
        pulls: Array = self.linear - self.product
        return pulls

    def residual(self, pulls: Array) -> float:
        return max(self.squared_norm - float(np.vdot(self.weights, self.linear + pulls)), 0.0)

    def state(self) -> tuple[Array, Array]:
        return self.weights, self.product

    def restore(self, state: tuple[Array, Array]) -> None:
        self.weights, self.product = state

    def direction(
        self, support: Array, norms: Array, gradient: Array, reg: float, damping: float, enough: float
    ) -> Array | None:
        rows = self.rows(support)
        matrix = self.gram[np.ix_(rows, rows)]
        diagonal = np.einsum("ii->i", matrix)
        diagonal += damping * float(np.trace(self.gram)) / len(self.gram)
        units = self.weights[rows] / np.repeat(norms, self.size)[:, None]
        try:
            if units.shape[1] > 1:
                return self._several_outputs(matrix, support, norms, units, gradient, reg)
            count, size = len(support), self.size
            if size > 1:
                index, shaped = np.arange(count), units.reshape(count, size)
                curvature = np.eye(size) - shaped[:, :, None] * shaped[:, None, :]
                blocks = matrix.reshape(count, size, count, size)
                blocks[index, :, index, :] += (reg / norms)[:, None, None] * curvature
            return self._solve(matrix, -gradient)
        except linalg.LinAlgError:
            return None

    @staticmethod
    def _solve(matrix: Array, right: Array) -> Array:
        factor, info = linalg.lapack.dpotrf(matrix.T, lower=1, overwrite_a=1, clean=0)
        if info:
            raise linalg.LinAlgError("the Newton system is not positive definite")
        solution: Array = linalg.lapack.dpotrs(factor, right, lower=1)[0]
        return solution

    def _several_outputs(
        self, matrix: Array, support: Array, norms: Array, units: Array, gradient: Array, reg: float
    ) -> Array:
        """Solve with M = G + reg diag(1 / ||W_g||), which all outputs share, less one rank-one term a group.

        Woodbury's identity leaves a system of the number of groups.
        """
        count, size = len(support), self.size
        np.einsum("ii->i", matrix)[:] += np.repeat(reg / norms, size)
        inverse = self._solve(matrix, np.eye(len(matrix)))
        step = inverse @ -gradient
        coupling = (inverse * (units @ units.T)).reshape(count, size, count, size).sum(axis=(1, 3))
        small = np.diag(norms / reg) - coupling
        small[np.diag_indices(count)] += 1e-12 * norms / reg
        radial = (units * step).reshape(count, -1).sum(axis=1)
        along = linalg.cho_solve(linalg.cho_factor(small), radial)
        result: Array = step + inverse @ (units * np.repeat(along, size)[:, None])
        return result


def _block_minimum(values: Array, vectors: Array, pull: Array, reg: float) -> Array:
    """Return argmin over one group: its norm t solves sum_i ||q_i||^2 / (lambda_i t + reg)^2 = 1."""
    rotated = vectors.T @ pull
    squares = (rotated * rotated).sum(axis=1)
    values = np.maximum(values, 0.0)
    norm = (np.sqrt(squares.sum()) - reg) / max(values[-1], 1e-300)
    for _ in range(60):
        shifted = values * norm + reg
        shares = squares / (shifted * shifted)
        excess = shares.sum()
        # Newton on excess^(-1/2) = 1, which is nearly linear in the norm, converges from the left.
        slope = (shares * values / shifted).sum() / excess**1.5
        step = (1 - excess**-0.5) / max(slope, 1e-300)
        norm += step
        if abs(step) <= 1e-13 * max(norm, 1e-300):
            break
    result: Array = vectors @ (rotated * (norm / (values * norm + reg))[:, None])
    return result


class Descent:
    """The objective 1/2 ||A W - Y||^2 + reg sum_g ||W_g||_F, its gap, and the two kinds of step."""

    def __init__(self, quadratic: Quadratic, reg: float) -> None:
        self.quadratic, self.reg = quadratic, reg
        self.refresh()

    def refresh(self) -> None:
        """Recompute objective and gap at the point where the quadratic is."""
        quadratic = self.quadratic
        self.pulls = quadratic.pulls()
        self.norms = quadratic.norms(quadratic.weights)
        residual = quadratic.residual(self.pulls)
        penalty = self.reg * float(self.norms.sum())
        self.objective = 0.5 * residual + penalty
        lengths = quadratic.norms(self.pulls)
        fitted = float(np.vdot(quadratic.weights, self.pulls))

        def gap(peak: float) -> float:
            """Return objective minus the dual value at the best multiple of the residual, its longest pull given."""
            scale = max(0.0, min((residual + fitted) / max(residual, 1e-300), self.reg / max(peak, 1e-300)))
            return 0.5 * residual * (1 - scale) ** 2 + penalty - scale * fitted

        self.gap = gap(float(lengths.max(initial=0.0)))
        # What is left to gain without new groups, as if the others kept to their constraint.
        self.support_gap = gap(float(lengths[self.norms > 0].max(initial=0.0)))

    def sweep(self) -> None:
        """Minimise exactly over each group in turn."""
        quadratic, size = self.quadratic, self.quadratic.size
        values, vectors = quadratic.spectra
        for group in range(quadratic.n_groups):
            rows = slice(group * size, (group + 1) * size)
            old = quadratic.weights[rows]
            turn = vectors[group]
            own = turn @ (values[group][:, None] * (turn.T @ old)) if old.any() else 0.0
            pull = quadratic.pull(rows) + own
            if np.linalg.norm(pull) > self.reg:
                quadratic.change(rows, _block_minimum(values[group], turn, pull, self.reg) - old)
            elif old.any():
                quadratic.change(rows, -old)

    def newton_step(self, damping: float, enough: float = 0.0) -> bool:
        """Take a damped Newton step on the support, as exact as is ``enough``; return whether one was found."""
        quadratic = self.quadratic
        support = np.flatnonzero(self.norms > 0)
        if not len(support):
            return False
        rows = quadratic.rows(support)
        weights = quadratic.weights
        units = weights[rows] / np.repeat(self.norms[support], quadratic.size)[:, None]
        gradient = self.reg * units - self.pulls[rows]
        step = quadratic.direction(support, self.norms[support], gradient, self.reg, damping, enough)
        if step is None or not np.isfinite(step).all():
            return False
        state, objective, gap = quadratic.state(), self.objective, self.gap
        rounding = 1e-15 * max(abs(objective), 0.5 * quadratic.squared_norm)
        for length in (1.0, 0.5, 0.2, self._first_turn(weights[rows], step)):
            trial = weights.copy()
            trial[rows] += length * step
            # A group that would turn round is set to zero.
            turned = (trial * weights).reshape(quadratic.n_groups, -1).sum(axis=1) <= 0
            trial.reshape(quadratic.n_groups, -1)[turned] = 0.0
            quadratic.move_to(trial)
            self.refresh()
            drop = objective - self.objective
            # Near the optimum the objective no longer tells two points apart, but the gap still does.
            if drop > rounding or (drop >= -rounding and self.gap < gap):
                return True
        quadratic.restore(state)
        self.refresh()
        return False

    def _first_turn(self, weights: Array, step: Array) -> float:
        """Return the length of a step at which the first group that it turns round reaches zero.

        Nearly equal features leave one of their groups at the optimum, and the way there is long and nearly flat:
        a longer step would end them all.
        """
        shape = -1, self.quadratic.size * weights.shape[1]
        along = (weights * step).reshape(shape).sum(axis=1)
        lengths = -np.square(weights).reshape(shape).sum(axis=1)[along < 0] / along[along < 0]
        # A little beyond, so that rounding can't leave it standing.
        return float(min(lengths.min(initial=1.0), 1.0)) * (1 + 1e-12)


def group_lasso(quadratic: Quadratic, reg: float, *, tol: float, max_rounds: int = 100) -> Array:
    """Minimise 1/2 ||A W - Y||^2 + reg * sum_g ||W_g||_F over W, from the point where the quadratic is.

    Parameters
    ----------
    quadratic : Quadratic
        Moves to the minimum.
    reg : float
        > 0.
    tol : float
        Absolute duality gap to stop at.
    max_rounds : int
        A round is a sweep of exact block updates and up to eight Newton steps.

    Returns
    -------
    ndarray, shape (q, outputs)

    Examples
    --------
    >>> quadratic = GramQuadratic(np.eye(2), np.array([[3.0], [0.5]]), squared_norm=9.25, size=1)
    >>> group_lasso(quadratic, reg=1.0, tol=1e-9).ravel().tolist()
    [2.0, 0.0]
    """
    descent = Descent(quadratic, reg)
    damping = 1e-12
    for round_ in range(max_rounds):
        previous = descent.objective
        if descent.gap <= tol:
            break
        # Where the support is there already, Newton's method goes on by itself.
        if round_ or descent.support_gap <= _OUTSIDE * descent.gap:
            descent.sweep()
            # The sweep updates products one group at a time: start afresh, so that rounding doesn't add up.
            quadratic.move_to(quadratic.weights)
            descent.refresh()
        for _ in range(8):
            if descent.gap <= tol:
                return quadratic.weights
            if descent.support_gap <= _OUTSIDE * descent.gap:
                break  # groups outside the support are what is missing: the sweep lets them in
            moved = descent.newton_step(damping, _ENOUGH * tol / descent.gap)
            # Nearly equal features make the Hessian nearly singular: damp until a step succeeds.
            damping = max(damping / 30, 1e-13) if moved else damping * 100
            if damping > 1.0:
                damping = 1e-6
                break
        if previous - descent.objective <= 1e-15 * max(abs(descent.objective), 0.5 * quadratic.squared_norm):
            break  # rounding has the last word; the caller judges the gap over all groups
    return quadratic.weights
