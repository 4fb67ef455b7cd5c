"""What a run keeps of each layer: its numbers, its rival, and the checkpoint with both."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..activations.neurons import Neurons
from ..activations.softplus import SoftplusNeurons
from ..core.distributed import all_sum, gather_rows
from ..core.version import __version__
from ..data.fingerprint import fingerprint
from ..data.images import ImageSet
from ..losses import get_loss
from ..models.block import ConvexConvBlock
from ..models.stack import LayerwiseCNN
from ..models.stage import Seen, Stage
from ..ordinary.baseline import BaselineResult, train_baseline
from ..patches.patches import Patches
from ..reports.history import Point, history_of
from ..reports.metrics import measured
from ..reports.predictions import Predictions
from ..reports.summary import ConvexNumbers, LayerSummary, NonconvexNumbers, number
from .checkpoint import State, write_checkpoint
from .progress import Reporter
from .provenance import provenance
from .rivals import ZETA, RivalFit, first_network, train_kernel
from .settings import Settings, full_path, resolve_device

__all__ = ["LayerRecords", "accuracy", "describe", "finite", "summarise"]

# How a rival other than Adam is trained, after its layer.
_NAMES = {
    "sgd": "in torch, SGD",
    "two-phase": "in two phases",
    "softplus": "in two phases, softplus",
    "kernel": "infinitely wide",
}


@dataclass(frozen=True, eq=False)
class Judged:
    """A rival's numbers, its outputs (n, classes) on the test images, and its training and neurons, if it has any."""

    numbers: NonconvexNumbers
    outputs: np.ndarray
    result: BaselineResult | None
    neurons: Neurons | None


