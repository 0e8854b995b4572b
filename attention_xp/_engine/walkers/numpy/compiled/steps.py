"""The compiled tile steps of one problem: what they need besides the arrays of a block of rows."""

from types import ModuleType

import numpy as np

from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.base import base_of
from attention_xp._engine.tile.scores import query_factor
from attention_xp._engine.walkers.numpy.compiled.constants import Constants
from attention_xp._typing import Array

__all__ = ["Steps", "address_of"]


def address_of(array: Array) -> int:
    """Return where an array begins in memory."""
    return int(array.__array_interface__["data"][0])


class Steps:
    """Steps over all keys of a block of rows, in one dtype."""

    def __init__(self, loops: ModuleType, problem: Problem) -> None:
        self._loops, self.dtype = loops, np.dtype(problem.dtype)
        self.log_e = base_of(problem.xp).log_e
        self.lanes = int(loops.WIDTH) // self.dtype.itemsize  # numbers of a vector
        self._constants = tuple(Constants.of(self.dtype, is_natural=self.log_e == 1.0))
        self._natural = tuple(Constants.of(self.dtype, is_natural=True))
        # Without a soft cap, the factor of the base is that of the query; with one, it is the tangent's.
        self.query_factor = query_factor(problem) * (self.log_e if problem.softcap is None else 1.0)
        cap = 0.0 if problem.softcap is None else problem.softcap * self.log_e
        least = -0.5 * float(np.finfo(self.dtype).max)
        self._factors = tuple(map(self.dtype.type, (cap, self.log_e, least)))

    def width(self, numbers: int) -> int:
        """Return how many numbers whole vectors hold that have room for so many."""
        return -(-numbers // self.lanes) * self.lanes

    def scores(self) -> int:
        """Return how many numbers the scores of a step are."""
        return int(self._loops.BAND * self._loops.KEYS)

    def packed_size(self, K: int, Sk: int, W: int) -> int:
        """Return how many numbers packed keys are."""
        return int(K * -(-Sk // self._loops.KEYS) * W * self._loops.KEYS)

    def pack(self, rows: Array, buffer: Array) -> Array:
        """Write keys (K, Sk, W) to a buffer as (K, chunks, W, KEYS), and return them: those of a chunk are side by side."""
        rows = rows.astype(self.dtype, copy=False)
        K, Sk, W = rows.shape
        packed = buffer[: self.packed_size(K, Sk, W)].reshape(K, -1, W, self._loops.KEYS)
        self._loops.pack(address_of(rows), rows.strides, Sk, packed)
        return packed

    def padded(self, rows: Array) -> Array:
        """Return rows (K, Sk, W) of whole vectors, with zeros where there were too few numbers; no copy where none is needed."""
        W, item = rows.shape[-1], self.dtype.itemsize
        width = self.width(W)
        if rows.dtype == self.dtype and width == W and rows.strides[-1] == item and rows.flags.aligned:
            return rows
        wide = np.zeros((*rows.shape[:-1], width), self.dtype)
        wide[..., :W] = rows
        return wide

    def attend(
        self, table: Array, addends: Array, arrays: tuple[Array, ...], state: tuple[Array, ...], strip: Array
    ) -> None:
        """Add all keys and values to the state of a block of rows, see `attended.attend`."""
        loops = self._loops
        strip = strip.reshape(loops.BAND, loops.KEYS)
        edge, seen = np.empty(strip.shape, np.uint8), np.empty(loops.BAND, np.uint8)
        options = self._factors, self._constants, self._natural
        query, key, value = arrays
        place = address_of(value), *value.strides[:2]
        loops.attend(table, query, key, place, addends, *options, *state, strip, edge, seen)
