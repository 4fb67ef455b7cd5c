"""What runs on a GPU, on a pretended device: nothing may meet a tensor of the CPU, and the numbers are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretended_device import ELSEWHERE, pretended_device

from cvxcnn import (
    ConvexCNNClassifier,
    ConvexConvBlock,
    LayerwiseCNN,
    PricedGates,
    PricingOptions,
    load_model,
    polish,
    reg_path,
    save_model,
)
from cvxcnn.__main__ import main
from cvxcnn.commands import predict
from cvxcnn.data import limit, load_data, one_hot
from cvxcnn.models.recipes import stack_settings
from cvxcnn.runs import diagnosing, explaining, records, run, settings

NO_SEARCH = PricingOptions(starts=0)
# An operation takes a hundred times as long there.
SHORT: dict[str, Any] = {
    "starts": 4,
    "ascent_steps": 4,
    "improvement_steps": 4,
    "initial_filters": 6,
    "max_rounds": 2,
}
DIGITS = limit(load_data("digits")[0], 24, 0)
IMAGES, TARGETS = DIGITS.images, one_hot(DIGITS.labels, 10)
SIDE_BY_SIDE: list[dict[str, Any]] = [
    {"gates": 12},
    {"gates": 12, "pooling": "max"},
    {"gates": 12, "pooling": "sum", "dtype": "float32", "tol": 1e-4},
    {"gates": 12, "solver": "streamed", "intercept": True},
    {"gates": 12, "loss": "softmax", "tol": 1e-5},
    {"gates": 12, "loss": "logistic", "tol": 1e-5},
    {"gates": 6, "penalty": "group"},
    {"gates": 8, "activation": "gated_relu", "penalty": "group"},
    {"gates": 6, "activation": "gated_relu", "penalty": "nuclear", "tol": 1e-5},
    {"activation": "linear", "tol": 1e-5},
    {"activation": "quadratic", "penalty": "group", "tol": 1e-5},
]


def test_places_are_kept_apart() -> None:
    with pretended_device() as device:
        there = torch.arange(6.0, device=device).view(2, 3)
        assert there.device == ELSEWHERE and (2 * there).sum().item() == 30 and there.cpu().tolist() == there.tolist()
        there[:, [0, 2]] = 1.0
        there[0] = torch.zeros(3)  # a copy may cross
        assert there.sum().item() == 6.0 and there[torch.tensor([1])].tolist() == [[1.0, 4.0, 1.0]]
        weights = there.clone().requires_grad_()
        weights.square().sum().backward()
        assert weights.grad is not None and weights.grad.tolist() == (2 * there).tolist()
        with pytest.raises(RuntimeError, match="meets one of the device"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


@pytest.mark.parametrize("given", SIDE_BY_SIDE, ids=lambda given: "-".join(map(str, given.values())))
def test_a_block_has_the_same_objective_there(given: dict[str, Any]) -> None:
    values = {"kernel_size": 3, "pricing": NO_SEARCH} | given

    def objective(device: str) -> float:
        targets = 2 * TARGETS - 1 if values.get("loss") == "logistic" else TARGETS
        block = ConvexConvBlock(device=device, reg=0.5, **values).fit(IMAGES, targets)
        assert np.isfinite(block.predict(IMAGES)).all()
        return block.result_.objective

    here = objective("cpu")
    with pretended_device() as device:
        assert objective(device) == pytest.approx(here, rel=10 * values.get("tol", 1e-6))


def test_filters_are_priced_there() -> None:
    with pretended_device() as device:
        block = ConvexConvBlock(device=device, gates=PricedGates(**SHORT), reg=0.5, kernel_size=2)
        block.fit(IMAGES, TARGETS)
        found = block.certificate_
        assert found.objective >= found.global_bound > 0
    # Other roundings find other filters: the bound of one run is below the objective of another.
    block = ConvexConvBlock(gates=PricedGates(**SHORT), reg=0.5, kernel_size=2).fit(IMAGES, TARGETS)
    assert block.certificate_.objective >= found.global_bound
    assert found.objective >= block.certificate_.global_bound


@pytest.mark.parametrize("name", ["small", "large", "huge"])
def test_the_recipes_of_photographs_have_the_same_objectives_there(name: str, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((24, 3, 12, 12))
    undecided = dict.fromkeys(("downsample", "reg_fraction", "project", "hand_on"))
    given: dict[str, Any] = {"layers": 2, "mirror": False, "residual": False, "half_maps": False, **undecided}

    def fitted(device: str) -> LayerwiseCNN:
        values = stack_settings(name, (3, 12, 12), len(images), given, classes=True)
        for block in values["block"]:
            block.set_params(device=device, gates=type(block.gates)(9), tol=1e-6)
        return LayerwiseCNN(**values).fit(images, TARGETS)

    here = [block.result_.objective for block in fitted("cpu").blocks_]
    with pretended_device() as device:
        stack = fitted(device)
        assert [block.result_.objective for block in stack.blocks_] == pytest.approx(here, rel=1e-4)
        save_model(stack, tmp_path / "there.safetensors")
        again = load_model(tmp_path / "there.safetensors", device=device)
        predicted = stack.predict(images)
        assert again.predict(images) == pytest.approx(predicted, abs=1e-5)
    # Saved there, loaded here.
    assert load_model(tmp_path / "there.safetensors").predict(images) == pytest.approx(predicted, abs=1e-5)


def test_whatever_else_takes_a_device() -> None:
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 2), torch.nn.ReLU(), torch.nn.AvgPool2d(7), torch.nn.Flatten(), torch.nn.Linear(4, 10)
    )
    with pretended_device() as device:
        block = ConvexConvBlock(device=device, gates=8, kernel_size=2, pricing=PricingOptions(**SHORT))
        classifier = ConvexCNNClassifier(layers=1, block=block).fit(IMAGES, DIGITS.labels)
        assert classifier.score(IMAGES, DIGITS.labels) > 0.5
        polished = polish(module.double(), IMAGES, TARGETS, reg=0.5, pricing=PricingOptions(**SHORT), device=device)
        assert polished.objective <= polished.objective_before
        assert len(reg_path(IMAGES, TARGETS, block=block, points=3).regs) == 3


def test_the_commands_run_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], blank_pictures: None
) -> None:
    folder, other, pictures = (str(tmp_path / name) for name in ("run", "other", "pictures.npy"))
    np.save(pictures, IMAGES)
    layers = ["--layers", "1", "--limit-train", "12", "--gates", "12", "--starts", "0", "--device", "cuda"]
    rivals = ["--baseline-epochs", "3", "--baseline", "softplus", "kernel"]
    with pretended_device() as device:
        for module in (settings, records, run, explaining, diagnosing, predict):
            monkeypatch.setattr(module, "resolve_device", lambda name: device)
        assert main(["train", *layers, *rivals, "adam", "two-phase", "--output", folder]) == 0
        assert main(["explain", folder, "--images", "2", "--device", "cuda"]) == 0
        # Each network takes as long: the optimum, one that is trained, and one that is smooth.
        assert main(["train", *layers, *rivals, "adam", "--output", other]) == 0
        assert main(["diagnose", other, "--device", "cuda"]) == 0
        assert main(["predict", folder, pictures, "--device", "cuda"]) == 0
    assert "Error" not in capsys.readouterr().err
