"""Text for people: lines that any console can show, names that fit a title."""

from __future__ import annotations

from ..errors import CvxcnnError

__all__ = ["brief", "one_line", "printable"]

_NAME_WIDTH = 40


def printable(text: str) -> str:
    r"""Return text that any console can show: names of files may hold bytes that are no characters.

    Examples
    --------
    >>> printable("image \udcff")
    'image \\udcff'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(error: BaseException) -> str:
    """Return what an error says, and its kind where that says more, on one line without a full stop.

    Examples
    --------
    >>> one_line(OSError(28, "No space left on device")), one_line(KeyError("dpi")), one_line(MemoryError())
    ('No space left on device', "KeyError: 'dpi'", 'MemoryError')
    """
    text = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
    if text and isinstance(error, (CvxcnnError, OSError)):
        return printable(text)
    return printable(": ".join(part for part in (type(error).__name__, text) if part))


def brief(name: str) -> str:
    r"""Return a name as a title has room for it: on one line, of 40 characters at most.

    Examples
    --------
    >>> brief("two\nlines"), brief("x" * 50)
    ('two lines', 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...')
    """
    name = " ".join(printable(name).split())
    return name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 3] + "..."
