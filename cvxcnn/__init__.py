"""Convolutional networks trained by convex optimisation, layer by layer, with certificates."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .core.version import __version__ as __version__

if TYPE_CHECKING:
    from .models.block import ConvexConvBlock
    from .models.circular import CircularCNN
    from .models.estimator import ConvexCNNClassifier, ConvexCNNRegressor
    from .models.path import RegPath, reg_path
    from .models.polish import Polished, polish
    from .models.saving import load_model, save_model
    from .models.stack import LayerwiseCNN
    from .pricing import Certificate, PricedGates, PricingOptions
    from .program import nonconvex_objective

__all__ = [
    "Certificate",
    "CircularCNN",
    "ConvexCNNClassifier",
    "ConvexCNNRegressor",
    "ConvexConvBlock",
    "LayerwiseCNN",
    "Polished",
    "PricedGates",
    "PricingOptions",
    "RegPath",
    "load_model",
    "nonconvex_objective",
    "polish",
    "reg_path",
    "save_model",
]

# Where each name is. They are imported when they are asked for: torch and scikit-learn take seconds, which --version
# and --help need not.
_ROOMS = {
    "Certificate": "pricing",
    "CircularCNN": "models.circular",
    "ConvexCNNClassifier": "models.estimator",
    "ConvexCNNRegressor": "models.estimator",
    "ConvexConvBlock": "models.block",
    "LayerwiseCNN": "models.stack",
    "Polished": "models.polish",
    "PricedGates": "pricing",
    "PricingOptions": "pricing",
    "RegPath": "models.path",
    "load_model": "models.saving",
    "nonconvex_objective": "program",
    "polish": "models.polish",
    "reg_path": "models.path",
    "save_model": "models.saving",
}


def __getattr__(name: str) -> Any:
    """Import a public name, or a room such as ``cvxcnn.data``, when it is asked for (PEP 562)."""
    if name in _ROOMS:
        value = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
        globals()[name] = value
        return value
    try:
        if not name.startswith("_"):
            return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*__all__, "__version__"])
