"""The scikit-learn face: conventions, labels and shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from cvxcnn import ConvexCNNClassifier, ConvexCNNRegressor, ConvexConvBlock
from cvxcnn.errors import InputError

BLOCK = ConvexConvBlock(padding=1, pooling="mean", pool_cells=2, bias=True, penalty="dense", gates=20)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(n_class=3, return_X_y=True)
    return images[:120].reshape(-1, 8, 8) / 16, labels[:120]


def test_string_labels_probabilities_and_scores(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    names = np.array(["zero", "one", "two"])[labels]
    model = ConvexCNNClassifier(block=BLOCK).fit(images, names)
    assert model.classes_.tolist() == ["one", "two", "zero"]
    assert model.n_features_in_ == 64
    assert model.score(images, names) > 0.95
    probabilities = model.predict_proba(images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    np.testing.assert_array_equal(model.classes_[model.decision_function(images).argmax(axis=1)], model.predict(images))


def test_two_classes_give_one_decision_value(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    model = ConvexCNNClassifier(block=BLOCK).fit(images, labels == 0)
    decisions = model.decision_function(images)
    assert decisions.shape == (120,)
    np.testing.assert_array_equal(decisions > 0, model.predict(images))


def test_all_shapes_and_tensors_give_the_same_model(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    expected = ConvexCNNClassifier(block=BLOCK).fit(images, labels).decision_function(images)
    flat = ConvexCNNClassifier(block=BLOCK, image_shape=(8, 8)).fit(images.reshape(-1, 64), labels)
    np.testing.assert_array_equal(flat.decision_function(images.reshape(-1, 64)), expected)
    tensors = ConvexCNNClassifier(block=BLOCK).fit(torch.tensor(images)[:, None], torch.tensor(labels))
    np.testing.assert_array_equal(tensors.decision_function(torch.tensor(images)), expected)


def test_model_selection_and_pipelines(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    search = GridSearchCV(ConvexCNNClassifier(block=BLOCK), {"reg_fraction": [0.01, 0.9]}, cv=2).fit(images, labels)
    assert search.best_params_ == {"reg_fraction": 0.01}
    doubled = make_pipeline(FunctionTransformer(np.negative), ConvexCNNClassifier(block=BLOCK))
    assert cross_val_score(doubled, images, labels, cv=2).min() > 0.8


def test_regressor(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, _ = digits
    means = images.mean(axis=(1, 2))
    model = clone(ConvexCNNRegressor(block=BLOCK, reg_fraction=1e-3)).fit(images, means - means.mean())
    assert model.score(images, means - means.mean()) > 0.9
    assert ConvexCNNRegressor(block=BLOCK).fit(images, np.c_[means, means]).predict(images).shape == (120, 2)


def test_bad_input(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    model = ConvexCNNClassifier(block=BLOCK)
    with pytest.raises(NotFittedError, match="ConvexCNNClassifier isn't fitted yet"):
        model.predict(images)
    with pytest.raises(InputError, match="Reshape flat images first"):
        model.fit(images.reshape(-1, 64), labels)
    with pytest.raises(InputError, match="64 entries for image_shape=\\(8, 8\\); got 63"):
        ConvexCNNClassifier(image_shape=(8, 8)).fit(images.reshape(-1, 64)[:, :63], labels)
    with pytest.raises(InputError, match="got 5 labels for 120 images"):
        model.fit(images, labels[:5])
    with pytest.raises(InputError, match=r"[Tt]wo classes"):
        model.fit(images, np.zeros(120, dtype=int))
