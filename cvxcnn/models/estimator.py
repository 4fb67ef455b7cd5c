"""The scikit-learn face: a classifier and a regressor over a stack of convex blocks."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_expit, softmax
from sklearn.base import ClassifierMixin, RegressorMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, column_or_1d, validate_data
from torch import Tensor

from ..core.checks import is_int
from ..data.checks import check_images, check_labels, check_present, check_targets
from ..data.class_weights import by_class, check_class_weight
from ..data.images import one_hot
from ..data.layout import check_layout, looks_channels_last
from ..errors import InputError
from ..fitting import DTYPES
from ..persistence.checks import MisfitError
from ..persistence.files import CONFIG_FILE, read_config
from .block import ConvexConvBlock
from .blocks import given_blocks
from .door import weighing
from .estimator_state import (
    STACK,
    EstimatorState,
    class_weight_config,
    class_weight_of,
    classes_of,
    classes_of_run,
    label_config,
)
from .probabilities import nearest_probabilities
from .stack import LayerwiseCNN

__all__ = ["ConvexCNNClassifier", "ConvexCNNRegressor"]

# On features without neighbours every patch is the whole image: one pixel with a channel a feature.
_ONE_PIXEL: dict[str, Any] = {"kernel_size": 1, "stride": 1, "padding": 0, "pool_cells": 1}


def _array(values: Any) -> Any:
    """Return tensors and nested sequences as arrays; tables, sparse matrices and what can't be one as they are."""
    if isinstance(values, Tensor):
        # numpy has no bfloat16; float32 holds all of its values.
        return (values.float() if values.dtype == torch.bfloat16 else values).detach().cpu().numpy()
    try:
        return values if hasattr(values, "ndim") else np.asarray(values)
    except ValueError:  # of unequal lengths: the checks that follow say so
        return values


def _sides(shape: Any) -> tuple[int, int, int]:
    """Return (c, h, w) of an ``image_shape``."""
    sides = tuple(shape) if isinstance(shape, (Sequence, np.ndarray)) else ()
    if len(sides) not in (2, 3) or not all(is_int(side, 1) for side in sides):
        raise InputError(f"image_shape must be (c, h, w) or (h, w), ints >= 1; got {shape!r}.")
    channels, height, width = (int(side) for side in ((1, *sides) if len(sides) == 2 else sides))
    if looks_channels_last((channels, height, width)):
        raise InputError(
            f"image_shape must be (c, h, w), channels first; {(channels, height, width)} looks like (h, w, c). Give "
            f"{(width, channels, height)}, and move the channels of the images: "
            f"np.moveaxis(images.reshape(-1, {channels}, {height}, {width}), -1, 1)."
        )
    return channels, height, width


