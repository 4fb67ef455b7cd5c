"""A training run: from its settings to the folder of its results."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from . import __version__
from .arrangements import parse_gates
from .baseline import BaselineResult, train_baseline
from .block import ConvexConvBlock
from .checkpoint import State, drop_checkpoints, find_state, read_state, write_checkpoint, write_state
from .data import ImageSet, limit, load_data, one_hot
from .errors import CvxcnnError, InputError, ModelFileError
from .history import Point, history_of
from .html_report import QUICK_FILE, REPORT_FILE, write_report
from .neurons import Neurons
from .patches import Patches
from .pricing import PricingOptions
from .progress import Reporter
from .report import plot_accuracy, plot_objective, results_table, write_metrics
from .run_folder import OutputFolder, default_output, hidden_folder
from .solvers import SOLVERS
from .stack import LayerwiseCNN

__all__ = ["Settings", "accuracy", "pricing_options", "resume", "run"]


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
    activation, penalty, gates, solver, tol, kernel_size, padding, pool_cells
        Of every ``ConvexConvBlock``; pooling is the mean, and filters have a bias. ``gates`` may be a text that
        ``parse_gates`` reads, such as "patches:400".
    reg : float or None
        lam of every block; None to take ``reg_fraction`` of each block's own ``reg_max``.
    reg_fraction : float
        In (0, 1). The default was chosen on a validation split of the digits (benchmarks/choose_reg.py).
    rounds : int
        Pricing rounds of each block, at most.
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
    reg: float | None = None
    reg_fraction: float = 0.01
    rounds: int = 3
    tol: float = 1e-6
    kernel_size: int = 3
    padding: int = 1
    pool_cells: int = 2
    downsample: Sequence[int] = (2,)
    baseline: bool = True
    baseline_width: int = 200
    baseline_epochs: int = 350
    device: str = "auto"
    seed: int = 0


def pricing_options(settings: Settings) -> PricingOptions:
    """Return how hard the blocks of a run search for filters or gates."""
    return PricingOptions(starts=96, max_rounds=settings.rounds)


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
        reg=1.0 if settings.reg is None else settings.reg,
        gates=parse_gates(settings.gates) if isinstance(settings.gates, str) else settings.gates,
        solver=settings.solver,
        tol=settings.tol,
        device=resolve_device(settings.device),
        random_state=settings.seed,
        pricing=pricing_options(settings),
    )
    block._check_parameters()
    stack = LayerwiseCNN(
        layers=settings.layers,
        block=block,
        downsample=tuple(settings.downsample),
        reg_fraction=settings.reg_fraction if settings.reg is None else None,
    )
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


# Training.


@dataclass
class LayerRecords:
    """Takes each layer as it is finished: judges it, and trains its rival on the same inputs."""

    settings: Settings
    stack: LayerwiseCNN
    train: ImageSet
    test: ImageSet
    reporter: Reporter
    partial: Path
    summaries: list[dict[str, Any]] = field(default_factory=list)
    rivals: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    history: list[Point] = field(default_factory=list)
    saved: int = 0
    _test_inputs: Iterator[tuple[ConvexConvBlock, Tensor]] | None = None

    def on_layer(self, layer: int, block: ConvexConvBlock, inputs: Tensor) -> None:
        """Record layer ``layer``, fitted on ``inputs``."""
        self.reporter.finish()
        if self._test_inputs is None:
            # The stack's own iterator goes on to each block as it is added, so test images pass every layer once.
            self._test_inputs = self.stack.layer_inputs(self.test.images)
            for _ in range(layer):  # of a run that was gone on with
                next(self._test_inputs)
        _, test_inputs = next(self._test_inputs)
        convex = self._convex(block, inputs, test_inputs)
        self.reporter.say(
            f"layer {layer + 1}: objective {block.result_.objective:.6g}, {block.n_neurons_} neurons, "
            f"{_percent(convex['test_accuracy'])} test accuracy, {block.result_.seconds:.1f} s"
        )
        nonconvex, rival = None, None
        if self.settings.baseline:
            nonconvex, rival = self._nonconvex(layer, block, inputs, test_inputs)
            self.rivals.append((rival.filters, rival.readout))
        self.history += history_of(layer + 1, block, rival)
        self.summaries.append({"layer": layer + 1, "reg": float(block.reg), "convex": convex, "nonconvex": nonconvex})
        write_checkpoint(self.partial, self.state(), self.extra())
        self.saved = len(self.summaries)

    def state(self) -> State:
        """Return the layers that are finished, as a stack of its own."""
        count = len(self.summaries)
        stack = LayerwiseCNN(**{**self.stack.get_params(deep=False), "layers": count})
        if count:
            stack.image_shape_ = self.stack.image_shape_
            stack.blocks_ = self.stack.blocks_[:count]
            stack.standardizers_ = self.stack.standardizers_[:count]
        history = [point for point in self.history if point.layer <= count]
        return State(summarise(self.settings, self), stack if count else None, self.rivals[:count], history)

    def extra(self) -> dict[str, Any]:
        """Return what the model's configuration says beside the model."""
        return {
            "classes": list(self.train.classes),
            "data": self.train.name,
            "targets": "one-hot, 0 and 1",
            "reg": [float(entry["reg"]) for entry in self.summaries],
        }

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

    def _nonconvex(
        self, layer: int, block: ConvexConvBlock, inputs: Tensor, test_inputs: Tensor
    ) -> tuple[dict[str, Any], BaselineResult]:
        patches, test_patches = Patches(inputs, block.geometry_), Patches(test_inputs, block.geometry_)
        connect = "group" if block.penalty == "group" else "dense"
        result = self._train_baseline(layer, block, patches, connect)
        outputs = predict(result, test_patches)
        own, other = (part.argmax(axis=1) == self.test.labels for part in (block.predict(test_inputs), outputs))
        found: dict[str, Any] = {
            "objective": finite(result.objective),
            "n_neurons": int(result.filters.any(dim=1).sum()),
            "train_accuracy": accuracy(predict(result, patches), self.train.labels),
            "test_accuracy": accuracy(outputs, self.test.labels),
            "seconds": finite(result.seconds),
            # How sure it is that one is better rests on the images where they differ.
            "only_convex_right": int((own & ~other).sum()),
            "only_nonconvex_right": int((other & ~own).sum()),
        }
        self.reporter.say(
            f"layer {layer + 1} in torch: objective {result.objective:.6g}, {found['n_neurons']} neurons, "
            f"{_percent(found['test_accuracy'])} test accuracy, {result.seconds:.1f} s"
        )
        if connect == "group":
            dense = self._train_baseline(layer, block, patches, "dense")
            found["dense_test_accuracy"] = accuracy(predict(dense, test_patches), self.test.labels)
        return found, result

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
            patches, targets, block.reg, width, connect=connect, epochs=settings.baseline_epochs,
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
        If settings, images or the output folder can't be used. No folder is left behind, unless a layer was finished:
        what is finished is kept, and ``resume`` goes on from it.
    """
    console = console or Console(quiet=True)
    path = Path(settings.output if settings.output is not None else default_output(settings.data))
    return _run(settings, OutputFolder(path), None, console)


def resume(path: str | os.PathLike[str], console: Console | None = None) -> dict[str, Any]:
    """Go on with a run that was interrupted or killed: its settings, its finished layers, the same end.

    Parameters
    ----------
    path : str or path
        The folder that the run was to write to.
    console : Console, optional
        Where progress and the table of results go; None for none.

    Returns
    -------
    dict
        What is in ``summary.json``.

    Raises
    ------
    CvxcnnError
        If there is no such run, it is damaged, or its images are no longer those that it began with.
    """
    console = console or Console(quiet=True)
    target = Path(path)
    try:
        found = find_state(target, hidden_folder(target))
        state = read_state(found)
    except (OSError, ValueError) as error:
        raise InputError(f"can't read {target}: {getattr(error, 'strerror', None) or error}.") from error
    names = {entry.name for entry in fields(Settings)}
    values = {name: value for name, value in state.summary["settings"].items() if name in names}
    try:
        settings = replace(Settings(**values), output=str(target), downsample=tuple(values["downsample"]))
        complete = len(state.summary["layers"]) >= settings.layers
    except (TypeError, KeyError) as error:
        raise ModelFileError(f"The settings of the run in {target} are damaged: {error}. Train it again.") from error
    if found == target and complete:
        raise InputError(f"the run in {target} is complete: it has all of its {settings.layers} layers.")
    return _run(settings, OutputFolder(target, resume=True), state, console)


def _run(settings: Settings, output: OutputFolder, state: State | None, console: Console) -> dict[str, Any]:
    """Train the layers that a state doesn't have, and write everything."""
    _check_rest(settings)
    stack = build_stack(settings)
    with output as folder:
        train, test = load_sets(settings)
        check_maps(stack, train.image_shape)
        gap = pricing_options(settings).gap if settings.gates == "priced" else settings.tol
        reporter = Reporter(console, gap)
        reporter.say(
            f"{train.name}: {len(train)} training and {len(test)} test images of shape {train.image_shape}, "
            f"{len(train.classes)} classes"
        )
        records = LayerRecords(settings, stack, train, test, reporter, folder.partial)
        if state is not None:
            _take_over(records, state)
        write_checkpoint(folder.partial, records.state(), records.extra())
        try:
            with reporter.bars:
                stack.fit(
                    train.images,
                    one_hot(train.labels, len(train.classes)),
                    callback=reporter.solver,
                    on_layer=records.on_layer,
                    finished=None if state is None else state.stack,
                )
            summary = _publish(folder, records)
        except BaseException as stop:
            if records.saved:
                _keep(folder, records, stop)
            raise
    console.print(results_table(summary))
    reporter.say(f"Written to {folder.path}; open {folder.path / REPORT_FILE} in a browser")
    return summary


