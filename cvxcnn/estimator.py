"""The scikit-learn face: a classifier and a regressor over a stack of convex blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d
from torch import Tensor

from .block import ConvexConvBlock
from .data import check_images, check_targets, one_hot
from .errors import InputError
from .stack import LayerwiseCNN

__all__ = ["ConvexCNNClassifier", "ConvexCNNRegressor"]


class _ConvexCNN(BaseEstimator):
    """What both estimators share: settings, and images of every accepted shape."""

    def __init__(
        self,
        *,
        layers: int = 1,
        block: ConvexConvBlock | None = None,
        downsample: int = 1,
        standardize: bool = True,
        reg_fraction: float | None = 0.01,
        image_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.layers = layers
        self.block = block
        self.downsample = downsample
        self.standardize = standardize
        self.reg_fraction = reg_fraction
        self.image_shape = image_shape

    def _images(self, images: Any) -> Tensor:
        if self.image_shape is not None:
            flat = np.asarray(images)
            if flat.ndim == 2:
                size = int(np.prod(self.image_shape))
                if flat.shape[1] != size:
                    raise InputError(
                        f"flat images must have {size} entries for image_shape={self.image_shape}; got {flat.shape[1]}."
                    )
                images = flat.reshape(len(flat), *self.image_shape)
        return check_images(images)

    def _fit_stack(self, inputs: Tensor, targets: Any) -> None:
        block = self.block
        if block is None:
            block = ConvexConvBlock(padding=1, pooling="mean", pool_cells=2, bias=True, penalty="dense", gates="priced")
        self.stack_ = LayerwiseCNN(
            layers=self.layers,
            block=block,
            downsample=self.downsample,
            standardize=self.standardize,
            reg_fraction=self.reg_fraction,
        ).fit(inputs, targets)
        self.n_features_in_ = int(np.prod(inputs.shape[1:]))

    def _outputs(self, images: Any) -> np.ndarray:
        if not hasattr(self, "stack_"):
            raise NotFittedError(f"This {type(self).__name__} isn't fitted yet. Call fit first.")
        return self.stack_.predict(self._images(images))


class ConvexCNNClassifier(ClassifierMixin, _ConvexCNN):
    """A classifier of images: a stack of convex blocks fitted to one-hot targets.

    Parameters
    ----------
    layers : int
        Number of blocks.
    block : ConvexConvBlock or None
        Settings of every block; None for dense blocks with priced filters.
    downsample, standardize
        As in ``LayerwiseCNN``.
    reg_fraction : float or None
        Each block's reg as a share of its ``reg_max``; None to use the ``reg`` of ``block``.
    image_shape : tuple or None
        (C, H, W) or (H, W) of flat images (n, C * H * W).

    Attributes
    ----------
    classes_ : ndarray
    stack_ : LayerwiseCNN
    n_features_in_ : int
        C * H * W.

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

    def fit(self, images: Any, labels: Any) -> ConvexCNNClassifier:
        """Train on images (n, C, H, W), (n, H, W), or flat (n, d), and labels (n,) of any kind."""
        inputs = self._images(images)
        if isinstance(labels, torch.Tensor):
            labels = labels.cpu().numpy()
        column = column_or_1d(labels)
        check_classification_targets(column)
        if len(column) != len(inputs):
            raise InputError(f"labels must be one an image; got {len(column)} labels for {len(inputs)} images.")
        self.classes_, indices = np.unique(column, return_inverse=True)
        self._fit_stack(inputs, one_hot(indices, len(self.classes_)))
        return self

    def decision_function(self, images: Any) -> np.ndarray:
        """Return the outputs of the network, (n, classes), or their difference (n,) for two classes."""
        outputs = self._outputs(images)
        return outputs[:, 1] - outputs[:, 0] if len(self.classes_) == 2 else outputs

    def predict_proba(self, images: Any) -> np.ndarray:
        """Return outputs clipped to [0, 1] and normalised, (n, classes): squared loss estimates probabilities."""
        clipped = np.clip(self._outputs(images), 0.0, 1.0)
        total = clipped.sum(axis=1, keepdims=True)
        return np.where(total > 0, clipped / np.maximum(total, 1e-300), 1.0 / len(self.classes_))

    def predict(self, images: Any) -> np.ndarray:
        """Return the class of the largest output for each image, (n,)."""
        outputs = self._outputs(images)
        return np.asarray(self.classes_[outputs.argmax(axis=1)])


class ConvexCNNRegressor(RegressorMixin, _ConvexCNN):
    """A regressor on images: a stack of convex blocks fitted to numbers.

    Parameters and attributes are those of ``ConvexCNNClassifier``, but for the classes.

    Examples
    --------
    >>> images = np.random.default_rng(0).normal(size=(20, 5, 5))
    >>> model = ConvexCNNRegressor(block=ConvexConvBlock(gates=10, penalty="dense"))
    >>> model.fit(images, images.mean(axis=(1, 2))).predict(images).shape
    (20,)
    """

    def fit(self, images: Any, targets: Any) -> ConvexCNNRegressor:
        """Train on images (n, C, H, W), (n, H, W), or flat (n, d), and targets (n,) or (n, outputs)."""
        inputs = self._images(images)
        check_targets(targets, len(inputs))
        self._fit_stack(inputs, targets)
        return self

    def predict(self, images: Any) -> np.ndarray:
        """Return predictions, (n,) or (n, outputs) as the targets were."""
        return self._outputs(images)
