"""Blocks stacked greedily: the ReLU maps of one are the images of the next."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from sklearn.base import clone
from torch import Tensor, nn

from ..activations import Neurons
from ..core.checks import as_flag, as_int_or_none, is_int, is_number
from ..core.distributed import rank, row_counts
from ..core.plainly import plainly
from ..core.seeds import seed_of
from ..data.augmentation import shifted
from ..data.checks import are_classes, are_flat, check_images, check_targets
from ..data.hold_out import held_out
from ..errors import InputError
from ..fitting import DTYPES
from ..solvers import Progress
from .block import DEFAULT_FRACTION, ConvexConvBlock
from .blocks import given_blocks
from .door import check_given, weighing
from .layers import range_of, values_of
from .path import choose_reg
from .projection import PatchPCA
from .recipes import RECIPES, recipe_for, stack_settings
from .stack_state import StackState
from .stacked_module import StackedCNN, input_modules, map_modules, rival_head
from .stage import Stage, twice
from .standardizer import Standardizer
from .telling import Telling

__all__ = ["LayerwiseCNN"]

logger = logging.getLogger(__name__)

# The path along which reg is chosen on held-out images.
_PATH_POINTS = 10
_SMALLEST_FRACTION = 1e-3


class LayerwiseCNN(StackState):
    """A deep CNN of convex blocks, each trained to its end before the next begins.

    Block j is a ``ConvexConvBlock`` fitted to the same targets; its ReLU feature maps, average-pooled and
    standardized, are the images of block j + 1. Every block has a readout of its own, so every layer predicts. With
    ``residual`` block j is fitted to what the layers before have left,

        y_j = y - sum_{i<j} f_i,   prediction of layer j: f_1 + ... + f_j

    a path around the block on which it can hand on its predecessor's prediction as it is: the training loss of no layer
    is above that of the layer before.

    Parameters
    ----------
    layers : int or None
        Number of blocks J >= 1; None for 3, or for those of the recipe.
    block : ConvexConvBlock or sequence of them, or None
        Settings of every block, or of each; None for those of the recipe.
    downsample : int, sequence of int, or None
        Average pooling between blocks, as kernel and stride: the last value stands for all further blocks. 1 for none;
        None for that of the recipe, if there is one.
    standardize : bool
        Standardize the channels of every block's input, the images included.
    reg_fraction : float, sequence of float, or None
        Every block's ``reg`` as a share of its own ``reg_max``, in (0, 1); of a sequence the last value stands for all
        further blocks. None for 0.01, or for the ``reg`` of blocks that have one; both given is an error.
    residual : bool
        Fit each block to what the layers before have left. Needs the squared loss.
    project : int or None
        If given, blocks after the first see patches of the maps through so many of their principal directions
        (``PatchPCA``), with the block's own kernel and padding, in place of standardized maps.
    hand_on : int or None
        So many neurons hand their maps on, at most: those with the largest output weights. None for all.
    mirror : bool
        Train on images and their mirror images; predictions are the mean over both.
    crop : bool
        Train on a copy of each image too that is shifted by up to an eighth of its side (``cvxcnn.data.shifted``).
    validation : float or None
        If given, this share of the images of every class is held out of training (``cvxcnn.data.held_out``: the same
        images in any order of them), and each block's ``reg`` is that of the lowest validation error on a path of ten
        values from ``reg_max`` down to ``reg_fraction`` (or 0.001) of it. Blocks have no ``reg`` of their own then.
    half_maps : bool
        Keep what blocks after the first see in float16, which is half of the memory. Needs float32 blocks.
    recipe : {"auto", "exact", "small", "large", "huge"}
        What isn't given, by name: "exact" is the defaults of ``ConvexConvBlock``, "small" and "large" weigh patches of
        the images in place of a search for filters, "huge" thousands of them, for a GPU. "auto" is "exact" if there is
        a ``block``, and otherwise what fits the number and the size of the images (``recipes.recipe_for``), as on the
        command line.

    Attributes
    ----------
    blocks_ : list of ConvexConvBlock
        Fitted; their ``reg`` is the one that was used.
    standardizers_ : list of Standardizer, PatchPCA or None
        What each block's input goes through.
    image_shape_ : tuple
        (C, H, W).
    input_range_ : tuple
        The least and the largest value of the images: ``predict`` warns of others of another scale.

    Raises
    ------
    InputError
        If an argument can't be used, or maps grow too small for another block.

    Notes
    -----
    Sources: Belilovsky, Eickenberg & Oyallon 2019 (greedy layerwise training). By convexity, a block that was fitted on
    images and their mirror images loses nothing on the training set by averaging its predictions over both.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).normal(size=(30, 1, 6, 6))
    >>> block = ConvexConvBlock(gates=5, reg=0.1, padding=1, pooling="mean")
    >>> stack = LayerwiseCNN(layers=2, block=block).fit(images, images.mean(axis=(1, 2, 3)))
    >>> len(stack.blocks_), stack.predict(images).shape
    (2, (30,))
    """

    def __init__(
        self,
        *,
        layers: int | None = None,
        block: ConvexConvBlock | Sequence[ConvexConvBlock] | None = None,
        downsample: int | Sequence[int] | None = None,
        standardize: bool = True,
        reg_fraction: float | Sequence[float] | None = None,
        residual: bool = False,
        project: int | None = None,
        hand_on: int | None = None,
        mirror: bool = False,
        crop: bool = False,
        validation: float | None = None,
        half_maps: bool = False,
        recipe: str = "auto",
    ) -> None:
        self.layers = layers
        self.block = block
        self.downsample = downsample
        self.standardize = standardize
        self.reg_fraction = reg_fraction
        self.residual = residual
        self.project = project
        self.hand_on = hand_on
        self.mirror = mirror
        self.crop = crop
        self.validation = validation
        self.half_maps = half_maps
        self.recipe = recipe

    def for_images(self, image_shape: tuple[int, int, int], n_train: int, *, classes: bool = True) -> LayerwiseCNN:
        """Return this stack, or one of the recipe that is asked for or that fits images of a shape and number.

        Parameters
        ----------
        image_shape : (int, int, int)
            (C, H, W).
        n_train : int
        classes : bool
            Whether an image and its mirror image have the same target.

        Raises
        ------
        InputError
            If there is no such recipe, or a block beside one.

        Examples
        --------
        >>> LayerwiseCNN().for_images((3, 32, 32), 6000).project
        80
        """
        if self.recipe not in ("auto", *RECIPES):
            raise InputError(f'recipe must be "auto" or one of {sorted(RECIPES)}; got {self.recipe!r}.')
        if self.block is not None:
            if self.recipe not in ("auto", "exact"):
                raise InputError(f"recipe={self.recipe!r} and block both decide the blocks. Leave one of them out.")
            return self
        name = recipe_for(image_shape, n_train) if self.recipe == "auto" else self.recipe
        if name == "exact":
            return self
        return LayerwiseCNN(**stack_settings(name, image_shape, n_train, self.get_params(deep=False), classes=classes))

    def blocks_to_fit(self) -> list[ConvexConvBlock]:
        """Return the blocks to fit, after checking all settings."""
        layers = self.n_layers()
        for name in ("project", "hand_on"):
            as_int_or_none(name, getattr(self, name))
        for name in ("standardize", "residual", "mirror", "crop", "half_maps"):
            as_flag(name, getattr(self, name))
        if self.validation is not None and not (is_number(self.validation, above=0) and self.validation <= 0.5):
            raise InputError(f"validation must be between 0 and 0.5, or None; got {self.validation!r}.")
        self.fraction_of(0)
        blocks = given_blocks(self.block)
        if self.block is None or isinstance(self.block, ConvexConvBlock):
            blocks = blocks * layers
        if len(blocks) != layers:
            raise InputError(f"block must be one ConvexConvBlock or {layers} of them; got {len(blocks)}.")
        for layer, block in enumerate(blocks):
            self._check_reg(layer, block)
            if self.residual and block.loss != "squared":
                raise InputError(f'residual=True needs loss="squared"; got {block.loss!r}.')
            if self.half_maps and block.dtype != "float32":
                raise InputError(f'half_maps=True needs blocks of dtype="float32"; got {block.dtype!r}.')
        settings = [clone(block) for block in blocks]
        for block in settings[1:] if self.project is not None else []:
            if block.check_parameters().sizes()[1] != (1, 1):
                raise InputError(f"project needs blocks of stride 1; got {block.stride!r}.")
            # The projection takes the patches.
            block.set_params(kernel_size=1, padding=0)
        return settings

    def _check_reg(self, layer: int, block: ConvexConvBlock) -> None:
        """Raise InputError if a block's reg would be decided twice."""
        for name in ("reg_fraction", "validation"):
            value = getattr(self, name)
            if block.reg is not None and value is not None:
                raise InputError(
                    f"reg={block.reg!r} of the block of layer {layer + 1} and {name}={value!r} both decide its reg. "
                    "Leave one of them at None."
                )

    def fraction_of(self, layer: int) -> float:
        """Return ``reg`` of block ``layer`` (from 0) as a share of its ``reg_max``, where it has none of its own."""
        if self.reg_fraction is None:
            return DEFAULT_FRACTION
        values = values_of(self.reg_fraction)
        if not values or not all(is_number(value, above=0, below=1) for value in values):
            raise InputError(
                f"reg_fraction must be between 0 and 1, a sequence of such numbers, or None; got {self.reg_fraction!r}."
            )
        return float(values[min(layer, len(values) - 1)])

    @plainly
    def fit(
        self,
        images: Any,
        targets: Any,
        sample_weight: Any = None,
        callback: Callable[[int, Progress], None] | None = None,
        on_layer: Callable[[int, ConvexConvBlock, Stage], None] | None = None,
        finished: LayerwiseCNN | None = None,
        *,
        verbose: bool = False,
    ) -> LayerwiseCNN:
        """Train block after block.

        Parameters
        ----------
        images : array-like, shape (n, C, H, W) or (n, H, W)
        targets : array-like, shape (n,) or (n, outputs)
        sample_weight : array-like, shape (n,), optional
            As for ``ConvexConvBlock.fit``: of the loss of every layer, and of the means and variances that inputs are
            standardized by.
        callback : callable, optional
            Called with the layer (from 0) and a ``Progress`` of its solve.
        on_layer : callable, optional
            Called after each layer with its index, its block, and the ``Stage`` that the block was fitted on.
        finished : LayerwiseCNN, optional
            A stack of these settings, fitted on these images, whose blocks are the first of this one: they are kept
            as they are, and ``callback`` and ``on_layer`` hear nothing of them.
        verbose : bool
            Say on standard error which layer is fitted, and how far that is.
        """
        if hasattr(self, "used_"):
            del self.used_
        telling = Telling(as_flag("verbose", verbose))
        settings = self.blocks_to_fit()
        self.pooling_after(0)
        first = settings[0]
        first.check_parameters()
        check_given(images, targets, first.loss)
        inputs = check_images(images, dtype=DTYPES[first.dtype], device=torch.device(first.device))
        expected = check_targets(targets, len(inputs), dtype=inputs.dtype, device=inputs.device)
        inputs, expected, weights = weighing(inputs, expected, sample_weight)
        flat = are_flat(targets)
        channels, height, width = inputs.shape[1:]
        n_train = sum(row_counts(inputs))
        chosen = self.for_images((channels, height, width), n_train, classes=are_classes(expected))
        if chosen is not self:
            return self._take(chosen.fit(images, targets, sample_weight, callback, on_layer, finished, verbose=verbose))
        self.image_shape_, self.input_range_ = tuple(int(side) for side in inputs.shape[1:]), range_of(inputs)
        self.blocks_: list[ConvexConvBlock] = []
        self.standardizers_: list[Standardizer | PatchPCA | None] = []
        kept = [] if finished is None else list(zip(finished.blocks_, finished.standardizers_, strict=True))
        if len(kept) >= len(settings):
            self.blocks_, self.standardizers_ = [block for block, _ in kept], [part for _, part in kept]
            return self
        judging = None
        # The number of this process's first image, among those of all.
        number = sum(row_counts(inputs)[: rank()])
        seed = seed_of(first.random_state)
        copies = shifted(inputs, seed, number) if self.crop else None
        if self.validation is not None:
            held = held_out(inputs, expected, float(self.validation), seed).to(inputs.device)
            judging = Stage.first(
                inputs[held], expected[held], None if weights is None else weights[held], mirror=self.mirror
            )
            inputs, expected = inputs[~held], expected[~held]
            weights = None if weights is None else weights[~held]
            copies = None if copies is None else copies[~held]
        if copies is not None:
            # Each beside its image, so that the order doesn't depend on which process has which images.
            inputs = torch.stack([inputs, copies], dim=1).flatten(0, 1)
            expected, weights = twice(expected), None if weights is None else twice(weights)
        training = Stage.first(inputs, expected, weights, mirror=self.mirror)
        del inputs, expected, copies
        for layer, block in enumerate(settings):
            known = layer < len(kept)
            standardizer = kept[layer][1] if known else self._standardizer(layer, training)
            self.standardizers_.append(standardizer)
            training = replace(training, inputs=self._inputs(layer, training.inputs))
            if judging is not None:
                judging = replace(judging, inputs=self._inputs(layer, judging.inputs))
            fitted = None if known else self._fit_block(layer, block, training, judging, flat, callback, telling)
            block, prediction = fitted or (kept[layer][0], None)
            self.blocks_.append(block)
            if self.residual or on_layer is not None:
                training = training.after(block, prediction)
            if not known:
                logger.info("layer %d: %s", layer + 1, block.certificate_)
                if on_layer is not None:
                    on_layer(layer, block, training)
            if self.residual:
                training = training.remainder()
                judging = None if judging is None else judging.after(block).remainder()
        return self

    def _take(self, fitted: LayerwiseCNN) -> LayerwiseCNN:
        """Take what a stack of other settings has learnt, and its settings for whatever follows."""
        self.used_ = fitted
        self.learn_from(fitted)
        return self

    def _fit_block(
        self,
        layer: int,
        block: ConvexConvBlock,
        training: Stage,
        judging: Stage | None,
        flat: bool,
        callback: Callable[[int, Progress], None] | None,
        telling: Telling,
    ) -> tuple[ConvexConvBlock, Tensor | None]:
        """Return the block of a layer, fitted, and what it predicts for what it was fitted on, if that is known.

        Its reg is chosen here if that is asked for.
        """

        def report(progress: Progress) -> None:
            if callback is not None:
                callback(layer, progress)

        name = f"layer {layer + 1}"
        hears = telling.hears(name, report)
        targets = training.targets[:, 0] if flat else training.targets
        fraction = self.fraction_of(layer)
        if judging is not None:
            smallest = _SMALLEST_FRACTION if self.reg_fraction is None else fraction
            own, held = ((stage.inputs, stage.targets, stage.weights) for stage in (training, judging))
            began = time.perf_counter()
            chosen = choose_reg(block, own, held, points=_PATH_POINTS, smallest=smallest, flat=flat, callback=hears)
            seconds = time.perf_counter() - began
            chosen.result_ = chosen.result_.within(seconds - chosen.result_.seconds, seconds)
            return chosen, None
        task = block.task(training.inputs, targets, training.weights)
        telling.begin(name, task)
        prediction = block.fit_task(task, flat, fraction, hears)
        telling.end(name, block.certificate_)
        block.reg = block.reg_
        return block, prediction

    @plainly
    def to_torch(self, layer: int = -1, *, neurons: Neurons | None = None, alone: bool = False) -> nn.Module:
        """Return the network that ends in a layer's readout, as one flat Sequential of standard torch modules.

        Its modules are, for j = 1, 2, ... up to that layer, ``standardize{j}`` (a 1 x 1 Conv2d with a group a
        channel, whose parameters ask for no gradient), ``conv{j}``, ``relu{j}`` and ``downsample{j}`` (AvgPool2d),
        and at the end ``pool``, ``flatten`` and ``linear``. A gated block at the end has a gated convolution
        ``gated{j}`` in place of ``conv{j}`` and ``relu{j}``; below the end it hands on the ReLU responses of its
        gates, as in ``transform``. With ``project`` two fixed convolutions ``channels{j}`` and ``patches{j}`` take the
        place of ``standardize{j}``. The module shares no memory with the stack.

        With ``residual`` or ``mirror`` it is a ``StackedCNN``, which adds the layers' predictions and averages over
        mirror images; maps that were kept in float16 are not rounded in it.

        Parameters
        ----------
        layer : int
            Counted from 0; the last one by default.
        neurons : Neurons, optional
            What stands in place of the last block, with its geometry: a rival trained on the same inputs.
        alone : bool
            The last block's prediction alone, without those of the layers before and without mirror images: always a
            flat Sequential.

        Returns
        -------
        nn.Sequential or StackedCNN
            Takes images (n, C, H, W) in the blocks' dtype; gives (n, outputs).

        Raises
        ------
        NotFittedError
            Before ``fit``.
        InputError
            If there is no such layer, or the neurons don't fit its inputs.

        Examples
        --------
        >>> import numpy as np
        >>> images = np.random.default_rng(0).normal(size=(30, 1, 6, 6))
        >>> block = ConvexConvBlock(gates=5, reg=0.1, padding=1, pooling="mean")
        >>> stack = LayerwiseCNN(layers=2, block=block, downsample=2).fit(images, images.mean(axis=(1, 2, 3)))
        >>> module = stack.to_torch()
        >>> [name for name, _ in module.named_children()][:5]
        ['standardize1', 'conv1', 'relu1', 'downsample1', 'standardize2']
        >>> np.allclose(module(torch.from_numpy(images))[:, 0].detach(), stack.predict(images))
        True
        """
        self._check_fitted()
        if not is_int(layer, -len(self.blocks_), len(self.blocks_)):
            raise InputError(f"layer must be between 0 and {len(self.blocks_) - 1}; got {layer!r}.")
        last = int(layer) % len(self.blocks_)
        block = self.blocks_[last]
        head = block.to_torch() if neurons is None else rival_head(neurons, block)
        inputs = [input_modules(part, number) for number, part in enumerate(self.standardizers_[: last + 1], 1)]
        maps = [
            map_modules(self.blocks_[j], self.handed_on(j), self.pooling_after(j), number=j + 1) for j in range(last)
        ]
        if (self.used.residual or self.used.mirror) and not alone:
            return StackedCNN(
                [nn.Sequential(part) for part in inputs],
                [*(block.to_torch() for block in self.blocks_[:last]), head],
                [nn.Sequential(part) for part in maps],
                add=self.used.residual,
                mirror=self.used.mirror,
            )
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        for before, after in zip(inputs, maps, strict=False):
            modules.update(before | after)
        modules.update(inputs[last])
        names = (block.neurons_ if neurons is None else neurons).layer_names(last + 1)
        modules.update(zip([*names, "pool", "flatten", "linear"], head, strict=True))
        return nn.Sequential(modules)
