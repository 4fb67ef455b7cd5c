"""Settings that fit a kind of data: chosen by the number and the size of the images, or by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ..arrangements import parse_gates
from ..core.checks import as_int
from ..errors import InputError
from .block import DEFAULT_SEARCH, ConvexConvBlock

__all__ = ["RECIPES", "blocks_of", "recipe", "recipe_for", "stack_settings"]

# Images of so many pixels in a channel are small enough for the program over all filters: its filters and cells were
# chosen on 8 x 8 digits.
_EXACT_PIXELS = 256
# Training images above which the filters of a layer are many, and few layers no longer enough.
_MANY = 20_000
# Whoever asks for one of these asks for a program of their own.
_OWN_PROGRAM = frozenset({"activation", "gates", "penalty", "solver", "rounds", "starts", "dtype", "project"})

# Settings that differ from the defaults, without those that depend on the images: ``recipe`` adds them.
RECIPES: dict[str, dict[str, Any]] = {
    "exact": {},
    # Up to some ten thousand images: whitened data patches for filters, which the program weighs. Chosen on held-out
    # training images (benchmarks/RESULTS.md).
    "small": {
        "layers": 2,
        "gates": ("patches:384", "patches:512"),
        "starts": 0,
        "tol": 1e-3,
        "kernel_size": (7, 5),
        "padding": (3, 2),
        "pooling": "bilinear",
        "pool_cells": 3,
        "downsample": (2, 1),
        "intercept": True,
        "residual": True,
        "project": 80,
        "hand_on": 64,
        "dtype": "float32",
        "half_maps": True,
        "baseline": False,
    },
    "large": {
        "gates": ("patches:768", "patches:1536", "patches:1536", "patches:1024"),
        "starts": 0,
        "tol": 1e-3,
        "kernel_size": (5, 5, 3),
        "padding": (2, 2, 1),
        "pooling": "bilinear",
        "pool_cells": 3,
        "downsample": (2, 1, 2, 1),
        "intercept": True,
        "residual": True,
        "project": 80,
        "hand_on": 128,
        "dtype": "float32",
        "half_maps": True,
        "baseline": False,
    },
}
# For a GPU that multiplies in float64 as fast as in float32: with so many filters float32 is too coarse for a
# certificate. More filters than that are held back by the number of images, so shifted copies are added
# (benchmarks/RESULTS.md). Smooth cells were not tried on a card.
RECIPES["huge"] = RECIPES["large"] | {
    "gates": ("patches:4096",),
    "pooling": "mean",
    "dtype": "float64",
    "half_maps": False,
}
# Settings of a stack that stand for nothing where a recipe has them: it decides.
_UNDECIDED = ("residual", "project", "hand_on", "half_maps")
# Of reg_max, times the number of images, of the first layers and, the last one, of all further ones; and the most.
_FRACTIONS = {
    "small": (3.0, 300.0),
    "large": (5.0, 400.0, 1000.0, 2000.0),
    "huge": (6.0, 600.0, 1500.0, 3000.0),
}
_LARGEST_FRACTION = 0.3


def recipe_for(image_shape: tuple[int, int, int], n_train: int, asked: Collection[str] = ()) -> str:
    """Return the recipe that fits images, of a program whose settings aren't asked for.

    Parameters
    ----------
    image_shape : (int, int, int)
        (C, H, W).
    n_train : int
    asked : collection of str
        Settings that are asked for.

    Examples
    --------
    >>> recipe_for((1, 8, 8), 1437), recipe_for((1, 28, 28), 2000), recipe_for((3, 32, 32), 50_000)
    ('exact', 'small', 'large')
    >>> recipe_for((1, 28, 28), 2000, asked={"gates"})
    'exact'
    """
    if image_shape[1] * image_shape[2] <= _EXACT_PIXELS or _OWN_PROGRAM & set(asked):
        return "exact"
    return "small" if n_train <= _MANY else "large"


def recipe(name: str, image_shape: tuple[int, int, int], n_train: int) -> dict[str, Any]:
    """Return the settings of a recipe for images of a shape and number.

    Examples
    --------
    >>> recipe("small", (3, 32, 32), 6000)["reg_fraction"]
    (0.0005, 0.05)
    >>> recipe("small", (1, 8, 8), 600)["kernel_size"], recipe("small", (1, 4, 4), 600)["pool_cells"]
    ((5, 3), 2)
    """
    values = dict(RECIPES[name])
    colour = image_shape[0] == 3
    if name == "small" and image_shape[1] * image_shape[2] <= _EXACT_PIXELS:
        # As good as 7x7 and 5x5 there, in two thirds of the time (benchmarks/RESULTS.md).
        values["kernel_size"], values["padding"] = (5, 3), (2, 1)
    if name in ("large", "huge"):
        # Held-out accuracy of MNIST and Fashion-MNIST no longer rises after the third (benchmarks/RESULTS.md).
        values["layers"] = 5 if colour else 3
    if name in _FRACTIONS:
        values["reg_fraction"] = tuple(min(share / n_train, _LARGEST_FRACTION) for share in _FRACTIONS[name])
    if name != "exact":
        side, factors = min(image_shape[1:]), []
        for factor in values["downsample"]:
            factors.append(factor if side >= factor else 1)
            side //= factors[-1]
        values["downsample"], values["pool_cells"] = tuple(factors), min(values["pool_cells"], side)
        # Classes of photographs are the same in a mirror; those of letters and digits, which are grey, aren't.
        values["augment"] = (("mirror",) if colour else ()) + (("crop",) if name == "huge" else ())
    return values


def _each(value: Any, layers: int) -> list[Any]:
    """Return a setting of every layer; the last one given stands for all further layers."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise InputError("settings of each layer need one value at least; got none.")
    return [values[min(layer, len(values) - 1)] for layer in range(max(layers, 1))]


