"""``cvxcnn``, or ``python -m cvxcnn``: the commands under one name."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from .commands import COMMANDS
from .commands.cli import EXIT_CODES, Parser, one_of, run_command
from .core.version import __version__


def build_parser() -> Parser:
    """Return the parser of what stands before a command's own arguments."""
    commands = "\n".join(f"  {name:<12}{words}" for name, (_, words) in COMMANDS.items())
    parser = Parser(
        "cvxcnn",
        "Convolutional networks trained by convex optimisation, layer by layer, with certificates.\n\n"
        f"commands:\n{commands}\n\n`cvxcnn COMMAND --help` shows the options of each.",
        EXIT_CODES.replace("; ", "\n  ").replace(": ", ":\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="cvxcnn [-h] [--version] COMMAND ...",
    )
    parser.add_argument("--version", action="version", version=f"cvxcnn {__version__}")
    parser.add_argument("command", metavar="COMMAND", type=one_of(*COMMANDS), help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        The command and its arguments; None for those of the process.

    Returns
    -------
    int
        The exit code of the command; 2 for none that is known.

    Examples
    --------
    >>> main(["--version"])  # doctest: +ELLIPSIS
    cvxcnn ...
    0
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if given and given[0] in COMMANDS:
        module = importlib.import_module(COMMANDS[given[0]][0])
        return int(module.main(given[1:], f"cvxcnn {given[0]}"))
    return run_command(build_parser(), given, lambda options, console: None)


if __name__ == "__main__":
    sys.exit(main())
