"""A training run: what decides it, what it does, what it keeps of each layer, its folder, what it can go on from."""

from .diagnosing import diagnose_run
from .explaining import explain_run

__all__ = ["diagnose_run", "explain_run"]
