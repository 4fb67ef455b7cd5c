"""Where results are written: whatever a user names stays what it is, and gets them."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from cvxcnn import ConvexConvBlock, LayerwiseCNN
from cvxcnn.commands.predict import main
from cvxcnn.errors import InputError
from cvxcnn.explain import plot_explanations
from cvxcnn.models.path import reg_path
from cvxcnn.models.saving import save_model
from cvxcnn.persistence.files import write_atomically
from cvxcnn.reports.figures import plot_accuracy, plot_objective
from cvxcnn.reports.metrics import write_metrics
from cvxcnn.reports.summary import RunSummary
from cvxcnn.runs.run_folder import OutputFolder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links, pipes and devices of POSIX")

CONVEX = {"objective": 2.0, "dual_bound": 1.9, "relative_gap": 0.05, "train_accuracy": 0.9, "test_accuracy": 0.8}
SUMMARY = RunSummary.from_json({"data": {"name": "toy"}, "layers": [{"layer": 1, "convex": CONVEX}]})
Writer = Callable[[Path], object]


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    """Return what writes predictions to a path, by the command line."""
    folder = tmp_path_factory.mktemp("model")
    images = np.random.default_rng(0).random((8, 5, 5))
    np.save(folder / "images.npy", images)
    stack = LayerwiseCNN(layers=1, block=ConvexConvBlock(gates=4, reg=0.1)).fit(images, np.eye(2)[[0, 1] * 4])
    save_model(stack, folder)
    arguments = [str(folder), str(folder / "images.npy"), "--quiet", "--output"]
    return lambda path: main([*arguments, str(path)])


@pytest.fixture(scope="module")
def plotted() -> Writer:
    """Return what draws a path of reg."""
    images = np.random.default_rng(0).random((8, 5, 5))
    path = reg_path(images, images.mean(axis=(1, 2)), block=ConvexConvBlock(gates=4), points=2)
    return path.plot


@pytest.fixture(params=["predict", "path", "plot_objective", "plot_accuracy", "plot_explanations", "write_metrics"])
def write(request: pytest.FixtureRequest, predicted: Writer, plotted: Writer) -> Writer:
    image = np.zeros((1, 1, 4, 4))
    maps = {"gradient": {"convex": np.zeros((1, 4, 4))}}
    writers: dict[str, Writer] = {
        "predict": predicted,
        "path": plotted,
        "plot_objective": lambda path: plot_objective(SUMMARY, path),
        "plot_accuracy": lambda path: plot_accuracy(SUMMARY, path),
        "plot_explanations": lambda path: plot_explanations(image, [0], ["0"], maps, {"convex": [0]}, str(path)),
        "write_metrics": lambda path: write_metrics(SUMMARY, path),
    }
    return writers[request.param]


def test_a_pipe_hands_the_results_on(write: Writer, tmp_path: Path) -> None:
    write(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    found: list[bytes] = []
    reader = Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write(tmp_path / "pipe")
    reader.join(60)
    assert found == [(tmp_path / "file").read_bytes()] and found[0]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_links_stay_and_what_they_point_to_is_written(write: Writer, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    target = tmp_path / "below" / "real"
    target.write_text("old")
    (tmp_path / "link").symlink_to("below/real")
    (tmp_path / "dangling").symlink_to("below/new")
    os.link(target, tmp_path / "hard")
    for name in ("link", "dangling", "hard"):
        write(tmp_path / name)
        assert (tmp_path / name).is_symlink() == (name != "hard")
    assert len({path.read_bytes() for path in (target, tmp_path / "below" / "new", tmp_path / "hard")}) == 1
    assert target.read_bytes() != b"old" and os.path.samefile(target, tmp_path / "hard")
    assert sorted(os.listdir(tmp_path)) == ["below", "dangling", "hard", "link"]
    assert sorted(os.listdir(tmp_path / "below")) == ["new", "real"]


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_a_file_that_is_written_over_keeps_its_permissions(write: Writer, mode: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(mode)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_bytes() != b"old"


def test_devices_sockets_and_folders_are_still_there(write: Writer, tmp_path: Path) -> None:
    def attempt(path: Path) -> None:
        with suppress(OSError):  # is what a function of Python raises; the command line says it
            write(path)

    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as ours:
        ours.bind(os.path.relpath(tmp_path / "socket"))
        for name in ("folder", "socket", "loop"):
            attempt(tmp_path / name)
        assert stat.S_ISSOCK((tmp_path / "socket").stat().st_mode)
    assert os.listdir(tmp_path / "folder") == [] and os.readlink(tmp_path / "loop") == "loop"
    try:
        # A copy of /dev/null, which is root's to make.
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except OSError:
        return
    attempt(tmp_path / "null")
    assert stat.S_ISCHR((tmp_path / "null").stat().st_mode)


def test_standard_output_by_its_name(predicted: Writer, tmp_path: Path) -> None:
    predicted(tmp_path / "file")
    expected = (tmp_path / "file").read_bytes()
    script = (
        "import sys; from cvxcnn.persistence import write_output; from pathlib import Path\n"
        "sys.stdout.buffer.write(b'before\\n'); sys.stdout.flush()\n"
        "write_output(Path('/dev/stdout'), Path(sys.argv[1]).read_bytes())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "file")]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"before\n" + expected
    with (tmp_path / "redirected").open("wb") as file:
        subprocess.run(command, stdout=file, check=True)
    assert (tmp_path / "redirected").read_bytes() == b"before\n" + expected


def test_files_of_a_run_go_through_links_and_replace_no_pipe(tmp_path: Path) -> None:
    # A copy of a run that shares its files by hard links is not written to.
    (tmp_path / "real").write_text("old")
    os.link(tmp_path / "real", tmp_path / "backup")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "backup").read_text() == "old"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match=r"Not a regular file|Is a directory"):
            write_atomically(tmp_path / name, b"new")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_results_folder_may_be_a_link_and_nothing_else_but_a_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name, target in (("link", "real"), ("dangling", "new")):
        (tmp_path / name).symlink_to(target)
        with OutputFolder(tmp_path / name) as folder:
            (folder.partial / "content").write_text("1")
            folder.publish()
        assert (tmp_path / name).is_symlink() and (tmp_path / target / "content").is_file()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (("pipe", "is no folder"), ("/dev/null", "is no folder"), ("loop", "can't write to")):
        with pytest.raises(InputError, match=message), OutputFolder(tmp_path / name):
            pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert sorted(os.listdir(tmp_path)) == ["dangling", "link", "loop", "new", "pipe", "real"]
