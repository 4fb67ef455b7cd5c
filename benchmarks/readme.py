"""Measure, print and draw what the README says in numbers.

    python benchmarks/readme.py                      # measures anew; about 15 minutes of processor time
    python benchmarks/readme.py --parts main-1       # the main job with one thread alone
    python benchmarks/readme.py --run RUN            # takes a finished run of the main job, with its number of threads
    python benchmarks/readme.py --parts              # prints and draws again what was measured last

The main job runs once with a thread and once with two: rounding, and with it the number of threads, decides which
filters a search finds, so that two runs show what varies. Classifiers of scikit-learn's kind are fitted on three splits
of the digits, each on one thread. Numbers go to benchmarks/readme.json, the points of the picture to
benchmarks/readme-history.csv, the picture to docs/images/certificate.png, and the tables and the line below them into
the README in the place of those before. The tests hold the README against what is stored.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits
from torch import nn

from cvxcnn import ConvexCNNClassifier
from cvxcnn.drawing.style import COLOURS, new_figure, save_png, tidy
from cvxcnn.reports.history import HISTORY_FILE, Point, read_history
from cvxcnn.reports.summary import SUMMARY_FILE

HERE = Path(__file__).parent
NUMBERS = HERE / "readme.json"
HISTORY = HERE / "readme-history.csv"
README = HERE.parent / "README.md"
PICTURE = HERE.parent / "docs" / "images" / "certificate.png"

MAIN_JOB = ("-m", "cvxcnn.train", "--layers", "3")
THREADS = (2, 1)
SPLITS = 3
N_TRAIN = 1437
PARTS = ("classifiers", *(f"main-{threads}" for threads in THREADS))

Numbers = dict[str, Any]
Classifier = Callable[[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], int], NDArray[np.int64]]


def processor() -> str:
    """Return the processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def run_main_job(threads: int) -> Numbers:
    """Run the main job with a number of threads, and keep what the README says of it."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        subprocess.run([sys.executable, *MAIN_JOB, "--output", str(run), "--quiet"], check=True, env=environment)
        return keep_run(run)


def keep_run(run: Path) -> Numbers:
    """Return the layers of a finished run, by its number of threads; keep the points of the picture."""
    summary = json.loads((run / SUMMARY_FILE).read_text(encoding="utf-8"))
    threads = summary["settings"]["threads"]
    if threads == THREADS[0]:
        shutil.copyfile(run / HISTORY_FILE, HISTORY)
    return {f"main-{threads}": {"threads": threads, "layers": summary["layers"]}}


def ours(**options: Any) -> Classifier:
    """Return what predicts by our classifier, with its defaults but for some options."""

    def predict(images: Any, labels: Any, others: Any, seed: int) -> NDArray[np.int64]:
        model = ConvexCNNClassifier(image_shape=(8, 8), **options).fit(images, labels)
        return np.asarray(model.predict(others))

    return predict


def mlp(images: Any, labels: Any, others: Any, seed: int) -> NDArray[np.int64]:
    """Predict by scikit-learn's network of 100 hidden units, trained until its loss stands."""
    network = MLPClassifier(max_iter=1000, random_state=seed).fit(images, labels)
    return np.asarray(network.predict(others))