@dataclass
class LayerRecords:
    """Takes each layer as it is finished: judges it, and trains its rival on the same inputs.

    ``train`` and ``test`` are this process's shares of the images that ``data`` describes; the first process alone has
    ``partial``. A class of its own may train the rivals in another way: see ``train_rival``.
    """

    settings: Settings
    stack: LayerwiseCNN
    train: ImageSet
    test: ImageSet
    reporter: Reporter
    partial: Path | None
    data: dict[str, Any]
    summaries: list[LayerSummary] = field(default_factory=list)
    rivals: dict[str, list[Neurons]] = field(default_factory=dict)
    history: list[Point] = field(default_factory=list)
    saved: int = 0
    tested: dict[int, Predictions] = field(default_factory=dict)
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
            f"{_percent(number(convex.test_accuracy))} test accuracy, {block.result_.seconds:.1f} s"
        )
        trained = self._rivals(layer, block, stage, tested) if self.settings.baseline else {}
        numbers = {method: own.numbers for method, own in trained.items()}
        networks = {method: own.result for method, own in trained.items() if own.result is not None}
        for method, own in trained.items():
            # Older versions kept the first rival alone: one whose first layers are lost isn't gone on with.
            if own.neurons is not None and len(kept := self.rivals.setdefault(method, [])) == layer:
                kept.append(own.neurons)
        self.history += history_of(layer + 1, block, networks)
        nonconvex = numbers.pop("nonconvex", None)
        self.summaries.append(LayerSummary(layer + 1, float(block.reg_), convex, nonconvex, numbers))
        outputs = {"convex": self.stack.averaged(tested.outputs)}
        outputs |= {method: own.outputs for method, own in trained.items()}
        everywhere = {name: gather_rows(torch.from_numpy(own)).numpy() for name, own in outputs.items()}
        labels = gather_rows(torch.from_numpy(self.test.labels)).numpy()
        self.tested[layer + 1] = Predictions.of(labels, everywhere)
        # Those of the layer before are needed until this one is in a checkpoint.
        self.tested.pop(layer - 1, None)
        self.checkpoint()
        self.saved = len(self.summaries)
        if self.saved < self.settings.layers:
            self.reporter.begin(self.saved)

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
            stack.learn_from(self.stack, count)
        history = [point for point in self.history if point.layer <= count]
        rivals = {name: found[:count] for name, found in self.rivals.items() if found and len(found) >= count}
        return State(summarise(self), stack if count else None, rivals, history, self.tested.get(count))

    def extra(self) -> dict[str, Any]:
        """Return what the model's configuration says beside the model."""
        return {
            "classes": list(self.train.classes),
            "data": self.train.name,
            "fingerprint": self.data["fingerprint"],
            "targets": "one-hot, 0 and 1",
            "reg": [number(entry.reg) for entry in self.summaries],
        }

    def _convex(self, block: ConvexConvBlock, stage: Stage, tested: Seen) -> ConvexNumbers:
        result, certificate = block.result_, block.certificate_
        outputs = (stage.offset + stage.prediction).cpu().numpy()
        loss = get_loss(block.loss, stage.weights).value(stage.prediction.double(), stage.targets.double())
        return ConvexNumbers(
            objective=finite(result.objective),
            dual_bound=finite(result.dual_bound),
            relative_gap=finite(result.relative_gap),
            status=str(result.status),
            solver=str(result.solver),
            n_neurons=int(block.n_neurons_),
            train_loss=finite(loss),
            train_accuracy=accuracy(self.stack.averaged(outputs), self._train_labels(stage)),
            test_accuracy=accuracy(self.stack.averaged(tested.outputs), self.test.labels),
            seconds=finite(result.seconds),
            global_bound=finite(certificate.global_bound),
            global_gap=finite(certificate.global_gap),
            certificate=certificate.kind,
            n_searched=int(certificate.n_searched),
            networks=certificate.networks,
            n_distinct=int(certificate.n_distinct),
            expected_unseen=finite(certificate.expected_unseen),
            measures=measured(block, stage.inputs),
        )

    def _train_labels(self, stage: Stage) -> np.ndarray:
        """Return the labels of the images that were trained on: all but those held out."""
        labels = (stage.targets + stage.offset).argmax(dim=1).cpu().numpy()
        return labels[::2] if self.stack.mirror else labels

    def _rivals(self, layer: int, block: ConvexConvBlock, stage: Stage, tested: Seen) -> dict[str, Judged]:
        """Train the rivals of a block; the first network among them is "nonconvex", the others have their names."""
        patches, test_patches = Patches(stage.inputs, block.geometry_), Patches(tested.inputs, block.geometry_)
        connect = "group" if block.penalty == "group" else "dense"
        # The same path beside it, what the convex layers before predict, and the same intercept: that of no neurons.
        weights = torch.ones_like(stage.targets[:, 0]) if stage.weights is None else stage.weights.to(stage.targets)
        mean = weights @ stage.targets / weights.sum() * float(block.intercept)
        stage = replace(stage, targets=stage.targets - mean, offset=stage.offset + mean)
        tested = replace(tested, offset=tested.offset + mean.cpu().numpy())
        first = first_network(self.settings.rivals)
        found = {}
        for name in self.settings.rivals:
            if name == "kernel":
                fit = train_kernel(
                    patches, stage.targets, test_patches, weights=stage.weights, memory=self.settings.memory,
                    device=str(stage.targets.device),
                )  # fmt: skip
            else:
                result = self.train_rival(layer, block, stage, patches, connect, name)
                fit = RivalFit.of(result, patches, test_patches)
            judged = self._judged(name, fit, stage, tested, mean)
            if name == first and connect == "group":
                dense = RivalFit.of(
                    self.train_rival(layer, block, stage, patches, "dense", name), patches, test_patches
                )
                outputs = self.stack.averaged(tested.offset + dense.tested)
                numbers = replace(judged.numbers, dense_test_accuracy=accuracy(outputs, self.test.labels))
                judged = replace(judged, numbers=numbers)
            self.reporter.say(f"layer {layer + 1} {_NAMES.get(name, 'in torch')}: {_reached(judged.numbers)}")
            found["nonconvex" if name == first else name] = judged
        return found

    def _judged(self, name: str, fit: RivalFit, stage: Stage, tested: Seen, intercept: Tensor) -> Judged:
        """Return what a rival with an intercept comes to, on the images that the block was judged on."""
        own = self.stack.averaged(tested.outputs).argmax(axis=1) == self.test.labels
        outputs = self.stack.averaged(tested.offset + fit.tested)
        other = outputs.argmax(axis=1) == self.test.labels
        trained = stage.offset.cpu().numpy() + fit.trained
        result = fit.result
        numbers = NonconvexNumbers(
            objective=None if result is None else finite(result.objective),
            n_neurons=None if result is None else int(result.filters.any(dim=1).sum()),
            train_accuracy=accuracy(self.stack.averaged(trained), self._train_labels(stage)),
            test_accuracy=accuracy(outputs, self.test.labels),
            seconds=finite(fit.seconds),
            # How sure it is that one is better rests on the images where they differ.
            only_convex_right=int((own & ~other).sum()),
            only_nonconvex_right=int((other & ~own).sum()),
            optimizer=None if name == "adam" else name,
            remark=fit.remark or None,
        )
        return Judged(numbers, outputs, result, None if result is None else _neurons(result, intercept))

    def train_rival(
        self,
        layer: int,
        block: ConvexConvBlock,
        stage: Stage,
        patches: Patches,
        connect: str,
        rival: str = "adam",
    ) -> BaselineResult:
        """Train the rival of a block: the same architecture, on the same inputs, by minibatches in torch.

        Parameters
        ----------
        layer : int
            From 0.
        block : ConvexConvBlock
            Fitted.
        stage : Stage
            What it was fitted on.
        patches : Patches
            Of ``stage.inputs``.
        connect : {"group", "dense"}
            Whether a neuron feeds one cell and output, or all.
        rival : {"adam", "sgd", "two-phase", "softplus"}
        """
        settings = self.settings
        width = max(settings.baseline_width, block.n_neurons_)
        if connect == "group":
            # As many neurons for each cell, output and sign.
            share = 2 * patches.n_cells * block.n_outputs_
            width = -(-width // share) * share
        callback = self.reporter.baseline(layer, settings.baseline_epochs)
        softplus = ZETA if rival == "softplus" else None
        result = train_baseline(
            patches, stage.targets, block.reg_, width, connect=connect,
            optimizer="two-phase" if softplus else rival, softplus=softplus, epochs=settings.baseline_epochs,
            seed=settings.seed, sample_weight=stage.weights, callback=callback,
        )  # fmt: skip
        self.reporter.finish()
        return result


def _neurons(result: BaselineResult, intercept: Tensor) -> Neurons:
    """Return the neurons of a network trained in torch, with the mean that was taken off its targets."""
    # A copy: tensors that share memory can't be written.
    own = result.filters, result.readout, intercept.to(result.readout, copy=True)
    return Neurons(*own) if result.softplus is None else SoftplusNeurons(*own, intercept.new_tensor(result.softplus))


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


def _reached(numbers: NonconvexNumbers) -> str:
    """Return what a rival reached, in words."""
    objective = number(numbers.objective)
    network = "" if not math.isfinite(objective) else f"objective {objective:.6g}, {numbers.n_neurons} neurons, "
    return f"{network}{_percent(number(numbers.test_accuracy))} test accuracy, {number(numbers.seconds):.1f} s"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def describe(train: ImageSet, test: ImageSet, settings: Settings) -> dict[str, Any]:
    """Return what the summary says of the images, of all processes together."""
    n_train, n_test = (int(all_sum(torch.tensor(len(part)))) for part in (train, test))
    return {
        "name": train.name,
        "path": full_path(settings.data),
        "n_train": n_train,
        "n_test": n_test,
        "image_shape": list(train.image_shape),
        "n_classes": len(train.classes),
        "fingerprint": {"train": fingerprint(train), "test": fingerprint(test)},
    }


def summarise(records: LayerRecords) -> dict[str, Any]:
    """Return the summary of a run."""
    settings = records.settings
    return {
        "version": __version__,
        **provenance(settings, resolve_device(settings.device)),
        "data": records.data,
        "settings": {
            **{name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()},
            "device": resolve_device(settings.device),
            "threads": torch.get_num_threads(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "torch": str(torch.__version__),
            "numpy": str(np.__version__),
        },
        "layers": [entry.to_json() for entry in records.summaries],
    }
