"""``cvxcnn train``, or ``python -m cvxcnn.train``: the arguments of a training run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from rich.console import Console

from ..activations import ACTIVATIONS, get_activation
from ..arrangements import GATES, parse_gates
from ..errors import InputError
from ..models.recipes import RECIPES
from ..patches import POOLINGS
from ..penalties import PENALTIES
from ..program.decay import DECAYS
from ..runs.rivals import RIVALS
from ..runs.run import resume, run
from ..runs.settings import Settings
from ..solvers import SOLVERS
from .cli import Parser, fraction, integer, one_of, positive, run_command

__all__ = ["main"]

PROGRAM = "python -m cvxcnn.train"


def _gates(text: str) -> int | str:
    try:
        gates = parse_gates(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("gates ").rstrip(".")) from error
    # A sampler goes into the settings by its name, which JSON can hold.
    return gates if isinstance(gates, int) else text


def _decay(text: str) -> str | tuple[float, ...]:
    """Return a name or two exponents "P,Q"."""
    try:
        return text if text in DECAYS else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        names = ", ".join(DECAYS)
        raise argparse.ArgumentTypeError(f"must be one of {names}, or two exponents P,Q; got {text}") from error


# What is typed of these decides no recipe.
_OF_THE_RUN = {"data", "limit_train", "test_fraction", "output", "device", "memory", "seed", "class_weight"}


class _Rivals(argparse.Action):
    """``--baseline``, with the ways of training or without, and ``--no-baseline``."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        wanted = option_string != "--no-baseline"
        if values and not wanted:
            parser.error(f"argument --no-baseline: it takes no value; got {values[0]!r}")
        namespace.baseline = wanted
        if values:
            namespace.rivals = tuple(values)


class _RecipeParser(Parser):
    """A parser whose defaults are those of the recipe that is asked for."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse twice: for the recipe, and with its defaults."""
        first, _ = self.parse_known_args(args)
        self.set_defaults(**RECIPES[getattr(first, "recipe", "exact")], asked=self._asked(args))
        return super().parse_args(args, namespace)

    def _asked(self, args: Any) -> tuple[str, ...]:
        """Return the names of the settings that are typed."""
        kept = [(action, action.default) for action in self._actions]
        for action in self._actions:
            action.default = argparse.SUPPRESS
        try:
            typed = vars(self.parse_known_args(args)[0])
        finally:
            for action, default in kept:
                action.default = default
        return tuple(sorted(typed.keys() & {entry.name for entry in fields(Settings)} - _OF_THE_RUN))


