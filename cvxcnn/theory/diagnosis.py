"""What each layer of a trained network is: stationary or not, a saddle, a spurious minimum, or optimal; in words too.

What was measured is kept apart from what a theorem says, and a guarantee that is true and useless is called so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..activations.neurons import Neurons
from ..activations.softplus import SoftplusNeurons
from ..core.arrays import check_bytes
from ..core.plainly import plainly
from ..core.text import in_percent
from ..core.threads import coarse_threads
from ..data.checks import check_images, check_targets
from ..errors import InputError
from ..losses import Loss, get_loss
from ..models.block import ConvexConvBlock
from ..models.door import weighing
from ..models.saving import load_model
from ..models.stack import LayerwiseCNN
from ..models.stage import mirrored, twice
from ..ordinary.expressivity import Expressivity, expressivity
from ..patches.patches import Patches
from ..patches.pooling import get_pooling
from .point import BlockPoint
from .stationarity import Curvature, Stationarity, curvature, stationarity
from .tangent import Tangent, tangent
from .wide import Premise, wide_layer_report

__all__ = ["BlockDiagnosis", "Diagnosis", "diagnose"]

# Gap, relative to Eq. 1, up to which a network is called optimal within its certificate.
OPTIMAL_GAP = 1e-3
# Clarke's gradient, relative to reg times the weights, up to which a network is called stationary.
STATIONARY = 1e-2
# Condition number from which a rate that it guarantees is called useless.
USELESS = 1e6
# What Eq. 1 has to fall along a direction to call it a descent, relatively.
FALL = 1e-6
# Eq. 1 recomputed may differ from the one that was stored by so much, relatively.
SAME_OBJECTIVE = 1e-6
# Images that the premises of the wide-layer theorem are held against.
_MOST_IMAGES = 3000

Rival = Sequence[Neurons | tuple[Tensor, Tensor]]
"""What ordinary training has found, an entry a layer."""


@dataclass(frozen=True)
class BlockDiagnosis:
    """What one network of one layer is.

    Attributes
    ----------
    layer : int
        From 1.
    method : str
        "convex", or the name of the rival.
    verdict : str
        "optimal within the certificate", "saddle", "not stationary", "spurious local minimum" or "local minimum, not
        known to be optimal".
    measured, theory : tuple of str
        What was measured, and what theorems say, in sentences.
    objective, bound : float
        Eq. 1, and the lower bound on it of the convex block's certificate: of ReLU networks, NaN for others.
    above_bound, above_best : float
        By what share of Eq. 1 it is above the bound, and above the best network that is known; NaN without a bound.
    stationarity, curvature, tangent, features, premises
        The numbers.
    """

    layer: int
    method: str
    verdict: str
    measured: tuple[str, ...]
    theory: tuple[str, ...]
    objective: float
    bound: float
    above_bound: float
    above_best: float
    stationarity: Stationarity
    curvature: Curvature
    tangent: Tangent
    features: Expressivity
    premises: tuple[Premise, ...]

    def to_json(self) -> dict[str, Any]:
        """Return an object for JSON, which has no infinities and no NaN: None in their place."""
        found: dict[str, Any] = _plain(asdict(self))
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {f"{key:g}" if isinstance(key, float) else str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Diagnosis:
    """What the networks of a run are.

    Attributes
    ----------
    blocks : tuple of BlockDiagnosis
        By layer, the convex one first.
    """

    blocks: tuple[BlockDiagnosis, ...]

    def __str__(self) -> str:
        return "\n".join(
            f"layer {block.layer}, {block.method}: {block.verdict}. {' '.join((*block.measured, *block.theory))}"
            for block in self.blocks
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object for diagnosis.json."""
        return {"blocks": [block.to_json() for block in self.blocks]}


