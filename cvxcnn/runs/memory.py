"""The peak memory of a training run, before it starts."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..activations import get_activation
from ..arrangements import GateSampler
from ..core.checks import is_int
from ..core.distributed import size as processes
from ..errors import InputError
from ..models.block import ConvexConvBlock
from ..models.stack import LayerwiseCNN
from ..penalties import get_penalty
from ..solvers.cost import Size, predict_memory
from .rivals import kernel_bytes

__all__ = ["check_run_memory", "predict_run_memory"]

# Python, torch and what they load.
_INTERPRETER = 700 << 20
# Maps of the images that pass through a layer at once, and what allocators keep of them: measured on five layers of
# CIFAR-10.
_WORKSPACE = 768 << 20


def _count(block: ConvexConvBlock) -> int | None:
    """Return how many gates a block is to have, None if the optimisation decides."""
    if get_activation(block.activation).whole:
        return 1
    if is_int(block.gates):
        return int(block.gates)
    if isinstance(block.gates, GateSampler):
        return block.gates.count
    return len(block.gates) if isinstance(block.gates, (np.ndarray, Tensor)) else None


def predict_run_memory(
    stack: LayerwiseCNN,
    n_train: int,
    n_test: int,
    image_shape: tuple[int, int, int],
    outputs: int,
    kernel: bool = False,
) -> int | None:
    """Return the peak bytes of a process that trains a stack, an upper bound; None if gates are priced.

    Of each layer: its input and the one that is made for the next, or its input and what its program needs
    (``cvxcnn.solvers.cost``); besides, images as they were read, in float64, the interpreter, and working space.

    Parameters
    ----------
    stack : LayerwiseCNN
        Unfitted, with a block for each layer.
    n_train, n_test : int
        Images, of all processes.
    image_shape : (int, int, int)
        (C, H, W).
    outputs : int
    kernel : bool
        Whether each layer has the infinitely wide network as a rival.
    """
    blocks = stack.blocks_to_fit()
    counts = [_count(block) for block in blocks]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    own = -(-n_train // processes()) * (1 + int(stack.mirror)) * (1 + int(stack.crop))
    # Test images go through the layers as well.
    tested = -(-n_test // processes()) * (1 + int(stack.mirror))
    peak, before = 0, (own + tested) * _pixels(image_shape) * 4
    for layer, (block, plan) in enumerate(zip(blocks, stack.plan(image_shape, known), strict=True)):
        item = 4 if block.dtype == "float32" else 8
        stored = 2 if layer and stack.half_maps else item
        inputs = (own + tested) * _pixels(plan.inputs) * stored
        penalty = get_penalty(block.program_penalty)
        count, gated = get_activation(block.activation).blocks(known[layer], penalty)
        size = Size.of_block(
            own * processes(), plan.inputs, block.check_parameters(), blocks=count, outputs=outputs, gated=gated,
            separable=penalty.separable, itemsize=item, image_itemsize=stored, processes=processes(),
            device=block.device,
        )  # fmt: skip
        program = predict_memory(size, block.solver)
        if kernel:
            peak = max(peak, inputs + kernel_bytes(own, tested, size.patches, size.dim))
        peak = max(peak, before + inputs, program + tested * _pixels(plan.inputs) * stored)
        before = inputs
    return (
        _INTERPRETER + _WORKSPACE + (n_train // processes() + n_test // processes()) * _pixels(image_shape) * 8 + peak
    )


def _pixels(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]


def check_run_memory(predicted: int | None, limit: float | None) -> None:
    """Raise InputError if a run's predicted bytes are above a limit in GiB, or can't be predicted though there is one.

    Examples
    --------
    >>> check_run_memory(predicted=10**9, limit=2.0)
    """
    if limit is None:
        return
    if predicted is None:
        raise InputError(
            "what priced gates need is decided by the optimisation, so no limit can be kept. Leave --memory out, or "
            "use a number of gates."
        )
    if predicted > limit * 2**30:
        raise InputError(
            f"the run needs up to {predicted / 2**30:.1f} GiB, and the limit is {limit:g} GiB. Use --half-maps, fewer "
            "gates, a smaller --project or --limit-train, more processes, or a higher --memory."
        )
