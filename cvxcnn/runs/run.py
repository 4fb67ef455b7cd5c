"""A training run: from its settings to the folder of its results."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ..core.checks import as_int
from ..core.distributed import process_group, rank, size
from ..core.text import one_line
from ..data.class_weights import by_class
from ..data.fingerprint import UNKNOWN, differing, in_words, whereabouts
from ..data.images import ImageSet, one_hot
from ..errors import CvxcnnError, InputError, ModelFileError
from ..models.telling import slowness
from ..reports.figures import FIGURES, RunFigure
from ..reports.html import EXCITING_FILE, FINDINGS, QUICK_FILE, REPORT_FILE, write_report
from ..reports.metrics import write_metrics
from ..reports.predictions import MISTAKES_FILE, write_mistakes
from ..reports.summary import LayerSummary, RunSummary
from ..reports.table import results_table
from .checkpoint import State, drop_checkpoints, find_state, read_state, write_state
from .memory import check_run_memory, predict_run_memory
from .progress import Reporter
from .records import LayerRecords, describe
from .run_folder import OutputFolder, default_output, hidden_folder
from .settings import (
    Settings,
    build_stack,
    check_settings,
    find_again,
    for_data,
    load_sets,
    pricing_options,
    recorded_settings,
    resolve_device,
    with_parts,
)

__all__ = ["Settings", "resume", "run"]


logger = logging.getLogger(__name__)

# Predictions of memory above this are shown.
_LARGE = 2 << 30


def run(settings: Settings, console: Console | None = None) -> dict[str, Any]:
    """Train, compare, and write the results folder.

    Under ``torchrun`` each process takes a share of the images, and the first one writes.

    Parameters
    ----------
    settings : Settings
    console : Console, optional
        Where progress and the table of results go; None for none.

    Returns
    -------
    dict
        What is in ``summary.json``.

    Raises
    ------
    CvxcnnError
        If settings, images or the output folder can't be used. No folder is left behind, unless a layer was finished:
        what is finished is kept, and ``resume`` goes on from it.

    Notes
    -----
    The model and its numbers are in the folder before anything is drawn. A figure that can't be drawn is an error in
    the log, and ``resume`` draws it later.
    """
    console = console or Console(quiet=True)
    path = Path(settings.output if settings.output is not None else default_output(settings.data))
    with process_group(resolve_device(settings.device)):
        return _run(settings, OutputFolder(path), None, console)


def resume(
    path: str | os.PathLike[str],
    console: Console | None = None,
    *,
    data: str | None = None,
    layers: int | None = None,
) -> dict[str, Any]:
    """Go on with a run: with one that was interrupted or killed to its end, with a finished one to further layers.

    Its settings and its finished layers are kept, and it ends as if nothing had happened, or as if so many layers had
    been asked for at first. Of a run whose layers are all there, the figures that are missing are drawn.

    Parameters
    ----------
    path : str or path
        The folder that the run was to write to.
    console : Console, optional
        Where progress and the table of results go; None for none.
    data : str, optional
        Where the run's images are now; None for where they were.
    layers : int, optional
        How many layers the run is to have, more than are finished; None for those that were asked for.

    Returns
    -------
    dict
        What is in ``summary.json``.

    Raises
    ------
    CvxcnnError
        If there is no such run, it is damaged, or its images are no longer those that it began with.
    """
    console = console or Console(quiet=True)
    target = Path(path)
    try:
        found = find_state(target, hidden_folder(target))
        state = read_state(found)
    except CvxcnnError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # loops of links, and homes that aren't there, are the last
        raise InputError(f"can't read {target}: {one_line(error)}. Give the folder of a run.") from error
    try:
        where = find_again(state.summary, data)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        if isinstance(error, CvxcnnError):
            raise
        raise ModelFileError(f"The settings of the run in {target} are damaged: {error}. Train it again.") from error
    try:
        settings = recorded_settings(state.summary["settings"], output=str(target), data=where)
        # Here, where it is known that what can't be used is damage: the run began with them.
        check_settings(settings)
        build_stack(replace(settings, device="cpu"))
        complete = len(state.summary["layers"]) >= settings.layers
    except (InputError, TypeError, KeyError, AttributeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise ModelFileError(f"The settings of the run in {target} are damaged: {reason}. Train it again.") from error
    if layers is not None:
        settings = _with_layers(settings, layers, len(state.summary["layers"]), target)
        complete = False
    trained = found == target and complete
    if trained and all((target / name).is_file() for name in drawings()):
        raise InputError(
            f"the run in {target} is complete: it has all of its {settings.layers} layers. Ask for more by --layers."
        )
    with process_group(resolve_device(settings.device)):
        if trained:
            return _redraw(settings, target, state.summary, console)
        return _run(settings, OutputFolder(target, resume=True), state, console)


def _with_layers(settings: Settings, layers: int, finished: int, target: Path) -> Settings:
    count = as_int("layers", layers)
    if count <= finished:
        raise InputError(f"layers must be more than the {finished} that the run in {target} has; got {count}.")
    return replace(settings, layers=count)


def _run(settings: Settings, output: OutputFolder, state: State | None, console: Console) -> dict[str, Any]:
    """Train the layers that a state doesn't have, and write everything."""
    check_settings(settings)
    if settings.recipe != "auto":
        build_stack(settings)  # what can't be used is refused before the images are read
    if rank():
        console = Console(quiet=True)
    if size() > 1 and settings.baseline:
        if state is not None and state.rivals:
            raise InputError("several processes train no baseline, and the run has one. Go on with one process.")
        settings = replace(settings, baseline=False)
    with output if rank() == 0 else nullcontext() as folder:
        settings = with_parts(settings)
        train, test = load_sets(settings)
        data = describe(train, test, settings)
        settings = for_data(settings, train.image_shape, data["n_train"])
        stack = build_stack(settings)
        stack.plan(train.image_shape)
        predicted = predict_run_memory(
            stack, data["n_train"], data["n_test"], train.image_shape, len(train.classes),
            kernel=settings.baseline and "kernel" in settings.rivals,
        )  # fmt: skip
        check_run_memory(predicted, settings.memory)
        gap = pricing_options(settings).gap if settings.gates == "priced" else settings.tol
        reporter = Reporter(console, gap)
        reporter.say(
            f"{train.name}: {data['n_train']} training and {data['n_test']} test images of shape {train.image_shape}, "
            f"{len(train.classes)} classes"
        )
        if settings.recipe != "exact":
            reporter.say(f"settings of --recipe {settings.recipe}; --recipe exact searches for the filters itself")
        slow = slowness(settings.activation, settings.penalty, settings.gates == "priced")
        if slow:
            reporter.say(slow)
        if predicted is not None and predicted > _LARGE:
            reporter.say(f"up to {predicted / 2**30:.1f} GiB of memory")
        if size() > 1:
            reporter.say(f"{size()} processes, each with a share of the images; no ordinary training for comparison")
        records = LayerRecords(settings, stack, train, test, reporter, folder.partial if folder else None, data)
        if state is not None:
            _take_over(records, state)
        records.checkpoint()
        try:
            with reporter.bars:
                reporter.begin(records.saved)
                stack.fit(
                    train.images,
                    one_hot(train.labels, len(train.classes)),
                    by_class(settings.class_weight, train.labels, train.classes),
                    callback=reporter.solver,
                    on_layer=records.on_layer,
                    finished=None if state is None else state.stack,
                )
            summary = _publish(folder, records) if folder is not None else records.state().summary
        except BaseException as stop:
            if records.saved and folder is not None:
                _keep(folder, records, stop)
            raise
    _show(output.path, summary, train, test, reporter)
    return summary


