"""predictions.csv and mistakes.png: what the networks of the last layer say of each test image."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..drawing.style import LABELS
from ..errors import ModelFileError
from ..models.probabilities import nearest_probabilities
from ..persistence.files import ENCODING, read_bytes

__all__ = ["MISTAKES_FILE", "PREDICTIONS_FILE", "Predictions", "read_predictions", "write_mistakes"]

PREDICTIONS_FILE = "predictions.csv"
MISTAKES_FILE = "mistakes.png"
# Test images that are shown.
MOST_MISTAKES = 24


@dataclass(frozen=True, eq=False)
class Predictions:
    """What networks say of test images.

    Attributes
    ----------
    true : array, shape (n,), int64
        Class indices.
    predicted : mapping
        From "convex", and the name of each rival that there is, to class indices (n,).
    confidence : mapping
        From the same to the probabilities (n,) of the predicted classes: those nearest to the outputs.
    """

    true: NDArray[np.int64]
    predicted: Mapping[str, NDArray[np.int64]]
    confidence: Mapping[str, NDArray[np.float64]]

    @classmethod
    def of(cls, true: NDArray[np.int64], outputs: Mapping[str, NDArray[np.float64]]) -> Predictions:
        """Return the predictions of outputs (n, classes), which estimate 0/1 targets.

        Examples
        --------
        >>> found = Predictions.of(np.array([0, 1]), {"convex": np.array([[0.9, 0.1], [0.8, 0.6]])})
        >>> found.predicted["convex"], found.confidence["convex"].round(3), found.mistaken()
        (array([0, 0]), array([0.9, 0.6]), array([1]))
        """
        predicted = {name: values.argmax(axis=1).astype(np.int64) for name, values in outputs.items()}
        chances = {name: nearest_probabilities(np.nan_to_num(values)) for name, values in outputs.items()}
        confidence = {
            name: np.take_along_axis(chances[name], own[:, None], axis=1)[:, 0] for name, own in predicted.items()
        }
        return cls(true, predicted, confidence)

    def mistaken(self) -> NDArray[np.int64]:
        """Return the rows that a network has wrong: first those where the networks differ."""
        wrong = np.array([own != self.true for own in self.predicted.values()]).reshape(-1, len(self.true))
        rows = np.flatnonzero(wrong.any(axis=0))
        return np.asarray(rows[np.argsort(wrong[:, rows].all(axis=0), kind="stable")])

    def confusion(self, method: str, n_classes: int) -> NDArray[np.int64]:
        """Return how many images of each class (rows) are predicted to be of each (columns)."""
        pairs = self.true * n_classes + self.predicted[method]
        return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)

    def write(self, path: Path) -> None:
        """Write a row an image.

        Raises
        ------
        OSError
            If the file can't be written.
        """
        names = list(self.predicted)
        columns = [self.true, *(part[name] for name in names for part in (self.predicted, self.confidence))]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "true", *(f"{name}{end}" for name in names for end in ("", "_confidence"))])
            for row, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
                writer.writerow([row, *values])


def read_predictions(path: Path, n_classes: int) -> Predictions | None:
    """Return the predictions in a file; None if there is none, as in the folders of older versions.

    Raises
    ------
    ModelFileError
        If the file is damaged.
    """
    if not path.exists():
        return None
    content = read_bytes(path)
    try:
        rows = list(csv.DictReader(io.StringIO(content.decode(ENCODING), newline="")))
        names = [name for name in LABELS if rows and name in rows[0]]
        true = np.array([int(row["true"]) for row in rows], dtype=np.int64)
        predicted = {name: np.array([int(row[name]) for row in rows], dtype=np.int64) for name in names}
        confidence = {name: np.array([float(row[f"{name}_confidence"]) for row in rows]) for name in names}
        for labels in (true, *predicted.values()):
            if len(labels) and not (labels.min() >= 0 and labels.max() < n_classes):
                raise ValueError(f"classes must be from 0 to {n_classes - 1}")
        if not all(bool(((chances >= 0) & (chances <= 1 + 1e-9)).all()) for chances in confidence.values()):
            raise ValueError("a confidence must be from 0 to 1")
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ModelFileError(f"{path} is damaged: {type(error).__name__} {error}. Train the run again.") from error
    return Predictions(true, predicted, confidence)


def write_mistakes(path: Path, predictions: Predictions, images: NDArray[np.float64]) -> None:
    """Draw test images that a network has wrong, one below the other in the order of ``mistaken``; nothing for none.

    Parameters
    ----------
    path : Path
        A PNG.
    predictions : Predictions
    images : array, shape (n, C, H, W)
        Test images, in [0, 1]; of several processes, those of the first.

    Raises
    ------
    OSError
        If the file can't be written.
    """
    rows = [row for row in predictions.mistaken()[:MOST_MISTAKES] if row < len(images)]
    if rows:
        shown = images[rows]
        colours = shown if shown.shape[1] == 3 else np.repeat(shown.mean(axis=1, keepdims=True), 3, axis=1)
        pixels = np.round(255 * colours.clip(0, 1).transpose(0, 2, 3, 1)).astype(np.uint8)
        Image.fromarray(pixels.reshape(-1, *pixels.shape[2:])).save(path, "PNG")
