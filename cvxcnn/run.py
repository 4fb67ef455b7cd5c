"""A training run: from its settings to the folder of its results."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
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
from .distributed import all_sum, process_group, rank, shard, size
from .errors import CvxcnnError, InputError, ModelFileError
from .history import Point, history_of
from .html_report import QUICK_FILE, REPORT_FILE, write_report
from .memory import check_run_memory, predict_run_memory
from .neurons import Neurons
from .patches import Patches
from .pricing import PricingOptions
from .progress import Reporter
from .report import plot_accuracy, plot_objective, results_table, write_metrics
from .run_folder import OutputFolder, default_output, hidden_folder
from .solvers import SOLVERS
from .stack import LayerwiseCNN, Seen, Stage

__all__ = ["RECIPES", "Settings", "accuracy", "pricing_options", "resume", "run"]


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
    augment : sequence of {"mirror", "crop"}
        "mirror": train on mirror images too, and predict by the mean over both. "crop": train on a copy of each image
        too that is shifted by up to an eighth of its side.
    activation, penalty, solver, tol, pool_cells, dtype, intercept
        Of every ``ConvexConvBlock``; pooling is the mean, and filters have a bias.
    kernel_size, padding, gates : int, str, or sequence of them
        Of every block, or of each; the last value stands for all further blocks. Gates may be a text that
        ``parse_gates`` reads, such as "patches:400".
    reg : float or None
        lam of every block; None to take ``reg_fraction`` of each block's own ``reg_max``.
    reg_fraction : float or sequence of float
        In (0, 1), for every layer or for each. The default was chosen on a validation split of the digits
        (benchmarks/choose_reg.py).
    validation : float or None
        If given, this share of the training images is held out, and each layer's reg is chosen by its error on them.
    rounds : int
        Pricing rounds of each block, at most.
    starts : int
        Of every search for filters, and for the bound over all of them; 0 leaves that bound out over fixed gates.
    residual, project, hand_on, half_maps
        Of the ``LayerwiseCNN``.
    downsample : sequence of int
        Average pooling after each layer; the last one stands for all further layers.
    baseline : bool
        Whether each layer is also trained the ordinary way, on the same inputs; not by several processes.
    baseline_width : int
        Its neurons, at least; it gets as many as the convex block if that has more.
    baseline_epochs : int
    device : {"auto", "cpu", "cuda"}
        "auto" is the GPU if there is one.
    memory : float or None
        GiB: a run that is predicted to need more is refused before it starts.
    seed : int
    """

    layers: int = 3
    data: str = "digits"
    output: str | None = None
    limit_train: int | None = None
    activation: str = "relu"
    penalty: str = "dense"
    gates: int | str | Sequence[int | str] = "priced"
    solver: str = "auto"
    reg: float | None = None
    reg_fraction: float | Sequence[float] = 0.01
    validation: float | None = None
    rounds: int = 3
    starts: int = 96
    tol: float = 1e-6
    kernel_size: int | Sequence[int] = 3
    padding: int | Sequence[int] = 1
    pool_cells: int = 2
    downsample: Sequence[int] = (2,)
    intercept: bool = False
    residual: bool = False
    project: int | None = None
    hand_on: int | None = None
    augment: Sequence[str] = ()
    dtype: str = "float64"
    half_maps: bool = False
    baseline: bool = True
    baseline_width: int = 200
    baseline_epochs: int = 350
    device: str = "auto"
    memory: float | None = None
    seed: int = 0


# Predictions of memory above this are shown.
_LARGE = 2 << 30

# Settings that differ from the defaults, for a kind of problem.
RECIPES: dict[str, dict[str, Any]] = {
    "exact": {},
    # Tens of thousands of photographs: whitened data patches for filters, which the program weighs; each block fitted
    # to what is left. Chosen on a validation split of CIFAR-10's training images (benchmarks/RESULTS.md).
    "large": {
        "layers": 5,
        "gates": ("patches:768", "patches:1024"),
        "reg_fraction": (1e-4, 3e-3, 1e-2),
        "starts": 0,
        "tol": 1e-3,
        "kernel_size": (5, 5, 3),
        "padding": (2, 2, 1),
        "pool_cells": 3,
        "downsample": (2, 1, 2, 1),
        "intercept": True,
        "residual": True,
        "project": 80,
        "hand_on": 256,
        "augment": ("mirror",),
        "dtype": "float32",
        "half_maps": True,
        "baseline": False,
    },
}


