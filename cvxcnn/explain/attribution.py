"""Maps of what an output rests on: CAM, Grad-CAM, and gradients with and without changed ReLUs."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..activations.gated_relu import GatedConv
from ..activations.linear import LinearMaps
from ..activations.quadratic import Square
from ..core.checks import is_int
from ..core.plainly import plainly
from ..data.checks import check_images
from ..drawing.style import import_matplotlib
from ..errors import InputError
from ..patches.pooling import CellSum, CellWeights

__all__ = ["METHODS", "attribute", "attributes"]

METHODS = ("cam", "gradcam", "guided_gradcam", "gradient", "deconvolution", "guided_backprop")
# Those that change what ReLUs do to the gradient, and are the plain gradient where they find none.
GUIDED = ("guided_gradcam", "deconvolution", "guided_backprop")
# Modules that give maps and are no ReLUs.
_NO_RELUS: dict[type[nn.Module], str] = {
    GatedConv: "a gated convolution",
    Square: "a square",
    LinearMaps: "a linear layer of maps",
    nn.Softplus: "a softplus",
}

# Images that go through a network together: few enough for the maps of wide layers.
BATCH = 64


@plainly
def attribute(
    module: nn.Module, images: Any, target: int | ArrayLike, method: str = "gradcam", *, layer: int = -1
) -> NDArray[np.float64]:
    """Return, for every image, a map of what the output for a class rests on.

    Parameters
    ----------
    module : nn.Module
        From images (n, C, h, w) to outputs (n, classes), such as ``to_torch()`` gives. A copy of it is used, in
        evaluation mode: the module itself keeps its hooks, gradients and in-place ReLUs as they are.
    images : array-like, shape (n, C, h, w) or (n, h, w)
        Converted to the dtype and device of the module's parameters.
    target : int or array-like of int, shape (n,)
        The class to explain, from 0; one for all images or one each.
    method : {"cam", "gradcam", "guided_gradcam", "gradient", "deconvolution", "guided_backprop"}
        See the notes.
    layer : int
        For Grad-CAM and Guided Grad-CAM: which feature maps A, counted from 0 in the order of computation; the last
        ones by default. They are the outputs (n, m, H, W) of ``nn.ReLU`` modules and of what stands for them in gated,
        quadratic and linear networks, those of
        each call of a module that is called several times.

    Returns
    -------
    array, shape (n, h, w), float64
        Not negative for "gradcam"; signed for the others.

    Raises
    ------
    InputError
        If an argument is out of its range; if a guided method meets ReLUs that aren't ``nn.ReLU`` modules, or none,
        where captum would return the plain gradient; if Grad-CAM meets maps of such ReLUs, which it couldn't count; or
        if the network doesn't end as CAM needs it.

    Notes
    -----
    For the output f_t of class t, A_kp map k at position p (of P), w_kct the weight of map k in pooling cell c:

    - "cam": sum_k A_kp sum_c s_cp w_kct, for networks that end in maps, average, sum or bilinear pooling,
      ``nn.Flatten`` and one ``nn.Linear``; s_cp is the weight of p in cell c as a share of the largest there, for
      averages and sums 1 in the cell and 0 outside. Where the cells don't overlap, f_t less its intercept is the
      pooled map, summed over cells. With one cell it is Zhou et al. 2016, arXiv:1512.04150, Eq. 2.
    - "gradcam": ( sum_k a_k A_kp )_+ with a_k = 1/P sum_p df_t/dA_kp; Selvaraju et al. 2019, arXiv:1610.02391,
      Eq. 1 and 2. With one cell and mean pooling it is (cam)_+ / P.
    - "gradient": df_t/dx; Simonyan et al. 2014, arXiv:1312.6034.
    - "deconvolution": the gradient g that reaches a ReLU's output is handed down as (g)_+, wherever the ReLU was off
      too; Zeiler & Fergus 2014, arXiv:1311.2901.
    - "guided_backprop": it is handed down as (g)_+ where the ReLU was on, and 0 elsewhere; Springenberg et al. 2015,
      arXiv:1412.6806.
    - "guided_gradcam": "guided_backprop" times "gradcam".

    CAM and Grad-CAM are enlarged to the image bilinearly, stretched where there was no padding. Of the values of a
    pixel's channels the largest in magnitude is kept, with its sign.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
    ...                         nn.Linear(1, 1, bias=False)).double()
    >>> for parameter in network.parameters():
    ...     _ = nn.init.constant_(parameter, 2.0)
    >>> attribute(network, [[[1.0, 0.0], [-1.0, 3.0]]], 0, "cam")  # 2 (2 x)_+
    array([[[ 4.,  0.],
            [ 0., 12.]]])
    """
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    like = next(module.parameters(), torch.zeros((), dtype=torch.float64))
    inputs = check_images(images, dtype=like.dtype, device=like.device)
    network = _copy(module)
    trace = _trace(network, inputs[:1])
    targets = _targets(target, len(inputs), trace.n_classes).to(inputs.device)
    if method in GUIDED:
        _check_relus(network, trace)
    stage = None
    if method in ("cam", "gradcam", "guided_gradcam"):
        stage = _stage(trace, layer)
        if method == "cam":
            _check_cam(network, trace, stage)
        elif trace.unseen_maps:
            raise InputError(
                f"This network calls {trace.unseen_maps} ReLUs as functions, so its feature maps can't be counted. "
                'Build it with nn.ReLU modules, or use method="gradient".'
            )
    maps = [
        _maps(network, part, classes, method, stage)
        for part, classes in zip(torch.split(inputs, BATCH), torch.split(targets, BATCH), strict=True)
    ]
    return np.asarray(torch.cat(maps).cpu().numpy(), dtype=np.float64)


def attributes(
    module: nn.Module, images: Any, target: int | ArrayLike, methods: Sequence[str], *, layer: int = -1
) -> dict[str, NDArray[np.float64]]:
    """Return the maps of several methods by name: those of ``attribute``, where one is the product of two without work.

    Parameters
    ----------
    module, images, target, layer
        As for ``attribute``.
    methods : sequence of str
        Of ``METHODS``.

    Raises
    ------
    InputError
        As for ``attribute``.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).double()
    >>> images = np.random.default_rng(0).normal(size=(3, 4, 4))
    >>> maps = attributes(network, images, 0, ("gradcam", "guided_gradcam", "guided_backprop"))
    >>> bool(np.array_equal(maps["guided_gradcam"], attribute(network, images, 0, "guided_gradcam")))
    True
    """
    parts = {"gradcam", "guided_backprop"}
    found = {
        method: attribute(module, images, target, method, layer=layer)
        for method in methods
        if method != "guided_gradcam" or not parts <= set(methods)
    }
    if "guided_gradcam" in methods and "guided_gradcam" not in found:
        found["guided_gradcam"] = found["guided_backprop"] * found["gradcam"]
    return {method: found[method] for method in methods}


def allowed(module: nn.Module) -> tuple[str, ...]:
    """Return the methods that can be used on a module of ``to_torch``."""
    other = any(isinstance(part, tuple(_NO_RELUS)) for part in module.modules())
    largest = any(isinstance(part, (nn.MaxPool2d, nn.AdaptiveMaxPool2d)) for part in module.modules())
    refused = (*(GUIDED if other else ()), *(("cam",) if largest else ()))
    return tuple(method for method in METHODS if method not in refused)


# Checks.


def _copy(module: nn.Module) -> nn.Module:
    """Return a copy to work on, whose ReLUs don't write over the maps that a method needs."""
    network = copy.deepcopy(module).eval()
    for part in network.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = False
    return network


