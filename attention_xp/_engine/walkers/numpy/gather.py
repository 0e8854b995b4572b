"""The keys or values of a tile: views of the whole, or copies in a buffer where they are scattered."""

import functools
import itertools
import math

import numpy as np

from attention_xp._engine.plan.plan import Bounds, Tile
from attention_xp._typing import Array

__all__ = ["Gather", "joined"]

_LONG = 512  # keys of a stretch from which a product of its own is faster than a copy
_GRAIN = 16  # keys of a piece, at least, where stretches are gathered as pieces of equal size


class Gather:
    """Gathers the stretches of keys, and later of values, of a tile in a buffer."""

    def __init__(self, buffer: Array) -> None:
        self._buffer = buffer

    def __call__(self, x: Array, tile: Tile) -> list[Array]:
        """(K, Sk, D) -> one or more (K, n, D), side by side: views of long stretches, copies of the others.

        The keys along a band are not copied: its steps read them through a strided view.
        """
        visited = tile.stretches
        if len(visited) == 1:
            return [self._lying(x, visited[0])]
        pieces, used = list[Array](), 0
        if tile.steps > 1:
            pieces, visited = [self._lying(x, visited[0])], visited[1:]
        for is_long, some in itertools.groupby(visited, _is_long):
            stretches = tuple(some)
            if is_long or len(stretches) == 1:
                pieces += [self._lying(x, stretch) for stretch in stretches]
            else:
                pieces.append(self._copied(x, stretches, used))
                used += pieces[-1].size
        return pieces

    def _lying(self, x: Array, stretch: Bounds) -> Array:
        return x[:, slice(*stretch)].astype(self._buffer.dtype, copy=False)

    def _copied(self, x: Array, stretches: tuple[Bounds, ...], used: int) -> Array:
        """Return a copy of stretches side by side, in the part of the buffer that is not used yet."""
        shape = len(x), sum(end - start for start, end in stretches), x.shape[-1]
        target = self._buffer[used : used + math.prod(shape)].reshape(shape)
        grain, at = _cut(stretches)
        if grain < _GRAIN or x.shape[1] % grain or not x.flags.c_contiguous or x.dtype != target.dtype:
            return np.concat([x[:, start:end] for start, end in stretches], axis=1, out=target)
        # One operation of NumPy: after each operation a thread may have to wait for the interpreter lock.
        pieces = x.reshape(len(x), -1, grain * x.shape[-1]), target.reshape(len(x), -1, grain * x.shape[-1])
        np.take(pieces[0], at, axis=1, out=pieces[1], mode="clip")  # "raise" would write to another array first
        return target


def joined(pieces: list[Array], ones: int, buffer: Array) -> Array:
    """Return pieces (K, n, W) as one, with so many columns of ones behind them; a copy where there is anything to join."""
    if ones == 0 and len(pieces) == 1:
        return pieces[0]
    heads, _, width = pieces[0].shape
    shape = heads, sum(piece.shape[1] for piece in pieces), width + ones
    target = buffer[: math.prod(shape)].reshape(shape)
    np.concat(pieces, axis=1, out=target[..., :width])
    target[..., width:] = 1.0
    return target


@functools.lru_cache(maxsize=1024)
def _cut(stretches: tuple[Bounds, ...]) -> tuple[int, Array]:
    """Return the size of the largest equal pieces that stretches consist of, and the numbers of these pieces."""
    grain = math.gcd(*itertools.chain.from_iterable(stretches))
    cuts = stretches if grain >= _GRAIN else ()
    return grain, np.asarray([i for start, end in cuts for i in range(start // grain, end // grain)], np.intp)


def _is_long(stretch: Bounds) -> bool:
    return stretch[1] - stretch[0] >= _LONG
