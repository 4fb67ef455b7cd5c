"""The same architecture trained in torch the ordinary way."""

from .baseline import BaselineResult, train_baseline
from .tuning import default_learning_rate, tune

__all__ = ["BaselineResult", "default_learning_rate", "train_baseline", "tune"]
