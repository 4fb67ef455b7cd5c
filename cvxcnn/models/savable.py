"""``save`` and ``load`` for everything that is fitted; ``persistence`` has the format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

__all__ = ["Savable"]

Self = TypeVar("Self", bound="Savable")


class Savable:
    """Gives a class ``save(folder)`` and ``load(folder)``."""

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
        from .saving import save

        save(self, folder, extra=extra)

    @classmethod
    def load(cls: type[Self], folder: str | os.PathLike[str], *, device: str = "cpu") -> Self:
        """Return the model that ``save`` wrote, with the same predictions to the last bit; no code is run.

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
        from .saving import load

        model: Self = load(cls, folder, device=device)
        return model
