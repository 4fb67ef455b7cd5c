"""The layers of a stack: what each of them sees and hands on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import NotFittedError
from torch import Tensor

from ..core.checks import as_int, is_int, scalar
from ..core.distributed import gather_rows, rank, row_counts
from ..core.plainly import plainly
from ..data.augmentation import moved
from ..data.checks import check_images
from ..data.layout import check_same_shape
from ..errors import InputError
from .block import ConvexConvBlock
from .blocks import given_blocks
from .door import warn_of_scale
from .plan import LayerPlan, plan_layers
from .projection import PatchPCA
from .stage import Seen, Stage, mirrored
from .standardizer import Standardizer

__all__ = ["Layers", "range_of", "values_of"]


# Blocks, where neither their number nor a recipe is given.
_LAYERS = 3
# Images whose maps are held at once, between two blocks.
_IMAGES_AT_ONCE = 512
# Images that principal directions are computed from.
_PROJECTION_IMAGES = 1000


def values_of(given: Any) -> list[Any]:
    """Return the values of a setting of each layer; the last one stands for all further layers."""
    given = scalar(given)
    return list(given) if isinstance(given, (Sequence, np.ndarray)) else [given]


def range_of(images: Tensor) -> tuple[float, float]:
    """Return the least and the largest value of images, those of all processes."""
    ends = gather_rows(torch.stack([images.min(), images.max()]).double()[None])
    return float(ends[:, 0].min()), float(ends[:, 1].max())


class Layers:
    """What ``LayerwiseCNN`` does with the blocks that it has so far."""

    blocks_: list[ConvexConvBlock]
    standardizers_: list[Standardizer | PatchPCA | None]
    image_shape_: tuple[int, ...]
    residual: bool
    mirror: bool
    half_maps: bool
    hand_on: int | None
    layers: int | None
    block: Any
    downsample: Any
    standardize: bool
    project: int | None
    input_range_: tuple[float, float]
    used_: Layers

    @property
    def used(self) -> Layers:
        """This stack, or if a recipe decided its last fit the one with the settings of that."""
        return getattr(self, "used_", self)

    def learn_from(self, other: Layers, count: int | None = None) -> None:
        """Take what another stack has learnt: all of it, or its first layers."""
        self.image_shape_ = other.image_shape_
        self.blocks_, self.standardizers_ = other.blocks_[:count], other.standardizers_[:count]
        if hasattr(other, "input_range_"):  # stacks that older code fitted have none
            self.input_range_ = other.input_range_

    def n_layers(self) -> int:
        """Return the number of blocks."""
        return _LAYERS if self.layers is None else as_int("layers", self.layers)

    def plan(self, image_shape: tuple[int, int, int], counts: Sequence[int] | None = None) -> list[LayerPlan]:
        """Return the shapes of all layers, for images of a shape (C, H, W) and so many neurons at most.

        Raises
        ------
        InputError
            If maps grow too small for a layer.
        """
        blocks = given_blocks(self.block)
        blocks = blocks * self.n_layers() if len(blocks) == 1 else blocks
        return plan_layers(
            image_shape, [block.check_parameters() for block in blocks],
            [self.pooling_after(layer) for layer in range(len(blocks))],
            counts=counts, hand_on=self.hand_on, project=self.project,
        )  # fmt: skip

    def pooling_after(self, layer: int) -> int:
        """Return the average pooling between block ``layer`` (from 0) and the next."""
        downsample = self.used.downsample
        values = values_of(1 if downsample is None else downsample)
        if not values or not all(is_int(value, 1) for value in values):
            raise InputError(f"downsample must be an int >= 1, or a sequence of them; got {downsample!r}.")
        return int(values[min(layer, len(values) - 1)])

    @plainly
    def _inputs(self, layer: int, inputs: Tensor) -> Tensor:
        """Return the input of block ``layer`` from that of the block before, or from images for the first."""
        if not layer:
            return self._standardized(0, inputs)
        return self._hand_on(layer - 1, inputs, layer)

    def _standardized(self, layer: int, maps: Tensor) -> Tensor:
        standardizer = self.standardizers_[layer]
        return maps if standardizer is None else standardizer(maps)

    def _sampled(self, stage: Stage, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Return some images of the whole set, drawn at random, or all if so few: those that this process holds."""
        inputs, weights = stage.inputs, stage.weights
        counts = row_counts(inputs)
        total, first = sum(counts), sum(counts[: rank()])
        if total <= _PROJECTION_IMAGES:
            return inputs, weights
        places = torch.randperm(total, generator=generator)[:_PROJECTION_IMAGES].sort().values
        own = (places[(places >= first) & (places < first + len(inputs))] - first).to(inputs.device)
        return inputs[own], None if weights is None else weights[own]

    def _standardizer(self, layer: int, stage: Stage) -> Standardizer | PatchPCA | None:
        """Return what the input of block ``layer`` goes through, from the stage with the input of the block before."""
        if layer and self.project is not None:
            blocks = given_blocks(self.block)
            kernel, _, padding = blocks[min(layer, len(blocks) - 1)].check_parameters().sizes()
            generator = torch.Generator().manual_seed(layer)
            some, weights = self._sampled(stage, generator)
            maps = self._hand_on(layer - 1, some)
            return PatchPCA.of(maps, int(self.project), kernel, padding, generator, weights=weights)
        if not self.standardize:
            return None
        if not layer:
            return Standardizer.of(stage.inputs, stage.weights)
        parts = torch.split(stage.inputs, _IMAGES_AT_ONCE)
        return Standardizer.of_parts((self._hand_on(layer - 1, part) for part in parts), stage.weights)

    def handed_on(self, layer: int) -> Tensor:
        """Return the indices of the neurons of block ``layer`` (from 0) that hand their maps on, in their order."""
        neurons = self.blocks_[layer].neurons_
        count = len(neurons.filters)
        most = self.used.hand_on
        if most is None or most >= count:
            return torch.arange(count, device=neurons.filters.device)
        lengths = self.blocks_[layer].neuron_norms()
        return torch.argsort(lengths, descending=True, stable=True)[: int(most)].sort().values

    def _hand_on(self, layer: int, inputs: Tensor, following: int | None = None) -> Tensor:
        """Return what block ``layer`` hands on from its input: pooled maps, or the input of the following block."""
        block = self.blocks_[layer]
        if not block.n_neurons_:
            raise InputError(
                f"layer {layer + 1} has no neurons at reg={block.reg_:g}, so it hands nothing on. "
                "Use a smaller reg or reg_fraction, or fewer layers."
            )
        step = self.pooling_after(layer)
        LayerPlan.of(block.image_shape_, block.geometry_, step).check(layer)

        def then(maps: Tensor) -> Tensor:
            pooled = maps if step == 1 else F.avg_pool2d(maps, step)
            if following is None:
                return pooled
            values = self._standardized(following, pooled)
            return values.half() if self.used.half_maps else values

        return block.maps(inputs, self.handed_on(layer), then)

    def _check_fitted(self) -> None:
        if not getattr(self, "blocks_", None):
            raise NotFittedError("This LayerwiseCNN isn't fitted yet. Call fit first.")

    def layer_inputs(self, images: Any) -> Iterator[tuple[ConvexConvBlock, Tensor]]:
        """Yield (block, its input (n, C, H, W)) for each layer."""
        self._check_fitted()
        like = self.blocks_[0].neurons_.filters
        inputs = check_images(images, dtype=like.dtype, device=like.device)
        check_same_shape(inputs.shape, self.image_shape_, "stack")
        # The list may grow while this goes on: a run evaluates each layer as it is finished.
        for layer, block in enumerate(self.blocks_):
            inputs = self._inputs(layer, inputs)
            yield block, inputs

    def seen(self, images: Any) -> Iterator[Seen]:
        """Yield what each block makes of images, mirror images with them; also of blocks that are added meanwhile."""
        self._check_fitted()
        if self.used.mirror:
            like = self.blocks_[0].neurons_.filters
            images = mirrored(check_images(images, dtype=like.dtype, device=like.device))
        outputs: np.ndarray | None = None
        for block, inputs in self.layer_inputs(images):
            own = block.outputs(inputs).cpu().numpy()
            offset = outputs if outputs is not None and self.used.residual else np.zeros_like(own)
            outputs = offset + own
            yield Seen(inputs, offset, outputs)

    def averaged(self, predictions: np.ndarray) -> np.ndarray:
        """Return predictions, the mean of those for images and their mirror images with ``mirror``."""
        if not self.used.mirror:
            return predictions
        return np.asarray((predictions[0::2] + predictions[1::2]) / 2)

    def staged_predict(self, images: Any, *, shift: int = 0) -> Iterator[np.ndarray]:
        """Yield each layer's predictions, shape (n,) or (n, outputs); for ``shift`` see ``predict``."""
        far = as_int("shift", shift, 0, "in pixels")
        self._check_fitted()
        warn_of_scale(check_images(images), getattr(self, "input_range_", None))
        views = [images]
        if far:
            given = check_images(images)
            steps = (0, 0), (far, 0), (-far, 0), (0, far), (0, -far)
            views = [moved(given, down, right) for down, right in steps]
        for layer, seen in enumerate(zip(*(self.seen(view) for view in views), strict=True)):
            outputs = self.averaged(np.asarray(sum(view.outputs for view in seen) / len(views)))
            yield outputs[:, 0] if self.blocks_[layer].flat_targets_ else outputs

    def predict(self, images: Any, layer: int = -1, *, ensemble: bool = False, shift: int = 0) -> np.ndarray:
        """Return the predictions of a layer, shape (n,) or (n, outputs).

        Parameters
        ----------
        images : array-like, shape (n, C, H, W) or (n, H, W)
        layer : int
            Counted from 0; the last one by default.
        ensemble : bool
            The mean of the predictions of all layers up to this one.
        shift : int
            The mean over each image and four copies of it, shifted by so many pixels up, down, left and right, with
            the edge repeated: five times the work. 0 for none.

        Raises
        ------
        NotFittedError
            Before ``fit``.
        InputError
            If there is no such layer, images have another shape than those of ``fit``, or shift is negative.
        """
        self._check_fitted()
        count = len(self.blocks_)
        if not is_int(layer, -count, count):
            raise InputError(f"layer must be between 0 and {count - 1}; got {layer!r}.")
        predictions = list(islice(self.staged_predict(images, shift=shift), int(layer) % count + 1))
        return np.asarray(np.mean(predictions, axis=0)) if ensemble else predictions[-1]
