"""Settings of the whole test suite."""

from hypothesis import settings

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("cvxcnn", deadline=None, max_examples=50)
settings.load_profile("cvxcnn")
