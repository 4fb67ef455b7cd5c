"""The torch rival: its objective, gradients, masks and invariances, and small problems with known optima."""

from __future__ import annotations

import math
from functools import partial

import cvxpy
import numpy as np
import pytest
import torch
from problems import noise_problem
from torch import Tensor

import cvxcnn.ordinary.network as network_module
from cvxcnn.core.threads import coarse_threads
from cvxcnn.errors import InputError, SolverError
from cvxcnn.losses import SquaredLoss
from cvxcnn.ordinary import default_learning_rate, train_baseline, tune
from cvxcnn.ordinary.minibatch import _cycles, _Run
from cvxcnn.ordinary.network import Network, block_features, rebalance
from cvxcnn.ordinary.tuning import TUNING_FACTORS
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.theory import train_two_phase

problem = partial(
    noise_problem, n=24, side=5, channels=2, outputs=3, kernel_size=2, pooling="mean", pool_cells=2, bias=True
)


def points(values: Tensor) -> Patches:
    """Return one patch an image: rows of (n, d) values, as 1 x 1 images of d channels."""
    return Patches(values[:, :, None, None], PatchGeometry(kernel_size=1))


def naive_outputs(patches: Patches, filters: Tensor, readout: Tensor) -> Tensor:
    rows = patches.unfold()
    outputs = torch.zeros(patches.n_images, readout.shape[2], dtype=torch.float64)
    for unit in range(len(filters)):
        response = torch.clamp(rows @ filters[unit], min=0.0)
        for cell in range(patches.n_cells):
            outputs += (response @ patches.pool[cell])[:, None] * readout[unit, cell][None, :]
    return outputs


def eq1(patches: Patches, targets: Tensor, reg: float, filters: Tensor, readout: Tensor) -> float:
    error = naive_outputs(patches, filters, readout) - targets
    return float(0.5 * (error**2).sum() + reg / 2 * ((filters**2).sum() + (readout**2).sum()))


def network(patches: Patches, targets: Tensor, width: int, connect: str) -> Network:
    return Network(patches, targets, SquaredLoss(), width, connect)


