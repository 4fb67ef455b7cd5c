"""A finished convex stack beside the best whole network that torch trains in the same processor time.

    python benchmarks/whole.py --run RUN                  # as much processor time as the run took
    python benchmarks/whole.py --run RUN --seconds 120 --widths 12 16

Rivals, each trained end to end with flips (where the run had mirror images) and random crops:

- residual networks of nine layers (ResNet-9), of which --widths gives the channels of the first: one-cycle SGD with
  Nesterov momentum, weight decay and label smoothing, batches of --batch images; the highest rate is the best of
  --rates on a tenth of the training images, after a share of the time (--tuning).
- the network of the convex stack (``to_torch``, with a temperature), fine-tuned from the stack's weights, and the same
  from random weights: Adam, its rate chosen in the same way. Does the certified start pay?

All get the same processor seconds (of all threads), tuning not counted; only the last look is at the test images.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from cvxcnn import load_model
from cvxcnn.data import ImageSet, split
from cvxcnn.runs.checkpoint import read_state
from cvxcnn.runs.records import accuracy
from cvxcnn.runs.settings import load_sets, recorded_settings

HELD_OUT = 0.1
# Pixels that a crop may be shifted by, as a share of the side.
CROP = 1 / 8
SMOOTHING, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
# Of the time, in which the rate rises.
WARM = 0.25


def convolution(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
    """Return a 3x3 convolution, normalised, with a ReLU, and halved maps where asked for."""
    modules = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*modules, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Module):
    """Two convolutions around which the input goes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(convolution(width, width), convolution(width, width))

    def forward(self, values: Tensor) -> Tensor:
        """Return the input and what the convolutions add."""
        added: Tensor = values + self.body(values)
        return added


def residual_network(channels: int, width: int, classes: int) -> nn.Sequential:
    """Return a network of nine layers, of width to 8 times width channels, for images of 8 pixels a side or more."""
    return nn.Sequential(
        convolution(channels, width),
        convolution(width, 2 * width, pool=True),
        Residual(2 * width),
        convolution(2 * width, 4 * width, pool=True),
        convolution(4 * width, 8 * width, pool=True),
        Residual(8 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, classes),
    )


class WithTemperature(nn.Module):
    """A network of squared loss, whose outputs a learned factor makes logits."""

    def __init__(self, network: nn.Module, factor: float = 5.0) -> None:
        super().__init__()
        self.network = network
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.factor * self.network(images)
        return logits


def stack_network(run: Path, pretrained: bool) -> nn.Module:
    """Return the convex stack as a torch network in float32, from its own weights or from random ones."""
    network = WithTemperature(load_model(run).to_torch().float())
    for module in network.modules():
        if not pretrained and isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()
    return network.requires_grad_(True)


