"""The draws of `survivors` on NumPy, in buffers of one thread: each step is one operation on many blocks."""

from collections.abc import Sequence

import numpy as np

from attention_xp._random.survivors import smallest_draw
from attention_xp._random.threefry import Steps, threefry
from attention_xp._typing import Array

__all__ = ["Survivors"]

_BLOCKS = 2**18  # at a time: threads that meet between operations wait for each other, and so few of them are better
_MOST = 2**32 - 1
_WORD, _HALF = np.dtype("<u4"), np.dtype("<u2")  # the lower half of a word comes first


class _InPlace(Steps):
    """The steps on unsigned words, whose right shift brings in zeros."""

    def __init__(self) -> None:
        self._memory = np.empty((3, 0), _WORD)

    def shaped(self, *shape: int) -> "_InPlace":
        """Get ready for words of a shape."""
        size = shape[0] * shape[1]
        if size > self._memory.shape[1]:
            self._memory = np.empty((3, size), _WORD)
        self._x, self._y, self._spare = self._memory[:, :size].reshape(3, *shape)
        return self

    def add(self, x: Array, y: Array) -> Array:
        """Return x + y, in the first buffer."""
        return np.add(x, y, out=self._x)

    def mix(self, x: Array, y: Array, rotation: int) -> Array:
        """Return the exclusive-or of x and of y, rotated, in the second buffer."""
        if y is not self._y:  # the counter itself, which has yet to be broadcast
            return np.bitwise_xor(x, (y << rotation) | (y >> (32 - rotation)), out=self._y)
        np.left_shift(y, rotation, out=self._spare)
        np.right_shift(y, 32 - rotation, out=y)
        np.bitwise_xor(y, self._spare, out=y)
        return np.bitwise_xor(y, x, out=y)

    def inject(self, x: Array, word: int, number: int) -> Array:
        """Return x plus a word of the key and a small number, in x."""
        return np.add(x, (word + number) & _MOST, out=x)


class Survivors:
    """Which weights of a tile survive dropout, in memory that each tile uses anew."""

    def __init__(self, rate: float) -> None:
        self._limit = smallest_draw(rate)
        self._steps, self._memory = _InPlace(), np.empty(0, bool)

    def of_tile(self, keys: Sequence[tuple[int, int]], first: tuple[int, int], sizes: tuple[int, int]) -> Array:
        """Return a boolean array (G, m, n) for G keys of the generator and the positions from `first` on."""
        (row, column), (m, n) = first, sizes
        rows, columns = (
            np.arange(start // 2, start // 2 + size // 2 + 1).astype(_WORD)
            for start, size in zip(first, sizes, strict=True)
        )
        tile = self._empty(len(keys), len(columns), 2, 2 * len(rows))
        for key, keep in zip(keys, tile, strict=True):
            self._fill(keep, key, rows, columns)
        whole = tile.reshape(len(keys), 2 * len(columns), 2 * len(rows))
        return whole[:, column & 1 : (column & 1) + n, row & 1 : (row & 1) + m].transpose(0, 2, 1)

    def _empty(self, *shape: int) -> Array:
        size = int(np.prod(shape))
        if size > self._memory.size:
            self._memory = np.empty(size, bool)
        return self._memory[:size].reshape(shape)

    def _fill(self, keep: Array, key: tuple[int, int], rows: Array, columns: Array) -> None:
        """Compare the halves of the words of all blocks with the limit, (columns, 2, 2 * rows), some columns at a time."""
        some = max(1, _BLOCKS // len(rows))
        for column in range(0, len(columns), some):
            part = slice(column, column + some)
            counter = rows[None, :], columns[part, None]
            drawn = threefry(key, counter, steps=self._steps.shaped(len(columns[part]), len(rows)))
            for parity, word in enumerate(drawn):
                np.greater_equal(word.view(_HALF), self._limit, out=keep[part, parity])
