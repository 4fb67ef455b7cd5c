"""Model files: a folder with ``model.safetensors`` and ``config.json``, which hold numbers and can't run code.

Layer j, counted from 0, has the tensors ``layers.{j}.filters`` (m, d), ``.readout`` (m, cells, outputs),
``.intercept`` (outputs,) and ``.gates`` (P, d), the gates or filter directions of its program; if it is gated
``.gated_vectors`` (m, d), ``.gated_weights`` (m, cells, d, outputs) and ``.gated_intercept``; if inputs are
standardized ``.standardizer.mean`` and ``.standardizer.scale`` (C,). Everything else is in the configuration; numbers
that are not finite are null in it. It holds the SHA-256 of the tensors' file, and one of itself.

``files`` writes and reads the two files, ``writing`` and ``reading`` turn a stack into their content and back,
``checks`` has the tests of single entries, and ``kinds`` makes blocks and estimators of stacks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as tensor_bytes
from sklearn.exceptions import NotFittedError

from ..errors import InputError, ModelFileError
from ..persistence.checks import MisfitError, entry, is_table, is_text
from ..persistence.files import (
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
    write_atomically,
    write_output,
    write_together,
)
from .kinds import KINDS, estimator_config, fitted_stack, kind_of, of_kind
from .reading import Reader
from .stack import LayerwiseCNN
from .writing import stack_config, stack_tensors

__all__ = [
    "CONFIG_FILE",
    "FORMAT_VERSION",
    "WEIGHTS_FILE",
    "load",
    "load_model",
    "read_bytes",
    "read_tensors",
    "save",
    "save_model",
    "write_atomically",
    "write_output",
]


def save(model: Any, folder: str | os.PathLike[str], *, extra: Mapping[str, Any] | None = None) -> None:
    """Write a fitted block, stack or estimator into a folder; the ``save`` method of each.

    Both files are on the disk under other names before one is replaced. A model that was there before is lost if the
    process is killed between the two replacements; loading then says so, because the checksums differ.
    """
    kind = kind_of(type(model))
    if not kind:
        raise InputError(f"model must be one of {', '.join(KINDS)}; got {type(model).__name__}.")
    stack = fitted_stack(model)
    if stack is None:
        raise NotFittedError(f"This {type(model).__name__} isn't fitted yet. Call fit first.")
    extra = getattr(model, "extra_", {}) if extra is None else extra
    tensors = tensor_bytes(stack_tensors(stack))
    config = _config(model, kind, stack, tensors)
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
        write_together(target, {WEIGHTS_FILE: tensors, CONFIG_FILE: text.encode() + b"\n"})
    except (OSError, ValueError) as error:
        for path in made:
            if path.is_dir():
                path.rmdir()
        raise ModelFileError(f"The model can't be written to {target}: {reason(error)}.") from error


def _config(model: Any, kind: str, stack: LayerwiseCNN, tensors: bytes) -> dict[str, Any]:
    from ..core.version import __version__

    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "kind": kind,
        "sha256": hashlib.sha256(tensors).hexdigest(),
        **stack_config(stack),
        **({"estimator": estimator_config(model)} if hasattr(model, "stack_") else {}),
    }


def load(wanted: type[Any], folder: str | os.PathLike[str], *, device: str = "cpu") -> Any:
    """Return the model of a class that ``save`` wrote; the ``load`` class method of each.

    Everything is checked before it is used, and no code is run: a file that isn't right is one ModelFileError.
    The blocks hold no solver weights and no history (``result_.weights`` is empty). A block fitted on an array
    of gates, or by a sampler, has its distinct gates for ``gates``, so that it can be fitted again.
    """
    source = Path(folder)
    config = read_config(source / CONFIG_FILE)
    try:
        kind = entry(config, "kind", lambda v: v in list(KINDS), f"one of {', '.join(KINDS)}", "")
        if kind != kind_of(wanted):
            raise ModelFileError(f"{source} holds a {kind}, not a {wanted.__name__}. Use {kind}.load.")
        checksum = entry(config, "sha256", is_text, "a text", "")
        own = entry(config, "config_sha256", is_text, "a text", "")
        extra = entry(config, "extra", is_table, "an object", "")
        content = read_bytes(source / WEIGHTS_FILE)
        stack = Reader(config, read_tensors(source / WEIGHTS_FILE, content), device).model()
        model = of_kind(kind, stack, config)
        if hashlib.sha256(content).hexdigest() != checksum:
            raise MisfitError(f"{WEIGHTS_FILE} isn't the one that {CONFIG_FILE} was written with")
        if config_checksum(config) != own:
            raise MisfitError(f"{CONFIG_FILE} isn't as it was written")
    except (MisfitError, RecursionError) as misfit:
        raise ModelFileError(f"The model in {source} is damaged: {reason(misfit)}. {SAVE_AGAIN}") from misfit
    # After the file itself is known to be good, so that a missing device isn't taken for a damaged file.
    if torch.device(device).type != "cpu":
        for block in stack.blocks_:
            block._check_parameters()
    model.extra_ = extra
    return model


def save_model(model: LayerwiseCNN, folder: str | os.PathLike[str], *, extra: Mapping[str, Any] | None = None) -> None:
    """Write a fitted stack into a folder; the same as its method ``save``.

    Parameters
    ----------
    model : LayerwiseCNN
        Fitted.
    folder : str or path
        Made if it isn't there.
    extra : dict, optional
        JSON values to keep beside the model, such as class names; ``extra_`` of the loaded model. None keeps
        those that the model was loaded with.

    Raises
    ------
    InputError
        If the model isn't a LayerwiseCNN, or ``extra`` can't be written as JSON.
    NotFittedError
        If it isn't fitted.
    ModelFileError
        If the folder can't be written; nothing is left in it then.

    Examples
    --------
    >>> import tempfile
    >>> from cvxcnn import ConvexConvBlock
    >>> images = torch.linspace(-1, 1, 500, dtype=torch.float64).sin().view(20, 1, 5, 5)
    >>> stack = LayerwiseCNN(layers=1, block=ConvexConvBlock(gates=5, reg=2.0)).fit(images, images[:, 0, 2, 2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(stack, folder, extra={"target": "centre pixel"})
    ...     loaded = load_model(folder)
    >>> loaded.extra_, bool((loaded.predict(images) == stack.predict(images)).all())
    ({'target': 'centre pixel'}, True)
    """
    if not isinstance(model, LayerwiseCNN):
        raise InputError(f"model must be a LayerwiseCNN; got {type(model).__name__}. Blocks and estimators have save.")
    save(model, folder, extra=extra)


def load_model(folder: str | os.PathLike[str], *, device: str = "cpu") -> LayerwiseCNN:
    """Return the stack that ``save_model`` wrote, the same as ``LayerwiseCNN.load``.

    Parameters
    ----------
    folder : str or path
    device : str
        Where the model is put.

    Returns
    -------
    LayerwiseCNN
        Fitted; ``extra_`` holds what was saved beside it.

    Raises
    ------
    ModelFileError
        If files are missing, unreadable, damaged, from another program or a newer version, or don't fit together.
    InputError
        If the device isn't there.
    """
    return LayerwiseCNN.load(folder, device=device)
