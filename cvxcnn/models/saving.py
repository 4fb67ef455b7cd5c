"""A stack written into a folder and read back, as functions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .stack import LayerwiseCNN

__all__ = ["load_model", "save_model"]


def save_model(model: LayerwiseCNN, folder: str | os.PathLike[str], *, extra: Mapping[str, Any] | None = None) -> None:
    """Write a fitted stack into a folder; the same as its method ``save``.

    Parameters
    ----------
    model : LayerwiseCNN
        Fitted.
    folder : str or path
        Made if it isn't there.
    extra : dict, optional
        JSON values to keep beside the model, such as class names; ``extra_`` of the loaded model. None keeps
        those that the model was loaded with.

    Raises
    ------
    InputError
        If the model isn't a LayerwiseCNN, or ``extra`` can't be written as JSON.
    NotFittedError
        If it isn't fitted.
    ModelFileError
        If the folder can't be written; nothing is left in it then.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from cvxcnn import ConvexConvBlock
    >>> images = torch.linspace(-1, 1, 500, dtype=torch.float64).sin().view(20, 1, 5, 5)
    >>> stack = LayerwiseCNN(layers=1, block=ConvexConvBlock(gates=5, reg=2.0)).fit(images, images[:, 0, 2, 2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(stack, folder, extra={"target": "centre pixel"})
    ...     loaded = load_model(folder)
    >>> loaded.extra_, bool((loaded.predict(images) == stack.predict(images)).all())
    ({'target': 'centre pixel'}, True)
    """
    if not isinstance(model, LayerwiseCNN):
        raise InputError(f"model must be a LayerwiseCNN; got {type(model).__name__}. Blocks and estimators have save.")
    model.save(folder, extra=extra)


def load_model(folder: str | os.PathLike[str], *, device: str = "cpu") -> LayerwiseCNN:
    """Return the stack that ``save_model`` wrote, the same as ``LayerwiseCNN.load``.

    Parameters
    ----------
    folder : str or path
    device : str
        Where the model is put.

    Returns
    -------
    LayerwiseCNN
        Fitted; ``extra_`` holds what was saved beside it. ``ConvexCNNClassifier.load`` makes a classifier of the same
        folder, with the classes and the scores of a run.

    Raises
    ------
    ModelFileError
        If files are missing, unreadable, damaged, from another program or a newer version, or don't fit together.
    InputError
        If the device isn't there.
    """
    return LayerwiseCNN.load(folder, device=device)
