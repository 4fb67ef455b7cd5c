"""Group lasso in Gram form by block coordinate descent and Newton steps on the support: small, exact, fast."""

from __future__ import annotations

import numpy as np
from scipy import linalg

__all__ = ["group_lasso"]

Array = np.ndarray


class _Problem:
    """minimise 1/2 <W, G W> - <C, W> + reg * sum_g ||W_g||_F, groups of ``size`` consecutive rows."""

    def __init__(self, gram: Array, linear: Array, squared_norm: float, size: int, reg: float) -> None:
        self.gram, self.linear, self.squared_norm = gram, linear, squared_norm
        self.size, self.reg = size, reg
        self.n_groups = len(gram) // size
        self.outputs = linear.shape[1]
        blocks = gram.reshape(self.n_groups, size, self.n_groups, size)
        index = np.arange(self.n_groups)
        self.values, self.vectors = np.linalg.eigh(blocks[index, :, index, :])
        self.values = np.maximum(self.values, 0.0)

    def norms(self, weights: Array) -> Array:
        norms: Array = np.linalg.norm(weights.reshape(self.n_groups, -1), axis=1)
        return norms

    def objective(self, weights: Array, product: Array) -> float:
        smooth = np.vdot(weights, 0.5 * product - self.linear)
        return float(smooth + self.reg * self.norms(weights).sum())

    def gap(self, weights: Array, product: Array) -> float:
        """Return objective minus dual value at the best feasible multiple of the residual."""
        peak = float(self.norms(self.linear - product).max())
        square, inner = float(np.vdot(weights, product)), float(np.vdot(weights, self.linear))
        residual, fitted = max(self.squared_norm - 2 * inner + square, 0.0), inner - square
        scale = max(0.0, min((residual + fitted) / max(residual, 1e-300), self.reg / max(peak, 1e-300)))
        penalty = self.reg * float(self.norms(weights).sum())
        return 0.5 * residual * (1 - scale) ** 2 + penalty - scale * fitted

    def block_sweep(self, weights: Array, product: Array) -> None:
        """Minimise exactly over each group in turn, in place."""
        size, reg = self.size, self.reg
        for group in range(self.n_groups):
            rows = slice(group * size, (group + 1) * size)
            old = weights[rows]
            own = self.gram[rows, rows] @ old
            pull = self.linear[rows] - product[rows] + own
            length = np.linalg.norm(pull)
            if length <= reg:
                if not old.any():
                    continue
                new = np.zeros_like(old)
            else:
                new = self._block_minimum(group, pull)
            product += self.gram[:, rows] @ (new - old)
            weights[rows] = new

    def _block_minimum(self, group: int, pull: Array) -> Array:
        """Return argmin over one group: its norm t solves sum_i ||q_i||^2 / (lambda_i t + reg)^2 = 1."""
        values, vectors = self.values[group], self.vectors[group]
        rotated = vectors.T @ pull
        squares = (rotated**2).sum(axis=1)
        low = (np.sqrt(squares.sum()) - self.reg) / max(values[-1], 1e-300)
        norm = low
        for _ in range(60):
            shifted = values * norm + self.reg
            excess = (squares / shifted**2).sum()
            # Newton on excess^(-1/2) = 1, which is nearly linear in the norm, converges from the left.
            slope = (squares * values / shifted**3).sum() / excess**1.5
            step = (1 - excess**-0.5) / max(slope, 1e-300)
            norm += step
            if abs(step) <= 1e-15 * max(norm, 1e-300):
                break
        result: Array = vectors @ (rotated * (norm / (values * norm + self.reg))[:, None])
        return result

    def newton_step(self, weights: Array, product: Array, damping: float) -> Array | None:
        """Return the damped Newton direction on the support, zero elsewhere; None if the system is not positive.

        The Hessian is I (x) M minus one rank-one term a group, M = G + reg diag(1 / ||W_g||): M is shared
        by all outputs, and Woodbury's identity leaves a system of the number of groups.
        """
        norms = self.norms(weights)
        support = np.flatnonzero(norms > 0)
        if not len(support):
            return None
        rows = (support[:, None] * self.size + np.arange(self.size)).ravel()
        lengths = np.repeat(norms[support], self.size)
        units = weights[rows] / lengths[:, None]
        gradient = product[rows] - self.linear[rows] + self.reg * units
        matrix = self.gram[np.ix_(rows, rows)].copy()
        diagonal = np.einsum("ii->i", matrix)
        diagonal += damping * float(np.trace(self.gram)) / len(self.gram)
        direction = np.zeros_like(weights)
        try:
            if self.size * self.outputs == 1:
                direction[rows] = linalg.cho_solve(linalg.cho_factor(matrix), -gradient)
                return direction
            diagonal += self.reg / lengths
            factor = linalg.cho_factor(matrix, overwrite_a=True)
            step = linalg.cho_solve(factor, -gradient)
            inverse = linalg.cho_solve(factor, np.eye(len(rows)))
            count = len(support)
            coupling = (inverse * (units @ units.T)).reshape(count, self.size, count, self.size).sum(axis=(1, 3))
            small = np.diag(norms[support] / self.reg) - coupling
            small[np.diag_indices(count)] += 1e-12 * norms[support] / self.reg
            radial = (units * step).reshape(count, -1).sum(axis=1)
            weightsum = linalg.cho_solve(linalg.cho_factor(small), radial)
            direction[rows] = step + inverse @ (units * np.repeat(weightsum, self.size)[:, None])
        except linalg.LinAlgError:
            return None
        return direction

    def move(self, weights: Array, product: Array, direction: Array) -> tuple[Array, Array, bool]:
        """Return weights after a line search along a direction; a group that would turn round is set to zero."""
        current, gap = self.objective(weights, product), self.gap(weights, product)
        rounding = 1e-15 * max(abs(current), 0.5 * self.squared_norm)
        for step in (1.0, 0.5, 0.2):
            trial = weights + step * direction
            turned = (trial * weights).reshape(self.n_groups, -1).sum(axis=1) < 0
            trial.reshape(self.n_groups, -1)[turned] = 0.0
            trial_product = self.gram @ trial
            drop = current - self.objective(trial, trial_product)
            # Near the optimum the objective no longer tells two points apart, but the gap still does.
            if drop > rounding or (drop >= -rounding and self.gap(trial, trial_product) < gap):
                return trial, trial_product, True
        return weights, product, False


