"""Settings that fit the images: chosen by their number and size, and not over what is asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from cvxcnn import ConvexCNNClassifier, ConvexCNNRegressor, ConvexConvBlock, LayerwiseCNN, PricingOptions
from cvxcnn.commands.train import build_parser, main, settings_of
from cvxcnn.data import one_hot
from cvxcnn.errors import InputError
from cvxcnn.models.recipes import RECIPES, blocks_of, recipe, recipe_for
from cvxcnn.runs.settings import Settings, build_stack, for_data, recorded_settings

GREY, COLOUR = (1, 28, 28), (3, 32, 32)


def parsed(*arguments: str) -> Settings:
    options = vars(build_parser().parse_args(list(arguments)))
    names = Settings.__dataclass_fields__
    return settings_of({name: value for name, value in options.items() if name in names})


def large_digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    return np.kron(images[:count].reshape(-1, 8, 8) / 16, np.ones((1, 3, 3))), labels[:count]


def test_the_recipe_follows_from_the_images() -> None:
    assert recipe_for((1, 8, 8), 100_000) == recipe_for((3, 16, 16), 10) == "exact"
    assert recipe_for(GREY, 20_000) == "small" and recipe_for(COLOUR, 20_001) == "large"
    for own in ("gates", "activation", "penalty", "solver", "rounds", "starts", "dtype", "project"):
        assert recipe_for(GREY, 2000, {own}) == "exact"
    assert recipe_for(GREY, 2000, {"layers", "reg", "kernel_size"}) == "small"


def test_fractions_fall_with_the_number_of_images_and_photographs_are_mirrored() -> None:
    few, many = (recipe("small", COLOUR, n)["reg_fraction"] for n in (1000, 10_000))
    assert many == pytest.approx([share / 10 for share in few])
    assert max(recipe("small", GREY, 10)["reg_fraction"]) == 0.3
    assert recipe("small", GREY, 2000)["augment"] == () and recipe("small", COLOUR, 2000)["augment"] == ("mirror",)
    assert recipe("large", GREY, 60_000)["augment"] == ()
    assert recipe("exact", GREY, 10) == {}
    assert recipe("large", COLOUR, 50_000) == {
        **RECIPES["large"], "layers": 5, "augment": ("mirror",), "reg_fraction": (1e-4, 8e-3, 2e-2, 4e-2),
    }  # fmt: skip
    assert recipe("large", GREY, 60_000)["layers"] == 3


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 16), (2, 2), (5, 3), (4, 4), (40, 3)])
def test_recipes_fit_images_of_every_shape(name: str, shape: tuple[int, int]) -> None:
    settings = recipe(name, (1, *shape), 12)
    assert settings["pool_cells"] <= min(shape) and settings["pool_cells"] <= RECIPES[name]["pool_cells"]
    images, labels = np.random.default_rng(0).random((12, *shape)), np.arange(12) % 2
    model = ConvexCNNClassifier(recipe=name, layers=2).fit(images, labels)
    assert len(model.stack_.blocks_) == 2 and np.isfinite(model.predict_proba(images)).all()


def test_small_images_have_small_patches() -> None:
    assert recipe("small", (3, 16, 16), 600)["kernel_size"] == (5, 3)
    assert recipe("small", GREY, 600)["kernel_size"] == (7, 5)


def test_a_recipe_that_is_named_follows_the_images_on_the_command_line_too() -> None:
    named = parsed("--recipe", "small")
    fitted = for_data(named, (1, 4, 4), 600)
    expected = recipe("small", (1, 4, 4), 600)
    assert {key: getattr(fitted, key) for key in expected} == expected and fitted.pool_cells == 2
    assert for_data(named, GREY, 600).kernel_size == (7, 5)
    given = parsed("--recipe", "small", "--kernel-size", "7", "5", "--padding", "3", "2", "--pool-cells", "3")
    fitted = for_data(given, (1, 8, 8), 600)
    assert (fitted.kernel_size, fitted.padding, fitted.pool_cells) == ((7, 5), (3, 2), 3)


def test_a_recorded_run_keeps_what_its_recipe_has_no_longer() -> None:
    then = {**vars(Settings()), "recipe": "small", "kernel_size": [7, 5], "pooling": "mean", "augment": []}
    again = for_data(recorded_settings(then), (3, 8, 8), 600)
    assert (again.kernel_size, again.pooling, again.augment, again.pool_cells) == ((7, 5), "mean", (), 2)


def test_what_is_asked_for_stays() -> None:
    fitted = for_data(parsed("--layers", "3", "--kernel-size", "3", "--baseline"), COLOUR, 6000)
    assert (fitted.recipe, fitted.layers, fitted.kernel_size, fitted.baseline) == ("small", 3, 3, True)
    assert fitted.reg_fraction == (0.0005, 0.05) and fitted.augment == ("mirror",)
    reg = for_data(parsed("--reg", "2"), COLOUR, 6000)
    assert (reg.recipe, reg.reg, reg.reg_fraction) == ("small", 2, None)
    assert for_data(parsed("--gates", "50"), COLOUR, 6000) == replace(parsed("--gates", "50"), recipe="exact")
    assert for_data(Settings(), (1, 8, 8), 1437) == Settings(recipe="exact")
    named = for_data(parsed("--recipe", "small", "--layers", "1"), (1, 8, 8), 600)
    assert (named.layers, named.gates, named.reg_fraction) == (1, RECIPES["small"]["gates"], (0.005, 0.3))
    # What depends on the images does so for a recipe by its name, too.
    large = parsed("--recipe", "large")
    assert for_data(large, GREY, 100) == replace(large, asked=(), reg_fraction=(0.05, 0.3, 0.3, 0.3))
    assert (for_data(large, COLOUR, 100).augment, for_data(large, COLOUR, 100).layers) == (("mirror",), 5)
    assert for_data(parsed("--recipe", "large", "--layers", "3"), COLOUR, 100).layers == 3
    assert for_data(parsed("--recipe", "large", "--augment"), COLOUR, 100).augment == ()
    assert for_data(parsed("--recipe", "large", "--augment", "mirror"), GREY, 100).augment == ("mirror",)


def test_blocks_of_settings_of_each_layer() -> None:
    blocks = blocks_of((5, 3), 1, ("patches:20", 7), 3, pool_cells=1)
    assert [(block.kernel_size, block.padding, block.pool_cells) for block in blocks] == [
        (5, 1, 1),
        (3, 1, 1),
        (3, 1, 1),
    ]
    assert blocks[0].gates.count == 20 and blocks[2].gates == 7


def test_a_run_says_and_records_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = large_digits(900)
    np.savez("images.npz", x_train=images[:600], y_train=labels[:600], x_test=images[600:], y_test=labels[600:])
    arguments = ["--data", "images.npz", "--layers", "1", "--output", "out"]
    assert main(arguments) == 0
    assert "settings of --recipe small" in capsys.readouterr().out
    summary = json.loads(Path("out/summary.json").read_text())
    settings = summary["settings"]
    assert (settings["recipe"], settings["layers"], settings["reg_fraction"]) == ("small", 1, [0.005, 0.3])
    assert summary["layers"][0]["convex"]["test_accuracy"] > 0.95


def test_estimators_choose_the_same_way() -> None:
    images, labels = large_digits(900)
    model = ConvexCNNClassifier(layers=1).fit(images[:600], labels[:600])
    assert model.stack_.blocks_[0].kernel_size == 7 and model.stack_.residual
    assert model.score(images[600:], labels[600:]) > 0.95
    given = ConvexCNNClassifier(block=ConvexConvBlock(gates=5, pricing=PricingOptions(starts=0))).fit(
        images[:240], labels[:240]
    )
    assert given.stack_.blocks_[0].kernel_size == 3
    small = ConvexCNNClassifier().fit(images[:20, ::3, ::3], labels[:20])
    assert small.stack_.blocks_[0].kernel_size == 3 and small.stack_.blocks_[0].gates == "priced"


def test_classes_are_mirrored_and_numbers_are_not() -> None:
    random = np.random.default_rng(0)
    images = random.random((30, 3, 17, 17))
    assert ConvexCNNClassifier(layers=1).fit(images, np.repeat([0, 1], 15)).stack_.mirror
    assert not ConvexCNNRegressor(layers=1).fit(images, random.random(30)).stack_.mirror


# A stack by itself.


def test_a_stack_without_a_block_is_what_a_run_would_be() -> None:
    for shape, n in ((COLOUR, 6000), (GREY, 2000), (COLOUR, 30_000)):
        run = build_stack(for_data(replace(Settings(), device="cpu"), shape, n))
        own = LayerwiseCNN().for_images(shape, n)
        assert own.recipe == "exact" and [block.get_params() for block in own.block] == [
            block.get_params() for block in run.block
        ]
        for name in ("layers", "downsample", "reg_fraction", "residual", "project", "hand_on", "mirror", "half_maps"):
            assert getattr(own, name) == getattr(run, name)


def test_what_is_given_to_a_stack_stays() -> None:
    given = LayerwiseCNN(layers=1, downsample=3, reg_fraction=0.1, project=7, mirror=True)
    found = given.for_images(GREY, 2000)
    assert (found.layers, found.downsample, found.reg_fraction, found.project, found.mirror) == (1, 3, 0.1, 7, True)
    assert (found.hand_on, found.residual) == (64, True)
    for stack in (LayerwiseCNN(block=ConvexConvBlock()), LayerwiseCNN(recipe="exact"), LayerwiseCNN(downsample=2)):
        assert stack.for_images(GREY if stack.downsample is None else (1, 8, 8), 2000) is stack
    large = LayerwiseCNN(recipe="large")
    assert [large.for_images((n, 8, 8), 10).n_layers() for n in (1, 3)] == [3, 5]


def test_a_stack_of_a_recipe_predicts_saves_and_is_fitted_again(tmp_path: Path) -> None:
    images, labels = large_digits(40)
    images, targets = images[:, 3:20, 3:20], one_hot(labels, 10)
    stack = LayerwiseCNN(project=5, hand_on=4).fit(images, targets)
    assert (stack.layers, stack.residual, len(stack.blocks_), stack.blocks_[0].kernel_size) == (None, False, 2, 7)
    layers = list(stack.staged_predict(images))
    assert np.square(layers[1] - targets.numpy()).sum() < np.square(layers[0] - targets.numpy()).sum()
    np.testing.assert_array_equal(stack.used_.predict(images), stack.predict(images))
    outputs = stack.to_torch()(torch.tensor(images[:, None], dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(outputs, stack.predict(images), atol=1e-3)
    stack.save(tmp_path)
    np.testing.assert_array_equal(LayerwiseCNN.load(tmp_path).predict(images), stack.predict(images))
    stack.set_params(block=ConvexConvBlock(gates=5, pricing=PricingOptions(starts=0)), layers=1)
    assert stack.fit(images, targets).used is stack and stack.blocks_[0].kernel_size == 3


def test_estimators_reach_the_recipes_and_all_settings_of_a_stack(tmp_path: Path) -> None:
    own = {"image_shape", "class_weight"}
    for kind in (ConvexCNNClassifier, ConvexCNNRegressor):
        assert set(kind().get_params()) - own == set(LayerwiseCNN().get_params())
    images, labels = load_digits(return_X_y=True)
    images, labels = images[:100].reshape(-1, 8, 8) / 16, labels[:100]
    model = ConvexCNNClassifier(recipe="small", layers=1, hand_on=5).fit(images, labels)
    assert (model.stack_.hand_on, model.stack_.blocks_[0].gates.count, model.stack_.mirror) == (5, 384, False)
    model.save(tmp_path)
    loaded = ConvexCNNClassifier.load(tmp_path)
    assert loaded.get_params() == model.get_params()
    np.testing.assert_array_equal(loaded.predict_proba(images), model.predict_proba(images))


@pytest.mark.parametrize("kind", [LayerwiseCNN, ConvexCNNRegressor])
def test_a_recipe_that_cannot_be_is_refused(kind: type[Any]) -> None:
    images, targets = np.zeros((4, 5, 5)), np.arange(4) / 2
    with pytest.raises(InputError, match=r'recipe must be "auto" or one of .*; got .tiny'):
        kind(recipe="tiny").fit(images, targets)
    with pytest.raises(InputError, match=r"recipe='small' and block both decide the blocks. Leave one of them out"):
        kind(recipe="small", block=ConvexConvBlock()).fit(images, targets)
    if kind is ConvexCNNRegressor:
        with pytest.raises(InputError, match="recipe='small' is of images, and flat features have no patches"):
            kind(recipe="small").fit(images.reshape(4, -1), targets)


def test_a_stack_whose_recipe_was_chosen_knows_the_range_of_its_last_fit() -> None:
    random = np.random.default_rng(0)
    images, targets = random.random((20, 1, 17, 17)), np.eye(2)[np.arange(20) % 2]
    stack = LayerwiseCNN(layers=1).fit(images[:, :, :6, :6] * 9, targets).fit(images, targets)
    assert stack.used is not stack and stack.input_range_ == pytest.approx((images.min(), images.max()))
    with pytest.warns(UserWarning, match="images have values from"):
        stack.predict(255 * images)
