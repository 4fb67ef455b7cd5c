"""Convolutional networks trained by convex optimisation, layer by layer, with certificates."""

from .block import ConvexConvBlock
from .certificate import Certificate
from .estimator import ConvexCNNClassifier, ConvexCNNRegressor
from .path import RegPath, reg_path
from .persistence import load_model, save_model
from .polish import Polished, polish
from .pricing import PricedGates, PricingOptions
from .program import nonconvex_objective
from .stack import LayerwiseCNN

__version__ = "0.1.0"

__all__ = [
    "Certificate",
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
