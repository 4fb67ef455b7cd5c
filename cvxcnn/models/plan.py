"""The shapes of a stack, layer by layer, before it is trained or read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..patches.geometry import PatchGeometry

__all__ = ["LayerPlan", "plan_layers"]


@dataclass(frozen=True)
class LayerPlan:
    """The shapes of a layer.

    Attributes
    ----------
    inputs : (int, int, int)
        (C, H, W) of what its block sees.
    maps : (int, int)
        Sides of its feature maps.
    step : int
        Of the average pooling that follows it.
    """

    inputs: tuple[int, int, int]
    maps: tuple[int, int]
    step: int = 1

    @classmethod
    def of(cls, inputs: tuple[int, int, int], geometry: PatchGeometry, step: int = 1) -> LayerPlan:
        """Return the shapes of a block of this geometry.

        Raises
        ------
        InputError
            If the images are too small for it.

        Examples
        --------
        >>> LayerPlan.of((1, 8, 8), PatchGeometry(3, padding=0), step=2).handed_on(20)
        (20, 3, 3)
        """
        return cls(inputs, geometry.map_shape(inputs[1:]), step)

    def handed_on(self, channels: int) -> tuple[int, int, int]:
        """Return the shape of so many of its maps, pooled."""
        return channels, self.maps[0] // self.step, self.maps[1] // self.step

    def check(self, layer: int) -> None:
        """Raise InputError if there is nothing to hand on from layer ``layer`` (from 0)."""
        if self.step > min(self.maps):
            raise InputError(
                f"downsample={self.step} after layer {layer + 1} is larger than its {self.maps[0]} x {self.maps[1]} "
                "feature maps. Use fewer layers, more padding, or less downsampling."
            )


def plan_layers(
    image_shape: tuple[int, int, int],
    geometries: Sequence[PatchGeometry],
    steps: Sequence[int],
    *,
    counts: Sequence[int] | None = None,
    hand_on: int | None = None,
    project: int | None = None,
) -> list[LayerPlan]:
    """Return the shapes of all layers.

    Parameters
    ----------
    image_shape : (int, int, int)
        (C, H, W).
    geometries : sequence of PatchGeometry
        Of the blocks as they are given: with ``project`` a projection takes their patches, and they see single pixels.
    steps : sequence of int
        Average pooling after each.
    counts : sequence of int, optional
        Neurons of each, at most; without it channels after the first layer are of one neuron.
    hand_on, project : int or None
        As for ``LayerwiseCNN``.

    Raises
    ------
    InputError
        If maps grow too small for a layer.

    Examples
    --------
    >>> [layer.inputs for layer in plan_layers((1, 8, 8), [PatchGeometry(3)] * 2, [2, 1], counts=[20, 10])]
    [(1, 8, 8), (20, 3, 3)]
    """
    plans: list[LayerPlan] = []
    inputs = image_shape
    for layer, (geometry, step) in enumerate(zip(geometries, steps, strict=True)):
        try:
            if layer and project is not None:
                kernel, _, padding = geometry.sizes()
                sides = PatchGeometry(kernel, 1, padding).map_shape(inputs[1:])
                inputs = min(project, inputs[0] * kernel[0] * kernel[1]), *sides
                plan = LayerPlan(inputs, sides, step)
            else:
                plan = LayerPlan.of(inputs, geometry, step)
        except InputError as error:
            raise InputError(f"layer {layer + 1}: {error}") from error
        plans.append(plan)
        if layer + 1 < len(geometries):
            plan.check(layer)
            count = 1 if counts is None else counts[layer]
            inputs = plan.handed_on(count if hand_on is None else min(count, hand_on))
    return plans
