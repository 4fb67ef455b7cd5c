"""The blocks that a stack or an estimator is made of."""

from __future__ import annotations

from typing import Any, TypeVar

from sklearn.base import BaseEstimator

from ..errors import InputError
from .block import DEFAULT_SEARCH, ConvexConvBlock
from .savable import Savable

__all__ = ["OfBlocks", "given_blocks"]

Self = TypeVar("Self", bound="OfBlocks")


def given_blocks(block: Any) -> list[ConvexConvBlock]:
    """Return what ``block`` of a stack or an estimator stands for: one block for all layers, or one for each."""
    if block is None:
        return [ConvexConvBlock(pricing=DEFAULT_SEARCH)]
    blocks = list(block) if isinstance(block, (list, tuple)) else [block]
    if not blocks or not all(isinstance(one, ConvexConvBlock) for one in blocks):
        raise InputError(f"block must be a ConvexConvBlock, one a layer, or None; got {block!r}.")
    return blocks


class OfBlocks(Savable, BaseEstimator):
    """What a stack and the estimators share: parameters of the ``block`` that they are made of."""

    block: Any

    def set_params(self: Self, **params: Any) -> Self:
        """Set parameters, ``block__reg`` and the like among them.

        Those go to each block where ``block`` is a list, and where it is None to one of the defaults, which is made.
        """
        prefix = "block__"
        nested = {name.removeprefix(prefix): params.pop(name) for name in list(params) if name.startswith(prefix)}
        super().set_params(**params)
        if nested:
            self.block = given_blocks(None)[0] if self.block is None else self.block
            for block in given_blocks(self.block):
                block.set_params(**nested)
        return self
