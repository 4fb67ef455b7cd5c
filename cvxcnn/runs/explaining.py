"""The explanations of a training run, from its folder into its folder."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..activations.neurons import Neurons
from ..core.checks import as_int
from ..core.text import brief, did_you_mean, one_line
from ..core.version import __version__
from ..data.fingerprint import UNKNOWN, differing, fingerprint, in_words, whereabouts
from ..data.images import ImageSet
from ..errors import CvxcnnError, DataError, InputError, ModelFileError
from ..explain.attribution import allowed, attribute, attributes
from ..explain.figures import plot_explanations, plot_sanity
from ..explain.sanity import SanityStep, sanity_checks
from ..explain.sparsity import Interval, bootstrap_interval, gini, half_mass_share
from ..models.saving import load_model
from ..models.stack import LayerwiseCNN
from ..persistence.files import ENCODING, read_bytes, write_atomically
from ..reports.html import write_report
from ..reports.rivals import BASELINE_FILE, read_rivals
from ..reports.summary import SUMMARY_FILE, RunSummary
from .records import finite
from .settings import Settings, find_again, full_path, load_sets, resolve_device

__all__ = ["explain_run", "load_networks", "read_summary", "run_images"]

MEASURES: dict[str, Callable[[Any], NDArray[np.float64]]] = {"gini": gini, "half_mass_share": half_mass_share}
COLUMNS = ("layer", "method", "measure", "network", "mean", "low", "high", "n")
SANITY_IMAGES = 200
# What a training run shows of itself: methods that every network allows, on a few images.
QUICK_METHODS = ("gradcam", "gradient")
QUICK_IMAGES = 5
# Images that are predicted together.
BATCH = 256

Maps = dict[str, dict[str, NDArray[np.float64]]]


def load_networks(
    folder: str | os.PathLike[str], layer: int | None = None, device: str = "cpu", *, alone: bool = True
) -> tuple[dict[str, nn.Module], int, LayerwiseCNN]:
    """Return the networks of a run that end in a layer's readout.

    Parameters
    ----------
    folder : str or path
        Of a finished run.
    layer : int, optional
        From 1; None for the last one.
    device : str
    alone : bool
        The layer's prediction alone; otherwise of a stack with ``residual`` or ``mirror`` all that is added to it.

    Returns
    -------
    networks : dict
        "convex", and the rivals that are networks by their names, "nonconvex" the first of them: the same blocks below
        the layer, and on top of them the one that torch trained on their maps.
    layer : int
        From 1.
    model : LayerwiseCNN

    Raises
    ------
    ModelFileError
        If files are missing, damaged, or don't fit together.
    InputError
        If there is no such layer, or no such device.
    """
    model = load_model(folder, device=device)
    count = len(model.blocks_)
    layer = count if layer is None else layer
    if not 1 <= layer <= count:
        raise InputError(f"layer must be between 1 and {count}, the layers of the run in {folder}; got {layer}.")
    networks = {"convex": model.to_torch(layer - 1, alone=alone)}
    path = Path(folder) / BASELINE_FILE
    if path.exists():
        like = model.blocks_[layer - 1].neurons_.filters
        for method, rival in read_rivals(Path(folder), count).items():
            try:
                networks[method] = model.to_torch(layer - 1, neurons=_like(rival[layer - 1], like), alone=alone)
            except (InputError, RuntimeError, IndexError) as error:
                raise ModelFileError(f"{path} doesn't fit the model beside it: {error} Train the run again.") from error
    return networks, layer, model


def _like(neurons: Neurons, like: torch.Tensor) -> Neurons:
    """Return neurons in the dtype and on the device of others."""
    found = replace(neurons, **{name: values.to(like) for name, values in neurons.state().items()})
    if not all(bool(torch.isfinite(values).all()) for values in found.state().values()):
        raise InputError("values are not finite.")
    return found


def _left_out(labels: Mapping[str, str], networks: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return why trainings of a run have no maps, by their methods."""
    return {
        method: "it is infinitely wide, and has no maps"
        if method == "kernel"
        else "its weights aren't in the folder: an older version kept those of the first rival alone"
        for method in labels
        if method not in networks and (networks.keys() - {"convex"} or method == "kernel")
    }


