"""``python -m cvxcnn.diagnose``: see ``commands.diagnose``."""

import sys

from .commands.diagnose import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
