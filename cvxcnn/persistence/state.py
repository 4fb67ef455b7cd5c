"""What a model is without the model: a configuration of JSON values, and tensors by name."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from ..core.checks import scalar
from ..core.version import __version__
from ..errors import InputError, ModelFileError
from .checks import MisfitError, entry, is_table, is_text
from .files import (
    CONFIG_FILE,
    FORMAT,
    FORMAT_VERSION,
    SAVE_AGAIN,
    WEIGHTS_FILE,
    config_checksum,
    parse_config,
    read_bytes,
    read_config,
    read_tensors,
    reason,
    write_together,
)

__all__ = ["State", "StateReader", "plain", "read_state", "write_state"]

Model = TypeVar("Model")


@dataclass(frozen=True)
class State:
    """What is written of a model.

    Attributes
    ----------
    kind : str
        Which class it is of.
    config : dict
        JSON values; numbers that are not finite are None.
    tensors : dict of Tensor
    """

    kind: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]


def plain(value: Any) -> Any:
    """Return a setting or a result as a JSON value; numbers that are not finite as None.

    Examples
    --------
    >>> plain((1, math.inf, np.float64(0.5)))
    [1, None, 0.5]
    """
    value = scalar(value)
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(inner) for inner in value]
    return str(value)


class StateReader:
    """A configuration and its tensors, each of which is checked as it is taken.

    Parameters
    ----------
    kind : str
    config : dict
    tensors : dict of Tensor
    device : str
        Where tensors are put.
    """

    def __init__(self, kind: str, config: dict[str, Any], tensors: Mapping[str, Tensor], device: str) -> None:
        self.kind, self.config, self.tensors, self.device = kind, config, tensors, device
        self._used: set[str] = set()

    def tensor(self, key: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> Tensor:
        """Return a tensor of this type and shape, in which None stands for any size, on the CPU."""
        if key not in self.tensors:
            raise MisfitError(f"{WEIGHTS_FILE} has no tensor {key}")
        self._used.add(key)
        tensor = self.tensors[key]
        fits = tensor.ndim == len(shape) and all(
            side is None or side == size for side, size in zip(shape, tensor.shape, strict=True)
        )
        if not fits or tensor.dtype != dtype:
            sides = ", ".join("any" if side is None else str(side) for side in shape)
            raise MisfitError(f"{key} must be {dtype} of shape ({sides}); it is {tensor.dtype} {tuple(tensor.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise MisfitError(f"{key} has values that are not finite")
        # Memory of torch's own, aligned as in training: some matrix products depend on that in the last bit.
        return tensor.clone()

    def placed(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device.

        Raises
        ------
        InputError
            If the device isn't there.
        """
        try:
            return tensor.to(self.device)
        # torch raises AssertionError for a device that it was built without.
        except (RuntimeError, AssertionError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(f'device {self.device!r} can\'t be used: {reason} Use device="cpu".') from error

    def unused(self) -> list[str]:
        """Return the names of the tensors that nobody took."""
        return sorted(set(self.tensors) - self._used)


def write_state(state: State, folder: str | os.PathLike[str], extra: Mapping[str, Any]) -> None:
    """Write a state into a folder.

    Both files are on the disk under other names before one is replaced. A model that was there before is lost if the
    process is killed between the two replacements; loading then says so, because the checksums differ.

    Raises
    ------
    InputError
        If ``extra`` can't be written as JSON.
    ModelFileError
        If the folder can't be written; nothing is left in it then.
    """
    # Each is written for itself: safetensors refuses tensors that share memory.
    content = tensor_bytes({name: value.detach().cpu().contiguous().clone() for name, value in state.tensors.items()})
    config: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "kind": state.kind,
        "sha256": hashlib.sha256(content).hexdigest(),
        **state.config,
    }
    try:
        config["extra"] = dict(extra)
        config["config_sha256"] = config_checksum(config)
        text = json.dumps(config, indent=2, allow_nan=False)
        parse_config(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"extra must hold JSON values, numbers finite: {reason(error)}.") from error
    target = Path(folder)
    made: list[Path] = []
    try:
        made = [path for path in (target, *target.parents) if not path.exists()]
        target.mkdir(parents=True, exist_ok=True)
        write_together(target, {WEIGHTS_FILE: content, CONFIG_FILE: text.encode() + b"\n"})
    except (OSError, ValueError) as error:
        for path in made:
            if path.is_dir():
                path.rmdir()
        raise ModelFileError(f"The model can't be written to {target}: {reason(error)}.") from error


def read_state(
    folder: str | os.PathLike[str],
    kind: str,
    kinds: tuple[str, ...],
    device: str,
    build: Callable[[StateReader], Model],
) -> tuple[Model, dict[str, Any]]:
    """Return what ``build`` makes of the state in a folder, and what was saved beside it.

    Everything is checked before it is used, and no code is run: a file that isn't right is one ModelFileError.

    Parameters
    ----------
    folder : str or path
    kind : str
        Which is wanted.
    kinds : tuple of str
        All that there are.
    device : str
    build : callable
        Makes a model of a ``StateReader``; what misfits, it raises as MisfitError.

    Raises
    ------
    ModelFileError
        If files are missing, damaged, of another kind of model or program, or of a newer version.
    InputError
        If the device isn't there.
    """
    source = Path(folder)
    config = read_config(source / CONFIG_FILE)
    try:
        found = entry(config, "kind", lambda v: v in list(kinds), f"one of {', '.join(kinds)}", "")
        if found != kind:
            raise ModelFileError(f"{source} holds a {found}, not a {kind}. Use {found}.load.")
        checksum = entry(config, "sha256", is_text, "a text", "")
        own = entry(config, "config_sha256", is_text, "a text", "")
        extra: dict[str, Any] = entry(config, "extra", is_table, "an object", "")
        content = read_bytes(source / WEIGHTS_FILE)
        model = build(StateReader(found, config, read_tensors(source / WEIGHTS_FILE, content), device))
        if hashlib.sha256(content).hexdigest() != checksum:
            raise MisfitError(f"{WEIGHTS_FILE} isn't the one that {CONFIG_FILE} was written with")
        if config_checksum(config) != own:
            raise MisfitError(f"{CONFIG_FILE} isn't as it was written")
    except (MisfitError, RecursionError) as misfit:
        raise ModelFileError(f"The model in {source} is damaged: {reason(misfit)}. {SAVE_AGAIN}") from misfit
    return model, extra
