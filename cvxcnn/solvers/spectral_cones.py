"""An interior point for the ReLU program with norms of frequencies: Eq. 2 of circular networks."""

from __future__ import annotations

from collections.abc import Callable

import clarabel
import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ..errors import SolverError
from ..program.program import Program
from .base import Outcome, Solver, Status
from .needs import Needs

__all__ = ["SpectralCones"]

Array = np.ndarray

# Columns below this share of the longest are what an interior point leaves of zeros.
_NEGLIGIBLE = 1e-6
# Clarabel's tolerances: of all columns, and of those that are left. It ends where rounding has the last word.
_ACCURACY, _LAST = 1e-10, 1e-13


class SpectralCones(Solver):
    """Clarabel on every gate and every cone at once, and then once more on the columns that it leaves.

        min 1/2 ||r||^2 + reg sum_bk t_bk   subject to   r + A v = y,  ||v_bk|| <= t_bk,  (2 D_b - I) X v_b >= 0

    for each output. The first answer has a little of every column; the second is as sparse as the solution, and closer
    to it by some digits.

    Parameters
    ----------
    tol : float
        Relative duality gap, which is recomputed from the answer.
    max_iter : int or None
        Clarabel's iterations; None for 200.

    Notes
    -----
    Memory: n numbers for each row of each column, and as many for the constraints.
    """

    name = "spectral_cones"
    needs = Needs(quadratic=True, cones=True, frequencies=True)

    def run(self, program: Program, start: Tensor | None, report: Callable[[int, float, float], None]) -> Outcome:
        everything = torch.arange(program.design.n_blocks, device=program.targets.device)
        features = program.columns(everything).flatten(1, 2).cpu().double().numpy()
        targets = program.centre(program.targets).cpu().double().numpy()
        weights, iterations, stopped = program.zeros(), 0, Status.OPTIMAL
        columns = weights.view(-1, *weights.shape[2:])  # a column of a block and cell after another
        for output in range(program.n_outputs):
            chosen, accuracy = np.arange(features.shape[1]), _ACCURACY
            for accuracy in (_ACCURACY, _LAST):
                found, count, done = self._solve(program, features, targets[:, output], chosen, accuracy)
                iterations += count
                stopped = stopped if done else Status.ITERATION_LIMIT
                norms = np.linalg.norm(found, axis=1)
                kept = norms > _NEGLIGIBLE * norms.max(initial=0.0)
                chosen, found = chosen[kept], found[kept]
                if not len(chosen):
                    break
            columns[chosen, :, output] = torch.from_numpy(found).to(weights)
        if program.objective(weights) >= program.zero_objective:
            # Where zero is the solution, an interior point has a little of everything.
            weights = program.zeros()
        return Outcome(weights, iterations, stopped)

    def _solve(
        self, program: Program, features: Array, target: Array, chosen: Array, accuracy: float
    ) -> tuple[Array, int, bool]:
        """Return the weights (len(chosen), rows) of some columns, the iterations, and whether they were enough."""
        cones, n_parts, cells = program.cones, program.penalty.n_frequencies, program.design.n_cells
        if cones is None or n_parts is None:  # refused before; this tells the type checker
            raise SolverError("no cones")
        # In units of one, because the tolerances are absolute below one.
        size, unit = float(np.abs(features).max(initial=0.0)) or 1.0, float(np.linalg.norm(target)) or 1.0
        columns = features[:, chosen].reshape(len(target), -1) / size
        n, width = columns.shape
        normals = cones.rows / cones.lengths[:, None]
        gates = chosen // cells % len(cones.gates)
        inside = sparse.block_diag([-cones.signs(int(gate))[:, None] * normals for gate in gates], format="csc")
        norms = len(chosen) * n_parts
        # Variables (v, t, r); each part of v follows its t.
        parts = np.arange(width).reshape(norms, -1)
        order = np.concatenate([width + np.arange(norms)[:, None], parts], axis=1).ravel()
        lengths = sparse.csc_matrix(
            (-np.ones(len(order)), (np.arange(len(order)), order)), shape=(len(order), width + norms + n)
        )
        constraints = sparse.vstack(
            [
                sparse.hstack([sparse.csc_matrix(columns), sparse.csc_matrix((n, norms)), sparse.identity(n)]),
                sparse.hstack([inside, sparse.csc_matrix((inside.shape[0], norms + n))]),
                lengths,
            ],
            format="csc",
        )
        offsets = np.concatenate([target / unit, np.zeros(inside.shape[0] + len(order))])
        linear = np.concatenate([np.zeros(width), np.full(norms, program.reg / (size * unit)), np.zeros(n)])
        quadratic = sparse.diags(np.concatenate([np.zeros(width + norms), np.ones(n)]), format="csc")
        kinds = [
            clarabel.ZeroConeT(n),
            clarabel.NonnegativeConeT(inside.shape[0]),
            *[clarabel.SecondOrderConeT(1 + parts.shape[1])] * norms,
        ]
        settings = clarabel.DefaultSettings()
        settings.verbose = False
        settings.max_iter = self.max_iter or 200
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = accuracy
        answer = clarabel.DefaultSolver(quadratic, linear, constraints, offsets, kinds, settings).solve()
        values = np.asarray(answer.x[:width])
        if not np.isfinite(values).all():
            raise SolverError(f"Clarabel ended with {answer.status} and no point. Rescale images, or change reg.")
        done = answer.status != clarabel.SolverStatus.MaxIterations
        return values.reshape(len(chosen), -1) * (unit / size), int(answer.iterations), done
