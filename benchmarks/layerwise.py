"""Convex layers beside the same layers trained in torch: the poster's two figures, and a table.

    python benchmarks/layerwise.py --data digits --layers 5 --downsample 2 1
    python benchmarks/layerwise.py --data cifar10 --recipe large --limit-train 10000
    python benchmarks/layerwise.py --run RUN --seconds 376 662 452 176 157

The last takes its convex layers from a finished run of ``python -m cvxcnn.train``. Each torch layer gets the convex
layer's input, targets, reg, width and pooling, the best of five learning rates (on the training objective, after one
pass over an eighth of the images), and --patience times the convex layer's wall time, one pass over the images at
least. Test images are looked at once, at the end. ``whole.py`` trains whole networks.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from cvxcnn.data import ImageSet, one_hot
from cvxcnn.errors import InputError
from cvxcnn.models.block import ConvexConvBlock
from cvxcnn.models.recipes import RECIPES
from cvxcnn.models.stack import LayerwiseCNN
from cvxcnn.models.stage import Stage
from cvxcnn.ordinary import BaselineResult, default_learning_rate, train_baseline
from cvxcnn.patches import Patches
from cvxcnn.reports.figures import plot_accuracy, plot_objective
from cvxcnn.reports.metrics import write_metrics
from cvxcnn.reports.summary import RunSummary
from cvxcnn.reports.table import results_table
from cvxcnn.runs.checkpoint import read_state
from cvxcnn.runs.progress import Reporter
from cvxcnn.runs.records import LayerRecords, describe
from cvxcnn.runs.settings import Settings, build_stack, for_data, load_sets, recorded_settings

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
BATCH = 64


@dataclass
class TimedRecords(LayerRecords):
    """The records of a run, whose torch layers get a share of the convex layer's wall time."""

    patience: float = 1.0
    began: float = 0.0
    convex_seconds: float = 0.0
    given: tuple[float, ...] = ()

    def on_layer(self, layer: int, block: ConvexConvBlock, stage: Stage) -> None:
        """Note the wall time of the layer, everything since the one before included, and go on."""
        self.convex_seconds = self.given[layer] if self.given else time.perf_counter() - self.began
        super().on_layer(layer, block, stage)
        entry = self.summaries[-1]
        self.summaries[-1] = replace(entry, convex=replace(entry.convex, seconds=self.convex_seconds))
        self.began = time.perf_counter()

    def train_rival(
        self, layer: int, block: ConvexConvBlock, stage: Stage, patches: Patches, connect: str
    ) -> BaselineResult:
        """Train the rival at the best of some learning rates, for a multiple of the convex layer's wall time."""
        width = max(block.n_neurons_, 1)
        some = torch.arange(0, len(stage.inputs), 8)
        few, few_targets = patches.subset(some), stage.targets[some]
        reg = block.reg / 8
        base = default_learning_rate(few, few_targets, width, connect=connect)
        tried = {
            factor: train_baseline(few, few_targets, reg, width, learning_rate=factor * base, epochs=1, connect=connect)
            for factor in FACTORS
        }
        rate = base * min(FACTORS, key=lambda factor: tried[factor].objective)
        needed = self.patience * self.convex_seconds
        # An eighth of the images for one pass says how many passes the time is for.
        epochs = max(1, math.ceil(needed / (8 * np.median([found.seconds for found in tried.values()]))))
        while True:
            # Schedules depend on their length, so a run that was too short is made again, not continued.
            result = train_baseline(
                patches, stage.targets, block.reg, width,
                learning_rate=rate, epochs=epochs, connect=connect, tol=1e-12, batch_size=BATCH,
            )  # fmt: skip
            if result.seconds >= needed:
                break
            epochs = max(epochs + 1, math.ceil(1.1 * epochs * needed / result.seconds))
        self.reporter.say(
            f"  torch: rate {rate:.2g}, {epochs} epochs, {result.seconds:.0f} s (convex {self.convex_seconds:.0f} s)"
        )
        return result


def stages(stack: LayerwiseCNN, train: ImageSet) -> Iterator[Stage]:
    """Yield what each block of a finished run was fitted on."""
    if stack.crop or stack.validation is not None:
        raise InputError("a run with crops or held-out images was trained on others than those of its data set.")
    labels = train.labels.repeat(2) if stack.mirror else train.labels
    targets = one_hot(labels, len(train.classes), dtype=stack.blocks_[0].neurons_.filters.dtype)
    for seen in stack.seen(train.images):
        offset = torch.from_numpy(seen.offset).to(targets)
        prediction = torch.from_numpy(seen.outputs).to(targets) - offset
        yield Stage(seen.inputs, targets - offset, offset, prediction)


def main() -> None:
    """Run, draw, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="exact")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--limit-train", type=int)
    parser.add_argument("--gates", nargs="+", help="of each layer; those of the recipe by default")
    parser.add_argument("--downsample", type=int, nargs="+", help="after each layer; those of the recipe by default")
    parser.add_argument("--reg-fraction", type=float, nargs="+", help="of each layer; those of the recipe by default")
    parser.add_argument("--hand-on", type=int, help="neurons that hand on; the recipe's number by default")
    parser.add_argument("--residual", action="store_true", help="fit each layer to what those before leave")
    parser.add_argument("--run", type=Path, help="folder of a finished run, whose convex layers and settings are taken")
    parser.add_argument("--seconds", type=float, nargs="+", help="wall time of each convex layer, with --run")
    parser.add_argument("--patience", type=float, default=1.0, help="torch's time as a multiple of the convex layer's")
    parser.add_argument("--no-baseline", action="store_true", help="convex layers alone")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "figures")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    console = Console(width=140)
    finished = None
    if options.run:
        state = read_state(options.run)
        settings = recorded_settings(state.summary["settings"], baseline=True)
        finished = state.stack
    else:
        changes = {"recipe": options.recipe, **RECIPES[options.recipe], "data": options.data, "layers": options.layers}
        changes |= {"limit_train": options.limit_train, "baseline": not options.no_baseline}
        for name in ("gates", "reg_fraction", "downsample"):
            if getattr(options, name):
                changes[name] = tuple(getattr(options, name))
        if options.hand_on is not None:
            changes["hand_on"] = options.hand_on
        if options.residual:
            changes["residual"] = True
        settings = replace(Settings(), **changes)
    train, test = load_sets(settings)
    settings = for_data(settings, train.image_shape, len(train))
    stack = build_stack(settings)
    stack.plan(train.image_shape)
    records = TimedRecords(
        settings, finished or stack, train, test, Reporter(console, settings.tol), None,
        describe(train, test, settings), patience=options.patience, began=time.perf_counter(),
    )  # fmt: skip
    if finished is None:
        stack.fit(train.images, one_hot(train.labels, len(train.classes)), on_layer=records.on_layer)
    else:
        records.given = tuple(options.seconds or [entry["convex"]["seconds"] for entry in state.summary["layers"]])
        for layer, stage in enumerate(stages(finished, train)):
            records.on_layer(layer, finished.blocks_[layer], stage)
    summary = RunSummary.from_json(records.state().summary)
    options.output.mkdir(parents=True, exist_ok=True)
    name = f"layerwise-{train.name.lower().replace(' ', '-')}"
    plot_objective(summary, options.output / f"{name}-objective.png")
    plot_accuracy(summary, options.output / f"{name}-accuracy.png")
    write_metrics(summary, options.output / f"{name}.csv")
    console.print(results_table(summary))


if __name__ == "__main__":
    main()
