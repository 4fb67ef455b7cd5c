"""Deep stacks: residual targets, projected patches, few neurons handed on, mirror images, reg by held-out images."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from eq2 import eq2_block
from problems import noise_arrays
from sklearn.base import clone

from cvxcnn import LayerwiseCNN, PricingOptions
from cvxcnn.arrangements import PatchGates
from cvxcnn.data import shifted
from cvxcnn.data.hold_out import held_out
from cvxcnn.errors import InputError, ModelFileError
from cvxcnn.models.projection import PatchPCA
from cvxcnn.models.stage import Stage

BLOCK = eq2_block(
    kernel_size=3, padding=1, pooling="mean", pool_cells=2, bias=True, intercept=True, penalty="dense",
    gates=PatchGates(8), reg=0.05, tol=1e-7, pricing=PricingOptions(starts=0),
)  # fmt: skip


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray]:
    images, _ = noise_arrays(40, 6, channels=2)
    return images, np.stack([images[:, 0].max(axis=(1, 2)), images[:, 1, :3].mean(axis=(1, 2))], axis=1)


def losses(stack: LayerwiseCNN, images: np.ndarray, targets: np.ndarray) -> list[float]:
    return [0.5 * float(np.square(targets - found).sum()) for found in stack.staged_predict(images)]


def test_no_layer_of_a_residual_stack_loses_what_those_before_have_won(problem: tuple[np.ndarray, np.ndarray]) -> None:
    stages: list[Stage] = []
    stack = LayerwiseCNN(layers=4, block=BLOCK, residual=True)
    stack.fit(*problem, on_layer=lambda layer, block, stage: stages.append(stage))
    found = losses(stack, *problem)
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(found))
    for stage, block, loss in zip(stages, stack.blocks_, found, strict=True):
        # Zero weights leave the predecessor's prediction as it is, so the objective can't be above its loss.
        assert block.result_.objective <= 0.5 * float(stage.targets.square().sum()) + 1e-9
        np.testing.assert_allclose((stage.targets + stage.offset).numpy(), problem[1], atol=1e-9)
        assert 0.5 * float((stage.targets - stage.prediction).square().sum()) == pytest.approx(loss)
    parts = [block.predict(inputs) for block, inputs in stack.layer_inputs(problem[0])]
    np.testing.assert_allclose(stack.predict(problem[0]), sum(parts), atol=1e-12)


def test_a_plain_stack_predicts_by_its_last_block_and_an_ensemble_by_the_mean(
    problem: tuple[np.ndarray, np.ndarray],
) -> None:
    stack = LayerwiseCNN(layers=2, block=BLOCK).fit(*problem)
    staged = list(stack.staged_predict(problem[0]))
    np.testing.assert_array_equal(stack.predict(problem[0]), staged[1])
    np.testing.assert_allclose(stack.predict(problem[0], ensemble=True), (staged[0] + staged[1]) / 2)
    np.testing.assert_allclose(stack.predict(problem[0], 0, ensemble=True), staged[0])
    stack.blocks_[1] = None  # what comes after the layer that is asked for isn't computed
    np.testing.assert_array_equal(stack.predict(problem[0], 0), staged[0])


def test_mirrored_images_get_the_same_predictions(problem: tuple[np.ndarray, np.ndarray]) -> None:
    images, targets = problem
    stack = LayerwiseCNN(layers=2, block=BLOCK, mirror=True, residual=True).fit(images, targets)
    np.testing.assert_allclose(stack.predict(images), stack.predict(images[:, :, :, ::-1].copy()), atol=1e-12)
    both = np.stack([images, images[:, :, :, ::-1]], axis=1).reshape(80, 2, 6, 6)
    plain = LayerwiseCNN(layers=2, block=BLOCK, residual=True).fit(both, targets.repeat(2, axis=0))
    np.testing.assert_allclose(stack.blocks_[1].result_.objective, plain.blocks_[1].result_.objective, rtol=1e-6)
    # By convexity the mean over both loses nothing on the training images.
    alone = np.square(plain.predict(both) - targets.repeat(2, axis=0)).sum()
    assert 2 * np.square(stack.predict(images) - targets).sum() <= alone


@pytest.mark.parametrize("mirror", [False, True])
def test_predictions_over_shifts_are_a_mean(problem: tuple[np.ndarray, np.ndarray], mirror: bool) -> None:
    images, targets = problem
    stack = LayerwiseCNN(layers=2, block=BLOCK, residual=True, mirror=mirror).fit(images, targets[:, 0])
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    views = [padded[:, :, y : y + 6, x : x + 6] for y, x in ((2, 2), (0, 2), (4, 2), (2, 0), (2, 4))]
    for layer, shown in enumerate(stack.staged_predict(images, shift=2)):
        np.testing.assert_allclose(shown, np.mean([stack.predict(view, layer) for view in views], axis=0), atol=1e-12)
        assert shown.shape == (len(images),)
    np.testing.assert_array_equal(stack.predict(images, shift=2), shown)
    np.testing.assert_array_equal(stack.predict(images, shift=0), stack.predict(images))
    for wrong in (-1, 1.5, True):
        with pytest.raises(InputError, match="shift must be an int >= 0, in pixels"):
            stack.predict(images, shift=wrong)  # type: ignore[arg-type]


def test_the_strongest_neurons_are_handed_on(problem: tuple[np.ndarray, np.ndarray]) -> None:
    stack = LayerwiseCNN(layers=2, block=BLOCK, hand_on=4).fit(*problem)
    first = stack.blocks_[0]
    assert stack.blocks_[1].image_shape_[0] == 4
    norms = first.neurons_.filters.norm(dim=1) * first.neurons_.readout.flatten(1).norm(dim=1)
    assert set(stack.handed_on(0).tolist()) == set(torch.topk(norms, 4).indices.tolist())
    assert stack.handed_on(0).tolist() == sorted(stack.handed_on(0).tolist())


def test_projected_patches_are_principal_components() -> None:
    maps = torch.randn(60, 3, 5, 5, dtype=torch.float64) * torch.tensor([3.0, 1.0, 0.1])[:, None, None] + 2.0
    projection = PatchPCA.of(maps, 2, (3, 3), (1, 1), torch.Generator().manual_seed(0))
    assert projection.channels.shape == (2, 3) and projection.directions.shape == (2, 2, 3, 3)
    channels = F.conv2d(maps, projection.channels[:, :, None, None], projection.channel_bias)
    rows = channels.transpose(0, 1).flatten(1)
    # Uncorrelated, centred, of mean variance one, the larger first.
    torch.testing.assert_close(rows.mean(dim=1), torch.zeros(2, dtype=torch.float64), atol=1e-10, rtol=0)
    covariance = rows @ rows.T / rows.shape[1]
    assert abs(float(covariance[0, 1])) < 1e-10 and float(covariance.diagonal().mean()) == pytest.approx(1.0)
    assert covariance[0, 0] > covariance[1, 1]
    flat = projection.directions.flatten(1)
    gram = flat @ flat.T
    torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64) * gram[0, 0], atol=1e-10, rtol=0)
    first, second = projection.to_torch()
    torch.testing.assert_close(second(first(maps)), projection(maps), atol=1e-12, rtol=0)
    with pytest.raises(InputError, match="all feature maps are constant"):
        PatchPCA.of(torch.ones(5, 2, 4, 4), 2, (3, 3), (1, 1), torch.Generator())


DEEP: dict[str, dict] = {
    "residual": {"residual": True},
    "mirror": {"mirror": True},
    "projected": {"project": 5, "hand_on": 6, "downsample": [2, 1]},
    "all": {"residual": True, "mirror": True, "project": 5, "hand_on": 6, "crop": True},
}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("gated", [False, True])
def test_module_and_file_predict_what_the_stack_does(
    problem: tuple[np.ndarray, np.ndarray], kind: str, gated: bool, tmp_path: Path
) -> None:
    images, targets = problem
    block = clone(BLOCK)
    if gated:
        block.set_params(activation="gated_relu", penalty="nuclear", tol=1e-2, reg=2.0, gates=PatchGates(6))
    stack = LayerwiseCNN(layers=2, block=block, **DEEP[kind]).fit(images, targets)
    for layer, expected in enumerate(stack.staged_predict(images)):
        module = stack.to_torch(layer)
        np.testing.assert_allclose(module(torch.as_tensor(images)).detach().numpy(), expected, atol=1e-9)
    alone = stack.to_torch(alone=True)(torch.as_tensor(images)).detach().numpy()
    *_, (last, inputs) = stack.layer_inputs(images)
    np.testing.assert_allclose(alone, last.predict(inputs), atol=1e-9)
    stack.save(tmp_path)
    loaded = LayerwiseCNN.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict(images), stack.predict(images))
    assert {name: loaded.get_params()[name] for name in DEEP[kind] if name != "crop"} == {
        name: value for name, value in DEEP[kind].items() if name != "crop"
    }
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace('"mirror": ', '"mirror": 3'))
    with pytest.raises(ModelFileError):
        LayerwiseCNN.load(tmp_path)


def test_maps_in_float16_are_rounded_alike_in_training_and_in_prediction(
    problem: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    images, targets = problem
    block = clone(BLOCK).set_params(dtype="float32", tol=1e-4)
    stages: list[Stage] = []
    stack = LayerwiseCNN(layers=2, block=block, half_maps=True, project=5, residual=True)
    stack.fit(images, targets, on_layer=lambda layer, block, stage: stages.append(stage))
    assert stages[1].inputs.dtype == torch.float16
    _, (second, inputs) = stack.layer_inputs(images)
    torch.testing.assert_close(inputs, stages[1].inputs, atol=0, rtol=0)
    np.testing.assert_allclose(second.predict(inputs), stages[1].prediction.numpy(), atol=1e-6)
    stack.save(tmp_path)
    np.testing.assert_array_equal(LayerwiseCNN.load(tmp_path).predict(images), stack.predict(images))
    with pytest.raises(InputError, match='half_maps=True needs blocks of dtype="float32"'):
        LayerwiseCNN(layers=2, block=BLOCK, half_maps=True).fit(images, targets)


def test_reg_is_that_of_the_lowest_error_on_held_out_images(problem: tuple[np.ndarray, np.ndarray]) -> None:
    images, targets = problem
    block = clone(BLOCK).set_params(reg=None)
    stack = LayerwiseCNN(layers=2, block=block, validation=0.25, reg_fraction=1e-2, residual=True).fit(images, targets)
    held = held_out(torch.as_tensor(images), torch.as_tensor(targets), 0.25, seed=0).numpy()
    assert held.sum() == 10
    first = stack.blocks_[0]
    scaled = stack.standardizers_[0](torch.as_tensor(images))  # type: ignore[misc]
    errors = {}
    largest = clone(first).reg_max(scaled[~held], targets[~held])
    for fraction in 1e-2 ** (np.arange(1, 10) / 9):
        trial = clone(first).set_params(reg=fraction * largest).fit(scaled[~held], targets[~held])
        errors[float(trial.reg)] = float(np.square(trial.predict(scaled[held]) - targets[held]).sum())
    falling = list(errors.values())
    # The path ends when the error has risen twice in a row.
    stop = next(
        (i + 2 for i in range(1, 8) if falling[i] >= min(falling[:i]) and falling[i + 1] >= min(falling[:i])), 9
    )
    assert first.reg == pytest.approx(min(list(errors)[:stop], key=lambda reg: errors[reg]))


def test_shifts_depend_on_seed_and_number_alone() -> None:
    images = torch.randn(6, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    moved = shifted(images, seed=3)
    torch.testing.assert_close(shifted(images[2:], seed=3, first=2), moved[2:], atol=0, rtol=0)
    assert not torch.equal(moved, shifted(images, seed=4))
    # An image is a window of itself with its edges repeated.
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    windows = [padded[0, :, y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
    assert any(torch.equal(moved[0], window) for window in windows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"project": 0}, "project must be an int >= 1, or None; got 0"),
        ({"hand_on": 1.5}, "hand_on must be an int >= 1, or None; got 1.5"),
        ({"validation": 0.9}, "validation must be between 0 and 0.5, or None; got 0.9"),
        (
            {"validation": 0.01, "block": clone(BLOCK).set_params(reg=None)},
            "leaves none to train on or none to judge by",
        ),
        ({"reg_fraction": (0.1, 2.0)}, "reg_fraction must be between 0 and 1, a sequence"),
        ({"residual": True, "block": clone(BLOCK).set_params(loss="softmax")}, 'residual=True needs loss="squared"'),
        ({"project": 4, "block": clone(BLOCK).set_params(stride=2)}, "project needs blocks of stride 1; got 2"),
    ],
)
def test_bad_settings(problem: tuple[np.ndarray, np.ndarray], settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LayerwiseCNN(**{"layers": 2, "block": BLOCK, **settings}).fit(*problem)
