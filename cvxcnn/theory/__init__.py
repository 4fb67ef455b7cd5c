"""What the literature says of ordinary training, held against networks whose distance from the optimum is known."""

from ..ordinary.expressivity import Expressivity, expressivity, softplus
from ..ordinary.two_phase import TwoPhaseResult, train_two_phase
from .deep import deep_gram, layer_grams
from .diagnosis import BlockDiagnosis, Diagnosis, diagnose
from .kernels import block_ntk, infinite_gram
from .population import (
    CriticalPoint,
    SpuriousPoint,
    critical_points,
    gaussian_risk,
    planted_gaussian,
    population_risk,
    population_risk_gradient,
    spurious_minimum,
    two_layer_population_risk,
)
from .quadratic import is_global_quadratic
from .wide import Premise, WideLayerReport, full_weight_adjoint, full_weight_matrix, wide_layer_report

__all__ = [
    "BlockDiagnosis",
    "CriticalPoint",
    "Diagnosis",
    "Expressivity",
    "Premise",
    "SpuriousPoint",
    "TwoPhaseResult",
    "WideLayerReport",
    "block_ntk",
    "critical_points",
    "deep_gram",
    "diagnose",
    "expressivity",
    "full_weight_adjoint",
    "full_weight_matrix",
    "gaussian_risk",
    "infinite_gram",
    "is_global_quadratic",
    "layer_grams",
    "planted_gaussian",
    "population_risk",
    "population_risk_gradient",
    "softplus",
    "spurious_minimum",
    "train_two_phase",
    "two_layer_population_risk",
    "wide_layer_report",
]
