"""The command line: train a stack layer by layer, each layer beside the same network trained the ordinary way.

    python -m cvxcnn.train --layers 3 --data digits
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import torch
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from safetensors.torch import save_file
from torch import Tensor

from . import __version__
from .baseline import BaselineResult, train_baseline
from .block import ConvexConvBlock
from .data import ImageSet, limit, load_data, one_hot
from .errors import CvxcnnError, InputError
from .neurons import Neurons
from .patches import Patches
from .persistence import save_model
from .pricing import PricingOptions
from .program import relative_gap
from .report import plot_accuracy, plot_objective, results_table, write_metrics
from .solvers import SOLVERS
from .solvers import Progress as SolverProgress
from .stack import LayerwiseCNN

__all__ = ["Settings", "main", "pricing_options", "run"]

PROGRAM = "cvxcnn.train"
SUMMARY_FILE = "summary.json"
# Lines of a log that nobody watches: one in this many seconds.
LOG_EVERY = 10.0


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run; the defaults are those of the command line.

    Attributes
    ----------
    layers : int
    data : str
        "digits", "cifar10", or a path that ``load_data`` reads.
    output : str or None
        Folder of the results; None for runs/<data>-<time>.
    limit_train : int or None
        Training images, every class in its share; None for all.
    activation, penalty, gates, solver, reg, tol, kernel_size, padding, pool_cells
        Of every ``ConvexConvBlock``; pooling is the mean, and filters have a bias.
    downsample : sequence of int
        Average pooling after each layer; the last one stands for all further layers.
    baseline : bool
        Whether each layer is also trained the ordinary way, on the same inputs.
    baseline_width : int
        Its neurons, at least; it gets as many as the convex block if that has more.
    baseline_epochs : int
    device : {"auto", "cpu", "cuda"}
        "auto" is the GPU if there is one.
    seed : int
    """

    layers: int = 3
    data: str = "digits"
    output: str | None = None
    limit_train: int | None = None
    activation: str = "relu"
    penalty: str = "dense"
    gates: int | str = "priced"
    solver: str = "auto"
    reg: float = 3.0
    tol: float = 1e-6
    kernel_size: int = 3
    padding: int = 1
    pool_cells: int = 2
    downsample: Sequence[int] = (2, 1)
    baseline: bool = True
    baseline_width: int = 200
    baseline_epochs: int = 350
    device: str = "auto"
    seed: int = 0


def pricing_options(settings: Settings) -> PricingOptions:
    """Return how hard the blocks of a run search for filters or gates."""
    return PricingOptions()


# From settings to a stack.


def build_stack(settings: Settings) -> LayerwiseCNN:
    """Return the unfitted stack of these settings.

    Raises
    ------
    InputError
        If settings are out of their range or don't go together.
    """
    if settings.gates == "priced" and settings.solver != "auto":
        raise InputError(
            f'solver {settings.solver!r} needs fixed gates: add --gates 100, or leave the solver at "auto".'
        )
    block = ConvexConvBlock(
        kernel_size=settings.kernel_size,
        padding=settings.padding,
        pooling="mean",
        pool_cells=settings.pool_cells,
        bias=True,
        activation=settings.activation,
        penalty=settings.penalty,
        reg=settings.reg,
        gates=settings.gates,
        solver=settings.solver,
        tol=settings.tol,
        device=resolve_device(settings.device),
        random_state=settings.seed,
        pricing=pricing_options(settings),
    )
    block._check_parameters()
    stack = LayerwiseCNN(layers=settings.layers, block=block, downsample=tuple(settings.downsample))
    stack._settings()
    stack.pooling_after(0)
    return stack


