"""Text for people: lines that any console can show, names that fit a title."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ..errors import CvxcnnError

__all__ = ["brief", "did_you_mean", "in_percent", "one_line", "printable"]

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


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a question for a misspelt word, to stand behind an error; nothing where no known word is near.

    Examples
    --------
    >>> did_you_mean("gatd_relu", ("relu", "gated_relu")), did_you_mean("tanh", ("relu", "gated_relu"))
    (': did you mean gated_relu?', '')
    """
    near = difflib.get_close_matches(given.casefold(), list(known), 1)
    return f": did you mean {near[0]}?" if near else ""


def in_percent(share: float) -> str:
    """Return a share in per cent, in two digits.

    Examples
    --------
    >>> in_percent(0.01262), in_percent(13.62), in_percent(2e-8)
    ('1.3 %', '1,400 %', '2e-06 %')
    """
    rounded = float(f"{100 * share:.2g}")
    return f"{rounded:,.0f} %" if rounded >= 100 else f"{rounded:g} %"
