"""Convolutional networks trained by convex optimisation, layer by layer, with certificates."""

from .block import Certificate, ConvexConvBlock
from .program import nonconvex_objective
from .stack import LayerwiseCNN

__version__ = "0.1.0"

__all__ = ["Certificate", "ConvexConvBlock", "LayerwiseCNN", "nonconvex_objective"]