def _take_over(records: LayerRecords, state: State) -> None:
    """Make the layers of a state the first of these records."""
    data = describe(records)
    known = state.summary.get("data")
    if data != known:
        raise InputError(
            f"the images are not those that the run began with: they were {known}, now they are {data}. Put them back."
        )
    records.summaries += state.summary["layers"]
    records.rivals += state.rivals
    records.history += state.history
    records.saved = len(records.summaries)
    if state.stack is not None:
        # The checkpoint that is written next is of these, before the first fit.
        for name in ("image_shape_", "blocks_", "standardizers_"):
            setattr(records.stack, name, getattr(state.stack, name))
        for block, entry in zip(state.stack.blocks_, state.summary["layers"], strict=True):
            block.set_params(reg=entry["reg"], device=resolve_device(records.settings.device))
        records.reporter.say(f"{len(records.summaries)} of {records.settings.layers} layers are there already")


def _keep(folder: OutputFolder, records: LayerRecords, stop: BaseException) -> None:
    """Leave the finished layers where they can be used, or at least gone on with."""
    folder.keep()
    records.summaries = records.summaries[: records.saved]
    if records.saved < records.settings.layers:
        # Should this fail too, the hidden folder still has its checkpoint.
        with suppress(OSError, CvxcnnError):
            _publish(folder, records)
    kept = f"{records.saved} of {records.settings.layers} layers are kept; go on with --resume {folder.path}"
    if isinstance(stop, Exception):
        records.reporter.say(kept)
    else:
        stop.args = (kept,)


