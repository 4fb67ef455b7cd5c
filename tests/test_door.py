"""What comes in: the layout of images, reg and its fraction, labels as targets, seeds, parameters of many blocks."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import digits
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from cvxcnn import (
    ConvexCNNClassifier,
    ConvexCNNRegressor,
    ConvexConvBlock,
    LayerwiseCNN,
    PricedGates,
    PricingOptions,
    nonconvex_objective,
    reg_path,
)
from cvxcnn.commands.train import build_parser, settings_of
from cvxcnn.data import ImageSet
from cvxcnn.data.layout import check_layout, looks_channels_last
from cvxcnn.data.readers.npz import _channels_first
from cvxcnn.errors import InputError, ModelFileError
from cvxcnn.models.block import DEFAULT_FRACTION, DEFAULT_SEARCH
from cvxcnn.runs.settings import Settings, build_stack, for_data, recorded_settings

FAST = PricingOptions(starts=0)
SHORT = PricingOptions(starts=4, max_rounds=1, initial_filters=2, improvement_steps=6)
BLOCK = ConvexConvBlock(gates=4, pricing=FAST)
RANDOM = np.random.default_rng(0)
IMAGES, TARGETS = RANDOM.normal(size=(20, 3, 6, 8)), RANDOM.normal(size=20)
LABELS = np.arange(20) % 2

FITS: dict[str, Callable[[Any], Any]] = {
    "block": lambda images: clone(BLOCK).fit(images, TARGETS),
    "reg_max": lambda images: BLOCK.reg_max(images, TARGETS),
    "path": lambda images: reg_path(images, TARGETS, block=BLOCK, points=2),
    "stack": lambda images: LayerwiseCNN(layers=1, block=BLOCK).fit(images, TARGETS),
    "classifier": lambda images: ConvexCNNClassifier(block=BLOCK).fit(images, LABELS),
    "regressor": lambda images: ConvexCNNRegressor(block=BLOCK).fit(images, TARGETS),
}
FORMS: dict[str, Callable[[Any], Any]] = {
    "array": lambda images: images,
    "float32": lambda images: images.astype(np.float32),
    "tensor": torch.tensor,
    "lists": lambda images: images.tolist(),
}

# The layout of images.

pictures = st.tuples(st.sampled_from([1, 3, 4]), st.integers(5, 40), st.integers(5, 40))


@given(pictures)
def test_pictures_are_told_apart_by_where_their_channels_are(sides: tuple[int, int, int]) -> None:
    channels, height, width = sides
    assert not looks_channels_last(sides)
    assert looks_channels_last((height, width, channels))
    pixels = np.arange(channels * height * width).reshape(1, *sides)
    np.testing.assert_array_equal(_channels_first(np.moveaxis(pixels, 1, -1)), pixels)
    assert _channels_first(pixels) is pixels


@given(st.tuples(*[st.integers(1, 12)] * 3))
def test_the_two_ways_out_are_never_refused(sides: tuple[int, int, int]) -> None:
    if looks_channels_last(sides):
        first, second, third = sides
        assert not looks_channels_last((third, first, second))  # moveaxis
        assert not looks_channels_last((first, third, second))  # swapaxes


@pytest.mark.parametrize(
    ("sides", "last"),
    [
        ((8, 8, 3), True), ((8, 8, 1), True), ((8, 8, 4), True), ((8, 8, 2), True), ((32, 48, 3), True),
        ((4, 4, 3), True), ((64, 64, 13), True), ((5, 4, 3), True),
        ((3, 8, 8), False), ((1, 8, 8), False), ((2, 6, 6), False), ((13, 64, 64), False), ((3, 3, 3), False),
        ((10, 4, 4), False), ((50, 1, 1), False), ((3, 100, 1), False), ((8, 3, 8), False), ((1, 1, 3), False),
    ],
)  # fmt: skip
def test_the_rule(sides: tuple[int, int, int], last: bool) -> None:
    assert looks_channels_last(sides) == last
    if last:
        with pytest.raises(
            InputError, match=r"must be \(n, c, h, w\), channels first.*Pass np.moveaxis\(images, -1, 1"
        ):
            check_layout(np.zeros((2, *sides)))
    else:
        check_layout(np.zeros((2, *sides)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FITS)
def test_every_door_refuses_channels_that_come_last(name: str, form: str) -> None:
    for sides in ((6, 8, 3), (8, 8, 3), (8, 8, 1)):
        with pytest.raises(
            InputError, match=rf"got \(20, {sides[0]}, {sides[1]}, {sides[2]}\).*{sides[2]} channels of"
        ):
            FITS[name](FORMS[form](RANDOM.normal(size=(20, *sides))))


@pytest.mark.parametrize("name", ["block", "stack", "classifier", "regressor"])
def test_predict_takes_the_layout_of_the_fit_and_names_the_remedy_for_another(name: str) -> None:
    model = FITS[name](IMAGES)
    expected = model.predict(IMAGES)
    last = np.moveaxis(IMAGES, 1, -1)
    np.testing.assert_array_equal(model.predict(np.moveaxis(last, -1, 1)), expected)
    for form in FORMS.values():
        with pytest.raises(InputError, match=r"channels come last: pass np.moveaxis\(images, -1, 1\)"):
            model.predict(form(last))
    for one in (IMAGES[0], last[0]):
        with pytest.raises(InputError, match=r"One image needs a first axis of length 1.*\(1, c, h, w\)"):
            model.predict(one)
    with pytest.raises(InputError, match=r"images must have the shape that the (block|stack) was fitted on"):
        model.predict(IMAGES.swapaxes(2, 3))


def test_maps_of_any_shape_pass_between_blocks() -> None:
    """Behind the door maps of 8 x 3 are what they are; in front of it their sides are exchanged: the same program."""
    images = RANDOM.normal(size=(20, 1, 8, 3))
    deep = LayerwiseCNN(layers=2, block=BLOCK, standardize=False).fit(images, TARGETS)
    first, second = deep.blocks_
    maps = first.transform(images)
    assert maps.shape[1:] == (first.n_neurons_, 8, 3)
    wide = np.concatenate([maps, maps, maps], axis=1)
    with pytest.raises(InputError, match=r"exchange height and width: images.swapaxes\(2, 3\)"):
        clone(BLOCK).fit(wide, TARGETS)
    assert clone(BLOCK).fit(wide.swapaxes(2, 3), TARGETS).image_shape_ == (wide.shape[1], 3, 8)
    assert second.image_shape_ == maps.shape[1:]
    gates = RANDOM.normal(size=(3, wide.shape[1] * 9 + 1))
    turned = np.c_[gates[:, :-1].reshape(3, -1, 3, 3).swapaxes(2, 3).reshape(3, -1), gates[:, -1]]
    behind = clone(BLOCK).set_params(gates=gates)
    behind.fit_task(behind.task(wide, TARGETS), True, 0.01)
    front = clone(BLOCK).set_params(gates=turned).fit(wide.swapaxes(2, 3), TARGETS)
    assert front.result_.objective == pytest.approx(behind.result_.objective, rel=1e-6)


@pytest.mark.parametrize("shape", [(8, 8, 3), [8, 8, 1], np.array([16, 12, 4])])
def test_image_shape_has_channels_first_too(shape: Any) -> None:
    flat = RANDOM.normal(size=(20, int(np.prod(shape))))
    with pytest.raises(InputError, match=r"image_shape must be \(c, h, w\), channels first; .*looks like \(h, w, c\)"):
        ConvexCNNClassifier(block=BLOCK, image_shape=shape).fit(flat, LABELS)


def test_image_shape_is_that_of_all_images() -> None:
    model = ConvexCNNClassifier(block=BLOCK, image_shape=(3, 6, 8))
    expected = model.fit(IMAGES.reshape(20, -1), LABELS).decision_function(IMAGES)
    np.testing.assert_array_equal(clone(model).fit(IMAGES, LABELS).decision_function(IMAGES.reshape(20, -1)), expected)
    for wrong in (np.moveaxis(IMAGES, 1, -1), IMAGES.swapaxes(2, 3), IMAGES[:, 0]):
        with pytest.raises(InputError, match=r"images must be of image_shape, .*got \(20, "):
            clone(model).fit(wrong, LABELS)
        with pytest.raises(InputError, match="images must be of image_shape"):
            model.predict(wrong)
    with pytest.raises(InputError, match=r"flat images must have 144 entries for image_shape=\(3, 6, 8\); got 143"):
        model.predict(IMAGES.reshape(20, -1)[:, 1:])


def test_labelled_images_have_channels_first() -> None:
    with pytest.raises(InputError, match="channels first"):
        ImageSet(np.zeros((2, 8, 8, 3)), np.array([0, 1]), ("a", "b"), "nothing")


# One set of defaults.


def test_there_is_one_set_of_defaults() -> None:
    contract = {
        "kernel_size": 3, "stride": 1, "padding": 1, "pooling": "mean", "pool_cells": 2, "bias": True,
        "activation": "relu", "penalty": "dense", "loss": "squared", "reg": None, "gates": "priced", "solver": "auto",
        "tol": 1e-6, "device": "cpu", "dtype": "float64", "random_state": 0,
    }  # fmt: skip
    given = {name: parameter.default for name, parameter in inspect.signature(ConvexConvBlock).parameters.items()}
    assert given == {**contract, "intercept": False, "max_iter": None, "pricing": None, "decay": None}
    main = build_stack(replace(Settings(), device="cpu")).block[0].get_params()
    # A block by itself searches until its gap is small; networks of several stop after three rounds each.
    assert ConvexConvBlock().priced_options() == PricingOptions()
    assert main == ConvexConvBlock(pricing=DEFAULT_SEARCH).get_params()
    for model in (LayerwiseCNN(), ConvexCNNClassifier(), ConvexCNNRegressor()):
        assert (model.block, model.reg_fraction) == (None, None)
        assert clone(model).set_params(block__tol=1e-6).block.get_params() == main


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "fista"}, 'gates="priced" brings its own solver: use solver="auto"'),
        ({"max_iter": 5}, r"priced gates have no max_iter.*PricingOptions\(max_rounds"),
        ({"pricing": {"starts": 3}}, r"pricing must be PricingOptions\(...\), or None"),
        ({"gates": PricedGates(), "pricing": FAST}, "PricedGates brings its own options"),
    ],
)
def test_what_the_defaults_do_not_go_with_is_refused_with_a_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ConvexConvBlock(**options).fit(IMAGES, TARGETS)


def test_a_gated_block_with_the_default_penalty_is_the_nuclear_program() -> None:
    settings: dict[str, Any] = {"activation": "gated_relu", "gates": 4, "reg": 0.5, "pricing": FAST}
    named = ConvexConvBlock(penalty="nuclear", **settings).fit(IMAGES, TARGETS)
    meant = ConvexConvBlock(**settings).fit(IMAGES, TARGETS)
    assert meant.result_.objective == named.result_.objective
    assert meant.certificate_.networks == named.certificate_.networks == "gated"
    # Of one cell and one output both norms are one, and the solvers of the group penalty are faster.
    single = ConvexConvBlock(pool_cells=1, **settings).fit(IMAGES, TARGETS[:, :1] if TARGETS.ndim > 1 else TARGETS)
    assert single.result_.solver == "working_set"


# reg, or its fraction.


@pytest.mark.parametrize("options", [{"gates": 4}, {"pricing": SHORT, "pool_cells": 1}])
def test_no_reg_is_a_hundredth_of_reg_max_and_stays_none(options: dict[str, Any]) -> None:
    block = ConvexConvBlock(**{"pricing": FAST, "kernel_size": 2, **options})
    first = clone(block).fit(IMAGES, TARGETS)
    assert first.reg is None
    assert first.reg_ == pytest.approx(DEFAULT_FRACTION * block.reg_max(IMAGES, TARGETS))
    same = clone(block).set_params(reg=first.reg_).fit(IMAGES, TARGETS)
    assert (same.reg, same.reg_) == (first.reg_, first.reg_)
    np.testing.assert_array_equal(same.predict(IMAGES), first.predict(IMAGES))
    value = nonconvex_objective(first.to_torch(), IMAGES, TARGETS, first.reg_)
    assert value == pytest.approx(first.certificate_.objective, rel=1e-9)


def test_the_unit_of_the_targets_is_that_of_reg() -> None:
    fitted = clone(BLOCK).fit(IMAGES, TARGETS)
    for scale in (1e-6, 1e3):
        other = clone(BLOCK).set_params(tol=1e-9).fit(IMAGES, scale * TARGETS)
        assert other.reg_ == pytest.approx(scale * fitted.reg_, rel=1e-6)


def test_where_nothing_is_to_be_fitted_the_network_is_zero() -> None:
    for targets, intercept in ((np.zeros(20), False), (np.full(20, 3.0), True)):
        block = clone(BLOCK).set_params(intercept=intercept).fit(IMAGES, targets)
        np.testing.assert_allclose(block.predict(IMAGES), targets, atol=1e-9)
        assert block.reg_ > 0


def test_an_explicit_reg_always_wins() -> None:
    for layers in (1, 2):
        for model in (LayerwiseCNN(layers=layers, block=clone(BLOCK).set_params(reg=0.3)),):
            assert [block.reg_ for block in model.fit(IMAGES, TARGETS).blocks_] == [0.3] * layers
        estimator = ConvexCNNRegressor(layers=layers, block=clone(BLOCK).set_params(reg=0.3)).fit(IMAGES, TARGETS)
        assert [(block.reg, block.reg_) for block in estimator.stack_.blocks_] == [(0.3, 0.3)] * layers
    own = [clone(BLOCK).set_params(reg=0.3), clone(BLOCK)]
    mixed = LayerwiseCNN(layers=2, block=own).fit(IMAGES, TARGETS)
    inputs = [inputs for _, inputs in mixed.layer_inputs(IMAGES)]
    second = DEFAULT_FRACTION * own[1].reg_max(inputs[1], TARGETS)
    assert [block.reg_ for block in mixed.blocks_] == [0.3, pytest.approx(second)]
    assert (own[0].reg, own[1].reg) == (0.3, None)


@pytest.mark.parametrize("name", ["reg_fraction", "validation"])
def test_reg_is_not_decided_twice(name: str) -> None:
    block = clone(BLOCK).set_params(reg=0.3)
    message = rf"reg=0.3 of the block of layer 1 and {name}=0.2 both decide its reg. Leave one of them at None."
    with pytest.raises(InputError, match=message):
        LayerwiseCNN(layers=2, block=block, **{name: 0.2}).fit(IMAGES, TARGETS)
    if name == "reg_fraction":
        for blocks in (block, [block, clone(BLOCK)]):
            with pytest.raises(InputError, match=message):
                ConvexCNNRegressor(layers=2, block=blocks, reg_fraction=0.2).fit(IMAGES, TARGETS)
    with pytest.raises(InputError, match="both decide its reg"):
        build_stack(Settings(gates=4, reg=0.3, **{name: 0.2}))


def test_every_value_of_a_search_over_reg_is_used() -> None:
    images, labels = digits(100)
    images = images.reshape(100, -1)
    for blocks, layers in ((BLOCK, 1), ([clone(BLOCK), clone(BLOCK)], 2)):
        model = ConvexCNNClassifier(block=blocks, layers=layers, image_shape=(8, 8))
        grid = {"block__reg": np.array([1e-3, 1.0, 1e2])} if layers == 1 else {"block__reg": [1e-3, 0.3]}
        search = GridSearchCV(model, grid, cv=2, error_score="raise").fit(images, labels)
        assert len(set(search.cv_results_["mean_test_score"].round(6))) > 1
        assert {block.reg_ for block in search.best_estimator_.stack_.blocks_} == {search.best_params_["block__reg"]}


def test_the_command_line_takes_one_of_the_two() -> None:
    def parsed(*args: str) -> Settings:
        options = vars(build_parser().parse_args(args))
        names = {*Settings.__dataclass_fields__, "recipe"}
        return settings_of({name: value for name, value in options.items() if name in names})

    large = parsed("--recipe", "large", "--reg", "2")
    assert (parsed().reg, parsed().reg_fraction) == (None, None)
    for own, expected in ((large, (2, None)), (parsed("--recipe", "large"), (None, (1e-4, 8e-3, 2e-2, 4e-2)))):
        found = for_data(own, (3, 32, 32), 50_000)
        assert (found.reg, found.reg_fraction) == expected
    both = parsed("--reg", "2", "--reg-fraction", "0.1")
    with pytest.raises(InputError, match="both decide its reg"):
        build_stack(replace(both, gates=4))


def test_runs_and_models_of_before_still_load(tmp_path: Path) -> None:
    # They had a fraction in their settings beside a reg that won, and in their models a reg that it had decided.
    old = {"reg": 0.5, "reg_fraction": 0.01, "downsample": [2], "layers": 2, "threads": 2}
    assert (recorded_settings(old).reg, recorded_settings(old).reg_fraction) == (0.5, None)
    assert recorded_settings({**old, "reg": None}).reg_fraction == 0.01
    model = ConvexCNNRegressor(block=BLOCK).fit(IMAGES, TARGETS)
    used = model.stack_.blocks_[0].reg_
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["layers"][0].pop("reg") == config["layers"][0]["block"]["reg"] == used
    del config["estimator"]["own_reg"]
    config["estimator"].update(reg_fraction=0.01, block={**config["estimator"]["block"], "reg": 1.0})
    from cvxcnn.persistence.files import config_checksum

    del config["config_sha256"]
    config["config_sha256"] = config_checksum(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = ConvexCNNRegressor.load(tmp_path)
    assert (loaded.block.reg, loaded.reg_fraction, loaded.stack_.blocks_[0].reg_) == (None, 0.01, used)
    np.testing.assert_array_equal(clone(loaded).fit(IMAGES, TARGETS).predict(IMAGES), model.predict(IMAGES))


@pytest.mark.parametrize("reg", [None, 0.3])
@pytest.mark.parametrize("gates", [4, RANDOM.normal(size=(3, 28))], ids=["number", "array"])
def test_a_model_that_comes_back_is_fitted_again_alike(tmp_path: Path, reg: float | None, gates: Any) -> None:
    block = clone(BLOCK).set_params(reg=reg, gates=gates)
    models: list[Any] = [block, LayerwiseCNN(layers=2, block=block), ConvexCNNRegressor(block=block)]
    if reg is None:
        models += [
            ConvexCNNRegressor(block=[block, clone(block).set_params(gates=4)], layers=2, reg_fraction=[0.1, 0.2])
        ]
    for index, model in enumerate(models):
        model.fit(IMAGES, TARGETS).save(tmp_path / str(index))
        loaded = type(model).load(tmp_path / str(index))
        if not isinstance(model, LayerwiseCNN):
            assert getattr(loaded, "reg", None) == getattr(model, "reg", None)
        fitted = [getattr(one, "stack_", one) for one in (model, loaded)]
        regs = [[part.reg_ for part in getattr(one, "blocks_", [one])] for one in fitted]
        assert regs[0] == regs[1]
        np.testing.assert_allclose(clone(loaded).fit(IMAGES, TARGETS).predict(IMAGES), model.predict(IMAGES), atol=1e-9)


# Labels as targets.

WARNED: list[Any] = [
    np.arange(20) % 10, np.arange(20) % 2, (np.arange(20) % 3).tolist(), torch.arange(20) % 4, np.arange(20) % 5 + 1,
    (np.arange(20) % 10).astype(np.uint8), (np.arange(20) % 3)[:, None], np.arange(20), np.arange(20) % 2 == 0,
    7 * (np.arange(20) % 4),
]  # fmt: skip
SILENT: list[Any] = [
    TARGETS, (np.arange(20) % 10).astype(float), 2 * (np.arange(20) % 2) - 1, torch.arange(20).float(),
    np.eye(4, dtype=int)[np.arange(20) % 4], np.arange(20) ** 2, np.full(20, 3),
]  # fmt: skip


def heard(call: Callable[[], Any]) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return found


@pytest.mark.parametrize("targets", WARNED, ids=str)
def test_integer_labels_as_targets_bring_a_warning_that_names_the_classifier(targets: Any) -> None:
    for call in (
        lambda: clone(BLOCK).fit(IMAGES, targets),
        lambda: LayerwiseCNN(layers=1, block=BLOCK).fit(IMAGES, targets),
        lambda: reg_path(IMAGES, targets, block=BLOCK, points=2),
    ):
        (found,) = heard(call)
        assert found.category is UserWarning and "use ConvexCNNClassifier" in str(found.message)
        assert found.filename == __file__


@pytest.mark.parametrize("targets", SILENT, ids=str)
def test_numbers_and_signs_bring_none(targets: Any) -> None:
    assert heard(lambda: clone(BLOCK).fit(IMAGES, targets)) == []
    assert heard(lambda: LayerwiseCNN(layers=2, block=BLOCK, residual=True).fit(IMAGES, targets)) == []


def test_estimators_know_what_their_targets_are() -> None:
    counts = np.arange(20) % 10
    assert heard(lambda: ConvexCNNClassifier(block=BLOCK).fit(IMAGES, counts)) == []
    assert heard(lambda: ConvexCNNRegressor(block=BLOCK).fit(IMAGES, counts)) == []


# Seeds.


def test_no_random_state_is_another_seed_each_time() -> None:
    block = ConvexConvBlock(gates=4, pricing=FAST, random_state=None)
    gates = [clone(block).fit(IMAGES, TARGETS).gates_ for _ in range(2)]
    assert gates[0].shape == gates[1].shape and not np.array_equal(*gates)
    crops = [LayerwiseCNN(layers=1, block=block, crop=True).fit(IMAGES, TARGETS) for _ in range(2)]
    assert not np.array_equal(crops[0].predict(IMAGES), crops[1].predict(IMAGES))
    seeded = [clone(BLOCK).set_params(random_state=5).fit(IMAGES, TARGETS).gates_ for _ in range(2)]
    np.testing.assert_array_equal(*seeded)


def test_no_random_state_is_saved_as_none(tmp_path: Path) -> None:
    ConvexConvBlock(gates=4, pricing=FAST, random_state=None).fit(IMAGES, TARGETS).save(tmp_path)
    assert ConvexConvBlock.load(tmp_path).random_state is None


# Parameters of blocks.


@pytest.mark.parametrize("kind", [LayerwiseCNN, ConvexCNNClassifier, ConvexCNNRegressor])
def test_parameters_of_blocks_go_to_each_block_of_a_list(kind: type[Any]) -> None:
    blocks = [clone(BLOCK), clone(BLOCK).set_params(gates=5)]
    model = clone(kind(layers=2, block=blocks)).set_params(block__reg=0.2, block__tol=1e-4, downsample=2)
    assert [(block.reg, block.tol, block.gates) for block in model.block] == [(0.2, 1e-4, 4), (0.2, 1e-4, 5)]
    assert [block.reg for block in blocks] == [None, None]
    assert kind().set_params(block__reg=0.2).block.reg == 0.2
    assert kind(block=BLOCK).set_params(block=clone(BLOCK), block__gates=7).block.gates == 7
    for block in (blocks, BLOCK, None):
        with pytest.raises(ValueError, match="Invalid parameter 'colour'"):
            clone(kind(layers=2, block=block)).set_params(block__colour="red")
    with pytest.raises(ValueError, match="Invalid parameter 'colour'"):
        kind().set_params(colour="red")
    with pytest.raises(InputError, match="block must be a ConvexConvBlock, one a layer, or None; got 'dense'"):
        kind(block="dense").set_params(block__reg=1.0)
    for wrong in ("dense", [BLOCK, 3], [], 3):
        with pytest.raises(InputError, match="block must be a ConvexConvBlock, one a layer, or None"):
            kind(block=wrong).fit(IMAGES, TARGETS if kind is not ConvexCNNClassifier else LABELS)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(20)))
def test_the_order_of_the_images_does_not_matter(order: list[int]) -> None:
    gates = np.random.default_rng(1).normal(size=(4, 28))
    block = ConvexConvBlock(gates=gates, pricing=FAST, tol=1e-9)
    first, second = (clone(block).fit(IMAGES[rows], TARGETS[rows]) for rows in (list(range(20)), order))
    assert second.reg_ == pytest.approx(first.reg_, rel=1e-9)
    np.testing.assert_allclose(second.predict(IMAGES), first.predict(IMAGES), atol=1e-4)


# What a fit says.


def test_a_solve_that_stops_early_warns() -> None:
    for model in (
        clone(BLOCK).set_params(max_iter=1, tol=1e-9),
        LayerwiseCNN(layers=1, block=clone(BLOCK).set_params(max_iter=1, tol=1e-9)),
    ):
        (found,) = heard(lambda model=model: model.fit(IMAGES, TARGETS))
        assert found.category is ConvergenceWarning and "Raise max_iter, or tol" in str(found.message)
        assert found.filename == __file__


@pytest.mark.parametrize("name", ["block", "layer 1"])
def test_a_fit_says_how_far_it_is_if_it_is_asked(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = clone(BLOCK) if name == "block" else LayerwiseCNN(layers=1, block=BLOCK)
    model.fit(IMAGES, TARGETS)
    assert capsys.readouterr().err == ""
    model.fit(IMAGES, TARGETS, verbose=True)
    begins, first, *_, ends = capsys.readouterr().err.splitlines()
    assert f"{name}: 20 images of 48 patches with 28 numbers, 1 outputs, penalty dense, fixed gates" in begins
    assert f"{name}: round 0, objective" in first and "bound over the gates at hand" in first
    assert f"{name}: objective" in ends and "from optimal over its own gates" in ends


def test_a_path_says_each_point_if_it_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    reg_path(IMAGES, TARGETS, block=BLOCK, points=2)
    assert capsys.readouterr().err == ""
    path = reg_path(IMAGES, TARGETS, block=BLOCK, points=2, verbose=True)
    begins, *points = capsys.readouterr().err.splitlines()
    assert "path: 20 images of 48 patches" in begins
    for index, (line, block) in enumerate(zip(points[1::2], path.blocks, strict=True), start=1):
        assert f"point {index} of 2, reg {block.reg:.4g}: {block.certificate_}" in line
    with pytest.raises(InputError, match="verbose must be"):
        reg_path(IMAGES, TARGETS, verbose="loud")  # type: ignore[arg-type]


def test_estimators_say_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    ConvexCNNRegressor(block=BLOCK).fit(IMAGES, TARGETS, verbose=True)
    ConvexCNNClassifier(block=BLOCK).fit(IMAGES, LABELS, verbose=True)
    assert capsys.readouterr().err.count("layer 1: 20 images") == 2
    with pytest.raises(InputError, match="verbose must be"):
        ConvexCNNRegressor(block=BLOCK).fit(IMAGES, TARGETS, verbose="loud")  # type: ignore[arg-type]


def test_progress_says_what_its_numbers_are(capsys: pytest.CaptureFixture[str]) -> None:
    heard_of: list[Any] = []
    group = ConvexConvBlock(gates=3, penalty="group", pricing=FAST).fit(IMAGES, TARGETS, callback=heard_of.append)
    assert not heard_of[0].feasible and "objective before weights are in their cones" in str(heard_of[0])
    assert heard_of[-1].dual_bound <= group.result_.objective
    group.fit(IMAGES, TARGETS, verbose=True)
    assert "every gate brings a cone" in capsys.readouterr().err
    ConvexConvBlock(pricing=SHORT, kernel_size=2, pool_cells=1).fit(IMAGES, TARGETS, callback=heard_of.append)
    assert heard_of[-1].feasible and "bound over all gates, as searched," in str(heard_of[-1])


# A run's model is a classifier, and images of another scale are told.


def saved_run(folder: Path, classes: list[str]) -> LayerwiseCNN:
    images = RANDOM.random((30, 1, 6, 6))
    stack = LayerwiseCNN(layers=1, block=BLOCK, reg_fraction=0.05)
    stack.fit(images, np.eye(len(classes))[np.arange(30) % len(classes)])
    stack.save(folder, extra={"classes": classes, "data": "squares"})
    return stack


@pytest.mark.parametrize(
    ("names", "classes"),
    [(["0", "1", "10"], [0, 1, 10]), (["9", "10"], [9, 10]), (["car", "ant", "bee"], ["car", "ant", "bee"])],
)
def test_the_model_of_a_run_is_a_classifier(tmp_path: Path, names: list[str], classes: list[Any]) -> None:
    stack = saved_run(tmp_path / "run", names)
    model = ConvexCNNClassifier.load(tmp_path / "run")
    images = RANDOM.random((12, 1, 6, 6))
    expected = np.array(classes)[stack.predict(images).argmax(axis=1)]
    assert model.classes_.tolist() == classes and model.n_features_in_ == 36
    np.testing.assert_array_equal(model.predict(images[:, 0]), expected)
    assert model.score(images, expected) == 1.0
    np.testing.assert_allclose(model.predict_proba(images).sum(axis=1), 1.0)
    model.save(tmp_path / "model")
    again = ConvexCNNClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(images), expected)
    assert again.extra_["data"] == "squares"


def test_a_stack_without_names_is_no_classifier(tmp_path: Path) -> None:
    stack = saved_run(tmp_path, ["a", "b"])
    for extra in ({}, {"classes": ["a"]}, {"classes": ["a", "a"]}, {"classes": ["a", "b", "c"]}, {"classes": "ab"}):
        stack.save(tmp_path, extra=extra)
        with pytest.raises(ModelFileError, match="holds a LayerwiseCNN, not a ConvexCNNClassifier"):
            ConvexCNNClassifier.load(tmp_path)


def test_images_of_another_scale_bring_a_warning(tmp_path: Path) -> None:
    images, labels = digits(40)
    ConvexCNNClassifier(block=BLOCK).fit(images, labels).save(tmp_path)
    model = ConvexCNNClassifier.load(tmp_path)
    assert model.stack_.input_range_ == (0.0, 1.0)
    for fine in (images, images[:1], 0.5 * images, np.zeros((1, 8, 8)), 1 - images):
        assert heard(lambda fine=fine: model.predict(fine)) == []
    for wrong in (16 * images, images / 255, images - 5):
        (found,) = heard(lambda wrong=wrong: model.predict(wrong))
        assert "was fitted on had 0 to 1. Bring them to the same scale" in str(found.message)
        assert found.filename == __file__
    (found,) = heard(lambda: model.score(16 * images, labels))
    assert "images have values from 0 to 16" in str(found.message)
