"""Penalties and losses against the definitions of prox, dual norm and conjugate."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cvxcnn.errors import InputError
from cvxcnn.losses import LOSSES, SquaredLoss, get_loss
from cvxcnn.penalties import PENALTIES, Penalty, get_penalty

every_penalty = pytest.mark.parametrize("name", sorted(PENALTIES))


@st.composite
def weights(draw: st.DrawFn, count: int = 1) -> list[Tensor]:
    """Return random weights (blocks, cells, rows, outputs), a few of their blocks zero."""
    shape = tuple(draw(st.integers(1, most)) for most in (4, 3, 4, 3))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    drawn = [torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(count)]
    if draw(st.booleans()):
        drawn[0][torch.rand(shape[0], generator=random) < 0.3] = 0.0
    return drawn


steps = st.floats(0.01, 3.0)


def largest(penalty: Penalty, correlation: Tensor) -> float:
    """Return the dual norm of the whole penalty: the largest over its groups."""
    return float(penalty.dual_norms(correlation).max())


@every_penalty
@given(drawn=weights(), step=steps)
def test_moreau(name: str, drawn: list[Tensor], step: float) -> None:
    """What the prox takes away is the projection on the ball {dual norm <= step}, and is where the norm is attained."""
    (point,) = drawn
    penalty = get_penalty(name)
    shrunk = penalty.prox(point, step)
    taken = point - shrunk
    assert largest(penalty, taken) <= step * (1 + 1e-12)
    # <prox, taken> = step * Omega(prox) is the optimality condition of the prox.
    assert float((shrunk * taken).sum()) == pytest.approx(step * penalty.value(shrunk), rel=1e-10, abs=1e-12)
    # Projecting twice changes nothing: a point of the ball is all taken away.
    assert float(penalty.prox(taken * (1 - 1e-9), step).abs().max()) <= 1e-12


@every_penalty
@given(drawn=weights(), step=steps)
def test_prox_minimises(name: str, drawn: list[Tensor], step: float) -> None:
    (point,) = drawn
    penalty = get_penalty(name)
    shrunk = penalty.prox(point, step)

    def value(trial: Tensor) -> float:
        return 0.5 * float((trial - point).square().sum()) + step * penalty.value(trial)

    random = torch.Generator().manual_seed(0)
    for size in (1.0, 1e-3):
        trial = shrunk + size * torch.randn(point.shape, generator=random, dtype=torch.float64)
        assert value(trial) >= value(shrunk) - 1e-12


@every_penalty
@given(drawn=weights(count=2), step=steps)
def test_prox_is_firmly_non_expansive(name: str, drawn: list[Tensor], step: float) -> None:
    first, second = drawn
    penalty = get_penalty(name)
    difference = penalty.prox(first, step) - penalty.prox(second, step)
    assert float(difference.square().sum()) <= float((difference * (first - second)).sum()) + 1e-12


@every_penalty
@given(drawn=weights())
def test_prox_is_zero_from_the_dual_norm_on(name: str, drawn: list[Tensor]) -> None:
    (point,) = drawn
    penalty = get_penalty(name)
    threshold = largest(penalty, point)
    assert float(penalty.prox(point, threshold * (1 + 1e-9) + 1e-12).abs().max()) == 0.0
    if threshold > 1e-6:
        assert bool(penalty.prox(point, threshold * 0.999).any())


@every_penalty
@given(drawn=weights(count=2))
def test_dual_norm_is_the_support_function(name: str, drawn: list[Tensor]) -> None:
    """<a, z> <= dual(a) Omega(z) for all z, with equality at the z that the prox of a leaves."""
    correlation, trial = drawn
    penalty = get_penalty(name)
    dual = largest(penalty, correlation)
    assert float((correlation * trial).sum()) <= dual * penalty.value(trial) * (1 + 1e-12) + 1e-12
    if dual > 1e-6:
        # Just below the threshold only the direction in which the dual norm is attained survives.
        attained = penalty.prox(correlation, dual * (1 - 1e-6))
        assert float((correlation * attained).sum()) == pytest.approx(dual * penalty.value(attained), rel=1e-5)


@every_penalty
@given(drawn=weights(count=2), factor=st.floats(0.0, 5.0))
def test_penalty_is_a_norm(name: str, drawn: list[Tensor], factor: float) -> None:
    first, second = drawn
    penalty = get_penalty(name)
    assert penalty.value(factor * first) == pytest.approx(factor * penalty.value(first), abs=1e-12)
    assert penalty.value(first + second) <= penalty.value(first) + penalty.value(second) + 1e-12


@every_penalty
@given(drawn=weights(), reg=st.floats(0.1, 10.0))
def test_largest_scale_reaches_reg(name: str, drawn: list[Tensor], reg: float) -> None:
    (correlation,) = drawn
    penalty = get_penalty(name)
    scaled = correlation * penalty.largest_scale(correlation, reg)
    if bool(correlation.flatten(0, 2).any(dim=0).all()):
        assert largest(penalty, scaled) == pytest.approx(reg)


def test_values_by_hand() -> None:
    point = torch.tensor([[[[3.0, 0.0], [4.0, 0.0]], [[0.0, 0.0], [0.0, 12.0]]]], dtype=torch.float64)
    assert get_penalty("group").value(point) == 5 + 12
    assert get_penalty("dense").value(point) == 13
    # As a 2 x 4 matrix: columns (3, 4), 0, 0, (0, 12), so the trace of M M^T is 169 and its determinant (3 * 12)^2.
    assert get_penalty("nuclear").value(point) == pytest.approx(math.sqrt(169 + 2 * 36))
    assert get_penalty("group").dual_norms(point).tolist() == [[[5.0, 0.0], [0.0, 12.0]]]
    assert get_penalty("dense").dual_norms(point).tolist() == [13.0]


@given(drawn=weights(), step=steps)
def test_nuclear_of_rank_one_blocks_is_group(drawn: list[Tensor], step: float) -> None:
    """With one cell and one output the nuclear and dense penalties are the group penalty."""
    (point,) = drawn
    point = point[:, :1, :, :1].contiguous()
    group = get_penalty("group")
    for name in ("nuclear", "dense"):
        other = get_penalty(name)
        assert other.value(point) == pytest.approx(group.value(point))
        torch.testing.assert_close(other.prox(point, step), group.prox(point, step), rtol=1e-10, atol=1e-12)


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    shape = (draw(st.integers(1, 5)), draw(st.integers(2, 4)))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    prediction, targets = torch.randn((2, *shape), generator=random, dtype=torch.float64)
    return prediction, targets


def suited(name: str, targets: Tensor) -> Tensor:
    """Return targets of the loss, made from any numbers."""
    if name == "logistic":
        return torch.where(targets > 0, 1.0, -1.0).to(targets)
    if name == "softmax":
        return F.one_hot(targets.argmax(dim=1), targets.shape[1]).to(targets)
    return targets


every_loss = pytest.mark.parametrize("name", sorted(LOSSES))


@every_loss
@given(pair=predictions())
def test_dual_point_is_minus_the_gradient(name: str, pair: tuple[Tensor, Tensor]) -> None:
    prediction, targets = pair[0], suited(name, pair[1])
    loss = get_loss(name)
    leaf = prediction.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss.tensor(leaf, targets), leaf)
    torch.testing.assert_close(loss.dual_point(prediction, targets), -gradient)


@every_loss
@given(pair=predictions())
def test_model_has_the_gradient_and_the_hessian(name: str, pair: tuple[Tensor, Tensor]) -> None:
    prediction, targets = pair[0], suited(name, pair[1])
    loss = get_loss(name)
    root, remainder = loss.model(prediction, targets)
    if loss.separable:
        root = torch.diag_embed(root)
    gradient = -torch.einsum("nop,no->np", root, remainder)
    torch.testing.assert_close(gradient, -loss.dual_point(prediction, targets))
    for row in range(len(prediction)):
        one = targets[row : row + 1]
        hessian = torch.autograd.functional.hessian(lambda f, one=one: loss.tensor(f[None], one), prediction[row])
        torch.testing.assert_close(root[row].T @ root[row], hessian, atol=1e-10, rtol=1e-8)


@given(pair=predictions(), cap=st.floats(0.0, 5.0))
def test_squared_dual_value_is_the_best_multiple(pair: tuple[Tensor, Tensor], cap: float) -> None:
    dual, targets = pair
    largest_scale = torch.full((dual.shape[1],), cap, dtype=torch.float64)
    grid = torch.linspace(0, cap, 2001, dtype=torch.float64)[:, None]
    linear, square = (dual * targets).sum(0), dual.square().sum(0)
    brute = float((grid * linear - 0.5 * grid**2 * square).amax(0).sum())
    value = SquaredLoss().dual_value(dual, targets, largest_scale)
    assert value >= brute - 1e-12
    assert value == pytest.approx(brute, abs=1e-5 * (1 + float(square.sum())))


@pytest.mark.parametrize("name", ["logistic", "softmax"])
@given(pair=predictions(), cap=st.floats(0.05, 3.0))
def test_entropy_dual_value_is_the_best_multiple(name: str, pair: tuple[Tensor, Tensor], cap: float) -> None:
    prediction, targets = pair[0], suited(name, pair[1])
    loss = get_loss(name)
    dual = loss.dual_point(prediction, targets)
    if name == "logistic":
        limits = torch.minimum(dual.new_tensor(cap), 1 / (dual * targets).amax(0))
        shares = torch.linspace(0, 1, 2001, dtype=dual.dtype)[:, None, None] * limits * (dual * targets)
        brute = float((torch.special.entr(shares) + torch.special.entr(1 - shares)).sum(dim=1).amax(0).sum())
    else:
        room = float(torch.where(dual > 0, targets / dual, torch.inf).min())
        shares = targets - torch.linspace(0, min(room, cap), 2001, dtype=dual.dtype)[:, None, None] * dual
        brute = float(torch.special.entr(shares.clamp_min(0)).sum(dim=(1, 2)).amax())
    value = loss.dual_value(dual, targets, torch.full((dual.shape[1],), cap, dtype=torch.float64))
    assert brute - 1e-9 <= value <= brute + 1e-4 * (1 + brute)


@every_loss
@given(pair=predictions(), other=st.integers(0, 2**31))
def test_dual_value_is_below_the_loss(name: str, pair: tuple[Tensor, Tensor], other: int) -> None:
    """Fenchel: -l*(-s nu) <= l(f) + s nu . f for every f, so the dual value is below the loss of zero, and more."""
    prediction, targets = pair[0], suited(name, pair[1])
    loss = get_loss(name)
    dual = loss.dual_point(prediction, targets)
    value = loss.dual_value(dual, targets, torch.full((dual.shape[1],), 10.0, dtype=torch.float64))
    assert value <= loss.value(torch.zeros_like(targets), targets) + 1e-12
    whole = loss.dual_value(dual, targets, torch.ones(dual.shape[1], dtype=torch.float64))
    elsewhere = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(other), dtype=torch.float64)
    at_one = loss.value(prediction, targets) + float((dual * prediction).sum())  # Fenchel-Young, with equality
    assert at_one <= loss.value(elsewhere, targets) + float((dual * elsewhere).sum()) + 1e-12
    assert at_one <= whole + 1e-9


def test_losses_by_hand() -> None:
    assert get_loss("logistic").value(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [-1.0]])) == pytest.approx(
        math.log(2) + math.log(1 + math.exp(2)), rel=1e-6
    )
    assert get_loss("softmax").value(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])) == pytest.approx(
        math.log(math.e + 1), rel=1e-6
    )


def test_targets_that_a_loss_can_not_take() -> None:
    with pytest.raises(InputError, match=r'loss="logistic" needs targets of -1 and \+1; got others, such as 0\.'):
        get_loss("logistic").check_targets(torch.tensor([[1.0], [0.0]]))
    with pytest.raises(InputError, match="one column a class, two or more; got 1"):
        get_loss("softmax").check_targets(torch.tensor([[1.0], [0.0]]))
    with pytest.raises(InputError, match="rows are probabilities"):
        get_loss("softmax").check_targets(torch.tensor([[1.0, 1.0]]))
    with pytest.raises(InputError, match="rows are probabilities"):
        get_loss("softmax").check_targets(torch.tensor([[-1.0, 2.0]]))


def test_unknown_names() -> None:
    with pytest.raises(InputError, match=r"penalty must be one of \['dense', 'group', 'nuclear'\]; got 'ridge'"):
        get_penalty("ridge")
    with pytest.raises(InputError, match=r"loss must be one of .*; got 'hinge'"):
        get_loss("hinge")
