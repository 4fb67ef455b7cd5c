"""Improve an existing network: its filters are where pricing begins, and Eq. 1 never gets higher."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..activations.neurons import Neurons, read_neurons, to_module
from ..arrangements import gates_of
from ..core.checks import as_number, as_tol
from ..core.plainly import plainly
from ..core.seeds import check_seed, seed_of
from ..core.threads import coarse_threads
from ..data.checks import check_images, check_targets
from ..errors import InputError
from ..losses import get_loss
from ..patches.geometry import PatchGeometry
from ..patches.patches import Patches
from ..patches.pooling import POOLINGS
from ..pricing.certificate import Certificate
from ..pricing.options import PricingOptions
from ..pricing.solve import solve_priced
from ..program import nonconvex_objective
from ..program.problem import Problem
from .door import weighing

__all__ = ["Polished", "polish"]

_BLOCK = "one Conv2d -> ReLU -> sum, mean or max pooling over a grid of a x a cells -> Flatten -> Linear"
# Images on which the module's architecture is tried out.
_PROBES = 8


@dataclass(frozen=True)
class Polished:
    """A network whose Eq. 1 is at most that of the one it began with.

    Attributes
    ----------
    module : nn.Sequential or a copy of the module given
        Conv2d -> ReLU -> pooling -> Flatten -> Linear, in the dtype and on the device of the module given; a copy of
        that module if nothing lower was found.
    objective_before, objective : float
        Eq. 1 of the two modules (``nonconvex_objective``), in float64.
    certificate : Certificate
        Bounds on Eq. 1: over the filters at hand, and over all networks of this architecture with any number of
        neurons, as far as the search can tell.
    n_neurons : int
        Neurons of ``module`` whose filter and output weights are not zero.
    improved : bool
        Whether ``module`` is a new network.
    """

    module: nn.Module
    objective_before: float
    objective: float
    certificate: Certificate
    n_neurons: int
    improved: bool


@plainly
def polish(
    module: nn.Module,
    images: Any,
    targets: Any,
    reg: float,
    *,
    loss: str = "squared",
    tol: float = 1e-6,
    pricing: PricingOptions | None = None,
    device: str | None = None,
    random_state: int | None = 0,
    sample_weight: Any = None,
) -> Polished:
    """Return a network at least as good as a trained torch module on Eq. 1, with its certificate.

    The group lasso over the module's filters, with every neuron feeding every (cell, output), is at most the module's

        loss(f, Y) + reg/2 (sum_i ||u_i||^2 + ||w||^2)

    and pricing goes on from there: it adds filters, moves them, and drops those that are not needed.

    Parameters
    ----------
    module : nn.Module
        Computes one Conv2d -> ReLU -> sum, mean or max pooling over a x a cells -> Flatten -> Linear; left unchanged.
        The Linear layer's bias is an unregularised intercept; the Conv2d's bias belongs to the filter.
    images : array-like, shape (n, C, H, W) or (n, H, W)
    targets : array-like, shape (n,) or (n, outputs)
    reg : float
        lam > 0.
    loss : {"squared", "logistic", "softmax"}
        A sum over images and outputs, not a mean; other losses than the squared one need a Linear without bias.
    tol : float
        Relative gap of the group lasso over the filters.
    pricing : PricingOptions, optional
        How hard to search.
    device : str, optional
        Where to compute; the module's own by default.
    random_state : int or None
        Seed of the searches; None for another one each time.
    sample_weight : array-like, shape (n,), optional
        As for ``ConvexConvBlock.fit``.

    Returns
    -------
    Polished

    Raises
    ------
    InputError
        If the module computes something else, or an argument can't be used.

    Examples
    --------
    >>> images = torch.linspace(-1, 1, 90, dtype=torch.float64).view(10, 1, 3, 3).sin()
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 1)).double()
    >>> better = polish(net, images, images.mean(dim=(1, 2, 3)), reg=0.1)
    >>> better.objective < better.objective_before, better.certificate.kind
    (True, 'searched')
    """
    _check(module, reg, random_state)
    given, module = module, copy.deepcopy(module).eval()
    before = nonconvex_objective(module, images, targets, reg, loss=loss, sample_weight=sample_weight)
    convolution, linear = _parts(module)
    place = convolution.weight.device if device is None else torch.device(device)
    inputs = check_images(images, dtype=torch.float64, device=place)
    expected = check_targets(targets, len(inputs), dtype=torch.float64, device=place)
    inputs, expected, weights = weighing(inputs, expected, sample_weight)
    geometry = _geometry(module, inputs)
    filters = gates_of(convolution).to(inputs)
    intercept = linear.bias is not None
    if intercept and loss != "squared":
        raise InputError(
            f'the Linear layer has a bias, which needs loss="squared"; got {loss!r}. Use nn.Linear(..., bias=False).'
        )
    with torch.no_grad(), coarse_threads():
        problem = Problem(
            Patches(inputs, geometry), expected, float(reg), loss=get_loss(loss, weights), intercept=intercept
        )
        solution = solve_priced(
            problem, tol=as_tol(tol), start=filters[filters.any(dim=1)],
            generator=torch.Generator().manual_seed(seed_of(random_state)), options=pricing,
        )  # fmt: skip
        neurons = read_neurons(solution.program, solution.weights)
        image_shape = (inputs.shape[1], inputs.shape[2], inputs.shape[3])
        found = to_module(neurons, geometry, image_shape, intercept=intercept).to(convolution.weight)
    # Judged as it is handed back: rounding to float32, or a network that was optimal, may leave it no lower.
    objective = nonconvex_objective(found, images, targets, reg, loss=loss, sample_weight=sample_weight)
    improved = objective < before
    if not improved:
        own = _neurons(convolution, linear)
        neurons = Neurons(own.filters * own.readout.flatten(1).any(dim=1, keepdim=True), own.readout, own.intercept)
        objective = before
    certificate = replace(
        solution.certificate,
        objective=objective,
        sampled_bound=min(solution.dual_bound, objective),
        global_bound=min(solution.global_bound, objective),
    )
    return Polished(found if improved else copy.deepcopy(given), before, objective, certificate, len(neurons), improved)


def _check(module: Any, reg: Any, random_state: Any) -> None:
    if not isinstance(module, nn.Module):
        raise InputError(f"polish takes a torch.nn.Module; got {type(module).__name__}.")
    as_number("reg", reg)
    check_seed(random_state)


def _parts(module: nn.Module) -> tuple[nn.Conv2d, nn.Linear]:
    """Return the Conv2d and the Linear of a module that is known to have one of each."""
    (convolution,) = (part for part in module.modules() if isinstance(part, nn.Conv2d))
    (linear,) = (part for part in module.modules() if isinstance(part, nn.Linear))
    return convolution, linear


def _padding(convolution: nn.Conv2d) -> tuple[int, int]:
    height, width = convolution.kernel_size
    if convolution.padding_mode != "zeros":
        raise InputError(f'padding_mode must be "zeros"; the Conv2d has {convolution.padding_mode!r}.')
    if not isinstance(convolution.padding, str):
        return convolution.padding[0], convolution.padding[1]
    if convolution.padding == "same":
        if height % 2 == 0 or width % 2 == 0:
            raise InputError(
                f'padding="same" pads the two sides unequally for kernel {convolution.kernel_size}. Use an odd kernel.'
            )
        return height // 2, width // 2
    return 0, 0


def _neurons(convolution: nn.Conv2d, linear: nn.Linear) -> Neurons:
    """Return the neurons of a block, in float64."""
    readout = linear.weight.detach().double().view(linear.out_features, convolution.out_channels, -1)
    bias = readout.new_zeros(len(readout)) if linear.bias is None else linear.bias.detach().double()
    return Neurons(gates_of(convolution).double(), readout.permute(1, 2, 0), bias)


def _geometry(module: nn.Module, inputs: Tensor) -> PatchGeometry:
    """Return the geometry with which our own prediction is the module's, for its weights and for random ones."""
    convolution, linear = _parts(module)
    gates_of(convolution)  # refuses groups and dilation
    cells = math.isqrt(max(1, linear.in_features // convolution.out_channels))
    if linear.in_features != convolution.out_channels * cells**2:
        raise InputError(
            f"the Linear layer reads {linear.in_features} numbers from {convolution.out_channels} feature maps, which "
            f"is no a x a grid of cells for each. polish needs {_BLOCK}."
        )
    kernel, stride = convolution.kernel_size, convolution.stride
    sizes: dict[str, Any] = {"kernel_size": (kernel[0], kernel[1]), "stride": (stride[0], stride[1])}
    # Random weights tell architectures apart where the module's own may be zero.
    twin = copy.deepcopy(module).to(inputs).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    # Not the first ones, which may be blank.
    probes = inputs[inputs.abs().flatten(1).amax(dim=1).argsort(descending=True)[:_PROBES]]
    # Of cells of one patch all pool alike, and linear pooling has more to offer.
    for pooling in sorted(POOLINGS, key=lambda name: not POOLINGS[name].linear):
        geometry = PatchGeometry(
            **sizes, padding=_padding(convolution), pooling=pooling, pool_cells=cells, bias=convolution.bias is not None
        )
        if _agrees(twin, probes, geometry) and _agrees(copy.deepcopy(module).to(inputs).eval(), inputs, geometry):
            return geometry
    layers = ", ".join(type(part).__name__ for part in module.modules() if not any(part.children()))
    raise InputError(
        f"the module's predictions are not those of {_BLOCK}; its layers are {layers}. polish reads no other layers, "
        "activations or poolings, or windows that overlap or leave a margin."
    )


def _agrees(module: nn.Module, inputs: Tensor, geometry: PatchGeometry) -> bool:
    """Return whether a float64 module predicts what its neurons predict with this geometry."""
    convolution, linear = _parts(module)
    with torch.no_grad():
        patches = Patches(inputs, geometry)
        own = _neurons(convolution, linear).predict(patches)
        theirs = torch.cat([module(part) for part in torch.split(inputs, 1024)]).reshape(len(inputs), -1)
    scale = float(own.abs().max())
    return own.shape == theirs.shape and bool((own - theirs).abs().max() <= 1e-9 * max(scale, 1e-300))
