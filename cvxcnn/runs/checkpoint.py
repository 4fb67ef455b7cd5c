"""What a run keeps of its finished layers, so that another can go on from there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..activations.neurons import Neurons
from ..errors import ModelFileError
from ..models.saving import load_model, save_model
from ..models.stack import LayerwiseCNN
from ..persistence.files import ENCODING, read_bytes
from ..reports.history import HISTORY_FILE, Point, read_history, write_history
from ..reports.predictions import PREDICTIONS_FILE, Predictions, read_predictions
from ..reports.rivals import read_rivals, write_rivals
from ..reports.summary import SUMMARY_FILE, LayerSummary
from .rivals import networks_of

__all__ = [
    "State",
    "drop_checkpoints",
    "find_state",
    "read_state",
    "write_checkpoint",
    "write_state",
]

_PREFIX = "layers-"


@dataclass
class State:
    """Finished layers, and everything that was found out about them.

    Attributes
    ----------
    summary : dict
        As in ``summary.json``; its "layers" are those that are finished.
    stack : LayerwiseCNN or None
        Their blocks; None if there are none.
    rivals : mapping of str to list of Neurons
        What each of the rivals that are networks is at each layer; empty if there is none.
    history : list of Point
    tested : Predictions or None
        Of the last layer; None in the folders of older versions.
    """

    summary: dict[str, Any]
    stack: LayerwiseCNN | None = None
    rivals: Mapping[str, Sequence[Neurons]] = field(default_factory=dict)
    history: list[Point] = field(default_factory=list)
    tested: Predictions | None = None


def write_state(folder: Path, state: State, extra: dict[str, Any]) -> None:
    """Write a state's files; ``extra`` goes into the model's configuration.

    Raises
    ------
    OSError
        If they can't be written.
    """
    if state.stack is not None:
        save_model(state.stack, folder, extra=extra)
    write_rivals(folder, state.rivals)
    write_history(state.history, folder / HISTORY_FILE)
    if state.tested is not None:
        state.tested.write(folder / PREDICTIONS_FILE)
    text = json.dumps(state.summary, indent=2, allow_nan=False)
    (folder / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")


def read_state(folder: Path) -> State:
    """Return the state in a folder.

    Raises
    ------
    ModelFileError
        If a file is missing or damaged, or they don't belong together.
    """
    path = folder / SUMMARY_FILE
    try:
        summary = json.loads(read_bytes(path).decode(ENCODING))
        count, settings = len(summary["layers"]), dict(summary["settings"])
        for entry in summary["layers"]:
            _ = float(entry["reg"]), LayerSummary.from_json(entry)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFileError(f"{path} is damaged: {type(error).__name__}: {error}. Train the run again.") from error
    if not count:
        return State(summary)
    stack = load_model(folder)
    networks = settings.get("baseline", True) and networks_of(settings.get("rivals", ("adam",)))
    rivals = read_rivals(folder, count) if networks else {}
    if len(stack.blocks_) != count:
        raise ModelFileError(
            f"{path} has {count} layers and the model beside it {len(stack.blocks_)}. Train the run again."
        )
    tested = read_predictions(folder / PREDICTIONS_FILE, stack.blocks_[-1].n_outputs_)
    return State(summary, stack, rivals, list(read_history(folder / HISTORY_FILE)), tested)


def write_checkpoint(partial: Path, state: State, extra: dict[str, Any]) -> None:
    """Write a state into the folder of an unfinished run, in place of the one before: all of it or nothing."""
    count = len(state.summary["layers"])
    draft = partial / ".draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    write_state(draft, state, extra)
    target = partial / f"{_PREFIX}{count}"
    shutil.rmtree(target, ignore_errors=True)
    os.replace(draft, target)
    for older in _checkpoints(partial)[1:]:
        shutil.rmtree(older, ignore_errors=True)


def drop_checkpoints(partial: Path) -> None:
    """Remove the states in the folder of a run that is about to be complete."""
    for path in [*_checkpoints(partial), partial / ".draft"]:
        shutil.rmtree(path, ignore_errors=True)


def _checkpoints(partial: Path) -> list[Path]:
    """Return the states in the folder of an unfinished run, the newest first."""
    found = [path for path in partial.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(found, key=lambda path: -int(path.name.removeprefix(_PREFIX)))


def find_state(path: Path, partial: Path) -> Path:
    """Return the folder with the newest state of a run: of one that was killed, or of one that was interrupted.

    Raises
    ------
    ModelFileError
        If there is none.
    """
    killed = _checkpoints(partial)
    if killed:
        return killed[0]
    if (path / SUMMARY_FILE).is_file():
        return path
    raise ModelFileError(f"There is no run to go on with in {path}. Give the folder that it was to write to.")
