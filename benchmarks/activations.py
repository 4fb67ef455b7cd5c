"""Kinds of networks of one block on the digits: reg chosen on a validation split, then fitted to all training images.

A kind without a convex program here (a pooling that isn't there, say) is left out with its reason. The test images are
looked at once, at the reg that was chosen.

    python benchmarks/activations.py
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvxcnn import CircularCNN, ConvexConvBlock, LayerwiseCNN
from cvxcnn.data import ImageSet, load_data, one_hot, split
from cvxcnn.errors import InputError
from cvxcnn.models.block import DEFAULT_SEARCH

# Names of the table, and the settings of their blocks; None is the circular network of two layers.
KINDS: dict[str, dict[str, Any] | None] = {
    "ReLU": {"activation": "relu"},
    "ReLU, max pooling": {"activation": "relu", "pooling": "max"},
    "quadratic": {"activation": "quadratic", "penalty": "group"},
    "linear": {"activation": "linear"},
    "circular": None,
}


def fitted(settings: dict[str, Any] | None, data: ImageSet, rows: NDArray[np.int64], share: float) -> tuple[Any, Any]:
    """Return what predicts, and its certificate, fitted to some images at a share of reg_max."""
    images, targets = data.images[rows], one_hot(data.labels[rows], len(data.classes))
    if settings is None:
        model = CircularCNN(tol=1e-4)
        model.set_params(reg=share * model.reg_max(images, targets)).fit(images, targets)
        return model, model.certificate_
    block = ConvexConvBlock(pricing=DEFAULT_SEARCH, tol=1e-4, **settings)
    stack = LayerwiseCNN(layers=1, block=block, reg_fraction=share).fit(images, targets)
    return stack, stack.blocks_[0].certificate_


def right(model: Any, images: Any, labels: NDArray[np.int64]) -> int:
    """Return how many images are predicted right."""
    return int((np.asarray(model.predict(images)).argmax(axis=1) == labels).sum())


def row(name: str, shares: list[float], seed: int) -> str:
    """Return a line of the table."""
    settings = KINDS[name]
    train, test = load_data("digits")
    kept, held_out = split(train.labels, 0.2, seed)
    counts = {}
    for share in shares:
        model, _ = fitted(settings, train, kept, share)
        counts[share] = right(model, train.images[held_out], train.labels[held_out])
    chosen = max(shares, key=lambda share: (counts[share], share))
    began = time.perf_counter()
    model, certificate = fitted(settings, train, np.arange(len(train.labels)), chosen)
    seconds = time.perf_counter() - began
    accuracy = right(model, test.images, test.labels) / len(test.labels)
    return (
        f"| {name} | {chosen:g} | {counts[chosen]} of {len(held_out)} | {accuracy:.1%} | "
        f"{certificate.global_gap:.1e} ({certificate.kind}) | {seconds:.1f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.03, 0.01, 0.003, 0.001, 0.0003])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| network | share of reg_max | validation | test | gap to the bound over all | seconds |")
    print("|---|---|---|---|---|---|")
    for name in options.kinds:
        try:
            print(row(name, options.shares, options.seed), flush=True)
        except InputError as error:
            print(f"| {name} | left out: {error} |", flush=True)


if __name__ == "__main__":
    main()
