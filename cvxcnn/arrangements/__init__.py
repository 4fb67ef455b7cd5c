"""Gates and their patterns: Gaussian, data patches, a trained module's filters, enumerated. One sampler a file."""

from .base import Gates, GateSampler, distinct, patterns
from .data_patches import PatchGates, whitening
from .enumeration import EnumeratedGates, arrangement_count, enumerate_gates
from .gaussian import GaussianGates
from .module_gates import gates_of
from .resolution import resolve

__all__ = [
    "EnumeratedGates",
    "GateSampler",
    "Gates",
    "GaussianGates",
    "PatchGates",
    "arrangement_count",
    "distinct",
    "enumerate_gates",
    "gates_of",
    "patterns",
    "resolve",
    "whitening",
]