def read_summary(folder: Path) -> dict[str, Any]:
    """Return what is in summary.json of a finished run, or raise ModelFileError."""
    path = folder / SUMMARY_FILE
    if not folder.is_dir():
        raise ModelFileError(f"{folder} is not a folder. Give the folder of a finished run.")
    try:
        summary = json.loads(read_bytes(path).decode(ENCODING))
        _ = str(summary["settings"]["data"]), str(summary["data"]["name"]), RunSummary.from_json(summary)
        np.random.default_rng(summary["settings"].get("seed", 0))  # by which images may have been chosen
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFileError(
            f"{path} is damaged: {type(error).__name__}: {error}. Give the folder of a finished run."
        ) from error
    return dict(summary)


def run_images(
    summary: Mapping[str, Any], model: LayerwiseCNN, data: str | None, say: Callable[[str], None]
) -> tuple[ImageSet, ImageSet]:
    """Return the run's training and test images, from where they were or from ``data``, or raise DataError."""
    settings = summary["settings"]
    source = find_again(summary, data)
    limit, share, seed = (settings.get(name) for name in ("limit_train", "test_fraction", "seed"))
    seed = 0 if seed is None else seed
    known = [str(name) for name in getattr(model, "extra_", {}).get("classes", ())]
    wrong = f"The images in {full_path(source) or source} are not those of the run{whereabouts(summary['data'])}"
    remedy = "Put the run's data back, or give the place where they are by --data."
    try:
        train, test = load_sets(Settings(data=source, limit_train=limit, test_fraction=share, seed=seed))
    except InputError as error:
        raise DataError(f"{wrong}: {error} {remedy}") from error
    if test.image_shape != tuple(model.image_shape_) or (known and list(test.classes) != known):
        raise DataError(
            f"{wrong}: they are {test.image_shape} of {len(test.classes)} classes, the network was trained on "
            f"{tuple(model.image_shape_)} of {len(known)}. {remedy}"
        )
    recorded = summary["data"].get("fingerprint")
    different = differing(recorded, {"train": fingerprint(train), "test": fingerprint(test)})
    if different:
        raise DataError(f"{wrong}: {in_words(different)}. {remedy}")
    if different is None:
        say(UNKNOWN)
    return train, test


