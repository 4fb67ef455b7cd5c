"""What the commands have in common: one name for all, messages, exit codes, and output that is no terminal."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import cvxcnn.__main__
from cvxcnn import __version__
from cvxcnn.commands.cli import EXIT_CODES, Parser, fraction, integer, one_of, positive, run_command
from cvxcnn.errors import DataError, InputError, ModelFileError, SolverError

ROOT = str(Path(cvxcnn.__file__).parents[1])
QUICK = ["--layers", "1", "--limit-train", "40", "--reg", "10", "--gates", "8", "--starts", "8", "--no-baseline"]


def program(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a module as a program, its output in pipes."""
    command = [sys.executable, "-W", "error", "-m", *arguments]
    return subprocess.run(
        command, capture_output=True, cwd=folder, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": ROOT, **environment},
    )  # fmt: skip


def test_one_name_for_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cvxcnn.__main__.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(
        re.search(rf"^  {name} +\w", text, re.MULTILINE)
        for name in ("train", "explain", "diagnose", "predict", "completion")
    )
    assert "130 interrupted" in text
    for name in ("train", "explain", "diagnose", "predict"):
        assert cvxcnn.__main__.main([name, "--version"]) == 0
        assert capsys.readouterr().out == f"cvxcnn {__version__}\n"
        assert cvxcnn.__main__.main([name, "--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert text.startswith(f"usage: cvxcnn {name} ") and EXIT_CODES in text
        assert "machine and messages:" in text and "(default: auto)" in text and "(default: None)" not in text
        assert all(flag in text for flag in ("--quiet", "--verbose", "--version", "--device"))
        assert cvxcnn.__main__.main([name, "--nonsense"]) == 2
        assert capsys.readouterr().err.startswith(f"cvxcnn {name}: error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["frob", "--layers", "2"], "COMMAND must be one of train, explain, diagnose, predict, completion; got frob"),
        (
            ["trian"],
            "COMMAND must be one of train, explain, diagnose, predict, completion; got trian: did you mean train?",
        ),
        (["--quiet"], "the following arguments are required: COMMAND"),
    ],
)
def test_an_unknown_command(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cvxcnn.__main__.main(arguments) == 2
    assert capsys.readouterr().err == f"cvxcnn: error: {message}\n"


def test_the_console_script_is_declared() -> None:
    text = (Path(ROOT) / "pyproject.toml").read_text()
    assert '[project.scripts]\ncvxcnn = "cvxcnn.__main__:main"' in text
    assert "reports/template.html" in text


def test_a_pipe_gets_plain_lines(tmp_path: Path) -> None:
    done = program("cvxcnn", "train", *QUICK, "--verbose", "--output", "out", folder=tmp_path, TERM="xterm-256color")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    # The library's log, whole however long its lines are.
    assert re.search(r"^\d\d:\d\d:\d\d INFO layer 1: objective .* over its own gates .*$", text, re.MULTILINE)
    assert re.search(r"^Written to out; open out[/\\]report.html in a browser$", text, re.MULTILINE)


def test_equal_commands_give_equal_output(tmp_path: Path) -> None:
    help_texts = [
        program(*command, "--help", folder=tmp_path).stdout.split(b"\n\n", 1)[1]
        for command in (("cvxcnn", "predict"), ("cvxcnn.predict",))
    ]
    assert help_texts[0] == help_texts[1]


def small_parser() -> Parser:
    parser = Parser("python -m cvxcnn.toy", "A toy.")
    parser.add_messages(parser)
    parser.add_device(parser)
    return parser


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("Wrong."), 2, "error: Wrong."),
        (ModelFileError("No run."), 2, "error: No run."),
        (DataError("Damaged."), 1, "error: Damaged."),
        (SolverError("Diverged."), 1, "error: Diverged."),
        (OSError(28, "Disk full"), 1, "error: can't write the toys: Disk full."),
        (MemoryError(), 1, "error: out of memory. Play less."),
        (RuntimeError("CUDA out of memory"), 1, "error: out of memory. Play less."),
        (KeyboardInterrupt(), 130, "interrupted; toys are as they were."),
    ],
)
def test_exit_codes(error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work(options: dict[str, Any], console: Console) -> None:
        raise error

    left = "toys are as they were"
    assert run_command(small_parser(), [], work, what="the toys", unfinished=left, remedy="Play less.") == code
    assert capsys.readouterr() == ("", f"cvxcnn.toy: {text}\n")


def test_bugs_are_shown() -> None:
    def work(options: dict[str, Any], console: Console) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_command(small_parser(), [], work)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [([], ["note", "careful"]), (["--quiet"], []), (["--verbose"], ["note", "detail", "careful"])],
)
@pytest.mark.parametrize("on_stderr", [False, True])
def test_loudness(
    arguments: Sequence[str], shown: list[str], on_stderr: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("cvxcnn")
    before = (logger.level, logger.propagate, list(logger.handlers))

    def work(options: dict[str, Any], console: Console) -> None:
        assert options == {"device": "auto"}
        console.print("note")
        logging.getLogger("cvxcnn.toy").info("detail")
        logging.getLogger("cvxcnn.toy").warning("careful")

    assert run_command(small_parser(), arguments, work, results_on_stdout=on_stderr) == 0
    lines = "".join(capsys.readouterr()[:: -1 if on_stderr else 1]).split("\n")
    assert [line.split(" ")[-1] for line in lines if line] == shown
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_types_of_arguments() -> None:
    assert (integer(1)("3"), positive("1e-3"), fraction("0.5"), one_of("a", "b")("b")) == (3, 1e-3, 0.5, "b")
    for parse, text, message in (
        (integer(1), "0", "must be an int >= 1; got 0"),
        (integer(0, 9), "ten", "must be an int from 0 to 9; got ten"),
        (positive, "inf", "must be a positive, finite number; got inf"),
        (fraction, "1", "must be between 0 and 1; got 1"),
        (one_of("a", "b"), "c", "must be one of a, b; got c"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(message)):
            parse(text)


def test_settings_of_the_library_are_said_as_options() -> None:
    parser = Parser("toy", "A toy.")
    parser.add_argument("--class", dest="target")
    parser.add_argument("--kernel-size")
    assert parser.in_options("kernel_size must be odd.") == "--kernel-size must be odd."
    assert parser.in_options("class must be a name.") == parser.in_options("target must be a name.").replace(
        "target", "class"
    )
    assert parser.in_options("The kernel_size is odd.") == "The kernel_size is odd."


def test_what_is_not_used_is_not_imported(tmp_path: Path) -> None:
    drawn_and_read = {"matplotlib", "captum", "cvxpy", "pyarrow", "scs", "mosek"}
    for statement, absent in (
        ("import cvxcnn.__main__ as m; m.main(['--version'])", {"torch", "sklearn", "scipy", "numpy", *drawn_and_read}),
        ("from cvxcnn import *; ConvexConvBlock, LayerwiseCNN", {"sklearn.datasets", *drawn_and_read}),
    ):
        code = f"{statement}; import sys; print(sorted({sorted(absent)!r} & sys.modules.keys()))"
        code = code.replace("] &", "} &").replace("sorted([", "sorted({")
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, cwd=tmp_path, check=True, text=True, timeout=100,
            env={**os.environ, "PYTHONPATH": ROOT},
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == "[]"


def test_public_names_are_there_before_they_are_imported() -> None:
    assert dir(cvxcnn) == sorted([*cvxcnn.__all__, "__version__"])
    assert cvxcnn.data.ImageSet.__name__ == "ImageSet"
    with pytest.raises(AttributeError, match="module 'cvxcnn' has no attribute 'nonsense'"):
        _ = cvxcnn.nonsense


COMPLETE = """source ./script
complete_words() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _shtab_cvxcnn cvxcnn "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
    echo "${COMPREPLY[*]}"
}
complete_words cvxcnn pre
complete_words cvxcnn train --act
complete_words cvxcnn train --layers 3 --activation g
"""


def test_shells_complete_commands_options_and_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    assert cvxcnn.__main__.main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    done = subprocess.run([bash, "-c", COMPLETE], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.split() == ["predict", "--activation", "gated_relu"]
    assert cvxcnn.__main__.main(["completion", "fish"]) == 2
    assert "must be one of bash, zsh, tcsh; got fish" in capsys.readouterr().err


def test_without_shtab_completion_names_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cvxcnn.__main__.main(["completion", "zsh"]) == 2
    assert "pip install 'cvxcnn[completion]'" in capsys.readouterr().err
