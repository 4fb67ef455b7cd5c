"""The command line, ``python -m cvxcnn.train``: arguments, messages, signals and exit codes of a training run."""

from __future__ import annotations

import argparse
import logging
import math
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.logging import RichHandler

from . import __version__
from .errors import CvxcnnError, InputError
from .progress import printable
from .run import Settings, run
from .solvers import SOLVERS

__all__ = ["main"]

PROGRAM = "cvxcnn.train"


class Parser(argparse.ArgumentParser):
    """Raises its errors, as one sentence that begins with the argument."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        if message.startswith("argument "):
            message = message.removeprefix("argument ").replace(": ", " ", 1)
        raise InputError(message)


def _integer(least: int, most: int | None = None) -> Callable[[str], int]:
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


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive, finite number; got {text}")
    return value


def _fraction(text: str) -> float:
    value = _positive(text)
    if not value < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1; got {text}")
    return value


def _gates(text: str) -> int | str:
    if text == "priced":
        return text
    try:
        return _integer(1)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f'must be "priced" or an int >= 1; got {text}') from error


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}; got {text}")
        return text

    return parse


def build_parser() -> Parser:
    """Return the command line's parser; its defaults are those of ``Settings``."""
    parser = Parser(
        prog=f"python -m {PROGRAM}",
        description="Train a CNN layer by layer by convex optimisation, and each layer the ordinary way beside it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )

    def add(group: Any, flag: str, **options: Any) -> None:
        default = getattr(Settings, flag.lstrip("-").replace("-", "_"))
        # None and tuples are described in the help's own words, and left to Settings.
        plain = isinstance(default, (int, float, str))
        group.add_argument(flag, default=default if plain else argparse.SUPPRESS, **options)

    size = _integer(1)
    data = parser.add_argument_group("data")
    add(data, "--data", metavar="digits|cifar10|PATH", help="images: a name, or files in a layout that is known")
    add(data, "--limit-train", metavar="N", type=size, help="train on N images, each class in its share (default: all)")
    add(data, "--output", metavar="DIR", help="folder of the results, new or empty (default: runs/<data>-<time>)")

    model = parser.add_argument_group("network")
    add(model, "--layers", metavar="N", type=size, help="number of blocks")
    add(model, "--kernel-size", metavar="N", type=size, help="side of a filter, pixels")
    add(model, "--padding", metavar="N", type=_integer(0), help="zeros around the images, pixels")
    add(model, "--pool-cells", metavar="N", type=size, help="feature maps are pooled into N x N cells")
    add(
        model, "--downsample", metavar="N", type=size, nargs="+",
        help="average pooling after each layer; the last value stands for all further layers (default: 2)",
    )  # fmt: skip

    program = parser.add_argument_group("convex program")
    activations, penalties = ("relu", "gated_relu"), ("dense", "group", "nuclear")
    add(program, "--activation", metavar="|".join(activations), type=_one_of(*activations), help="of the blocks")
    program.add_argument(
        "--penalty", metavar="|".join(penalties), type=_one_of(*penalties),
        help="what a neuron feeds, and what that costs (default: dense; nuclear for gated networks)",
    )  # fmt: skip
    add(program, "--gates", metavar="priced|N", type=_gates, help="found by the optimisation, or N random ones")
    solvers = ("auto", *sorted(SOLVERS))
    add(program, "--solver", metavar="NAME", type=_one_of(*solvers), help=f"one of {', '.join(solvers)}")
    add(
        program, "--reg", metavar="X", type=_positive,
        help="lambda itself, the same in every layer (default: from --reg-fraction)",
    )  # fmt: skip
    add(
        program, "--reg-fraction", metavar="F", type=_fraction,
        help="lambda of a layer as a share of the least one with a zero solution",
    )  # fmt: skip
    add(program, "--rounds", metavar="N", type=size, help="pricing rounds of a layer, at most")
    add(program, "--tol", metavar="X", type=_positive, help="relative duality gap over the gates at hand")

    rival = parser.add_argument_group("ordinary training, for comparison")
    rival.add_argument("--no-baseline", action="store_true", default=argparse.SUPPRESS, help="leave it out")
    add(rival, "--baseline-width", metavar="N", type=size, help="its neurons, at least as many as the block's")
    add(rival, "--baseline-epochs", metavar="N", type=size, help="passes over the images, at most")

    other = parser.add_argument_group("machine and messages")
    devices = ("auto", "cpu", "cuda")
    add(other, "--device", metavar="|".join(devices), type=_one_of(*devices), help="auto is the GPU if there is one")
    add(other, "--seed", metavar="N", type=_integer(0, 2**32 - 1), help="of everything random")
    loudness = other.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", default=argparse.SUPPRESS, help="show errors alone")
    loudness.add_argument("--verbose", action="store_true", default=argparse.SUPPRESS, help="show the library's log")
    other.add_argument("--version", action="version", version=f"cvxcnn {__version__}")
    return parser


def parse_settings(argv: Sequence[str] | None) -> tuple[Settings, bool, bool]:
    """Return the settings of a command line, whether it is to be quiet, and whether verbose."""
    values = vars(build_parser().parse_args(argv))
    quiet, verbose = values.pop("quiet", False), values.pop("verbose", False)
    values["baseline"] = not values.pop("no_baseline", False)
    if values["activation"] == "gated_relu":
        values.setdefault("penalty", "nuclear")
    if "downsample" in values:
        values["downsample"] = tuple(values["downsample"])
    return Settings(**values), quiet, verbose


@contextmanager
def _logging_to(console: Console, level: int) -> Iterator[None]:
    """Show the library's log on the console."""
    logger = logging.getLogger("cvxcnn")
    handler = RichHandler(console=console, show_path=False, markup=False)
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; None for those of the process.

    Returns
    -------
    int
        Exit code: 0; 1 for failures; 2 for wrong usage; 130 for Ctrl-C and 143 for SIGTERM.
    """
    errors = Console(stderr=True)

    def fail(text: str, code: int) -> int:
        errors.print(printable(f"{PROGRAM}: {text}"), markup=False, highlight=False, soft_wrap=True)
        return code

    try:
        settings, quiet, verbose = parse_settings(argv)
        console = Console(quiet=quiet)
        with _raising_on_termination(), _logging_to(console, logging.INFO if verbose else logging.WARNING):
            run(settings, console)
    except SystemExit as leaving:
        # --help and --version have shown what they show.
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        return fail("interrupted; nothing was written.", 130)
    except _TerminatedError:
        return fail("terminated; nothing was written.", 143)
    except InputError as error:
        return fail(f"error: {error}", 2)
    except CvxcnnError as error:
        return fail(f"error: {error}", 1)
    except OSError as error:
        return fail(f"error: can't write the results: {error.strerror or error}.", 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("out of memory|can't allocate memory", str(error)):
            raise
        return fail("error: out of memory. Use --limit-train, a larger --reg, or more --downsample.", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
