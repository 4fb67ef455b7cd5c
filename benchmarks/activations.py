"""Kinds of networks of one block: reg chosen on a validation split of the training images, then fitted to all of them.

    python benchmarks/activations.py
    python benchmarks/activations.py --data PATH --limit-train 10000

Each kind has a path of reg of its own, from its reg_max down, and the reg of the lowest squared error on a fifth of the
training images; what that reg gives when all of them are fitted is measured on the test images, once. Images of up to
256 pixels a channel are seen through 3x3 patches in 2x2 cells, and ReLU filters are priced. Larger ones through 5x5
patches in 3x3 cells, with their mirror images, an intercept and float32; ReLU filters are then whitened patches of the
images (``PatchGates``), and quadratic neurons see patches through their whitened principal directions. A kind without a
convex program (a pooling that isn't there, say) is left out with its reason. Seconds are of the processor.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvxcnn import CircularCNN, ConvexConvBlock, PricingOptions
from cvxcnn.arrangements import PatchGates
from cvxcnn.data import ImageSet, limit, load_data, one_hot, split
from cvxcnn.errors import InputError
from cvxcnn.models.block import DEFAULT_SEARCH
from cvxcnn.models.path import choose_reg
from cvxcnn.models.projection import PatchPCA
from cvxcnn.models.standardizer import Standardizer

# Names of the table, and the settings of their blocks; None is the circular network of two layers.
KINDS: dict[str, dict[str, Any] | None] = {
    "ReLU": {"activation": "relu"},
    "ReLU, max pooling": {"activation": "relu", "pooling": "max"},
    "quadratic": {"activation": "quadratic", "penalty": "group"},
    "linear": {"activation": "linear"},
    "circular": None,
}
SMALL: dict[str, Any] = {"pricing": DEFAULT_SEARCH, "tol": 1e-4}
LARGE: dict[str, Any] = {
    "kernel_size": 5, "padding": 2, "pool_cells": 3, "intercept": True, "dtype": "float32", "tol": 1e-3,
    "pricing": PricingOptions(starts=0),
}  # fmt: skip
SMALL_PIXELS = 256
# The path of reg: points in a decade, and the smallest share of reg_max. Paths of priced filters take minutes beyond.
POINTS = 2
SMALLEST, SMALLEST_PRICED, SMALLEST_LARGE = 1e-5, 1e-3, 1e-4
# Images that principal directions are computed from.
PCA_IMAGES = 1000
# Beside the mean variance: what keeps noise from being made as large as what patches show.
LEAST_VARIANCE = 1e-2

Rows = NDArray[np.int64]
View = Callable[[Tensor], Tensor]


def whitened(images: Tensor, dims: int) -> View:
    """Return what makes 5x5 patches of images into maps of their leading principal directions, of nearly equal size."""
    projection = PatchPCA.of(images[:PCA_IMAGES], dims, (5, 5), (2, 2), torch.Generator().manual_seed(0))
    variances = projection(images[:PCA_IMAGES]).var(dim=(0, 2, 3))
    scales = (variances + LEAST_VARIANCE * variances.mean()).rsqrt()[:, None, None]
    return lambda some: projection(some) * scales


def both(images: Tensor) -> Tensor:
    """Return each image with its mirror image behind it."""
    return torch.stack([images, images.flip(3)], dim=1).flatten(0, 1)


class Setting:
    """How a kind sees images of one size.

    Parameters
    ----------
    name : str
        A name in ``KINDS``.
    large : bool
        Whether images are seen as photographs are.
    filters, dims : int
        Of those: whitened patches for filters, and principal directions of patches for quadratic neurons.
    """

    def __init__(self, name: str, large: bool, filters: int, dims: int) -> None:
        self.large, self.dims = large, dims
        settings = KINDS[name]
        self.projects = large and name == "quadratic"
        priced = not large and settings is not None and settings["activation"] == "relu"
        self.smallest = SMALLEST_PRICED if priced else SMALLEST_LARGE if large else SMALLEST
        self.points = round(1 - POINTS * math.log10(self.smallest))
        self.block = None if settings is None else ConvexConvBlock(**settings, **(LARGE if large else SMALL))
        if self.block is not None and large and settings and settings["activation"] == "relu":
            self.block.set_params(gates=PatchGates(filters))
        if self.block is not None and self.projects:
            self.block.set_params(kernel_size=1, padding=0)

    def view(self, images: Tensor) -> View:
        """Return what images go through, as these training images say."""
        seen = whitened(images, self.dims) if self.projects else Standardizer.of(images)
        return (lambda some: seen(both(some))) if self.large else seen

    def targets(self, data: ImageSet) -> Tensor:
        """Return the targets of what ``view`` makes of images."""
        dtype = torch.float32 if self.large else torch.float64
        targets = torch.as_tensor(one_hot(data.labels, len(data.classes))).to(dtype)
        return targets.repeat_interleave(2, dim=0) if self.large else targets

    def right(self, model: Any, view: View, data: ImageSet) -> int:
        """Return how many images are predicted right, by the mean over an image and its mirror image."""
        found = 0
        for rows in np.array_split(np.arange(len(data.labels)), max(1, len(data.labels) // 1000)):
            outputs = np.asarray(model.predict(view(self.images(data.subset(rows)))))
            outputs = outputs[0::2] + outputs[1::2] if self.large else outputs
            found += int((outputs.argmax(axis=1) == data.labels[rows]).sum())
        return found

    def images(self, data: ImageSet) -> Tensor:
        """Return images in the type of the block."""
        return torch.from_numpy(data.images).to(torch.float32 if self.large else torch.float64)

    def chosen(self, own: ImageSet, held: ImageSet) -> tuple[Any, float, int]:
        """Return a model of the reg that the held-out images chose, its share of reg_max, and how many it has right."""
        images = self.images(own)
        view, targets = self.view(images), self.targets(own)
        inputs, expected = view(images), self.targets(held)
        if self.block is None:
            return self._circular(inputs, targets, view, held)
        held_out = view(self.images(held))
        block = choose_reg(
            self.block, (inputs, targets, None), (held_out, expected, None), points=self.points, smallest=self.smallest
        )
        share = block.reg_ / block.set_params(reg=None).reg_max(inputs, targets)
        return block.set_params(reg=block.reg_), share, self.right(block, view, held)

    def _circular(self, inputs: Tensor, targets: Tensor, view: View, held: ImageSet) -> tuple[Any, float, int]:
        expected, found = self.targets(held).numpy(), []
        largest = CircularCNN().reg_max(inputs, targets)
        for share in self.smallest ** (np.arange(1, self.points) / (self.points - 1)):
            model = CircularCNN(tol=1e-4, reg=float(share) * largest).fit(inputs, targets)
            error = float(np.square(model.predict(view(self.images(held))) - expected).sum())
            found.append((error, float(share), model))
        _, share, model = min(found, key=lambda each: each[0])
        return model, share, self.right(model, view, held)


def row(name: str, sets: tuple[ImageSet, ImageSet], setting: Setting, seed: int) -> str:
    """Return a line of the table."""
    train, test = sets
    own, held = (train.subset(rows) for rows in split(train.labels, 0.2, seed))
    began = time.process_time()
    model, share, right = setting.chosen(own, held)
    choosing = time.process_time() - began
    began = time.process_time()
    images = setting.images(train)
    view = setting.view(images)
    model.fit(view(images), setting.targets(train))
    seconds = time.process_time() - began
    certificate = model.certificate_
    gap = (certificate.sampled_gap, "gates at hand") if certificate.kind == "none" else (
        certificate.global_gap, f"all, {certificate.kind}"
    )  # fmt: skip
    accuracy = setting.right(model, view, test) / len(test.labels)
    return (
        f"| {name} | {share:.1g} | {right / len(held.labels):.1%} | {accuracy:.1%} | {gap[0]:.1e} ({gap[1]}) | "
        f"{model.n_neurons_} | {choosing:.0f} | {seconds:.0f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--limit-train", type=int, default=None)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--filters", type=int, default=128, help="whitened patches for filters, of larger images")
    parser.add_argument("--dims", type=int, default=16, help="directions that quadratic neurons see larger images by")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train, test = load_data(options.data)
    train = train if options.limit_train is None else limit(train, options.limit_train, options.seed)
    large = train.image_shape[1] * train.image_shape[2] > SMALL_PIXELS
    print(f"{len(train.labels)} training images, {len(test.labels)} test images", flush=True)
    print("| network | share of reg_max | validation | test | gap | neurons | s to choose reg | s to fit |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.kinds:
        try:
            setting = Setting(name, large, options.filters, options.dims)
            print(row(name, (train, test), setting, options.seed), flush=True)
        except InputError as error:
            print(f"| {name} | left out: {error} |", flush=True)


if __name__ == "__main__":
    main()
