"""Run the benchmarks through benchopt, then draw the figures and print the tables.

    python benchmarks/run.py                      # everything but CIFAR-10; about 25 minutes on two cores
    python benchmarks/run.py --quick              # tiny problems, four minutes: does it all work?
    python benchmarks/run.py --parts relu gated
    CVXCNN_DATA=FOLDER python benchmarks/run.py --parts cifar10-gated training-cifar10

Results go to benchmarks/outputs/<part>-<run>.parquet (outputs-quick/ with --quick), figures to benchmarks/figures/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from parts import FOLDER_OF_RESULTS, PARTS, Part

HERE = Path(__file__).parent
QUICK = "-quick"
QUICK_SOLVERS = {"Adam": "Adam[seed=[0,1],width=4]", "SGD": "SGD[seed=[0,1],width=4]"}


def measure(name: str, part: Part, quick: bool) -> None:
    """Run one part, in this environment, without benchopt's cache: a cached time is of another day."""
    # Threads of one library that wait busily keep those of another from running: a hundred times slower at worst.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    folder = HERE / (FOLDER_OF_RESULTS + (QUICK if quick else ""))
    for old in folder.glob(f"{name}.[0-9]*.parquet"):
        old.unlink()
    for number, run in enumerate(part.runs):
        command = [sys.executable, "-m", "benchopt", "run", str(HERE / part.benchmark), "--local", "--no-cache"]
        command += ["--no-plot", "--no-display", "--output", str(folder / f"{name}.{number}.parquet")]
        command += ["-d", part.quick_dataset if quick else part.dataset, "-o", part.objective]
        command += ["-r", "1" if quick else str(run.repetitions), "--timeout", str(10 if quick else run.timeout)]
        for solver in run.solvers:
            command += ["-s", QUICK_SOLVERS.get(solver, solver) if quick else solver]
        began = time.perf_counter()
        subprocess.run(command, check=True, env=environment)
        print(f"{name}, {', '.join(run.solvers)}: {time.perf_counter() - began:.0f} s in all", flush=True)


def main() -> None:
    """Measure the chosen parts, one after another, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = [name for name in PARTS if "cifar10" not in name]
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=usual, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="tiny problems, one repetition")
    options = parser.parse_args()
    for name in options.parts:
        measure(name, PARTS[name], options.quick)
    script = [sys.executable, str(HERE / "time_to_gap.py"), *options.parts]
    subprocess.run([*script, *(["--quick"] if options.quick else [])], check=True)


if __name__ == "__main__":
    main()
