"""Model files: a folder with ``model.safetensors`` and ``config.json``, which hold numbers and can't run code."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensor_bytes
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import Tensor

from .block import DTYPES, Certificate, ConvexConvBlock
from .errors import CvxcnnError, InputError, ModelFileError
from .neurons import Neurons
from .patches import PatchGeometry
from .pricing import PricedGates, PricingOptions
from .solvers import SolveResult, Status
from .stack import LayerwiseCNN, Standardizer

__all__ = ["CONFIG_FILE", "FORMAT_VERSION", "WEIGHTS_FILE", "load_model", "save_model", "write_atomically"]

FORMAT = "cvxcnn"
FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

# Without these a block would predict something else, so no default may stand in for them.
_ESSENTIAL = ("kernel_size", "stride", "padding", "pooling", "pool_cells", "bias", "activation", "penalty", "dtype")
_RESULT = ("objective", "dual_bound", "relative_gap", "violation", "seconds")
_CERTIFICATE = ("objective", "sampled_bound", "global_bound")
_SAVE_AGAIN = "Save the model again, or take another copy of the folder."


def save_model(model: LayerwiseCNN, folder: str | os.PathLike[str], *, extra: Mapping[str, Any] | None = None) -> None:
    """Write a fitted stack into a folder, as ``model.safetensors`` and ``config.json``.

    Layer j, counted from 0, has the tensors ``layers.{j}.filters`` (m, d), ``.readout`` (m, cells, outputs),
    ``.intercept`` (outputs,) and ``.gates`` (P, d), the gates or filter directions of its program; if it is
    gated ``.gated_vectors`` (m, d), ``.gated_weights`` (m, cells, d, outputs) and ``.gated_intercept``; if inputs
    are standardized ``.standardizer.mean`` and ``.standardizer.scale`` (C,). Everything else is in the
    configuration; numbers that are not finite are null in it.

    Each file is replaced as a whole. A model that was there before is lost if the process is killed between
    the two; loading then says so, because the configuration holds the SHA-256 of the tensors.

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
        If the folder can't be written.

    Examples
    --------
    >>> images = np.random.default_rng(0).normal(size=(20, 1, 5, 5))
    >>> stack = LayerwiseCNN(layers=1, block=ConvexConvBlock(gates=5, reg=2.0)).fit(images, images[:, 0, 2, 2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(stack, folder, extra={"target": "centre pixel"})
    ...     loaded = load_model(folder)
    >>> loaded.extra_, bool((loaded.predict(images) == stack.predict(images)).all())
    ({'target': 'centre pixel'}, True)
    """
    if not isinstance(model, LayerwiseCNN):
        raise InputError(f"model must be a LayerwiseCNN; got {type(model).__name__}. Put a block into one first.")
    if not getattr(model, "blocks_", None):
        raise NotFittedError("This LayerwiseCNN isn't fitted yet. Call fit first.")
    tensors = tensor_bytes(_tensors(model))
    if extra is None:
        extra = getattr(model, "extra_", {})
    try:
        config = json.dumps(_config(model, tensors, dict(extra)), indent=2, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"extra must hold JSON values, numbers finite: {error}.") from error
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_atomically(target / WEIGHTS_FILE, tensors)
        write_atomically(target / CONFIG_FILE, config.encode() + b"\n")
    except (OSError, ValueError) as error:
        raise ModelFileError(f"The model can't be written to {target}: {_reason(error)}.") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is either there as a whole or as it was before.

    Parameters
    ----------
    path : Path
        In a folder that exists.
    content : bytes

    Raises
    ------
    OSError
        If it can't be written; nothing is left behind then.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp gives the file to its owner alone; what is published is as readable as any new file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _tensors(model: LayerwiseCNN) -> dict[str, Tensor]:
    """Return all tensors by name, on the CPU."""
    tensors: dict[str, Tensor] = {}
    for layer, (block, standardizer) in enumerate(zip(model.blocks_, model.standardizers_, strict=True)):
        own = {
            "filters": block.neurons_.filters,
            "readout": block.neurons_.readout,
            "intercept": block.neurons_.intercept,
            "gates": torch.from_numpy(block.gates_),
        }
        if block.activation == "gated_relu":
            own["gated_vectors"] = block.gated_vectors_
            own["gated_weights"] = block.gated_weights_
            own["gated_intercept"] = block.gated_intercept_
        if standardizer is not None:
            own["standardizer.mean"] = standardizer.mean
            own["standardizer.scale"] = standardizer.scale
        # Each is written for itself: safetensors refuses tensors that share memory.
        tensors |= {f"layers.{layer}.{name}": value.detach().cpu().contiguous().clone() for name, value in own.items()}
    return tensors


def _plain(value: Any) -> Any:
    """Return a setting or a result as a JSON value; numbers that are not finite as None."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return str(value)


def _settings(block: ConvexConvBlock) -> dict[str, Any]:
    """Return a block's parameters as JSON values."""
    settings = block.get_params(deep=False)
    gates, pricing = settings["gates"], settings["pricing"]
    if isinstance(gates, (np.ndarray, Tensor, list, tuple)):
        settings["gates"] = "array"
    elif isinstance(gates, PricedGates):
        settings["gates"] = asdict(gates)
    elif not isinstance(gates, (Integral, str)):
        settings["gates"] = repr(gates)
    settings["pricing"] = None if pricing is None else asdict(pricing)
    return {name: _plain(value) for name, value in settings.items()}


def _config(model: LayerwiseCNN, tensors: bytes, extra: dict[str, Any]) -> dict[str, Any]:
    from . import __version__

    layers = []
    for block in model.blocks_:
        result, certificate = block.result_, block.certificate_
        layers.append(
            {
                "block": _settings(block),
                "result": {
                    **{name: _plain(getattr(result, name)) for name in _RESULT},
                    "status": str(result.status),
                    "solver": str(result.solver),
                    "iterations": int(result.iterations),
                },
                "certificate": {
                    **{name: _plain(getattr(certificate, name)) for name in _CERTIFICATE},
                    "kind": certificate.kind,
                    "n_searched": int(certificate.n_searched),
                },
                "n_neurons": int(block.n_neurons_),
                "n_outputs": int(block.n_outputs_),
                "flat_targets": bool(block.flat_targets_),
            }
        )
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "sha256": hashlib.sha256(tensors).hexdigest(),
        "stack": {
            "layers": len(model.blocks_),
            "downsample": _plain(model.downsample),
            "standardize": bool(model.standardize),
            "image_shape": _plain(model.image_shape_),
        },
        "layers": layers,
        "extra": extra,
    }


def load_model(folder: str | os.PathLike[str], *, device: str = "cpu") -> LayerwiseCNN:
    """Return the stack that ``save_model`` wrote, with the same predictions to the last bit.

    Everything is checked before it is used, and no code is run: a file that isn't right is one ModelFileError.
    The blocks hold no solver weights and no history (``result_.weights`` is empty). A block fitted on an array
    of gates, or by a sampler, has its distinct gates for ``gates``, so that it can be fitted again.

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
    source = Path(folder)
    config = _read_config(source / CONFIG_FILE)
    try:
        content = _read(source / WEIGHTS_FILE)
        reader = _Reader(config, _read_tensors(source / WEIGHTS_FILE, content), device)
        model = reader.model()
        if hashlib.sha256(content).hexdigest() != config["sha256"]:
            raise _MisfitError(f"{WEIGHTS_FILE} isn't the one that {CONFIG_FILE} was written with")
    except _MisfitError as misfit:
        raise ModelFileError(f"The model in {source} is damaged: {misfit}. {_SAVE_AGAIN}") from misfit
    # After the file itself is known to be good, so that a missing device isn't taken for a damaged file.
    if torch.device(device).type != "cpu":
        for block in model.blocks_:
            block._check_parameters()
    return model


class _MisfitError(Exception):
    """Something in a model file isn't as it must be; the message says what."""


def _read(path: Path) -> bytes:
    try:
        # A pipe or a device would block or never end.
        if path.exists() and not path.is_file():
            raise ModelFileError(f"{path} isn't a regular file. {_SAVE_AGAIN}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelFileError(f"There is no model in {path.parent}: {path.name} is missing. Check the path.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, CvxcnnError):
            raise
        raise ModelFileError(f"The model file {str(path)!r} can't be read: {_reason(error)}.") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _read_config(path: Path) -> dict[str, Any]:
    content = _read(path)
    try:
        config = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} isn't valid JSON: {error}. {_SAVE_AGAIN}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelFileError(f'{path} isn\'t of a model of this package: it doesn\'t say "format": "{FORMAT}".')
    version = config.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ModelFileError(f"{path} is damaged: format_version must be an int >= 1; got {version!r}. {_SAVE_AGAIN}")
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format version {version}, and this cvxcnn reads up to {FORMAT_VERSION}. "
            f"Upgrade cvxcnn; the file was written by {config.get('package_version')!r}."
        )
    return config


