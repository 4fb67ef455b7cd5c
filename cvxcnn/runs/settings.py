"""The settings of a training run, and the stack and the images that they stand for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.checks import as_int, as_number, as_tol, is_int, scalar
from ..core.distributed import gather_rows, rank, shard, size
from ..data.images import ImageSet, limited_rows
from ..data.loading import NAMED, is_in_no_parts, load_rows
from ..data.readers import reading
from ..data.readers.class_folders import TEST_FRACTION
from ..errors import DataError, InputError
from ..models.block import DEFAULT_SEARCH
from ..models.recipes import RECIPES, blocks_of, recipe, recipe_for
from ..models.stack import LayerwiseCNN
from ..pricing.options import PricingOptions
from ..solvers import SOLVERS
from .rivals import check_rivals

__all__ = [
    "Settings",
    "build_stack",
    "check_settings",
    "find_again",
    "for_data",
    "full_path",
    "load_sets",
    "pricing_options",
    "recorded_settings",
    "resolve_device",
    "with_parts",
]


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run; the defaults are those of the command line.

    Attributes
    ----------
    layers : int
    data : str
        "digits", "cifar10", or a path that ``load_data`` reads.
    output : str or None
        Folder of the results; None for runs/<data>-<time>.
    limit_train : int or None
        Training images, every class in its share; None for all.
    test_fraction : float or None
        Of images that lie in folders of their classes alone: the share of each class that becomes test images. None
        for 0.2; what has test images of its own needs none.
    augment : sequence of {"mirror", "crop"}
        "mirror": train on mirror images too, and predict by the mean over both. "crop": train on a copy of each image
        too that is shifted by up to an eighth of its side.
    class_weight : "balanced" or None
        "balanced": images weigh so much, by their classes, that every class weighs the same (``data.class_weights``);
        for both methods.
    activation, penalty, solver, tol, pooling, pool_cells, dtype, intercept
        Of every ``ConvexConvBlock``; filters have a bias.
    decay : {"path", "fixed_sign"}, (p, q) or None
        Of every block, if its neurons are quadratic; None for (4, 2).
    kernel_size, padding, gates : int, str, or sequence of them
        Of every block, or of each; the last value stands for all further blocks. Gates may be a text that
        ``parse_gates`` reads, such as "patches:400".
    reg : float or None
        lam of every block; None to take ``reg_fraction`` of each block's own ``reg_max``.
    reg_fraction : float, sequence of float, or None
        In (0, 1), for every layer or for each; None for 0.01, where there is no ``reg``.
    validation : float or None
        If given, this share of the training images of every class is held out, and each layer's reg is chosen by its
        error on them.
    rounds : int
        Pricing rounds of each block, at most.
    starts : int
        Of every search for filters, and for the bound over all of them; 0 leaves that bound out over fixed gates.
    residual, project, hand_on, half_maps
        Of the ``LayerwiseCNN``.
    downsample : sequence of int
        Average pooling after each layer; the last one stands for all further layers.
    baseline : bool
        Whether each layer is also trained the ordinary way, on the same inputs; not by several processes.
    rivals : sequence of {"adam", "sgd", "two-phase", "softplus", "kernel"}
        How, where ``baseline`` is true: by minibatches; in two phases, of ReLU or of softplus neurons; or infinitely
        wide, by kernel ridge regression. The first network of ReLUs is "nonconvex" in the results.
    baseline_width : int
        Its neurons, at least; it gets as many as the convex block if that has more.
    baseline_epochs : int
    device : {"auto", "cpu", "cuda"}
        "auto" is the GPU if there is one.
    memory : float or None
        GiB: a run that is predicted to need more is refused before it starts.
    seed : int
    recipe : {"auto", "exact", "small", "large", "huge"}
        Whose defaults what isn't asked for has: "auto" for those that fit the number and the size of the images
        (``recipes.recipe_for``).
    asked : sequence of str
        Names of settings that are asked for even where they are the default.
    """

    layers: int = 3
    data: str = "digits"
    output: str | None = None
    limit_train: int | None = None
    test_fraction: float | None = None
    activation: str = "relu"
    decay: str | Sequence[float] | None = None
    penalty: str = "dense"
    gates: int | str | Sequence[int | str] = "priced"
    solver: str = "auto"
    reg: float | None = None
    reg_fraction: float | Sequence[float] | None = None
    validation: float | None = None
    rounds: int = DEFAULT_SEARCH.max_rounds
    starts: int = DEFAULT_SEARCH.starts
    tol: float = 1e-6
    kernel_size: int | Sequence[int] = 3
    padding: int | Sequence[int] = 1
    pooling: str = "mean"
    pool_cells: int = 2
    downsample: Sequence[int] = (2,)
    intercept: bool = False
    residual: bool = False
    project: int | None = None
    hand_on: int | None = None
    augment: Sequence[str] = ()
    class_weight: str | None = None
    dtype: str = "float64"
    half_maps: bool = False
    baseline: bool = True
    rivals: Sequence[str] = ("adam",)
    baseline_width: int = 200
    baseline_epochs: int = 350
    device: str = "auto"
    memory: float | None = None
    seed: int = 0
    recipe: str = "auto"
    asked: Sequence[str] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        # They are written as JSON, which has no numbers but Python's.
        for entry in fields(self):
            given = getattr(self, entry.name)
            value = type(given)(map(scalar, given)) if isinstance(given, (list, tuple)) else scalar(given)
            object.__setattr__(self, entry.name, value)


