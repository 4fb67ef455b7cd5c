"""Where the cells of a grid start and stop."""

from __future__ import annotations

__all__ = ["cell_bounds"]


def cell_bounds(length: int, cells: int) -> list[tuple[int, int]]:
    """Return where the cells of one axis start and stop, cut as torch's adaptive pooling cuts them.

    Examples
    --------
    >>> cell_bounds(5, 2)
    [(0, 3), (2, 5)]
    """
    return [(cell * length // cells, -(-(cell + 1) * length // cells)) for cell in range(cells)]
