"""What is measured: each part is one figure and one table, from one or more calls of benchopt."""

from __future__ import annotations

from dataclasses import dataclass

FOLDER_OF_RESULTS = "outputs"


@dataclass(frozen=True)
class Run:
    """One call of benchopt: these solvers, so many repetitions, no new point after ``timeout`` seconds."""

    solvers: tuple[str, ...]
    repetitions: int = 1
    timeout: int = 120


@dataclass(frozen=True)
class Part:
    """One problem and the runs on it.

    ``ours`` and ``theirs`` are the accuracies that the ratio compares: our proven gap, with violations below 1e-9,
    and the rivals' error of the objective, with violations no larger.
    """

    title: str
    benchmark: str
    dataset: str
    quick_dataset: str
    objective: str
    runs: tuple[Run, ...]
    ours: float = 1e-6
    theirs: float = 1e-6


_BASELINES = (
    Run(("cvxcnn",), repetitions=3, timeout=300),
    Run(("Adam",), timeout=300),
    Run(("SGD",), timeout=300),
)

PARTS = {
    "relu": Part(
        "ReLU program, fully connected, n = 1000, d = 30, P = 100, reg = 0.15 reg_max",
        "programs",
        "planted[n=1000,d=30,gates=100]",
        "planted[n=60,d=4,gates=12]",
        "*[program=relu]",
        (Run(("cvxcnn",), 5), Run(("Clarabel", "SCS", "MOSEK"), 1, 300), Run(("pyscnn-AL",), 1, 60)),
        theirs=1e-4,
    ),
    "gated": Part(
        "Gated program, fully connected, n = 1000, d = 30, P = 100, reg = 0.15 reg_max",
        "programs",
        "planted[n=1000,d=30,gates=100]",
        "planted[n=60,d=4,gates=12]",
        "*[program=gated]",
        (Run(("cvxcnn", "adelie", "pyscnn"), 5), Run(("Clarabel", "SCS", "MOSEK"), 1)),
    ),
    "gated-large": Part(
        "Gated program, fully connected, n = 10,000, d = 100, P = 500, reg = 0.15 reg_max",
        "programs",
        "planted[n=10000,d=100,gates=500]",
        "planted[n=100,d=5,gates=20]",
        "*[program=gated]",
        (Run(("cvxcnn",), 3), Run(("adelie", "pyscnn", "Clarabel", "SCS", "MOSEK"), 1)),
        ours=1e-5,
        theirs=1e-5,
    ),
    "digits-relu": Part(
        "ReLU program, digits 3 and 8, n = 357, 3x3 patches, P = 50, reg = 0.15 reg_max",
        "programs",
        "digits[n=360,gates=50]",
        "digits[n=20,gates=5]",
        "*[program=relu]",
        (Run(("cvxcnn",), 3), Run(("Clarabel", "SCS", "MOSEK"), 1, 60)),
        theirs=1e-4,
    ),
    "digits-gated": Part(
        "Gated program, digits 3 and 8, n = 357, 3x3 patches, P = 50, reg = 0.15 reg_max",
        "programs",
        "digits[n=360,gates=50]",
        "digits[n=20,gates=5]",
        "*[program=gated]",
        (Run(("cvxcnn", "adelie", "Clarabel"), 3), Run(("SCS", "MOSEK"), 1, 60)),
    ),
    "cifar10-gated": Part(
        "Gated program, CIFAR-10 airplanes and automobiles, n = 1000, 3x3 patches, P = 200, reg = 0.15 reg_max",
        "programs",
        "cifar10[n=1000,gates=200]",
        "cifar10[n=20,gates=5]",
        "*[program=gated]",
        (Run(("cvxcnn", "adelie"), 3), Run(("Clarabel", "SCS", "MOSEK"), 1, 60)),
    ),
    "training-forty": Part(
        "Eq. 1, digits 3 and 8, n = 40, 3x3 patches, reg = 0.05 reg_max",
        "training",
        "digits[task=two,n=40]",
        "digits[task=two,n=20]",
        "*[reg_fraction=0.05]",
        _BASELINES,
    ),
    "training-two": Part(
        "Eq. 1, digits 3 and 8, n = 357, 3x3 patches, reg = 0.05 reg_max",
        "training",
        "digits[task=two,n=357]",
        "digits[task=two,n=20]",
        "*[reg_fraction=0.05]",
        _BASELINES,
    ),
    "training-ten": Part(
        "Eq. 1, ten digits, n = 1437, 3x3 patches, 2x2 cells, reg = 0.01 reg_max",
        "training",
        "digits[task=ten,n=1437]",
        "digits[task=ten,n=30]",
        "*[reg_fraction=0.01]",
        _BASELINES,
    ),
    "training-cifar10": Part(
        "Eq. 1, CIFAR-10 airplanes and automobiles, n = 500, 3x3 patches, 2x2 cells, reg = 0.05 reg_max",
        "training",
        "cifar10[n=500]",
        "cifar10[n=20]",
        "*[reg_fraction=0.05]",
        (Run(("cvxcnn",), 1, 200), Run(("Adam[seed=[0,1]]",), 1, 100)),
    ),
}
