"""Blocks and stacks as a notebook shows them: filters, bounds, and how objective and bound closed on one another."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from ..core.markup import sparkline, table
from ..drawing.kernels import data_uri, kernel_png

__all__ = ["block_html", "stack_html"]

# Filters that are shown of a block, those that contribute most, and their side in pixels.
_MOST, _SIDE = 12, 36


def block_html(block: Any) -> str:
    """Return a block as HTML; of one that isn't fitted, its parameters.

    Parameters
    ----------
    block : ConvexConvBlock
    """
    if not hasattr(block, "result_"):
        return f"<pre>{escape(repr(block))}</pre>"
    result = block.result_
    rows = [
        ("reg (lambda)", f"{block.reg_:.6g}"),
        ("neurons", str(block.n_neurons_)),
        ("seconds", f"{result.seconds:.3g}"),
        ("status", str(result.status)),
    ]
    history = result.history
    words = f"objective and bound in {len(history)} rounds, closing"
    curve = sparkline(
        [p.seconds for p in history], [p.objective for p in history], [p.dual_bound for p in history], words
    )
    facts = table(rows, type(block).__name__)
    parts = [
        f'<div style="max-width:26em">{part}</div>'
        for part in (facts, block.certificate_._repr_html_(), curve, _filters(block))
        if part
    ]
    return f'<div style="display:flex;flex-wrap:wrap;gap:1em;align-items:start">{"".join(parts)}</div>'


def _filters(block: Any) -> str:
    """Return the filters that contribute most: of many input channels, the strongest one."""
    neurons, geometry = block.neurons_, block.geometry_
    if not len(neurons.filters):
        return ""
    filters = neurons.filters.double().cpu().numpy()
    weights = filters[:, :-1] if geometry.bias else filters
    kernels = weights.reshape(len(filters), block.image_shape_[0], *np.broadcast_to(geometry.kernel_size, 2))
    norms = neurons.norms().double().cpu().numpy()
    shares = norms / max(float(norms.sum()), np.finfo(float).tiny)
    pictures = []
    for row in np.argsort(-shares, kind="stable")[:_MOST]:
        kernel = kernels[row]
        if len(kernel) not in (1, 3):
            strongest = int(np.square(kernel).sum(axis=(1, 2)).argmax())
            kernel = kernel[strongest : strongest + 1]
        said = f"{100 * shares[row]:.2g} % of the contributions"
        pictures.append(
            f'<img src="{data_uri(kernel_png(kernel))}" width="{_SIDE}" height="{_SIDE}" alt="filter: {said}" '
            f'title="{said}" style="image-rendering:pixelated;margin:1px;display:inline-block">'
        )
    return f'<div style="max-width:{4 * (_SIDE + 6)}px">{"".join(pictures)}</div>'


def stack_html(stack: Any) -> str:
    """Return a stack as HTML, a block below the other; of one that isn't fitted, its parameters.

    Parameters
    ----------
    stack : LayerwiseCNN
    """
    blocks = getattr(stack, "blocks_", None)
    if not blocks:
        return f"<pre>{escape(repr(stack))}</pre>"
    shape = " x ".join(map(str, stack.image_shape_))
    head = f"<p>{escape(type(stack).__name__)} of {len(blocks)} layers for images of {shape}</p>"
    layers = "".join(
        f"<details{' open' if number == len(blocks) else ''}><summary>layer {number}: objective "
        f"{block.result_.objective:.6g}, {block.n_neurons_} neurons</summary>{block_html(block)}</details>"
        for number, block in enumerate(blocks, 1)
    )
    return head + layers
