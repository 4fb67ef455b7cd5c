"""Convolutional networks trained by convex optimisation, layer by layer, with certificates."""

from .core.version import __version__ as __version__
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


def __dir__() -> list[str]:
    # What completion shows: names to use, not the rooms that importing them has loaded.
    return [*__all__, "__version__"]
