"""``cvxcnn explain``, or ``python -m cvxcnn.explain``: maps of a finished run, into its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..core.text import printable
from ..explain.attribution import METHODS
from ..explain.figures import METHOD_NAMES
from ..reports.html import EXPLANATION_FILES, REPORT_FILE
from ..runs.explaining import explain_run
from .cli import Parser, integer, one_of, run_command

PROGRAM = "python -m cvxcnn.explain"
MEASURES = {"gini": "Gini index", "half_mass_share": "half-mass share"}


def build_parser(prog: str = PROGRAM) -> Parser:
    """Return the command's parser."""
    parser = Parser(
        prog,
        "Show what the predictions of a training run rest on: maps of the convex network and its rivals side by "
        f"side, how sparse they are, and a sanity check. Writes {', '.join(EXPLANATION_FILES)} into the folder, and "
        f"{REPORT_FILE} anew.",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of a finished run")
    maps = parser.add_argument_group("maps")
    maps.add_argument("--layer", metavar="J", type=integer(1), help="whose outputs are explained (default: last)")
    maps.add_argument(
        "--method", metavar="NAME", dest="methods", nargs="+", type=one_of(*METHODS),
        help=f"of {', '.join(METHODS)} (default: all that the networks allow)",
    )  # fmt: skip
    maps.add_argument(
        "--images", metavar="N", dest="n_images", type=integer(1, 100), default=8, help="rows of the figure"
    )
    maps.add_argument(
        "--class", metavar="C", dest="target", help="name or number of the class (default: each image's true one)"
    )
    maps.add_argument("--data", metavar="PATH", help="where the run's images are now (default: where they were)")
    other = parser.add_argument_group("machine and messages")
    parser.add_device(other)
    other.add_argument("--seed", metavar="N", type=integer(0, 2**32 - 1), default=0, help="of everything random")
    parser.add_messages(other)
    return parser


def sparsity_table(found: Mapping[str, Any]) -> Table:
    """Return the sparsity numbers of ``explain_run`` as a table."""
    versus = "; vs: convex minus" if len(found["labels"]) > 2 else ""
    table = Table(
        title=f"layer {found['layer']}, {found['n_test']} test images: mean [95 % interval]{versus}",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for heading in ("Method", "Network", *MEASURES.values()):
        table.add_column(heading, no_wrap=True)
    rows = {(row["method"], row["network"], row["measure"]): row for row in found["sparsity"]}
    for method, network in dict.fromkeys((method, network) for method, network, _ in rows):
        cells = [_cell(rows[method, network, measure]) for measure in MEASURES]
        first = network == "convex"
        table.add_row(METHOD_NAMES[method] if first else "", _name(network, found["labels"]), *cells)
    return table


def _name(network: str, labels: Mapping[str, str]) -> str:
    """Return what a row's network, or its difference from the convex one, is called."""
    if not network.startswith("difference"):
        return labels[network]
    rival = network.removeprefix("difference").strip() or "nonconvex"
    return "difference" if len(labels) == 2 else f"vs {labels[rival]}"


def _cell(row: Mapping[str, Any]) -> str:
    return "-" if row["mean"] is None else f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


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

        found = explain_run(**options, say=say)
        console.print(sparsity_table(found))
        say(f"Written to {options['folder']}: {', '.join([*EXPLANATION_FILES, REPORT_FILE])}")

    return run_command(
        build_parser(prog), argv, work, what="the explanations", unfinished="files are whole, or as they were"
    )
