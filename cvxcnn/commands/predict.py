"""``cvxcnn predict``, or ``python -m cvxcnn.predict``: images in, labels out."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ..core.checks import is_number
from ..core.text import printable
from ..data.loading import NAMED, is_in_no_parts, load_data
from ..data.readers import READERS, reading
from ..data.readers.unlabelled import array_names, read_images
from ..errors import InputError
from ..models.saving import load_model
from ..models.stack import LayerwiseCNN
from ..persistence.files import write_output
from ..reports.summary import SUMMARY_FILE
from ..runs.explaining import read_summary
from ..runs.settings import resolve_device
from .cli import Parser, integer, one_of, run_command

__all__ = ["load_images", "main", "predict_labels"]

PROGRAM = "python -m cvxcnn.predict"
COLUMNS = ("image", "label", "score")
PARTS = ("test", "train")
# Images that are predicted together.
BATCH = 256

Row = tuple[str, str, float]


def load_images(source: str, part: str | None = None) -> tuple[NDArray[np.float64], list[str]]:
    """Return images (n, C, H, W) in [0, 1] and their names, from a data set or from files without labels.

    Parameters
    ----------
    source : str
        What ``load_data`` takes; or one image, a folder of images, an .npz file with one array or one that is called
        ``images``, or an .npy file.
    part : {"test", "train"}, optional
        Of a data set; None for the test images, and for all that lie in folders of their classes.

    Raises
    ------
    DataError
        If there are no images, or they can't be read.

    Examples
    --------
    >>> images, names = load_images("digits")
    >>> images.shape, names[:2]
    ((360, 1, 8, 8), ['0', '1'])
    """
    found = _load(source, part, None)
    return found.images, found.names


@dataclass(frozen=True, eq=False)
class _Found:
    """Images, their names, and the labels that are known of them: from a data set, or from the folders they are in."""

    images: NDArray[np.float64]
    names: list[str]
    labels: list[str] | None


def _load(source: str, part: str | None, test_fraction: float | None) -> _Found:
    path = Path(os.path.expanduser(source))
    by_class = is_in_no_parts(source)
    if source in NAMED or (_is_data_set(path) and (part is not None or not by_class)):
        train, test = load_data(source, test_fraction=test_fraction if by_class else None)
        chosen = train if part == "train" else test
        labels = [str(chosen.classes[label]) for label in chosen.labels]
        return _Found(chosen.images, [str(row) for row in range(len(chosen))], labels)
    images, names = read_images(path)
    folders = [name.partition("/") for name in names]
    known = by_class and all(slash for _, slash, _ in folders)
    return _Found(images, names, [folder for folder, _, _ in folders] if known else None)


def _load_all(sources: Sequence[str], part: str | None, test_fraction: float | None) -> _Found:
    """Return the images of all sources in one array; of several, each is named with its source."""
    found = [_load(source, part, test_fraction) for source in sources]
    if len(found) == 1:
        return found[0]
    for source, other in zip(sources, found, strict=True):
        if other.images.shape[2:] != found[0].images.shape[2:]:
            (height, width), (h, w) = found[0].images.shape[2:], other.images.shape[2:]
            raise InputError(
                f"The images must have one size: {source} has {h} x {w} pixels, {sources[0]} has {height} x {width}. "
                "Resize or crop them to one size, or predict them apart."
            )
    channels = {other.images.shape[1] for other in found}
    # Grey images among those in colour become colour, as in a folder.
    images = [
        np.repeat(other.images, 3, axis=1) if channels == {1, 3} and other.images.shape[1] == 1 else other.images
        for other in found
    ]
    if len({part.shape[1] for part in images}) > 1:
        raise InputError(f"The images must have as many channels; they have {sorted(channels)}. Predict them apart.")
    names = [
        source if name == Path(source).name and len(other.names) == 1 else f"{source.rstrip('/')}/{name}"
        for source, other in zip(sources, found, strict=True)
        for name in other.names
    ]
    labels: list[str] | None = []
    for other in found:
        labels = None if labels is None or other.labels is None else labels + other.labels
    return _Found(np.concatenate(images), names, labels)


def _is_data_set(path: Path) -> bool:
    with reading(path, "Check the path and its permissions."):
        if path.is_file():
            return "x_test" in array_names(path) and "y_test" in array_names(path)
        return any(reader.recognises(path) for reader in READERS)


def _test_fraction(folder: str) -> float | None:
    """Return the share of the images that a run tested on; None where its data set has test images, or none is told."""
    path = Path(folder) / SUMMARY_FILE
    share = read_summary(Path(folder))["settings"].get("test_fraction") if path.is_file() else None
    return share if is_number(share, above=0, below=1) else None


def predict_labels(
    model: LayerwiseCNN, images: NDArray[np.float64], names: Sequence[str], layer: int | None = None, shift: int = 0
) -> Iterator[Row]:
    """Yield the name of each image, its label, and the output for that label.

    Parameters
    ----------
    model : LayerwiseCNN
        A classifier, from ``load_model``: with an output a class.
    images : array, shape (n, C, H, W)
    names : sequence of str, length n
    layer : int, optional
        Whose outputs are taken, from 1; None for the last one.
    shift : int
        Outputs are the mean over each image and copies that are shifted by so many pixels; 0 for none.

    Raises
    ------
    InputError
        If there is no such layer, the model is no classifier, or images have another shape than those it was fitted
        on.
    """
    count = len(model.blocks_)
    layer = count if layer is None else layer
    if not 1 <= layer <= count:
        raise InputError(f"layer must be between 1 and {count}, the layers of the run; got {layer}.")
    outputs = model.blocks_[layer - 1].n_outputs_
    if outputs < 2:
        raise InputError("the model has one output, so it has no classes. Use load_model(...).predict for its numbers.")
    _check_shape(images.shape[1:], tuple(model.image_shape_))
    classes = [str(name) for name in getattr(model, "extra_", {}).get("classes", range(outputs))]
    for start in range(0, len(images), BATCH):
        scores = model.predict(images[start : start + BATCH], layer - 1, shift=shift)
        for name, row in zip(names[start : start + BATCH], scores, strict=True):
            best = int(row.argmax())
            yield name, classes[best], float(row[best])


def _check_shape(given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if given == expected:
        return
    channels, height, width = expected
    remedies = [f"Resize or crop them to {height} x {width} pixels."] if given[1:] != expected[1:] else []
    if given[0] != channels:
        known = {1: "Save them in grey.", 3: "Save them in colour."}
        remedies.append(known.get(channels, f"Give {channels} channels."))
    raise InputError(
        f"The images have the shape {given} (channels, height, width), and the network was trained on {expected}. "
        f"{' '.join(remedies)}"
    )


def build_parser(prog: str = PROGRAM) -> Parser:
    """Return the command's parser."""
    parser = Parser(
        prog,
        "Predict the labels of images by the network of a finished run, as CSV: the image's name or index, its label, "
        "and the score, the network's output for that label. Training drives it to 1 for the true class and to 0 for "
        "the others; it is no probability.",
    )
    parser.add_argument("folder", metavar="RUN", help="folder of a finished run")
    parser.add_argument(
        "images", metavar="IMAGES", nargs="+",
        help="images, folders of images or of classes, .npz or .npy files; or data sets, as for train --data",
    )  # fmt: skip
    options = parser.add_argument_group("prediction")
    options.add_argument("--layer", metavar="J", type=integer(1), help="whose outputs are taken (default: last)")
    options.add_argument(
        "--shift", metavar="PIXELS", type=integer(0), default=0,
        help="outputs are the mean over each image and four copies that are shifted by so many pixels: five times the "
        "work, and often a little better (default: 0, none)",
    )  # fmt: skip
    options.add_argument(
        "--part", metavar="|".join(PARTS), type=one_of(*PARTS),
        help="images of a data set, split as for training (default: test; of folders of classes alone, all images)",
    )  # fmt: skip
    options.add_argument(
        "--output",
        metavar="FILE",
        help="CSV file, written over if it is there; or a pipe; - for standard output (default)",
    )
    other = parser.add_argument_group("machine and messages")
    parser.add_device(other)
    parser.add_messages(other)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROGRAM) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; None for those of the process.
    prog : str
        What was typed.

    Returns
    -------
    int
        Exit code: 0; 1 for images that can't be read; 2 for wrong usage, images of another shape, or a folder that
        isn't a finished run's; 130 for Ctrl-C and 143 for SIGTERM.
    """

    def work(options: dict[str, Any], console: Console) -> None:
        model = load_model(options["folder"], device=resolve_device(options["device"]))
        part, output = options.get("part"), options.get("output", "-")
        given = _load_all(options["images"], part, None if part is None else _test_fraction(options["folder"]))
        table = io.StringIO(newline="")
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        found = []
        for name, label, score in predict_labels(
            model, given.images, given.names, options.get("layer"), options["shift"]
        ):
            writer.writerow([printable(name), printable(label), f"{score:.6g}"])
            found.append(label)
        _write(table.getvalue(), output)
        if output != "-":
            line = f"{len(found)} images, labels in {output}{_agreement(found, given.labels, model)}"
            console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    return run_command(build_parser(prog), argv, work, what="the labels", results_on_stdout=True)


def _agreement(found: Sequence[str], known: Sequence[str] | None, model: LayerwiseCNN) -> str:
    """Return at how many images a label is the one that is known, in words; nothing for folders that are no classes."""
    if known is None or not set(known) <= set(map(str, getattr(model, "extra_", {}).get("classes", ()))):
        return ""
    equal = sum(one == other for one, other in zip(found, known, strict=True))
    return f", {100 * equal / len(found):.2f} % as in the data set"


def _write(text: str, target: str) -> None:
    if target != "-":
        write_output(Path(os.path.expanduser(target)), text.encode())
        return
    # A console that can't show a character of a file's name gets its escape.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()
