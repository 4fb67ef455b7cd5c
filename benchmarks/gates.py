"""Compare the ways to choose gates, on validation images and by the objective they reach.

For each kind of gates and each number of them: the gated program (group penalty) and the dense ReLU program, solved
for a few reg; the best validation accuracy of these, and the objective at one reg that is the same for all kinds.
Validation images are split off the training images; test images are not looked at.

    python benchmarks/gates.py                    # digits; about two minutes on two cores
    python benchmarks/gates.py --data cifar10     # or a path that cvxcnn.data.load_data reads; about five minutes

Writes benchmarks/outputs/gates-<data>.csv and benchmarks/figures/gates-<data>.png.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cvxcnn.arrangements import GaussianGates, GradientGates, PatchGates, TrainedGates, resolve
from cvxcnn.data import limit, load_data, one_hot, split
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.penalties import DensePenalty, GroupPenalty
from cvxcnn.pricing.filter_master import FilterMaster
from cvxcnn.pricing.gate_master import GateMaster
from cvxcnn.pricing.options import PricingOptions
from cvxcnn.pricing.solve import solve_priced
from cvxcnn.program import Program, filter_program, gated_program
from cvxcnn.program.problem import Problem
from cvxcnn.solvers import get_solver

HERE = Path(__file__).parent
# Shares of the reg_max of a reference, 64 patch gates; objectives are compared at the middle one.
FRACTIONS = (0.1, 0.03, 0.01, 0.003)
COMPARED = 0.03
REFERENCE = 64
TOL = 3e-3


@dataclass(frozen=True)
class Case:
    """How patches are cut, to how many directions they are restricted, how many gates, and the seconds of pricing."""

    geometry: PatchGeometry
    dims: int
    counts: tuple[int, ...]
    seconds: float


def cut(kernel_size: int, stride: int = 1) -> PatchGeometry:
    """Return patches around every ``stride``-th pixel, pooled into 2 x 2 cells."""
    return PatchGeometry(kernel_size, stride, kernel_size // 2, pooling="mean", pool_cells=2, bias=True)


# A gated program has as many numbers for a gate as a patch has, in each cell: on images it gets smaller patches.
CASES = {
    ("digits", "gated"): Case(cut(3), dims=6, counts=(5, 10, 20), seconds=10),
    ("digits", "dense"): Case(cut(3), dims=6, counts=(10, 20, 40, 80), seconds=10),
    ("cifar10", "gated"): Case(cut(3, 2), dims=12, counts=(5, 10), seconds=20),
    ("cifar10", "dense"): Case(cut(5, 2), dims=30, counts=(25, 50, 100), seconds=20),
}
TRAIN = {"digits": 1000, "cifar10": 2500}


@dataclass(frozen=True)
class Data:
    """Patches, labels and targets of the training images, and of those held out."""

    patches: Patches
    targets: Tensor
    held_out: Patches
    labels: Tensor


def load(source: str, geometry: PatchGeometry, size: int, seed: int) -> Data:
    """Return standardised images: ``size`` to train on, and the others, no more than that, held out."""
    train, _ = load_data(source)
    if len(train) > 2 * size:
        train = limit(train, 2 * size, seed)
    fitted, held_out = split(train.labels, 1 - size / len(train), seed)
    images = torch.from_numpy(np.asarray(train.images)).float()
    mean, spread = images[fitted].mean((0, 2, 3), keepdim=True), images[fitted].std((0, 2, 3), keepdim=True)
    images = (images - mean) / spread
    labels = torch.from_numpy(np.asarray(train.labels))
    targets = torch.as_tensor(one_hot(train.labels[fitted], len(train.classes))).float()
    return Data(Patches(images[fitted], geometry), targets, Patches(images[held_out], geometry), labels[held_out])


def program_of(kind: str, data: Data, gates: Tensor, reg: float = 1.0) -> Program:
    """Return the program over these gates."""
    if kind == "gated":
        return gated_program(data.patches, gates, data.targets, reg, penalty=GroupPenalty(), intercept=True)
    filters = F.normalize(gates, dim=1)
    return filter_program(data.patches, filters, data.targets, reg, penalty=DensePenalty(), intercept=True)


def choices(kind: str, case: Case, data: Data, reg: float, seed: int) -> Iterator[tuple[str, int, Tensor, float]]:
    """Yield (name, number of gates, gates, seconds) of each way to choose."""
    patches = PatchGates()
    for count in case.counts:
        for name, sampler in {
            "gaussian": GaussianGates(count),
            "patches": replace(patches, count=count),
            f"patches, {case.dims} directions": replace(patches, count=count, dims=case.dims),
            "gradient": GradientGates(count),
            "trained": TrainedGates(count),
        }.items():
            began = time.perf_counter()
            gates = resolve(sampler, data.patches, seed, data.targets).vectors
            yield name, count, gates, time.perf_counter() - began
    master, penalty = (GateMaster, GroupPenalty()) if kind == "gated" else (FilterMaster, DensePenalty())
    solution = solve_priced(
        Problem(data.patches, data.targets, reg, penalty, intercept=True), master, tol=TOL,
        generator=torch.Generator().manual_seed(seed), options=PricingOptions(time_limit=case.seconds, prove_up_to=0),
    )  # fmt: skip
    order = solution.weights.flatten(1).norm(dim=1).argsort(descending=True)
    for count in case.counts:
        yield "priced", count, solution.filters[order[:count]], solution.seconds


def measure(kind: str, case: Case, data: Data, seed: int) -> Iterator[dict[str, Any]]:
    """Yield one row for each choice of gates."""
    reference = program_of(kind, data, resolve(PatchGates(REFERENCE), data.patches, 12345).vectors).reg_max()
    for name, count, gates, seconds in choices(kind, case, data, COMPARED * reference, seed):
        began = time.perf_counter()
        program = program_of(kind, data, gates)
        scores, weights = {}, program.zeros()
        for fraction in FRACTIONS:
            program = replace(program, reg=fraction * reference)
            result = get_solver("auto", program, tol=TOL).solve(program, start=weights)
            weights = result.weights
            design = type(program.design)(data.held_out, program.design.vectors)
            intercept = program.intercepts(program.design.predict(weights))
            predicted = (design.predict(weights) + intercept).argmax(dim=1)
            scores[fraction] = float((predicted == data.labels).float().mean())
            if fraction == COMPARED:
                objective, used = result.objective, int(weights.flatten(1).any(dim=1).sum())
        best = max(scores, key=lambda fraction: scores[fraction])
        row = {
            "program": kind, "gates": name, "count": count, "given": len(gates), "seed": seed,
            "accuracy": scores[best], "fraction": best, "objective": objective, "used": used,
            "choice_s": seconds, "solve_s": time.perf_counter() - began,
        }  # fmt: skip
        print(" ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()), flush=True)
        yield row


def averages(rows: list[dict[str, Any]], kind: str) -> dict[str, list[tuple[int, float, float]]]:
    """Return (count, accuracy, objective) of each kind of gates, means over seeds."""
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for row in rows:
        if row["program"] == kind:
            points = found.setdefault(row["gates"], {}).setdefault(row["count"], [])
            points.append((row["accuracy"], row["objective"]))
    return {
        name: [(count, *np.mean(points, axis=0).tolist()) for count, points in sorted(counts.items())]
        for name, counts in found.items()
    }


def draw(rows: list[dict[str, Any]], name: str, path: Path) -> None:
    """Print the means, and draw validation accuracy and objective against the number of gates."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained", sharex="col")
    for (upper, lower), kind in zip(axes.T, ("gated", "dense"), strict=True):
        means = averages(rows, kind)
        for number, (gates, points) in enumerate(means.items()):
            counts, accuracies, objectives = zip(*points, strict=True)
            look = {"marker": "osD^v*"[number % 6], "label": gates, "linewidth": 1.2}
            upper.plot(counts, [100 * accuracy for accuracy in accuracies], **look)
            lower.plot(counts, objectives, **look)
            for count, accuracy, objective in points:
                print(f"{kind:6} {gates:24} {count:4} {100 * accuracy:6.2f} % {objective:10.5g}")
        upper.set(title=f"{name}: {kind} program", ylabel="validation accuracy, best reg (%)")
        label = "Eq. 1 objective" if kind == "dense" else "objective of the gated program"
        lower.set(xlabel="number of gates", ylabel=f"{label}, one reg for all", xscale="log")
        ticks = sorted({count for points in means.values() for count, *_ in points})
        lower.set_xticks(ticks, [str(tick) for tick in ticks])
        lower.minorticks_off()
    axes[0, 0].legend(fontsize="small")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Measure, and write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help='"digits", "cifar10" or a path (default: digits)')
    parser.add_argument("--n-train", type=int, help="training images, and as many held out (default: 1,000 or 2,500)")
    parser.add_argument("--seeds", type=int, default=1, help="repetitions with other gates (default: 1)")
    parser.add_argument("--programs", nargs="+", choices=["gated", "dense"], default=["gated", "dense"])
    options = parser.parse_args()
    name = "digits" if options.data == "digits" else "cifar10"
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for kind in options.programs:
            case = CASES[name, kind]
            data = load(options.data, case.geometry, options.n_train or TRAIN[name], 0)
            for seed in range(options.seeds):
                rows += measure(kind, case, data, seed)
    outputs = HERE / "outputs"
    outputs.mkdir(exist_ok=True)
    with (outputs / f"gates-{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, name, HERE / "figures" / f"gates-{name}.png")


if __name__ == "__main__":
    main()
