"""What the solvers of this benchmark share: the problem, its judge, and the list of accuracies that each is run at."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from benchopt import BaseSolver
from benchopt.stopping_criterion import StoppingCriterion
from torch import Tensor

from cvxcnn.arrangements import distinct
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.program import Program, gated_program, relu_program
from cvxcnn.program.cones import Cones

Array = np.ndarray

# The judge works on this many numbers at a time.
_CHUNK = 1 << 24


@dataclass
class Problem:
    """A program over fixed gates with one output and one pooling cell, as data and as the judge of its solutions.

        relu:   min 1/2 || sum_ik D_i^k X_k (v_i - w_i) - y ||^2 + reg * sum_i (||v_i|| + ||w_i||),
                (2 D_i - I) R v_i >= 0, (2 D_i - I) R w_i >= 0
        gated:  min 1/2 || sum_ik D_i^k X_k z_i - y ||^2 + reg * sum_i ||z_i||

    Weights are float64 arrays: (2, P, d) for "relu", the v_i and the w_i, and (P, d) for "gated".
    """

    images: Tensor
    geometry: PatchGeometry
    gates: Tensor
    targets: Array
    kind: str
    reg: float = 1.0

    def program(self) -> Program:
        """Return the program as cvxcnn has it, built anew."""
        build = {"relu": relu_program, "gated": gated_program}[self.kind]
        return build(Patches(self.images, self.geometry), self.gates, torch.from_numpy(self.targets)[:, None], self.reg)

    @cached_property
    def patches(self) -> Array:
        """All patches, shape (n, K, d)."""
        return np.asarray(Patches(self.images, self.geometry).unfold().numpy())

    @cached_property
    def pool(self) -> Array:
        """Weight of each patch, shape (K,)."""
        return np.asarray(Patches(self.images, self.geometry).pool[0].numpy())

    @cached_property
    def cones(self) -> Cones:
        """The distinct patches, and projections onto the cones (relu)."""
        return Cones(Patches(self.images, self.geometry), self.gates)

    @property
    def zeros(self) -> Array:
        """Zero weights."""
        shape = tuple(self.gates.shape)
        return np.zeros((2, *shape) if self.kind == "relu" else shape)

    def features(self) -> Array:
        """Return sum_k p_k D_i^k x_jk, shape (n, P, d), for solvers that take a matrix; not kept, it may be large."""
        patches = Patches(self.images, self.geometry)
        return np.asarray(patches.gated_features(self.gates)[:, :, 0].numpy())

    def _chunks(self) -> list[slice]:
        n, count = self.patches.shape[:2]
        step = max(1, _CHUNK // (count * len(self.gates)))
        return [slice(start, start + step) for start in range(0, n, step)]

    def predict(self, weights: Array) -> Array:
        """Return sum_ik p_k D_i^k x_jk . z_i, shape (n,)."""
        combined = weights[0] - weights[1] if self.kind == "relu" else weights
        active = combined.any(axis=1)
        gates, combined = self.gates.numpy()[active], combined[active]
        return np.concatenate(
            [
                np.einsum("nkp,nkp->nk", self.patches[c] @ gates.T >= 0, self.patches[c] @ combined.T) @ self.pool
                for c in self._chunks()
            ]
        )

    def correlate(self, dual: Array) -> Array:
        """Return a_i = sum_jk p_k D_i^k x_jk nu_j, shape (P, d)."""
        total = np.zeros(self.gates.shape)
        for c in self._chunks():
            patches = self.patches[c]
            spread = (patches @ self.gates.numpy().T >= 0) * (dual[c, None] * self.pool)[..., None]
            total += np.tensordot(spread, patches, axes=((0, 1), (0, 1)))
        return total

    def objective(self, weights: Array, prediction: Array) -> float:
        """Return the objective, whatever the cones."""
        norms = np.linalg.norm(weights, axis=-1).sum()
        return float(0.5 * np.sum((prediction - self.targets) ** 2) + self.reg * norms)

    def violation(self, weights: Array) -> float:
        """Return the largest -s_k x_k . u over the rows of all cones; 0 for "gated"."""
        if self.kind == "gated":
            return 0.0
        signs = np.where(self.cones.rows @ self.gates.numpy().T >= 0, 1.0, -1.0)
        return max(0.0, *(-float((signs * (self.cones.rows @ part.T)).min()) for part in weights))

    def bound(self, prediction: Array) -> float:
        """Return the dual value nu.y - ||nu||^2 / 2 at the best feasible multiple of nu = y - prediction.

        The lengths of the projections on the cones are those of cvxcnn, which are never too small.
        """
        dual = self.targets - prediction
        square = float(dual @ dual)
        if square == 0.0:
            return 0.0
        correlation = self.correlate(dual)
        peak = 1e-300
        for gate in np.argsort(-np.linalg.norm(correlation, axis=1)).tolist():
            if np.linalg.norm(correlation[gate]) <= peak:
                break
            sides = (correlation[gate], -correlation[gate]) if self.kind == "relu" else ()
            points = [self.cones.project(gate, side, ceiling=peak)[0] for side in sides] or [correlation[gate]]
            peak = max(peak, *(float(np.linalg.norm(point)) for point in points))
        scale = max(0.0, min(float(dual @ self.targets) / square, self.reg / peak))
        return scale * float(dual @ self.targets) - 0.5 * scale**2 * square


def distinct_gates(images: Tensor, geometry: PatchGeometry, gates: Tensor) -> Tensor:
    """Return the gates without those that repeat a pattern or are active nowhere."""
    return distinct(Patches(images, geometry), gates).vectors


def planted(n: int, d: int, gates: int, neurons: int = 10, noise: float = 0.1, seed: int = 0) -> dict[str, Any]:
    """Return the data of a planted fully connected ReLU network plus noise, with Gaussian inputs and gates.

    The noise has ``noise`` times the standard deviation of the network's outputs.
    """
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(n, d))
    filters, readout = random.normal(size=(neurons, d)) / np.sqrt(d), random.normal(size=neurons)
    outputs = np.maximum(inputs @ filters.T, 0) @ readout
    targets = outputs + noise * outputs.std() * random.normal(size=n)
    images, geometry = torch.from_numpy(inputs).view(n, 1, 1, d), PatchGeometry(kernel_size=(1, d))
    drawn = torch.from_numpy(random.normal(size=(gates, d)))
    return {
        "images": images,
        "geometry": geometry,
        "gates": distinct_gates(images, geometry, drawn),
        "targets": targets,
    }


class Levels(StoppingCriterion):
    """Run the solver once at each of the given values, loosest first; ``--timeout`` applies between them."""

    def __init__(self, values: tuple[float, ...] = (), **options: Any) -> None:
        self.values = values
        super().__init__(values=values, **options)

    def init_stop_val(self) -> float:
        return self.values[0]

    def get_next_stop_val(self, stop_val: float) -> float:
        return self.values[self.values.index(stop_val) + 1]

    def check_convergence(self, objective_list: list[dict[str, Any]]) -> tuple[bool, float]:
        done = len(objective_list)
        return done == len(self.values), done / len(self.values)


class ProgramSolver(BaseSolver):
    """A solver that is run at several tolerances; subclasses give ``solve`` and ``prepare``, which is timed apart."""

    sampling_strategy = "tolerance"

    def set_objective(self, problem: Problem) -> None:
        self.problem = problem
        began = time.perf_counter()
        self.prepared = self.prepare(problem)
        self.preparation = time.perf_counter() - began

    def prepare(self, problem: Problem) -> Any:
        """Return what the solver takes as given, such as the matrix of features: no part of its time."""

    def solve(self, problem: Problem, prepared: Any, tol: float) -> Array:
        """Return weights."""
        raise NotImplementedError

    def warm_up(self) -> None:
        # Imports, compilation and thread pools are paid for here.
        small = Problem(**planted(n=30, d=3, gates=5), kind=self.problem.kind, reg=1.0)
        self.solve(small, self.prepare(small), 1e-3)

    def run(self, stop_val: float) -> None:
        self.weights = self.solve(self.problem, self.prepared, stop_val)

    def get_result(self) -> dict[str, Any]:
        return {"weights": self.weights, "preparation": self.preparation}