@plainly
def diagnose(
    run_or_stack: ConvexConvBlock | LayerwiseCNN | str | os.PathLike[str],
    images: Any,
    targets: Any,
    *,
    rivals: Mapping[str, Rival] | Rival = (),
    memory: float | None = None,
    sample_weight: Any = None,
) -> Diagnosis:
    """Say of every layer of a trained network what point of Eq. 1 it is, and what theory says of it.

    Parameters
    ----------
    run_or_stack : ConvexConvBlock, LayerwiseCNN, str or path
        Fitted; or the folder of a saved one. ReLU blocks.
    images : array-like, shape (n, C, H, W) or (n, H, W)
        Those that it was trained on.
    targets : array-like, shape (n,) or (n, outputs)
        Those that it was trained on.
    rivals : mapping of str to sequence, optional
        By name, what trainings have made of each layer on the same inputs: ``Neurons``, or weights (m, d) and (m, C, o)
        beside the intercept of no neurons. A sequence alone is that of "nonconvex".
    memory : float, optional
        GiB that may be used.
    sample_weight : array-like, shape (n,), optional
        The weights of the images that it was trained with.

    Returns
    -------
    Diagnosis

    Raises
    ------
    InputError
        If a layer is of another activation than ReLU or of max pooling, something doesn't fit, or more memory is needed
        than allowed.

    Notes
    -----
    Sources: Du, Lee, Li, Wang & Zhai 2018; Kawaguchi & Sun 2021; Nguyen & Hein 2018; as docs/theory.md has them. Cost:
    about a hundred passes over the patches a network.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).normal(size=(20, 4, 4))
    >>> targets = images.mean(axis=(1, 2))
    >>> block = ConvexConvBlock(kernel_size=2, padding=0, pool_cells=1, reg=0.05).fit(images, targets)
    >>> diagnose(block, images, targets).blocks[0].verdict
    'optimal within the certificate'
    """
    model = load_model(run_or_stack) if isinstance(run_or_stack, (str, os.PathLike)) else run_or_stack
    named = rivals if isinstance(rivals, Mapping) else {"nonconvex": rivals} if rivals else {}
    found: list[BlockDiagnosis] = []
    with torch.no_grad(), coarse_threads():
        for number, (block, inputs, expected, weights) in enumerate(_stages(model, images, targets, sample_weight)):
            if block.activation != "relu":
                raise InputError(
                    f"layer {number + 1} is of activation {block.activation!r}; diagnose knows the landscape of ReLU "
                    'blocks. Train with activation="relu".'
                )
            if not get_pooling(block.pooling).linear:
                raise InputError(
                    f"layer {number + 1} has pooling={block.pooling!r}; diagnose knows the landscape of blocks whose "
                    'pooling is linear. Train with pooling="mean", "sum" or "bilinear".'
                )
            loss = get_loss(block.loss, weights)
            others = {name: _rival(name, rival, number, block, expected, loss) for name, rival in named.items()}
            networks = {"convex": block.neurons_, **others}
            found += _layer(number + 1, block, networks, inputs, expected, loss, memory)
    return Diagnosis(tuple(found))


def _stages(
    model: Any, images: Any, targets: Any, sample_weight: Any
) -> list[tuple[ConvexConvBlock, Tensor, Tensor, Tensor | None]]:
    """Return (block, its inputs, its targets, weights of its images) of each layer."""
    if not isinstance(model, (ConvexConvBlock, LayerwiseCNN)):
        raise InputError(
            f"diagnose takes a fitted ConvexConvBlock or LayerwiseCNN, or a folder; got {type(model).__name__}."
        )
    blocks = [model] if isinstance(model, ConvexConvBlock) else getattr(model, "blocks_", [])
    if not blocks or not hasattr(blocks[0], "neurons_"):
        raise InputError(f"the {type(model).__name__} isn't fitted yet. Call fit first.")
    device = blocks[0].neurons_.filters.device
    given = check_images(images, dtype=torch.float64, device=device)
    expected = check_targets(targets, len(given), dtype=torch.float64, device=device)
    if expected.shape[1] != blocks[0].neurons_.readout.shape[2]:
        raise InputError(
            f"targets have {expected.shape[1]} outputs, and the network {blocks[0].neurons_.readout.shape[2]}. Pass "
            "those that it was trained on, one-hot for a classifier."
        )
    given, expected, weights = weighing(given, expected, sample_weight)
    if isinstance(model, ConvexConvBlock):
        return [(model, given, expected, weights)]
    if model.used.mirror:
        given, expected, weights = mirrored(given), twice(expected), None if weights is None else twice(weights)
    stages = []
    for block, inputs in model.layer_inputs(given):
        stages.append((block, inputs, expected, weights))
        if model.used.residual:
            expected = expected - block.outputs(inputs).to(expected)
    return stages