@dataclass(frozen=True)
class Images:
    """Standardized images and their labels, and how they are changed in training."""

    values: Tensor
    labels: Tensor
    mirror: bool
    crop: int

    @classmethod
    def of(cls, part: ImageSet, mean: np.ndarray, scale: np.ndarray, mirror: bool) -> Images:
        """Return those of a data set."""
        values = torch.from_numpy((part.images - mean[:, None, None]) / scale[:, None, None]).float()
        return cls(values, torch.from_numpy(part.labels), mirror, round(CROP * part.image_shape[1]))

    def subset(self, rows: np.ndarray) -> Images:
        """Return some of them."""
        return Images(self.values[rows], self.labels[rows], self.mirror, self.crop)

    def batch(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return images, each turned by chance, and shifted by as many pixels as chance says."""
        images = self.values[rows]
        if self.mirror:
            turned = torch.rand(len(rows), generator=generator) < 0.5
            images = torch.where(turned[:, None, None, None], images.flip(3), images)
        height, width = images.shape[2:]
        padded = F.pad(images, (self.crop,) * 4)
        down, right = torch.randint(0, 2 * self.crop + 1, (2, len(rows)), generator=generator)
        lines = (down[:, None] + torch.arange(height))[:, None, :, None]
        columns = (right[:, None] + torch.arange(width))[:, None, None, :]
        which = torch.arange(len(rows))[:, None, None, None]
        return padded[which, torch.arange(images.shape[1])[None, :, None, None], lines, columns]


def one_cycle(share: float) -> float:
    """Return the rate as a share of the highest: up to it in a quarter of the time, and down to zero as a cosine.

    Examples
    --------
    >>> one_cycle(0.0), one_cycle(0.25), round(one_cycle(1.0), 6)
    (0.04, 1.0, 0.0)
    """
    if share < WARM:
        return 0.04 + 0.96 * share / WARM
    return 0.5 * (1 + math.cos(math.pi * (share - WARM) / (1 - WARM)))


def train(network: nn.Module, images: Images, rate: float, seconds: float, batch: int, adam: bool) -> int:
    """Train for so many processor seconds; return the passes over the images."""
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(network.parameters(), lr=rate)
        if adam
        else torch.optim.SGD(network.parameters(), lr=rate, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    )
    generator = torch.Generator().manual_seed(0)
    network.train()
    began, passes = time.process_time(), 0
    while True:
        for rows in torch.randperm(len(images.labels), generator=generator).split(batch):
            share = (time.process_time() - began) / seconds
            if share >= 1:
                return passes
            # The statistics of one image are none.
            if len(rows) == 1:
                continue
            optimizer.param_groups[0]["lr"] = rate * one_cycle(share)
            loss = F.cross_entropy(
                network(images.batch(rows, generator)), images.labels[rows], label_smoothing=SMOOTHING
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        passes += 1


def judge(network: nn.Module, images: Images) -> float:
    """Return the accuracy, over images and their mirror images where those were trained on."""
    network.eval()
    with torch.no_grad():
        outputs = torch.cat(
            [network(part) + (network(part.flip(3)) if images.mirror else 0) for part in images.values.split(250)]
        )
    return accuracy(outputs.numpy(), images.labels.numpy())


def best_rate(
    make: Callable[[], nn.Module], images: Images, rates: list[float], seconds: float, batch: int, adam: bool
) -> float:
    """Return the rate that is best on a tenth of the images after so many processor seconds."""
    fitted, held_out = split(images.labels.numpy(), HELD_OUT, 0)
    scores = {}
    for rate in rates:
        torch.manual_seed(0)
        network = make()
        train(network, images.subset(fitted), rate, seconds, batch, adam)
        scores[rate] = judge(network, images.subset(held_out))
    return max(scores, key=lambda rate: scores[rate])


def main() -> None:
    """Train all rivals, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--seconds", type=float, help="processor seconds of each; those of the run's layers by default")
    parser.add_argument("--widths", type=int, nargs="*", default=[12, 16, 24], help="first widths of residual networks")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4])
    parser.add_argument("--fine-rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--tuning", type=float, default=0.15, help="share of the time for each rate that is tried")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--no-stack", action="store_true", help="no networks of the stack's own shape")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    summary = read_state(options.run).summary
    settings = recorded_settings(summary["settings"])
    train_set, test_set = load_sets(settings)
    mirror = "mirror" in settings.augment
    mean, scale = train_set.images.mean(axis=(0, 2, 3)), train_set.images.std(axis=(0, 2, 3))
    images = Images.of(train_set, mean, scale, mirror)
    tests = Images.of(test_set, mean, scale, mirror)
    seconds = options.seconds or sum(layer["convex"]["seconds"] for layer in summary["layers"])
    classes = len(train_set.classes)
    rivals: dict[str, tuple[Callable[[], nn.Module], Images, Images, list[float], bool]] = {
        f"ResNet-9, {width} to {8 * width} channels": (
            lambda width=width: residual_network(images.values.shape[1], width, classes),
            images, tests, options.rates, False,
        )
        for width in options.widths
    }  # fmt: skip
    if not options.no_stack:
        # The stack standardizes by itself, and averages over mirror images.
        plain = [Images.of(part, 0 * mean, 1 + 0 * scale, False) for part in (train_set, test_set)]
        for name, pretrained in (("convex stack, fine-tuned", True), ("its network, from random weights", False)):
            rivals[name] = (
                lambda pretrained=pretrained: stack_network(options.run, pretrained),
                plain[0], plain[1], options.fine_rates, True,
            )  # fmt: skip
    table = Table("network", "rate", "passes", "processor s", "train", "test", title=f"{options.run}, {len(train_set)}")
    last = summary["layers"][-1]["convex"]
    table.add_row(
        "convex stack", "", "", "", *(f"{100 * last[f'{part}_accuracy']:.2f} %" for part in ("train", "test"))
    )
    for name, (make, fitted, tested, rates, adam) in rivals.items():
        rate = best_rate(make, fitted, rates, options.tuning * seconds, options.batch, adam)
        torch.manual_seed(0)
        network = make()
        passes = train(network, fitted, rate, seconds, options.batch, adam)
        scores = (f"{100 * judge(network, part):.2f} %" for part in (fitted, tested))
        table.add_row(name, f"{rate:g}", str(passes), f"{seconds:.0f}", *scores)
        logging.info("%s done: rate %g, %d passes", name, rate, passes)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