def _redraw(settings: Settings, path: Path, summary: dict[str, Any], console: Console) -> dict[str, Any]:
    """Draw what is missing of a run whose layers are all there."""
    train, test = load_sets(settings)
    reporter = Reporter(Console(quiet=True) if rank() else console, settings.tol)
    _check_images(summary.get("data"), describe(train, test, settings), reporter)
    _show(path, summary, train, test, reporter)
    return summary


def _show(path: Path, summary: dict[str, Any], train: ImageSet, test: ImageSet, reporter: Reporter) -> None:
    """Draw the results that are in a folder, and say where they are."""
    if rank():
        return
    results = RunSummary.from_json(summary)
    try:
        _draw(path.expanduser(), results, train, test)
    except BaseException as stop:
        stop.args = (f"the model and its numbers are in {path}; draw the rest by --resume {path}",)
        raise
    reporter.console.print(results_table(results))
    report = path / REPORT_FILE
    reporter.say(f"Written to {path}" + (f"; open {report} in a browser" if report.expanduser().is_file() else ""))


def _take_over(records: LayerRecords, state: State) -> None:
    """Make the layers of a state the first of these records."""
    _check_images(state.summary.get("data"), records.data, records.reporter)
    records.summaries += map(LayerSummary.from_json, state.summary["layers"])
    records.rivals = {name: list(found) for name, found in state.rivals.items()}
    records.history += state.history
    records.saved = len(records.summaries)
    if state.tested is not None:
        records.tested[records.saved] = state.tested
    if state.stack is not None:
        # The checkpoint that is written next is of these, before the first fit.
        records.stack.learn_from(state.stack)
        for block in state.stack.blocks_:
            block.set_params(device=resolve_device(records.settings.device))
        records.reporter.say(f"{len(records.summaries)} of {records.settings.layers} layers are there already")


