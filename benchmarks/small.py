"""Small and middle sizes, where a package is tried first: what each takes, beside what one compares it with.

    python benchmarks/small.py                        # every row and the figure, on otherwise idle cores
    python benchmarks/small.py --rows classifier path
    python benchmarks/small.py --quick                # tiny sizes, a minute: does it all work?

Everything runs with one thread (but for ``busy``, whose subject is threads), ours and the rivals in turn, so that both
meet the same load; medians over the repetitions. "times" is the time of the row's first entry over the entry's own:
above 1 the entry is faster. adelie and pyscnn are compared where they are installed (benchmarks/rivals.txt),
each at the loosest of its tolerances that comes as near to the best objective as our gap. ``--json FILE`` keeps the
table; the figure is docs/images/growth.png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits
from torch import Tensor

from cvxcnn import ConvexCNNClassifier, ConvexConvBlock, PricedGates, PricingOptions, reg_path
from cvxcnn.arrangements import distinct
from cvxcnn.data import one_hot
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.program import Program, gated_program, relu_program
from cvxcnn.solvers import get_solver

FIGURE = Path(__file__).parents[1] / "docs" / "images" / "growth.png"
NO_SEARCH = PricingOptions(starts=0)
# A rival that took so many seconds isn't asked for larger problems.
PATIENCE = 20.0


@dataclass(frozen=True)
class Entry:
    """One piece of work: what it is called, how often it is done, and what is to be said of its result."""

    name: str
    work: Callable[[], str]
    repetitions: int = 5
    wall: bool = False
    """Whether wall time is measured, in place of processor time of this process."""


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    row: str
    name: str
    seconds: float
    times: float
    remark: str


@dataclass(frozen=True)
class Scale:
    """How large the problems are: digits, images of the programs, their entries and gates, and points of a path."""

    few: int = 150
    many: int = 600
    group: tuple[int, ...] = (100, 1437)
    gates: int = 100
    n: int = 1000
    dim: int = 30
    large: tuple[int, int, int] = (10_000, 100, 500)
    points: int = 30
    path: int = 300
    repetitions: int = 5


QUICK = Scale(20, 45, (12,), 5, 40, 3, (60, 4, 8), 3, 20, 1)


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return so many images of digits, (n, 8, 8) in [0, 1], and their labels."""
    found = load_digits()
    return found.images[:count] / 16, found.target[:count]


def targets_of(labels: np.ndarray) -> torch.Tensor:
    """Return one column for each digit."""
    return one_hot(torch.from_numpy(labels), 10)


def classifier(scale: Scale) -> Iterator[Entry]:
    """Yield the first fit of a new user, judged by a thousand other digits."""
    images, labels = digits(scale.few)
    others, theirs = (part[-1000:] for part in digits(1797))
    flat = images.reshape(len(images), -1)

    def convex(**options: Any) -> Callable[[], str]:
        def fit() -> str:
            model = ConvexCNNClassifier(**options).fit(images, labels)
            return f"{model.score(others, theirs):.1%}, gap {model.stack_.blocks_[0].certificate_.global_gap:.1e}"

        return fit

    def rival(make: Callable[[], Any]) -> Callable[[], str]:
        return lambda: f"{make().fit(flat, labels).score(others.reshape(len(others), -1), theirs):.1%}"

    yield Entry("ConvexCNNClassifier()", convex(), scale.repetitions)
    few_gates = ConvexConvBlock(gates=50, pricing=NO_SEARCH)
    yield Entry("ConvexCNNClassifier, 50 gates, no search", convex(block=few_gates), scale.repetitions)
    yield Entry('ConvexCNNClassifier(recipe="small")', convex(recipe="small"), scale.repetitions)
    yield Entry("MLPClassifier(max_iter=1000)", rival(lambda: MLPClassifier(max_iter=1000, random_state=0)))
    yield Entry("LogisticRegression(max_iter=1000)", rival(lambda: LogisticRegression(max_iter=1000)))


def cross_validation(scale: Scale) -> Iterator[Entry]:
    """Yield three folds."""
    images, labels = digits(scale.many)
    flat = images.reshape(len(images), -1)

    folds = StratifiedKFold(3, shuffle=True, random_state=0)  # the file is ordered by who wrote the digits

    def scored(model: Any, shaped: np.ndarray) -> Callable[[], str]:
        return lambda: f"{cross_val_score(model, shaped, labels, cv=folds).mean():.1%}"

    repetitions = min(3, scale.repetitions)
    yield Entry("ConvexCNNClassifier(), 3 folds", scored(ConvexCNNClassifier(), images), repetitions)
    patches = ConvexCNNClassifier(recipe="small")
    yield Entry('ConvexCNNClassifier(recipe="small"), 3 folds', scored(patches, images), repetitions)
    yield Entry("MLPClassifier(), 3 folds", scored(MLPClassifier(random_state=0), flat), repetitions)


