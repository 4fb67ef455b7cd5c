"""The exceptions of the package: one tree, so that ``except CvxcnnError`` catches all of them."""

__all__ = [
    "CvxcnnError",
    "DataError",
    "DataWarning",
    "InputError",
    "ModelFileError",
    "SolverError",
    "SolverUnavailableError",
]


class CvxcnnError(Exception):
    """Base class of every error that the package raises on purpose."""


class InputError(CvxcnnError, ValueError):
    """An argument has the wrong shape, type, range or combination."""


class DataError(CvxcnnError, OSError):
    """A data set can't be found, read or understood."""


class DataWarning(UserWarning):
    """A data set holds something that is not used."""


class ModelFileError(CvxcnnError, OSError):
    """A saved model is missing, damaged, foreign or from a newer version."""


class SolverError(CvxcnnError, RuntimeError):
    """A solver ended without a usable point."""


class SolverUnavailableError(SolverError):
    """A solver can't run here: its package, or its licence, is missing."""