def _check_images(known: Any, data: dict[str, Any], reporter: Reporter) -> None:
    """Raise InputError if the images aren't those that a run began with; ``known`` is what its summary says of them."""
    known = known if isinstance(known, dict) else {}
    different = differing(known.get("fingerprint"), data["fingerprint"])
    # A set that was moved may have another name.
    aside = {"path", "fingerprint", *(("name",) if known.get("fingerprint") else ())}
    before, now = ({name: about[name] for name in about if name not in aside} for about in (known, data))
    what = f"the images are not those that the run began with{whereabouts(known)}"
    remedy = "Put them back, or give the place where they are by --data."
    if before != now:
        raise InputError(f"{what}: they were {before}, now they are {now}. {remedy}")
    if different:
        raise InputError(f"{what}: {in_words(different)}. {remedy}")
    if different is None:
        reporter.say(UNKNOWN)


def _keep(folder: OutputFolder, records: LayerRecords, stop: BaseException) -> None:
    """Leave the finished layers where they can be used, or at least gone on with."""
    folder.keep()
    records.summaries = records.summaries[: records.saved]
    kept = f"{records.saved} of {records.settings.layers} layers are kept; go on with --resume {folder.path}"
    if records.saved < records.settings.layers:
        # Should this fail too, the hidden folder still has its checkpoint.
        try:
            with suppress(OSError, CvxcnnError):
                published = RunSummary.from_json(_publish(folder, records))
                _draw(folder.path.expanduser(), published, records.train, records.test)
        except BaseException as second:  # such as the signal by which torchrun stops the others when one failed
            second.args = (kept,)
            raise
    if isinstance(stop, Exception):
        records.reporter.say(kept)
    else:
        stop.args = (kept,)


def _publish(folder: OutputFolder, records: LayerRecords) -> dict[str, Any]:
    """Write the model and the numbers of the finished layers, and make them appear."""
    state = records.state()
    write_state(folder.partial, state, records.extra())
    write_metrics(RunSummary.from_json(state.summary), folder.partial / "metrics.csv")
    if state.tested is not None:
        write_mistakes(folder.partial / MISTAKES_FILE, state.tested, records.test.images)
    # What was found out of fewer layers, and figures of them, are no longer of what is in the folder.
    for name in (*FINDINGS, MISTAKES_FILE, *drawings()):
        (folder.path.expanduser() / name).unlink(missing_ok=True)
    drop_checkpoints(folder.publish())
    return state.summary


def _explain(folder: Path, test: ImageSet) -> None:
    # Here, because it brings captum.
    from .explaining import explain_quickly

    explain_quickly(folder, test, folder / QUICK_FILE)


def _excite(folder: Path, train: ImageSet) -> None:
    from .exciting import draw_exciting

    draw_exciting(folder, train, folder / EXCITING_FILE)


# The folder, its summary, and the training and the test images.
Drawing = Callable[[Path, RunSummary, ImageSet, ImageSet], None]


def drawings() -> dict[str, Drawing]:
    """Return what is drawn of a run, each by itself, by the names of the files; the page shows the others."""

    def drawing(figure: RunFigure) -> Drawing:
        return lambda folder, summary, *_: figure.draw(summary, folder / figure.file)

    return {
        **{figure.file: drawing(figure) for figure in FIGURES},
        QUICK_FILE: lambda folder, _, __, test: _explain(folder, test),
        EXCITING_FILE: lambda folder, _, train, __: _excite(folder, train),
        REPORT_FILE: lambda folder, *_: write_report(folder),
    }


def _draw(folder: Path, summary: RunSummary, train: ImageSet, test: ImageSet) -> None:
    """Draw the results that are in a folder. A training that is done isn't lost for the lack of a figure."""
    for name, draw in drawings().items():
        try:
            draw(folder, summary, train, test)
        except Exception as error:  # whatever a drawing library raises
            logger.error("%s can't be drawn: %s", name, one_line(error))
