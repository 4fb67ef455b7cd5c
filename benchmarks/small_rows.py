"""Rows of small.py about the solvers: each function measures one problem and a rival, and returns a ``Row``.

    python benchmarks/small_rows.py [ROW ...] [--repeats 3] [--rival]

Seconds are of the processor, medians over the repeats, with one thread; a rival, Clarabel behind cvxpy, runs once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from cvxcnn import ConvexConvBlock
from cvxcnn.arrangements import distinct
from cvxcnn.data import limit, load_data, one_hot
from cvxcnn.models.path import reg_path
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.pricing.options import PricingOptions
from cvxcnn.program import gated_program, relu_program
from cvxcnn.program.program import Program
from cvxcnn.solvers import get_solver


@dataclass(frozen=True)
class Row:
    """What was measured: seconds of each repeat, the largest gap and violation, and a rival's seconds and gap.

    ``seconds`` of a path are divided by those of the last solve from nothing; ``rival`` is None where there is none.
    """

    name: str
    seconds: tuple[float, ...]
    gap: float
    violation: float
    rival: float | None = None
    rival_gap: float | None = None

    def __str__(self) -> str:
        """Say median and range, accuracy, and what a rival needs."""
        low, middle, high = np.percentile(self.seconds, (0, 50, 100))
        text = (
            f"{self.name}: {middle:.3g} ({low:.3g} to {high:.3g}), gap {self.gap:.1e}, violation {self.violation:.0e}"
        )
        return text if self.rival is None else f"{text}; Clarabel {self.rival:.3g} s, gap {self.rival_gap:.1e}"


def planted(n: int, d: int, gates: int, *, cones: bool, seed: int = 0) -> Callable[[], Program]:
    """Return what builds the program of ten planted neurons plus noise, K = 1, at 0.15 of reg_max."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(n, d))
    filters, readout = random.normal(size=(10, d)) / np.sqrt(d), random.normal(size=10)
    outputs = np.maximum(inputs @ filters.T, 0) @ readout
    targets = torch.from_numpy(outputs + 0.1 * outputs.std() * random.normal(size=n))[:, None]
    images, geometry = torch.from_numpy(inputs).view(n, 1, 1, d), PatchGeometry(kernel_size=(1, d))
    vectors = distinct(Patches(images, geometry), torch.from_numpy(random.normal(size=(gates, d)))).vectors
    make = relu_program if cones else gated_program

    def build(reg: float) -> Program:
        return make(Patches(images, geometry), vectors, targets, reg)

    reg = 0.15 * build(1.0).reg_max()
    return lambda: build(reg)


def solved(name: str, build: Callable[[], Program], tol: float, repeats: int, rival: bool) -> Row:
    """Return the row of a program, from images and gates to feasible weights and their certificate."""
    seconds, gaps, violations = [], [], []
    for _ in range(repeats):
        began = time.process_time()
        program = build()
        result = get_solver("auto", program, tol=tol).solve(program)
        seconds.append(time.process_time() - began)
        gaps.append(result.relative_gap)
        violations.append(program.violation(result.weights))
    row = name, tuple(seconds), max(gaps), max(violations)
    if not rival:
        return Row(*row)
    began = time.process_time()
    program = build()
    theirs = get_solver("cvxpy:CLARABEL", program, tol=tol).solve(program)
    return Row(*row, time.process_time() - began, theirs.relative_gap)


def relu(repeats: int = 5, rival: bool = False) -> Row:
    """Eq. 2 with cones, n = 1000, d = 30, P = 100, gap 1e-6."""
    return solved("relu", planted(1000, 30, 100, cones=True), 1e-6, repeats, rival)


def gated(repeats: int = 15, rival: bool = False) -> Row:
    """Gated, n = 1000, d = 30, P = 100, gap 1e-6."""
    return solved("gated", planted(1000, 30, 100, cones=False), 1e-6, repeats, rival)


def gated_large(repeats: int = 3, rival: bool = False) -> Row:
    """Gated, n = 10,000, d = 100, P = 500, gap 1e-5; too large for Clarabel."""
    return solved("gated-large", planted(10_000, 100, 500, cones=False), 1e-5, repeats, rival=False)


def digits(count: int, repeats: int) -> Row:
    """Return the row of the first layer of so many digits over 100 Gaussian gates, group penalty, without a search."""
    train = limit(load_data("digits")[0], count, 0)
    images, targets = np.asarray(train.images, dtype=float), one_hot(train.labels, 10)
    seconds, gaps, violations = [], [], []
    for _ in range(repeats):
        block = ConvexConvBlock(
            gates=100, penalty="group", pooling="mean", pool_cells=2, pricing=PricingOptions(starts=0)
        )
        began = time.process_time()
        block.fit(images, targets)
        seconds.append(time.process_time() - began)
        gaps.append(block.result_.relative_gap)
        violations.append(block.result_.violation)
    return Row(f"group-{count}", tuple(seconds), max(gaps), max(violations))


def group_100(repeats: int = 3, rival: bool = False) -> Row:
    """Eq. 2 of 100 digits, ten outputs, 2x2 cells, 100 gates; Clarabel has no use for so many cones at once."""
    return digits(100, repeats)


def group_1437(repeats: int = 1, rival: bool = False) -> Row:
    """The same of all 1,437 training digits."""
    return digits(1437, repeats)


def path(repeats: int = 3, rival: bool = False, **settings: str) -> Row:
    """A path of 30 points with cones over its last solve from nothing: threes against eights, n = 150, P = 100."""
    train = load_data("digits")[0]
    chosen = np.flatnonzero(np.isin(train.labels, (3, 8)))[:150]
    images, targets = np.asarray(train.images, dtype=float)[chosen], np.where(train.labels[chosen] == 3, 1.0, -1.0)
    block = ConvexConvBlock(gates=100, penalty="group", pricing=PricingOptions(starts=0), **settings)
    ratios, gaps, violations = [], [], []
    for _ in range(repeats):
        began = time.process_time()
        found = reg_path(images, targets, block=block, points=30)
        middle = time.process_time()
        ConvexConvBlock(**{**block.get_params(), "reg": float(found.regs[-1])}).fit(images, targets)
        ratios.append((middle - began) / (time.process_time() - middle))
        gaps.append(float(found.relative_gap.max()))
        violations.append(max(point.result_.violation for point in found.blocks))
    return Row(f"path{'-gated' if settings else ''}, ratio", tuple(ratios), max(gaps), max(violations))


def path_gated(repeats: int = 3, rival: bool = False) -> Row:
    """The same path without cones."""
    return path(repeats, activation="gated_relu")


ROWS: dict[str, Callable[..., Row]] = {
    "group-100": group_100,
    "group-1437": group_1437,
    "relu": relu,
    "gated": gated,
    "gated-large": gated_large,
    "path": path,
    "path-gated": path_gated,
}


def main() -> None:
    """Measure the chosen rows and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--repeats", type=int, help="of each row, in place of its own number")
    parser.add_argument("--rival", action="store_true", help="Clarabel too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.rows or ROWS:
        given = {} if options.repeats is None else {"repeats": options.repeats}
        print(ROWS[name](rival=options.rival, **given), flush=True)


if __name__ == "__main__":
    main()