def resolve_device(name: str) -> str:
    """Return "cuda" or "cpu"; "auto" is the first if there is a GPU.

    Raises
    ------
    InputError
        If there is no such device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f'device must be "auto", "cpu" or "cuda"; got {name!r}.')
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise InputError("device cuda was asked for, but torch finds no GPU. Use auto or cpu.")
    return "cuda" if found and name != "cpu" else "cpu"


def check_maps(stack: LayerwiseCNN, image_shape: tuple[int, int, int]) -> None:
    """Raise InputError if the images are too small for that many layers, before the first is trained."""
    block: Any = stack.block
    geometry = block._check_parameters()
    height, width = image_shape[1:]
    for layer in range(stack.layers):
        if min(height, width) < 1:
            raise InputError(
                f"images of {image_shape[1]} x {image_shape[2]} pixels have no pixels left after {layer} layers. "
                "Use fewer layers, or less downsampling."
            )
        try:
            height, width = geometry.map_shape((height, width))
        except InputError as error:
            raise InputError(f"layer {layer + 1}: {error}") from error
        size = stack.pooling_after(layer)
        height, width = height // size, width // size


def load_sets(settings: Settings) -> tuple[ImageSet, ImageSet]:
    """Return training and test images."""
    train, test = load_data(settings.data)
    if settings.limit_train is not None:
        train = limit(train, settings.limit_train, settings.seed)
    return train, test


# The output folder.


class OutputFolder:
    """A folder that appears when its content is complete, and not before.

    Content is written into ``partial``, a hidden folder beside it, which becomes the folder by ``publish`` and
    is removed on any other way out.

    Parameters
    ----------
    path : str or path

    Raises
    ------
    InputError
        On entering, if the folder holds files already, is a file, or can't be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.partial = Path()
        self._made: list[Path] = []

    def __enter__(self) -> OutputFolder:
        try:
            # Resolved, so that the hidden folder is beside what a link points to.
            resolved = self.path.expanduser().resolve()
            self._check_free(resolved)
            self.partial = resolved.with_name(f".{resolved.name}.partial")
            parents = [parent for parent in self.partial.parents if not parent.exists()]
            for parent in reversed(parents):
                parent.mkdir(exist_ok=True)
                self._made.append(parent)
            self.partial.mkdir()
            self._made.append(self.partial)
        except FileExistsError as error:
            self._remove()
            raise InputError(
                f"{self.partial} is there already: another run writes to {self.path}, or one was killed. "
                "Wait for it, delete that folder, or give another --output."
            ) from error
        except (OSError, ValueError, RuntimeError) as error:
            self._remove()
            if isinstance(error, CvxcnnError):
                raise
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"can't write to {self.path}: {reason}. Give another --output.") from error
        except BaseException:
            self._remove()
            raise
        return self

    def _check_free(self, path: Path) -> None:
        if path.is_dir():
            content = sorted(entry.name for entry in path.iterdir())
            if content:
                shown = SUMMARY_FILE if SUMMARY_FILE in content else content[0]
                raise InputError(f"{self.path} isn't empty: it holds {shown}. Give another --output, or delete it.")
            if not os.access(path, os.W_OK | os.X_OK):
                raise InputError(f"can't write to {self.path}: Permission denied. Give another --output.")
        elif path.exists():
            raise InputError(f"{self.path} is a file. Give another --output.")

    def publish(self) -> None:
        """Make the content appear at ``path``."""
        target = self.path.expanduser().resolve()
        if target.is_dir():
            # The folder itself stays: it may be a mount, or someone's working directory. A summary is a whole run's.
            for entry in sorted(self.partial.iterdir(), key=lambda entry: entry.name == SUMMARY_FILE):
                os.replace(entry, target / entry.name)
            self.partial.rmdir()
        else:
            os.replace(self.partial, target)
        self._made = []

    def _remove(self) -> None:
        """Remove what was made here, and nothing else."""
        for folder in reversed(self._made):
            if folder == self.partial:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                try:
                    folder.rmdir()
                except OSError:
                    break
        self._made = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()


