"""When a point of a quadratic network's landscape is a global optimum."""

from __future__ import annotations

from typing import Any

import torch

from ..core.arrays import as_double
from ..core.checks import as_number, is_number
from ..core.plainly import plainly
from ..errors import InputError

__all__ = ["is_global_quadratic"]


@plainly
def is_global_quadratic(filters: Any, readout: Any, x: Any, y: Any, *, reg: float = 0.0, tol: float = 1e-6) -> bool:
    """Return whether a network f = sum_i a_i (x . u_i)^2 is proved to be globally optimal, over all widths.

    f = x^T M x with M = sum_i a_i u_i u_i^T, and 1/2 |f - y|^2 is convex in M. With S = sum_j (f_j - y_j) x_j x_j^T it
    is minimal over all symmetric M if and only if S = 0. With reg > 0 and a_i = +-1,

        1/2 |f - y|^2 + reg sum_i |u_i|^2

    is minimal over all networks if and only if |S|_2 <= reg and a_i S u_i = -reg u_i for every i.

    Parameters
    ----------
    filters : array-like, shape (m, d)
    readout : array-like, shape (m,)
    x : array-like, shape (n, d)
    y : array-like, shape (n,)
    reg : float
        lam >= 0; the readout has to be +-1 if it is positive.
    tol : float
        What is taken for zero, as a share of sum_j (|f_j| + |y_j|) |x_j|^2, or of reg if that is positive.

    Returns
    -------
    bool
        False where nothing is proved. If the readout has at least d positive and at least d negative entries, a point
        without a descent direction of first or second order is always proved, so that False means that there is one.

    Raises
    ------
    InputError
        If shapes don't fit, numbers are not finite, or reg > 0 with another readout.

    Notes
    -----
    That m d >= n makes every second-order point global, as is written at times, is false: there are counterexamples
    with m = 1, d = n = 3, and with generic data at m = d = 2, n = 4. Source of the dual: Bartan & Pilanci 2021.

    Examples
    --------
    >>> is_global_quadratic([[1.0, 0.0]], [1.0], [[2.0, 0.0], [0.0, 1.0]], [4.0, 0.0])
    True
    >>> is_global_quadratic([[0.0, 0.0]], [1.0], [[2.0, 0.0], [0.0, 1.0]], [4.0, -1.0])
    False
    """
    u = as_double("filters", filters, ("m", "d"))
    a = as_double("readout", readout, (len(u),))
    inputs = as_double("x", x, ("n", u.shape[1]))
    targets = as_double("y", y, (len(inputs),))
    share = as_number("tol", tol)
    if not is_number(reg) or reg < 0:
        raise InputError(f"reg must be a number >= 0; got {reg!r}.")
    if reg > 0 and not bool((a.abs() == 1).all()):
        raise InputError("with reg > 0 every entry of readout must be 1 or -1. Move the amounts into the filters.")
    outputs = (inputs @ u.T).square() @ a
    slope = inputs.T @ ((outputs - targets)[:, None] * inputs)
    scale = float(((outputs.abs() + targets.abs()) * inputs.square().sum(dim=1)).sum())
    largest = float(torch.linalg.matrix_norm(slope, 2)) if len(slope) else 0.0
    if reg == 0:
        return largest <= share * scale
    stationary = (a[:, None] * (u @ slope) + reg * u).norm(dim=1) <= share * reg * u.norm(dim=1)
    return largest <= reg * (1 + share) and bool(stationary.all())