@dataclass(frozen=True)
class _Stage:
    """Feature maps: what a module gives at one of its calls, counted from 0."""

    module: nn.Module
    call: int


@dataclass(frozen=True)
class _Trace:
    """What a network does with an image.

    Attributes
    ----------
    stages : list of _Stage
        In the order of computation.
    n_classes : int
    in_modules, relus : int
        Calls of ReLUs in ``nn.ReLU`` modules, and all.
    unseen_maps : int
        Feature maps of ReLUs that are no modules.
    """

    stages: list[_Stage]
    n_classes: int
    in_modules: int
    relus: int
    unseen_maps: int


class _ReLUCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts ReLUs, however they are called, and those that give maps."""

    count = maps = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if _is_relu(getattr(func, "overloadpacket", None), args[1:]):
            self.count += 1
            self.maps += output.ndim == 4
        return output


def _is_relu(packet: Any, limits: Sequence[Any]) -> bool:
    """Return whether an operation is a ReLU by its own name or by another; ``limits`` are its further arguments."""
    aten = torch.ops.aten
    if packet in (aten.clamp, aten.clamp_, aten.clamp_min, aten.clamp_min_):
        return len(limits) > 0 and _is_zero(limits[0]) and all(limit is None for limit in limits[1:])
    if packet in (aten.threshold, aten.threshold_):
        return all(_is_zero(limit) for limit in limits)
    return packet in (aten.relu, aten.relu_)


def _is_zero(limit: Any) -> bool:
    return isinstance(limit, (int, float)) and limit == 0


def _trace(network: nn.Module, image: Tensor) -> _Trace:
    """Return what a network does with an image of shape (1, c, h, w)."""
    stages: list[_Stage] = []
    calls: Counter[nn.Module] = Counter()

    def note(part: nn.Module, _: Any, output: Any) -> None:
        if output.ndim == 4:
            stages.append(_Stage(part, calls[part]))
        calls[part] += 1

    hooks = [p.register_forward_hook(note) for p in network.modules() if isinstance(p, (nn.ReLU, *_NO_RELUS))]
    counter = _ReLUCounter()  # type: ignore[no-untyped-call]
    try:
        with torch.no_grad(), counter:
            outputs = network(image)
    except RuntimeError as error:
        raise InputError(f"module can't take images of shape {tuple(image.shape[1:])} (c, h, w): {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputError(f"module must give outputs of shape (n, classes); for one image it gives {shape}.")
    in_modules = sum(count for part, count in calls.items() if isinstance(part, nn.ReLU))
    seen_maps = sum(isinstance(stage.module, nn.ReLU) for stage in stages)
    return _Trace(stages, outputs.shape[1], in_modules, counter.count, counter.maps - seen_maps)


def _targets(target: int | ArrayLike, count: int, n_classes: int) -> Tensor:
    classes = np.asarray(target.cpu() if isinstance(target, Tensor) else target)
    if classes.dtype.kind not in "iu" or classes.shape not in ((), (count,)):
        raise InputError(
            f"target must be a class, an int, or one for each of the {count} images; got {classes.dtype} "
            f"of shape {classes.shape}."
        )
    if not (classes.min() >= 0 and classes.max() < n_classes):
        raise InputError(f"target must be between 0 and {n_classes - 1}; got {classes.min()} to {classes.max()}.")
    return torch.from_numpy(np.broadcast_to(classes, (count,)).astype(np.int64))


def _check_relus(network: nn.Module, trace: _Trace) -> None:
    in_modules, total = trace.in_modules, trace.relus
    others = [name for kind, name in _NO_RELUS.items() if any(isinstance(part, kind) for part in network.modules())]
    if others:
        what = f"has {others[0]}, which is no ReLU"
    elif not in_modules:
        what = "has no nn.ReLU module"
    elif total > in_modules:
        what = f"calls {total - in_modules} of its {total} ReLUs as functions"
    else:
        return
    raise InputError(
        f'This network {what}, and there this method would silently be the plain gradient. Use method="gradient" or '
        '"gradcam", or build the network with nn.ReLU modules.'
    )


def _stage(trace: _Trace, layer: int) -> _Stage:
    stages = trace.stages
    if not stages:
        raise InputError(
            "This network has no feature maps that can be explained: outputs (n, m, h, w) of nn.ReLU modules or of "
            'gated convolutions. Use method="gradient", or build it with nn.ReLU modules.'
        )
    if not is_int(layer, -len(stages), len(stages)):
        raise InputError(f"layer must be between 0 and {len(stages) - 1}, or negative from the end; got {layer!r}.")
    return stages[int(layer)]


def _check_cam(network: nn.Module, trace: _Trace, stage: _Stage) -> None:
    # A class of its own may do something else with its parts.
    plain = isinstance(network, nn.Sequential) and type(network).forward is nn.Sequential.forward
    end = list(cast(nn.Sequential, network))[-4:] if plain else []
    pooling = nn.AvgPool2d, nn.AdaptiveAvgPool2d, CellSum, CellWeights
    kinds: list[tuple[type, ...]] = [pooling, (nn.Flatten,), (nn.Linear,)]
    fits = len(end) == 4 and all(isinstance(part, kind) for part, kind in zip(end[1:], kinds, strict=True))
    if not fits or stage != trace.stages[-1] or end[0] is not stage.module:
        raise InputError(
            'method="cam" is of the last maps of an nn.Sequential that ends in maps, average, sum or bilinear pooling '
            '(max pooling gives places no weights), nn.Flatten and nn.Linear. Use method="gradcam"; for a lower layer '
            "of a stack, to_torch(layer)."
        )


# Methods.


def _maps(network: nn.Module, images: Tensor, targets: Tensor, method: str, stage: _Stage | None) -> Tensor:
    """Return the maps (n, h, w) of a batch."""
    import_matplotlib()  # captum does
    from captum.attr import Deconvolution, GuidedBackprop, Saliency

    def enlarged(maps: Tensor) -> Tensor:
        return F.interpolate(maps, size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]

    def gradcam() -> Tensor:
        return enlarged(_gradcam(network, inputs, targets, cast(_Stage, stage)))

    def pixels(kind: type, **options: Any) -> Tensor:
        with _captum_quiet():
            found: Tensor = kind(network).attribute(inputs, target=targets, **options).detach()
        return found.gather(1, found.abs().argmax(dim=1, keepdim=True))[:, 0]

    inputs = images.detach().clone().requires_grad_()
    if method == "cam":
        return enlarged(_cam(cast(nn.Sequential, network), images, targets))
    if method == "gradcam":
        return gradcam()
    if method == "gradient":
        return pixels(Saliency, abs=False)
    if method == "deconvolution":
        return pixels(Deconvolution)
    guided = pixels(GuidedBackprop)
    # captum's GuidedGradCam gives empty tensors where it can't enlarge; this product can't.
    return guided if method == "guided_backprop" else guided * gradcam()


def _gradcam(network: nn.Module, images: Tensor, targets: Tensor, stage: _Stage) -> Tensor:
    """Return the maps (n, 1, H, W) of Grad-CAM; captum's knows modules alone, not their calls."""
    found: list[Tensor] = []
    numbers = itertools.count()

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        if next(numbers) == stage.call:
            found.append(output)

    hook = stage.module.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            outputs = network(images).gather(1, targets[:, None])
    finally:
        hook.remove()
    (maps,) = found
    (slopes,) = torch.autograd.grad(outputs.sum(), maps, materialize_grads=True)
    weights = slopes.mean(dim=(2, 3), keepdim=True)
    return (weights * maps.detach()).sum(dim=1, keepdim=True).clamp_min(0.0)