def default_output(data: str) -> Path:
    """Return runs/<data>-<time>, with a number behind it if that is taken."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(data).stem).strip("._") or "data"
    path = Path("runs", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    candidate, number = path, 1
    while candidate.exists() or candidate.with_name(f".{candidate.name}.partial").exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


# What is seen while it runs.


class Reporter:
    """Shows a run: a bar for each solve on a terminal, lines of text elsewhere.

    Parameters
    ----------
    console : Console
        A quiet one shows nothing.
    target_gap : float
        The gap that a bar is full at.
    """

    def __init__(self, console: Console, target_gap: float) -> None:
        self.console = console
        self.target_gap = target_gap
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal or console.quiet,
        )
        self._task: TaskID | None = None
        self._last_line = time.monotonic()

    def say(self, text: str) -> None:
        """Show a line, whole, however narrow the console is."""
        self.console.print(_printable(text), markup=False, highlight=False, soft_wrap=True)

    def update(self, name: str, completed: float, state: str) -> None:
        """Show how far a step is: ``state`` beside the bar, or as a line now and then."""
        if not self.bars.disable:
            if self._task is None:
                self._task = self.bars.add_task(name, total=1.0, state="")
            self.bars.update(self._task, description=name, completed=completed, state=state)
        elif time.monotonic() - self._last_line >= LOG_EVERY:
            self.say(f"{name}: {state}")
            self._last_line = time.monotonic()

    def finish(self) -> None:
        """Take the bar away: its step is over."""
        if self._task is not None:
            self.bars.remove_task(self._task)
            self._task = None

    def solver(self, layer: int, progress: SolverProgress) -> None:
        """Show a round of a block's solve."""
        gap = relative_gap(progress.objective, progress.dual_bound)
        state = (
            f"round {progress.iteration}, objective {progress.objective:.6g}, "
            f"bound {progress.dual_bound:.6g}, gap {gap:.1e}"
        )
        # A gap falls by factors: the bar is half full at the root of what is asked for.
        asked = math.log(min(self.target_gap, 0.5))
        share = math.log(min(max(gap, self.target_gap), 1.0)) / asked if math.isfinite(gap) else 0.0
        self.update(f"layer {layer + 1}", min(share, 1.0), state)

    def baseline(self, layer: int, epochs: int) -> Callable[[int, float, float], None]:
        """Return a callback for the baseline of a layer."""

        def show(epoch: int, seconds: float, objective: float) -> None:
            self.update(f"layer {layer + 1} in torch", epoch / epochs, f"epoch {epoch}, objective {objective:.6g}")

        return show


def _printable(text: str) -> str:
    """Return text that any console can show: names of files may hold bytes that are no characters."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


# Training.


@dataclass
class LayerRecords:
    """Takes each layer as it is finished: judges it, and trains its rival on the same inputs."""

    settings: Settings
    stack: LayerwiseCNN
    train: ImageSet
    test: ImageSet
    reporter: Reporter
    summaries: list[dict[str, Any]] = field(default_factory=list)
    baselines: list[BaselineResult] = field(default_factory=list)
    _test_inputs: Iterator[tuple[ConvexConvBlock, Tensor]] | None = None

    def on_layer(self, layer: int, block: ConvexConvBlock, inputs: Tensor) -> None:
        """Record layer ``layer``, fitted on ``inputs``."""
        self.reporter.finish()
        if self._test_inputs is None:
            # The stack's own iterator goes on to each block as it is added, so test images pass every layer once.
            self._test_inputs = self.stack.layer_inputs(self.test.images)
        _, test_inputs = next(self._test_inputs)
        convex = self._convex(block, inputs, test_inputs)
        self.reporter.say(
            f"layer {layer + 1}: objective {block.result_.objective:.6g}, {block.n_neurons_} neurons, "
            f"{_percent(convex['test_accuracy'])} test accuracy, {block.result_.seconds:.1f} s"
        )
        nonconvex = self._nonconvex(layer, block, inputs, test_inputs) if self.settings.baseline else None
        self.summaries.append({"layer": layer + 1, "convex": convex, "nonconvex": nonconvex})

    def _convex(self, block: ConvexConvBlock, inputs: Tensor, test_inputs: Tensor) -> dict[str, Any]:
        result, certificate = block.result_, block.certificate_
        return {
            "objective": finite(result.objective),
            "dual_bound": finite(result.dual_bound),
            "relative_gap": finite(result.relative_gap),
            "status": str(result.status),
            "solver": str(result.solver),
            "n_neurons": int(block.n_neurons_),
            "train_accuracy": accuracy(block.predict(inputs), self.train.labels),
            "test_accuracy": accuracy(block.predict(test_inputs), self.test.labels),
            "seconds": finite(result.seconds),
            "global_bound": finite(certificate.global_bound),
            "global_gap": finite(certificate.global_gap),
            "certificate": certificate.kind,
            "n_searched": int(certificate.n_searched),
        }

    def _nonconvex(self, layer: int, block: ConvexConvBlock, inputs: Tensor, test_inputs: Tensor) -> dict[str, Any]:
        patches, test_patches = Patches(inputs, block.geometry_), Patches(test_inputs, block.geometry_)
        connect = "group" if block.penalty == "group" else "dense"
        result = self._train_baseline(layer, block, patches, connect)
        self.baselines.append(result)
        found: dict[str, Any] = {
            "objective": finite(result.objective),
            "n_neurons": int(result.filters.any(dim=1).sum()),
            "train_accuracy": accuracy(predict(result, patches), self.train.labels),
            "test_accuracy": accuracy(predict(result, test_patches), self.test.labels),
            "seconds": finite(result.seconds),
        }
        self.reporter.say(
            f"layer {layer + 1} in torch: objective {result.objective:.6g}, {found['n_neurons']} neurons, "
            f"{_percent(found['test_accuracy'])} test accuracy, {result.seconds:.1f} s"
        )
        if connect == "group":
            dense = self._train_baseline(layer, block, patches, "dense")
            found["dense_test_accuracy"] = accuracy(predict(dense, test_patches), self.test.labels)
        return found

    def _train_baseline(self, layer: int, block: ConvexConvBlock, patches: Patches, connect: str) -> BaselineResult:
        settings = self.settings
        targets = one_hot(self.train.labels, block.n_outputs_, device=patches.images.device)
        width = max(settings.baseline_width, block.n_neurons_)
        if connect == "group":
            # As many neurons for each cell, output and sign.
            share = 2 * patches.n_cells * block.n_outputs_
            width = -(-width // share) * share
        callback = self.reporter.baseline(layer, settings.baseline_epochs)
        result = train_baseline(
            patches, targets, settings.reg, width, connect=connect, epochs=settings.baseline_epochs,
            seed=settings.seed, callback=callback,
        )  # fmt: skip
        self.reporter.finish()
        return result


def predict(result: BaselineResult, patches: Patches) -> np.ndarray:
    """Return the outputs (n, outputs) of a network trained in torch."""
    filters = result.filters
    neurons = Neurons(filters, result.readout, filters.new_zeros(result.readout.shape[2]))
    with torch.no_grad():
        return np.asarray(neurons.predict(patches.astype(filters.dtype)).cpu().numpy())


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images whose largest output is that of their class.

    Examples
    --------
    >>> accuracy(np.array([[0.1, 0.9], [0.8, 0.3]]), np.array([1, 1]))
    0.5
    """
    return float((predictions.argmax(axis=1) == labels).mean())


