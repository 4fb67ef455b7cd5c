"""``python -m cvxcnn.train``: see ``commands.train``."""

import sys

from .commands.train import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