def _read_tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        return load_tensors(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AssertionError, OverflowError) as error:
        raise ModelFileError(f"{path} is truncated or isn't a safetensors file: {error}. {_SAVE_AGAIN}") from error


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_int(value) and 1 <= value < 1 << 31


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _entry(table: Mapping[str, Any], name: str, valid: Callable[[Any], bool], expected: str, where: str) -> Any:
    """Return an entry of the configuration, or say what is wrong with it."""
    if name not in table:
        raise _MisfitError(f"{CONFIG_FILE} has no {where}{name}")
    if not valid(table[name]):
        raise _MisfitError(f"{where}{name} in {CONFIG_FILE} must be {expected}; it is {_short(table[name])}")
    return table[name]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _search(kind: type[PricingOptions], table: Mapping[str, Any], name: str) -> PricingOptions:
    """Return the options of a search, or say what is wrong with them."""
    if not all(_is_number_or_none(value) for value in table.values()):
        raise _MisfitError(f"{name} in {CONFIG_FILE} must hold numbers")
    try:
        # null stands for infinity, which is the default of the only option that may be infinite.
        return kind(**{key: value for key, value in table.items() if value is not None})
    except (TypeError, InputError) as error:
        raise _MisfitError(f"{name} in {CONFIG_FILE} can't be used: {str(error).rstrip('.')}") from error


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