@pytest.mark.parametrize("connect", ["dense", "group"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("pooling", ["sum", "mean", "bilinear"])
def test_objective_is_eq1_of_the_returned_weights(connect, optimizer, pooling):
    patches, targets = problem(pooling=pooling)
    result = train_baseline(patches, targets, 0.3, 24, connect=connect, optimizer=optimizer, epochs=60)
    assert result.filters.shape == (24, 9)
    assert result.readout.shape == (24, 4, 3)
    assert result.filters.dtype == result.readout.dtype == torch.float64
    assert result.objective == pytest.approx(eq1(patches, targets, 0.3, result.filters, result.readout), rel=1e-12)
    assert result.objective < 0.5 * float((targets**2).sum())
    assert result.history[-1][1] == result.objective


@pytest.mark.parametrize("connect", ["dense", "group"])
@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_agree_with_autograd(connect, cells, bias):
    patches, targets = problem(n=7, pool_cells=cells, bias=bias)
    net = network(patches, targets, 13, connect)
    filters, readout = net.directions(3)
    rows = torch.tensor([5, 0, 3])
    by_filter, by_readout = net.gradients(filters, readout, rows)
    filters.requires_grad_()
    readout.requires_grad_()
    error = naive_outputs(patches, filters, readout)[rows] - targets[rows]
    wanted = torch.autograd.grad(0.5 * (error**2).sum(), (filters, readout))
    torch.testing.assert_close(by_filter, wanted[0])
    torch.testing.assert_close(by_readout, wanted[1] if net.mask is None else wanted[1] * net.mask)
    outputs = naive_outputs(patches, filters, readout)
    torch.testing.assert_close(net.predict(filters.detach(), readout.detach()), outputs.detach())


def test_gradients_add_up_over_shares_and_pieces():
    patches, targets = problem(n=70)
    net = network(patches, targets, 6, "dense")
    filters, readout = net.directions(0)
    rows = torch.arange(70)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = net.gradients(filters, readout, rows)
        torch.set_num_threads(3)
        with coarse_threads():
            net.piece = 4
            parts = net.gradients(filters, readout, rows)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(parts, whole)


def test_patches_too_large_to_keep_give_the_same_training(monkeypatch):
    patches, targets = problem()
    for connect in ("dense", "group"):
        kept = train_baseline(patches, targets, 0.3, 12, connect=connect, epochs=4)
        with monkeypatch.context() as patch:
            patch.setattr(network_module, "CACHE_BYTES", 0)
            fresh = train_baseline(patches, targets, 0.3, 12, connect=connect, epochs=4)
        torch.testing.assert_close(fresh.filters, kept.filters, rtol=1e-4, atol=1e-6)


def test_group_neurons_feed_one_cell_and_output_each_spread_evenly():
    patches, targets = problem()
    result = train_baseline(patches, targets, 1e-3, 48, connect="group", epochs=5)
    fed = result.readout != 0
    assert fed.flatten(1).sum(dim=1).tolist() == [1] * 48
    assert fed.sum(dim=0).flatten().tolist() == [4] * 12
    signs = network(patches, targets, 48, "group").directions(0)[1].sum(dim=0)
    assert signs.flatten().tolist() == [0.0] * 12


@pytest.mark.parametrize(("reg", "kept"), [(0.5, [True, True]), (3.0, [True, False])])
def test_short_neurons_become_zero_only_where_that_lowers_eq1(reg, kept):
    # With target 3 the residual is about 2: the short neuron pays while reg is below that.
    patches, targets = points(torch.tensor([[1.0]]).double()), torch.tensor([[3.0]]).double()
    net = network(patches, targets, 2, "dense")
    state = _Run(net, patches, targets, reg, 0.0, None)
    state.keep(torch.tensor([[1.0], [0.01]]).double(), torch.tensor([[[1.0]], [[0.01]]]).double())
    assert state.filters.any(dim=1).tolist() == state.readout.flatten(1).any(dim=1).tolist() == kept
    assert state.objective == pytest.approx(eq1(patches, targets, reg, state.filters, state.readout), rel=1e-12)


def test_group_of_fewer_neurons_than_cells():
    patches, targets = problem()
    result = train_baseline(patches, targets, 0.3, 3, connect="group", epochs=3)
    assert result.objective == pytest.approx(eq1(patches, targets, 0.3, result.filters, result.readout), rel=1e-12)


def test_history_ends_low_and_falls_at_the_end():
    patches, targets = problem()
    result = train_baseline(patches, targets, 0.3, 16, epochs=200)
    seconds, values = zip(*result.history, strict=True)
    assert list(seconds) == sorted(seconds)
    assert result.seconds == seconds[-1]
    # At the decayed rate the objective no longer rises, up to the rounding of float32.
    assert all(after <= before * (1 + 1e-5) for before, after in zip(values[-4:], values[-3:], strict=False))
    assert values[-1] <= min(values) * (1 + 1e-5)


def test_same_seed_same_result_and_no_global_state():
    patches, targets = problem()
    torch.manual_seed(1)
    first = train_baseline(patches, targets, 0.3, 8, epochs=10, seed=4)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    second = train_baseline(patches, targets, 0.3, 8, epochs=10, seed=4)
    assert torch.equal(first.filters, second.filters)
    assert torch.equal(first.readout, second.readout)
    assert not torch.equal(first.filters, train_baseline(patches, targets, 0.3, 8, epochs=10, seed=5).filters)


def test_float32_patches_give_a_float64_result():
    patches, targets = problem()
    result = train_baseline(patches.astype(torch.float32), targets.float(), 0.3, 8, epochs=5)
    single = patches.astype(torch.float32).astype(torch.float64)
    wanted = eq1(single, targets.float().double(), 0.3, result.filters, result.readout)
    assert result.objective == pytest.approx(wanted, rel=1e-12)


def test_rebalance_keeps_the_function_and_lowers_the_penalty():
    patches, _ = problem()
    generator = torch.Generator().manual_seed(0)
    filters = torch.randn(5, 9, generator=generator, dtype=torch.float64)
    readout = 7 * torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    readout[1] = 0
    filters[2] = 0
    inner, outer = rebalance(filters, readout)
    torch.testing.assert_close(naive_outputs(patches, inner, outer), naive_outputs(patches, filters, readout))
    torch.testing.assert_close(inner.norm(dim=1), outer.flatten(1).norm(dim=1))
    products = filters.norm(dim=1) * readout.flatten(1).norm(dim=1)
    torch.testing.assert_close((inner**2).sum(dim=1), products)
    assert not inner[1].any() and not outer[1].any() and not inner[2].any() and not outer[2].any()
    assert (inner**2).sum() + (outer**2).sum() < (filters**2).sum() + (readout**2).sum()


def test_one_image_one_pixel_by_hand():
    # With p = w u: 1/2 (p - 3)^2 + 0.5 |p| is least at p = 2.5, where it is 1.375.
    result = train_baseline(points(torch.tensor([[1.0]]).double()), torch.tensor([[3.0]]).double(), 0.5, 4)
    assert result.objective == pytest.approx(1.375, rel=1e-4)
    assert result.stopped == "converged"


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("seed", [0, 1])
def test_reaches_the_brute_force_optimum_in_two_dimensions(optimizer, seed):
    # K = 1, d = 2: Eq. 1 is a lasso over all unit filters; 1,440 angles stand for them.
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    targets = torch.randn(8, 1, generator=generator, dtype=torch.float64)
    reg = 0.2
    angles = np.linspace(0, 2 * np.pi, 1440, endpoint=False)
    features = np.maximum(values.numpy() @ np.stack([np.cos(angles), np.sin(angles)]), 0)
    amounts = cvxpy.Variable(len(angles))
    loss = cvxpy.sum_squares(features @ amounts - targets[:, 0].numpy()) / 2 + reg * cvxpy.norm1(amounts)
    optimum = cvxpy.Problem(cvxpy.Minimize(loss)).solve(solver=cvxpy.CLARABEL)
    result = train_baseline(points(values), targets, reg, 50, optimizer=optimizer)
    assert optimum * 0.999 <= result.objective <= optimum * 1.01


def test_same_training_in_other_units():
    # Images times 16: filters and readout shrink fourfold, and reg grows 16 times for the same problem.
    patches, targets = problem(bias=False)
    larger = Patches(16 * patches.images, patches.geometry)
    one = train_baseline(patches, targets, 0.3, 8, epochs=20)
    other = train_baseline(larger, targets, 4.8, 8, epochs=20)
    assert other.objective == pytest.approx(one.objective, rel=1e-3)
    torch.testing.assert_close(4 * other.filters, one.filters, rtol=1e-2, atol=1e-2)


def test_divergence_is_retried_with_a_smaller_rate():
    patches, targets = problem()
    rate = 50 * default_learning_rate(patches, targets, 8, optimizer="sgd")
    result = train_baseline(patches, targets, 0.3, 8, optimizer="sgd", learning_rate=rate, epochs=30)
    assert result.learning_rate in [rate / 4**k for k in range(1, 6)]
    assert math.isfinite(result.objective)
    assert result.objective < 0.5 * float((targets**2).sum())


def test_divergence_at_every_rate_is_an_error():
    patches, targets = problem()
    with pytest.raises(SolverError, match="smaller learning_rate"):
        train_baseline(patches, targets, 0.3, 8, optimizer="sgd", learning_rate=1e30, epochs=3)
    with pytest.raises(SolverError, match="diverged at every one"):
        tune(patches, targets, 0.3, 8, optimizer="sgd", learning_rates=[1e30], epochs=3)


def test_tune_returns_the_best_of_its_grid():
    patches, targets = problem()
    rates = [1e-6, 1e-2]
    found = [train_baseline(patches, targets, 0.3, 8, learning_rate=rate, epochs=40).objective for rate in rates]
    assert tune(patches, targets, 0.3, 8, learning_rates=rates, epochs=40) == rates[int(np.argmin(found))]
    default = default_learning_rate(patches, targets, 8)
    grid = [factor * default for factor in TUNING_FACTORS]
    assert tune(patches, targets, 0.3, 8, epochs=3) in grid


def test_callback_sees_the_history_and_may_stop():
    patches, targets = problem()
    seen: list[tuple[int, float, float]] = []
    result = train_baseline(patches, targets, 0.3, 8, epochs=20, callback=lambda *progress: seen.append(progress))
    assert [entry[1:] for entry in seen] == result.history
    assert seen[0][0] == 0 and seen[-1][0] == result.epochs == 20

    def stop(epoch: int, seconds: float, objective: float) -> None:
        raise KeyboardInterrupt

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        train_baseline(patches, targets, 0.3, 8, epochs=20, callback=stop)
    assert torch.get_num_threads() == threads


def test_zero_targets_give_the_zero_network():
    patches, targets = problem()
    result = train_baseline(patches, 0 * targets, 1.0, 4, epochs=300)
    assert result.objective == pytest.approx(0.0, abs=1e-3)


def test_cycles_double_and_use_every_epoch():
    assert _cycles(350, 50) == [50, 100, 200]
    assert _cycles(120, 50) == [120]
    assert _cycles(160, 50) == [50, 110]
    for epochs in range(1, 400):
        assert sum(_cycles(epochs, 7)) == epochs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width must be an int >= 1; got 0"),
        ({"width": 2.0}, "width must be an int"),
        ({"connect": "sparse"}, r"connect must be one of \['dense', 'group'\]; got 'sparse'"),
        ({"optimizer": "lbfgs"}, r"optimizer must be one of \['adam', 'sgd', 'two-phase'\]; got 'lbfgs'"),
        ({"reg": 0.0}, r"reg must be a positive number; got 0\.0"),
        ({"reg": float("nan")}, "reg must be a positive number"),
        ({"learning_rate": -1.0}, "learning_rate must be a positive number"),
        ({"epochs": 0}, "epochs must be an int >= 1"),
        ({"batch_size": 0}, "batch_size must be an int >= 1"),
        ({"tol": 0.0}, "tol must be a positive number"),
        ({"warmup": 1.0}, "warmup is the part of a cycle"),
        ({"loss": "cosine"}, "loss must be one of"),
        ({"targets": torch.zeros(23, 3)}, r"n = 24, one row an image; got \(23, 3\)"),
        ({"targets": torch.zeros(24)}, r"targets must be \(n, outputs\)"),
    ],
)
def test_bad_input(change, message):
    patches, targets = problem()
    settings = {"targets": targets, "reg": 0.3, "width": 4, **change}
    with pytest.raises(InputError, match=message):
        train_baseline(patches, **settings)


