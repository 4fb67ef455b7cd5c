"""The peak memory of a run: predicted before it starts, and refused if there isn't as much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cvxcnn.commands.train import build_parser, main, settings_of
from cvxcnn.errors import InputError
from cvxcnn.models.recipes import RECIPES
from cvxcnn.runs.memory import check_run_memory, predict_run_memory
from cvxcnn.runs.settings import Settings, build_stack

LARGE = replace(Settings(), recipe="large", layers=5, augment=("mirror",), **RECIPES["large"])
CIFAR10 = (50_000, 10_000, (3, 32, 32), 10)


def predicted(settings: Settings) -> int:
    found = predict_run_memory(build_stack(settings), *CIFAR10)
    assert found is not None
    return found


def test_the_prediction_grows_with_what_costs_memory() -> None:
    whole = predicted(LARGE)
    # Images in float64, and the largest pair of inputs: mirrored, 80 channels of 16 x 16, float16, of two layers.
    images, pair = 60_000 * 3072 * 8, 2 * 120_000 * 80 * 256 * 2
    assert images + pair < whole < images + pair + (3 << 29)
    assert whole < 12 << 30
    assert predicted(replace(LARGE, project=40)) < whole
    # Half of the pair, were it not for the Gram matrix of 1,536 filters, which then decides.
    assert pair / 3 < whole - predicted(replace(LARGE, augment=())) < pair / 2
    assert predicted(replace(LARGE, half_maps=False)) > 1.5 * whole
    assert predicted(replace(LARGE, augment=("mirror", "crop"))) > 1.6 * whole


def test_a_run_over_the_limit_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", "digits", "--gates", "patches:20", "--starts", "0", "--memory", "0.01", "--output", "out"]
    assert main(arguments) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "the run needs up to " in error and "and the limit is 0.01 GiB. Use --half-maps" in error
    assert not Path("out").exists()
    assert main(["--memory", "1", "--output", "out"]) == 2
    assert "what priced gates need is decided by the optimisation" in " ".join(capsys.readouterr().err.split())
    check_run_memory(None, None)
    with pytest.raises(InputError, match=r"up to 2\.0 GiB, and the limit is 1\.5 GiB"):
        check_run_memory(2 << 30, 1.5)


def test_a_recipe_changes_the_defaults_and_not_what_is_asked_for() -> None:
    def parsed(*arguments: str) -> Settings:
        options = vars(build_parser().parse_args(list(arguments)))
        options.pop("quiet", None), options.pop("verbose", None)
        return settings_of(options)

    assert parsed() == Settings()
    named = parsed("--recipe", "large", "--augment", "mirror", "--layers", "5")
    assert named == replace(LARGE, asked=("augment", "layers", "recipe"))
    own = parsed("--layers", "3", "--recipe", "large", "--kernel-size", "3", "--baseline", "--padding", "1")
    changed = replace(LARGE, layers=3, kernel_size=3, padding=1, baseline=True, augment=())
    assert own == replace(changed, asked=own.asked)
    assert parsed("--gates", "40", "patches:20").gates == (40, "patches:20")
    with pytest.raises(InputError, match="--recipe must be one of exact, small, large, huge; got tiny"):
        parsed("--recipe", "tiny")
