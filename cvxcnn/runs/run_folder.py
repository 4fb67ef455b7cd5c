"""The folder of a run's results, which appears complete or not at all."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from types import TracebackType

from ..errors import CvxcnnError, InputError
from ..reports.summary import SUMMARY_FILE

__all__ = ["OutputFolder", "default_output", "hidden_folder"]


class OutputFolder:
    """A folder that appears when its content is complete, and not before.

    Content is written into ``partial``, a hidden folder beside it, which becomes the folder by ``publish`` and
    is removed on any other way out.

    Parameters
    ----------
    path : str or path
    resume : bool
        The folder may hold a run already, and the hidden one what a killed run left: both are gone on with.

    Raises
    ------
    InputError
        On entering, if the folder holds files already, is a file, or can't be written.
    """

    def __init__(self, path: str | os.PathLike[str], resume: bool = False) -> None:
        self.path = Path(path)
        self.resume = resume
        self.partial = Path()
        self._made: list[Path] = []

    def __enter__(self) -> OutputFolder:
        try:
            # Resolved, so that the hidden folder is beside what a link points to.
            resolved = self.path.expanduser().resolve()
            if not self.resume:
                self._check_free(self.path.expanduser())
            self.partial = hidden_folder(resolved)
            parents = [parent for parent in self.partial.parents if not parent.exists()]
            for parent in reversed(parents):
                parent.mkdir(exist_ok=True)
                self._made.append(parent)
            self.partial.mkdir(exist_ok=self.resume)
            # What a killed run left is not this one's to remove.
            if not self.resume:
                self._made.append(self.partial)
        except FileExistsError as error:
            self._remove()
            raise InputError(
                f"{self.partial} is there already: another run writes to {self.path}, or one was killed. "
                f"Wait for it, go on with it by --resume {self.path}, delete that folder, or give another --output."
            ) from error
        except (OSError, ValueError, RuntimeError) as error:
            self._remove()
            if isinstance(error, CvxcnnError):
                raise
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"can't write to {self.path}: {reason}. Give another --output.") from error
        except BaseException:
            self._remove()
            raise
        return self

    def _check_free(self, path: Path) -> None:
        if path.is_dir():
            content = sorted(entry.name for entry in path.iterdir())
            if content:
                shown = SUMMARY_FILE if SUMMARY_FILE in content else content[0]
                raise InputError(f"{self.path} isn't empty: it holds {shown}. Give another --output, or delete it.")
            if not os.access(path, os.W_OK | os.X_OK):
                raise InputError(f"can't write to {self.path}: Permission denied. Give another --output.")
        elif path.exists():
            kind = "a file" if path.is_file() else "no folder"
            raise InputError(f"{self.path} is {kind}. Give another --output.")

    def publish(self) -> Path:
        """Make the content appear at ``path``, and return that, resolved."""
        target = self.path.expanduser().resolve()
        if target.is_dir():
            # The folder itself stays: it may be a mount, or someone's working directory. A summary is a whole run's,
            # and what a killed run is gone on from, in folders, is needed until then.
            for entry in sorted(self.partial.iterdir(), key=lambda entry: (entry.is_dir(), entry.name == SUMMARY_FILE)):
                # Of a run that is gone on with, a file may be a link to another place.
                shutil.move(entry, os.path.realpath(target / entry.name))
            self.partial.rmdir()
        else:
            os.replace(self.partial, target)
        self._made = []
        return target

    def keep(self) -> None:
        """Leave what is written where it is, even if the run fails: there is something to go on from."""
        self._made = []

    def _remove(self) -> None:
        """Remove what was made here, and nothing else."""
        for folder in reversed(self._made):
            if folder == self.partial:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                try:
                    folder.rmdir()
                except OSError:
                    break
        self._made = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()


def hidden_folder(path: Path) -> Path:
    """Return the folder in which the run that is to appear at ``path`` is written."""
    resolved = path.expanduser().resolve()
    return resolved.with_name(f".{resolved.name}.partial")


def default_output(data: str) -> Path:
    """Return runs/<data>-<time>, with a number behind it if that is taken."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(data).stem).strip("._") or "data"
    path = Path("runs", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    candidate, number = path, 1
    while candidate.exists() or candidate.with_name(f".{candidate.name}.partial").exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
