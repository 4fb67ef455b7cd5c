"""Compare ConvexCNNClassifier() with scikit-learn's MLPClassifier(), both as they are shipped.

    python benchmarks/estimators.py                       # digits, and two sets of the size of Olivetti's faces
    python benchmarks/estimators.py --data fashion.npz    # and arrays x_train, y_train, x_test, y_test of a file

Sets that are split here are split three times, stratified, and MLPClassifier has the seed of the split. A file has one
split, on which MLPClassifier is fitted with three seeds; ours has none to give, and is fitted once. Pixels are scaled
to [0, 1]. Printed: mean accuracy on the other images with the least and the largest, the difference image by image
with its 95 % bootstrap interval, and processor seconds of a fit.

``faces`` has 40 classes of ten images of 64 x 64, as Olivetti's: a smooth random picture a class, and of each image a
shift of up to three pixels, another brightness, and noise. ``photographs`` has 400 crops of 64 x 64 of the two
photographs that scikit-learn ships, training ones of their left halves and the others of their right halves.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.base import ClassifierMixin
from sklearn.datasets import load_digits, load_sample_images
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from cvxcnn import ConvexCNNClassifier
from cvxcnn.explain import bootstrap_interval

SPLITS = 3
SIDE = 64

Images = NDArray[np.float64]
Labels = NDArray[np.int64]
Split = tuple[Images, Labels, Images, Labels]


def digits() -> Iterator[Split]:
    """Yield splits of scikit-learn's digits."""
    images, labels = load_digits(return_X_y=True)
    yield from splits(images.reshape(-1, 8, 8) / 16, labels, 1437)


def faces() -> Iterator[Split]:
    """Yield splits of pictures as many and as large as Olivetti's faces."""
    draw = np.random.default_rng(0)
    images, labels = [], np.repeat(np.arange(40), 10)
    for _ in range(40):
        smooth = gaussian_filter(draw.normal(size=(SIDE + 6, SIDE + 6)), 4.0)
        own = 0.5 + 0.15 * smooth / smooth.std()
        for _ in range(10):
            top, left = draw.integers(0, 7, size=2)
            image = own[top : top + SIDE, left : left + SIDE] * draw.uniform(0.7, 1.3)
            images.append(np.clip(image + draw.normal(scale=0.1, size=image.shape), 0.0, 1.0))
    yield from splits(np.array(images), labels, 280)


def photographs() -> Iterator[Split]:
    """Yield crops of two photographs, the training ones of their left halves."""
    pictures = [picture.mean(axis=2) / 255 for picture in load_sample_images().images]
    for seed in range(SPLITS):
        draw = np.random.default_rng(seed)
        parts = []
        for half, count in ((0, 140), (1, 60)):
            images = []
            for picture in pictures:
                height, width = picture.shape
                for _ in range(count):
                    top = draw.integers(0, height - SIDE)
                    left = half * (width // 2) + draw.integers(0, width // 2 - SIDE)
                    images.append(picture[top : top + SIDE, left : left + SIDE])
            parts += [np.array(images), np.repeat([0, 1], count)]
        yield parts[0], parts[1], parts[2], parts[3]


def splits(images: Images, labels: Labels, n_train: int) -> Iterator[Split]:
    """Yield stratified splits."""
    for seed in range(SPLITS):
        train, test, y_train, y_test = train_test_split(
            images, labels, train_size=n_train, stratify=labels, random_state=seed
        )
        yield train, y_train, test, y_test


def stored(path: Path) -> Iterator[Split]:
    """Yield the split of a file, once a seed."""
    with np.load(path) as file:
        train, test = (file[name].astype(np.float64) / 255 for name in ("x_train", "x_test"))
        y_train, y_test = (file[name].astype(np.int64) for name in ("y_train", "y_test"))
    for _ in range(SPLITS):
        yield train, y_train, test, y_test


MAKERS: dict[str, Callable[[int], ClassifierMixin]] = {
    "ConvexCNNClassifier()": lambda seed: ConvexCNNClassifier(),
    "MLPClassifier()": lambda seed: MLPClassifier(random_state=seed),
}


def compare(name: str, parts: Iterable[Split]) -> None:
    """Print how both classifiers do on the splits of a data set."""
    right: dict[str, list[NDArray[np.float64]]] = {maker: [] for maker in MAKERS}
    seconds: dict[str, list[float]] = {maker: [] for maker in MAKERS}
    before, tested = None, []
    for seed, (train, y_train, test, y_test) in enumerate(parts):
        for maker, make in MAKERS.items():
            flat = maker.startswith("MLP")
            if train is before and not flat:
                right[maker].append(right[maker][-1])
                continue
            began = time.process_time()
            with warnings.catch_warnings():
                # As shipped, MLPClassifier ends after 200 passes, whatever its loss does.
                warnings.simplefilter("ignore", ConvergenceWarning)
                model = make(seed).fit(train.reshape(len(train), -1) if flat else train, y_train)
            seconds[maker].append(time.process_time() - began)
            found = model.predict(test.reshape(len(test), -1) if flat else test)
            right[maker].append((found == y_test).astype(np.float64))
        before = train
        tested.append(test)
    for maker, found in right.items():
        shares = [100 * part.mean() for part in found]
        spent = seconds[maker]
        print(
            f"{name:12} {maker:22} {np.mean(shares):6.2f} % ({min(shares):.2f} to {max(shares):.2f}), "
            f"{min(spent):.1f} to {max(spent):.1f} processor s"
        )
    # The same images for several seeds are as many images as one.
    together = np.concatenate if len({id(test) for test in tested}) > 1 else lambda found: np.mean(found, axis=0)
    ours, theirs = (together(found) for found in right.values())
    interval = bootstrap_interval(100 * (ours - theirs), seed=0)
    print(
        f"{name:12} difference {interval.mean:+.2f} points, 95 % between {interval.low:+.2f} and {interval.high:+.2f}",
        flush=True,
    )


def main() -> None:
    """Compare on every data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="NPZ", type=Path, nargs="*", default=[])
    parser.add_argument("--sets", nargs="*", choices=("digits", "faces", "photographs"))
    parser.add_argument("--splits", type=int, choices=range(1, SPLITS + 1), default=SPLITS)
    options = parser.parse_args()
    sets = {"digits": digits, "faces": faces, "photographs": photographs}
    for name in sets if options.sets is None else options.sets:
        compare(name, islice(sets[name](), options.splits))
    for path in options.data:
        compare(path.stem[:12], islice(stored(path), options.splits))


if __name__ == "__main__":
    main()