class _ConvexCNN(EstimatorState):
    """What both estimators share: settings, and images of every accepted shape."""

    _mirrors: ClassVar[bool] = True
    """Whether an image and its mirror image have the same target."""

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
        image_shape: tuple[int, ...] | None = None,
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
        self.image_shape = image_shape

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _images(self, images: Any, *, reset: bool) -> tuple[Tensor, bool]:
        """Return images (n, C, H, W), and whether they are features without neighbours: one pixel, d channels."""
        if not isinstance(images, Tensor) or images.ndim == 2:
            images = _array(images)
        check_present("images", images)
        flat = getattr(images, "ndim", None) == 2
        if getattr(images, "ndim", None) in (0, 1):
            raise InputError(
                f"images must be (n, c, h, w), (n, h, w) or (n, d); got {tuple(images.shape)}. Reshape your data: "
                "one image needs a first axis of length 1."
            )
        if flat:
            images = self._flat_images(images, reset)
        elif self.image_shape is not None:
            self._check_sides(np.shape(images))
        elif reset:
            check_layout(images)
        like = self._blocks(flat=False)[0] if reset else self.stack_.blocks_[0]
        if like.dtype not in DTYPES:
            like.check_parameters()
        # On the processor: the stack moves images to its device when it has checked its parameters.
        inputs = check_images(images, dtype=DTYPES[like.dtype])
        if reset:
            self.n_features_in_ = math.prod(inputs.shape[1:])
            if not flat and hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
        return inputs, flat and self.image_shape is None

    def _check_sides(self, shape: tuple[int, ...]) -> None:
        """Raise InputError if images that are not flat are of other sides than ``image_shape``."""
        sides = _sides(self.image_shape)
        if len(shape) in (3, 4) and ((1, *shape[1:]) if len(shape) == 3 else tuple(shape[1:])) != sides:
            raise InputError(
                f"images must be of image_shape, (n, *{sides}) or flat (n, {math.prod(sides)}); got {tuple(shape)}. "
                "Move channels that come last: np.moveaxis(images, -1, 1)."
            )

    def _flat_images(self, images: Any, reset: bool) -> NDArray[Any]:
        width = np.shape(images)[1]
        sides = (width, 1, 1) if self.image_shape is None else _sides(self.image_shape)
        if math.prod(sides) != width:
            raise InputError(
                f"flat images must have {math.prod(sides)} entries for image_shape={self.image_shape}; got {width}."
            )
        if self.image_shape is None and not reset and self.stack_.image_shape_[1:] != (1, 1):
            raise InputError(
                f"images must be (n, c, h, w) or (n, h, w), as those fitted were, {self.stack_.image_shape_} (c, h, w) "
                f"each; got {np.shape(images)}. Reshape flat images first, or give image_shape."
            )
        try:
            table = validate_data(self, images, reset=reset, dtype=[np.float64, np.float32])
        # scikit-learn's own words, as an error of this package.
        except ValueError as error:
            raise InputError(str(error)) from error
        return np.asarray(table).reshape(len(table), *sides)

    def _blocks(self, *, flat: bool) -> list[ConvexConvBlock]:
        """Return the blocks to fit, one for each layer or one for all; on features without neighbours, of one pixel."""
        return [clone(block).set_params(**(_ONE_PIXEL if flat else {})) for block in given_blocks(self.block)]

    def _fit_stack(self, inputs: Tensor, targets: Any, weights: Any, *, flat: bool, verbose: bool) -> None:
        values: dict[str, Any] = {name: getattr(self, name) for name in STACK}
        if flat or self.block is not None:
            blocks = self._blocks(flat=flat)
            values["block"] = blocks[0] if len(blocks) == 1 else blocks
        if flat:
            if self.recipe not in ("auto", "exact"):
                raise InputError(
                    f"recipe={self.recipe!r} is of images, and flat features have no patches. Give image_shape, or "
                    'leave recipe at "auto".'
                )
            # Nothing to pool, to shift or to mirror, and no photographs.
            values.update(downsample=1, crop=False, mirror=False, recipe="exact")
        shape = inputs.shape[1], inputs.shape[2], inputs.shape[3]
        stack = LayerwiseCNN(**values).for_images(shape, len(inputs), classes=self._mirrors)
        if stack.layers is None:
            stack.layers = 1
        self.stack_ = stack.fit(inputs, targets, weights, verbose=verbose)

    def _outputs(self, images: Any) -> NDArray[Any]:
        if not hasattr(self, "stack_"):
            raise NotFittedError(f"This {type(self).__name__} isn't fitted yet. Call fit first.")
        return self.stack_.predict(self._images(images, reset=False)[0])


