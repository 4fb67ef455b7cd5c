"""Gates that are chosen for the targets: those with the largest gradient for what is not yet explained."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.distributed import alone
from ..core.products import adjoint_product
from ..errors import InputError
from ..patches.patches import Patches
from .base import Gates, GateSampler, check_count, draw_distinct
from .data_patches import PatchGates
from .supervised import SupervisedGates, some_images

__all__ = ["GradientGates"]

# Of the ridge regression between rounds: this share of the mean squared length of an image's chosen features. Of
# 1e-3, 1e-2, 0.1 and 1, the second was the best on validation images of the digits and of CIFAR-10.
_RIDGE = 1e-2
# Candidates whose features are multiplied by the smoother at once.
_AT_ONCE = 512


@dataclass(frozen=True)
class GradientGates(SupervisedGates):
    """Of many candidates, the gates with the largest gradient for the residual, chosen in rounds.

    With h_ic the centred pooled responses sum_k P_ck (x_jk . g_i)_+ of gate i in cell c, Y the centred targets and S
    the residual operator of ridge regression on the gates chosen so far (S = I at first), a round takes those with
    the largest

        sum_c || h_ic^T S Y ||^2 / sum_c h_ic^T S h_ic,

    which is the squared gradient of the block for the residual nu = S Y, over the squared length of what is new in
    its features: the gain of orthogonal least squares (Chen, Cowan & Grant 1991). Both matter: without the
    denominator, or in a single round, the gates resemble each other and are worse than random ones.

    Parameters
    ----------
    count : int
        Number of gates, >= 1.
    candidates : int
        Candidates for each gate, >= 1.
    rounds : int
        Rounds of choice, >= 1; each takes an equal share of the gates.
    images : int
        Images, drawn at random, on which gates are drawn and scored, >= 1; all where there are no more.
    source : GateSampler
        Where candidates come from; its own ``count`` is not used.

    Raises
    ------
    InputError
        If a setting is out of its range; when drawing, if there are no targets.

    Notes
    -----
    Memory: images * cells * candidates * count numbers in float32. Gates differ in their patterns on the images
    drawn, and may be fewer than ``count`` where the source finds no more.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> generator = torch.Generator().manual_seed(0)
    >>> images = torch.randn(20, 1, 6, 6, generator=generator)
    >>> patches = Patches(images, PatchGeometry(kernel_size=3, bias=True))
    >>> GradientGates(5).draw(patches, generator, targets=images.amax((2, 3))).vectors.shape
    torch.Size([5, 10])
    """

    count: int = 100
    candidates: int = 8
    rounds: int = 10
    images: int = 2000
    source: GateSampler = field(default_factory=PatchGates)

    def __post_init__(self) -> None:
        counted = {"count": "gates", "candidates": "candidates for each gate"}
        for name, of in {**counted, "rounds": "rounds of choice", "images": "images to score on"}.items():
            object.__setattr__(self, name, check_count(getattr(self, name), name, of))
        if not isinstance(self.source, GateSampler) or isinstance(self.source, SupervisedGates):
            raise InputError(
                f"source must be a sampler that needs no targets, such as PatchGates(); got {self.source!r}."
            )

    def choose(self, patches: Patches, targets: Tensor, generator: torch.Generator) -> Gates:
        """Return the gates; see the class."""
        some, residual = some_images(patches, targets, self.images, generator)
        with alone():
            drawn = draw_distinct(self.source.sample, some, self.count * self.candidates, generator)
            vectors = drawn.vectors
            if len(drawn) > self.count:
                features = some.relu_features(vectors)
                features -= features.mean(dim=0)
                vectors = vectors[_greedy(features, residual, self.count, self.rounds)]
        return Gates(vectors.to(patches.like), drawn.n_duplicates, drawn.n_zero)


def _greedy(features: Tensor, targets: Tensor, count: int, rounds: int) -> Tensor:
    """Return the indices of ``count`` blocks of features (n, cells, m), in the order of their choice."""
    chosen = torch.empty(0, dtype=torch.long, device=features.device)
    smoother = torch.eye(len(features), dtype=features.dtype, device=features.device)
    for step in range(1, rounds + 1):
        most = count * step // rounds - len(chosen)
        gains = _gains(features, targets, smoother)
        gains[chosen] = -1.0
        chosen = torch.cat([chosen, gains.topk(most).indices])
        if step < rounds and most:
            smoother = _unexplained(features[:, :, chosen].flatten(1))
    return chosen


def _gains(features: Tensor, targets: Tensor, smoother: Tensor) -> Tensor:
    """Return sum_c ||h_c^T S Y||^2 / sum_c h_c^T S h_c of each block, shape (m,)."""
    residual = smoother @ targets
    gains = []
    for part in torch.split(features, _AT_ONCE, dim=2):
        flat = part.flatten(1)
        gradient = adjoint_product(flat, residual).square().sum(dim=1).view(part.shape[1:]).sum(dim=0)
        left = (flat * (smoother @ flat)).sum(dim=0).view(part.shape[1:]).sum(dim=0)
        # Nothing new, up to rounding: features that are constant over the images, or explained already.
        least = torch.finfo(part.dtype).eps * part.square().sum(dim=(0, 1))
        gains.append(torch.where(left > least, gradient / left.clamp_min(1e-30), 0.0))
    return torch.cat(gains)


def _unexplained(features: Tensor) -> Tensor:
    """Return (I + F F^T / a)^-1 of features F (n, q): it maps targets to the residual of ridge regression on them."""
    kernel = (features @ features.T).double()
    ridge = _RIDGE * kernel.diagonal().mean().clamp_min(1e-300)
    system = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device) + kernel / ridge
    return torch.cholesky_inverse(torch.linalg.cholesky(system)).to(features)
