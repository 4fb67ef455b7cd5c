"""Blocks stacked greedily: the ReLU maps of one are the images of the next."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from .block import DTYPES, ConvexConvBlock
from .data import check_images
from .distributed import all_mean
from .errors import InputError
from .neurons import Neurons, convolution, to_module
from .savable import Savable
from .solvers import Progress

__all__ = ["LayerwiseCNN", "Standardizer"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standardizer:
    """Each channel shifted and scaled to mean 0 and standard deviation 1 over the training images.

    Attributes
    ----------
    mean, scale : Tensor, shape (C,)
        A channel that is constant keeps scale 1.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Standardizer:
        """Return the standardizer of images (n, C, H, W), over those of all processes."""
        own = images.mean(dim=(2, 3))
        mean = all_mean(own)
        scale = all_mean(images.var(dim=(2, 3), correction=0) + (own - mean).square()).sqrt()
        return cls(mean, torch.where(scale > 1e-12 * (1 + mean.abs()), scale, torch.ones_like(scale)))

    def __call__(self, images: Tensor) -> Tensor:
        """Return standardized images."""
        return (images - self.mean[:, None, None]) / self.scale[:, None, None]

    def to_torch(self) -> nn.Conv2d:
        """Return the same as a 1 x 1 convolution with a group a channel; its parameters ask for no gradient."""
        count = len(self.mean)
        # A convolution of its own: folded into the next one it would be wrong at the zeros of its padding.
        layer = nn.Conv2d(count, count, 1, groups=count).to(self.mean).requires_grad_(False)
        layer.weight.copy_((1 / self.scale).view_as(layer.weight))
        if layer.bias is not None:
            layer.bias.copy_(-self.mean / self.scale)
        return layer


