"""Every activation, and one that exists here alone, through every penalty, loss and way to choose gates."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cvxcnn
from cvxcnn import ConvexCNNClassifier, ConvexConvBlock, LayerwiseCNN, PricingOptions, nonconvex_objective
from cvxcnn.activations import ACTIVATIONS, Neurons, Relu, get_activation
from cvxcnn.errors import InputError
from cvxcnn.losses import LOSSES
from cvxcnn.patches import Patches
from cvxcnn.penalties import PENALTIES
from cvxcnn.pricing.filter_master import FilterMaster
from cvxcnn.pricing.search import SEARCHES, FilterSearch
from cvxcnn.pricing.solve import solve_priced
from cvxcnn.program.design import FilterDesign

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(12, 1, 4, 4))
QUICK = PricingOptions(starts=8, ascent_steps=10, initial_filters=4, max_rounds=1, gap=1e-1)


class AbsoluteDesign(FilterDesign):
    """Pooled |x . u|."""

    directions_are = "absolute filters"

    @staticmethod
    def responses(patches: Patches, filters: Tensor) -> Tensor:
        return patches.relu_features(filters) + patches.relu_features(-filters)


class AbsoluteSearch(FilterSearch):
    design = AbsoluteDesign

    def climb(self, directions: Tensor, steps: int, pairs: Tensor | None) -> Tensor:
        return directions


class AbsoluteMaster(FilterMaster):
    design = AbsoluteDesign


class Absolute(nn.Module):
    """|t|."""

    def forward(self, values: Tensor) -> Tensor:
        return values.abs()


class AbsoluteNeurons(Neurons):
    design = AbsoluteDesign

    def to_module(self, *arguments: Any, **options: Any) -> nn.Sequential:
        module = super().to_module(*arguments, **options)
        module.relu = Absolute()
        return module


class AbsoluteValue(Relu):
    """f = sum_i w_i sum_k |x_k . u_i|."""

    name = "absolute"
    design = AbsoluteDesign

    def refusal(self, penalty: str) -> str:
        return "" if penalty in ("dense", "group") else 'absolute has filters, no gates. Use penalty="dense".'

    def program(self, problem: Any, gates: Tensor) -> Any:
        if problem.penalty.group_axes != ():
            raise InputError('absolute has no program over patterns. Use gates="priced", or penalty="dense".')
        return super().program(problem, gates)

    def price(self, problem: Any, **settings: Any) -> Any:
        return solve_priced(problem, AbsoluteMaster, **settings)

    def read(self, program: Any, weights: Tensor, intercepts: Tensor | None) -> Neurons:
        return self.from_state(super().read(program, weights, intercepts).state())

    def from_state(self, state: Any) -> Neurons:
        return AbsoluteNeurons(**state)


@pytest.fixture(autouse=True)
def absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACTIVATIONS, AbsoluteValue.name, AbsoluteValue)
    monkeypatch.setitem(SEARCHES, AbsoluteDesign.directions_are, AbsoluteSearch)


def targets_of(loss: str) -> np.ndarray:
    numbers = np.random.default_rng(1).normal(size=(12, 2))
    if loss == "softmax":
        return np.eye(2)[(numbers[:, 0] > 0).astype(int)]
    return np.sign(numbers) if loss == "logistic" else numbers


@pytest.mark.parametrize("gates", [6, "priced"])
@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("penalty", sorted(PENALTIES))
@pytest.mark.parametrize("activation", [*sorted(ACTIVATIONS), "absolute"])
def test_each_gives_a_right_result_or_a_clear_refusal(
    activation: str, penalty: str, loss: str, gates: Any, tmp_path: Path
) -> None:
    targets = targets_of(loss)
    block = ConvexConvBlock(
        kernel_size=2, activation=activation, penalty=penalty, loss=loss, gates=gates, pricing=QUICK, reg=0.3
    )
    try:
        block.fit(IMAGES, targets)
    except InputError as refusal:
        assert "use " in str(refusal).lower()
        return
    result, certificate = block.result_, block.certificate_
    assert result.relative_gap <= 1e-5
    assert certificate.global_bound <= result.objective * (1 + 1e-9)
    module = block.to_torch()
    predicted = block.predict(IMAGES)
    assert np.allclose(module(torch.from_numpy(IMAGES)).detach().numpy(), predicted)
    if get_activation(activation).networks == "all":
        assert result.objective == pytest.approx(nonconvex_objective(module, IMAGES, targets, 0.3, loss=loss), rel=1e-9)
    block.save(tmp_path)
    assert (ConvexConvBlock.load(tmp_path).predict(IMAGES) == predicted).all()


@pytest.mark.parametrize("activation", [*sorted(ACTIVATIONS), "absolute"])
def test_each_goes_through_stacks_and_estimators(activation: str) -> None:
    kind = get_activation(activation)
    gates: Any = "priced" if kind.whole else 6
    block = ConvexConvBlock(kernel_size=2, activation=activation, penalty=kind.penalties[0], gates=gates, pricing=QUICK)
    targets = targets_of("squared")
    stack = LayerwiseCNN(layers=1, block=block).fit(IMAGES, targets)
    assert np.allclose(stack.to_torch()(torch.from_numpy(IMAGES)).detach().numpy(), stack.predict(IMAGES))
    labels = np.repeat(["a", "b"], 6)
    assert set(ConvexCNNClassifier(block=block).fit(IMAGES, labels).predict(IMAGES)) <= {"a", "b"}


def test_names_that_there_are_not() -> None:
    for name in ("tanh", None, 3):
        with pytest.raises(InputError, match=rf'activation must be "relu", .*; got {name!r}'):
            ConvexConvBlock(activation=name).fit(IMAGES, targets_of("squared"))  # type: ignore[arg-type]


def test_solvers_ask_what_a_part_can_do_and_not_what_class_it_is() -> None:
    kinds = {"Loss", "Penalty", "Activation"}
    for name in (
        "SquaredLoss",
        "LogisticLoss",
        "SoftmaxLoss",
        "GroupPenalty",
        "DensePenalty",
        "NuclearPenalty",
        "Relu",
    ):
        kinds.add(name)
    for path in sorted((Path(cvxcnn.__file__).parent / "solvers").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                asked = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                assert not asked & kinds, f"{path.name} asks for {asked & kinds}"