def group(scale: Scale) -> Iterator[Entry]:
    """Yield Eq. 2 of ten outputs over fixed gates, each neuron feeding one (cell, output)."""
    for count in scale.group:
        images, labels = digits(count)

        def fit(images: np.ndarray = images, labels: np.ndarray = labels) -> str:
            block = ConvexConvBlock(penalty="group", gates=scale.gates, pricing=NO_SEARCH, random_state=0)
            block.fit(images, targets_of(labels))
            return f"gap {block.certificate_.sampled_gap:.1e}"

        yield Entry(f'penalty="group", {scale.gates} gates, {count} digits', fit, 3 if count < 1000 else 1)


def planted(n: int, dim: int, gates: int, kind: str) -> Callable[[], Program]:
    """Return what builds a fully connected program over Gaussian gates, for ten planted neurons plus noise.

    It is built anew for each solve: what a program keeps for the next one would be a present.
    """
    random = np.random.default_rng(0)
    inputs = random.normal(size=(n, dim))
    outputs = np.maximum(inputs @ random.normal(size=(10, dim)).T / np.sqrt(dim), 0) @ random.normal(size=10)
    targets = torch.from_numpy(outputs + 0.1 * outputs.std() * random.normal(size=n))[:, None]
    images, geometry = torch.from_numpy(inputs).view(n, 1, 1, dim), PatchGeometry(kernel_size=(1, dim))
    drawn = distinct(Patches(images, geometry), torch.from_numpy(random.normal(size=(gates, dim)))).vectors
    build = {"relu": relu_program, "gated": gated_program}[kind]
    reg = 0.15 * build(Patches(images, geometry), drawn, targets, 1.0).reg_max()
    return lambda: build(Patches(images, geometry), drawn, targets, reg)


def solved(build: Callable[[], Program], name: str, tol: float) -> Callable[[], str]:
    """Return the work of solving a program to a gap."""

    def solve() -> str:
        program = build()
        found = get_solver(name, program, tol=tol).solve(program)
        return f"gap {found.relative_gap:.1e}"

    return solve