def finite(value: float) -> float | None:
    """Return a number for JSON, which has no infinities: None for them and for NaN."""
    return float(value) if math.isfinite(value) else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# A run.


def run(settings: Settings, console: Console | None = None) -> dict[str, Any]:
    """Train, compare, and write the results folder.

    Parameters
    ----------
    settings : Settings
    console : Console, optional
        Where progress and the table of results go; None for none.

    Returns
    -------
    dict
        What is in ``summary.json``.

    Raises
    ------
    CvxcnnError
        If settings, images or the output folder can't be used; no folder is left behind then.
    """
    console = console or Console(quiet=True)
    _check_rest(settings)
    stack = build_stack(settings)
    with OutputFolder(settings.output if settings.output is not None else default_output(settings.data)) as folder:
        train, test = load_sets(settings)
        check_maps(stack, train.image_shape)
        gap = pricing_options(settings).gap if settings.gates == "priced" else settings.tol
        reporter = Reporter(console, gap)
        reporter.say(
            f"{train.name}: {len(train)} training and {len(test)} test images of shape {train.image_shape}, "
            f"{len(train.classes)} classes"
        )
        records = LayerRecords(settings, stack, train, test, reporter)
        with reporter.bars:
            stack.fit(
                train.images,
                one_hot(train.labels, len(train.classes)),
                callback=reporter.solver,
                on_layer=records.on_layer,
            )
        summary = summarise(settings, records)
        write_run(folder.partial, records, summary)
        folder.publish()
    console.print(results_table(summary))
    reporter.say(f"Written to {folder.path}")
    return summary