def group_lasso(
    gram: Array,
    linear: Array,
    squared_norm: float,
    size: int,
    reg: float,
    start: Array,
    *,
    tol: float,
    max_rounds: int = 100,
) -> Array:
    """Minimise 1/2 <W, G W> - <C, W> + reg * sum_g ||W_g||_F over W.

    Parameters
    ----------
    gram : ndarray, shape (q, q)
    linear : ndarray, shape (q, outputs)
    squared_norm : float
        ||Y||^2, for the duality gap.
    size : int
        Rows in a group; q is a multiple of it.
    reg : float
    start : ndarray, shape (q, outputs)
    tol : float
        Absolute duality gap to stop at.
    max_rounds : int
        A round is a sweep of exact block updates and up to eight Newton steps.

    Returns
    -------
    ndarray, shape (q, outputs)

    Examples
    --------
    >>> group_lasso(np.eye(2), np.array([[3.0], [0.5]]), 9.25, 1, 1.0, np.zeros((2, 1)), tol=1e-9).ravel().tolist()
    [2.0, 0.0]
    """
    problem = _Problem(gram, linear, squared_norm, size, reg)
    weights = start.copy()
    product = gram @ weights
    value, damping = problem.objective(weights, product), 1e-12
    for _ in range(max_rounds):
        problem.block_sweep(weights, product)
        product = gram @ weights
        for _ in range(8):
            if problem.gap(weights, product) <= tol:
                return weights
            direction = problem.newton_step(weights, product, damping)
            moved = False
            if direction is not None:
                weights, product, moved = problem.move(weights, product, direction)
            # Nearly equal features make the Hessian nearly singular: damp until a step succeeds.
            damping = max(damping / 30, 1e-13) if moved else damping * 100
            if damping > 1.0:
                damping = 1e-6
                break
        previous, value = value, problem.objective(weights, product)
        if previous - value <= 1e-15 * max(abs(value), 0.5 * squared_norm):
            break  # rounding has the last word; the caller judges the gap over all groups
    return weights
