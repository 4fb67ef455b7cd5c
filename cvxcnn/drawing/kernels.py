"""Filters as small pictures: a pixel an entry."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["data_uri", "kernel_png", "png"]

# Ends of the diverging scale, as on the maps of `explain`: positive is red, negative blue.
_POSITIVE, _NEGATIVE = np.array([178, 24, 43]), np.array([33, 102, 172])


def kernel_png(kernel: NDArray[np.float64]) -> bytes:
    """Return a kernel (1, kh, kw) in red and blue around white, or (3, kh, kw) in its colours around grey."""
    scaled = kernel / max(float(np.abs(kernel).max()), np.finfo(float).tiny)
    if len(kernel) == 3:
        return png(127.5 * (1 + scaled.transpose(1, 2, 0)))
    weight = np.abs(scaled[0])[..., None]
    return png((1 - weight) * 255 + weight * np.where(scaled[0][..., None] > 0, _POSITIVE, _NEGATIVE))


def png(pixels: NDArray[Any]) -> bytes:
    """Return pixels (h, w, 3) from 0 to 255 as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(pixels).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(content: bytes) -> str:
    """Return a PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
