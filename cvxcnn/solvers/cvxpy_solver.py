"""The programs as cvxpy problems, for SCS, Clarabel and MOSEK: the reference that our own solvers answer to."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SolverError, SolverUnavailableError
from ..program.program import Program
from ..program.units import power_of_two
from .base import Outcome, Solver, Status
from .needs import Needs

__all__ = ["Clarabel", "CvxpySolver", "Mosek", "Scs"]

# Absolute tolerances are no smaller than this share of a relative one, or rounding would keep solvers from an end.
_LEAST = 1e-5

_STATUSES = {
    "optimal": Status.OPTIMAL,
    "optimal_inaccurate": Status.INACCURATE,
    "user_limit": Status.ITERATION_LIMIT,
}


class CvxpySolver(Solver):
    """One of cvxpy's solvers on the whole program, every gate and every cone at once.

    The squared loss enters through a square root of the Gram matrix, so the size does not grow with the number of
    images; all cones are one vectorised constraint over the distinct patches. With a separable penalty and loss
    each output is a problem of its own.

    Parameters
    ----------
    tol : float
        Handed to the solver as its own tolerance (a hundredth of it), and to the recomputed gap as it is.
    max_iter : int or None
        The solver's own iteration limit.
    """

    needs = Needs(expression=True)
    package: str
    backend: str

    def options(self, least: float) -> dict[str, Any]:
        """Return the keyword arguments of cvxpy's solve for this solver, for an optimum of ``least`` or more."""
        raise SolverUnavailableError(f"{self.name} has no options")

    def run(self, program: Program, start: Tensor | None, report: Callable[[int, float, float], None]) -> Outcome:
        if importlib.util.find_spec(self.package) is None:
            raise SolverUnavailableError(
                f'solver "{self.name}" needs the package {self.package!r}, which is not installed here. '
                f"Install it (pip install {self.package}), or choose another solver."
            )
        design = program.design
        everything = torch.arange(design.n_blocks, device=program.targets.device)
        columns = program.columns(everything).flatten(1).cpu().double().numpy()
        targets = program.centre(program.targets).cpu().double().numpy()
        # Their tolerances are absolute below one, so they see features, and targets of squared loss, in units of one.
        size, unit = power_of_two(float(np.abs(columns).max(initial=0.0))), 1.0
        if program.loss.quadratic:
            unit = power_of_two(float(np.linalg.norm(targets)))
        columns, targets = columns / size, targets / unit
        reg = program.reg / (size * unit)
        # The dual value is concave in multiples of the dual point of zero weights: the optimum is at least this.
        least = program.reg / max(program.reg_max(), program.reg) * program.zero_objective / unit**2
        options = self.options(min(1.0, max(least, _LEAST)))
        if len(columns) > columns.shape[1] and program.loss.quadratic:
            # || A z - y ||^2 = || T z - Q^T y ||^2 + a constant, for A = Q T.
            orthogonal, triangular = np.linalg.qr(columns)
            columns, targets = triangular, orthogonal.T @ targets
        outputs = program.n_outputs
        separable = program.penalty.separable and program.loss.separable
        parts = [[o] for o in range(outputs)] if separable else [list(range(outputs))]
        weights = np.zeros(design.shape(outputs))
        iterations, stopped = 0, Status.OPTIMAL
        for part in parts:
            values, count, status = self._solve_part(program, columns, targets[:, part], reg, options)
            weights[..., part] = values * (unit / size)
            iterations += count
            if status is not Status.OPTIMAL:
                stopped = status
        return Outcome(torch.from_numpy(weights).to(program.targets), iterations, stopped)

    def _solve_part(
        self, program: Program, columns: np.ndarray, targets: np.ndarray, reg: float, options: dict[str, Any]
    ) -> tuple[np.ndarray, int, Status]:
        import cvxpy as cp

        shape = program.design.shape(targets.shape[1])
        blocks, cells, rows, outputs = shape
        flat = cp.Variable((blocks * cells * rows, outputs))
        fit = cp.sum(program.loss.expression(columns @ flat, targets))
        penalty = program.penalty.expression(flat, shape)
        constraints = []
        if program.cones is not None:
            cones = program.cones
            # Column-major: column (b * cells + c) of `matrix` holds the weights of block b, cell c.
            matrix = cp.reshape(flat, (rows, blocks * cells * outputs), order="F")
            signs = np.stack([cones.signs(g) for g in range(len(cones.gates))], axis=1)
            signs = np.tile(np.repeat(np.concatenate([signs, signs], axis=1), cells, axis=1), outputs)
            normals = cones.rows / cones.lengths[:, None]
            constraints.append(cp.multiply(signs, normals @ matrix) >= 0)
        problem = cp.Problem(cp.Minimize(fit + reg * penalty), constraints)
        try:
            with warnings.catch_warnings():
                # The gap that we recompute says how inaccurate, and a log record and the status report it.
                warnings.filterwarnings("ignore", message="Solution may be inaccurate")
                problem.solve(solver=self.backend, warm_start=False, **options)
        except cp.SolverError as error:
            raise self._failure(error) from error
        except Exception as error:
            # MOSEK without a licence raises mosek.Error, which is no cvxpy.SolverError.
            if type(error).__module__.partition(".")[0] != self.package:
                raise
            raise self._failure(error) from error
        if flat.value is None or problem.status not in _STATUSES:
            raise SolverError(
                f"{self.name} ended with status {problem.status!r} and no point. "
                "The program always has a solution: rescale the images, raise reg, or choose another solver."
            )
        stats = problem.solver_stats
        values = np.asarray(flat.value).reshape(blocks, cells, rows, outputs)
        return values, int(getattr(stats, "num_iters", 0) or 0), _STATUSES[problem.status]

    def _failure(self, error: Exception) -> SolverError:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return SolverError(f"{self.name} failed: {text} Choose another solver, or a larger tol.")


