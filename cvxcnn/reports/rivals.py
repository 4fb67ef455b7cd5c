"""baseline.safetensors: what ordinary training made of each layer of a run, by each rival that is a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..activations.neurons import Neurons
from ..activations.softplus import SoftplusNeurons
from ..drawing.style import LABELS
from ..errors import ModelFileError
from ..persistence.files import read_bytes, read_tensors

__all__ = ["BASELINE_FILE", "read_rivals", "write_rivals"]

BASELINE_FILE = "baseline.safetensors"
# The rival whose tensors have no name before them: in the files of older versions it is the only one.
_FIRST = "nonconvex"


def write_rivals(folder: Path, rivals: Mapping[str, Sequence[Neurons]]) -> None:
    """Write the neurons of each rival and layer; no file if there are none.

    Raises
    ------
    OSError
        If the file can't be written.
    """
    tensors = {
        _key(method, layer, name): tensor.cpu().contiguous()
        for method, found in rivals.items()
        for layer, neurons in enumerate(found)
        for name, tensor in neurons.state().items()
    }
    if tensors:
        save_file(tensors, folder / BASELINE_FILE)


def read_rivals(folder: Path, count: int) -> dict[str, list[Neurons]]:
    """Return the neurons of each layer by the names of the rivals, the first network of a run by "nonconvex".

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
    named = [name for name in LABELS if any(key.startswith(_key(name, 0, "")) for key in tensors)] or [_FIRST]
    try:
        return {name: [_neurons(tensors, name, layer) for layer in range(count)] for name in named}
    except KeyError as error:
        raise ModelFileError(f"{path} is damaged: it has no {error}. Train the run again.") from error


def _key(method: str, layer: int, name: str) -> str:
    return f"layers.{layer}.{name}" if method == _FIRST else f"{method}.layers.{layer}.{name}"


def _neurons(tensors: Mapping[str, Tensor], method: str, layer: int) -> Neurons:
    filters, readout = (tensors[_key(method, layer, name)] for name in ("filters", "readout"))
    # Older versions wrote no intercept.
    intercept = tensors.get(_key(method, layer, "intercept"), readout.new_zeros(readout.shape[-1:]))
    zeta = tensors.get(_key(method, layer, "zeta"))
    if zeta is None:
        return Neurons(filters, readout, intercept)
    return SoftplusNeurons(filters, readout, intercept, zeta)