def _publish(folder: OutputFolder, records: LayerRecords) -> dict[str, Any]:
    """Write the results of the finished layers, and make them appear."""
    state = records.state()
    write_state(folder.partial, state, records.extra())
    write_metrics(state.summary, folder.partial / "metrics.csv")
    plot_objective(state.summary, folder.partial / "objective.png")
    plot_accuracy(state.summary, folder.partial / "accuracy.png")
    _draw_examples(folder.partial, records.test, records.reporter)
    write_report(folder.partial)
    drop_checkpoints(folder.partial)
    folder.publish()
    return state.summary


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


def describe(records: LayerRecords) -> dict[str, Any]:
    """Return what the summary says of the images."""
    train, test = records.train, records.test
    return {
        "name": train.name,
        "n_train": len(train),
        "n_test": len(test),
        "image_shape": list(train.image_shape),
        "n_classes": len(train.classes),
    }


def summarise(settings: Settings, records: LayerRecords) -> dict[str, Any]:
    """Return the summary of a run."""
    return {
        "version": __version__,
        "data": describe(records),
        "settings": {
            **asdict(settings),
            "downsample": list(settings.downsample),
            "device": resolve_device(settings.device),
            "threads": torch.get_num_threads(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "torch": str(torch.__version__),
            "numpy": str(np.__version__),
        },
        "layers": list(records.summaries),
    }


def _draw_examples(folder: Path, test: ImageSet, reporter: Reporter) -> None:
    """Draw a few explanations for the report; a run isn't lost for the lack of them."""
    # Here, because it brings captum.
    from .explain.runs import explain_quickly

    try:
        explain_quickly(folder, test, folder / QUICK_FILE)
    except CvxcnnError as error:
        reporter.say(f"no explanations: {error}")
