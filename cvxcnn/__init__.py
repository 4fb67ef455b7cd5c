"""Convolutional networks trained by convex optimisation, layer by layer, with certificates."""

from .block import Certificate, ConvexConvBlock
from .estimator import ConvexCNNClassifier, ConvexCNNRegressor
from .persistence import load_model, save_model
from .pricing import PricingOptions
from .program import nonconvex_objective
from .stack import LayerwiseCNN

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "ConvexCNNClassifier",
    "ConvexCNNRegressor",
    "ConvexConvBlock",
    "LayerwiseCNN",
    "PricingOptions",
    "load_model",
    "nonconvex_objective",
    "save_model",
]
