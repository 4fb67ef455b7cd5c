"""What the samplers share that choose gates by the targets too."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ..core.distributed import row_counts, take_rows
from ..errors import InputError
from ..patches.patches import Patches
from .base import Gates, GateSampler

__all__ = ["SupervisedGates", "some_images"]


class SupervisedGates(GateSampler):
    """A sampler whose gates depend on the targets: define ``choose``, which ``draw`` calls with them.

    Several processes must choose the same gates: from ``some_images``, which are the same in all of them, and inside
    ``cvxcnn.core.distributed.alone``.
    """

    @abstractmethod
    def choose(self, patches: Patches, targets: Tensor, generator: torch.Generator) -> Gates:
        """Return up to ``count`` gates of distinct patterns for targets (n, outputs)."""

    def sample(self, patches: Patches, count: int, generator: torch.Generator) -> Tensor:
        """Raise InputError: patches alone don't determine these gates."""
        raise InputError(
            f"{type(self).__name__} chooses gates by the targets, so it can't sample from patches alone. "
            "Pass it as gates= to a block, or call draw(patches, generator, targets)."
        )

    def draw(self, patches: Patches, generator: torch.Generator, targets: Tensor | None = None) -> Gates:
        """Return up to ``count`` gates of distinct patterns for targets (n, outputs).

        Raises
        ------
        InputError
            If there are no targets, or not one row for each image.
        """
        if targets is None or targets.ndim != 2 or len(targets) != patches.n_images:
            given = "none" if targets is None else f"shape {tuple(targets.shape)}"
            raise InputError(
                f"{type(self).__name__} chooses gates by the targets, one row for each of the {patches.n_images} "
                f"images; got {given}. Pass targets of shape (n, outputs)."
            )
        return self.choose(patches, targets, generator)


def some_images(patches: Patches, targets: Tensor, most: int, generator: torch.Generator) -> tuple[Patches, Tensor]:
    """Return at most ``most`` images, drawn at random, as float32 patches, and their centred targets.

    They are drawn from the images of all processes, and the same in each.
    """
    rows = torch.randperm(sum(row_counts(targets)), generator=generator)[:most].sort().values
    chosen = take_rows(targets, rows).to(torch.float32)
    some = Patches(take_rows(patches.images, rows), patches.geometry, patches.dtype)
    return some.astype(torch.float32), chosen - chosen.mean(dim=0)