class Clarabel(CvxpySolver):
    """Clarabel, an interior-point method: accurate, for small programs."""

    name = "cvxpy:CLARABEL"
    package = "clarabel"
    backend = "CLARABEL"

    def options(self, least: float) -> dict[str, Any]:
        accuracy = min(1e-8, 0.01 * self.tol)
        return {
            "tol_gap_abs": accuracy * least,
            "tol_gap_rel": accuracy,
            "tol_feas": accuracy,
            "max_iter": self.max_iter or 200,
        }


class Scs(CvxpySolver):
    """SCS, a first-order splitting method: many cheap iterations, low accuracy."""

    name = "cvxpy:SCS"
    package = "scs"
    backend = "SCS"

    def options(self, least: float) -> dict[str, Any]:
        accuracy = max(1e-9, 0.01 * self.tol)
        return {"eps_abs": accuracy * least, "eps_rel": accuracy, "max_iters": self.max_iter or 50_000}


class Mosek(CvxpySolver):
    """MOSEK, a commercial interior-point method; it needs a licence."""

    name = "cvxpy:MOSEK"
    package = "mosek"
    backend = "MOSEK"

    def options(self, least: float) -> dict[str, Any]:
        accuracy = min(1e-8, 0.01 * self.tol)
        names = ("REL_GAP", "PFEAS", "DFEAS")
        parameters: dict[str, Any] = {f"MSK_DPAR_INTPNT_CO_TOL_{name}": accuracy for name in names}
        if self.max_iter is not None:
            parameters["MSK_IPAR_INTPNT_MAX_ITERATIONS"] = self.max_iter
        return {"mosek_params": parameters}

    def _failure(self, error: Exception) -> SolverError:
        if "licen" in str(error).lower():
            return SolverUnavailableError(
                'solver "cvxpy:MOSEK" found no valid licence. Put mosek.lic in ~/mosek or set MOSEKLM_LICENSE_FILE, '
                'or choose another solver, such as "auto" or "cvxpy:CLARABEL".'
            )
        return super()._failure(error)
