"""baseline.safetensors: what ordinary training made of each layer of a run."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..errors import ModelFileError
from ..persistence.files import read_bytes, read_tensors

__all__ = ["BASELINE_FILE", "read_rivals"]

BASELINE_FILE = "baseline.safetensors"


def read_rivals(folder: Path, count: int) -> list[tuple[Tensor, Tensor]]:
    """Return the filters and the readout of each layer.

    Parameters
    ----------
    folder : Path
        Of a run.
    count : int
        Of layers.

    Raises
    ------
    ModelFileError
        If the file is missing or damaged.
    """
    path = folder / BASELINE_FILE
    tensors = read_tensors(path, read_bytes(path))
    try:
        return [(tensors[f"layers.{j}.filters"], tensors[f"layers.{j}.readout"]) for j in range(count)]
    except KeyError as error:
        raise ModelFileError(f"{path} is damaged: it has no {error}. Train the run again.") from error