class LayerwiseCNN(Savable, BaseEstimator):
    """A deep CNN of convex blocks, each trained to its end before the next begins.

    Block j is a ``ConvexConvBlock`` fitted to the same targets; its ReLU feature maps, average-pooled and
    standardized, are the images of block j + 1. Every block has a readout of its own, so every layer predicts.

    Parameters
    ----------
    layers : int
        Number of blocks J >= 1.
    block : ConvexConvBlock or sequence of them, or None
        Settings of every block, or of each; None for the defaults of ``ConvexConvBlock``.
    downsample : int or sequence of int
        Average pooling between blocks, as kernel and stride: the last value stands for all further blocks. 1 for none.
    standardize : bool
        Standardize the channels of every block's input, the images included.
    reg_fraction : float or None
        If given, every block's ``reg`` is this share of its own ``reg_max``, in (0, 1), whatever its settings say.

    Attributes
    ----------
    blocks_ : list of ConvexConvBlock
    standardizers_ : list of Standardizer or None
    image_shape_ : tuple
        (C, H, W).

    Raises
    ------
    InputError
        If an argument can't be used, or maps grow too small for another block.

    Notes
    -----
    Source: Belilovsky, Eickenberg & Oyallon 2019 (greedy layerwise training).

    Examples
    --------
    >>> images = np.random.default_rng(0).normal(size=(30, 1, 6, 6))
    >>> block = ConvexConvBlock(gates=5, reg=0.1, padding=1, pooling="mean")
    >>> stack = LayerwiseCNN(layers=2, block=block).fit(images, images.mean(axis=(1, 2, 3)))
    >>> len(stack.blocks_), stack.predict(images).shape
    (2, (30,))
    """

    def __init__(
        self,
        *,
        layers: int = 3,
        block: ConvexConvBlock | Sequence[ConvexConvBlock] | None = None,
        downsample: int | Sequence[int] = 1,
        standardize: bool = True,
        reg_fraction: float | None = None,
    ) -> None:
        self.layers = layers
        self.block = block
        self.downsample = downsample
        self.standardize = standardize
        self.reg_fraction = reg_fraction

    def _settings(self) -> list[ConvexConvBlock]:
        if not isinstance(self.layers, Integral) or isinstance(self.layers, bool) or self.layers < 1:
            raise InputError(f"layers must be an int >= 1; got {self.layers!r}.")
        if self.reg_fraction is not None and not 0 < self.reg_fraction < 1:
            raise InputError(f"reg_fraction must be between 0 and 1, or None; got {self.reg_fraction!r}.")
        blocks = self.block if self.block is not None else ConvexConvBlock()
        if isinstance(blocks, ConvexConvBlock):
            return [clone(blocks) for _ in range(self.layers)]
        if len(blocks) != self.layers:
            raise InputError(f"block must be one ConvexConvBlock or {self.layers} of them; got {len(blocks)}.")
        return [clone(block) for block in blocks]

    def pooling_after(self, layer: int) -> int:
        """Return the average pooling between block ``layer`` (from 0) and the next."""
        given: Any = self.downsample
        values: list[Any] = [given] if isinstance(given, Integral) else list(given)
        if not values or any(not isinstance(v, Integral) or isinstance(v, bool) or int(v) < 1 for v in values):
            raise InputError(f"downsample must be an int >= 1, or a sequence of them; got {self.downsample!r}.")
        return int(values[min(layer, len(values) - 1)])

    def fit(
        self,
        images: Any,
        targets: Any,
        callback: Callable[[int, Progress], None] | None = None,
        on_layer: Callable[[int, ConvexConvBlock, Tensor], None] | None = None,
        finished: LayerwiseCNN | None = None,
    ) -> LayerwiseCNN:
        """Train block after block.

        Parameters
        ----------
        images : array-like, shape (n, C, H, W) or (n, H, W)
        targets : array-like, shape (n,) or (n, outputs)
        callback : callable, optional
            Called with the layer (from 0) and a ``Progress`` of its solve.
        on_layer : callable, optional
            Called after each layer with its index, its block, and the images that the block was fitted on.
        finished : LayerwiseCNN, optional
            A stack of these settings, fitted on these images, whose blocks are the first of this one: they are kept
            as they are, and ``callback`` and ``on_layer`` hear nothing of them.
        """
        settings = self._settings()
        self.pooling_after(0)
        first = settings[0]
        inputs = check_images(images, dtype=DTYPES[first.dtype], device=torch.device(first.device))
        self.image_shape_ = tuple(int(side) for side in inputs.shape[1:])
        self.blocks_: list[ConvexConvBlock] = []
        self.standardizers_: list[Standardizer | None] = []
        kept = [] if finished is None else list(zip(finished.blocks_, finished.standardizers_, strict=True))
        for layer, block in enumerate(settings):
            if layer:
                inputs = self._hand_on(layer - 1, inputs)
            if layer < len(kept):
                self._add(*kept[layer])
                inputs = self._standardized(inputs)
                continue
            standardizer = Standardizer.of(inputs) if self.standardize else None
            inputs = standardizer(inputs) if standardizer is not None else inputs

            def report(progress: Progress, layer: int = layer) -> None:
                if callback is not None:
                    callback(layer, progress)

            if self.reg_fraction is not None:
                block.set_params(reg=self.reg_fraction * block.reg_max(inputs, targets))
            block.fit(inputs, targets, callback=report)
            self._add(block, standardizer)
            logger.info("layer %d: %s", layer + 1, block.certificate_)
            if on_layer is not None:
                on_layer(layer, block, inputs)
        return self

    def _add(self, block: ConvexConvBlock, standardizer: Standardizer | None) -> None:
        self.blocks_.append(block)
        self.standardizers_.append(standardizer)

    def _standardized(self, inputs: Tensor) -> Tensor:
        """Return inputs as the last block takes them."""
        standardizer = self.standardizers_[-1]
        return inputs if standardizer is None else standardizer(inputs)

    def _hand_on(self, layer: int, inputs: Tensor) -> Tensor:
        """Return what block ``layer`` hands on from its (standardized) inputs: pooled ReLU maps."""
        if not self.blocks_[layer].n_neurons_:
            raise InputError(
                f"layer {layer + 1} has no neurons at reg={self.blocks_[layer].reg:g}, so it hands nothing on. "
                "Use a smaller reg, or fewer layers."
            )
        maps = self.blocks_[layer].relu_maps(inputs)
        size = self.pooling_after(layer)
        if size == 1:
            return maps
        if size > min(maps.shape[2:]):
            raise InputError(
                f"downsample={size} after layer {layer + 1} is larger than its {maps.shape[2]} x {maps.shape[3]} "
                "feature maps. Use fewer layers, more padding, or less downsampling."
            )
        return F.avg_pool2d(maps, size)

    def layer_inputs(self, images: Any) -> Iterator[tuple[ConvexConvBlock, Tensor]]:
        """Yield (block, its input (n, C, H, W)) for each layer."""
        if not getattr(self, "blocks_", None):
            raise NotFittedError("This LayerwiseCNN isn't fitted yet. Call fit first.")
        like = self.blocks_[0].neurons_.filters
        inputs = check_images(images, dtype=like.dtype, device=like.device)
        if tuple(inputs.shape[1:]) != tuple(self.image_shape_):
            raise InputError(
                f"images must have the shape that the stack was fitted on, {tuple(self.image_shape_)} (c, h, w); "
                f"got {tuple(inputs.shape[1:])}."
            )
        for layer, (block, standardizer) in enumerate(zip(self.blocks_, self.standardizers_, strict=True)):
            if layer:
                inputs = self._hand_on(layer - 1, inputs)
            inputs = standardizer(inputs) if standardizer is not None else inputs
            yield block, inputs

    def staged_predict(self, images: Any) -> Iterator[np.ndarray]:
        """Yield each layer's predictions, shape (n,) or (n, outputs)."""
        for block, inputs in self.layer_inputs(images):
            yield block.predict(inputs)

    def predict(self, images: Any, layer: int = -1) -> np.ndarray:
        """Return the predictions of a layer, counted from 0; the last one by default."""
        predictions = list(self.staged_predict(images))
        if not -len(predictions) <= layer < len(predictions):
            raise InputError(f"layer must be between 0 and {len(predictions) - 1}; got {layer}.")
        return predictions[layer]

    def to_torch(self, layer: int = -1, *, neurons: Neurons | None = None) -> nn.Sequential:
        """Return the network that ends in a layer's readout, as one flat Sequential of standard torch modules.

        Its modules are, for j = 1, 2, ... up to that layer, ``standardize{j}`` (a 1 x 1 Conv2d with a group a
        channel, whose parameters ask for no gradient), ``conv{j}``, ``relu{j}`` and ``downsample{j}`` (AvgPool2d),
        and at the end ``pool``, ``flatten`` and ``linear``. A gated block at the end has a gated convolution
        ``gated{j}`` in place of ``conv{j}`` and ``relu{j}``; below the end it hands on the ReLU responses of its
        gates, as in ``transform``. The module shares no memory with the stack.

        Parameters
        ----------
        layer : int
            Counted from 0; the last one by default.
        neurons : Neurons, optional
            What stands in place of the last block, with its geometry: a rival trained on the same inputs.

        Returns
        -------
        nn.Sequential
            Takes images (n, C, H, W) in the blocks' dtype; gives (n, outputs).

        Raises
        ------
        NotFittedError
            Before ``fit``.
        InputError
            If there is no such layer, or the neurons don't fit its inputs.

        Examples
        --------
        >>> images = np.random.default_rng(0).normal(size=(30, 1, 6, 6))
        >>> block = ConvexConvBlock(gates=5, reg=0.1, padding=1, pooling="mean")
        >>> stack = LayerwiseCNN(layers=2, block=block, downsample=2).fit(images, images.mean(axis=(1, 2, 3)))
        >>> module = stack.to_torch()
        >>> [name for name, _ in module.named_children()][:5]
        ['standardize1', 'conv1', 'relu1', 'downsample1', 'standardize2']
        >>> np.allclose(module(torch.from_numpy(images))[:, 0].detach(), stack.predict(images))
        True
        """
        if not getattr(self, "blocks_", None):
            raise NotFittedError("This LayerwiseCNN isn't fitted yet. Call fit first.")
        if not isinstance(layer, Integral) or not -len(self.blocks_) <= layer < len(self.blocks_):
            raise InputError(f"layer must be between 0 and {len(self.blocks_) - 1}; got {layer!r}.")
        last = int(layer) % len(self.blocks_)
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        for index, (block, standardizer) in enumerate(zip(self.blocks_, self.standardizers_, strict=True)):
            number = index + 1
            if standardizer is not None:
                modules[f"standardize{number}"] = standardizer.to_torch()
            if index == last:
                break
            filters = block.neurons_.filters
            modules[f"conv{number}"] = convolution(filters, block.geometry_, block.image_shape_[0])
            modules[f"relu{number}"] = nn.ReLU()
            if self.pooling_after(index) > 1:
                modules[f"downsample{number}"] = nn.AvgPool2d(self.pooling_after(index))
        block = self.blocks_[last]
        head = block.to_torch() if neurons is None else _rival(neurons, block)
        gated = block.activation == "gated_relu" and neurons is None
        names = [f"gated{last + 1}"] if gated else [f"conv{last + 1}", f"relu{last + 1}"]
        modules.update(zip([*names, "pool", "flatten", "linear"], head, strict=True))
        return nn.Sequential(modules)


def _rival(neurons: Neurons, block: ConvexConvBlock) -> nn.Sequential:
    """Return the network of neurons in place of a block's own."""
    own = block.neurons_
    if neurons.filters.shape[1] != own.filters.shape[1] or neurons.readout.shape[1:] != own.readout.shape[1:]:
        raise InputError(
            f"neurons must have filters (m, {own.filters.shape[1]}) and a readout (m, {own.readout.shape[1]}, "
            f"{own.readout.shape[2]}), as the block in their place; got {tuple(neurons.filters.shape)} and "
            f"{tuple(neurons.readout.shape)}."
        )
    return to_module(neurons, block.geometry_, block.image_shape_, intercept=bool(neurons.intercept.any()))