def blocks_of(kernel_size: Any, padding: Any, gates: Any, layers: int, **common: Any) -> list[ConvexConvBlock]:
    """Return a block for each layer, from settings of all layers or of each.

    Parameters
    ----------
    kernel_size, padding : int or sequence of int
    gates : int, str or sequence of them
        A text is one that ``parse_gates`` reads.
    layers : int
    **common
        Parameters that all blocks have.

    Examples
    --------
    >>> [block.kernel_size for block in blocks_of((5, 3), 1, "patches:20", 3, bias=False)]
    [5, 3, 3]
    """
    each = (_each(value, layers) for value in (kernel_size, padding, gates))
    return [
        ConvexConvBlock(
            kernel_size=kernel, padding=border, gates=parse_gates(kind) if isinstance(kind, str) else kind, **common
        )
        for kernel, border, kind in zip(*each, strict=True)
    ]


def stack_settings(
    name: str, image_shape: tuple[int, int, int], n_train: int, given: Mapping[str, Any], *, classes: bool
) -> dict[str, Any]:
    """Return the parameters of a stack by a recipe, but for those that are given.

    Parameters
    ----------
    name : {"small", "large", "huge"}
    image_shape : (int, int, int)
        (C, H, W).
    n_train : int
    given : mapping
        Parameters of a ``LayerwiseCNN`` without a block; what is None or False there is left to the recipe.
    classes : bool
        Whether an image and its mirror image have the same target.

    Examples
    --------
    >>> given = dict(layers=3, downsample=None, reg_fraction=None, mirror=False, project=None, residual=False)
    >>> found = stack_settings("small", (1, 28, 28), 2000, given, classes=True)
    >>> found["layers"], found["project"], found["block"][0].kernel_size
    (3, 80, 7)
    """
    values = recipe(name, image_shape, n_train)
    layers = values["layers"] if given["layers"] is None else as_int("layers", given["layers"])
    blocks = blocks_of(
        values["kernel_size"], values["padding"], values["gates"], layers, pooling=values["pooling"],
        pool_cells=values["pool_cells"], intercept=values["intercept"], tol=values["tol"], dtype=values["dtype"],
        pricing=replace(DEFAULT_SEARCH, starts=values["starts"]),
    )  # fmt: skip
    return {
        **given,
        **{key: given.get(key) or values[key] for key in _UNDECIDED},
        **{key: values[key] if given[key] is None else given[key] for key in ("downsample", "reg_fraction")},
        "mirror": given["mirror"] or (classes and "mirror" in values["augment"]),
        "crop": given.get("crop") or "crop" in values["augment"],
        "layers": layers,
        "block": blocks,
        "recipe": "exact",
    }
