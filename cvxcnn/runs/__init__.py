"""A training run: what decides it, what it does, what it keeps of each layer, its folder, what it can go on from."""

from .explaining import explain_run

__all__ = ["explain_run"]