@contextmanager
def _captum_quiet() -> Iterator[None]:
    """Silence what captum says each time it changes ReLUs; it removes its hooks, and they are on a copy."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU activations", category=UserWarning)
        yield


def _cam(network: nn.Sequential, images: Tensor, targets: Tensor) -> Tensor:
    """Return the class activation maps (n, 1, H, W)."""
    *body, pool, _, linear = network
    with torch.no_grad():
        maps = images
        for part in body:
            maps = part(maps)
    cells = _cells(pool, maps)
    weights = cast(nn.Linear, linear).weight.detach()[targets].view(len(maps), maps.shape[1], len(cells))
    return torch.einsum("nkhw,nkc,chw->nhw", maps, weights, cells)[:, None]


def _cells(pool: nn.Module, maps: Tensor) -> Tensor:
    """Return how much of its largest weight each pooling cell gives each position, (cells, H, W)."""
    count = math.prod(pool(maps[:1, :1]).shape)
    # Pooling is linear and treats every channel alike: its transpose of one cell is where that cell looks.
    blank = maps.new_zeros(count, 1, *maps.shape[2:]).requires_grad_()
    with torch.enable_grad():
        pooled = pool(blank)
    (reads,) = torch.autograd.grad(pooled, blank, torch.eye(count).to(maps).view_as(pooled))
    return (reads / reads.amax(dim=(1, 2, 3), keepdim=True))[:, 0].to(maps)