def _rival(name: str, rival: Rival, number: int, block: ConvexConvBlock, targets: Tensor, loss: Loss) -> Neurons:
    if len(rival) <= number:
        raise InputError(f"the rival {name!r} must have an entry for each layer; got {len(rival)}.")
    own, given = block.neurons_, rival[number]
    pair = (given.filters, given.readout) if isinstance(given, Neurons) else given
    filters, readout = (part.to(own.filters.device, torch.float64) for part in pair)
    if filters.shape[1:] != own.filters.shape[1:] or readout.shape[1:] != own.readout.shape[1:]:
        raise InputError(
            f"the rival {name!r} of layer {number + 1} must have filters (m, {own.filters.shape[1]}) and a readout (m, "
            f"{own.readout.shape[1]}, {own.readout.shape[2]}); got {tuple(filters.shape)} and {tuple(readout.shape)}."
        )
    if isinstance(given, Neurons):
        return replace(given, filters=filters, readout=readout, intercept=given.intercept.to(filters))
    weights = targets.new_ones(len(targets)) if loss.weights is None else loss.weights.to(targets)
    mean = weights @ targets / weights.sum() * float(block.intercept)
    return Neurons(filters, readout, mean)


def _layer(
    layer: int,
    block: ConvexConvBlock,
    networks: Mapping[str, Neurons],
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    memory: float | None,
) -> list[BlockDiagnosis]:
    """Return the diagnosis of each network of a layer."""
    patches = Patches(inputs, block.geometry_, torch.float64)
    width = max(len(neurons) for neurons in networks.values())
    # Patches in two precisions; masks in two; pooled responses.
    needed = patches.n_images * (patches.n_patches * (12.0 * patches.dim + 5 * width) + 12 * patches.n_cells * width)
    check_bytes(f"layer {layer}", needed, memory, "Allow more memory, or diagnose a smaller run.")
    points = {
        method: BlockPoint(
            patches, targets, neurons.filters, neurons.readout, block.reg_, loss, neurons.intercept,
            sparse=block.penalty == "group",
            softplus=float(neurons.zeta) if isinstance(neurons, SoftplusNeurons) else None,
        )
        for method, neurons in networks.items()
    }  # fmt: skip
    stored = float(block.result_.objective)
    same = abs(points["convex"].objective - stored) <= SAME_OBJECTIVE * abs(stored)
    best = min(point.objective for point in points.values() if point.softplus is None)
    bound = float(block.certificate_.global_bound)
    distinct: Sequence[Premise] = ()
    found = []
    for method, neurons in networks.items():
        point = points.pop(method)  # what it holds goes with it
        module = neurons.to_module(block.geometry_, block.image_shape_, intercept=False).double()
        premises: Sequence[Premise] = ()
        if len(point.filters):
            premises = wide_layer_report(module, inputs[:_MOST_IMAGES], of_images=distinct).premises
            distinct = premises[:2]  # those of the images, which the networks share
        steady = stationarity(point)
        # Whether a solved program isn't stationary for the want of some steps more.
        unsettled = method == "convex" and steady.clarke > STATIONARY
        numbers = {
            "stationarity": steady,
            "curvature": curvature(point, after=unsettled),
            "features": expressivity(point.features()),
            "premises": premises,
        }
        judges = (bound, best) if point.softplus is None else (math.nan, math.nan)
        found.append(_judged(layer, method, point, *judges, same, numbers))
    return found


def _judged(
    layer: int, method: str, point: BlockPoint, bound: float, best: float, same: bool, numbers: dict[str, Any]
) -> BlockDiagnosis:
    """Return the numbers of a network with their verdict and words."""
    largest = numbers["curvature"].largest * point.reg
    of_kernel = tangent(point, largest)
    objective = point.objective
    above_bound = (objective - bound) / objective if objective > 0 else 0.0
    above_best = (objective - best) / objective if objective > 0 else 0.0
    steady, bent = numbers["stationarity"], numbers["curvature"]
    verdict = _verdict(above_bound, above_best, steady, bent)
    measured = _measurements(above_bound, above_best, steady, bent, of_kernel, smooth=point.softplus is not None)
    if not same:
        measured = (
            "Eq. 1 of the convex block isn't the one that was stored: these are not the images that it was trained on "
            "(some were held out, or copies were added), so that no point is stationary.",
            *measured,
        )
    return BlockDiagnosis(
        layer=layer, method=method, verdict=verdict, measured=measured,
        theory=_theorems(point, of_kernel, numbers["features"], numbers["premises"]),
        objective=objective, bound=bound, above_bound=above_bound, above_best=above_best, tangent=of_kernel, **numbers,
    )  # fmt: skip