def pricing_options(settings: Settings) -> PricingOptions:
    """Return how hard the blocks of a run search for filters or gates."""
    return PricingOptions(starts=settings.starts, max_rounds=settings.rounds)


# From settings to a stack.


def _each(value: Any, layers: int) -> list[Any]:
    """Return a setting of every layer; the last one given stands for all further layers."""
    values = [value] if isinstance(value, (int, str)) else list(value)
    if not values:
        raise InputError("settings of each layer need one value at least; got none.")
    return [values[min(layer, len(values) - 1)] for layer in range(max(layers, 1))]


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
    unknown = sorted(set(settings.augment) - {"mirror", "crop"})
    if unknown:
        raise InputError(f'augment must name "mirror", "crop" or both; got {unknown[0]!r}.')
    each = (_each(value, settings.layers) for value in (settings.kernel_size, settings.padding, settings.gates))
    common: dict[str, Any] = {
        "pooling": "mean",
        "pool_cells": settings.pool_cells,
        "bias": True,
        "activation": settings.activation,
        "penalty": settings.penalty,
        "reg": 1.0 if settings.reg is None else settings.reg,
        "solver": settings.solver,
        "tol": settings.tol,
        "device": resolve_device(settings.device),
        "dtype": settings.dtype,
        "random_state": settings.seed,
        "intercept": settings.intercept,
        "pricing": pricing_options(settings),
    }
    blocks = [
        ConvexConvBlock(
            kernel_size=kernel,
            padding=padding,
            gates=parse_gates(gates) if isinstance(gates, str) else gates,
            **common,
        )
        for kernel, padding, gates in zip(*each, strict=True)
    ]
    for block in blocks:
        block._check_parameters()
    stack = LayerwiseCNN(
        layers=settings.layers,
        block=blocks,
        downsample=tuple(settings.downsample),
        reg_fraction=settings.reg_fraction if settings.reg is None else None,
        residual=settings.residual,
        project=settings.project,
        hand_on=settings.hand_on,
        mirror="mirror" in settings.augment,
        crop="crop" in settings.augment,
        validation=settings.validation,
        half_maps=settings.half_maps,
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
    blocks: Any = stack.block
    height, width = image_shape[1:]
    for layer in range(stack.layers):
        if min(height, width) < 1:
            raise InputError(
                f"images of {image_shape[1]} x {image_shape[2]} pixels have no pixels left after {layer} layers. "
                "Use fewer layers, or less downsampling."
            )
        try:
            height, width = blocks[layer]._check_parameters().map_shape((height, width))
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
    """Takes each layer as it is finished: judges it, and trains its rival on the same inputs.

    ``train`` and ``test`` are this process's shares of ``n_images`` images; the first process alone has ``partial``.
    """

    settings: Settings
    stack: LayerwiseCNN
    train: ImageSet
    test: ImageSet
    reporter: Reporter
    partial: Path | None
    n_images: tuple[int, int]
    summaries: list[dict[str, Any]] = field(default_factory=list)
    rivals: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    history: list[Point] = field(default_factory=list)
    saved: int = 0
    _seen: Iterator[Seen] | None = None

    def on_layer(self, layer: int, block: ConvexConvBlock, stage: Stage) -> None:
        """Record layer ``layer``, fitted on ``stage``."""
        self.reporter.finish()
        if self._seen is None:
            # It goes on to each block as it is added, so test images pass every layer once.
            self._seen = self.stack.seen(self.test.images)
            for _ in range(layer):  # of a run that was gone on with
                next(self._seen)
        tested = next(self._seen)
        convex = self._convex(block, stage, tested)
        self.reporter.say(
            f"layer {layer + 1}: objective {block.result_.objective:.6g}, {block.n_neurons_} neurons, "
            f"{_percent(convex['test_accuracy'])} test accuracy, {block.result_.seconds:.1f} s"
        )
        nonconvex, rival = None, None
        if self.settings.baseline:
            nonconvex, rival = self._nonconvex(layer, block, stage, tested)
            self.rivals.append((rival.filters, rival.readout))
        self.history += history_of(layer + 1, block, rival)
        self.summaries.append({"layer": layer + 1, "reg": float(block.reg), "convex": convex, "nonconvex": nonconvex})
        self.checkpoint()
        self.saved = len(self.summaries)

    def checkpoint(self) -> None:
        """Write the layers that are finished; the first process does."""
        if self.partial is not None:
            write_checkpoint(self.partial, self.state(), self.extra())

    def state(self) -> State:
        """Return the layers that are finished, as a stack of its own."""
        count = len(self.summaries)
        blocks: Any = self.stack.block
        stack = LayerwiseCNN(**{**self.stack.get_params(deep=False), "layers": count, "block": blocks[:count]})
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

    def _convex(self, block: ConvexConvBlock, stage: Stage, tested: Seen) -> dict[str, Any]:
        result, certificate = block.result_, block.certificate_
        outputs = (stage.offset + stage.prediction).cpu().numpy()
        loss = 0.5 * all_sum((stage.targets.double() - stage.prediction.double()).square().sum())
        return {
            "objective": finite(result.objective),
            "dual_bound": finite(result.dual_bound),
            "relative_gap": finite(result.relative_gap),
            "status": str(result.status),
            "solver": str(result.solver),
            "n_neurons": int(block.n_neurons_),
            "train_loss": finite(float(loss)),
            "train_accuracy": accuracy(self.stack.averaged(outputs), self._train_labels(stage)),
            "test_accuracy": accuracy(self.stack.averaged(tested.outputs), self.test.labels),
            "seconds": finite(result.seconds),
            "global_bound": finite(certificate.global_bound),
            "global_gap": finite(certificate.global_gap),
            "certificate": certificate.kind,
            "n_searched": int(certificate.n_searched),
        }

    def _train_labels(self, stage: Stage) -> np.ndarray:
        """Return the labels of the images that were trained on: all but those held out."""
        labels = (stage.targets + stage.offset).argmax(dim=1).cpu().numpy()
        return labels[::2] if self.stack.mirror else labels

    def _nonconvex(
        self, layer: int, block: ConvexConvBlock, stage: Stage, tested: Seen
    ) -> tuple[dict[str, Any], BaselineResult]:
        patches, test_patches = Patches(stage.inputs, block.geometry_), Patches(tested.inputs, block.geometry_)
        connect = "group" if block.penalty == "group" else "dense"
        # The same path beside it, what the convex layers before predict, and the same intercept: that of no neurons.
        mean = stage.targets.mean(dim=0) * float(block.intercept)
        stage = replace(stage, targets=stage.targets - mean, offset=stage.offset + mean)
        before = tested.offset + mean.cpu().numpy()
        result = self._train_baseline(layer, block, stage, patches, connect)
        own = self.stack.averaged(tested.outputs).argmax(axis=1) == self.test.labels
        outputs = self.stack.averaged(before + predict(result, test_patches))
        other = outputs.argmax(axis=1) == self.test.labels
        trained = stage.offset.cpu().numpy() + predict(result, patches)
        found: dict[str, Any] = {
            "objective": finite(result.objective),
            "n_neurons": int(result.filters.any(dim=1).sum()),
            "train_accuracy": accuracy(self.stack.averaged(trained), self._train_labels(stage)),
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
            dense = self._train_baseline(layer, block, stage, patches, "dense")
            outputs = self.stack.averaged(before + predict(dense, test_patches))
            found["dense_test_accuracy"] = accuracy(outputs, self.test.labels)
        return found, result

    def _train_baseline(
        self, layer: int, block: ConvexConvBlock, stage: Stage, patches: Patches, connect: str
    ) -> BaselineResult:
        settings = self.settings
        width = max(settings.baseline_width, block.n_neurons_)
        if connect == "group":
            # As many neurons for each cell, output and sign.
            share = 2 * patches.n_cells * block.n_outputs_
            width = -(-width // share) * share
        callback = self.reporter.baseline(layer, settings.baseline_epochs)
        result = train_baseline(
            patches, stage.targets, block.reg, width, connect=connect, epochs=settings.baseline_epochs,
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
    """Return the share of the images, of all processes, whose largest output is that of their class.

    Examples
    --------
    >>> accuracy(np.array([[0.1, 0.9], [0.8, 0.3]]), np.array([1, 1]))
    0.5
    """
    own = torch.tensor([int((predictions.argmax(axis=1) == labels).sum()), len(labels)])
    right, count = all_sum(own).tolist()
    return float(right / count)


def finite(value: float) -> float | None:
    """Return a number for JSON, which has no infinities: None for them and for NaN."""
    return float(value) if math.isfinite(value) else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# A run.


def run(settings: Settings, console: Console | None = None) -> dict[str, Any]:
    """Train, compare, and write the results folder.

    Under ``torchrun`` each process takes a share of the images, and the first one writes.

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
    with process_group(resolve_device(settings.device)):
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
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in state.summary["settings"].items()
        if name in names
    }
    try:
        settings = replace(Settings(**values), output=str(target), downsample=tuple(values["downsample"]))
        complete = len(state.summary["layers"]) >= settings.layers
    except (TypeError, KeyError) as error:
        raise ModelFileError(f"The settings of the run in {target} are damaged: {error}. Train it again.") from error
    if found == target and complete:
        raise InputError(f"the run in {target} is complete: it has all of its {settings.layers} layers.")
    with process_group(resolve_device(settings.device)):
        return _run(settings, OutputFolder(target, resume=True), state, console)


def _run(settings: Settings, output: OutputFolder, state: State | None, console: Console) -> dict[str, Any]:
    """Train the layers that a state doesn't have, and write everything."""
    _check_rest(settings)
    stack = build_stack(settings)
    if rank():
        console = Console(quiet=True)
    if size() > 1 and settings.baseline:
        if state is not None and state.rivals:
            raise InputError("several processes train no baseline, and the run has one. Go on with one process.")
        settings = replace(settings, baseline=False)
    with output if rank() == 0 else nullcontext() as folder:
        train, test = load_sets(settings)
        check_maps(stack, train.image_shape)
        n_images = len(train), len(test)
        predicted = predict_run_memory(stack, n_images[0], n_images[1], train.image_shape, len(train.classes))
        check_run_memory(predicted, settings.memory)
        train, test = _share(train), _share(test)
        gap = pricing_options(settings).gap if settings.gates == "priced" else settings.tol
        reporter = Reporter(console, gap)
        reporter.say(
            f"{train.name}: {n_images[0]} training and {n_images[1]} test images of shape {train.image_shape}, "
            f"{len(train.classes)} classes"
        )
        if predicted is not None and predicted > _LARGE:
            reporter.say(f"up to {predicted / 2**30:.1f} GiB of memory")
        if size() > 1:
            reporter.say(f"{size()} processes, each with a share of the images; no ordinary training for comparison")
        records = LayerRecords(settings, stack, train, test, reporter, folder.partial if folder else None, n_images)
        if state is not None:
            _take_over(records, state)
        records.checkpoint()
        try:
            with reporter.bars:
                stack.fit(
                    train.images,
                    one_hot(train.labels, len(train.classes)),
                    callback=reporter.solver,
                    on_layer=records.on_layer,
                    finished=None if state is None else state.stack,
                )
            summary = _publish(folder, records) if folder is not None else records.state().summary
        except BaseException as stop:
            if records.saved and folder is not None:
                _keep(folder, records, stop)
            raise
    console.print(results_table(summary))
    reporter.say(f"Written to {output.path}; open {output.path / REPORT_FILE} in a browser")
    return summary


def _share(images: ImageSet) -> ImageSet:
    """Return this process's share of the images: the whole set if there is one process."""
    if size() == 1:
        return images
    if len(images) < size():
        raise InputError(f"{len(images)} images can't be shared by {size()} processes. Start as many or fewer.")
    return images.subset(np.arange(len(images))[shard(len(images), rank(), size())])


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
    kept = f"{records.saved} of {records.settings.layers} layers are kept; go on with --resume {folder.path}"
    if records.saved < records.settings.layers:
        # Should this fail too, the hidden folder still has its checkpoint.
        try:
            with suppress(OSError, CvxcnnError):
                _publish(folder, records)
        except BaseException as second:  # such as the signal by which torchrun stops the others when one failed
            second.args = (kept,)
            raise
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
    train = records.train
    return {
        "name": train.name,
        "n_train": records.n_images[0],
        "n_test": records.n_images[1],
        "image_shape": list(train.image_shape),
        "n_classes": len(train.classes),
    }


def summarise(settings: Settings, records: LayerRecords) -> dict[str, Any]:
    """Return the summary of a run."""
    return {
        "version": __version__,
        "data": describe(records),
        "settings": {
            **{name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()},
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
