"""Positions of keys in any order, for plans on NumPy: the least and the greatest position among some columns."""

from typing import Any

import numpy as np

from attention_xp._typing import Array

__all__ = ["Positions"]


class Positions:
    """The positions of the keys of one batch item.

    Negative ones mark empty slots, which are passed over, unless they count up: then they come from an offset.
    """

    def __init__(self, positions: Array) -> None:
        counts_up = len(positions) > 0 and positions[-1] - positions[0] == len(positions) - 1
        self._filled = np.arange(len(positions)) if counts_up else np.flatnonzero(positions >= 0)
        self._positions = positions[self._filled]
        self._known: dict[tuple[int, int], tuple[int, int]] = {}

    def between(self, first: Any, end: Any) -> tuple[Any, Any]:
        """Return the least and the greatest position in half-open stretches of columns, ints or arrays."""
        if isinstance(first, int):
            return self._bounds(first, end)
        found = [self._bounds(*pair) for pair in zip(first.ravel().tolist(), end.ravel().tolist(), strict=True)]
        least, greatest = np.asarray(found, np.int64).reshape(-1, 2).T
        return least.reshape(first.shape), greatest.reshape(first.shape)

    def _bounds(self, first: int, end: int) -> tuple[int, int]:
        known = self._known.get((first, end))
        if known is None:
            some = self._positions[slice(*np.searchsorted(self._filled, (first, end)))]
            known = self._known[first, end] = (int(some.min()), int(some.max())) if some.size else (0, 0)
        return known
