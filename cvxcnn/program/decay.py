"""Decays of quadratic networks: the regularisers whose minimum over all networks is one and the same convex program.

A neuron a sum_k P_ck (x_jk . u)^2 is the same if u is multiplied by t and a divided by t^2. For exponents with
2/p + 1/q = 1 the weighted inequality of means gives

    (2/p) |u|^p + (1/q) |a|^q  >=  |a| |u|^2

with equality where |u|^p = |a|^q, so that the smallest decay of a network is its path norm sum_i |a_i| |u_i|^2, and
the smallest path norm of f is the sum of absolute eigenvalues of sum_i a_i u_i u_i^T.

Source: Bartan & Pilanci 2021, Neural Spectrahedra and Semidefinite Lifts, for a_i = +-1; the others follow as above.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import Tensor

from ..errors import InputError

__all__ = ["DECAYS", "Decay"]

DECAYS = ("path", "fixed_sign")
"""Those that have a name."""

_REMEDY = 'Use decay=(4, 2), (3, 3), "path" or "fixed_sign", all of which are one and the same program.'


@dataclass(frozen=True)
class Decay:
    """A regulariser of quadratic neurons, lam times the sum over neurons of one of

        (2/p) |u|^p + (1/q) |a|^q     |a| |u|^2 ("path")     |u|^2 with a = +-1 ("fixed_sign")

    Attributes
    ----------
    name : str or None
        "path", "fixed_sign", or None for exponents.
    p, q : float
        With 2/p + 1/q = 1.

    Examples
    --------
    >>> import torch
    >>> u, a = Decay.of((4, 2)).balanced(torch.tensor([[0.6, 0.8]]), torch.tensor([-9.0]))
    >>> round(float(u.norm()) ** 2, 6), float(a)
    (3.0, -3.0)
    >>> round(Decay.of("path").value(u.norm(dim=1), a.abs()), 6)
    9.0
    """

    name: str | None
    p: float = 4.0
    q: float = 2.0

    @classmethod
    def of(cls, given: Any) -> Decay:
        """Return the decay of a name or of two exponents, (4, 2) for None.

        Raises
        ------
        InputError
            If it is none of which the convex program is exact.
        """
        if given is None:
            return cls(None)
        if given in DECAYS:
            return cls(given)
        pair = isinstance(given, (tuple, list)) and len(given) == 2
        if not pair or not all(isinstance(value, Real) and 0 < float(value) < float("inf") for value in given):
            raise InputError(f"decay must be a name or two positive exponents (p, q); got {given!r}. {_REMEDY}")
        p, q = map(float, given)
        if (p, q) == (2.0, 2.0):
            raise InputError(
                "decay=(2, 2), that of Eq. 1, has no convex program for quadratic neurons: the least of "
                f"|u|^2/2 + |a|^2/2 at |a| |u|^2 = t is 0.945 t^(2/3), which is not convex in t. {_REMEDY}"
            )
        if abs(2 / p + 1 / q - 1) > 1e-9:
            raise InputError(f"exponents (p, q) of a decay need 2/p + 1/q = 1; got ({p:g}, {q:g}). {_REMEDY}")
        return cls(None, p, q)

    def balanced(self, directions: Tensor, amounts: Tensor) -> tuple[Tensor, Tensor]:
        """Return u (m, d) and a (m,) of unit directions and amounts l = a |u|^2, of the smallest decay."""
        sizes, signs = amounts.abs(), amounts.sign()
        if self.name == "path":
            return directions, amounts
        if self.name == "fixed_sign":
            return directions * sizes.sqrt()[:, None], signs
        return directions * (sizes ** (1 / self.p))[:, None], signs * sizes ** (1 / self.q)

    def value(self, lengths: Tensor, sizes: Tensor) -> float:
        """Return the sum over neurons with filters of these lengths |u_i| and output weights of these sizes |a_i|.

        Raises
        ------
        InputError
            For "fixed_sign", if a neuron's output weight isn't +-1.
        """
        if self.name == "path":
            return float((sizes * lengths.square()).sum())
        if self.name == "fixed_sign":
            off = (sizes[lengths > 0] - 1).abs()
            if len(off) and float(off.max()) > 1e-6:
                raise InputError(
                    'decay="fixed_sign" is of networks whose neurons each have one output weight, +1 or -1; one here '
                    f'is {float(off.max()):g} off. Use decay="path".'
                )
            return float(lengths.square().sum())
        return float((2 / self.p * lengths**self.p + 1 / self.q * sizes**self.q).sum())
