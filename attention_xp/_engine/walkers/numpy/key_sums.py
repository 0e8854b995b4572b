"""The gradients of some keys and values, to which one tile after the other is added on NumPy."""

import numpy as np

from attention_xp._engine.plan.plan import Bounds, side_by_side
from attention_xp._typing import Array

__all__ = ["KeySums"]


class KeySums:
    """Gradients (K, n, W) in memory that nothing was written to: where a tile is the first, it is not added to zeros."""

    def __init__(self, first: int, key: Array, value: Array, factor: float) -> None:
        self._first, self._wholes = first, (key, value)
        self._factors = factor, 1.0  # the one that pieces of gradients of keys lack
        self._done = 0  # keys that something was written to, counted from the first one

    def add(self, key: Array, value: Array, stretches: tuple[Bounds, ...]) -> None:
        """Add pieces (K, n, W), the stretches of a tile side by side, to where these belong."""
        inside = [(start - self._first, end - self._first) for start, end in stretches]
        for (start, end), columns in zip(inside, side_by_side(end - start for start, end in inside), strict=True):
            self._clear(start)
            for whole, piece, factor in zip(self._wholes, (key, value), self._factors, strict=True):
                _add(whole[:, start:end], piece[:, columns], factor, known=self._done - start)
            self._done = max(self._done, end)

    def finish(self) -> None:
        """Put zeros where no tile was."""
        self._clear(self._wholes[0].shape[1])

    def _clear(self, end: int) -> None:
        """Put zeros where nothing was written up to a key."""
        if self._done < end:
            for whole in self._wholes:
                whole[:, self._done : end] = 0.0
            self._done = end


def _add(target: Array, piece: Array, factor: float, *, known: int) -> None:
    """Add a piece times a factor to so many known keys of the target, and write the rest of it."""
    if known <= 0:
        np.multiply(piece, factor, out=target)
        return
    if factor != 1.0:
        np.multiply(piece, factor, out=piece)
    np.add(target[:, :known], piece[:, :known], out=target[:, :known])
    if known < target.shape[1]:
        target[:, known:] = piece[:, known:]
