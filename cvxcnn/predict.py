"""``python -m cvxcnn.predict``: see ``commands.predict``."""

import sys

from .commands.predict import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
