"""Two-phase training: the certified rate, the ridge regression with reg, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import noise_problem
from sklearn.linear_model import Ridge
from torch import Tensor

from cvxcnn.errors import InputError
from cvxcnn.ordinary.minibatch import Minibatches
from cvxcnn.ordinary.two_phase import two_phases
from cvxcnn.patches import Patches
from cvxcnn.theory import train_two_phase


def problem() -> tuple[Patches, Tensor]:
    return noise_problem(10, 5, outputs=2, seed=3, kernel_size=3, padding=1, bias=True, pool_cells=2, pooling="mean")


def test_every_step_is_at_most_its_bound_and_the_promise_is_kept() -> None:
    patches, targets = problem()
    result = train_two_phase(patches, targets, 40, epochs=3, steps=20_000, tol=0.05)
    assert result.rank.decision == "full"
    assert bool((result.losses <= result.bounds * (1 + 1e-9)).all())
    assert result.losses[-1] <= 0.05 * result.losses[0]
    assert len(result.losses) - 1 <= math.ceil(result.predicted_steps)
    features = patches.relu_features(result.filters)
    outputs = torch.einsum("ncm,mco->no", features, result.readout)
    assert math.isclose(result.objective, 0.5 * float((outputs - targets).square().sum()), rel_tol=1e-9)
    values = np.linalg.svd(features.flatten(1).numpy(), compute_uv=False) ** 2
    assert math.isclose(result.predicted_steps, math.log(20) * values[0] / values[-1], rel_tol=1e-9)
    assert result.guarantee.startswith("Zero loss is guaranteed, after")


@pytest.mark.parametrize("width", [2, 12])
def test_with_reg_it_is_ridge_regression_and_nothing_is_guaranteed(width: int) -> None:
    patches, targets = problem()
    result = train_two_phase(patches, targets, width, reg=0.3, noise=0.0, epochs=3)
    alive = result.first.filters.any(dim=1)
    torch.testing.assert_close(result.filters[alive], result.first.filters[alive])
    features = patches.relu_features(result.filters).flatten(1).numpy()
    ridge = Ridge(alpha=0.3, fit_intercept=False).fit(features, targets.numpy())
    found = result.readout.transpose(0, 1).flatten(0, 1)
    np.testing.assert_allclose(found.numpy().T, ridge.coef_, rtol=1e-6, atol=1e-9)
    assert result.guarantee.startswith("Nothing is guaranteed: the theorem is about the loss without reg")


def test_weights_of_images_are_those_of_the_ridge_regression() -> None:
    patches, targets = problem()
    weights = torch.arange(10, dtype=torch.float64) / 4
    how = Minibatches(epochs=2, weights=weights)
    result = two_phases(patches, targets, 0.3, 6, how)
    features = patches.relu_features(result.filters).flatten(1).numpy()
    ridge = Ridge(alpha=0.3, fit_intercept=False).fit(features, targets.numpy(), sample_weight=weights.numpy())
    np.testing.assert_allclose(
        result.readout.transpose(0, 1).flatten(0, 1).numpy().T, ridge.coef_, rtol=1e-6, atol=1e-9
    )
    errors = np.square(ridge.predict(features) - targets.numpy()).sum(axis=1)
    squares = float(result.filters.square().sum() + result.readout.square().sum())
    assert math.isclose(result.objective, 0.5 * float(weights.numpy() @ errors) + 0.15 * squares, rel_tol=1e-9)


def test_copies_of_an_image_are_never_guaranteed() -> None:
    patches, targets = problem()
    twice = Patches(torch.cat([patches.images, patches.images[:1]]), patches.geometry)
    result = train_two_phase(twice, torch.cat([targets, targets[:1] + 1]), 40, epochs=2, steps=5)
    # "deficient", or "undecided" where a product has rounded the copies differently.
    assert result.rank.decision != "full" and result.guarantee.startswith("Nothing is guaranteed: the rank")


def test_a_promise_of_too_many_steps_is_called_useless() -> None:
    patches, targets = problem()
    near = Patches(torch.cat([patches.images, patches.images[:1] + 1e-5]), patches.geometry)
    result = train_two_phase(near, torch.cat([targets, targets[:1] + 1]), 40, epochs=2, steps=5)
    assert result.predicted_steps > 1e6 and result.guarantee.endswith("True, and useless.")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 2}, "two-phase training of 10 images needs as many features; 2 neurons in 4 cells have 8"),
        ({"width": 40, "reg": -1.0}, "reg must be a number >= 0"),
        ({"width": 40, "noise": math.nan}, "noise must be a number >= 0"),
        ({"width": 40, "steps": 0}, "steps must be an int >= 1"),
        ({"width": 40, "tol": 2.0}, "tol must be between 0 and 1"),
    ],
)
def test_bad_arguments_are_refused_in_words(settings: dict[str, float], words: str) -> None:
    patches, targets = problem()
    with pytest.raises(InputError, match=words):
        train_two_phase(patches, targets, **settings)  # type: ignore[arg-type]
