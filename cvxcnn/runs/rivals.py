"""Other ways to train the same architecture on the same inputs: by minibatches, in two phases, or infinitely wide."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor

from ..core.arrays import check_bytes
from ..errors import InputError
from ..ordinary.baseline import TRAININGS, BaselineResult
from ..ordinary.network import block_features
from ..patches.patches import Patches
from ..theory.kernels import infinite_gram, pairs_of_patches

__all__ = ["RIVALS", "RivalFit", "check_rivals", "first_network", "kernel_bytes", "networks_of", "train_kernel"]

logger = logging.getLogger(__name__)

# "softplus": two-phase training of softplus neurons, the analytic ones of its theorem. "kernel": infinite width.
RIVALS = (*TRAININGS, "softplus", "kernel")
# The sharpness of "softplus", on responses of about one.
ZETA = 10.0
# Ridges that are tried, as shares of the mean of the kernel's diagonal, of which float32 has seven digits.
RIDGES = tuple(10.0 ** (exponent / 2) for exponent in range(-12, 3))

Outputs = NDArray[np.float64]


@dataclass(frozen=True)
class RivalFit:
    """A rival of a block, trained.

    Attributes
    ----------
    trained, tested : ndarray, shape (n, outputs)
        Outputs on training and test images.
    seconds : float
    remark : str
        What there is to say of this training; "" for nothing.
    result : BaselineResult or None
        Its network; None for one that is infinitely wide.
    """

    trained: Outputs
    tested: Outputs
    seconds: float
    remark: str = ""
    result: BaselineResult | None = None

    @classmethod
    def of(cls, result: BaselineResult, patches: Patches, tested: Patches) -> RivalFit:
        """Return the fit of a network that was trained in torch, with its outputs on patches of images."""
        return cls(outputs(result, patches), outputs(result, tested), result.seconds, result.guarantee, result)


def outputs(result: BaselineResult, patches: Patches) -> Outputs:
    """Return the outputs (n, outputs) of a network trained in torch."""
    with torch.no_grad():
        exact = patches.astype(result.filters.dtype)
        used = result.filters.any(dim=1)  # the others feed nothing
        features = block_features(exact, result.filters[used], result.softplus)
        found = torch.einsum("ncm,mco->no", features, result.readout[used])
    return np.asarray(found.cpu().numpy())


def check_rivals(rivals: Sequence[str], penalty: str) -> None:
    """Raise InputError if there is no such rival, or it can't be one of blocks with this penalty.

    Examples
    --------
    >>> check_rivals(["adam", "kernel"], "dense")
    """
    if not rivals or len(set(rivals)) < len(rivals) or not set(rivals) <= set(RIVALS):
        names = ", ".join(f'"{name}"' for name in RIVALS)
        raise InputError(f"rivals must be some of {names}, each once; got {list(rivals)!r}.")
    phased = [name for name in rivals if name in ("two-phase", "softplus")]
    if phased and penalty == "group":
        raise InputError(
            f"the rival {phased[0]!r} is of neurons that feed all cells and outputs; those of the group penalty feed "
            "one. Use another penalty or another rival."
        )


def networks_of(rivals: Sequence[str]) -> list[str]:
    """Return the rivals that have weights, which a run keeps.

    Examples
    --------
    >>> networks_of(["kernel", "sgd", "softplus"])
    ['sgd', 'softplus']
    """
    return [name for name in rivals if name != "kernel"]


def first_network(rivals: Sequence[str]) -> str | None:
    """Return the rival that is "nonconvex" in a run's files: the first ReLU network, None if there is none.

    Examples
    --------
    >>> first_network(["kernel", "sgd", "adam"]), first_network(["kernel"])
    ('sgd', None)
    """
    return next((name for name in rivals if name in TRAININGS), None)


def kernel_bytes(n_train: int, n_test: int, places: int, dim: int) -> int:
    """Return the bytes that ``train_kernel`` needs: Gram matrices, an eigendecomposition, and patches."""
    return 8 * (6 * n_train**2 + 2 * n_train * n_test + (n_train + n_test) * places * dim)


def train_kernel(
    patches: Patches,
    targets: Tensor,
    tested: Patches,
    *,
    weights: Tensor | None = None,
    memory: float | None = None,
    device: str = "cpu",
) -> RivalFit:
    """Train the infinitely wide network of a block's architecture: kernel ridge regression with ``infinite_gram``.

        f = K (K + alpha)^{-1} Y,   alpha with the least leave-one-out error on the training images

    Parameters
    ----------
    patches, tested : Patches
        Of training and test images.
    targets : Tensor, shape (n, outputs)
    weights : Tensor, shape (n,), optional
        Of the training images.
    memory : float, optional
        GiB that may be used.
    device : str
        Where the kernel is computed.

    Raises
    ------
    InputError
        If more memory is needed than allowed.

    Notes
    -----
    Sources: Du, Zhai, Poczos & Singh 2018 for the kernel; Allen 1974 for the error without an image, which is
    [(K + alpha)^{-1} y]_j / [(K + alpha)^{-1}]_jj. Cost: an angle for each pair of patches of a cell, n^3.
    """
    n, q = patches.n_images, tested.n_images
    needed = kernel_bytes(n, q, patches.n_patches, patches.dim)
    check_bytes(f"the kernel of {n} images", needed, memory, "Use another rival, or a smaller --limit-train.")
    pairs = pairs_of_patches(patches.pool, n) + pairs_of_patches(patches.pool, n, q)
    logger.info("kernel: %.2g pairs of patches, %.2g GiB", pairs, needed / 2**30)
    began = time.perf_counter()
    rows = patches.unfold()

    def kernel(others: Tensor | None) -> Outputs:
        found = infinite_gram(rows, patches.pool, others=others, dtype="float32", device=device)
        return np.asarray(torch.as_tensor(found).cpu())

    gram, between = kernel(None), kernel(tested.unfold())
    expected = targets.double().cpu().numpy()
    alone, wanted = (gram, expected) if weights is None else _weighted(gram, expected, weights)
    alpha = _least_alpha(alone, wanted)
    importance = None if weights is None else weights.double().cpu().numpy()
    model = KernelRidge(alpha=alpha, kernel="precomputed").fit(gram, expected, importance)
    remark = (
        f"Infinitely wide, with a ridge of {alpha / alone.diagonal().mean():.1g} of the kernel's mean diagonal, by its "
        "leave-one-out error on the training images."
    )
    return RivalFit(model.predict(gram), model.predict(between), time.perf_counter() - began, remark)


def _weighted(gram: Outputs, targets: Outputs, weights: Tensor) -> tuple[Outputs, Outputs]:
    """Return the kernel and the targets of the problem without weights that has the same errors."""
    root = weights.double().cpu().sqrt().numpy()[:, None]
    return root * gram * root.T, root * targets


def _least_alpha(gram: Outputs, targets: Outputs) -> float:
    """Return the ridge of ``RIDGES`` with the least leave-one-out error."""
    values, vectors = np.linalg.eigh(gram)
    turned, squares = vectors.T @ targets, vectors**2

    def error(alpha: float) -> float:
        inverse = 1 / (values.clip(0) + alpha)
        residual = vectors @ (inverse[:, None] * turned) / (squares @ inverse)[:, None]
        return float(np.square(residual).sum())

    mean = float(gram.diagonal().mean())
    found: float = min((share * mean for share in RIDGES), key=error)
    return found
