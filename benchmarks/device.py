"""Every check of a GPU in one script: the same numbers as on the CPU, and how fast they come.

    python benchmarks/device.py                       # cuda against cpu, at most six minutes
    python benchmarks/device.py --device cpu --quick  # the same code in small, without a card
    python benchmarks/device.py --data PATH           # CIFAR-10, in place of digits that are blown up to 32x32 pixels

Each line is one piece of work, done on both devices from the same numbers (whole blocks on plain digits): seconds,
operations a second beside those of the device's own matrix product, and how far the results differ (relative). A piece
that fails is a line too, and so is one for which no time was left (--seconds). Each is told as it is done. The exit
code is 1 if one failed, was left out or differs by more than it may. ``--json FILE`` keeps the lines, after each piece.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cvxcnn import ConvexConvBlock, LayerwiseCNN, PricedGates, PricingOptions, nonconvex_objective
from cvxcnn.core.distributed import process_group
from cvxcnn.data import ImageSet, limit, load_data, one_hot
from cvxcnn.models.recipes import blocks_of, recipe
from cvxcnn.patches import Patches, PatchGeometry
from cvxcnn.program import filter_program
from cvxcnn.solvers import get_solver
from cvxcnn.solvers.algebra.gram import GramForm
from cvxcnn.solvers.cost import matmul_rate

log = logging.getLogger("device")
SIDE = 32
# Over fixed gates no bound over all of them is searched for: pricing is a piece of its own.
NO_SEARCH = PricingOptions(starts=0)
# What results may differ by: certified objectives, and numbers that float32 makes.
SAME_OBJECTIVE, SAME_FLOATS = 1e-5, 1e-4


@dataclass
class Line:
    """One piece of work on both devices."""

    name: str
    allowed: float
    seconds: dict[str, float] = field(default_factory=dict)
    gflops: dict[str, float] = field(default_factory=dict)
    difference: float = math.nan
    remark: str = ""
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether both came to the same."""
        return not self.error and self.difference <= self.allowed


@dataclass
class Result:
    """What a piece of work gives: what is compared, the operations it took, and what is to be said of it."""

    value: Tensor
    operations: float = 0.0
    remark: str = ""


@dataclass(frozen=True)
class Scale:
    """How much work a piece has."""

    images: int
    filters: int
    small_images: int
    stack_images: int
    stack_filters: tuple[int, ...]
    layers: int
    rounds: int
    starts: int


FULL = Scale(
    images=5000, filters=256, small_images=400, stack_images=2000, stack_filters=(256, 384), layers=5, rounds=4,
    starts=64,
)  # fmt: skip
QUICK = Scale(
    images=60, filters=8, small_images=40, stack_images=60, stack_filters=(8, 12), layers=2, rounds=2, starts=8
)  # fmt: skip


