"""Choose the command line's default --reg-fraction on a validation split of the training digits.

The rule: of the fractions whose best layer is within one validation image of the best of all, the largest,
because it gives the smallest network. The test images are not loaded.

    python benchmarks/choose_reg.py
"""

from __future__ import annotations

import argparse

import numpy as np

from cvxcnn.data import load_data, one_hot, split
from cvxcnn.runs.settings import Settings, build_stack


def validate(fraction: float, layers: int, seed: int) -> list[int]:
    """Return how many validation images each layer gets right, trained on the other training images."""
    train, _ = load_data("digits")
    fitted, held_out = split(train.labels, 0.2, seed)
    stack = build_stack(Settings(layers=layers, reg_fraction=fraction, seed=seed))
    stack.fit(train.images[fitted], one_hot(train.labels[fitted], len(train.classes)))
    labels = train.labels[held_out]
    return [int(np.sum(p.argmax(axis=1) == labels)) for p in stack.staged_predict(train.images[held_out])]


def main() -> None:
    """Print the validation counts of each fraction, and the choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.003, 0.006, 0.01, 0.02, 0.04])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    best = {}
    for fraction in options.fractions:
        counts = validate(fraction, options.layers, options.seed)
        best[fraction] = max(counts)
        print(f"reg_fraction {fraction:g}: right of 288 validation images, by layer: {counts}", flush=True)
    within = [fraction for fraction, count in best.items() if count >= max(best.values()) - 1]
    print(f"choice: {max(within):g}")


if __name__ == "__main__":
    main()