def test_gradients_of_softplus_neurons_agree_with_autograd():
    patches, targets = problem()
    net = Network(patches, targets, SquaredLoss(), 6, "dense", softplus=2.0)
    filters, readout = (weight.requires_grad_() for weight in net.start(0))
    rows = patches.unfold()
    responses = torch.log1p(torch.exp(2.0 * torch.einsum("nkd,md->nkm", rows, filters))) / 2.0
    outputs = torch.einsum("ck,nkm,mco->no", patches.pool, responses, readout)
    (0.5 * (outputs - targets).square().sum()).backward()
    with torch.no_grad():
        torch.testing.assert_close(net.predict(filters, readout), outputs)
        found = net.gradients(filters, readout, torch.arange(len(targets)))
        torch.testing.assert_close(
            block_features(patches, filters, 2.0), torch.einsum("ck,nkm->ncm", patches.pool, responses)
        )
    for gradient, weight in zip(found, (filters, readout), strict=True):
        torch.testing.assert_close(gradient, weight.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
def test_softplus_training_is_eq1_with_softplus_in_any_unit(bias):
    patches, targets = problem(bias=bias)
    result = train_baseline(patches, targets, 0.3, 6, epochs=4, softplus=3.0)
    outputs = torch.einsum("ncm,mco->no", block_features(patches, result.filters, 3.0), result.readout)
    squares = result.filters.square().sum() + result.readout.square().sum()
    assert math.isclose(
        result.objective, 0.5 * float((outputs - targets).square().sum()) + 0.15 * float(squares), rel_tol=1e-9
    )
    # Targets times s and reg times s: weights times root s, responses too, so that zeta falls as one over the root.
    larger = train_baseline(patches, 16 * targets, 16 * 0.3, 6, epochs=4, softplus=3.0 / 4)
    torch.testing.assert_close(larger.filters, 4 * result.filters, rtol=1e-4, atol=1e-4)


def test_two_phases_give_balanced_weights_no_worse_than_ridge_regression():
    patches, targets = problem()
    result = train_baseline(patches, targets, 0.3, 12, optimizer="two-phase", epochs=5)
    assert math.isclose(result.objective, eq1(patches, targets, 0.3, result.filters, result.readout), rel_tol=1e-9)
    torch.testing.assert_close(result.filters.norm(dim=1), result.readout.flatten(1).norm(dim=1))
    found = train_two_phase(patches, targets, 12, reg=0.3, epochs=5)
    assert result.objective <= found.objective and result.history[-1] == (result.seconds, result.objective)
    assert result.guarantee == found.guarantee and "without reg" in result.guarantee
    unregularised = train_baseline(patches, targets, 0.0, 12, optimizer="two-phase", epochs=5, softplus=2.0)
    assert unregularised.softplus == 2.0 and unregularised.guarantee


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"loss": "logistic", "targets": torch.ones(24, 3).double()},
            "the logistic loss of features of full rank has none",
        ),
        (
            {"loss": "softmax", "targets": torch.eye(3).repeat(8, 1).double()},
            "the softmax loss of features of full rank",
        ),
        ({"connect": "group"}, "two-phase training is of neurons that feed all cells and outputs; got connect='group'"),
        ({"reg": 0.0}, "two-phase training of 24 images needs as many features; 4 neurons in 4 cells have 16"),
        ({"reg": -1.0}, "reg must be a number >= 0; got -1.0"),
        ({"softplus": 0.0}, "softplus must be a positive, finite number; got 0.0"),
    ],
)
def test_what_has_no_second_phase_is_refused_in_words(change, message):
    patches, targets = problem()
    settings = {"targets": targets, "reg": 0.3, "width": 4, **change}
    with pytest.raises(InputError, match=message):
        train_baseline(patches, optimizer="two-phase", epochs=1, **settings)


def test_tune_needs_a_rate():
    patches, targets = problem()
    with pytest.raises(InputError, match="learning_rates is empty"):
        tune(patches, targets, 0.3, 4, learning_rates=[])
