"""Model files: what is loaded predicts to the last bit, and what isn't a model is one clear error."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eq2 import eq2_block
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from cvxcnn import (
    ConvexCNNClassifier,
    ConvexCNNRegressor,
    ConvexConvBlock,
    LayerwiseCNN,
    nonconvex_objective,
)
from cvxcnn.arrangements import PatchGates
from cvxcnn.errors import InputError, ModelFileError
from cvxcnn.models.saving import load_model, save_model
from cvxcnn.persistence import CONFIG_FILE, WEIGHTS_FILE, write_atomically
from cvxcnn.persistence.files import config_checksum
from cvxcnn.pricing.options import PricedGates, PricingOptions

Edit = Callable[[dict[str, Any]], Any]

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(24, 2, 6, 7))
GATES = RANDOM.normal(size=(9, 18))
TARGETS = np.stack([IMAGES.max(axis=(1, 2, 3)), IMAGES.mean(axis=(1, 2, 3))], axis=1)
ONE_HOT = np.eye(3)[np.arange(24) % 3]
QUICK = PricingOptions(starts=8, ascent_steps=5, improvement_steps=5, max_rounds=2)
SEARCH = PricedGates(starts=8, ascent_steps=5, improvement_steps=5, max_rounds=2)
QUICKEST = PricingOptions(starts=1, ascent_steps=5)
DENSE: dict[str, Any] = {"penalty": "dense", "gates": 12, "pricing": QUICK, "reg": 0.2, "tol": 1e-4}

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
    "dense": (
        {**DENSE, "padding": 1, "pooling": "mean", "pool_cells": 2, "bias": True}, {"downsample": [2, 1]}, TARGETS,
    ),
    "dense priced": ({**DENSE, "gates": "priced", "intercept": True}, {}, TARGETS),
    "priced gates": (
        {**DENSE, "gates": PricedGates(starts=8, ascent_steps=5, improvement_steps=5, max_rounds=2), "pricing": None},
        {"layers": 1}, TARGETS,
    ),
    "dense float32": ({**DENSE, "dtype": "float32", "tol": 1e-3}, {}, TARGETS),
    "dense given gates": ({**DENSE, "gates": GATES, "kernel_size": (3, 3)}, {"layers": 1}, TARGETS),
    "dense sampler": ({**DENSE, "gates": PatchGates(9), "stride": (1, 2)}, {"layers": 1}, TARGETS[:, 0]),
    "group": ({**DENSE, "penalty": "group", "reg": 4.0}, {"layers": 1, "standardize": False}, TARGETS[:, 0]),
    "gated group": (
        {**DENSE, "penalty": "group", "activation": "gated_relu", "intercept": True, "pricing": QUICKEST}, {}, TARGETS,
    ),
    "gated nuclear": (
        {**DENSE, "penalty": "nuclear", "activation": "gated_relu", "reg": 4.0, "pricing": QUICKEST}, {"layers": 1},
        TARGETS,
    ),
    "softmax": ({**DENSE, "loss": "softmax", "bias": True, "tol": 1e-3}, {}, ONE_HOT),
    "logistic": ({**DENSE, "loss": "logistic", "pool_cells": 2}, {"layers": 1}, 2 * ONE_HOT - 1),
    "priced options": ({**DENSE, "gates": SEARCH, "pricing": None}, {}, TARGETS[:, 0]),
    "reg by layer": ({**DENSE, "reg": None}, {"reg_fraction": (0.1, 0.3)}, TARGETS),
    "zero": ({**DENSE, "reg": 1e6}, {"layers": 1}, TARGETS),
    "gated zero": ({**DENSE, "reg": 1e6, "penalty": "group", "activation": "gated_relu"}, {"layers": 1}, TARGETS),
}  # fmt: skip


@lru_cache
def fitted(name: str) -> LayerwiseCNN:
    block, stack, targets = VARIANTS[name]
    return LayerwiseCNN(**{"layers": 2, "block": eq2_block(**block), **stack}).fit(IMAGES, targets)


@pytest.fixture(scope="module")
def model() -> LayerwiseCNN:
    return fitted("dense")


@pytest.fixture(scope="module")
def saved(model: LayerwiseCNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_model(model, folder, extra={"classes": ["blank", "Größe"], "reg": 0.2})
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    block = eq2_block(**{**DENSE, "padding": 1, "tol": 1e-3, "gates": SEARCH, "pricing": None})
    ConvexCNNClassifier(block=block, layers=2).fit(IMAGES, np.array(["a", "b"])[np.arange(24) % 2]).save(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refused(folder: Path, *texts: str) -> None:
    with pytest.raises(ModelFileError, match="(?s)" + ".*".join(map(re.escape, texts))) as caught:
        load_model(folder)
    assert str(caught.value).rstrip().endswith(".")


# What comes back.


@pytest.mark.parametrize("name", VARIANTS)
def test_a_loaded_model_predicts_to_the_last_bit(name: str, tmp_path: Path) -> None:
    model = fitted(name)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    fresh = np.random.default_rng(1).normal(size=(7, 2, 6, 7))
    for images in (IMAGES, fresh):
        for expected, found in zip(model.staged_predict(images), loaded.staged_predict(images), strict=True):
            assert expected.dtype == found.dtype
            np.testing.assert_array_equal(expected, found)
    pairs = list(zip(model.layer_inputs(fresh), loaded.layer_inputs(fresh), strict=True))
    assert len(pairs) == model.layers
    for (block, inputs), (other, other_inputs) in pairs:
        assert torch.equal(inputs, other_inputs)
        np.testing.assert_array_equal(block.transform(inputs), other.transform(inputs))
        assert torch.equal(block.to_torch()(inputs), other.to_torch()(inputs))
        np.testing.assert_array_equal(block.gates_, other.gates_)
        assert (block.reg, block.n_neurons_, block.n_outputs_, block.flat_targets_) == (
            other.reg, other.n_neurons_, other.n_outputs_, other.flat_targets_,
        )  # fmt: skip
        for attribute in ("objective", "dual_bound", "relative_gap", "status", "solver", "iterations", "seconds"):
            assert getattr(block.result_, attribute) == getattr(other.result_, attribute)
        assert str(block.certificate_) == str(other.certificate_)


@pytest.mark.parametrize("name", ["dense", "dense priced", "priced gates", "dense given gates", "dense sampler"])
def test_a_loaded_model_is_fitted_again_to_the_same_objective(name: str, tmp_path: Path) -> None:
    model = fitted(name)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    objectives = [block.result_.objective for block in loaded.blocks_]
    again = loaded.fit(IMAGES, VARIANTS[name][2])
    np.testing.assert_allclose([block.result_.objective for block in again.blocks_], objectives, rtol=1e-3)


def test_priced_gates_come_back(tmp_path: Path) -> None:
    save_model(fitted("priced gates"), tmp_path)
    assert load_model(tmp_path).blocks_[0].gates == VARIANTS["priced gates"][0]["gates"]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_block_comes_back_to_the_last_bit(name: str, tmp_path: Path) -> None:
    block = fitted(name).blocks_[0]
    block.save(tmp_path, extra={"by": "hand"})
    loaded = ConvexConvBlock.load(tmp_path)
    assert loaded.extra_ == {"by": "hand"}
    np.testing.assert_array_equal(block.predict(IMAGES), loaded.predict(IMAGES))
    np.testing.assert_array_equal(block.transform(IMAGES), loaded.transform(IMAGES))
    inputs = torch.from_numpy(IMAGES).to(block.neurons_.filters)
    assert torch.equal(block.to_torch()(inputs), loaded.to_torch()(inputs))
    assert {**loaded.get_params(), "gates": 0} == {**block.get_params(), "gates": 0}


LABELS: dict[str, list[Any]] = {
    "strings": ["blank", "Größe", "a\nb"],
    "integers": [-1, 2, 1 << 62],
    "booleans": [False, True],
    "numbers": [0.0, 1.0, 3.0],
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
def test_a_classifier_comes_back_to_the_last_bit(labels: str, loss: str, tmp_path: Path) -> None:
    classes = np.array(LABELS[labels], dtype=np.float32 if labels == "numbers" else None)
    block = eq2_block(**{**DENSE, "loss": loss, "padding": 1, "tol": 1e-3, "pricing": PricingOptions(starts=0)})
    model = ConvexCNNClassifier(block=block, layers=2, downsample=(2, 1)).fit(
        IMAGES, classes[np.arange(24) % len(classes)]
    )
    model.save(tmp_path)
    loaded = ConvexCNNClassifier.load(tmp_path)
    for method in ("predict", "decision_function", "predict_proba"):
        np.testing.assert_array_equal(getattr(model, method)(IMAGES), getattr(loaded, method)(IMAGES))
    assert loaded.classes_.dtype == model.classes_.dtype
    assert (loaded.n_features_in_, loaded.downsample) == (84, [2, 1])
    assert loaded.block.get_params() == block.get_params()
    assert clone(loaded).fit(IMAGES, model.predict(IMAGES)).classes_.dtype == model.classes_.dtype


def test_estimators_of_other_settings_come_back(tmp_path: Path) -> None:
    flat = IMAGES.reshape(24, -1)
    quick = {**DENSE, "pricing": PricingOptions(starts=0)}
    gates = np.random.default_rng(2).normal(size=(6, 18))
    models: list[Any] = [
        ConvexCNNRegressor(block=eq2_block(**quick), image_shape=(2, 6, 7)).fit(flat, TARGETS),
        ConvexCNNRegressor(block=eq2_block(**{**quick, "gates": gates})).fit(IMAGES, TARGETS),
        ConvexCNNRegressor(block=[eq2_block(**quick)] * 2, layers=2, reg_fraction=None).fit(flat, TARGETS[:, 0]),
    ]
    for index, model in enumerate(models):
        images = flat if index != 1 else IMAGES
        model.save(tmp_path / str(index))
        loaded = ConvexCNNRegressor.load(tmp_path / str(index))
        np.testing.assert_array_equal(loaded.predict(images), model.predict(images))
        assert (loaded.image_shape, loaded.reg_fraction) == (model.image_shape, model.reg_fraction)
        again = clone(loaded).fit(images, model.predict(images))
        assert again.predict(images).shape == model.predict(images).shape
    models[0].feature_names_in_ = np.array([f"pixel {i}" for i in range(84)], dtype=object)
    models[0].block = None
    models[0].save(tmp_path / "named")
    named = ConvexCNNRegressor.load(tmp_path / "named")
    assert named.feature_names_in_.tolist() == models[0].feature_names_in_.tolist()
    assert named.block is None


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize(
    ("activation", "penalty"),
    [("relu", "group"), ("relu", "dense"), ("gated_relu", "group"), ("gated_relu", "nuclear")],
)
@settings(max_examples=5)
@given(
    geometry=st.fixed_dictionaries(
        {
            "kernel_size": st.sampled_from([1, 2, (1, 3)]),
            "stride": st.sampled_from([1, (1, 2)]),
            "padding": st.sampled_from([0, (1, 0)]),
            "pooling": st.sampled_from(["sum", "mean", "bilinear"]),
            "pool_cells": st.sampled_from([1, 2]),
            "bias": st.booleans(),
            "intercept": st.booleans(),
            "dtype": st.sampled_from(["float64", "float32"]),
        }
    )
)
def test_every_combination_comes_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, activation: str, penalty: str, loss: str, geometry: dict[str, Any]
) -> None:
    images = IMAGES[:10, :, :4, :4]
    targets = {"squared": TARGETS[:10, 0], "logistic": np.resize([1.0, -1.0], 10), "softmax": ONE_HOT[:10]}[loss]
    block = eq2_block(
        activation=activation, penalty=penalty, loss=loss, gates=4, reg=0.3, tol=1e-2, pricing=PricingOptions(starts=0),
        **geometry,
    )  # fmt: skip
    try:
        block.fit(images, targets)
    except InputError:
        return  # a combination that no solver takes
    folder = tmp_path_factory.getbasetemp() / "combination"
    block.save(folder)
    loaded = ConvexConvBlock.load(folder)
    np.testing.assert_array_equal(block.predict(IMAGES[:, :, :4, :4]), loaded.predict(IMAGES[:, :, :4, :4]))
    assert loaded.get_params() == block.get_params()


def test_another_kind_of_model_is_refused(model: LayerwiseCNN, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"holds a LayerwiseCNN, not a ConvexConvBlock. Use LayerwiseCNN.load"):
        ConvexConvBlock.load(saved)
    model.blocks_[0].save(tmp_path)
    with pytest.raises(ModelFileError, match=r"holds a ConvexConvBlock, not a LayerwiseCNN. Use ConvexConvBlock.load"):
        load_model(tmp_path)


def test_labels_that_are_no_json_are_refused(tmp_path: Path) -> None:
    block = eq2_block(**{**DENSE, "pricing": PricingOptions(starts=0)})
    model = ConvexCNNClassifier(block=block).fit(IMAGES, np.arange(24) % 2)
    model.classes_ = np.array(["2020-01-01", "2021-01-01"], dtype="datetime64[D]")
    with pytest.raises(InputError, match=r"labels of dtype datetime64.* can't be written as JSON"):
        model.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_settings_and_extra_come_back(model: LayerwiseCNN, saved: Path, tmp_path: Path) -> None:
    loaded = load_model(saved)
    assert loaded.extra_ == {"classes": ["blank", "Größe"], "reg": 0.2}
    assert (loaded.layers, loaded.downsample, loaded.standardize) == (2, [2, 1], True)
    assert loaded.image_shape_ == (2, 6, 7)
    for block, settings_ in zip(loaded.blocks_, loaded.block, strict=True):
        assert block.get_params() == settings_.get_params() == eq2_block(**VARIANTS["dense"][0]).get_params()
    # Saved once more, the extra goes with it, and the tensors are the same file.
    save_model(loaded, tmp_path / "again")
    assert load_model(tmp_path / "again").extra_ == loaded.extra_
    assert (tmp_path / "again" / WEIGHTS_FILE).read_bytes() == (saved / WEIGHTS_FILE).read_bytes()


def test_the_saved_tensors_give_objective_and_predictions_by_hand(model: LayerwiseCNN, saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    config = json.loads((saved / CONFIG_FILE).read_text())
    for layer, (block, inputs) in enumerate(model.layer_inputs(IMAGES)):
        filters, readout = tensors[f"layers.{layer}.filters"], tensors[f"layers.{layer}.readout"]
        channels = inputs.shape[1]
        kernels = filters[:, :-1].reshape(-1, channels, 3, 3)
        maps = torch.conv2d(inputs, kernels, filters[:, -1], padding=1).relu()
        pooled = torch.nn.functional.adaptive_avg_pool2d(maps, 2).flatten(2)
        prediction = torch.einsum("nmc,mco->no", pooled, readout) + tensors[f"layers.{layer}.intercept"]
        np.testing.assert_allclose(prediction, block.predict(inputs), atol=1e-10)
        squares = float(filters.square().sum() + readout.square().sum())
        objective = 0.5 * float((prediction - torch.tensor(TARGETS)).square().sum()) + 0.1 * squares
        result = config["layers"][layer]["result"]
        assert objective == pytest.approx(result["objective"], rel=1e-9)
        assert objective == pytest.approx(nonconvex_objective(block.to_torch(), inputs, TARGETS, 0.2), rel=1e-9)
        # The dual bound from the gates of the program, which are filter directions here: scale the residual
        # until no direction's correlation is longer than reg.
        gates = torch.nn.functional.normalize(tensors[f"layers.{layer}.gates"], dim=1)
        directions = gates[:, :-1].reshape(-1, channels, 3, 3)
        responses = torch.conv2d(inputs, directions, gates[:, -1], padding=1).relu()
        responses = torch.nn.functional.adaptive_avg_pool2d(responses, 2).flatten(2)
        dual = torch.tensor(TARGETS) - prediction
        norms = torch.einsum("nmc,no->mco", responses, dual).flatten(1).norm(dim=1)
        dual = dual * min(1.0, 0.2 / float(norms.max()))
        bound = float((dual * torch.tensor(TARGETS)).sum() - 0.5 * dual.square().sum())
        assert bound <= objective
        assert (objective - bound) / objective < 1e-3
        assert result["dual_bound"] >= bound - 1e-9


def test_a_model_that_is_there_is_replaced_and_nothing_else_is_left(model: LayerwiseCNN, copy: Path) -> None:
    save_model(model, copy, extra={"second": True})
    assert load_model(copy).extra_ == {"second": True}
    assert sorted(os.listdir(copy)) == [CONFIG_FILE, WEIGHTS_FILE]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_files_are_as_readable_as_other_new_files(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    expected = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert stat.S_IMODE((saved / WEIGHTS_FILE).stat().st_mode) == expected


def test_a_configuration_from_an_editor_on_windows(model: LayerwiseCNN, copy: Path) -> None:
    content = (copy / CONFIG_FILE).read_bytes()
    (copy / CONFIG_FILE).write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert len(load_model(copy).blocks_) == len(model.blocks_)
    # Another encoding is another thing.
    (copy / CONFIG_FILE).write_bytes(content.decode().encode("utf-16"))
    with pytest.raises(ModelFileError, match=r"config\.json isn't valid JSON"):
        load_model(copy)


# What is refused on saving.


def test_saving_refuses_what_is_no_fitted_stack(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError, match="isn't fitted yet"):
        save_model(LayerwiseCNN(), tmp_path / "new")
    with pytest.raises(InputError, match="model must be a LayerwiseCNN; got ConvexConvBlock"):
        save_model(ConvexConvBlock(), tmp_path / "new")  # type: ignore[arg-type]
    for model in (ConvexConvBlock(), LayerwiseCNN(), ConvexCNNClassifier(), ConvexCNNRegressor()):
        with pytest.raises(NotFittedError, match=f"This {type(model).__name__} isn't fitted yet"):
            model.save(tmp_path / "new")
    with pytest.raises(InputError, match="model must be a LayerwiseCNN; got int"):
        save_model(3, tmp_path / "new")  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, np.zeros(2), 10**30])
def test_saving_refuses_an_extra_that_is_no_json(model: LayerwiseCNN, tmp_path: Path, value: Any) -> None:
    with pytest.raises(InputError, match="extra must hold JSON values"):
        save_model(model, tmp_path / "new", extra={"value": value})
    assert not (tmp_path / "new").exists()


def test_saving_where_a_file_is_or_under_one(model: LayerwiseCNN, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ModelFileError, match="can't be written to"):
            save_model(model, folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failing_write_leaves_no_part_of_a_model(
    model: LayerwiseCNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls = os.replace, []

    def second_fails(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) % 2 == 0:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "new" / "below", tmp_path / "mine"):
        with pytest.raises(ModelFileError, match=r"can't be written to .*: Input/output error"):
            model.save(folder)
    assert len(calls) == 4
    assert os.listdir(tmp_path) == ["mine"]
    assert os.listdir(tmp_path / "mine") == []


def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


# What is refused on loading.


def test_missing_folders_and_files(copy: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "There is no model in", "config.json is missing")
    (copy / WEIGHTS_FILE).unlink()
    refused(copy, "model.safetensors is missing")
    (copy / CONFIG_FILE).unlink()
    refused(copy, "config.json is missing")
    (copy / CONFIG_FILE).mkdir()
    refused(copy, "isn't a regular file")
    refused(tmp_path / "a\0b", "can't be read")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "can't be read")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_and_not_waited_for(copy: Path) -> None:
    (copy / WEIGHTS_FILE).unlink()
    os.mkfifo(copy / WEIGHTS_FILE)
    refused(copy, "isn't a regular file")


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"format": NaN}', '{"format": 1e999}', '{"a": 1, "a": 1}', "[" * 100_000, "[" + "9" * 5000, "\ud800"],
)
def test_a_configuration_that_is_no_json(copy: Path, text: str) -> None:
    (copy / CONFIG_FILE).write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(copy, "isn't valid JSON")


@pytest.mark.parametrize("content", [[], "text", None, {}, {"format": "other"}])
def test_a_foreign_configuration(copy: Path, content: Any) -> None:
    (copy / CONFIG_FILE).write_text(json.dumps(content))
    refused(copy, "isn't of a model of this package")


def edited(folder: Path, edit: Edit) -> Path:
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))
    return folder


def test_a_newer_format(copy: Path) -> None:
    edited(copy, lambda config: config.update(format_version=2, package_version="9.0"))
    refused(copy, "format version 2", "reads up to 1", "Upgrade cvxcnn", "'9.0'")
    edited(copy, lambda config: config.update(format_version="1"))
    refused(copy, "format_version must be an int >= 1; got '1'")


def set_at(*path: Any) -> Edit:
    """Return an edit that puts the last argument where the others point to."""

    def edit(config: dict[str, Any]) -> None:
        *way, name, value = path
        place: Any = config
        for step in way:
            place = place[step]
        place[name] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "texts"),
    [
        (lambda c: c.pop("stack"), ["has no stack"]),
        (lambda c: c.pop("sha256"), ["has no sha256"]),
        (set_at("layers", []), ["layers", "must be a list of layers"]),
        (set_at("layers", 0, None), ["layers[0]", "must be an object"]),
        (lambda c: c["layers"].pop(), ["stack.layers", "is 2, but there are 1 layers"]),
        (set_at("stack", "layers", 10**9), ["stack.layers", "but there are 2 layers"]),
        (set_at("stack", "image_shape", [2, 6]), ["stack.image_shape", "three ints >= 1"]),
        (set_at("stack", "image_shape", [3, 6, 7]), ["layers.0.filters must be torch.float64 of shape (any, 28)"]),
        (set_at("stack", "downsample", 0), ["stack.downsample", "an int >= 1"]),
        (set_at("stack", "downsample", 7), ["too small for stack.downsample"]),
        (set_at("stack", "standardize", False), ["has a tensor 'layers.0.standardizer.mean' that belongs to no layer"]),
        (set_at("extra", 3), ["extra", "must be an object; it is 3"]),
        (lambda c: c["layers"][1]["block"].pop("padding"), ["has no layers[1].block.padding"]),
        (set_at("layers", 0, "block", "colour", "red"), ["unknown setting layers[0].block.'colour'"]),
        (set_at("layers", 0, "block", "reg", -1.0), ["layers[0].block", "can't be used", "reg must be"]),
        (set_at("layers", 0, "block", "reg", "1"), ["layers[0].block.reg", "must be a number or null; it is '1'"]),
        (set_at("layers", 0, "reg", None), ["layers[0].reg", "must be a number; it is None"]),
        (set_at("layers", 0, "reg", -1.0), ["layers[0].reg", "must be a positive number; it is -1.0"]),
        (set_at("layers", 0, "block", "kernel_size", 5), ["layers.0.filters must be", "(any, 51)"]),
        (set_at("layers", 0, "block", "pool_cells", 9), ["pool_cells=9 needs feature maps"]),
        (set_at("layers", 0, "block", "pooling", []), ["layers[0].block.pooling", "a text"]),
        (set_at("layers", 0, "block", "activation", "tanh"), ["activation must be"]),
        (set_at("layers", 0, "block", "dtype", "float16"), ["dtype must be"]),
        (set_at("layers", 0, "block", "dtype", "float32"), ["must be torch.float32", "it is torch.float64"]),
        (set_at("layers", 0, "block", "pricing", {"hope": 1}), ["pricing", "can't be used"]),
        (set_at("layers", 0, "block", "pricing", {"gap": "x"}), ["pricing", "must hold numbers"]),
        (set_at("layers", 0, "block", "pricing", {"starts": -1}), ["pricing", "starts must be an int >= 0; got -1"]),
        (set_at("layers", 0, "block", "gates", {"hope": 1}), ["gates", "can't be used"]),
        (set_at("layers", 0, "block", "gates", [1]), ["gates", "a number, a text or an object"]),
        (set_at("layers", 0, "n_outputs", 3), ["layers.0.readout must be", "3"]),
        (set_at("layers", 0, "n_outputs", True), ["n_outputs", "must be an int >= 1; it is True"]),
        (set_at("layers", 0, "n_neurons", 1000), ["n_neurons", "is 1000"]),
        (set_at("layers", 0, "flat_targets", True), ["flat_targets", "2 outputs"]),
        (set_at("layers", 0, "result", "objective", "low"), ["layers[0].result.objective", "a number or null"]),
        (set_at("layers", 0, "result", "status", "fine"), ["layers[0].result.status", "must be one of"]),
        (set_at("layers", 0, "certificate", "kind", "sworn"), ["layers[0].certificate.kind", "must be one of"]),
        (lambda c: c["layers"][0].pop("certificate"), ["has no layers[0].certificate"]),
        (lambda c: c.pop("kind"), ["has no kind"]),
        (set_at("kind", ["LayerwiseCNN"]), ["kind", "must be one of ConvexConvBlock, LayerwiseCNN"]),
        (lambda c: c.pop("config_sha256"), ["has no config_sha256"]),
        (set_at("layers", 0, "block", "reg", 0.3), ["config.json isn't as it was written"]),
        (set_at("layers", 0, "result", "seconds", 1e9), ["config.json isn't as it was written"]),
        (set_at("sha256", "0" * 64), ["isn't the one that config.json was written with"]),
    ],
)
def test_a_damaged_configuration_says_where(copy: Path, edit: Edit, texts: list[str]) -> None:
    refused(edited(copy, edit), "is damaged:", *texts)


def retensored(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    tensors = load_file(folder / WEIGHTS_FILE)
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    return folder


@pytest.mark.parametrize(
    ("edit", "texts"),
    [
        (lambda t: t.pop("layers.1.readout"), ["has no tensor layers.1.readout"]),
        (lambda t: t.pop("layers.0.standardizer.scale"), ["has no tensor layers.0.standardizer.scale"]),
        (lambda t: t.update({"layers.2.filters": torch.zeros(1)}), ["'layers.2.filters' that belongs to no layer"]),
        (lambda t: t.update({"layers.0.filters": t["layers.0.filters"].T}), ["layers.0.filters must be"]),
        (lambda t: t.update({"layers.0.filters": t["layers.0.filters"][:0]}), ["layers.0.filters has no filter"]),
        (lambda t: t.update({"layers.0.readout": t["layers.0.readout"][:-1]}), ["layers.0.readout must be"]),
        (lambda t: t.update({"layers.0.gates": t["layers.0.gates"].int()}), ["layers.0.gates must be", "torch.int32"]),
        (lambda t: t["layers.1.filters"].fill_(torch.nan), ["layers.1.filters has values that are not finite"]),
        (lambda t: t["layers.0.gates"].fill_(torch.inf), ["layers.0.gates has values that are not finite"]),
        (lambda t: t["layers.0.standardizer.scale"].zero_(), ["layers.0.standardizer.scale", "not positive"]),
        (lambda t: t["layers.0.intercept"].add_(1.0), ["isn't the one that config.json was written with"]),
    ],
)
def test_tensors_that_do_not_fit(copy: Path, edit: Callable[[dict[str, torch.Tensor]], Any], texts: list[str]) -> None:
    refused(retensored(copy, edit), "is damaged:", *texts)


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95", b"PK\x03\x04" + bytes(100), b"\xff" * 64])
def test_a_weights_file_of_another_kind(copy: Path, content: bytes) -> None:
    (copy / WEIGHTS_FILE).write_bytes(content)
    refused(copy, "is truncated or isn't a safetensors file")


@settings(max_examples=40)
@given(share=st.floats(0, 1, exclude_max=True))
def test_every_truncation_is_refused(saved: Path, tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        folder = tmp_path_factory.mktemp("cut")
        shutil.copytree(saved, folder, dirs_exist_ok=True)
        content = (folder / name).read_bytes()
        # The last byte of the configuration is a line break.
        (folder / name).write_bytes(content[: int(share * (len(content) - 1))])
        with pytest.raises(ModelFileError):
            load_model(folder)


@settings(max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(1, 255))
def test_every_changed_byte_of_the_weights_is_refused(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, place: float, byte: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[int(place * len(content))] ^= byte
    (folder / WEIGHTS_FILE).write_bytes(bytes(content))
    with pytest.raises(ModelFileError):
        load_model(folder)


@settings(max_examples=100)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(1, 255))
def test_a_changed_byte_of_the_configuration_is_refused_or_harmless(
    model: LayerwiseCNN, saved: Path, tmp_path_factory: pytest.TempPathFactory, place: float, byte: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    content = bytearray((folder / CONFIG_FILE).read_bytes())
    content[int(place * len(content))] ^= byte
    (folder / CONFIG_FILE).write_bytes(bytes(content))
    try:
        loaded = load_model(folder)
    except ModelFileError:
        return
    assert loaded.blocks_[-1].n_outputs_ == model.blocks_[-1].n_outputs_


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([-1, 0, 1, 2, 3, 1e9, "", "1", "cuda", "priced", "array", "float32", "gated_relu", "nuclear"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=60)
@given(data=st.data())
def test_any_value_at_any_place_is_refused_or_understood(
    classifier: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "edited"
    shutil.copytree(classifier, folder, dirs_exist_ok=True)
    config = json.loads((folder / CONFIG_FILE).read_text())
    place: Any = config
    while True:
        name = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[name], (dict, list)) or not place[name] or data.draw(st.integers(0, 5)) == 0:
            break
        place = place[name]
    place[name] = data.draw(VALUES)
    config["config_sha256"] = config_checksum(config)
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    try:
        loaded = ConvexCNNClassifier.load(folder)
    except ModelFileError as error:
        assert "\n" not in str(error)
        return
    loaded.get_params()
    try:
        assert len(loaded.predict(IMAGES)) == 24
    except InputError:
        # The shape of the images, say, can be another one.
        assert place is not config


def test_a_device_that_is_not_there_is_no_damage(saved: Path) -> None:
    if torch.cuda.is_available():
        assert load_model(saved, device="cuda").blocks_[0].neurons_.filters.is_cuda
    else:
        with pytest.raises(InputError, match="can't be used"):
            load_model(saved, device="cuda")
    with pytest.raises(InputError, match="can't be used"):
        load_model(saved, device="quantum")
