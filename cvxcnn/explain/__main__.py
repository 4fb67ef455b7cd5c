"""The command line, ``python -m cvxcnn.explain``: maps of a finished run, into its folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..errors import CvxcnnError, InputError, ModelFileError
from ..progress import printable
from ..report import LABELS
from ..train import Parser, _integer, _one_of
from .attribution import METHODS
from .figures import METHOD_NAMES
from .runs import FILES, explain_run

PROGRAM = "cvxcnn.explain"
NAMES = {**LABELS, "difference": "difference"}
MEASURES = {"gini": "Gini index", "half_mass_share": "half-mass share"}


def build_parser() -> Parser:
    """Return the command line's parser."""
    parser = Parser(
        prog=f"python -m {PROGRAM}",
        description="Show what the predictions of a training run rest on: maps of the convex and the non-convex "
        f"network side by side, how sparse they are, and a sanity check. Writes {', '.join(FILES)} into the folder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("folder", metavar="DIR", help="folder of a finished run")
    parser.add_argument("--layer", metavar="J", type=_integer(1), help="whose outputs are explained (default: last)")
    parser.add_argument(
        "--method", metavar="NAME", dest="methods", nargs="+", type=_one_of(*METHODS),
        help=f"of {', '.join(METHODS)} (default: all that the networks allow)",
    )  # fmt: skip
    parser.add_argument(
        "--images", metavar="N", dest="n_images", type=_integer(1, 100), default=8, help="rows of the figure"
    )
    parser.add_argument(
        "--class", metavar="C", dest="target", help="name or number of the class (default: each image's true one)"
    )
    parser.add_argument("--seed", metavar="N", type=_integer(0, 2**32 - 1), default=0, help="of everything random")
    devices = ("auto", "cpu", "cuda")
    parser.add_argument(
        "--device", metavar="|".join(devices), type=_one_of(*devices), default="auto", help="auto is a GPU if any"
    )
    parser.add_argument("--quiet", action="store_true", default=False, help="show errors alone")
    return parser


def sparsity_table(found: Mapping[str, Any]) -> Table:
    """Return the sparsity numbers of ``explain_run`` as a table."""
    table = Table(
        title=f"layer {found['layer']}, {found['n_test']} test images: mean [95 % interval]",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for heading in ("Method", "Network", *MEASURES.values()):
        table.add_column(heading, no_wrap=True)
    rows = {(row["method"], row["network"], row["measure"]): row for row in found["sparsity"]}
    for method, network in dict.fromkeys((method, network) for method, network, _ in rows):
        cells = [_cell(rows[method, network, measure]) for measure in MEASURES]
        first = network == "convex"
        table.add_row(METHOD_NAMES[method] if first else "", NAMES[network], *cells)
    return table


def _cell(row: Mapping[str, Any]) -> str:
    return "-" if row["mean"] is None else f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; None for those of the process.

    Returns
    -------
    int
        Exit code: 0; 1 for failures; 2 for wrong usage or a folder that isn't a finished run's; 130 for Ctrl-C.
    """

    def fail(text: str, code: int) -> int:
        Console(stderr=True).print(printable(f"{PROGRAM}: {text}"), markup=False, highlight=False, soft_wrap=True)
        return code

    try:
        options = vars(build_parser().parse_args(argv))
        console = Console(quiet=options.pop("quiet"))

        def say(text: str) -> None:
            console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

        folder = options["folder"]
        found = explain_run(**options, say=say)
        console.print(sparsity_table(found))
        say(f"Written to {folder}: {', '.join(FILES)}")
    except SystemExit as leaving:
        # --help has shown what it shows.
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        return fail("interrupted.", 130)
    except (InputError, ModelFileError) as error:
        return fail(f"error: {error}", 2)
    except CvxcnnError as error:
        return fail(f"error: {error}", 1)
    except OSError as error:
        return fail(f"error: can't write the explanations: {error.strerror or error}.", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
