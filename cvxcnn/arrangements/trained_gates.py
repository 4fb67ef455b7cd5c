"""Gates that are the filters of a network trained the ordinary way for a short while."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..core.checks import is_number
from ..core.distributed import alone, broadcast
from ..errors import InputError
from ..ordinary.baseline import train_baseline
from ..patches.patches import Patches
from .base import Gates, check_count, distinct
from .supervised import SupervisedGates, some_images

__all__ = ["TrainedGates"]

# Random filters by which the scale of reg is judged.
_PROBES = 64


@dataclass(frozen=True)
class TrainedGates(SupervisedGates):
    """The filters of a dense Conv+ReLU+pooling+Linear network, after a few epochs of Adam on Eq. 1.

    ``gates_of(module)`` has the filters of a network that you have trained yourself.

    Parameters
    ----------
    count : int
        Neurons of the network, >= 1. Those that training leaves unused give no gate.
    epochs : int
        Passes over the images, >= 1.
    images : int
        Images, drawn at random, that it is trained on, >= 1; all where there are no more.
    reg_fraction : float
        In (0, 1): reg of Eq. 1, as a share of the largest dual norm || sum_j h_j nu_j || of 64 random unit filters at
        the centred targets nu.

    Raises
    ------
    InputError
        If a setting is out of its range; when drawing, if there are no targets.

    Examples
    --------
    >>> from cvxcnn.patches import PatchGeometry
    >>> generator = torch.Generator().manual_seed(0)
    >>> images = torch.randn(20, 1, 6, 6, generator=generator)
    >>> patches = Patches(images, PatchGeometry(kernel_size=3, bias=True))
    >>> TrainedGates(5, epochs=2).draw(patches, generator, targets=images.amax((2, 3))).vectors.shape
    torch.Size([5, 10])
    """

    count: int = 100
    epochs: int = 10
    images: int = 5000
    reg_fraction: float = 1e-3

    def __post_init__(self) -> None:
        counted = {"count": "gates", "epochs": "passes over the images", "images": "images to train on"}
        for name, of in counted.items():
            object.__setattr__(self, name, check_count(getattr(self, name), name, of))
        if not is_number(self.reg_fraction, above=0, below=1):
            raise InputError(f"reg_fraction must be a number strictly between 0 and 1; got {self.reg_fraction!r}.")
        object.__setattr__(self, "reg_fraction", float(self.reg_fraction))

    def choose(self, patches: Patches, targets: Tensor, generator: torch.Generator) -> Gates:
        """Return the gates; see the class."""
        some, centred = some_images(patches, targets, self.images, generator)
        probes = normalize(torch.randn(_PROBES, patches.dim, generator=generator).to(centred), dim=1)
        with torch.no_grad():
            correlation = torch.einsum("ncm,no->mco", some.relu_features(probes), centred)
        scale = float(correlation.flatten(1).norm(dim=1).max())
        if not 0 < scale < math.inf:
            raise InputError(
                "targets that are all equal, or images that are all zero, give nothing to train on. "
                "Use PatchGates or Gaussian gates."
            )
        seed = int(torch.randint(1 << 31, (1,), generator=generator))
        with alone():
            trained = train_baseline(
                some, centred, self.reg_fraction * scale, self.count, epochs=self.epochs, seed=seed
            ).filters
        trained = broadcast(trained)
        used = trained[trained.any(dim=1)]
        return distinct(patches, normalize(used, dim=1)) if len(used) else Gates(patches.like.new_empty(0, patches.dim))
