"""The cones of the ReLU program: {u : (2 D_i - I) R u >= 0}, projections onto them, and decompositions.

Every cone has as many rows as there are patches, but a projection touches only a few of them: rows are
added when they are violated. Identical patches give identical rows, so distinct patches are enough. With max pooling
a pattern also says which patch of a cell wins, and its cone that it is no lower than the others.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from ..errors import InputError
from ..patches.activity import active, on_hyperplane, winning
from ..patches.patches import Patches
from .units import power_of_two

__all__ = ["NEARLY", "Cones", "WinnerCones", "cones_of"]

Array = np.ndarray

# What is kept of patterns that were computed.
_SIGN_BYTES = 1 << 27
NEARLY = 1 - 1e-3
"""Of reg: longer projections are found exactly, for near an optimum the longest decides the multiple of nu."""
# What is taken away of a vector is remembered if it is more than this share of it, and so known to 14 digits.
_LEAST_AWAY = 1e-2
# Vectors of a gate from which it pays to shorten them together, and the rows that are visited for each.
_SEVERAL, _DESCENTS = 8, 40


def _without(values: Array, away: Array) -> Array:
    """Return the lengths along axis 2 of values without their part in the direction of ``away``, if it is positive."""
    squares, taken = np.square(values).sum(axis=2), np.square(away).sum(axis=2)
    along = np.maximum((values * away).sum(axis=2), 0.0)
    less = np.divide(along**2, taken, out=np.zeros_like(taken), where=taken > 0)
    lengths: Array = np.sqrt(np.maximum(squares - less, 0.0))
    return lengths


def _noted(vectors: Array, away: Array) -> Array:
    """Return differences (..., d) from vectors, but zero where they are little more than rounding."""
    noted: Array = away * (np.linalg.norm(away, axis=-1) > _LEAST_AWAY * np.linalg.norm(vectors, axis=-1))[..., None]
    return noted


def _among(indices: Array, others: Array) -> Array:
    """Return which indices are among some others; both are few."""
    found: Array = (indices[:, None] == others).any(axis=1)
    return found


class Cones:
    """The pattern cones of a set of gates.

    Parameters
    ----------
    patches : Patches
        The training patches.
    gates : Tensor, shape (P, d)
        One cone for each gate.

    Attributes
    ----------
    rows : ndarray, shape (N, d)
        The distinct non-zero patches: N <= n * K.
    """

    def __init__(self, patches: Patches, gates: torch.Tensor) -> None:
        flat = patches.unfold().flatten(0, 1)
        distinct = torch.unique(flat, dim=0)
        self.rows: Array = distinct[distinct.any(dim=1)].cpu().double().numpy()
        self.lengths: Array = np.linalg.norm(self.rows, axis=1)
        self.gates: Array = gates.cpu().double().numpy()
        # A few recent ones, so that memory doesn't grow with patches times gates.
        keep = max(8, _SIGN_BYTES // max(self.lengths.nbytes, 1))
        self._recent_signs = lru_cache(maxsize=keep)(self._signs)
        # Rows of each cone that a projection has touched: faces of it, and few beside all patches; and their normals.
        self._faces: dict[int, tuple[Array, Array]] = {}
        self._away: Array | None = None

    def _signs(self, gate: int) -> Array:
        pattern = active(torch.from_numpy(self.rows), torch.from_numpy(self.gates[gate : gate + 1]))
        signs: Array = np.where(pattern[:, 0].numpy(), 1.0, -1.0)
        return signs

    def _on_hyperplane(self, vector: Array) -> Array:
        on: Array = on_hyperplane(torch.from_numpy(self.rows), torch.from_numpy(vector[None]))[:, 0].numpy()
        return on

    def signs(self, gate: int) -> Array:
        """Return the diagonal of 2 D_i - I on ``rows``, shape (N,)."""
        signs: Array = self._recent_signs(gate)
        return signs

    def slack(self, gate: int, vector: Array) -> Array:
        """Return s_k x_k . u for the rows k of a cone, shape (N,): what must not be negative."""
        slack: Array = self.signs(gate) * (self.rows @ vector)
        return slack

    def normals(self, gate: int, chosen: Any = slice(None)) -> Array:
        """Return the rows s_k x_k of a cone, or those with the indices ``chosen``, shape (N, d)."""
        normals: Array = self.signs(gate)[chosen, None] * self.rows[chosen]
        return normals

    def row_lengths(self, gate: int) -> Array:
        """Return the lengths of the rows of a cone, shape (N,)."""
        return self.lengths

    def violation(self, gate: int, vectors: Array) -> float:
        """Return max(0, -min_k s_k x_k . u) over rows k and columns u of ``vectors`` (d, m), as is."""
        return max(0.0, *(-float(self.slack(gate, vector).min(initial=0.0)) for vector in vectors.T))

    def project(self, gate: int, vector: Array, ceiling: float = 0.0, tol: float = 1e-13) -> tuple[Array, Array]:
        """Return the Euclidean projection of a vector onto a cone, and the indices of the rows it touches.

        Parameters
        ----------
        gate : int
            Which cone.
        vector : ndarray, shape (d,)
        ceiling : float
            Stop as soon as the projection is known to be shorter than this; what is returned is then the
            projection onto a larger cone, which is at least as long as the true one.
        tol : float
            Rows may be violated by this much, relative to ||x_k|| ||vector||.

        Notes
        -----
        By Moreau, p = a + B^T mu with mu >= 0 the non-negative least squares solution of B^T mu ~ -a; any
        mu >= 0 gives a p at least as long as the projection, so a bound built on ||p|| stays valid.
        """
        point, touched = vector, np.zeros(0, dtype=int)
        scale = float(np.linalg.norm(vector))
        if scale == 0.0:
            return point, touched
        dim, unit = len(vector), power_of_two(scale)
        # Rows that were touched before come first: many projections are known to be short before all rows are seen.
        known, normals = self._known(gate)
        every = False
        for _ in range(200):
            if np.linalg.norm(point) < ceiling:
                break
            if every:
                relative = self.slack(gate, point) / self.row_lengths(gate)
                relative[touched] = 0.0
            else:
                relative = normals @ point
            violated = np.flatnonzero(relative < -tol * scale)
            if not every:
                violated = violated[~_among(known[violated], touched)]
            if not len(violated):
                if every:
                    break
                every = True
                continue
            worst = violated[np.argsort(relative[violated])[: 2 * dim]]
            working = np.concatenate([touched, worst if every else known[worst]])
            rows = self.normals(gate, working)
            # Its tolerance is absolute in the vector.
            multipliers, _ = nnls(rows.T, -vector / unit, maxiter=50 * (dim + len(working)))
            point = vector + unit * (rows.T @ multipliers)
            # Rows that the new point doesn't touch can come back when they are violated again.
            touched = working[multipliers > 0]
        if every:
            self._remember(gate, touched)
        return point, touched

    def _known(self, gate: int) -> tuple[Array, Array]:
        none = np.zeros(0, dtype=int), np.zeros((0, self.rows.shape[1]))
        return self._faces.get(gate, none)

    def _remember(self, gate: int, touched: Array) -> None:
        known, normals = self._known(gate)
        fresh = touched[~_among(touched, known)]
        if len(fresh):
            added = self.normals(gate, fresh) / self.row_lengths(gate)[fresh, None]
            self._faces[gate] = np.concatenate([known, fresh]), np.vstack([normals, added])

    def lengths_up_to(self, values: Array, floor: float, chosen: Any = True) -> Array:
        """Return no less than the lengths of the projections of columns of A^T nu, shape (blocks, cells, outputs).

        Without finding them: from what was taken away of each column when it was last projected, which is minus a sum
        of normals with multipliers that aren't negative. So is any multiple of it, and a vector without the best of
        them is no shorter than its projection. Where a gate has several columns that may be longer than ``floor``,
        better multipliers are looked for.

        Parameters
        ----------
        values : ndarray, shape (blocks, cells, d, outputs)
            Block i is of gate i mod P.
        floor : float
        chosen : ndarray of bool, broadcast with (blocks, cells, outputs)
            Which are of interest.
        """
        if self._away is None or self._away.shape != values.shape:
            self._away = np.zeros_like(values)
        lengths = _without(values, self._away)
        blocks, cells, outputs = (chosen & (lengths >= floor)).nonzero()
        order = np.argsort(blocks % len(self.gates), kind="stable")
        blocks, cells, outputs = blocks[order], cells[order], outputs[order]
        gates, starts = np.unique(blocks % len(self.gates), return_index=True)
        edges = [*starts.tolist(), len(blocks)]
        for gate, start, stop in zip(gates.tolist(), edges[:-1], edges[1:], strict=True):
            if stop - start >= _SEVERAL:
                places = blocks[start:stop], cells[start:stop], slice(None), outputs[start:stop]
                vectors = values[places]
                away = _noted(vectors, vectors - self._descended(gate, vectors, floor))
                self._away[places] = away
                # Axes as of a block of cells.
                lengths[places[0], places[1], places[3]] = _without(vectors.T[None, None], away.T[None, None])[0, 0]
        return lengths

    def project_column(self, values: Array, place: tuple[int, int, int], ceiling: float) -> tuple[Array, Array]:
        """Return ``project`` of the column of A^T nu at (block, cell, output), and remember what it takes away."""
        block, cell, output = place
        vector = values[block, cell, :, output]
        point, touched = self.project(block % len(self.gates), vector, ceiling=ceiling)
        if self._away is not None and self._away.shape == values.shape:
            self._away[block, cell, :, output] = _noted(vector, vector - point)
        return point, touched

    def _descended(self, gate: int, vectors: Array, ceiling: float) -> Array:
        """Return vectors (m, d) after coordinate descent on the multipliers of rows that were touched before."""
        normals = self._known(gate)[1]
        if not len(normals):
            return vectors
        gram, slack = normals @ normals.T, normals @ vectors.T
        multipliers, columns = np.zeros_like(slack), np.arange(len(vectors))
        squares = np.square(vectors).sum(axis=1)
        for _ in range(_DESCENTS):
            change = np.maximum(-slack, -multipliers)
            rows = np.abs(change).argmax(axis=0)
            moved = change[rows, columns]
            squares += moved * (2 * slack[rows, columns] + moved)
            multipliers[rows, columns] += moved
            slack += gram[:, rows] * moved
            if not (squares >= ceiling**2).any():
                break
        points: Array = vectors + multipliers.T @ normals
        return points

    def decompose(self, gate: int, vector: Array) -> tuple[Array, Array]:
        """Return a and b, both in the cone of a gate, with a - b = vector.

        The shift b = t g along the gate is feasible whenever the gate is strictly inside its cone; it is
        then shortened to the least-norm b with b and vector + b in the cone.

        Raises
        ------
        InputError
            If a patch lies on the gate's hyperplane and must be moved off it.

        Notes
        -----
        Source: Mishkin, Sahiner & Pilanci 2022, cone decomposition.
        """
        # In the units of vector and patches, because least squares have absolute tolerances.
        size, length = power_of_two(float(np.linalg.norm(vector))), power_of_two(float(self.lengths.max(initial=0.0)))
        vector = vector / size
        normals = self.signs(gate)[:, None] * (self.rows / length)
        needed = np.where(self._on_hyperplane(vector), 0.0, np.maximum(0.0, -(normals @ vector)))
        if not needed.any():
            return size * vector, np.zeros_like(vector)
        margin = normals @ self.gates[gate]
        on = self._on_hyperplane(self.gates[gate])
        if on[needed > 0].any():
            raise InputError(
                f"gate {gate} lies on the hyperplane of a patch, so its cone may have no interior to decompose in. "
                "Use gates in general position (a small random shift of the gate)."
            )
        inside = ~on
        shift = self._least_norm_shift(normals, needed, self.lengths / length)
        missing = needed - normals @ shift
        along = float(np.max(missing[inside] / margin[inside], initial=0.0))
        shift = shift + along * self.gates[gate]
        return size * (vector + shift), size * shift

    @staticmethod
    def _least_norm_shift(normals: Array, needed: Array, lengths: Array) -> Array:
        """Return nearly the shortest b with normals @ b >= needed, by row generation on its dual."""
        dim = normals.shape[1]
        working = np.flatnonzero(needed >= 0.5 * needed.max())[: 4 * dim]
        shift = np.zeros(dim)
        for _ in range(100):
            # min 1/2 ||b||^2, N b >= e  is the least-distance problem: Lawson & Hanson 1974, chapter 23.
            lifted = np.vstack([normals[working].T, needed[working][None]])
            target = np.zeros(dim + 1)
            target[-1] = 1.0
            multipliers, _ = nnls(lifted, target, maxiter=100 * (dim + len(working)))
            residual = lifted @ multipliers - target
            if abs(residual[-1]) < 1e-14:
                break
            shift = -residual[:dim] / residual[-1]
            missing = (needed - normals @ shift) / lengths
            missing[working] = 0.0
            worst = np.argsort(-missing)[: 2 * dim]
            worst = worst[missing[worst] > 1e-12 * max(1.0, float(np.linalg.norm(shift)))]
            if not len(worst):
                break
            working = np.union1d(working[multipliers > 0], worst)
        return shift


class WinnerCones(Cones):
    """The pattern cones of gates with max pooling.

    In a cell where the winner x_w of a gate is on, its neurons have x_w . u >= 0 and x_w . u >= x_l . u for the other
    patches; elsewhere x_l . u <= 0 for all. Their response there is x_w . u, or zero.

    Parameters are those of ``Cones``; ``rows`` are the distinct patches, not those of the cones.
    """

    def __init__(self, patches: Patches, gates: torch.Tensor) -> None:
        super().__init__(patches, gates)
        self._patches = patches.unfold().double().cpu()
        self._members = [places.cpu() for places in patches.pooler.members()]
        count = self._patches.shape[0] * sum(map(len, self._members))
        keep = max(8, _SIGN_BYTES // max(count * self._patches.shape[2] * self.rows.itemsize, 1))
        self._recent_normals = lru_cache(maxsize=keep)(self._normals)

    def _normals(self, gate: int) -> tuple[Array, Array]:
        """Return the distinct rows of a cone that are not zero, and their lengths."""
        vector = torch.from_numpy(self.gates[gate : gate + 1])
        rows = []
        for places in self._members:
            cell = self._patches[:, places]
            pattern = winning(cell, vector)[:, :, 0]
            # Zero where none is on, so that the others are to be below zero.
            winners = (cell * pattern.unsqueeze(2)).sum(dim=1, keepdim=True)
            rows += [winners.flatten(0, 1), (winners - cell).flatten(0, 1)]
        distinct = torch.unique(torch.cat(rows), dim=0)
        normals: Array = distinct[distinct.any(dim=1)].numpy()
        return normals, np.linalg.norm(normals, axis=1)

    def slack(self, gate: int, vector: Array) -> Array:
        slack: Array = self._recent_normals(gate)[0] @ vector
        return slack

    def normals(self, gate: int, chosen: Any = slice(None)) -> Array:
        normals: Array = self._recent_normals(gate)[0][chosen]
        return normals

    def row_lengths(self, gate: int) -> Array:
        lengths: Array = self._recent_normals(gate)[1]
        return lengths


def cones_of(patches: Patches, gates: torch.Tensor) -> Cones:
    """Return the cones of gates (P, d): of their patterns, and of their winners with max pooling.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> images = torch.tensor([[[[3.0, 1.0]]]], dtype=torch.float64)
    >>> patches = Patches(images, PatchGeometry(kernel_size=1, pooling="max"))
    >>> cones_of(patches, torch.tensor([[1.0]])).normals(0).tolist()  # 3 u >= 0, and 3 u >= 1 u
    [[2.0], [3.0]]
    """
    return Cones(patches, gates) if patches.pooler.linear else WinnerCones(patches, gates)
