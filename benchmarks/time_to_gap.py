"""Draw the time-to-gap figures of results that run.py left, and print the tables.

    python benchmarks/time_to_gap.py [PART ...] [--quick]

Figures go to benchmarks/figures/<part>.png (figures-quick/ with --quick).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from parts import FOLDER_OF_RESULTS, PARTS, Part

HERE = Path(__file__).parent
OURS = "cvxcnn"
# Below this, differences are rounding.
FLOOR = 1e-11
COLOURS = {
    "cvxcnn": "C3",
    "Clarabel": "C0",
    "SCS": "C1",
    "MOSEK": "C2",
    "pyscnn": "C4",
    "pyscnn-AL": "C4",
    "adelie": "C5",
    "Adam": "C0",
    "SGD": "C1",
}


def load(name: str, quick: bool) -> pd.DataFrame:
    """Return all points of a part, medians over repetitions: one row for each solver, seed and level."""
    folder = HERE / (FOLDER_OF_RESULTS + ("-quick" if quick else ""))
    files = sorted(folder.glob(f"{name}.[0-9]*.parquet"))
    if not files:
        return pd.DataFrame()
    points = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    points.columns = [column.removeprefix("objective_") for column in points.columns]
    points["solver"] = points["solver_name"].str.split("[").str[0]
    measured = [
        c for c in ("time", "value", "gap", "error", "violation", "bound", "neurons", "preparation") if c in points
    ]
    repetitions = points.groupby(["solver", "solver_name", "stop_val"])["time"].size().rename("repetitions")
    medians = points.groupby(["solver", "solver_name", "stop_val"])[measured].median()
    return medians.join(repetitions).reset_index().sort_values(["solver_name", "time"])


def seconds(value: float) -> str:
    """Write seconds with two digits, or a dash."""
    return "-" if not math.isfinite(value) else f"{value:.2g}" if value < 100 else f"{value:.0f}"


def first_time(points: pd.DataFrame, reached: pd.Series) -> float:
    """Return the shortest time among the points that reached something; inf if none did."""
    return float(points.loc[reached, "time"].min()) if reached.any() else math.inf


def own_time(points: pd.DataFrame, gap: float) -> float:
    """Return the time to a proven gap with violations below 1e-9."""
    return first_time(points, (points["gap"] <= gap) & (points["violation"] < 1e-9))


def rival_time(points: pd.DataFrame, error: float) -> float:
    """Return the time to an error of the objective, with violations no larger."""
    return first_time(points, (points["error"] <= error) & (points["violation"] <= error))


def programs_table(part: Part, points: pd.DataFrame) -> list[str]:
    """Return times to errors and to proven gaps, and the part's ratio; features are not in the times."""
    levels = (1e-2, 1e-4, part.theirs, 1e-8) if part.theirs not in (1e-2, 1e-4) else (1e-2, 1e-4, 1e-6, 1e-8)
    heads = [f"error {level:g}" for level in levels] + [f"gap {part.ours:g}"]
    rows = [f"| solver | {' | '.join(heads)} | best error | its violation | s | features, s | repetitions |"]
    rows.append("|---" * (len(heads) + 6) + "|")
    for solver, group in points.groupby("solver"):
        best = group.loc[group[["error", "violation"]].max(axis=1).idxmin()]
        times = [rival_time(group, level) for level in levels] + [own_time(group, part.ours)]
        accuracy = f"{best['error']:.0e} | {best['violation']:.0e} | {seconds(best['time'])}"
        accuracy += f" | {seconds(best['preparation'])}"
        rows.append(
            f"| {solver} | {' | '.join(map(seconds, times))} | {accuracy} | {int(group['repetitions'].max())} |"
        )
    ours, others = points[points["solver"] == OURS], points[points["solver"] != OURS]
    if ours.empty or others.empty:
        return rows
    mine = own_time(ours, part.ours)
    rivals = {solver: rival_time(group, part.theirs) for solver, group in others.groupby("solver")}
    fastest = min(rivals, key=lambda solver: rivals[solver])
    same = {solver: own_time(group, part.ours) for solver, group in others.groupby("solver")}
    reached = [f"{solver} {time / mine:.2g}" for solver, time in sorted(same.items()) if not math.isinf(time)]
    equal = f" Ratios to the same proven gap and violation: {', '.join(reached) or 'no rival reached them'}."
    goal = f"{OURS} to gap {part.ours:g}, violation < 1e-9: {seconds(mine)} s"
    if math.isinf(rivals[fastest]):
        return [*rows, "", f"{goal}; no rival reached error {part.theirs:g}.{equal}"]
    theirs = f"fastest rival to error {part.theirs:g}, violation counted: {fastest}, {seconds(rivals[fastest])} s"
    features = others.loc[others["solver"] == fastest, "preparation"].median()
    ratios = f"ratio {rivals[fastest] / mine:.2g}, with its features {(rivals[fastest] + features) / mine:.2g}"
    return [*rows, "", f"{goal}; {theirs}; {ratios}.{equal}"]


