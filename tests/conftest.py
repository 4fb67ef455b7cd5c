"""Settings of the whole test suite."""

import os

from hypothesis import settings

# Processes that share the cores and have a thread for each of them wait for one another: the suite takes half again as
# long. Set before anything imports torch.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("cvxcnn", deadline=None, max_examples=50)
settings.load_profile("cvxcnn")
