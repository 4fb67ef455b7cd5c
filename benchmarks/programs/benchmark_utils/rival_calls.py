"""adelie and pyscnn called on one problem, for solvers of benchopt and for ``benchmarks/small.py``.

Their losses are ours divided by n, so their lambda is reg / n. adelie: Yang & Hastie 2024, arXiv:2405.08631. pyscnn:
Mishkin, Sahiner & Pilanci 2022, arXiv:2202.01331; its gates test x.g > 0, ours x.g >= 0: the same where no patch lies
on a hyperplane. Each is imported where it is called, for the other may be missing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["adelie_weights", "import_adelie", "pyscnn_weights"]

Array = np.ndarray


def import_adelie() -> Any:
    """Return adelie, and leave this process all of its cores: its OpenMP binds the process to one of them."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    import adelie

    if cores:
        os.sched_setaffinity(0, cores)
    return adelie


def adelie_weights(features: Array, targets: Array, groups: int, reg: float, tol: float, threads: int = 1) -> Array:
    """Return the weights (groups, d) of a group lasso over features (n, groups * d), Fortran-ordered.

    Each group's factor is 1 instead of its default, the square root of the group's size. No intercept, and no early
    exit at a share of explained deviance.
    """
    adelie, dim = import_adelie(), features.shape[1] // groups
    state = adelie.grpnet(
        features, adelie.glm.gaussian(targets), groups=np.arange(groups) * dim, penalty=np.ones(groups),
        lmda_path=np.array([reg / len(targets)]), intercept=False, early_exit=False, tol=tol, n_threads=threads,
        progress_bar=False,
    )  # fmt: skip
    return np.asarray(state.betas.toarray()[-1]).reshape(groups, dim)


def pyscnn_weights(
    kind: str, inputs: Array, targets: Array, gates: Array, reg: float, method: Callable[[Any], Any]
) -> list[Array]:
    """Return the weights (P, d) of a gated program over inputs (n, d), or those of both signs of a ReLU program.

    ``method`` makes an optimiser of its model. Columns of the data, which it scales by default, are left as they are.
    """
    from scnn.metrics import Metrics
    from scnn.models import ConvexGatedReLU, ConvexReLU
    from scnn.optimize import optimize_model
    from scnn.regularizers import NeuronGL1

    model, level = {"relu": ConvexReLU, "gated": ConvexGatedReLU}[kind](gates.T.copy()), logging.root.level
    # Nothing is measured on the way: it would be timed.
    nothing = Metrics(metric_freq=10**9, objective=False, grad_norm=False, time=False)
    try:
        fitted, _ = optimize_model(
            model, method(model), nothing, inputs, targets[:, None], regularizer=NeuronGL1(reg / len(targets)),
            return_convex=True, unitize_data=False, dtype="float64",
        )  # fmt: skip
    finally:
        logging.root.setLevel(level)  # it sets the level of everyone's log
    # It sorts the gates: give each row its place back.
    order, found = np.lexsort(gates.T[::-1]), np.lexsort(np.asarray(fitted.G)[::-1])
    weights = []
    for values in fitted.parameters:
        part = np.empty(gates.shape)
        part[order] = np.asarray(values[0], dtype=np.float64)[found]
        weights.append(part)
    return weights