def _check_rest(settings: Settings) -> None:
    """Check what neither the stack nor the data loader checks before training."""
    for name in ("baseline_width", "baseline_epochs", "tol"):
        value = getattr(settings, name)
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be positive; got {value!r}.")
    if not 0 <= settings.seed < 1 << 32:
        raise InputError(f"seed must be an int from 0 to 2^32 - 1; got {settings.seed!r}.")
    if settings.solver != "auto" and settings.solver not in SOLVERS:
        raise InputError(f'solver must be "auto" or one of {sorted(SOLVERS)}; got {settings.solver!r}.')


def summarise(settings: Settings, records: LayerRecords) -> dict[str, Any]:
    """Return the summary of a run."""
    train, test = records.train, records.test
    return {
        "version": __version__,
        "data": {
            "name": train.name,
            "n_train": len(train),
            "n_test": len(test),
            "image_shape": list(train.image_shape),
            "n_classes": len(train.classes),
        },
        "settings": {
            **asdict(settings),
            "downsample": list(settings.downsample),
            "device": resolve_device(settings.device),
            "threads": torch.get_num_threads(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "torch": str(torch.__version__),
            "numpy": str(np.__version__),
        },
        "layers": records.summaries,
    }


def write_run(folder: Path, records: LayerRecords, summary: dict[str, Any]) -> None:
    """Write the files of a run into a folder.

    Raises
    ------
    OSError
        If they can't be written.
    """
    extra = {
        "classes": list(records.train.classes),
        "data": records.train.name,
        "targets": "one-hot, 0 and 1",
        "reg": float(records.settings.reg),
    }
    save_model(records.stack, folder, extra=extra)
    if records.baselines:
        tensors = {}
        for layer, result in enumerate(records.baselines):
            tensors[f"layers.{layer}.filters"] = result.filters.cpu().contiguous()
            tensors[f"layers.{layer}.readout"] = result.readout.cpu().contiguous()
        save_file(tensors, folder / "baseline.safetensors")
    write_metrics(summary, folder / "metrics.csv")
    plot_objective(summary, folder / "objective.png")
    plot_accuracy(summary, folder / "accuracy.png")
    text = json.dumps(summary, indent=2, allow_nan=False)
    (folder / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")


# The command line.


class Parser(argparse.ArgumentParser):
    """Raises its errors, as one sentence that begins with the argument."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        if message.startswith("argument "):
            message = message.removeprefix("argument ").replace(": ", " ", 1)
        raise InputError(message)


def _integer(least: int, most: int | None = None) -> Callable[[str], int]:
    expected = f"must be an int >= {least}" if most is None else f"must be an int from {least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{expected}; got {text}")
        return value

    return parse


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive, finite number; got {text}")
    return value


def _gates(text: str) -> int | str:
    if text == "priced":
        return text
    try:
        return _integer(1)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f'must be "priced" or an int >= 1; got {text}') from error


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}; got {text}")
        return text

    return parse


def build_parser() -> Parser:
    """Return the command line's parser; its defaults are those of ``Settings``."""
    parser = Parser(
        prog=f"python -m {PROGRAM}",
        description="Train a CNN layer by layer by convex optimisation, and each layer the ordinary way beside it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )

    def add(group: Any, flag: str, **options: Any) -> None:
        default = getattr(Settings, flag.lstrip("-").replace("-", "_"))
        # None and tuples are described in the help's own words, and left to Settings.
        plain = isinstance(default, (int, float, str))
        group.add_argument(flag, default=default if plain else argparse.SUPPRESS, **options)

    size = _integer(1)
    data = parser.add_argument_group("data")
    add(data, "--data", metavar="digits|cifar10|PATH", help="images: a name, or files in a layout that is known")
    add(data, "--limit-train", metavar="N", type=size, help="train on N images, each class in its share (default: all)")
    add(data, "--output", metavar="DIR", help="folder of the results, new or empty (default: runs/<data>-<time>)")

    model = parser.add_argument_group("network")
    add(model, "--layers", metavar="N", type=size, help="number of blocks")
    add(model, "--kernel-size", metavar="N", type=size, help="side of a filter, pixels")
    add(model, "--padding", metavar="N", type=_integer(0), help="zeros around the images, pixels")
    add(model, "--pool-cells", metavar="N", type=size, help="feature maps are pooled into N x N cells")
    add(
        model, "--downsample", metavar="N", type=size, nargs="+",
        help="average pooling after each layer; the last value stands for all further layers (default: 2 1)",
    )  # fmt: skip

    program = parser.add_argument_group("convex program")
    activations, penalties = ("relu", "gated_relu"), ("dense", "group", "nuclear")
    add(program, "--activation", metavar="|".join(activations), type=_one_of(*activations), help="of the blocks")
    program.add_argument(
        "--penalty", metavar="|".join(penalties), type=_one_of(*penalties),
        help="what a neuron feeds, and what that costs (default: dense; nuclear for gated networks)",
    )  # fmt: skip
    add(program, "--gates", metavar="priced|N", type=_gates, help="found by the optimisation, or N random ones")
    solvers = ("auto", *sorted(SOLVERS))
    add(program, "--solver", metavar="NAME", type=_one_of(*solvers), help=f"one of {', '.join(solvers)}")
    add(program, "--reg", metavar="X", type=_positive, help="weight of the penalty, lambda itself")
    add(program, "--tol", metavar="X", type=_positive, help="relative duality gap over the gates at hand")

    rival = parser.add_argument_group("ordinary training, for comparison")
    rival.add_argument("--no-baseline", action="store_true", default=argparse.SUPPRESS, help="leave it out")
    add(rival, "--baseline-width", metavar="N", type=size, help="its neurons, at least as many as the block's")
    add(rival, "--baseline-epochs", metavar="N", type=size, help="passes over the images, at most")

    other = parser.add_argument_group("machine and messages")
    devices = ("auto", "cpu", "cuda")
    add(other, "--device", metavar="|".join(devices), type=_one_of(*devices), help="auto is the GPU if there is one")
    add(other, "--seed", metavar="N", type=_integer(0, 2**32 - 1), help="of everything random")
    loudness = other.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", default=argparse.SUPPRESS, help="show errors alone")
    loudness.add_argument("--verbose", action="store_true", default=argparse.SUPPRESS, help="show the library's log")
    other.add_argument("--version", action="version", version=f"cvxcnn {__version__}")
    return parser


def parse_settings(argv: Sequence[str] | None) -> tuple[Settings, bool, bool]:
    """Return the settings of a command line, whether it is to be quiet, and whether verbose."""
    values = vars(build_parser().parse_args(argv))
    quiet, verbose = values.pop("quiet", False), values.pop("verbose", False)
    values["baseline"] = not values.pop("no_baseline", False)
    if values["activation"] == "gated_relu":
        values.setdefault("penalty", "nuclear")
    if "downsample" in values:
        values["downsample"] = tuple(values["downsample"])
    return Settings(**values), quiet, verbose


@contextmanager
def _logging_to(console: Console, level: int) -> Iterator[None]:
    """Show the library's log on the console."""
    logger = logging.getLogger("cvxcnn")
    handler = RichHandler(console=console, show_path=False, markup=False)
    level_before, propagate_before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level_before)
        logger.propagate = propagate_before


class _TerminatedError(BaseException):
    """The process was asked to end."""


@contextmanager
def _raising_on_termination() -> Iterator[None]:
    """Make SIGTERM an exception, so that it leaves nothing behind either."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; None for those of the process.

    Returns
    -------
    int
        Exit code: 0; 1 for failures; 2 for wrong usage; 130 for Ctrl-C and 143 for SIGTERM.
    """
    errors = Console(stderr=True)

    def fail(text: str, code: int) -> int:
        errors.print(_printable(f"{PROGRAM}: {text}"), markup=False, highlight=False, soft_wrap=True)
        return code

    try:
        settings, quiet, verbose = parse_settings(argv)
        console = Console(quiet=quiet)
        with _raising_on_termination(), _logging_to(console, logging.INFO if verbose else logging.WARNING):
            run(settings, console)
    except SystemExit as leaving:
        # --help and --version have shown what they show.
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        return fail("interrupted; nothing was written.", 130)
    except _TerminatedError:
        return fail("terminated; nothing was written.", 143)
    except InputError as error:
        return fail(f"error: {error}", 2)
    except CvxcnnError as error:
        return fail(f"error: {error}", 1)
    except OSError as error:
        return fail(f"error: can't write the results: {error.strerror or error}.", 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("out of memory|can't allocate memory", str(error)):
            raise
        return fail("error: out of memory. Use --limit-train, a larger --reg, or more --downsample.", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
