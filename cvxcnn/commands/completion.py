"""``cvxcnn completion``: a script with which a shell completes commands, options, their values and paths."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from ..errors import InputError
from . import COMMANDS
from .cli import Parser, one_of, run_command

__all__ = ["main", "script"]

SHELLS = ("bash", "zsh", "tcsh")


def build_parser(prog: str) -> Parser:
    """Return the command's parser."""
    parser = Parser(
        prog,
        "Print a script with which a shell completes the command line: write it where the shell looks for it, such as "
        "~/.local/share/bash-completion/completions/cvxcnn for bash. Needs shtab: pip install 'cvxcnn[completion]'.",
    )
    parser.add_argument("shell", metavar="|".join(SHELLS), type=one_of(*SHELLS), help="whose script")
    parser.add_messages(parser.add_argument_group("messages"))
    return parser


def script(shell: str, parsers: Mapping[str, Parser]) -> str:
    """Return the script of a shell.

    Parameters
    ----------
    shell : {"bash", "zsh", "tcsh"}
    parsers : mapping
        That of each command, by its name.

    Raises
    ------
    InputError
        If shtab isn't installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise InputError("completion needs shtab. Install it by: pip install 'cvxcnn[completion]'") from error
    whole = argparse.ArgumentParser("cvxcnn")
    whole.add_argument("--version", action="version", version="")
    commands = whole.add_subparsers()
    for name, parser in parsers.items():
        parser.add_help = False
        for action in parser._actions:
            if choices := getattr(action.type, "choices", None):
                action.choices = choices
            if action.metavar in ("DIR", "RUN"):
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]  # where shtab looks for it
            elif "PATH" in str(action.metavar) or action.metavar in ("FILE", "IMAGES"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        commands.add_parser(name, parents=[parser], conflict_handler="resolve", help=COMMANDS[name][1])
    return str(shtab.complete(whole, shell))


def main(argv: Sequence[str] | None = None, prog: str = "cvxcnn completion") -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; None for those of the process.
    prog : str
        What was typed.

    Returns
    -------
    int
        Exit code: 0; 2 for wrong usage, or without shtab.
    """

    def work(options: dict[str, Any], console: Console) -> None:
        parsers: dict[str, Parser] = {}
        for name, (module, _) in COMMANDS.items():
            build: Callable[[str], Parser] = importlib.import_module(module).build_parser
            parsers[name] = build(f"cvxcnn {name}")
        sys.stdout.write(script(options["shell"], parsers))

    return run_command(build_parser(prog), argv, work, what="the script", results_on_stdout=True)
