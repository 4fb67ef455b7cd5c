"""Settings of the whole test suite."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Processes that share the cores and have a thread for each of them wait for one another: the suite takes half again as
# long. Set before anything imports torch.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("cvxcnn", deadline=None, max_examples=50)
settings.load_profile("cvxcnn")


@pytest.fixture(scope="module")
def blank_pictures() -> Iterator[None]:
    """Leave the pictures of this process blank: to draw them is half of a short run, and not every test looks."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("matplotlib.backends.backend_agg.FigureCanvasAgg.draw", lambda canvas: canvas.get_renderer())
        yield
