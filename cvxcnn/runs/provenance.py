"""How a run came about: the command that repeats it, when, and on what."""

from __future__ import annotations

import platform
import shlex
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..models.recipes import RECIPES, recipe
from .settings import Settings

__all__ = ["command_of", "processor", "provenance"]

# What doesn't decide the result, and what isn't typed.
_ASIDE = {"recipe", "asked", "output", "memory", "device"}


def command_of(settings: Settings) -> str:
    """Return what is typed to train with these settings.

    Parameters
    ----------
    settings : Settings
        With a recipe that isn't "auto": those that a run has recorded.

    Examples
    --------
    >>> command_of(Settings(layers=2, data="my images", reg=0.5, gates=("priced", 40), baseline=False, recipe="exact"))
    "cvxcnn train --recipe exact --data 'my images' --layers 2 --gates priced 40 --reg 0.5 --no-baseline"
    """
    words = ["cvxcnn", "train", "--recipe", settings.recipe]
    usual = {entry.name: entry.default for entry in fields(Settings)} | RECIPES.get(settings.recipe, {})
    if settings.activation != usual["activation"]:
        usual["penalty"] = None  # each kind of neurons has its own
    if settings.recipe in RECIPES:
        # What depends on the images is always typed.
        usual |= dict.fromkeys(recipe(settings.recipe, (3, 1, 1), 1).keys() - RECIPES[settings.recipe].keys())
    order = ["data", *(entry.name for entry in fields(Settings) if entry.name not in {"data", *_ASIDE})]
    for name in order:
        value = getattr(settings, name)
        if value is not None and _plain(value) != _plain(usual[name]) and (name != "rivals" or settings.baseline):
            words += _typed(name, value)
    return shlex.join(words)


def _typed(name: str, value: Any) -> list[str]:
    """Return the option that gives a setting, and its values; of an empty sequence the option alone."""
    option = "baseline" if name == "rivals" else name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    values = [str(part) for part in value] if isinstance(value, (list, tuple)) else [str(value)]
    # Two exponents are one value.
    return [f"--{option}", *([",".join(values)] if name == "decay" else values)]


def _plain(value: Any) -> Any:
    """Return a setting without the difference between one value and a sequence of one."""
    values = tuple(value) if isinstance(value, (list, tuple)) else value
    return values[0] if isinstance(values, tuple) and len(values) == 1 else values


def processor() -> str:
    """Return the name of this machine's processor, as its system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def provenance(settings: Settings, device: str) -> dict[str, str]:
    """Return what a summary says of how its run came about, the date in UTC."""
    where = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {
        "command": command_of(settings),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": where,
    }
