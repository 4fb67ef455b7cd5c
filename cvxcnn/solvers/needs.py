"""What a method needs of a program, and the sentence that refuses one without it."""

from __future__ import annotations

from dataclasses import dataclass

from ..program.program import Program

__all__ = ["Needs"]


@dataclass(frozen=True)
class Needs:
    """What a method needs of a program's loss, penalty and cones; by default nothing.

    Attributes
    ----------
    quadratic : bool or None
        True: the squared loss; False: another one; None: any.
    cones : bool or None
        True: the cones of the ReLU program; False: none; None: either.
    groups : bool
        A penalty that says its ``group_axes``.
    smooth : bool
        A penalty whose proximal map comes with a derivative.
    frequencies : bool
        A penalty that cuts columns into frequencies.
    expression : bool
        A penalty that cvxpy has an expression of.

    Examples
    --------
    >>> import torch
    >>> from cvxcnn.patches import PatchGeometry, Patches
    >>> from cvxcnn.program.program import gated_program
    >>> patches = Patches(torch.tensor([[[[3.0, 4.0]]]]), PatchGeometry(kernel_size=(1, 2)))
    >>> program = gated_program(patches, torch.ones(1, 2), torch.ones(1, 1), reg=1.0)
    >>> Needs(quadratic=True, cones=False).refusal(program) is None, Needs(cones=True).refusal(program)
    (True, 'it is for programs with cones. Use solver="auto".')
    """

    quadratic: bool | None = None
    cones: bool | None = None
    groups: bool = False
    smooth: bool = False
    frequencies: bool = False
    expression: bool = False

    def refusal(self, program: Program) -> str | None:
        """Return what the program lacks or has too much, with the remedy, or None if there is no such thing."""
        penalty, loss = program.penalty, program.loss
        remedy = 'Use solver="auto".'
        if self.quadratic and not loss.quadratic:
            return f'it needs loss="squared"; got {loss.name!r}. {remedy}'
        if self.quadratic is False and loss.quadratic:
            return f"the squared loss is quadratic already. {remedy}"
        if self.cones is False and program.cones is not None:
            return 'it knows no cones. Use solver="cone_working_set", or activation="gated_relu".'
        if self.cones and program.cones is None:
            return f"it is for programs with cones. {remedy}"
        if self.groups and penalty.group_axes is None:
            return f"it needs a penalty of fixed groups, and {penalty.name!r} says none. {remedy}"
        if self.smooth and not penalty.smooth:
            return f"it needs a penalty whose proximal map has a derivative; {penalty.name!r} gives none. {remedy}"
        if self.frequencies and penalty.n_frequencies is None:
            return f"it needs a penalty of frequencies; got {penalty.name!r}. {remedy}"
        if self.expression and not penalty.expressible:
            return f"penalty {penalty.name!r} gives no cvxpy expression. {remedy}"
        return None