def pricing_options(settings: Settings) -> PricingOptions:
    """Return how hard the blocks of a run search for filters or gates."""
    return PricingOptions(starts=settings.starts, max_rounds=settings.rounds)


def for_data(settings: Settings, image_shape: tuple[int, int, int], n_train: int) -> Settings:
    """Return settings with the defaults of their recipe, or of the one that fits the images if none was named.

    Parameters
    ----------
    settings : Settings
    image_shape : (int, int, int)
        (C, H, W).
    n_train : int
        Training images, of all processes.
    """
    # Of a recipe that was named, what it has for all images is there already.
    usual = RECIPES.get(settings.recipe, {})
    asked = {
        entry.name
        for entry in fields(Settings)
        if getattr(settings, entry.name) != usual.get(entry.name, entry.default)
    }
    asked |= {*settings.asked, *({"reg_fraction"} if settings.reg is not None else ())}
    name = recipe_for(image_shape, n_train, asked) if settings.recipe == "auto" else settings.recipe
    values = recipe(name, image_shape, n_train)
    return replace(settings, recipe=name, asked=(), **{key: values[key] for key in values if key not in asked})


def build_stack(settings: Settings) -> LayerwiseCNN:
    """Return the unfitted stack of these settings.

    Raises
    ------
    InputError
        If settings are out of their range or don't go together.
    """
    if settings.gates == "priced" and settings.solver != "auto":
        raise InputError(
            f'solver {settings.solver!r} needs fixed gates: add --gates 100, or leave the solver at "auto".'
        )
    unknown = sorted(set(settings.augment) - {"mirror", "crop"})
    if unknown:
        raise InputError(f'augment must name "mirror", "crop" or both; got {unknown[0]!r}.')
    if settings.class_weight not in (None, "balanced"):
        raise InputError(f'class_weight of a run must be "balanced" or None; got {settings.class_weight!r}.')
    as_int("layers", settings.layers)
    common: dict[str, Any] = {
        "pooling": settings.pooling,
        "pool_cells": settings.pool_cells,
        "activation": settings.activation,
        "decay": settings.decay,
        "penalty": settings.penalty,
        "reg": settings.reg,
        "solver": settings.solver,
        "tol": settings.tol,
        "device": resolve_device(settings.device),
        "dtype": settings.dtype,
        "random_state": settings.seed,
        "intercept": settings.intercept,
        "pricing": pricing_options(settings),
    }
    blocks = blocks_of(settings.kernel_size, settings.padding, settings.gates, settings.layers, **common)
    for block in blocks:
        block.check_parameters()
    stack = LayerwiseCNN(
        layers=settings.layers,
        block=blocks,
        downsample=tuple(settings.downsample),
        reg_fraction=settings.reg_fraction,
        residual=settings.residual,
        project=settings.project,
        hand_on=settings.hand_on,
        mirror="mirror" in settings.augment,
        crop="crop" in settings.augment,
        validation=settings.validation,
        half_maps=settings.half_maps,
    )
    stack.blocks_to_fit()
    stack.pooling_after(0)
    return stack


