"""``save`` and ``load`` for everything that is fitted; ``persistence`` has the files, each model its own state."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from ..persistence.state import State, StateReader, read_state, write_state

__all__ = ["Savable"]

Self = TypeVar("Self", bound="Savable")

# The kinds of models that a folder may hold.
KINDS = ("ConvexConvBlock", "LayerwiseCNN", "ConvexCNNClassifier", "ConvexCNNRegressor", "CircularCNN")


class Savable(ABC):
    """Gives a class ``save(folder)`` and ``load(folder)``."""

    kind: ClassVar[str]
    extra_: dict[str, Any]

    @abstractmethod
    def state(self) -> State:
        """Return what is written of this fitted model.

        Raises
        ------
        NotFittedError
            If it isn't fitted.
        """

    @classmethod
    @abstractmethod
    def from_state(cls: type[Self], reader: StateReader) -> Self:
        """Return the model of a state that was read; every piece is checked."""

    @abstractmethod
    def check_device(self) -> None:
        """Raise InputError if the device that this model was loaded onto isn't there."""

    def save(self, folder: str | os.PathLike[str], *, extra: Mapping[str, Any] | None = None) -> None:
        """Write this fitted model into a folder, as ``model.safetensors`` and ``config.json``.

        Parameters
        ----------
        folder : str or path
            Made if it isn't there. Its two files are replaced; others in it are left alone.
        extra : dict, optional
            JSON values to keep beside the model; ``extra_`` of the loaded one. None keeps those of a loaded model.

        Raises
        ------
        InputError
            If ``extra``, or a label of a classifier, can't be written as JSON.
        NotFittedError
            If it isn't fitted.
        ModelFileError
            If the folder can't be written; nothing is left in it then.
        """
        write_state(self.state(), folder, getattr(self, "extra_", {}) if extra is None else extra)

    @classmethod
    def load(cls: type[Self], folder: str | os.PathLike[str], *, device: str = "cpu") -> Self:
        """Return the model that ``save`` wrote, with the same predictions to the last bit; no code is run.

        The blocks hold no solver weights and no history (``result_.weights`` is empty). A block fitted on an array
        of gates, or by a sampler, has its distinct gates for ``gates``, so that it can be fitted again.

        Parameters
        ----------
        folder : str or path
        device : str
            Where the model is put.

        Raises
        ------
        ModelFileError
            If files are missing, damaged, of another kind of model or program, or of a newer version.
        InputError
            If the device isn't there.
        """
        model, extra = read_state(folder, cls.kind, KINDS, device, cls.from_state)
        # After the file itself is known to be good, so that a missing device isn't taken for a damaged file.
        model.check_device()
        model.extra_ = extra
        return model
