"""What makes deeper layers generalise: stacks that differ in one thing, judged on images split off the training file.

    python benchmarks/depth.py --data PATH --n-train 4000 --n-held-out 4000

Whitened data patches are the filters of every block (``PatchGates``), weighed by the dense program to a gap of 1e-3;
reg of each layer is that of the lowest squared error on a tenth of the training images, but in the variants where it
is a fixed share of reg_max, larger than a layer by itself would want. Accuracies are those on the held-out images,
which decide nothing; the test file is not read beyond its labels' names.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from cvxcnn import ConvexConvBlock, LayerwiseCNN, PricingOptions
from cvxcnn.arrangements import PatchGates
from cvxcnn.data import limit, load_data, one_hot
from cvxcnn.models.stage import Stage

BLOCK = ConvexConvBlock(
    kernel_size=5, padding=2, pooling="mean", pool_cells=2, bias=True, intercept=True, penalty="dense", tol=1e-3,
    dtype="float32", pricing=PricingOptions(starts=0),
)  # fmt: skip
ALL: dict[str, Any] = {"residual": True, "project": 80, "mirror": True}
LARGER: dict[str, Any] = {"validation": None, "reg_fraction": (5e-4, 0.05, 0.1)}
VARIANTS: dict[str, dict[str, Any]] = {
    "all of it": ALL,
    "last block alone predicts": {**ALL, "residual": False},
    "whole patches, standardized": {**ALL, "project": None},
    "a quarter of the neurons handed on": {**ALL, "hand_on": 0.25},
    "no mirror images": {**ALL, "mirror": False},
    "fixed, larger reg": {**ALL, **LARGER},
    "fixed, larger reg, a quarter handed on": {**ALL, **LARGER, "hand_on": 0.25},
    "fixed, larger reg, an eighth handed on": {**ALL, **LARGER, "hand_on": 0.125},
}
# The fractions are for so many images, and fall as one over their number.
FRACTION_IMAGES = 10_000


def main() -> None:
    """Print a row a layer and variant, and write them as CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--n-train", type=int, default=4000)
    parser.add_argument("--n-held-out", type=int, default=4000)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--filters", type=int, default=200)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "figures" / "depth.csv")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    images, _ = load_data(options.data)
    some = limit(images, options.n_train + options.n_held_out, 0)
    order = np.random.default_rng(0).permutation(len(some))
    fitted, held_out = some.subset(order[: options.n_train]), some.subset(order[options.n_train :])
    rows: list[dict[str, Any]] = []
    for name in options.variants:
        settings = {"validation": 0.1, "reg_fraction": 1e-4, **VARIANTS[name]}
        if settings["validation"] is None:
            scale = FRACTION_IMAGES / options.n_train
            settings["reg_fraction"] = [min(0.5, scale * share) for share in settings["reg_fraction"]]
        if "hand_on" in settings:
            settings["hand_on"] = max(1, int(settings["hand_on"] * options.filters))
        block = clone(BLOCK).set_params(gates=PatchGates(options.filters))
        stack = LayerwiseCNN(layers=options.layers, block=block, downsample=(2, 1, 2, 1), **settings)
        trained: list[float] = []

        def note(layer: int, block: ConvexConvBlock, stage: Stage, trained: list[float] = trained) -> None:
            outputs, truth = stage.offset + stage.prediction, stage.targets + stage.offset
            trained.append(100 * float((outputs.argmax(dim=1) == truth.argmax(dim=1)).float().mean()))

        began = time.perf_counter()
        stack.fit(fitted.images, one_hot(fitted.labels, len(fitted.classes)), on_layer=note)
        seconds = time.perf_counter() - began
        for layer, outputs in enumerate(stack.staged_predict(held_out.images)):
            right = 100 * float((outputs.argmax(axis=1) == held_out.labels).mean())
            block = stack.blocks_[layer]
            rows.append(
                {
                    "variant": name,
                    "layer": layer + 1,
                    "train_accuracy": round(trained[layer], 2),
                    "held_out_accuracy": round(right, 2),
                    "reg": block.reg,
                    "neurons": block.n_neurons_,
                    "relative_gap": block.result_.relative_gap,
                    "seconds_of_the_stack": round(seconds, 1),
                }
            )
            print(*rows[-1].values(), sep=" | ", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