def training_table(part: Part, points: pd.DataFrame) -> list[str]:
    """Return the objectives after each level, and who needs how long to reach the best of the other."""
    bound = points["bound"].max()
    rows = ["| solver | level | Eq. 1, best | median | worst | above the bound | neurons | s, median | runs |"]
    rows.append("|---" * 9 + "|")
    for (solver, level), group in points.groupby(["solver", "stop_val"]):
        best, values = group.loc[group["value"].idxmin()], group["value"]
        found = f"{values.min():.6g} | {values.median():.6g} | {values.max():.6g} | {values.min() / bound - 1:.1e}"
        time = seconds(group["time"].median())
        rows.append(f"| {solver} | {level:g} | {found} | {best['neurons']:.0f} | {time} | {len(group)} |")
    rows += ["", f"Bound over networks of any width, searched by the benchmark: {bound:.6g}."]
    ours, others = points[points["solver"] == OURS], points[points["solver"] != OURS]
    if ours.empty or others.empty:
        return rows
    best = others.loc[others["value"].idxmin()]
    mine = first_time(ours, ours["value"] <= best["value"])
    total = others[(others["solver"] == best["solver"]) & (others["stop_val"] == best["stop_val"])]["time"].sum()
    rows.append(
        f"Best rival: {best['solver_name']}, {best['value']:.6g} after {seconds(best['time'])} s, "
        f"{seconds(total)} s for all its seeds; {OURS} is at or below it after {seconds(mine)} s."
    )
    return rows


def curve(axes: plt.Axes, points: pd.DataFrame, values: pd.Series, label: str | None, solver: str, style: str) -> None:
    """Draw the best of a solver so far, over time."""
    order = points["time"].argsort()
    best = values.clip(lower=FLOOR).iloc[order].cummin()
    axes.plot(points["time"].iloc[order], best, style, color=COLOURS.get(solver, "C7"), label=label, ms=4)


def draw_programs(axes: plt.Axes, points: pd.DataFrame) -> None:
    """Draw errors (with violations) of all, and proven gaps of ours."""
    for solver, group in points.groupby("solver"):
        curve(axes, group, group[["error", "violation"]].max(axis=1), solver, solver, "o-")
        if solver == OURS:
            curve(axes, group, group[["gap", "violation"]].max(axis=1), f"{OURS}, proven gap", solver, "s--")
    axes.set_ylabel("larger of relative error of the objective\nand cone violation")


def draw_training(axes: plt.Axes, points: pd.DataFrame) -> None:
    """Draw how far Eq. 1 is above the bound, one line a seed."""
    bound = points["bound"].max()
    for solver, runs in points.groupby("solver"):
        for number, (_, group) in enumerate(runs.groupby("solver_name")):
            label = None if number else f"{solver}, one line a seed" if runs["solver_name"].nunique() > 1 else solver
            curve(axes, group, group["value"] / bound - 1, label, solver, "o-")
    axes.set_ylabel("Eq. 1 above the searched bound, relative")


def draw(path: Path, part: Part, points: pd.DataFrame) -> None:
    """Write one figure."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    painter: Callable[[plt.Axes, pd.DataFrame], None]
    painter = draw_programs if part.benchmark == "programs" else draw_training
    painter(axes, points)
    axes.set(xscale="log", yscale="log", xlabel="seconds (each point is a run of its own; best so far)")
    axes.set_title(part.title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Draw and print every part that has results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="results of run.py --quick")
    options = parser.parse_args()
    folder = HERE / ("figures-quick" if options.quick else "figures")
    for name in options.parts or PARTS:
        part, points = PARTS[name], load(name, options.quick)
        if options.quick:
            part = replace(part, title=f"Quick check only: {part.dataset} as {part.quick_dataset}")
        if points.empty:
            continue
        draw(folder / f"{name}.png", part, points)
        table = programs_table(part, points) if part.benchmark == "programs" else training_table(part, points)
        print("\n".join([f"\n### {part.title}\n", *table]), flush=True)


if __name__ == "__main__":
    main()
