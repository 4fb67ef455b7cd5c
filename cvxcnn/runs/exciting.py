"""exciting_patches.png: the patches of training images that excite the neurons of each layer of a run most."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torch import nn

from ..core.text import brief
from ..data.images import ImageSet
from ..explain.exciting import exciting_patches
from ..explain.figures import plot_exciting
from ..reports.summary import RunSummary
from .explaining import load_networks, read_summary

__all__ = ["draw_exciting"]

# Networks that are shown, and pixels of all images that are looked through.
_SHOWN = ("convex", "nonconvex")
_MOST_PIXELS = 1 << 19


def draw_exciting(folder: str | os.PathLike[str], train: ImageSet, path: str | os.PathLike[str]) -> None:
    """Draw the patches of training images that excite the neurons of each layer most.

    Parameters
    ----------
    folder : str or path
        Of a finished run.
    train : ImageSet
        The run's training images; of many, some that are spread evenly are looked through.
    path : str or path
        A PNG, written over if it is there.

    Raises
    ------
    ModelFileError
        If the folder isn't that of a finished run, or its files are damaged.
    InputError
        If no layer has a neuron.
    OSError
        If the figure can't be written.
    """
    summary = RunSummary.from_json(read_summary(Path(folder)))
    labels, (_, height, width) = summary.labels(), train.image_shape
    count = min(len(train), max(1, _MOST_PIXELS // (height * width)))
    images = train.images[np.linspace(0, len(train) - 1, count).astype(np.int64)]
    found = {}
    for entry in summary.layers:
        networks, layer, _ = load_networks(folder, entry.layer)
        for name in _SHOWN:
            if isinstance(network := networks.get(name), nn.Sequential):
                # Twice as fast, and no figure needs more.
                found[f"layer {layer}, {labels[name]}"] = exciting_patches(network.float(), images)
    title = f"{brief(train.name)}: patches of training images that excite the strongest neurons most"
    plot_exciting(found, train.classes, os.fspath(path), title=title)