def shared_calls() -> ModuleType:
    """Return the module that calls the rivals, which those of benchopt share; its package needs benchopt."""
    path = Path(__file__).parent / "programs" / "benchmark_utils" / "rival_calls.py"
    spec = spec_from_file_location("rival_calls", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def with_adelie(program: Program, tol: float) -> Callable[[], Tensor]:
    """Return the work of solving a gated program by adelie, whose matrix of features is given; it returns weights."""
    calls, count = shared_calls(), len(program.design.vectors)
    features = np.asfortranarray(program.columns(torch.arange(count)).flatten(1).numpy())
    targets = np.ascontiguousarray(program.targets[:, 0].numpy())
    shape = program.design.shape(1)
    return lambda: torch.from_numpy(calls.adelie_weights(features, targets, count, program.reg, tol)).reshape(shape)


def with_pyscnn(program: Program, tol: float) -> Callable[[], Tensor]:
    """Return the work of solving a gated program by pyscnn, which computes its patterns; it returns weights."""
    from scnn.solvers import RFISTA

    calls, gates, shape = shared_calls(), program.design.vectors.numpy(), program.design.shape(1)
    inputs, targets = program.design.patches.unfold()[:, 0].numpy(), program.targets[:, 0].numpy()

    def solve() -> Tensor:
        (weights,) = calls.pyscnn_weights(
            "gated", inputs, targets, gates, program.reg, lambda model: RFISTA(model, max_iters=50_000, tol=tol)
        )
        return torch.from_numpy(weights).reshape(shape)

    return solve


# What they are imported as, and the most features that they can hold.
RIVALS = {"adelie": ("adelie", with_adelie, 1 << 27), "pyscnn": ("scnn", with_pyscnn, 1 << 62)}


def rivals(build: Callable[[], Program]) -> dict[str, Callable[[Program, float], Callable[[], Tensor]]]:
    """Return the other solvers of gated programs that are installed, of those that can hold this one."""
    program = build()
    features = len(program.targets) * program.design.vectors.numel()
    return {name: work for name, (module, work, most) in RIVALS.items() if find_spec(module) and features <= most}


def by_rival(
    make: Callable[[Program, float], Callable[[], Tensor]], build: Callable[[], Program], error: float
) -> Callable[[], str]:
    """Return the work of a rival at the loosest of its tolerances that comes so near to the best objective."""
    program = build()
    best = get_solver("auto", program, tol=0.01 * error).solve(program).objective

    def judged(work: Callable[[], Tensor]) -> float:
        return program.objective(work()) / best - 1

    for exponent in range(4, 17):
        work = make(program, 10.0**-exponent)
        began = time.process_time()
        if judged(work) <= error or time.process_time() - began > 2 * PATIENCE:
            break
    return lambda: f"error {judged(work):.1e}"


def gated(scale: Scale) -> Iterator[Entry]:
    """Yield gated programs, of one output and fully connected."""
    for (n, dim, gates), tol in (((scale.n, scale.dim, scale.gates), 1e-6), (scale.large, 1e-5)):
        program = planted(n, dim, gates, "gated")
        yield Entry(f"gated, n = {n}, d = {dim}, P = {gates}", solved(program, "auto", tol), scale.repetitions)
        for name, make in rivals(program).items():
            yield Entry(f"{name}, n = {n}", by_rival(make, program, tol), scale.repetitions)


def relu(scale: Scale) -> Iterator[Entry]:
    """Yield Eq. 2, beside the general conic solver."""
    program = planted(scale.n, scale.dim, scale.gates, "relu")
    yield Entry(
        f"Eq. 2, n = {scale.n}, d = {scale.dim}, P = {scale.gates}", solved(program, "auto", 1e-6), scale.repetitions
    )
    yield Entry("Clarabel", solved(program, "cvxpy:CLARABEL", 1e-4), 1)


def path(scale: Scale) -> Iterator[Entry]:
    """Yield regularisation paths, and the last point of each alone."""
    images, labels = digits(scale.path)
    kinds: dict[str, tuple[dict[str, Any], Any]] = {
        "dense": ({"gates": scale.gates}, targets_of(labels)),
        "gated": ({"gates": scale.gates, "activation": "gated_relu", "penalty": "group"}, (labels % 2) * 2.0 - 1),
        "cones": ({"gates": max(scale.gates // 4, 4), "penalty": "group"}, (labels % 2) * 2.0 - 1),
    }
    for kind, (settings, targets) in kinds.items():
        block = ConvexConvBlock(pricing=NO_SEARCH, random_state=0, **settings)

        def whole(block: ConvexConvBlock = block, targets: Any = targets) -> str:
            found = reg_path(images, targets, block=block, points=scale.points)
            return f"gap {max(point.certificate_.sampled_gap for point in found.blocks):.1e}"

        def last(block: ConvexConvBlock = block, targets: Any = targets) -> str:
            # Without a reg it is a hundredth of reg_max, where the path ends.
            return f"gap {clone(block).fit(images, targets).certificate_.sampled_gap:.1e}"

        yield Entry(f"{kind}: {scale.points} points", whole, 1)
        yield Entry(f"{kind}: the last alone", last, 1)


def nuclear(scale: Scale) -> Iterator[Entry]:
    """Yield a gated network of dense readout over all gates."""
    images, labels = digits(min(scale.few, 20))

    def fit() -> str:
        block = ConvexConvBlock(activation="gated_relu", penalty="nuclear", gates=PricedGates(starts=32, max_rounds=3))
        return f"gap {block.fit(images, targets_of(labels)).certificate_.global_gap:.1e}"

    yield Entry("nuclear, priced gates, 20 digits", fit, min(3, scale.repetitions))


def command(scale: Scale) -> Iterator[Entry]:
    """Yield what is waited for before anything begins."""
    for name, arguments in {
        "cvxcnn --version": ["-m", "cvxcnn", "--version"],
        "import cvxcnn": ["-c", "import cvxcnn"],
        "import torch": ["-c", "import torch"],
    }.items():

        def run(arguments: Sequence[str] = arguments) -> str:
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            return ""

        yield Entry(name, run, scale.repetitions, wall=True)


@contextmanager
def occupied(processes: int) -> Iterator[None]:
    """Other processes that never wait, meanwhile."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def busy(scale: Scale) -> Iterator[Entry]:
    """Yield a fit with a thread for each core, alone and beside as many other processes: at most twice the time."""
    images, labels = digits(scale.many)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def fit() -> str:
        before = torch.get_num_threads()
        torch.set_num_threads(cores)
        try:
            ConvexCNNClassifier().fit(images, labels)
        finally:
            torch.set_num_threads(before)
        return f"{cores} threads"

    def beside() -> str:
        with occupied(cores):
            return fit()

    yield Entry(f"{scale.many} digits, alone", fit, 1, wall=True)
    yield Entry(f"beside {cores} processes that never wait", beside, 1, wall=True)


ROWS: dict[str, Callable[[Scale], Iterator[Entry]]] = {
    work.__name__: work for work in (classifier, cross_validation, group, gated, relu, path, nuclear, command, busy)
}


def measured(name: str, scale: Scale) -> list[Line]:
    """Return the lines of a row: its entries are done in turn, each as often as it asks for."""
    entries = list(ROWS[name](scale))
    seconds: dict[str, list[float]] = {entry.name: [] for entry in entries}
    remarks = {}
    for repetition in range(max(entry.repetitions for entry in entries)):
        for entry in entries:
            if repetition < entry.repetitions:
                clock = time.perf_counter if entry.wall else time.process_time
                began = clock()
                remarks[entry.name] = entry.work()
                seconds[entry.name].append(clock() - began)
    medians = {entry: statistics.median(taken) for entry, taken in seconds.items()}
    first = medians[entries[0].name]
    return [Line(name, entry, taken, first / max(taken, 1e-9), remarks[entry]) for entry, taken in medians.items()]


def growth(scale: Scale) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return the seconds of gated programs by their number of images, and of gates, for ours and for each rival."""
    solvers: dict[str, Callable[[Callable[[], Program]], Callable[[], str]]] = {
        "cvxcnn": lambda build: solved(build, "auto", 1e-6),
        "Clarabel": lambda build: solved(build, "cvxpy:CLARABEL", 1e-6),
        **{
            name: partial(by_rival, make, error=1e-6) for name, (module, make, _) in RIVALS.items() if find_spec(module)
        },
    }
    n, gates = scale.n, scale.gates
    axes: dict[str, list[tuple[int, int, int]]] = {
        "images n": [(n * factor // 4, n * factor // 4, gates) for factor in (1, 2, 4, 8, 16)],
        "gates P": [(gates * factor // 4, n, gates * factor // 4) for factor in (1, 2, 4, 8, 16)],
    }
    found: dict[str, dict[str, list[tuple[int, float]]]] = {axis: {name: [] for name in solvers} for axis in axes}
    for axis, sizes in axes.items():
        for size, images, count in sizes:
            program = planted(images, scale.dim, max(count, 2), "gated")
            for name, solver in solvers.items():
                before = found[axis][name]
                if before and before[-1][1] > PATIENCE:
                    continue
                work = solver(program)
                taken = []
                for _ in range(min(3, scale.repetitions)):
                    began = time.process_time()
                    work()
                    taken.append(time.process_time() - began)
                before.append((size, statistics.median(taken)))
    return found


def draw(found: dict[str, dict[str, list[tuple[int, float]]]], file: Path) -> None:
    """Draw time against size, each solver with the slope of its line."""
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        for axes, (axis, lines) in zip(figure.subplots(1, 2), found.items(), strict=True):
            for marker, (name, points) in zip("os^v", lines.items(), strict=False):
                sizes, seconds = np.array(points).T
                slope = np.polyfit(np.log(sizes), np.log(np.maximum(seconds, 1e-6)), 1)[0] if len(points) > 1 else 0.0
                axes.loglog(sizes, seconds, marker=marker, label=f"{name}, slope {slope:.1f}")
            ticks = sorted({size for points in lines.values() for size, _ in points})
            axes.set_xticks(ticks, [str(size) for size in ticks])
            axes.set_xticks([], minor=True)
            axes.set_xlabel(f"Number of {axis}")
            axes.set_ylabel("Processor time [s]")
            axes.grid(alpha=0.3, which="both")
            axes.legend(loc="upper left")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=150)


def table_of(lines: Sequence[Line]) -> Table:
    """Return the table of all lines."""
    table = Table(title="Small and middle sizes: medians, one thread")
    for column in ("Row", "Work", "Seconds", "Times", "Result"):
        table.add_column(column, justify="right" if column in {"Seconds", "Times"} else "left")
    for line in lines:
        table.add_row(line.row, line.name, f"{line.seconds:.3g}", f"{line.times:.2g}", line.remark)
    return table


def main() -> None:
    """Measure the rows, one after another, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, "growth"], default=[*ROWS, "growth"], metavar="ROW")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once each")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--figure", type=Path, default=FIGURE, metavar="FILE")
    options = parser.parse_args()
    scale = QUICK if options.quick else Scale()
    torch.set_num_threads(1)
    lines: list[Line] = []
    with threadpool_limits(1):
        for name in options.rows:
            if name == "growth":
                draw(growth(scale), options.figure)
            else:
                lines += measured(name, scale)
                Console().print(table_of(lines[-len([line for line in lines if line.row == name]) :]))
    if options.json:
        options.json.write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
