"""``cvxcnn diagnose``, or ``python -m cvxcnn.diagnose``: what the layers of a finished run are, into its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..core.text import in_percent, printable
from ..reports.html import DIAGNOSIS_FILE, REPORT_FILE
from ..runs.diagnosing import diagnose_run
from .cli import Parser, positive, run_command

PROGRAM = "python -m cvxcnn.diagnose"


def build_parser(prog: str = PROGRAM) -> Parser:
    """Return the command's parser."""
    parser = Parser(
        prog,
        "Say of each layer of a training run, convex and of each rival that is a network, whether it is a stationary "
        "point, a saddle, a spurious minimum, or optimal within its certificate, and what theorems say of it. Writes "
        f"{DIAGNOSIS_FILE} into the folder, and {REPORT_FILE} anew.",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of a finished run")
    other = parser.add_argument_group("machine and messages")
    other.add_argument("--data", metavar="PATH", help="where the run's images are now (default: where they were)")
    other.add_argument("--memory", metavar="GIB", type=positive, help="refuse to need more (default: no limit)")
    parser.add_device(other)
    parser.add_messages(other)
    return parser


def diagnosis_table(found: Mapping[str, Any]) -> Table:
    """Return what ``diagnose_run`` found as a table."""
    table = Table(title="what each network is; gradients relative to reg |weights|", box=box.SIMPLE_HEAD, padding=0)
    for heading in ("Layer", "Training", "Verdict", "Above bound", "Gradient", "at kinks", "Descent gains"):
        table.add_column(heading)
    for block in found["blocks"]:
        steady, bent = block["stationarity"], block["curvature"]
        shares = (block["above_bound"], steady["plain"], steady["clarke"], bent["descent"])
        cells = ["-" if share is None else in_percent(share) for share in shares]
        table.add_row(str(block["layer"]), found["labels"][block["method"]], block["verdict"], *cells)
    return table


def main(argv: Sequence[str] | None = None, prog: str = PROGRAM) -> int:
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
        Exit code: 0; 1 for failures; 2 for wrong usage or a folder that isn't a finished run's; 130 for Ctrl-C and
        143 for SIGTERM.
    """

    def work(options: dict[str, Any], console: Console) -> None:
        def say(text: str) -> None:
            console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

        found = diagnose_run(**options, say=say)
        console.print(diagnosis_table(found))
        for block in found["blocks"]:
            say(f"layer {block['layer']}, {found['labels'][block['method']]}: {block['verdict']}.")
            say(f"  Measured: {' '.join(block['measured'])}")
            say(f"  Theory: {' '.join(block['theory'])}")
        for method, why in found["left_out"].items():
            say(f"{found['labels'][method]}: not diagnosed, for {why}.")
        say(f"Written to {options['folder']}: {DIAGNOSIS_FILE}, {REPORT_FILE}")

    return run_command(
        build_parser(prog), argv, work, what="the diagnosis", unfinished="files are whole, or as they were",
        remedy="Use --memory to see what is needed.",
    )  # fmt: skip
