"""The compiled passes for the tiles of one problem."""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np

from attention_xp._engine.walkers.numpy.compiled.constants import Constants
from attention_xp._random.survivors import smallest_draw
from attention_xp._random.threefry import schedule_of
from attention_xp._typing import Array, DType

__all__ = ["Passes", "Tile"]


class Tile(NamedTuple):
    """The memory of a tile: lines of scores, each with a gap behind it."""

    lines: Array  # (G, L, room), contiguous
    length: int  # of a line, without the gap
    across: bool  # whether a row lies across the lines: these are keys, and the numbers of each are rows

    def place(self, part: Array) -> tuple[int, int] | None:
        """Return the line and the number of it where a part of the scores starts; ``None`` where heads share lines."""
        lines = part.mT if self.across else part
        if lines.shape[:-2] and math.prod(lines.shape[:-2]) != len(self.lines):
            return None
        start = (part.__array_interface__["data"][0] - self.lines.__array_interface__["data"][0]) // part.itemsize
        line, first = divmod(start, self.lines.shape[-1])
        return line, first

    def of_rows(self, array: Array) -> Array:
        """(..., m, 1) -> (G, m): one number of each row."""
        return np.ascontiguousarray(array).reshape(len(self.lines), -1)


class Passes:
    """Passes over tiles of one dtype; each is done in place."""

    def __init__(
        self, loops: ModuleType, dtype: DType, rate: float, *, least: float = math.inf, is_natural: bool
    ) -> None:
        self._loops, self._dtype = loops, np.dtype(dtype)
        self._constants = tuple(Constants.of(dtype, least, is_natural=is_natural))
        self._lowest, self._zero = self._dtype.type(-np.inf), self._dtype.type(0.0)
        self._limit = smallest_draw(rate)
        self._words = np.empty((2, 0), np.uint32)

    def powers(self, tile: Tile, shift: Array | None) -> Array:
        """Replace scores by powers of ``scores - shift``, and return the sums of the rows, (G, m)."""
        lines, length, across = tile
        rows = len(lines), length if across else lines.shape[1]
        shift = np.zeros(rows, self._dtype) if shift is None else tile.of_rows(shift)
        sums = np.empty(rows, self._dtype)
        powers = self._loops.powers_across_lines if across else self._loops.powers_along_lines
        powers(lines, length, shift, self._constants, sums)
        return sums

    def peak(self, tile: Tile, so_far: Array) -> Array:
        """Return the largest of the scores of each row and of those before, in the shape of the latter, (..., m, 1)."""
        if not tile.across:  # along its lines NumPy is as fast
            return np.maximum(so_far, np.max(tile.lines[..., : tile.length], axis=-1).reshape(so_far.shape))
        largest = np.array(so_far, order="C")
        self._loops.largest_across_lines(tile.lines, tile.length, tile.of_rows(largest))
        return largest

    def tanh(self, tile: Tile) -> None:
        """Replace scores by their hyperbolic tangents."""
        self._loops.hyperbolic_tangents(tile.lines, tile.length)

    def exclude(self, tile: Tile, part: Array, allowed: Array) -> None:
        """Replace a part (..., m', n') of the scores of a tile by minus infinity where flags are False."""
        at = tile.place(part)
        if at is None:
            np.copyto(part, -np.inf, where=~allowed)
            return
        heads = part.shape[:-2] if math.prod(allowed.shape[:-2]) > 1 else (1,) * len(part.shape[:-2])
        flags = np.broadcast_to(allowed, (*heads, *part.shape[-2:])).reshape(-1, *part.shape[-2:])
        flags = np.ascontiguousarray(flags.mT if tile.across else flags)
        self._loops.keep_if(tile.lines, flags, *at, self._lowest)

    def thin(self, tile: Tile, weights: Array, keep: Array) -> Array:
        """Return weights (..., m, n) with 0 where flags are False."""
        flags = keep.mT if tile.across else keep
        shape = len(tile.lines), tile.lines.shape[1], tile.length
        if math.prod(keep.shape[:-2]) != shape[0] or not flags.flags.c_contiguous:  # or heads share lines
            return np.multiply(weights, keep, out=weights)
        self._loops.keep_if(tile.lines, flags.reshape(shape), 0, 0, self._zero)
        return weights

    def survivors(self, keys: Sequence[tuple[int, int]], first: tuple[int, int], sizes: tuple[int, int]) -> Array:
        """Return which weights survive dropout, (G, m, n), for G keys of the generator and the first query and key."""
        m, n = sizes
        if self._words.shape[1] != m // 2 + 1:
            self._words = np.empty((2, m // 2 + 1), np.dtype("<u4"))
        keep = np.empty((len(keys), n, m), bool)
        for key, flags in zip(keys, keep, strict=True):
            schedule = tuple(np.uint32(word) for word in schedule_of(key))
            self._loops.survivors(flags, schedule, first, self._limit, self._words, self._words.view("<u2"))
        return keep.mT
