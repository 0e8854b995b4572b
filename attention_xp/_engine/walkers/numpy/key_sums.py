"""The gradients of some keys and values on NumPy, summed up over tiles."""

import numpy as np

from attention_xp._engine.plan.plan import Bounds, side_by_side
from attention_xp._typing import Array

__all__ = ["KeySums"]


class KeySums:
    """Gradients (K, n, W) in uninitialised memory: the first tile is written there, and not added to zeros."""

    def __init__(self, first: int, key: Array, value: Array, factor: float) -> None:
        self._first, self._wholes = first, (key, value)
        self._factors = factor, 1.0  # gradients of keys lack a factor, see `key_factor`
        self._done = 0  # number of keys, from the first on, that have been written

    def add(self, key: Array, value: Array, stretches: tuple[Bounds, ...]) -> None:
        """Add pieces (K, n, W), with the stretches of a tile side by side, at the keys of these stretches."""
        inside = [(start - self._first, end - self._first) for start, end in stretches]
        for (start, end), columns in zip(inside, side_by_side(end - start for start, end in inside), strict=True):
            self._clear(start)
            for whole, piece, factor in zip(self._wholes, (key, value), self._factors, strict=True):
                _add(whole[:, start:end], piece[:, columns], factor, known=self._done - start)
            self._done = max(self._done, end)

    def finish(self) -> None:
        """Put zeros at keys that no tile has visited."""
        self._clear(self._wholes[0].shape[1])

    def _clear(self, end: int) -> None:
        """Put zeros at keys before `end` that have not been written."""
        if self._done < end:
            for whole in self._wholes:
                whole[:, self._done : end] = 0.0
            self._done = end


def _add(target: Array, piece: Array, factor: float, *, known: int) -> None:
    """Add a piece times a factor to the first `known` keys of the target, and write it to the others."""
    if known <= 0:
        np.multiply(piece, factor, out=target)
        return
    if factor != 1.0:
        np.multiply(piece, factor, out=piece)
    np.add(target[:, :known], piece[:, :known], out=target[:, :known])
    if known < target.shape[1]:
        target[:, known:] = piece[:, known:]
