"""What the commands have in common: argument types, the parser, messages, signals and exit codes."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.logging import RichHandler

from ..core.text import did_you_mean, printable
from ..core.version import __version__
from ..errors import CvxcnnError, DataWarning, InputError, ModelFileError

__all__ = ["Parser", "fraction", "integer", "one_of", "positive", "run_command"]

EXIT_CODES = (
    "Exit codes: 0 done; 1 failed (data that can't be read, a disk that is full, out of memory); 2 wrong usage, or a "
    "folder that isn't a finished run's; 130 interrupted by Ctrl-C; 143 terminated."
)
DEVICES = ("auto", "cpu", "cuda")


class Parser(argparse.ArgumentParser):
    """A parser that shows defaults, and raises its errors as one sentence that begins with the argument.

    Parameters
    ----------
    prog : str
        What is typed, such as "cvxcnn train".
    description : str
    epilog : str
        What --help ends with.
    """

    def __init__(self, prog: str, description: str, epilog: str = EXIT_CODES, **options: Any) -> None:
        options = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter, **options}
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        if message.startswith("argument "):
            message = message.removeprefix("argument ").replace(": ", " ", 1)
        unknown = re.match(r"unrecognized arguments: (?:.* )?--([^ =]+)", message)
        if unknown:
            near = did_you_mean(unknown[1], [flag.lstrip("-") for flag in self._option_string_actions])
            message = f"there is no option --{unknown[1]}{near.replace('mean ', 'mean --') or '. --help lists them.'}"
        raise InputError(message)

    def in_options(self, message: str) -> str:
        """Return what the library says of a setting as it is said of the option that gives it.

        Examples
        --------
        >>> parser = Parser("cvxcnn toy", "A toy.")
        >>> _ = parser.add_argument("--limit-train", type=int)
        >>> parser.in_options("limit_train must be from 10 to 1437; got 5.")
        '--limit-train must be from 10 to 1437; got 5.'
        """
        setting, space, rest = message.partition(" ")
        flags = {}
        for action in self._actions:
            for flag in action.option_strings:
                flags[action.dest] = flags[flag.lstrip("-").replace("-", "_")] = flag
        return f"{flags.get(setting, setting)}{space}{rest}"

    def add_device(self, group: Any) -> None:
        """Add --device to a group of options."""
        group.add_argument(
            "--device", metavar="|".join(DEVICES), type=one_of(*DEVICES), default="auto",
            help="auto is the GPU if there is one",
        )  # fmt: skip

    def add_messages(self, group: Any) -> None:
        """Add --quiet, --verbose and --version to a group of options."""
        loudness = group.add_mutually_exclusive_group()
        loudness.add_argument("--quiet", action="store_true", default=argparse.SUPPRESS, help="show errors alone")
        loudness.add_argument(
            "--verbose", action="store_true", default=argparse.SUPPRESS, help="show the library's log too"
        )
        group.add_argument("--version", action="version", version=f"cvxcnn {__version__}")


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a type of arguments: ints in a range."""
    expected = f"must be an int >= {least}" if most is None else f"must be an int from {least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{expected}; got {text}")
        return value

    return parse


def positive(text: str) -> float:
    """Return a positive, finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive, finite number; got {text}")
    return value


def fraction(text: str) -> float:
    """Return a number in (0, 1)."""
    value = positive(text)
    if not value < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1; got {text}")
    return value


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a type of arguments: these words."""

    def parse(text: str) -> str:
        if text not in choices:
            near = did_you_mean(text, choices)
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}; got {text}{near}")
        return text

    parse.choices = choices  # type: ignore[attr-defined]  # for the completion of shells
    return parse


@contextmanager
def _logging_to(console: Console, level: int) -> Iterator[None]:
    """Show the library's log on the console: in colour on a terminal, as whole lines elsewhere.

    Of what a quiet console leaves out, errors go to standard error.
    """
    logger = logging.getLogger("cvxcnn")
    handler: logging.Handler
    if console.is_terminal and not console.quiet:
        handler = RichHandler(console=console, show_path=False, markup=False)
    else:
        handler = logging.StreamHandler(sys.stderr if console.quiet else console.file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    if console.quiet:
        level = logging.ERROR
    level_before, propagate_before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level_before)
        logger.propagate = propagate_before


@contextmanager
def _warnings_in_the_log() -> Iterator[None]:
    """Say what isn't used of a data set in a line of the log."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def line(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
            if issubclass(category, DataWarning):
                logging.getLogger("cvxcnn").warning("%s", printable(str(message)))
            else:
                show(message, category, *place, **options)

        warnings.showwarning = line
        yield


class _TerminatedError(BaseException):
    """The process was asked to end."""


@contextmanager
def _raising_on_termination() -> Iterator[None]:
    """Make SIGTERM an exception, so that it leaves nothing behind either."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_command(
    parser: Parser,
    argv: Sequence[str] | None,
    work: Callable[[dict[str, Any], Console], None],
    *,
    what: str = "the results",
    unfinished: str = "nothing was written",
    remedy: str = "",
    results_on_stdout: bool = False,
) -> int:
    """Parse arguments, do the work, and turn whatever goes wrong into one line on standard error.

    Parameters
    ----------
    parser : Parser
        With the options of ``add_messages``.
    argv : sequence of str or None
        None for the arguments of the process.
    work : callable
        Called with the other options and a console for messages.
    what : str
        What is written.
    unfinished : str
        What is left of it when the work is broken off.
    remedy : str
        What helps where memory is short.
    results_on_stdout : bool
        Messages go to standard error then.

    Returns
    -------
    int
        The exit code: see ``EXIT_CODES``.
    """
    errors = Console(stderr=True)

    def fail(text: str, code: int) -> int:
        line = printable(f"{parser.prog.removeprefix('python -m ')}: {text}")
        errors.print(line, markup=False, highlight=False, soft_wrap=True)
        return code

    try:
        options = vars(parser.parse_args(argv))
        console = Console(quiet=options.pop("quiet", False), stderr=results_on_stdout)
        level = logging.INFO if options.pop("verbose", False) else logging.WARNING
        with _raising_on_termination(), _logging_to(console, level), _warnings_in_the_log():
            work(options, console)
    except SystemExit as leaving:
        # --help and --version have shown what they show.
        return int(leaving.code or 0)
    except KeyboardInterrupt as stop:
        return fail(f"interrupted; {stop.args[0] if stop.args else unfinished}.", 130)
    except _TerminatedError as stop:
        return fail(f"terminated; {stop.args[0] if stop.args else unfinished}.", 143)
    except InputError as error:
        return fail(f"error: {parser.in_options(str(error))}", 2)
    except ModelFileError as error:
        return fail(f"error: {error}", 2)
    except CvxcnnError as error:
        return fail(f"error: {error}", 1)
    except BrokenPipeError:
        # Whoever read the output has seen enough; without this the interpreter would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return fail(f"error: can't write {what}: {error.strerror or error}.", 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("out of memory|can't allocate memory", str(error)):
            raise
        return fail(f"error: out of memory. {remedy}".rstrip(), 1)
    return 0