def build_parser(prog: str = PROGRAM) -> Parser:
    """Return the command line's parser; its defaults are those of ``Settings``, or of the recipe."""
    parser = _RecipeParser(
        prog, "Train a CNN layer by layer by convex optimisation, and each layer the ordinary way beside it."
    )  # fmt: skip

    def add(group: Any, flag: str, **options: Any) -> None:
        default = getattr(Settings, flag.lstrip("-").replace("-", "_"))
        # None and tuples are described in the help's own words, and left to Settings.
        plain = isinstance(default, (int, float, str))
        group.add_argument(flag, default=default if plain else argparse.SUPPRESS, **options)

    size = integer(1)
    data = parser.add_argument_group("data")
    add(data, "--data", metavar="digits|cifar10|PATH", help="images: a name, or files in a layout that is known")
    add(data, "--limit-train", metavar="N", type=size, help="train on N images, each class in its share (default: all)")
    add(
        data, "--test-fraction", metavar="F", type=fraction,
        help="of images in folders of their classes, the share of each class to test on (default: 0.2)",
    )  # fmt: skip
    add(data, "--output", metavar="DIR", help="folder of the results, new or empty (default: runs/<data>-<time>)")

    data.add_argument(
        "--resume", metavar="DIR",
        help="go on with the run that was to write to DIR: its settings, its finished layers; with --layers, to more "
        "layers; with --data, its images are there now",
    )  # fmt: skip

    add(
        data, "--augment", metavar="mirror|crop", type=one_of("mirror", "crop"), nargs="*",
        help="train on mirror images, or on shifted copies, too; alone for neither (default: neither)",
    )  # fmt: skip

    add(
        data, "--class-weight", metavar="balanced", type=one_of("balanced"),
        help="weigh images by their classes, so that every class weighs the same (default: every image does)",
    )  # fmt: skip

    model = parser.add_argument_group("network")
    model.add_argument(
        "--recipe", metavar="|".join(RECIPES), type=one_of(*RECIPES), default=argparse.SUPPRESS,
        help="other defaults for all of this: exact searches for filters, the others weigh patches of the data, huge "
        "on a GPU (default: what fits the number and the size of the images, but for huge)",
    )  # fmt: skip
    add(model, "--layers", metavar="N", type=size, help="number of blocks")
    add(model, "--kernel-size", metavar="N", type=size, nargs="+", help="side of a filter, pixels; of each layer")
    add(model, "--padding", metavar="N", type=integer(0), nargs="+", help="zeros around the images, pixels")
    add(model, "--pooling", metavar="|".join(POOLINGS), type=one_of(*POOLINGS), help="of the maps into cells")
    add(model, "--pool-cells", metavar="N", type=size, help="feature maps are pooled into N x N cells")
    add(
        model, "--downsample", metavar="N", type=size, nargs="+",
        help="average pooling after each layer; the last value stands for all further layers (default: 2)",
    )  # fmt: skip

    add(model, "--residual", action="store_true", help="each layer fits what the layers before have left")
    add(
        model, "--project", metavar="N", type=size,
        help="deeper layers see patches through N principal directions (default: all of a patch)",
    )  # fmt: skip
    add(model, "--hand-on", metavar="N", type=size, help="neurons that hand their maps on, at most (default: all)")
    add(model, "--intercept", action="store_true", help="an unregularised output intercept")

    program = parser.add_argument_group("convex program")
    activations, penalties = tuple(ACTIVATIONS), ("dense", *sorted(set(PENALTIES) - {"dense"}))
    add(program, "--activation", metavar="|".join(activations), type=one_of(*activations), help="of the blocks")
    add(
        program, "--decay", metavar="|".join((*DECAYS, "P,Q")), type=_decay,
        help="of quadratic neurons: how weights are regularised, with exponents 2/P + 1/Q = 1 (default: 4,2)",
    )  # fmt: skip
    program.add_argument(
        "--penalty", metavar="|".join(penalties), type=one_of(*penalties),
        help="what a neuron feeds, and what that costs (default: dense; nuclear for gated and "
        "linear networks, group for quadratic ones)",
    )  # fmt: skip
    add(
        program, "--gates", metavar="priced|N|KIND:N", type=_gates, nargs="+",
        help=f"of each layer: found by the optimisation, N Gaussian ones, or N of a kind: {', '.join(sorted(GATES))}",
    )  # fmt: skip
    solvers = ("auto", *sorted(SOLVERS))
    add(program, "--solver", metavar="NAME", type=one_of(*solvers), help=f"one of {', '.join(solvers)}")
    add(
        program, "--reg", metavar="X", type=positive,
        help="lambda itself, the same in every layer (default: from --reg-fraction)",
    )  # fmt: skip
    add(
        program, "--reg-fraction", metavar="F", type=fraction, nargs="+",
        help="lambda of each layer as a share of the least one with a zero solution (default: 0.01)",
    )  # fmt: skip
    add(
        program, "--validation", metavar="F", type=fraction,
        help="hold out this share of the training images of each class, and choose each layer's lambda by them "
        "(default: don't)",
    )  # fmt: skip
    add(program, "--rounds", metavar="N", type=size, help="pricing rounds of a layer, at most")
    add(program, "--starts", metavar="N", type=integer(0), help="of each search for filters; 0 for no searched bound")
    add(program, "--tol", metavar="X", type=positive, help="relative duality gap over the gates at hand")

    rival = parser.add_argument_group("ordinary training, for comparison")
    rival.add_argument(
        "--baseline", "--no-baseline", dest="rivals", metavar="|".join(RIVALS), type=one_of(*RIVALS), nargs="*",
        action=_Rivals, default=argparse.SUPPRESS,
        help="train it in these ways, or leave it out: by minibatches, in two phases, of ReLU or of softplus neurons, "
        "or infinitely wide, as kernel ridge regression (default: adam, and none where a recipe weighs patches)",
    )  # fmt: skip
    add(rival, "--baseline-width", metavar="N", type=size, help="its neurons, at least as many as the block's")
    add(rival, "--baseline-epochs", metavar="N", type=size, help="passes over the images, at most")

    other = parser.add_argument_group("machine and messages")
    parser.add_device(other)
    add(other, "--dtype", metavar="float64|float32", type=one_of("float64", "float32"), help="of the training")
    add(
        other, "--memory", metavar="GIB", type=positive,
        help="refuse a run that is predicted to need more, before it starts (default: no limit)",
    )  # fmt: skip
    add(other, "--half-maps", action="store_true", help="keep feature maps in float16 between layers")
    add(other, "--seed", metavar="N", type=integer(0, 2**32 - 1), help="of everything random")
    parser.add_messages(other)
    return parser


def settings_of(options: Mapping[str, Any]) -> Settings:
    """Return the settings of parsed arguments."""
    values = dict(options)
    # What a neuron of this kind feeds where nobody says.
    kind = get_activation(values["activation"])
    values.setdefault("penalty", kind.program_penalty(kind.penalties[0]))
    for name in ("kernel_size", "padding", "gates", "reg_fraction", "downsample", "augment"):
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    for name in ("kernel_size", "padding", "gates", "reg_fraction"):
        if isinstance(values.get(name), tuple) and len(values[name]) == 1:
            values[name] = values[name][0]
    return Settings(**values)


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
        Exit code: 0; 1 for failures; 2 for wrong usage; 130 for Ctrl-C and 143 for SIGTERM.
    """

    def work(options: dict[str, Any], console: Console) -> None:
        folder = options.pop("resume", None)
        if folder is None:
            run(settings_of(options), console)
            return
        data, layers = options.pop("data"), options.pop("layers")
        given = [name for name, value in options.items() if name != "asked" and value != getattr(Settings, name, None)]
        given.sort(key=lambda name: name != "recipe")
        if given:
            flag = "--baseline" if given[0] == "rivals" else f"--{given[0].replace('_', '-')}"
            raise InputError(f"--resume takes the settings of the run in {folder}. Leave out {flag}.")
        asked = "layers" in options["asked"]
        resume(folder, console, data=None if data == Settings.data else data, layers=layers if asked else None)

    return run_command(
        build_parser(prog), argv, work, remedy="Use --limit-train, a larger --reg, or more --downsample."
    )  # fmt: skip
