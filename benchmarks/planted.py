"""Generalisation without a test set: fits of planted Gaussian data, with their exact error, by the number of images.

Images are Gaussian, targets those of a filter whose responses on four patches are added and subtracted, with noise. For
such images the expected squared error of any trained block is known in closed form (``theory.gaussian_risk``). Three
trainings of the same Eq. 1 are compared: the convex program, Adam, and two phases; and Adam with one neuron, as many
as the teacher has, which finds the teacher or a spurious minimum. Shares are of E f*^2: a network of zeros has 1.

    python benchmarks/planted.py
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cvxcnn import ConvexConvBlock
from cvxcnn.drawing.style import COLOURS, LABELS, MARKERS, new_figure, save_png, tidy
from cvxcnn.ordinary import train_baseline
from cvxcnn.patches import Patches
from cvxcnn.theory import gaussian_risk, planted_gaussian

HERE = Path(__file__).parent
FIGURE = HERE.parent / "docs" / "images" / "planted.png"

TEACHER, READOUT = np.array([1.0, 0.5, -0.5, 0.25, -1.0, 0.75]), np.array([1.0, -1.0, 1.0, -1.0])
NOISE = 0.3  # of the root of E f*^2
# Neurons of each training that has to be told, and what it is called.
WIDTHS = {"adam": 100, "two-phase": 100, "adam, one neuron": 1}
METHODS = ("convex", *WIDTHS)
LABEL = {**LABELS, "adam, one neuron": "Adam, one neuron"}
COLOUR = {**COLOURS, "adam, one neuron": COLOURS["sgd"]}
MARKER = {**MARKERS, "adam, one neuron": MARKERS["sgd"]}


def size() -> float:
    """Return E f*^2."""
    return gaussian_risk(TEACHER[None], READOUT[None], TEACHER[None], 0 * READOUT[None])


def risk(filters: Tensor, readout: Tensor) -> float:
    """Return E (f - f*)^2 of a block with a cell a patch, as a share of E f*^2."""
    return gaussian_risk(filters, readout[:, :, 0], TEACHER[None], READOUT[None]) / size()


def measure(n: int, seed: int, fraction: float) -> list[dict[str, Any]]:
    """Return a row for each training of n images."""
    noise = NOISE * size() ** 0.5
    images, targets = planted_gaussian(n, TEACHER, len(READOUT), readout=READOUT, noise=noise, random_state=seed)
    block = ConvexConvBlock(
        kernel_size=(1, len(TEACHER)), stride=(1, len(TEACHER)), padding=0, bias=False, pooling="sum", pool_cells=2,
        random_state=seed,
    )  # fmt: skip
    block.set_params(reg=fraction * block.reg_max(images, targets)).fit(images, targets)
    bound = block.certificate_.global_bound
    patches = Patches(images, block.geometry_)
    fits = {"convex": (block.neurons_.filters, block.neurons_.readout, block.result_.objective, block.result_.seconds)}
    for method, width in WIDTHS.items():
        optimizer = method.split(",")[0]
        result = train_baseline(patches, targets[:, None], block.reg_, width, optimizer=optimizer, seed=seed)
        fits[method] = (result.filters, result.readout, result.objective, result.seconds)
    return [
        {
            "n": n, "seed": seed, "method": method, "risk": risk(filters, readout), "objective": objective,
            "above_bound": (objective - bound) / objective, "neurons": int(filters.any(dim=1).sum()),
            "seconds": round(seconds, 2),
        }
        for method, (filters, readout, objective, seconds) in fits.items()
    ]  # fmt: skip


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the exact error and the distance from the bound against the number of images; lines are medians."""
    figure = new_figure(8.0, 3.6)
    left, right = figure.subplots(1, 2)
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        counts = sorted({row["n"] for row in own})
        look: dict[str, Any] = {"color": COLOUR[method], "marker": MARKER[method]}
        for axes, name, scale in ((left, "risk", 1.0), (right, "above_bound", 100.0)):
            axes.scatter([row["n"] for row in own], [scale * row[name] for row in own], s=12, alpha=0.5, **look)
            medians = [scale * float(np.median([row[name] for row in own if row["n"] == n])) for n in counts]
            axes.plot(counts, medians, label=LABEL[method], linewidth=1.2, markersize=6, **look)
    for axes, label in ((left, "E (f - f*)² / E f*², exact"), (right, "above the bound (% of Eq. 1)")):
        axes.set(xscale="log", xlabel="training images", ylabel=label)
        counts = sorted({row["n"] for row in rows})
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.minorticks_off()
        tidy(axes)
    left.set_yscale("log")
    left.legend(frameon=False)
    path.parent.mkdir(exist_ok=True)
    save_png(figure, path)


def main() -> None:
    """Measure, and write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--seeds", type=int, default=3, help="data sets of each size (default: 3)")
    parser.add_argument("--reg-fraction", type=float, default=0.03, help="lambda, of reg_max (default: 0.03)")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for n in options.images:
        for seed in range(options.seeds):
            found = measure(n, seed, options.reg_fraction)
            rows += found
            for row in found:
                print("  ".join(f"{name} {value:.4g}" if name != "method" else value for name, value in row.items()))
    outputs = HERE / "outputs"
    outputs.mkdir(exist_ok=True)
    with (outputs / "planted.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, options.figure)


if __name__ == "__main__":
    main()
