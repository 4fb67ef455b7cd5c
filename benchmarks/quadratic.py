"""Quadratic neurons on all photographs: 5x5 patches by their whitened principal directions, 3x3 cells, one layer.

    python benchmarks/quadratic.py --data PATH --held-out 5000

Some images of the training file are set apart and judge the network; the test file isn't read for more than its shape.
Mirror images are trained on and averaged over, but not with --plain. Times are of the processor, and in brackets wall
times, from images in memory to a network with its certificate.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from activations import both, whitened

from cvxcnn import ConvexConvBlock
from cvxcnn.core.threads import coarse_threads
from cvxcnn.data import limit, load_data, one_hot
from cvxcnn.fitting import over

BLOCK = ConvexConvBlock(
    kernel_size=1, padding=0, pool_cells=3, activation="quadratic", penalty="group", intercept=True, dtype="float32",
    solver="streamed", tol=1e-4,
)  # fmt: skip
# Images whose maps are made at once.
AT_ONCE = 500


class Clock:
    """Seconds of the processor and of the wall since the last time it was asked."""

    def __init__(self) -> None:
        self.last = time.process_time(), time.perf_counter()

    def __str__(self) -> str:
        """Return both, and begin again."""
        now = time.process_time(), time.perf_counter()
        spent = [after - before for after, before in zip(now, self.last, strict=True)]
        self.last = now
        return f"{spent[0]:.0f} s ({spent[1]:.0f})"


def main() -> None:
    """Fit, and print what it took and gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit-train", type=int, default=None, help="images, the held-out ones included")
    parser.add_argument("--held-out", type=int, default=5000)
    parser.add_argument("--dims", type=int, default=40)
    parser.add_argument("--shares", type=float, nargs="+", default=[3e-3], help="of reg_max, falling")
    parser.add_argument("--plain", action="store_true", help="without mirror images")
    options = parser.parse_args()
    data, _ = load_data(options.data)
    data = data if options.limit_train is None else limit(data, options.limit_train, 0)
    order = np.random.default_rng(0).permutation(len(data.labels))
    held, own = (data.subset(np.sort(rows)) for rows in np.split(order, [options.held_out]))
    images, others = (torch.from_numpy(part.images).float() for part in (own, held))
    del data
    clock = Clock()
    view = whitened(images, options.dims)
    copies = 1 if options.plain else 2

    def maps(some: torch.Tensor) -> torch.Tensor:
        parts = [view(part if options.plain else both(part)).half() for part in torch.split(some, AT_ONCE)]
        return torch.cat(parts)

    targets = one_hot(np.repeat(own.labels, copies), len(own.classes))
    task = BLOCK.task(maps(images), targets)
    print(f"{len(own.labels)} images, {len(targets)} with copies; projection {clock}", flush=True)
    judging = maps(others)
    str(clock)
    start = None
    with torch.no_grad(), coarse_threads():
        fits = over(task)
        largest = fits.reg_max()
        print(f"{fits.program.design.rows * fits.program.design.n_cells} columns; Gram matrix {clock}", flush=True)
        for share in options.shares:
            found = fits.fit(share * largest, start=start)
            start, seconds = found.result.weights, str(clock)
            patches = task.problem.patches
            outputs = found.neurons.predict(type(patches)(judging, patches.geometry, patches.dtype))
            outputs = outputs.unflatten(0, (-1, copies)).mean(dim=1)
            right = float((outputs.argmax(dim=1).numpy() == held.labels).mean())
            print(
                f"share {share:g}, reg {share * largest:.4g}: solve {seconds}, objective {found.result.objective:.6g}, "
                f"gap {found.certificate.global_gap:.1e} ({found.certificate.kind}), {len(found.neurons)} neurons, "
                f"held out {right:.1%}",
                flush=True,
            )
            str(clock)


if __name__ == "__main__":
    main()
