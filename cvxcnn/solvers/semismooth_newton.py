"""Augmented Lagrangian with semismooth Newton steps, for spectral penalties: nuclear norms and absolute eigenvalues."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..core.distributed import broadcast
from ..core.threads import map_items
from ..penalties import Penalty
from ..penalties.slopes import ProxSlope
from ..program.program import Program, relative_gap
from .algebra.gram import FeatureForm, GramForm
from .base import Outcome, Solver, Status
from .needs import Needs

__all__ = ["SemismoothNewton", "minimised"]

logger = logging.getLogger(__name__)

# The first proximal step times the steepness, what it grows by, and the most it may be: beyond, rounding of A^T A,
# which it multiplies, is more than what a step gains. Chosen on the digits, quadratic neurons, lam 1e-3 and 2e-4 of
# lam_max.
_FIRST, _GROWTH, _LARGEST = 3e3, 4.0, 1e7
# Products with A^T A that tell its steepness.
_POWERS = 10
# Newton steps at most for each proximal step; how small the gradient must be, squared, beside the step's own length.
_NEWTON, _EXACT = 25, 1e-2
_ARMIJO, _HALVINGS = 1e-4, 40
# Newton steps that don't halve it before it is taken for rounding.
_STALLED = 6
# Systems are solved by a factor up to so many operations, and beyond by conjugate gradients, in so many steps at most:
# of ten systems of 220 unknowns (3 x 3 digits) both take as long, of 612 (4 x 4) these are three to five times as fast.
_FACTORED, _CONJUGATE, _FORCING = 10 * 300**3, 500, 0.05
_FACTORED_NUMBERS = 1 << 26
# Steps of conjugate gradients before a factor may take their place.
_PLAIN = 20
# Proximal steps without progress of the gap before the end.
_PATIENCE = 8
# Changes of nu that are too small to see, beside the targets.
_LEAST = 1e-12


class SemismoothNewton(Solver):
    """Proximal steps of growing length, each by Newton's method on the derivative of the penalty's proximal map.

    For min_Z 1/2 <Z, G Z> - <B, Z> + lam Omega(Z), G = A^T A, B = A^T Y, a step of length s from Z minimises over W

        1/2 <W, G W> + 1/(2 s) ||prox(Z + s (B - G W))||^2

    which is the augmented Lagrangian of the dual at nu = Y - A W; the new Z is the proximal map there. A Newton system
    is I + s S^T G S with J = S S^T the map's derivative. Steps need no more images than the Gram matrix, and
    conditioning hardly counts, where FISTA stalls.

    Parameters
    ----------
    tol : float
        Relative duality gap.
    max_iter : int or None
        Proximal steps; default 100.

    Notes
    -----
    Memory q^2 for q = blocks * cells * rows, and as much for each output while q is a few hundred; of larger q the
    Newton systems are solved by conjugate gradients. Of few images, features take the place of the Gram matrix then.
    Sources: Li, Sun & Toh 2018, A highly efficient semismooth Newton augmented Lagrangian method for solving Lasso
    problems; Jiang, Sun & Toh 2014, a partial proximal point algorithm for nuclear norms.
    """

    name = "semismooth_newton"
    needs = Needs(quadratic=True, cones=False, smooth=True)
    shares_images = True

    def __init__(self, tol: float = 1e-6, max_iter: int | None = None) -> None:
        super().__init__(tol, max_iter)
        self._form: GramForm | FeatureForm | None = None

    def passed(self, program: Program, start: Tensor | None) -> Tensor:
        # One form for the whole path, over which the program but for reg is the same.
        self._form = _form_of(program) if self._form is None else self._form
        outcome = minimised(self._form, program.penalty, program.reg, 0.5 * self.tol, start, self.max_iter)
        return broadcast(outcome.weights.to(program.targets))

    def run(self, program: Program, start: Tensor | None, report: Callable[[int, float, float], None]) -> Outcome:
        form = _form_of(program)
        outcome = minimised(form, program.penalty, program.reg, 0.5 * self.tol, start, self.max_iter, report)
        return replace(outcome, weights=broadcast(outcome.weights.to(program.targets)))


def _form_of(program: Program) -> GramForm | FeatureForm:
    # Patches of photographs nearly repeat each other: summed in float32, their A^T A isn't even positive semidefinite.
    program = program.double()
    return FeatureForm.of(program) if FeatureForm.suits(program) else GramForm.of(program)


def minimised(
    form: GramForm | FeatureForm,
    penalty: Penalty,
    reg: float,
    tol: float,
    start: Tensor | None = None,
    max_iter: int | None = None,
    report: Callable[[int, float, float], None] | None = None,
) -> Outcome:
    """Minimise 1/2 ||A W - Y||^2 + reg * penalty(W) over a form, to a relative gap of ``tol``."""
    weights = form.linear.new_zeros(form.shape) if start is None else start.to(form.linear)
    steepness = _steepness(form)
    if steepness <= 0:
        return Outcome(torch.zeros_like(weights), 0)
    step, limit = _FIRST / steepness, max_iter or 100
    best, best_gap, since, newton, reached = weights, float("inf"), 0, 0, True
    least, highest, known = float("inf"), -float("inf"), float("inf")
    dual, hard = weights, False
    for iteration in range(limit + 1):
        objective, bound, _ = form.gap(penalty, reg, weights)
        gap = relative_gap(objective, bound, form.rounding)
        if report is not None:
            report(iteration, objective, bound)
        logger.debug("step %d, %d Newton steps: objective %.9g, gap %.2e", iteration, newton, objective, gap)
        # A bound holds whichever point it comes from, and one point's own may be far off while objectives still fall.
        least, highest = min(least, objective), max(highest, bound)
        between = relative_gap(least, highest, form.rounding)
        known, since = (between, 0) if between < 0.9 * known else (known, since + 1)
        if gap < best_gap:
            best, best_gap = weights, gap
        if gap <= tol:
            return Outcome(weights, iteration)
        if since == _PATIENCE:
            return Outcome(best, iteration, Status.INACCURATE)
        if iteration < limit:
            if since and not reached:
                dual = weights = best
            proximal = _ProximalStep(form, penalty, reg, weights, step, hard)
            dual, weights = proximal.minimised(dual)
            newton, reached, hard = newton + proximal.steps, proximal.reached, proximal.hard
            # Where rounding keeps Newton's method from the minimum, a shorter step is what it can do.
            step = min(step * _GROWTH, _LARGEST / steepness) if proximal.reached else step / _GROWTH
    return Outcome(best, limit, Status.ITERATION_LIMIT)


def _steepness(form: GramForm | FeatureForm) -> float:
    """Return the largest eigenvalue of A^T A, or a little less: steps are a choice, and all of them converge.

    Eigenvalues of a matrix of thousands of columns take longer than the whole solve.
    """
    along = torch.randn(form.linear.shape, generator=torch.Generator().manual_seed(0), dtype=form.linear.dtype)
    along, size = along.to(form.linear.device), 0.0
    for _ in range(_POWERS):
        along = form.product(along / torch.linalg.vector_norm(along).clamp_min(1e-300))
        size = float(torch.linalg.vector_norm(along))
    return size


class _ProximalStep:
    """One proximal step of length ``step`` from ``centre``: the function of W in ``SemismoothNewton``, and its minimum.

    Outputs that share neither features' weights nor a norm are functions of their own: values have one entry for each,
    or one for all. ``hard`` says that the last system took conjugate gradients longer than a factor: so will the next.
    """

    def __init__(
        self, form: GramForm | FeatureForm, penalty: Penalty, reg: float, centre: Tensor, step: float, hard: bool
    ) -> None:
        self.form, self.penalty, self.reg, self.centre, self.step = form, penalty, reg, centre, step
        self.apart = penalty.separable and getattr(form, "roots", None) is None
        self.linear = form.linear.view(form.shape)
        # The square of a change of nu beside that of the targets.
        self.floor = _LEAST**2 * float(form.squared_norm.sum())
        self.steps, self.reached, self.hard = 0, False, hard

    def product(self, weights: Tensor) -> Tensor:
        """Return G w of weights (blocks, cells, rows, outputs)."""
        return self.form.product(weights.reshape(self.form.linear.shape)).view(self.form.shape)

    def inner(self, left: Tensor, right: Tensor) -> Tensor:
        """Return inner products, shape (outputs,) or (1,)."""
        products = left * right
        return products.sum(dim=(0, 1, 2)) if self.apart else products.sum().view(1)

    def point(self, product: Tensor) -> Tensor:
        """Return what the proximal map is taken of, at G W."""
        return self.centre + self.step * (self.linear - product)

    def value(self, dual: Tensor, product: Tensor, mapped: Tensor) -> Tensor:
        """Return the function at W, by G W and the proximal map."""
        return 0.5 * self.inner(dual, product) + 0.5 / self.step * self.inner(mapped, mapped)

    def minimised(self, dual: Tensor) -> tuple[Tensor, Tensor]:
        """Return W at the minimum, from a W to begin with, and the proximal map there."""
        product, least, since = self.product(dual), float("inf"), 0
        for _ in range(_NEWTON):
            mapped, slope = self.penalty.linearised(self.point(product), self.step * self.reg)
            rest = dual - mapped
            pull = self.product(rest)
            moved = self.inner(mapped - self.centre, mapped - self.centre) / self.step
            unsolved = self.inner(rest, pull) > _EXACT * moved + self.floor
            self.reached = not bool(unsolved.any())
            size = float(self.inner(rest, pull)[unsolved].sum())
            least, since = (size, 0) if size < 0.5 * least else (least, since + 1)
            if self.reached or since == _STALLED:
                break
            direction = self.step * slope.up(self.solved(slope, rest, pull))[0] - rest
            self.steps += 1
            following = self.searched(dual, product, direction, self.product(direction), pull, mapped)
            if following is None:
                break
            dual, product = following
        mapped = self.penalty.prox(self.point(product), self.step * self.reg)
        return dual, mapped

    def searched(
        self, dual: Tensor, product: Tensor, direction: Tensor, turn: Tensor, pull: Tensor, mapped: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Return W and G W along a direction, at a length that lowers the function; None if none does."""
        value, slope = self.value(dual, product, mapped), self.inner(direction, pull)
        length = torch.ones_like(slope)
        for _ in range(_HALVINGS):
            trial, turned = dual + length * direction, product + length * turn
            reached = self.value(trial, turned, self.penalty.prox(self.point(turned), self.step * self.reg))
            lower = reached <= value + _ARMIJO * length * slope + 1e-14 * value.abs()
            if bool(lower.all()):
                return trial, turned
            length = torch.where(lower, length, 0.5 * length)
        return None

    def solved(self, slope: ProxSlope, rest: Tensor, pull: Tensor) -> Tensor:
        """Return c = (I + step S^T G S)^-1 S^T pull, (1, blocks, cells, rows, outputs): step S c - rest is Newton's.

        An error r of that system is one of step S r of Newton's, whose right-hand side is -rest.
        """
        right = slope.down(pull.unsqueeze(0))
        form, outputs = self.form, self.form.shape[3]
        gram = isinstance(form, GramForm)
        given = form.gram if isinstance(form, GramForm) else form.features
        count, width = len(given), given[0].numel()
        unknowns, systems = (count, outputs) if self.apart else (count * outputs, 1)
        numbers = unknowns * (width if self.apart else width * outputs) * systems
        # Of several blocks, rows are turned by the bases of each: over 40 gates steps were four times as fast.
        if form.shape[0] > 1 or systems * unknowns**3 > _FACTORED or numbers > _FACTORED_NUMBERS:
            enough = (_FORCING / self.step) ** 2 * self.inner(rest, rest)
            return self._conjugate(slope, right, enough)
        # Rows of A or G, one for each output unless those are apart, turned by S.
        rows = self._rows(given)
        turned = self._matrices(slope.down(rows))
        vector = right.flatten(0, 3).T.unsqueeze(2) if self.apart else right.reshape(1, -1, 1)
        if gram:
            # S^T G, whose rows are turned too.
            again = turned.mT.permute(1, 2, 0) if self.apart else turned[0].T
            system = self._matrices(slope.down(again.reshape(-1, *form.shape)))
            found = _solve(self.step * 0.5 * (system + system.mT), vector)
        else:
            # (1 + s T^T T)^-1 = 1 - s T^T (1 + s T T^T)^-1 T
            found = vector - self.step * turned.mT @ _solve(self.step * turned @ turned.mT, turned @ vector)
        return (found[..., 0].T if self.apart else found).reshape(right.shape)

    def _rows(self, given: Tensor) -> Tensor:
        """Return rows of A or G as weights, (rows, blocks, cells, rows, outputs); with R_j of each image, if it has."""
        blocks, cells, rows, outputs = self.form.shape
        weights = given.view(len(given), blocks, cells, rows, 1)
        if self.apart:
            return weights.expand(-1, -1, -1, -1, outputs)
        roots = getattr(self.form, "roots", None)
        if roots is None:
            roots = torch.eye(outputs).to(given).expand(len(given), -1, -1)
        return (weights.unsqueeze(1) * roots[:, :, None, None, None, :]).flatten(0, 1)

    def _matrices(self, weights: Tensor) -> Tensor:
        """Return (rows, blocks, cells, rows, outputs) as a matrix for each output, or as one."""
        return weights.flatten(1, 3).permute(2, 0, 1) if self.apart else weights.flatten(1).unsqueeze(0)

    def _conjugate(self, slope: ProxSlope, right: Tensor, enough: Tensor) -> Tensor:
        found, rest = torch.zeros_like(right), right
        along, square = rest, self.inner(rest[0], rest[0])
        kept, worth = self._kept(slope) if self.hard else None, float(_CONJUGATE)
        if kept is not None:
            return self._factored(kept, right)
        for count in range(_CONJUGATE):
            if count == _PLAIN:
                kept = self._kept(slope)
                # Whoever changes over when both have cost the same pays at most twice what the better one takes.
                worth = float(_CONJUGATE) if kept is None else self._operations(kept)
            if kept is not None and count >= worth:
                self.hard = True
                return self._factored(kept, right)
            turned = along + self.step * slope.down(self.product(slope.up(along)[0]).unsqueeze(0))
            length = square / self.inner(along[0], turned[0]).clamp_min(1e-300)
            found, rest = found + length * along, rest - length * turned
            before, square = square, self.inner(rest[0], rest[0])
            if bool((square <= enough).all()):
                break
            along = rest + square / before.clamp_min(1e-300) * along
        return found

    def _kept(self, slope: ProxSlope) -> list[list[tuple[Tensor, Tensor]]] | None:
        """Return ``slope.columns`` of each output and its cells; None where a factor can't use them."""
        blocks, cells, _, outputs = self.form.shape
        if not (self.apart and blocks == 1 and isinstance(self.form, GramForm)):
            return None
        kept = [[slope.columns(cell, output) for cell in range(cells)] for output in range(outputs)]
        known = [[part for part in parts if part is not None] for parts in kept]
        return known if all(len(parts) == cells for parts in known) else None

    def _operations(self, kept: list[list[tuple[Tensor, Tensor]]]) -> float:
        """Return what the factors cost, in steps of conjugate gradients."""
        form = self.form
        counts = [sum(len(places) for places, _ in parts) for parts in kept]
        operations = sum(2.0 * len(form.linear) * form.shape[2] * count + count**3 / 3 for count in counts)
        # Products with a few vectors wait for memory, and take about twice as long for their operations.
        return operations / (4.0 * form.shape[3] * len(form.linear) ** 2)

    def _factored(self, kept: list[list[tuple[Tensor, Tensor]]], right: Tensor) -> Tensor:
        """Return c by a factor for each output, of the coordinates that S doesn't drop."""
        form, (_, cells, rows, outputs) = self.form, self.form.shape
        gram = form.gram if isinstance(form, GramForm) else form.features.T @ form.features
        own = [slice(cell * rows, (cell + 1) * rows) for cell in range(cells)]
        found = torch.zeros_like(right)

        def work(output: int) -> None:
            parts = kept[output]
            turned = torch.cat([gram[:, cell] @ s for cell, (_, s) in zip(own, parts, strict=True)], dim=1)
            system = torch.cat([s.T @ turned[cell] for cell, (_, s) in zip(own, parts, strict=True)])
            values = [right[0, 0, cell, places, output] for cell, (places, _) in enumerate(parts)]
            solved = _solve(self.step * 0.5 * (system + system.T).unsqueeze(0), torch.cat(values).view(1, -1, 1))
            pieces = torch.split(solved.flatten(), [len(places) for places, _ in parts])
            for cell, ((places, _), piece) in enumerate(zip(parts, pieces, strict=True)):
                found[0, 0, cell, places, output] = piece

        map_items(work, range(outputs), gram.device)
        return found


def _solve(matrices: Tensor, right: Tensor) -> Tensor:
    """Return (I + M)^-1 right, of positive semidefinite M."""
    matrices.diagonal(dim1=1, dim2=2).add_(1.0)
    return torch.cholesky_solve(right, torch.linalg.cholesky(matrices))