class ConvexCNNClassifier(ClassifierMixin, _ConvexCNN):
    """A classifier of images: a stack of convex blocks fitted to the classes.

    With c classes the blocks are fitted to one-hot targets (n, c); with ``loss="logistic"`` to -1 and +1, one output
    for two classes and one against the rest for more.

    Images may be (n, C, H, W), (n, H, W), or flat (n, d) with ``image_shape``; tensors, too. Flat (n, d) without
    ``image_shape`` are features without neighbours: images of one pixel with d channels. The network is then fully
    connected, and the block's kernel_size, stride, padding and pool_cells, and ``downsample``, don't matter.

    Parameters
    ----------
    layers : int or None
        Number of blocks; None for those of the recipe, or 1 without one.
    block : ConvexConvBlock, one a layer, or None
        Settings of every block; None for those of the recipe.
        ``block__reg`` and the like, in ``set_params`` and in searches, go to every block.
    downsample, standardize, reg_fraction, residual, project, hand_on, mirror, crop, validation, half_maps, recipe
        As in ``LayerwiseCNN``: all that isn't given follows from the number and the size of the images. Up to 256
        pixels a channel it is the defaults of ``ConvexConvBlock``.
    image_shape : tuple or None
        (C, H, W) or (H, W) of flat images (n, C * H * W); images that are not flat must have it too.
    class_weight : None, "balanced" or dict
        Weights of images by their classes, times their own: "balanced" makes every class weigh the same (``by_class``).

    Attributes
    ----------
    classes_ : ndarray
    stack_ : LayerwiseCNN
    n_features_in_ : int
        C * H * W.
    feature_names_in_ : ndarray
        Of flat images in a table that names its columns.

    Raises
    ------
    InputError
        If images or labels can't be used, or there is one class only.

    Examples
    --------
    >>> images = np.random.default_rng(0).normal(size=(20, 5, 5))
    >>> labels = np.where(images.mean(axis=(1, 2)) > 0, "bright", "dark")
    >>> model = ConvexCNNClassifier(block=ConvexConvBlock(gates=10, penalty="dense")).fit(images, labels)
    >>> model.predict(images[:2]).shape, model.predict_proba(images[:2]).shape
    ((2,), (2, 2))
    """

    kind = "ConvexCNNClassifier"
    classes_: NDArray[Any]

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
        image_shape: tuple[int, ...] | None = None,
        class_weight: Any = None,
    ) -> None:
        super().__init__(
            layers=layers, block=block, downsample=downsample, standardize=standardize, reg_fraction=reg_fraction,
            residual=residual, project=project, hand_on=hand_on, mirror=mirror, crop=crop, validation=validation,
            half_maps=half_maps, recipe=recipe, image_shape=image_shape,
        )  # fmt: skip
        self.class_weight = class_weight

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: str = "cpu") -> ConvexCNNClassifier:
        """Return the classifier that ``save`` wrote, or that of a finished run, whose classes are named beside it.

        Classes of a run that are named by whole numbers are numbers. It takes images as the run saw them, pixels in
        [0, 1]; ``predict`` warns of images of another scale.

        Parameters
        ----------
        folder : str or path
        device : str
            Where the model is put.

        Raises
        ------
        ModelFileError
            If files are missing, damaged, of another kind of model or program, or of a newer version.
        InputError
            If the device isn't there.
        """
        if read_config(Path(folder) / CONFIG_FILE).get("kind") == LayerwiseCNN.kind:
            stack = LayerwiseCNN.load(folder, device=device)
            classes = classes_of_run(stack)
            if classes is not None and len(classes) == stack.blocks_[-1].n_outputs_:
                model = cls.of_stack(stack)
                model.classes_, model.extra_ = classes, stack.extra_
                return model
        return super().load(folder, device=device)

    def own_config(self) -> dict[str, Any]:
        return {"classes": label_config(self.classes_), "class_weight": class_weight_config(self.class_weight)}

    def take_own(self, table: dict[str, Any]) -> None:
        self.classes_ = classes_of(table, self.stack_)
        self.class_weight = class_weight_of(table)

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, verbose: bool = False) -> ConvexCNNClassifier:  # noqa: N803
        """Train on images X of any accepted shape and labels y (n,), numbers or strings.

        Images of ``sample_weight`` (n,) 0 are left out, with them classes that are of these alone; one of weight 2 is
        as good as there twice. ``verbose`` says how far the fit is.
        """
        check_class_weight(self.class_weight)
        inputs, flat = self._images(X, reset=True)
        if y is None:
            raise InputError("ConvexCNNClassifier requires y to be passed, but the target y is None.")
        try:
            column = column_or_1d(check_labels(y), warn=True)
            if column.dtype.kind == "f":
                check_array(column, ensure_2d=False, input_name="y")
            check_classification_targets(column)
        except ValueError as error:
            raise InputError(str(error)) from error
        if len(column) != len(inputs):
            raise InputError(f"labels must be one an image; got {len(column)} labels for {len(inputs)} images.")
        inputs, column, weights = weighing(inputs, column, sample_weight)
        classes, indices = np.unique(column, return_inverse=True)
        if len(classes) < 2:
            raise InputError(
                f"Classification needs two classes at least; got 1 class, {classes[0]!r}. Add images of another class."
            )
        by_name = by_class(self.class_weight, indices, classes, weights)
        self._fit_stack(inputs, self._targets(indices, len(classes)), by_name, flat=flat, verbose=verbose)
        self.classes_ = classes
        return self

    def _targets(self, indices: NDArray[Any], n_classes: int) -> Tensor:
        if self._blocks(flat=False)[-1].loss != "logistic":
            return one_hot(indices, n_classes)
        return torch.from_numpy(2.0 * indices - 1.0) if n_classes == 2 else 2.0 * one_hot(indices, n_classes) - 1.0

    def decision_function(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Return a score a class (n, classes), the network's outputs, or for two classes one score (n,).

        It is positive for ``classes_[1]``: the difference of two outputs, or the one output of the logistic loss.
        """
        outputs = self._outputs(X)
        return outputs[:, 1] - outputs[:, 0] if outputs.shape[1:] == (2,) else outputs

    def predict_proba(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Return probabilities (n, classes), which the loss defines.

        Softmax of the outputs for ``loss="softmax"``; the logistic function for ``loss="logistic"``, normalised if
        there are more than two classes; for the squared loss, whose outputs estimate the 0/1 targets, the nearest
        probabilities to the outputs in the Euclidean distance.
        """
        outputs = self._outputs(X)
        loss = self.stack_.blocks_[-1].loss
        if outputs.ndim == 1:
            return np.column_stack([expit(-outputs), expit(outputs)])
        if loss == "squared":
            return nearest_probabilities(outputs)
        return np.asarray(softmax(outputs if loss == "softmax" else log_expit(outputs), axis=1))

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Return the class of the largest output for each image, (n,)."""
        scores = self.decision_function(X)
        return np.asarray(self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)])


class ConvexCNNRegressor(RegressorMixin, _ConvexCNN):
    """A regressor on images: a stack of convex blocks fitted to numbers by the squared loss.

    Parameters and attributes are those of ``ConvexCNNClassifier``, but for the classes. Images may have the same
    shapes.

    Examples
    --------
    >>> images = np.random.default_rng(0).normal(size=(20, 5, 5))
    >>> model = ConvexCNNRegressor(block=ConvexConvBlock(gates=10, penalty="dense"))
    >>> model.fit(images, images.mean(axis=(1, 2))).predict(images).shape
    (20,)
    """

    kind = "ConvexCNNRegressor"
    _mirrors = False  # numbers may be of where something is

    def take_own(self, table: dict[str, Any]) -> None:
        if {block.loss for block in self.stack_.blocks_} != {"squared"}:
            raise MisfitError(f"{CONFIG_FILE} has a regressor of another loss than the squared one")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.single_output, tags.target_tags.multi_output = True, True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, verbose: bool = False) -> ConvexCNNRegressor:  # noqa: N803
        """Train on images X of any accepted shape and targets y (n,) or (n, outputs).

        Images of ``sample_weight`` (n,) 0 are left out; one of weight 2 is as good as there twice. ``verbose`` says how
        far the fit is.
        """
        losses = {block.loss for block in self._blocks(flat=False)}
        if losses != {"squared"}:
            raise InputError(f'A regressor needs loss="squared"; got {sorted(losses)}. Use ConvexCNNClassifier.')
        inputs, flat = self._images(X, reset=True)
        if y is None:
            raise InputError("ConvexCNNRegressor requires y to be passed, but the target y is None.")
        check_present("targets", y)
        try:
            numbers = check_array(_array(y), ensure_2d=False, allow_nd=True, dtype=None, input_name="y")
        except ValueError as error:
            raise InputError(str(error)) from error
        if numbers.dtype.kind in "Obiu":  # integers are numbers here, as everywhere in a regressor
            numbers = numbers.astype(float)
        check_targets(numbers, len(inputs))
        inputs, numbers, weights = weighing(inputs, numbers, sample_weight)
        self._fit_stack(inputs, numbers, weights, flat=flat, verbose=verbose)
        return self

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Return predictions, (n,) or (n, outputs) as the targets were."""
        return self._outputs(X)
