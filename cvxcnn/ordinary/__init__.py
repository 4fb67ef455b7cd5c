"""The same architecture trained in torch the ordinary way."""

from .baseline import BaselineResult, default_learning_rate, train_baseline, tune

__all__ = ["BaselineResult", "default_learning_rate", "train_baseline", "tune"]
