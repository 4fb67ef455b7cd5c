"""The scikit-learn face: its own estimator checks, labels, shapes, probabilities and searches."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import Any

import numpy as np
import problems
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from cvxcnn import ConvexCNNClassifier, ConvexCNNRegressor, ConvexConvBlock, PricingOptions
from cvxcnn.errors import InputError
from cvxcnn.models.probabilities import nearest_probabilities

QUICK = PricingOptions(starts=0)
BLOCK = ConvexConvBlock(gates=20, pricing=QUICK)


def small(**settings: Any) -> ConvexConvBlock:
    whole = {"padding": 0, "pooling": "sum", "pool_cells": 1}
    return ConvexConvBlock(**{**whole, "gates": 20, "tol": 1e-4, "pricing": QUICK, **settings})


# scikit-learn's checks. They feed flat (n, d) arrays of few features, which are images of one pixel here. None is
# expected to fail; these are the ones that scikit-learn skips, with its reason and what stands in for them.
SKIPPED = {
    "check_array_api_input": "runs with SCIPY_ARRAY_API=1 alone; stand-in: test_tensors_of_any_kind",
    "check_classifier_data_not_an_array": "its last step needs pandas; stand-in: test_a_table_with_column_names",
    "check_regressor_data_not_an_array": "its last step needs pandas; stand-in: test_a_table_with_column_names",
    "check_sample_weights_pandas_series": "needs pandas; stand-in: test_weights.py, weights of any kind",
}


@parametrize_with_checks(
    [
        ConvexCNNClassifier(block=small()),
        ConvexCNNClassifier(block=small(loss="logistic")),
        ConvexCNNClassifier(block=small(loss="softmax")),
        # That a weight of 2 is an image twice is checked to 1e-7, of predictions.
        ConvexCNNClassifier(block=small(activation="gated_relu", penalty="group", tol=1e-12)),
        ConvexCNNRegressor(block=small()),
        ConvexCNNRegressor(block=small(), layers=2, reg_fraction=1e-3),
    ]
)
def test_the_checks_of_scikit_learn(estimator: Any, check: Callable[[Any], None]) -> None:
    try:
        check(estimator)
    except unittest.SkipTest as skip:
        assert check.func.__name__ in SKIPPED, skip  # type: ignore[attr-defined]
        raise


class Table:
    """A table that is no array and becomes one, with names that scikit-learn reads only from libraries it knows."""

    def __init__(self, values: np.ndarray, columns: list[str]) -> None:
        self.values, self.columns = values, columns
        self.shape, self.ndim, self.dtypes = values.shape, 2, [values.dtype] * values.shape[1]

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values.astype(dtype or self.values.dtype)


def test_a_table_with_column_names() -> None:
    values = np.random.default_rng(0).normal(size=(30, 3))
    labels = (values[:, 0] > 0).astype(int)
    model = ConvexCNNClassifier(block=small()).fit(Table(values, ["a", "b", "c"]), labels)
    plain = ConvexCNNClassifier(block=small()).fit(values.tolist(), labels.tolist())
    assert model.n_features_in_ == 3
    np.testing.assert_array_equal(
        model.decision_function(Table(values, ["a", "b", "c"])), plain.decision_function(values)
    )


# Labels and probabilities.


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    return problems.digits(120, classes=3)


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_string_labels_probabilities_and_scores(
    digits: tuple[np.ndarray, np.ndarray], loss: str, n_classes: int
) -> None:
    images, labels = (part[digits[1] < n_classes] for part in digits)
    names = np.array(["zero", "one", "two"])[labels]
    model = ConvexCNNClassifier(block=clone(BLOCK).set_params(loss=loss, tol=1e-4)).fit(images, names)
    assert model.classes_.tolist() == sorted({"zero", "one", "two"} - ({"two"} if n_classes == 2 else set()))
    assert model.n_features_in_ == 64
    assert model.score(images, names) > 0.95
    decisions, outputs = model.decision_function(images), model.stack_.predict(images)
    probabilities = model.predict_proba(images)
    assert probabilities.shape == (len(images), n_classes)
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    np.testing.assert_array_equal(model.classes_[probabilities.argmax(axis=1)], model.predict(images))
    chosen = (decisions > 0).astype(int) if n_classes == 2 else decisions.argmax(axis=1)
    np.testing.assert_array_equal(model.classes_[chosen], model.predict(images))
    if loss == "softmax":
        np.testing.assert_allclose(probabilities, softmax(outputs, axis=1))
    elif loss == "logistic":
        ones = expit(outputs if n_classes == 3 else np.stack([-outputs, outputs], axis=1))
        np.testing.assert_allclose(probabilities, ones / ones.sum(axis=1, keepdims=True))
    elif n_classes == 2:
        np.testing.assert_allclose(probabilities[:, 1], np.clip(0.5 + decisions / 2, 0, 1), atol=1e-12)


@given(st.lists(st.lists(st.floats(-3, 3), min_size=3, max_size=3), min_size=1, max_size=5))
def test_the_nearest_probabilities_solve_their_problem(rows: list[list[float]]) -> None:
    outputs = np.array(rows)
    found = nearest_probabilities(outputs)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    # First-order condition: (found - outputs) . (p - found) >= 0 at every corner p of the simplex.
    slack = (found - outputs) - ((found - outputs) * found).sum(axis=1, keepdims=True)
    assert slack.min() >= -1e-9


# Shapes.


def test_all_shapes_and_tensors_give_the_same_model(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    expected = ConvexCNNClassifier(block=BLOCK).fit(images, labels).decision_function(images)
    flat = ConvexCNNClassifier(block=BLOCK, image_shape=(8, 8)).fit(images.reshape(-1, 64), labels)
    np.testing.assert_array_equal(flat.decision_function(images.reshape(-1, 64)), expected)
    np.testing.assert_array_equal(flat.decision_function(images), expected)
    np.testing.assert_array_equal(flat.decision_function(torch.tensor(images.reshape(-1, 64))), expected)


def test_tensors_of_any_kind(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    expected = ConvexCNNClassifier(block=BLOCK).fit(images, labels).decision_function(images)
    for convert in (torch.tensor, lambda values: torch.tensor(values, requires_grad=values.dtype.kind == "f")):
        model = ConvexCNNClassifier(block=BLOCK).fit(convert(images)[:, None], convert(labels))
        np.testing.assert_array_equal(model.decision_function(convert(images)), expected)
    regressor = ConvexCNNRegressor(block=BLOCK).fit(torch.tensor(images), torch.tensor(labels / 2))
    np.testing.assert_array_equal(
        regressor.predict(images), ConvexCNNRegressor(block=BLOCK).fit(images, labels / 2).predict(images)
    )


def test_flat_features_are_a_fully_connected_network() -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(40, 5)), rng.normal(size=40)
    block = small(reg=0.5, kernel_size=3, padding=1, pool_cells=2)
    for layers in (1, 2):
        model = ConvexCNNRegressor(block=block, layers=layers, reg_fraction=None, downsample=2).fit(features, targets)
        by_hand = ConvexCNNRegressor(
            block=small(reg=0.5, kernel_size=1), layers=layers, reg_fraction=None, image_shape=(5, 1, 1)
        ).fit(features, targets)
        np.testing.assert_array_equal(model.predict(features), by_hand.predict(features))
    # By hand: every neuron sees all standardized features, and there is nothing to pool.
    model = ConvexCNNRegressor(block=block, reg_fraction=None).fit(features, targets)
    neurons = model.stack_.blocks_[0].neurons_
    filters, readout = neurons.filters.numpy(), neurons.readout.numpy()
    inputs = (features - features.mean(axis=0)) / features.std(axis=0)
    outputs = np.maximum(np.c_[inputs, np.ones(40)] @ filters.T, 0) @ readout[:, 0]
    np.testing.assert_allclose(model.predict(features), outputs[:, 0])


def test_float32_blocks_take_float32_images(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    model = ConvexCNNClassifier(block=clone(BLOCK).set_params(dtype="float32", tol=1e-3)).fit(images, labels)
    assert model.decision_function(images.astype(np.float32)).dtype == np.float32
    assert model.score(images, labels) > 0.95


# Model selection.


def test_model_selection_and_pipelines(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits[0][:, None], digits[1]
    search = GridSearchCV(ConvexCNNClassifier(block=BLOCK), {"reg_fraction": [0.01, 0.9]}, cv=2).fit(images, labels)
    assert search.best_params_ == {"reg_fraction": 0.01}
    doubled = make_pipeline(FunctionTransformer(np.negative), ConvexCNNClassifier(block=BLOCK))
    assert cross_val_score(doubled, images, labels, cv=2).min() > 0.8
    assert cross_val_score(ConvexCNNRegressor(block=BLOCK), images, labels - 1.0, cv=2).min() > 0.5


def test_nested_parameters(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    search = GridSearchCV(
        ConvexCNNClassifier(block=BLOCK, reg_fraction=None),
        {"block__reg": [1e4, 0.1], "block__loss": ["squared"]},
        cv=2,
    ).fit(images, labels)
    assert search.best_params_["block__reg"] == 0.1
    assert search.best_estimator_.stack_.blocks_[0].reg == 0.1
    assert BLOCK.reg is None
    # The default block is made when one of its parameters is set.
    model = clone(ConvexCNNClassifier()).set_params(block__reg=3.0, layers=2)
    assert (model.block.reg, model.block.gates, model.layers) == (3.0, "priced", 2)
    with pytest.raises(ValueError, match="Invalid parameter 'colour'"):
        model.set_params(block__colour="red")


def test_regressor(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, _ = digits
    means = images.mean(axis=(1, 2))
    model = clone(ConvexCNNRegressor(block=BLOCK, reg_fraction=1e-3)).fit(images, means - means.mean())
    assert model.score(images, means - means.mean()) > 0.9
    assert ConvexCNNRegressor(block=BLOCK).fit(images, np.c_[means, means]).predict(images).shape == (120, 2)


# Refusals.


def test_bad_input(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    model = ConvexCNNClassifier(block=BLOCK)
    with pytest.raises(NotFittedError, match="ConvexCNNClassifier isn't fitted yet"):
        model.predict(images)
    with pytest.raises(InputError, match="64 entries for image_shape=\\(8, 8\\); got 63"):
        ConvexCNNClassifier(image_shape=(8, 8)).fit(images.reshape(-1, 64)[:, :63], labels)
    with pytest.raises(InputError, match=r"images must be .* got \(120, 1, 1, 8, 8\)"):
        model.fit(images[:, None, None], labels)
    with pytest.raises(InputError, match=r"got \(64,\).*first axis of length 1"):
        model.fit(images[0].flatten(), labels)
    with pytest.raises(InputError, match="got 5 labels for 120 images"):
        model.fit(images, labels[:5])
    with pytest.raises(InputError, match=r"two classes at least; got 1 class, .*0"):
        model.fit(images, np.zeros(120, dtype=int))
    with pytest.raises(InputError, match="Unknown label type: continuous"):
        model.fit(images, labels + 0.5)
    with pytest.raises(InputError, match="the target y is None"):
        model.fit(images, None)
    with pytest.raises(InputError, match="NaN"):
        model.fit(np.where(images > 0.5, np.nan, images), labels)
    with pytest.raises(InputError, match="unequal lengths"):
        model.fit([[[1, 2], [3]]], labels)
    for shape in ((8,), (8, 0), "8x8", (8.0, 8), 64):
        with pytest.raises(InputError, match="image_shape must be"):
            ConvexCNNClassifier(image_shape=shape).fit(images.reshape(-1, 64), labels)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="block must be a ConvexConvBlock"):
        ConvexCNNClassifier(block="dense").fit(images, labels)  # type: ignore[arg-type]
    with pytest.raises(InputError, match='A regressor needs loss="squared"'):
        ConvexCNNRegressor(block=small(loss="softmax")).fit(images, labels)


def test_images_of_another_shape_than_those_fitted(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    model = ConvexCNNClassifier(block=BLOCK).fit(images, labels)
    with pytest.raises(InputError, match=r"got \(120, 64\). Reshape flat images first, or give image_shape"):
        model.predict(images.reshape(-1, 64))
    with pytest.raises(InputError, match="images must have the shape that the stack was fitted on"):
        model.predict(images[:, :7])
    flat = ConvexCNNClassifier(block=BLOCK).fit(images.reshape(-1, 64), labels)
    with pytest.raises(InputError, match="X has 63 features, but ConvexCNNClassifier is expecting 64 features"):
        flat.predict(images.reshape(-1, 64)[:, 1:])