def _verdict(above_bound: float, above_best: float, steady: Stationarity, bent: Curvature) -> str:
    if above_bound <= OPTIMAL_GAP:
        return "optimal within the certificate"
    if not steady.clarke <= STATIONARY:
        return "not stationary"
    if bent.fall > FALL:
        return "saddle"
    if above_best > FALL:
        return "spurious local minimum"
    return "local minimum, not known to be optimal"


def _measurements(
    above_bound: float, above_best: float, steady: Stationarity, bent: Curvature, of_kernel: Tangent, *, smooth: bool
) -> tuple[str, ...]:
    """Return what was measured, in sentences."""
    said = ["Its neurons are smooth: no bound is of them." if smooth else "No bound over all networks was searched."]
    if math.isfinite(above_bound):
        said = [f"Eq. 1 is {in_percent(above_bound)} of itself above its bound."]
    if above_best > 0:
        said.append(f"A network that is {in_percent(above_best)} lower is known.")
    if not math.isfinite(steady.plain):
        return (*said, "It has no neurons.")
    at_kinks = (
        f"; with slopes chosen for the {steady.near} distinct patches within {steady.tolerance:g} of a kink it is "
        f"{in_percent(steady.clarke)}"
    )
    said.append(f"The gradient is {in_percent(steady.plain)} of reg |weights|{'' if smooth else at_kinks}.")
    if steady.clarke > STATIONARY:
        why = "the training ended before its gradient was small"
        if math.isfinite(bent.clarke_after):
            why = (
                "the program over the filters at hand is solved (the gradient in the output weights is "
                f"{in_percent(steady.readout)}), and the filters are as its gates or its search left them. Some steps "
                f"of descent bring it to {in_percent(bent.clarke_after)}"
            )
        said.append(f"That is above {in_percent(STATIONARY)}: {why}.")
    if bent.smallest < 0:
        falls = (
            f"Eq. 1 falls by {in_percent(bent.fall)} along it" if bent.fall > FALL else "kinks hold it: nothing falls"
        )
        said.append(f"Its piece of Eq. 1 curves downwards ({bent.smallest:.2g} reg), and {falls}.")
    else:
        said.append("No direction in which its piece of Eq. 1 curves downwards was found.")
    said.append(f"Descent from it gains {in_percent(bent.descent)}.")
    if math.isfinite(of_kernel.ridge_error):
        said.append(
            f"As kernel ridge with its own tangent kernel it is off by {in_percent(of_kernel.ridge_error)}, and has "
            f"{of_kernel.degrees_of_freedom:.4g} degrees of freedom on {of_kernel.images} images."
        )
    if math.isfinite(of_kernel.rate_measured):
        said.append(
            f"Without reg its loss would fall at a rate of {of_kernel.rate:.3g} under gradient flow, by the tangent "
            f"kernel; a small step measures {of_kernel.rate_measured:.3g}."
        )
    return tuple(said)


def _theorems(
    point: BlockPoint, of_kernel: Tangent, features: Expressivity, premises: Sequence[Premise]
) -> tuple[str, ...]:
    """Return what theorems say, in sentences."""
    if of_kernel.rank_bound < of_kernel.rows:
        kernel = (
            f"Tangent kernel: its rank is at most {of_kernel.rank_bound} of {of_kernel.rows}, so that its smallest "
            "eigenvalue is 0 and convergence to zero loss isn't guaranteed."
        )
    else:
        kernel = (
            "Tangent kernel: there are weights enough for a positive smallest eigenvalue, and so for convergence to "
            f"zero loss, at a condition number of at least {of_kernel.condition:.2g} (of {of_kernel.images} images)."
        )
        if of_kernel.condition > USELESS:
            kernel += " As many steps would be needed: if the guarantee is true, it is useless."
    failing = [premise.name for premise in premises if premise.verdict == "fails"]
    wide = (
        f"Wide layers: the theorem says nothing, since these premises fail: {', '.join(failing)}."
        if failing
        else "Wide layers: all premises hold."
    )
    said = [kernel, f"Expressivity: {features.decision}, {features.reason}; {features.needed_width} are needed."]
    said.append(wide)
    if point.reg > 0:
        said.append("All three are about the loss without reg, and no guarantee for Eq. 1; the certificate is.")
    return tuple(said)