class _Reader:
    """Builds the stack from a configuration and its tensors, and checks every piece on the way."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor], device: str) -> None:
        self.config = config
        self.tensors = tensors
        self.device = device
        self.used: set[str] = set()

    def model(self) -> LayerwiseCNN:
        """Return the stack."""
        _entry(self.config, "sha256", _is_text, "a text", "")
        stack = _entry(self.config, "stack", _is_table, "an object", "")
        layers = _entry(self.config, "layers", lambda v: isinstance(v, list) and len(v) > 0, "a list of layers", "")
        extra = _entry(self.config, "extra", _is_table, "an object", "")
        count = _entry(stack, "layers", _is_size, "an int >= 1", "stack.")
        if count != len(layers):
            raise _MisfitError(f"stack.layers in {CONFIG_FILE} is {count}, but there are {len(layers)} layers")
        standardize = _entry(stack, "standardize", lambda v: isinstance(v, bool), "true or false", "stack.")
        steps = _entry(
            stack,
            "downsample",
            lambda v: _is_size(v) or (isinstance(v, list) and len(v) > 0 and all(map(_is_size, v))),
            "an int >= 1 or a list of them",
            "stack.",
        )
        shape = _entry(
            stack, "image_shape", lambda v: isinstance(v, list) and len(v) == 3 and all(map(_is_size, v)),
            "three ints >= 1", "stack.",
        )  # fmt: skip
        model = LayerwiseCNN(layers=count, downsample=steps, standardize=standardize)
        model.image_shape_ = tuple(shape)
        model.blocks_, model.standardizers_ = [], []
        channels, height, width = shape
        for layer, entry in enumerate(layers):
            if not isinstance(entry, dict):
                raise _MisfitError(f"layers[{layer}] in {CONFIG_FILE} must be an object; it is {_short(entry)}")
            block = self._block(layer, entry, (channels, height, width))
            model.blocks_.append(block)
            model.standardizers_.append(self._standardizer(layer, block, channels) if standardize else None)
            step = model.pooling_after(layer)
            height, width = (side // step for side in block.geometry_.map_shape((height, width)))
            channels = len(block.neurons_.filters)
            if min(height, width) < 1 and layer + 1 < count:
                raise _MisfitError(f"the maps of layer {layer} are too small for stack.downsample in {CONFIG_FILE}")
        unknown = sorted(set(self.tensors) - self.used)
        if unknown:
            raise _MisfitError(f"{WEIGHTS_FILE} has a tensor {_short(unknown[0])} that belongs to no layer")
        if len({(block.n_outputs_, block.flat_targets_, block.dtype) for block in model.blocks_}) > 1:
            raise _MisfitError(f"the layers in {CONFIG_FILE} differ in their outputs or dtypes")
        model.block = [clone(block) for block in model.blocks_]
        model.extra_ = extra
        return model

    def _tensor(self, layer: int, name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> Tensor:
        """Return a tensor after checking it; None in the shape stands for any size."""
        key = f"layers.{layer}.{name}"
        if key not in self.tensors:
            raise _MisfitError(f"{WEIGHTS_FILE} has no tensor {key}")
        self.used.add(key)
        tensor = self.tensors[key]
        fits = tensor.ndim == len(shape) and all(
            side is None or side == size for side, size in zip(shape, tensor.shape, strict=True)
        )
        if not fits or tensor.dtype != dtype:
            sides = ", ".join("any" if side is None else str(side) for side in shape)
            raise _MisfitError(f"{key} must be {dtype} of shape ({sides}); it is {tensor.dtype} {tuple(tensor.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise _MisfitError(f"{key} has values that are not finite")
        # Memory of torch's own, aligned as in training: some matrix products depend on that in the last bit.
        return tensor.clone()

    def _standardizer(self, layer: int, block: ConvexConvBlock, channels: int) -> Standardizer:
        dtype = DTYPES[block.dtype]
        mean = self._tensor(layer, "standardizer.mean", dtype, (channels,))
        scale = self._tensor(layer, "standardizer.scale", dtype, (channels,))
        if not bool((scale > 0).all()):
            raise _MisfitError(f"layers.{layer}.standardizer.scale has values that are not positive")
        return Standardizer(self._placed(mean), self._placed(scale))

    def _placed(self, tensor: Tensor) -> Tensor:
        try:
            return tensor.to(self.device)
        # torch raises AssertionError for a device that it was built without.
        except (RuntimeError, AssertionError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(f'device {self.device!r} can\'t be used: {reason} Use device="cpu".') from error

    def _block(self, layer: int, entry: dict[str, Any], shape: tuple[int, int, int]) -> ConvexConvBlock:
        """Return layer ``layer``, whose images have this shape."""
        where = f"layers[{layer}]."
        settings = dict(_entry(entry, "block", _is_table, "an object", where))
        block = self._unfitted(settings, f"{where}block.")
        outputs = _entry(entry, "n_outputs", _is_size, "an int >= 1", where)
        flat = _entry(entry, "flat_targets", lambda v: isinstance(v, bool), "true or false", where)
        if flat and outputs != 1:
            raise _MisfitError(f"{where}flat_targets in {CONFIG_FILE} is true, but there are {outputs} outputs")
        try:
            geometry: PatchGeometry = block._check_parameters()
            geometry.map_shape(shape[1:])
        except InputError as error:
            raise _MisfitError(f"{where}block in {CONFIG_FILE} can't be used: {str(error).rstrip('.')}") from error
        block.device = self.device
        block.geometry_, block.image_shape_ = geometry, shape
        block.n_outputs_, block.flat_targets_ = outputs, flat
        self._weights(layer, block)
        saved = _entry(entry, "n_neurons", _is_int, "an int", where)
        if saved != block.n_neurons_:
            raise _MisfitError(f"{where}n_neurons in {CONFIG_FILE} is {saved}, but there are {block.n_neurons_}")
        block.result_ = self._result(entry, where, block)
        block.certificate_ = self._certificate(entry, where)
        return block

    def _weights(self, layer: int, block: ConvexConvBlock) -> None:
        """Put the tensors of a layer into its block."""
        dtype, outputs, cells = DTYPES[block.dtype], block.n_outputs_, block.geometry_.pool_cells**2
        kernel = block.geometry_._sizes()[0]
        dim = block.image_shape_[0] * kernel[0] * kernel[1] + int(block.geometry_.bias)
        filters = self._tensor(layer, "filters", dtype, (None, dim))
        if not len(filters):
            raise _MisfitError(f"layers.{layer}.filters has no filter")
        readout = self._tensor(layer, "readout", dtype, (len(filters), cells, outputs))
        intercept = self._tensor(layer, "intercept", dtype, (outputs,))
        gates = self._tensor(layer, "gates", dtype, (None, dim))
        block.neurons_ = Neurons(self._placed(filters), self._placed(readout), self._placed(intercept))
        block.n_neurons_ = len(block.neurons_)
        block.gates_ = gates.numpy()
        if block.activation == "gated_relu":
            vectors = self._tensor(layer, "gated_vectors", dtype, (None, dim))
            if len(filters) != max(1, len(vectors)):
                raise _MisfitError(f"layers.{layer} has {len(filters)} filters for {len(vectors)} gates")
            weights = self._tensor(layer, "gated_weights", dtype, (len(vectors), cells, dim, outputs))
            block.gated_vectors_, block.gated_weights_ = self._placed(vectors), self._placed(weights)
            block.gated_intercept_ = self._placed(self._tensor(layer, "gated_intercept", dtype, (outputs,)))
            block.n_neurons_ = len(vectors)
        if isinstance(block.gates, np.ndarray):
            block.gates = block.gates_

    def _unfitted(self, settings: dict[str, Any], where: str) -> ConvexConvBlock:
        known = ConvexConvBlock().get_params(deep=False)
        for name in _ESSENTIAL:
            if name not in settings:
                raise _MisfitError(f"{CONFIG_FILE} has no {where}{name}")
        for name, value in settings.items():
            if name not in known:
                raise _MisfitError(f"{CONFIG_FILE} has an unknown setting {where}{_short(name)}")
            settings[name] = tuple(value) if isinstance(value, list) else value
        valid: dict[str, tuple[Callable[[Any], bool], str]] = {
            "bias": (lambda v: isinstance(v, bool), "true or false"),
            "intercept": (lambda v: isinstance(v, bool), "true or false"),
            "tol": (_is_number, "a number"),
            "gates": (lambda v: _is_int(v) or _is_text(v) or _is_table(v), "a number, a text or an object"),
            "pooling": (_is_text, "a text"),
            "activation": (_is_text, "a text"),
            "penalty": (_is_text, "a text"),
            "loss": (_is_text, "a text"),
            "solver": (_is_text, "a text"),
            "dtype": (_is_text, "a text"),
            "max_iter": (lambda v: v is None or _is_size(v), "an int >= 1 or null"),
            "pricing": (lambda v: v is None or _is_table(v), "an object or null"),
        }
        for name, (check, expected) in valid.items():
            if name in settings:
                _entry(settings, name, check, expected, where)
        if settings.get("pricing") is not None:
            settings["pricing"] = _search(PricingOptions, settings["pricing"], f"{where}pricing")
        # Gates come back from the tensors; the device is chosen by who loads.
        gates = settings.get("gates", "array")
        if _is_table(gates):
            gates = _search(PricedGates, gates, f"{where}gates")
        elif gates != "priced" and not _is_int(gates):
            gates = np.zeros((0, 0))
        return ConvexConvBlock(**{**settings, "gates": gates, "device": "cpu"})

    def _result(self, entry: dict[str, Any], where: str, block: ConvexConvBlock) -> SolveResult:
        table = _entry(entry, "result", _is_table, "an object", where)
        where += "result."
        values = {name: _float(_entry(table, name, _is_number_or_none, "a number or null", where)) for name in _RESULT}
        statuses = [status.value for status in Status]
        return SolveResult(
            weights=block.neurons_.filters.new_zeros(0),
            status=_entry(table, "status", lambda v: v in statuses, f"one of {statuses}", where),
            solver=_entry(table, "solver", _is_text, "a text", where),
            iterations=_entry(table, "iterations", _is_int, "an int", where),
            objective=values["objective"],
            dual_bound=values["dual_bound"],
            relative_gap=values["relative_gap"],
            violation=values["violation"],
            seconds=values["seconds"],
        )

    def _certificate(self, entry: dict[str, Any], where: str) -> Certificate:
        table = _entry(entry, "certificate", _is_table, "an object", where)
        where += "certificate."
        kinds = ["proved", "searched", "none"]
        return Certificate(
            **{
                name: _float(_entry(table, name, _is_number_or_none, "a number or null", where))
                for name in _CERTIFICATE
            },
            kind=_entry(table, "kind", lambda v: v in kinds, f"one of {kinds}", where),
            n_searched=_entry(table, "n_searched", _is_int, "an int", where),
        )