def small_cnn(images: Any, labels: Any, others: Any, seed: int) -> NDArray[np.int64]:
    """Predict by two convolutions of 32 and 64 channels, trained end to end by Adam for 40 epochs."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    inputs, targets = torch.tensor(images, dtype=torch.float32), torch.tensor(labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(40):
        for batch in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        return network(torch.tensor(others, dtype=torch.float32)).argmax(dim=1).numpy()


CLASSIFIERS: dict[str, Classifier] = {
    "`ConvexCNNClassifier()`": ours(),
    '`ConvexCNNClassifier(recipe="small")`, two layers': ours(recipe="small"),
    "scikit-learn's `MLPClassifier`": mlp,
    "two convolutions in torch, Adam": small_cnn,
}


def compare(name: str) -> Numbers:
    """Fit one classifier on each split: accuracy on the other images, processor seconds of fit and prediction."""
    images, labels = load_digits(return_X_y=True)
    accuracies, seconds = [], []
    for seed in range(SPLITS):
        train, test, y_train, y_test = train_test_split(
            images / 16, labels, train_size=N_TRAIN, stratify=labels, random_state=seed
        )
        began = time.process_time()
        found = CLASSIFIERS[name](train, y_train, test, seed)
        seconds.append(time.process_time() - began)
        accuracies.append(float((found == y_test).mean()))
    return {"accuracies": accuracies, "processor_seconds": seconds}


def measure(parts: Sequence[str]) -> Numbers:
    """Measure some parts, store them beside the others as each is done, and return all."""
    for part in parts:
        if part == "classifiers":
            torch.set_num_threads(1)
            with threadpool_limits(1):
                found: Numbers = {"classifiers": {name: compare(name) for name in CLASSIFIERS}}
        else:
            found = run_main_job(int(part.removeprefix("main-")))
        store(found)
    return stored()


def stored() -> Numbers:
    """Return what was measured last."""
    return json.loads(NUMBERS.read_text(encoding="utf-8")) if NUMBERS.exists() else {}


def store(found: Numbers) -> None:
    """Put numbers beside those stored, with when and on what they were measured."""
    today = datetime.now(timezone.utc).date().isoformat()
    where: Numbers = {"classifiers_date": today}
    if "classifiers" not in found:
        where = {
            "date": today,
            "processor": processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__.split("+")[0],
        }
    NUMBERS.write_text(json.dumps({**stored(), **found, **where}, indent=1) + "\n", encoding="utf-8")


def runs_of(numbers: Numbers) -> list[Numbers]:
    """Return the runs of the main job that there are."""
    return [numbers[part] for part in PARTS if part.startswith("main-") and part in numbers]


def span(values: Sequence[float], form: str, unit: str = "") -> str:
    """Return a number, or a range where it varies in the digits shown.

    Examples
    --------
    >>> span([1.04, 0.96], "{:.1f}"), span([0.5, 2.0], "{:.1f}", " s")
    ('1.0', '0.5 to 2.0 s')
    """
    low, high = form.format(min(values)), form.format(max(values))
    return (low if low == high else f"{low} to {high}") + unit


def spans(found: Sequence[Numbers], name: str, form: str, unit: str = "", scale: float = 1.0) -> str:
    """Return a number of a layer, or its range over the runs."""
    return span([scale * entry[name] for entry in found], form, unit)


def layer_rows(numbers: Numbers) -> list[str]:
    """Return the table of the main job: two rows a layer."""
    rows = [
        "| layer | training | objective (Eq. 1) | bound over all networks | gap to it | train | test | neurons |",
        "|---|---|---|---|---|---|---|---|",
    ]
    runs = runs_of(numbers)
    for index in range(len(runs[0]["layers"])):
        for method, words in (("convex", f"| {index + 1} | convex |"), ("nonconvex", "| | torch, Adam |")):
            found = [run["layers"][index][method] for run in runs]
            bound = "| |"
            if method == "convex":
                known, gap = spans(found, "global_bound", "{:#.5g}"), spans(found, "global_gap", "{:.1f}", " %", 100.0)
                bound = f"{known} ({found[0]['certificate']}) | {gap} |"
            accuracies = [spans(found, f"{part}_accuracy", "{:.1f}", " %", 100.0) for part in ("train", "test")]
            rows.append(
                f"{words} {spans(found, 'objective', '{:#.5g}')} | {bound} {' | '.join(accuracies)} "
                f"| {spans(found, 'n_neurons', '{:.0f}')} |"
            )
    return rows


def classifier_rows(numbers: Numbers) -> list[str]:
    """Return the table of the classifiers."""
    rows = ["| classifier | test accuracy | processor seconds |", "|---|---|---|"]
    for name, found in numbers["classifiers"].items():
        accuracy = span([100 * value for value in found["accuracies"]], "{:.1f}", " %")
        rows.append(f"| {name} | {accuracy} | {span(found['processor_seconds'], '{:.1f}')} |")
    return [*rows, "", f"(`python benchmarks/readme.py --parts classifiers`, {numbers['classifiers_date']}.)"]


def stamp(numbers: Numbers) -> list[str]:
    """Return when, on what and how it was measured, in the README's lines."""
    runs = runs_of(numbers)
    threads = " and ".join(str(run["threads"]) for run in runs)
    return [
        f"Measured by `python benchmarks/readme.py` on {numbers['date']}: {numbers['cores']} cores of an "
        f"{numbers['processor']}, shared with",
        f"other work; Python {numbers['python']}, torch {numbers['torch']}; threads of each run: {threads}.",
    ]


def blocks(numbers: Numbers) -> dict[str, str]:
    """Return what the README quotes, by name."""
    found = {"layers": layer_rows(numbers), "classifiers": classifier_rows(numbers), "stamp": stamp(numbers)}
    return {name: "\n".join(lines) for name, lines in found.items()}


def renewed(text: str, before: Numbers, numbers: Numbers) -> str:
    """Return the README with what it quotes of new numbers in the place of that of those before."""
    quoted = blocks(numbers)
    for name, block in blocks(before).items():
        text = text.replace(block, quoted[name])
    return text


def draw(points: Sequence[Point]) -> None:
    """Draw how objective and bound of the first layer close on one another, and where torch ends."""
    first = [point for point in points if point.layer == 1]
    ours = [point for point in first if point.method == "convex"]
    theirs = [point for point in first if point.method == "nonconvex"]
    seconds = [point.seconds for point in ours]
    objective = [point.objective for point in ours]
    # Each bound holds, so the best one so far does.
    bound = np.maximum.accumulate([point.bound for point in ours])

    figure = new_figure(7.0, 3.4)
    axes = figure.subplots()
    axes.fill_between(
        seconds, bound, objective, color=COLOURS["convex"], alpha=0.15, linewidth=0,
        label="the best network is in here (searched)",
    )  # fmt: skip
    axes.plot(seconds, objective, "o-", color=COLOURS["convex"], label="convex: objective (Eq. 1)")
    axes.plot(seconds, bound, "^--", color=COLOURS["convex"], label="convex: lower bound over all networks")
    axes.plot(
        [point.seconds for point in theirs], [point.objective for point in theirs], color=COLOURS["nonconvex"],
        label="torch, Adam, 200 neurons: objective",
    )  # fmt: skip
    height = objective[-1] - bound[0]
    axes.set_ylim(bound[0] - 0.15 * height, objective[-1] + 1.2 * height)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("training objective")
    axes.set_title("Digits, first layer", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    tidy(axes)
    save_png(figure, PICTURE)


def main() -> None:
    """Measure, or take what was stored; draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--run", type=Path, help="a folder that the main job wrote")
    options = parser.parse_args()
    before = stored()
    if options.run is not None:
        store(keep_run(options.run))
    numbers = measure([] if options.run is not None else options.parts)
    if missing := {"classifiers", f"main-{THREADS[0]}"} - set(numbers):
        raise SystemExit(f"not measured yet: {', '.join(sorted(missing))}")
    draw(read_history(HISTORY))
    print("\n\n".join(blocks(numbers).values()))
    if "classifiers" in before and runs_of(before):
        README.write_text(renewed(README.read_text(encoding="utf-8"), before, numbers), encoding="utf-8")


if __name__ == "__main__":
    main()