def _choose(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return the rows of images to show, as many classes as possible, ordered by class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turn[members] = np.arange(len(members))
    chosen = order[np.argsort(turn[order], kind="stable")][:count]
    return np.asarray(chosen[np.argsort(labels[chosen], kind="stable")])


def _class_number(name: str, classes: Sequence[str]) -> int:
    if name in classes:
        return list(classes).index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    shown = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
    near = did_you_mean(name, classes) or "."
    raise InputError(f"class must be a name ({shown}) or a number from 0 to {len(classes) - 1}; got {name}{near}")


def _resolution(model: LayerwiseCNN, layer: int) -> tuple[int, int]:
    """Return height and width of the feature maps of a layer, from 1."""
    block = model.blocks_[layer - 1]
    return block.geometry_.map_shape(block.image_shape_[1:])


def _all_predictions(
    folder: str | os.PathLike[str], layer: int, images: NDArray[np.float64]
) -> dict[str, NDArray[np.int64]]:
    """Return what each network of a run says of images: that of a layer, with all that is added to it."""
    networks, _, model = load_networks(folder, layer, alone=False)
    return {name: _predictions(network, images, model) for name, network in networks.items()}


def _predictions(network: nn.Module, images: NDArray[np.float64], model: LayerwiseCNN) -> NDArray[np.int64]:
    like = model.blocks_[0].neurons_.filters
    with torch.no_grad():
        parts = [network(part.to(like)).argmax(dim=1) for part in torch.split(torch.from_numpy(images), BATCH)]
    return np.asarray(torch.cat(parts).cpu().numpy())


def _row(interval: Interval, **names: Any) -> dict[str, Any]:
    return {**names, **{key: finite(value) if key != "n" else value for key, value in asdict(interval).items()}}


def _sparsity_rows(maps: Maps, layer: int, seed: int) -> list[dict[str, Any]]:
    """Return the mean of each measure by method and network, and of differences from the convex one image by image."""
    rows = []
    for method, by_network in maps.items():
        for measure, function in MEASURES.items():
            values = {network: function(found) for network, found in by_network.items()}
            for rival in [name for name in values if name != "convex"]:
                name = "difference" if rival == "nonconvex" else f"difference {rival}"
                values[name] = values["convex"] - values[rival]
            rows += [
                _row(bootstrap_interval(v, seed=seed), layer=layer, method=method, measure=measure, network=network)
                for network, v in values.items()
            ]
    return rows


def _sanity_rows(steps: Mapping[str, Mapping[str, Sequence[SanityStep]]], seed: int) -> list[dict[str, Any]]:
    return [
        _row(bootstrap_interval(step.correlation, seed=seed), method=method, network=network, depth=depth,
             randomised=step.randomised)
        for method, by_network in steps.items()
        for network, found in by_network.items()
        for depth, step in enumerate(found)
    ]  # fmt: skip


def _png(draw: Callable[..., None], *arguments: Any, **options: Any) -> bytes | Exception:
    """Return a figure, or what a drawing library raised in its place."""
    buffer = io.BytesIO()
    try:
        draw(*arguments, buffer, **options)
    except Exception as error:
        return error
    return buffer.getvalue()


def explain_run(
    folder: str | os.PathLike[str],
    *,
    layer: int | None = None,
    methods: Sequence[str] | None = None,
    n_images: int = 8,
    target: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    data: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Explain the predictions of a finished run, and write what was found into its folder.

    ``explanations.png`` shows test images and their maps; ``sparsity.csv`` has the Gini index and the half-mass share
    over the whole test set, with 95 % bootstrap intervals, of each network and of the differences image by image
    ("difference": convex minus non-convex; "difference NAME": convex minus a further rival); ``sanity.png`` the
    cascading randomisation on up to 200 of the test images; ``explanations.json`` all numbers. ``report.html`` is
    written anew with the figures in it. Each file is written whole, over one of its name; no other file is touched.

    Parameters
    ----------
    folder : str or path
        Of a finished run.
    layer : int, optional
        The layer whose outputs are explained, from 1; None for the last one.
    methods : sequence of str, optional
        Of ``METHODS``; None for all that the convex network allows. A rival that doesn't allow one has no such maps.
    n_images : int
        Rows of the figure, 1 or more.
    target : str, optional
        Name or number of the class to explain; None for each image's true class.
    seed : int
        Of the images shown, of the random weights and of the bootstrap.
    device : {"auto", "cpu", "cuda"}
    data : str, optional
        Where the run's images are now; None for where they were.
    say : callable, optional
        Called with a line of text as the work goes on.

    Returns
    -------
    dict
        What is in ``explanations.json``.

    Raises
    ------
    ModelFileError
        If the folder isn't that of a finished run, or its files are damaged.
    InputError
        If an argument is out of its range, or a method can't be used on a network.
    DataError
        If the run's images can't be found, or what is there are others.
    CvxcnnError
        If a figure can't be drawn; all others and the numbers are there.
    OSError
        If the files can't be written.
    """
    source = Path(folder)
    n_images = as_int("n_images", n_images)
    summary = read_summary(source)
    networks, layer, model = load_networks(source, layer, resolve_device(device))
    _, test = run_images(summary, model, data, say)
    labels = RunSummary.from_json(summary).labels()
    methods = list(dict.fromkeys(allowed(networks["convex"]) if methods is None else methods))
    targets = test.labels if target is None else np.full(len(test), _class_number(target, test.classes))
    asked = "the true class" if target is None else f"class {test.classes[targets[0]]}"

    maps: Maps = {method: {} for method in methods}
    steps: dict[str, dict[str, list[SanityStep]]] = {method: {} for method in methods}
    sample = np.random.default_rng(seed).permutation(len(test))[:SANITY_IMAGES]
    for name, network in networks.items():
        own = methods if name == "convex" else [method for method in methods if method in allowed(network)]
        for method, found_maps in attributes(network, test.images, targets, own).items():
            maps[method][name] = found_maps
        without = "" if own == methods else f", none of {', '.join(method for method in methods if method not in own)}"
        say(f"{labels[name]} network: maps of {len(test)} test images{without}")
        checked = sanity_checks(network, test.images[sample], targets[sample], own, seed=seed)
        for method, found_steps in checked.items():
            steps[method][name] = found_steps
        say(f"{labels[name]} network: sanity check on {len(sample)} of them")
    left_out = _left_out(labels, networks)
    for name, why in left_out.items():
        say(f"{labels[name]}: left out, for {why}")
    rows = _choose(test.labels, n_images, seed)
    predictions = _all_predictions(source, layer, test.images[rows])
    sparsity = _sparsity_rows(maps, layer, seed)
    found: dict[str, Any] = {
        "version": __version__,
        "layer": layer,
        "target": asked,
        "methods": list(methods),
        "seed": seed,
        "n_test": len(test),
        "labels": {name: labels[name] for name in networks},
        "left_out": left_out,
        "resolution": list(_resolution(model, layer)),
        "images": [
            {"index": int(row), "true": test.classes[test.labels[row]],
             **{name: test.classes[guess[number]] for name, guess in predictions.items()}}
            for number, row in enumerate(rows)
        ],
        "sparsity": sparsity,
        "sanity": {"n_images": len(sample), "steps": _sanity_rows(steps, seed)},
    }  # fmt: skip
    where = f"{brief(str(summary['data']['name']))}, layer {layer}"
    title = f"{where}: what the output for {asked} rests on"
    shown = {method: {name: part[rows] for name, part in by_network.items()} for method, by_network in maps.items()}
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    writer.writerows(sparsity)
    contents: dict[str, bytes | Exception] = {
        "explanations.png": _png(
            plot_explanations,
            test.images[rows],
            test.labels[rows],
            test.classes,
            shown,
            predictions,
            title=title,
            resolution=_resolution(model, layer),
            names=labels,
        ),
        "sparsity.csv": table.getvalue().encode(),
        "sanity.png": _png(plot_sanity, steps, title=where, seed=seed, names=labels),
        "explanations.json": json.dumps(found, indent=2, allow_nan=False).encode() + b"\n",
    }
    failures = []
    for name, content in contents.items():
        if isinstance(content, bytes):
            write_atomically(source / name, content)
        else:
            # One of an earlier call would be shown with the new numbers.
            (source / name).unlink(missing_ok=True)
            failures.append(f"{name} can't be drawn: {one_line(content)}")
    write_report(source)
    if failures:
        raise CvxcnnError(f"{'; '.join(failures)}. The numbers are in {source}.")
    return found


def explain_quickly(folder: str | os.PathLike[str], test: ImageSet, path: str | os.PathLike[str]) -> None:
    """Draw Grad-CAM and the gradient of a few test images, without numbers and without a sanity check.

    Parameters
    ----------
    folder : str or path
        Of a finished run.
    test : ImageSet
        The run's test images.
    path : str or path
        A PNG, written over if it is there.

    Raises
    ------
    ModelFileError
        If the folder isn't that of a finished run, or its files are damaged.
    InputError
        If the networks can't be explained.
    OSError
        If the figure can't be written.
    """
    networks, layer, model = load_networks(folder)
    some = test.subset(_choose(test.labels, QUICK_IMAGES, seed=0))
    maps = {
        method: {name: attribute(network, some.images, some.labels, method) for name, network in networks.items()}
        for method in QUICK_METHODS
    }
    predictions = _all_predictions(folder, layer, some.images)
    title = f"{brief(test.name)}, layer {layer}"
    plot_explanations(
        some.images,
        some.labels,
        some.classes,
        maps,
        predictions,
        os.fspath(path),
        title=title,
        resolution=_resolution(model, layer),
        names=RunSummary.from_json(read_summary(Path(folder))).labels(),
    )
