"""The keys or values of a tile: where they lie, or, where they are scattered, in a buffer."""

import functools
import itertools
import math

import numpy as np

from attention_xp._engine.plan.plan import Bounds, Tile
from attention_xp._typing import Array

__all__ = ["Gather", "joined"]

_LONG = 512  # keys of a stretch that is met where it lies: a copy would cost more than further operations
_GRAIN = 16  # keys of which stretches must be made, at least, to be gathered as pieces of one size


class Gather:
    """A buffer for the stretches of keys, and later of values, that a tile visits as one."""

    def __init__(self, buffer: Array) -> None:
        self._buffer = buffer

    def __call__(self, x: Array, tile: Tile) -> list[Array]:
        """(K, Sk, D) -> one or more (K, n, D), side by side: long stretches as they lie, copies of the others.

        The window of a band is met where it lies: its steps see it through a view.
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
        """Return stretches as one, in the buffer behind what is used of it."""
        shape = len(x), sum(end - start for start, end in stretches), x.shape[-1]
        target = self._buffer[used : used + math.prod(shape)].reshape(shape)
        grain, at = _cut(stretches)
        if grain < _GRAIN or x.shape[1] % grain or not x.flags.c_contiguous or x.dtype != target.dtype:
            return np.concat([x[:, start:end] for start, end in stretches], axis=1, out=target)
        # One operation of NumPy: each stretch on its own would hand the interpreter over and wait for it.
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
    """Return the size of the largest pieces that stretches are made of, and the numbers of these pieces."""
    grain = math.gcd(*itertools.chain.from_iterable(stretches))
    cuts = stretches if grain >= _GRAIN else ()
    return grain, np.asarray([i for start, end in cuts for i in range(start // grain, end // grain)], np.intp)


def _is_long(stretch: Bounds) -> bool:
    return stretch[1] - stretch[0] >= _LONG