def recorded_settings(values: Mapping[str, Any], **changes: Any) -> Settings:
    """Return the settings that a run's summary has recorded, among other things, with some of them changed.

    Raises
    ------
    TypeError, KeyError
        If they are not settings.
    """
    names = {entry.name for entry in fields(Settings)}
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name in names
    }
    if known.get("reg") is not None:
        known["reg_fraction"] = None  # of older runs, which had a fraction beside it that meant nothing
    # All of them stay, whatever the recipe has today. Runs of before the recipes had one had what they recorded.
    settings = Settings(**{"recipe": "exact", **known, "asked": tuple(names)})
    return replace(settings, downsample=tuple(known["downsample"]), **changes)


def resolve_device(name: str) -> str:
    """Return "cuda" or "cpu"; "auto" is the first if there is a GPU.

    Raises
    ------
    InputError
        If there is no such device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f'device must be "auto", "cpu" or "cuda"; got {name!r}.')
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise InputError("device cuda was asked for, but torch finds no GPU. Use auto or cpu.")
    return "cuda" if found and name != "cpu" else "cpu"


def full_path(source: str) -> str | None:
    """Return where a data set lies, in full; None for one that is known by its name.

    Raises
    ------
    DataError
        If it can't be a path.

    Examples
    --------
    >>> full_path("digits"), full_path("/data/../set.npz")
    (None, '/set.npz')
    """
    if source in NAMED:
        return None
    with reading(source, "Check the path."):
        return str(Path(source).expanduser().resolve())


def find_again(summary: Mapping[str, Any], given: str | None = None) -> str:
    """Return where the images of a run are: where someone says, or by the name they had, or where they were then.

    A relative name counts from the current folder first, so that a run can move together with its images. Whether what
    is there are the run's images, only their fingerprint says.

    Raises
    ------
    TypeError, KeyError
        If the summary is no run's.
    """
    if given is not None:
        return given
    name, path = str(summary["settings"]["data"]), summary["data"].get("path")
    there = name in NAMED or os.path.exists(os.path.expanduser(name))
    return name if there or path is None else str(path)


def with_parts(settings: Settings) -> Settings:
    """Return settings that say which images are the test images, where the files don't: so that it is recorded."""
    if settings.test_fraction is None and is_in_no_parts(settings.data):
        return replace(settings, test_fraction=TEST_FRACTION)
    return settings


def load_sets(settings: Settings) -> tuple[ImageSet, ImageSet]:
    """Return training and test images: of several processes, this one's shares, and no others are decoded."""

    def choose(split: str, labels: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
        rows = np.arange(len(labels))
        if split == "train" and settings.limit_train is not None:
            rows = limited_rows(labels, n_classes, settings.limit_train, settings.seed, "limit_train")
        if len(rows) < size():
            raise InputError(f"{len(rows)} images can't be shared by {size()} processes. Start as many or fewer.")
        return rows[shard(len(rows), rank(), size())]

    return load_rows(settings.data, choose, _common_shape, settings.test_fraction)


def _common_shape(shape: tuple[int, int, int], origin: str) -> tuple[int, int, int]:
    """Return the shape of the images of all processes; grey ones among those in colour are to become colour."""
    shapes = gather_rows(torch.tensor([shape])).tolist()
    channels = max(found[0] for found in shapes)
    sides = sorted({(found[1], found[2]) for found in shapes})
    if len(sides) > 1 or any(found[0] not in (1, channels) for found in shapes):
        raise DataError(
            f"The images of {origin} must have one shape; processes found {sorted(map(tuple, shapes))}. "
            "Resize or crop them to one size."
        )
    return channels, *sides[0]


def check_settings(settings: Settings) -> None:
    """Check what neither the stack nor the data loader checks before training."""
    for name in ("baseline_width", "baseline_epochs"):
        as_int(name, getattr(settings, name))
    as_tol(settings.tol)
    if settings.baseline:
        check_rivals(settings.rivals, settings.penalty)
    if settings.memory is not None:
        as_number("memory, in GiB,", settings.memory)
    gates = settings.gates if isinstance(settings.gates, (list, tuple)) else [settings.gates]
    if not gates or not all(isinstance(each, str) or is_int(each, 1) for each in gates):
        raise InputError(f'gates must be a number >= 1 or a name such as "priced", one or one a layer; got {gates!r}.')
    if not is_int(settings.seed, 0, 1 << 32):
        raise InputError(f"seed must be an int from 0 to 2^32 - 1; got {settings.seed!r}.")
    if settings.solver != "auto" and settings.solver not in SOLVERS:
        raise InputError(f'solver must be "auto" or one of {sorted(SOLVERS)}; got {settings.solver!r}.')