def large_digits() -> tuple[ImageSet, ImageSet]:
    """Return the digits, blown up to 32 x 32 pixels of three channels with a little noise, so that patches differ."""
    random = np.random.default_rng(0)
    sets = []
    for part in load_data("digits"):
        big = part.images.repeat(SIDE // 8, axis=2).repeat(SIDE // 8, axis=3).repeat(3, axis=1)
        noisy = 0.9 * big + 0.1 * random.random(big.shape)
        sets.append(ImageSet(noisy, part.labels, part.classes, "large digits"))
    return sets[0], sets[1]


def drawn(count: int, numbers: int) -> Tensor:
    """Return unit vectors of Gaussian direction."""
    filters = torch.randn(count, numbers, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return filters / filters.norm(dim=1, keepdim=True)


class Work:
    """The pieces of work, each a method that takes a device."""

    def __init__(self, images: ImageSet, scale: Scale) -> None:
        self.scale = scale
        self.images = limit(images, min(len(images), max(scale.images, scale.stack_images)), 0)
        self.some = limit(load_data("digits")[0], scale.small_images, 0)

    def _patches(self, device: str, dtype: torch.dtype = torch.float32) -> Patches:
        geometry = PatchGeometry(kernel_size=(5, 5), padding=(2, 2), pooling="mean", pool_cells=3, bias=True)
        images = torch.from_numpy(self.images.images[: self.scale.images]).to(device, dtype)
        return Patches(images, geometry)

    def _filters(self, patches: Patches) -> Tensor:
        return drawn(self.scale.filters, patches.dim).to(patches.images)

    def unfold(self, device: str) -> Result:
        """Unfold patches."""
        return Result(self._patches(device).subset(slice(0, self.scale.images // 5)).unfold())

    def features(self, device: str) -> Result:
        """Return pooled responses of filters."""
        patches = self._patches(device)
        found = patches.relu_features(self._filters(patches))
        places = len(patches.images) * patches.n_patches
        return Result(found, 2.0 * places * patches.dim * self.scale.filters)

    def _program(self, device: str) -> Any:
        patches = self._patches(device)
        targets = one_hot(self.images.labels[: self.scale.images], len(self.images.classes)).to(patches.images)
        program = filter_program(patches, self._filters(patches), targets, 1.0, intercept=True)
        return program

    def gram(self, device: str) -> Result:
        """Accumulate the Gram matrix of the features over parts of the images."""
        program = self._program(device)
        form = GramForm.of(program)
        columns = len(form.gram)
        n, patches = self.scale.images, self._patches(device)
        operations = 1.0 * n * columns**2 + 2.0 * n * patches.n_patches * patches.dim * self.scale.filters
        return Result(form.gram, operations, f"{columns} columns")

    def streamed(self, device: str) -> Result:
        """Solve the group lasso on the Gram form, judged in float64."""
        program = self._program(device)
        program = replace(program, reg=1e-2 * program.reg_max())
        found = get_solver("streamed", program, tol=1e-4).solve(program)
        return Result(torch.tensor([found.objective]), remark=f"gap {found.relative_gap:.0e}")

    def _block(self, device: str, **settings: Any) -> Result:
        targets = one_hot(self.some.labels, len(self.some.classes))
        block = ConvexConvBlock(device=device, tol=1e-8, pricing=NO_SEARCH, **settings)
        block.fit(self.some.images, targets)
        value = nonconvex_objective(block.to_torch().cpu(), self.some.images, targets, reg=block.reg_)
        error = abs(value - block.result_.objective) / value
        if error > SAME_OBJECTIVE:
            raise ArithmeticError(f"Eq. 1 of the exported network is {error:.0e} from the objective")
        return Result(
            torch.tensor([block.result_.objective]), remark=f"gap {block.result_.relative_gap:.0e}, Eq. 1 {error:.0e}"
        )

    def working_set(self, device: str) -> Result:
        """Solve over fixed filters."""
        return self._block(device, kernel_size=3, padding=1, gates=2 * self.scale.filters)

    def gated(self, device: str) -> Result:
        """Solve a gated program."""
        settings = {"activation": "gated_relu", "penalty": "group", "solver": "working_set"}
        targets = one_hot(self.some.labels, len(self.some.classes))
        count = self.scale.filters // 2
        block = ConvexConvBlock(device=device, tol=1e-8, gates=count, pricing=NO_SEARCH, **settings)
        block.fit(self.some.images, targets)
        return Result(torch.tensor([block.result_.objective]), remark=f"gap {block.result_.relative_gap:.0e}")

    def quadratic(self, device: str) -> Result:
        """Solve quadratic neurons, with a proof."""
        targets = one_hot(self.some.labels, len(self.some.classes))
        block = ConvexConvBlock(device=device, activation="quadratic", penalty="group", tol=1e-7)
        block.fit(self.some.images, targets)
        return Result(torch.tensor([block.result_.objective]), remark=block.certificate_.kind)

    def pricing(self, device: str) -> Result:
        """Price filters: other roundings find other filters, so bounds are compared with the other's objective."""
        block = ConvexConvBlock(
            device=device, gates=PricedGates(max_rounds=self.scale.rounds, starts=self.scale.starts, gap=1e-3)
        )
        block.fit(self.some.images, one_hot(self.some.labels, len(self.some.classes)))
        found = block.certificate_
        return Result(torch.tensor([found.objective]), remark=f"bound {found.global_bound:.6g}")

    def stack(self, device: str) -> Result:
        """Train the layers of the large recipe."""
        rows = self.images.subset(np.arange(min(self.scale.stack_images, len(self.images))))
        values = recipe("small", rows.image_shape, len(rows))
        blocks = blocks_of(
            values["kernel_size"], values["padding"], [f"patches:{n}" for n in self.scale.stack_filters],
            self.scale.layers, pool_cells=values["pool_cells"], tol=values["tol"], dtype=values["dtype"],
            intercept=values["intercept"], device=device, pricing=NO_SEARCH,
        )  # fmt: skip
        stack = LayerwiseCNN(
            layers=self.scale.layers, block=blocks, residual=True, mirror=False,
            **{name: values[name] for name in ("project", "hand_on", "half_maps", "downsample", "reg_fraction")},
        )  # fmt: skip
        stack.fit(rows.images, one_hot(rows.labels, len(rows.classes)))
        objectives = [block.result_.objective for block in stack.blocks_]
        gaps = max(block.result_.relative_gap for block in stack.blocks_)
        # Later layers see the roundings of those before, so the first one is compared.
        return Result(torch.tensor(objectives[:1]), remark=f"{len(objectives)} layers, largest gap {gaps:.0e}")

    def processes(self, device: str) -> Result:
        """Train two layers in a group of one process: NCCL on a GPU, gloo elsewhere."""
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        store = dist.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            with process_group(device):
                settings = {"activation": "gated_relu", "penalty": "group", "gates": self.scale.filters // 4}
                block = ConvexConvBlock(device=device, tol=1e-7, pricing=NO_SEARCH, **settings)
                stack = LayerwiseCNN(layers=2, block=block, downsample=2)
                stack.fit(self.some.images, one_hot(self.some.labels, len(self.some.classes)))
        finally:
            dist.destroy_process_group()
        return Result(torch.tensor([block.result_.objective for block in stack.blocks_]), remark=backend)


PIECES: dict[str, float] = {
    "unfold": SAME_FLOATS,
    "features": SAME_FLOATS,
    "gram": SAME_FLOATS,
    "streamed": SAME_FLOATS,
    "working_set": SAME_OBJECTIVE,
    "gated": SAME_OBJECTIVE,
    "quadratic": SAME_OBJECTIVE,
    "stack": 1e-3,
    "processes": SAME_OBJECTIVE,
    "pricing": 1e-2,
}


def timed(work: Callable[[str], Result], device: str) -> tuple[Result, float]:
    """Return what a piece of work gives, and its seconds."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    began = time.perf_counter()
    result = work(device)
    wait()
    return result, time.perf_counter() - began


def compare(name: str, allowed: float, work: Callable[[str], Result], device: str) -> Line:
    """Do a piece of work on the CPU and on a device, and compare."""
    line, found = Line(name, allowed), {}
    try:
        for key, where in (("cpu", "cpu"), ("device", device)):
            found[key], line.seconds[key] = timed(work, where)
            if found[key].operations:
                line.gflops[key] = found[key].operations / line.seconds[key] / 1e9
        ours, theirs = (found[key].value.detach().cpu().double() for key in ("device", "cpu"))
        line.difference = float((ours - theirs).norm() / theirs.norm())
        line.remark = found["device"].remark
    # Whatever one piece raises is its own line, and the others go on.
    except Exception as error:
        log.exception("%s", name)
        line.error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return line


def table_of(lines: list[Line], device: str) -> Table:
    """Return the lines as a table."""
    table = Table("work", "cpu s", f"{device} s", "ratio", "cpu Gflop/s", f"{device} Gflop/s", "difference", "result")
    for line in lines:
        seconds = both_seconds(line)
        rates = [f"{line.gflops[key]:.0f}" if key in line.gflops else "" for key in ("cpu", "device")]
        table.add_row(
            line.name, f"{seconds[0]:.2f}", f"{seconds[1]:.2f}", f"{seconds[0] / seconds[1]:.1f}", *rates,
            f"{line.difference:.0e}", verdict(line),
        )  # fmt: skip
    return table


def both_seconds(line: Line) -> list[float]:
    """Return the seconds on the CPU and on the device."""
    return [line.seconds.get(key, math.nan) for key in ("cpu", "device")]


def verdict(line: Line) -> str:
    """Return what came of a piece."""
    return line.error or ("" if line.passed else "DIFFERS  ") + line.remark


def said_of(line: Line) -> str:
    """Return a line as it is told when it is done."""
    cpu, device = both_seconds(line)
    return f"{line.name}: {cpu:.2f} s on the CPU, {device:.2f} s, difference {line.difference:.0e}  {verdict(line)}"


def main() -> int:
    """Do all pieces of work, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", help="images to use, as of cvxcnn train")
    parser.add_argument("--quick", action="store_true", help="little of everything")
    parser.add_argument("--only", nargs="+", choices=sorted(PIECES), help="some of the pieces")
    parser.add_argument("--seconds", type=float, default=360.0, help="begin no further piece after so long")
    parser.add_argument("--json", type=Path, help="where to keep the lines")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no GPU is there; --device cpu --quick runs the same code without one")
    train, _ = load_data(options.data) if options.data else large_digits()
    work = Work(train, QUICK if options.quick else FULL)
    names = {"cpu": platform.processor() or platform.machine(), "device": options.device}
    if options.device.startswith("cuda"):
        names["device"] = torch.cuda.get_device_name(options.device)
    rates = {
        f"{device} {dtype}": matmul_rate(device, dtype) / 1e9
        for device in {"cpu": None, options.device: None}
        for dtype in (torch.float32, torch.float64)
    }
    console = Console(width=150)
    console.print(f"{names}, torch {torch.__version__}; matrix products, Gflop/s: {rates}")
    lines, began = [], time.perf_counter()
    for name, allowed in PIECES.items():
        if options.only and name not in options.only:
            continue
        late = time.perf_counter() - began > options.seconds
        lines.append(
            Line(name, allowed, error="no time was left")
            if late
            else compare(name, allowed, getattr(work, name), options.device)
        )
        console.print(said_of(lines[-1]))
        if options.json:
            kept = {"devices": names, "matmul_gflops": rates, "lines": [asdict(line) for line in lines]}
            options.json.write_text(json.dumps(kept, indent=1))
    console.print(table_of(lines, options.device))
    return 0 if all(line.passed for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
