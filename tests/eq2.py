"""Eq. 2 as published, for tests that are about it rather than about the defaults."""

from __future__ import annotations

from typing import Any

from cvxcnn import ConvexConvBlock


def eq2_block(**settings: Any) -> ConvexConvBlock:
    """Return a block without padding and bias that sums over whole maps: each of 100 random gates feeds one output."""
    published = {"padding": 0, "pooling": "sum", "pool_cells": 1, "bias": False, "penalty": "group"}
    return ConvexConvBlock(**{**published, "reg": 1.0, "gates": 100, **settings})
