"""``python -m cvxcnn.explain``: see ``commands.explain``."""

import sys

from ..commands.explain import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
