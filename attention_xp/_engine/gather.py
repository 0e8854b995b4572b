"""The keys or values of a tile as one array, in a buffer where they are apart."""

import itertools
import math

import numpy as np

from attention_xp._engine.plan import Tile
from attention_xp._typing import Array, DType

__all__ = ["Gather"]

_GRAIN = 16  # keys of which stretches must be made, at least, to be gathered as pieces of one size


class Gather:
    """A buffer for the stretches of keys, or of values, that a tile visits as one."""

    def __init__(self, dtype: DType) -> None:
        self._dtype = dtype
        self._buffer = np.empty(0, dtype)

    def __call__(self, x: Array, tile: Tile) -> Array:
        """(G, Sk, D) -> (G, n, D): a copy where the stretches are apart."""
        (start, end), *more = tile.columns
        if not more:
            return x[:, start:end].astype(self._dtype, copy=False)
        shape = len(x), sum(end - start for start, end in tile.columns), x.shape[-1]
        size = math.prod(shape)
        if self._buffer.size < size:
            self._buffer = np.empty(size, self._dtype)
        target = self._buffer[:size].reshape(shape)
        grain = math.gcd(*itertools.chain.from_iterable(tile.columns))
        if grain < _GRAIN or x.shape[1] % grain or not x.flags.c_contiguous or x.dtype != target.dtype:
            return np.concat([x[:, start:end] for start, end in tile.columns], axis=1, out=target)
        # One operation of NumPy: each stretch on its own would hand the interpreter over and wait for it.
        at = [i for start, end in tile.columns for i in range(start // grain, end // grain)]
        pieces = x.reshape(len(x), -1, grain * x.shape[-1]), target.reshape(len(x), -1, grain * x.shape[-1])
        np.take(pieces[0], at, axis=1, out=pieces[1], mode="clip")  # "raise" would write to another array first
        return target
