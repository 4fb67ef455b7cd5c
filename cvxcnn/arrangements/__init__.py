"""Gates and their patterns: Gaussian, data patches, waves, chosen by targets, trained, enumerated. One a file."""

from .base import Gates, GateSampler, distinct, patterns
from .data_patches import PatchGates, whitening
from .enumeration import EnumeratedGates, arrangement_count, enumerate_gates
from .gaussian import GaussianGates
from .gradient_gates import GradientGates
from .module_gates import gates_of
from .named import GATES, parse_gates
from .resolution import resolve
from .supervised import SupervisedGates
from .trained_gates import TrainedGates
from .waves import WaveGates

__all__ = [
    "GATES",
    "EnumeratedGates",
    "GateSampler",
    "Gates",
    "GaussianGates",
    "GradientGates",
    "PatchGates",
    "SupervisedGates",
    "TrainedGates",
    "WaveGates",
    "arrangement_count",
    "distinct",
    "enumerate_gates",
    "gates_of",
    "parse_gates",
    "patterns",
    "resolve",
    "whitening",
]
