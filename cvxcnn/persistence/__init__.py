"""Model files: a folder with ``model.safetensors`` and ``config.json``, which hold numbers and can't run code.

Models give and take a ``State``, tensors by name and everything else as JSON values, in which numbers that are not
finite are null; no model is known here. The configuration holds the SHA-256 of the tensors' file, and one of itself.
"""

from .files import (
    CONFIG_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    read_bytes,
    read_tensors,
    write_atomically,
    write_output,
)
from .state import State, StateReader, plain, read_state, write_state

__all__ = [
    "CONFIG_FILE",
    "FORMAT_VERSION",
    "WEIGHTS_FILE",
    "State",
    "StateReader",
    "plain",
    "read_bytes",
    "read_state",
    "read_tensors",
    "write_atomically",
    "write_output",
    "write_state",
]
