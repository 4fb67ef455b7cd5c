"""From a fitted stack to tensors and a configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.checks import scalar
from ..fitting.priced import PricedGates
from .block import ConvexConvBlock
from .projection import PatchPCA
from .stack import LayerwiseCNN

__all__ = ["CERTIFICATE", "PROJECTION", "RESULT", "STACK", "block_settings", "plain", "stack_config", "stack_tensors"]

RESULT = ("objective", "dual_bound", "relative_gap", "violation", "seconds")
PROJECTION = ("channels", "channel_bias", "directions", "bias")
CERTIFICATE = ("objective", "sampled_bound", "global_bound")


# Settings of a stack that decide its predictions.
STACK = ("standardize", "residual", "mirror", "half_maps", "project", "hand_on")


def stack_tensors(model: LayerwiseCNN) -> dict[str, Tensor]:
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
        if isinstance(standardizer, PatchPCA):
            own |= {f"projection.{name}": getattr(standardizer, name) for name in PROJECTION}
        elif standardizer is not None:
            own["standardizer.mean"] = standardizer.mean
            own["standardizer.scale"] = standardizer.scale
        # Each is written for itself: safetensors refuses tensors that share memory.
        tensors |= {f"layers.{layer}.{name}": value.detach().cpu().contiguous().clone() for name, value in own.items()}
    return tensors


def plain(value: Any) -> Any:
    """Return a setting or a result as a JSON value; numbers that are not finite as None."""
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


def block_settings(block: ConvexConvBlock) -> dict[str, Any]:
    """Return a block's parameters as JSON values; gates that are an array or a sampler come back from the tensors."""
    settings = {name: scalar(value) for name, value in block.get_params(deep=False).items()}
    gates, pricing = settings["gates"], settings["pricing"]
    if isinstance(gates, PricedGates):
        settings["gates"] = asdict(gates)
    elif isinstance(gates, (np.ndarray, Tensor, list, tuple)):
        settings["gates"] = "array"
    elif not isinstance(gates, (Integral, str)):
        settings["gates"] = repr(gates)
    settings["pricing"] = None if pricing is None else asdict(pricing)
    return {name: plain(value) for name, value in settings.items()}


def _layer_config(block: ConvexConvBlock) -> dict[str, Any]:
    result, certificate = block.result_, block.certificate_
    return {
        "block": block_settings(block),
        "reg": plain(block.reg_),
        "result": {
            **{name: plain(getattr(result, name)) for name in RESULT},
            "status": str(result.status),
            "solver": str(result.solver),
            "iterations": int(result.iterations),
        },
        "certificate": {
            **{name: plain(getattr(certificate, name)) for name in CERTIFICATE},
            "kind": certificate.kind,
            "n_searched": int(certificate.n_searched),
            "networks": certificate.networks,
            "n_distinct": int(certificate.n_distinct),
            "expected_unseen": plain(certificate.expected_unseen),
        },
        "n_neurons": int(block.n_neurons_),
        "n_outputs": int(block.n_outputs_),
        "flat_targets": bool(block.flat_targets_),
    }


def stack_config(model: LayerwiseCNN) -> dict[str, Any]:
    """Return what the tensors don't say of a fitted stack."""
    return {
        "stack": {
            "layers": len(model.blocks_),
            "downsample": plain(model.downsample),
            **{name: plain(getattr(model, name)) for name in STACK},
            "image_shape": plain(model.image_shape_),
        },
        "layers": [
            {**_layer_config(block), **({"padding": list(part.padding)} if isinstance(part, PatchPCA) else {})}
            for block, part in zip(model.blocks_, model.standardizers_, strict=True)
        ],
    }
