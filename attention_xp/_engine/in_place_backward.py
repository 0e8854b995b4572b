"""NumPy's primitives for the backward tile step, in the buffers of one thread.

Queries and gradients come as rows, (..., m, W), with one column more than keys and values have where a
shift rides in the product: ``[query, -lse] @ [key, 1]^T`` and ``[gradient, -delta] @ [value, 1]^T``.
The layout of a tile is that of `InPlace`, and again no product needs a transposed copy.
"""

import math

import numpy as np

from attention_xp._engine.heads import Range
from attention_xp._engine.in_place import InPlace
from attention_xp._engine.plan import Bounds
from attention_xp._engine.problem import Problem
from attention_xp._engine.products import clean, quarantined_key
from attention_xp._engine.scratch import Scratch
from attention_xp._engine.tile_sizes import TileShape
from attention_xp._typing import Array

__all__ = ["InPlaceBackward"]


class InPlaceBackward(InPlace):
    """Primitives that allocate nothing of the size of a tile."""

    def __init__(self, problem: Problem, rows: int, columns: int) -> None:
        super().__init__(problem, TileShape(1, rows, columns, folded=False))
        D, Dv = problem.query.shape[-1], problem.value.shape[-1]
        self._shapes = (rows * columns,), (rows * columns,), (rows * D,), (columns, D), (columns, Dv)
        self._has_pull = problem.softcap is not None or problem.score_mod is not None
        self.is_finite = True

    def lengths(self) -> list[int]:
        """Return how many numbers each buffer holds."""
        return [math.prod(shape) for shape in self._shapes]

    def use(self, scratch: Scratch) -> None:
        """Take the buffers from memory that is lent."""
        self._scores, self._slopes, self._row_sums, self._key_sums, self._value_sums = (
            scratch.empty(*shape) for shape in self._shapes
        )

    def prepare_tile(self, allows: Range, *, is_finite: bool) -> None:
        """Get ready for rows and keys of which something is known."""
        self.range, self.is_finite = allows, is_finite

    def query_key(self, query: Array, key: Array, *, exclusive: bool) -> Array:
        """(..., m, W) and (n, W) -> (..., m, n)."""
        return self._joint(self._scores, query, key, poisoned=exclusive and not self.range.keys)

    def gradient_value(self, gradient: Array, value: Array, *, exclusive: bool) -> Array:
        """(..., m, W) and (n, W) -> (..., m, n)."""
        return self._joint(self._slopes, gradient, value, poisoned=exclusive and not self.range.values)

    def _joint(self, buffer: Array, rows: Array, keys: Array, *, poisoned: bool) -> Array:
        """(..., m, W) and (n, W) -> (..., m, n), in the memory order of the tile."""
        *lead, m, W = rows.shape
        n, rows = keys.shape[0], rows.reshape(m, W)
        keys, poison = quarantined_key(keys) if poisoned else (keys, None)
        if self._by_keys:
            tile = np.matmul(keys, rows.T, out=buffer[: n * m].reshape(n, m)).T
        else:
            tile = np.matmul(rows, keys.T, out=buffer[: n * m].reshape(m, n))
        if poison is not None:
            tile += poison
        return tile.reshape(*lead, m, n)

    def slopes_key(self, slopes: Array, key: Array, *, exclusive: bool) -> Array:
        """(..., m, n) @ (n, D) -> (..., m, D)."""
        *lead, m, n = slopes.shape
        D = self.problem.query.shape[-1]
        key = key[:, :D]
        if exclusive and not self.range.keys:
            key = clean(key)
        sums = self._row_sums[: m * D].reshape(m, D)
        return np.matmul(slopes.reshape(m, n), key, out=sums).reshape(*lead, m, D)

    def key_slopes(self, slopes: Array, query: Array) -> Array:
        """(..., m, n)^T @ (..., m, D) -> (n, D)."""
        return _transposed_product(slopes, query, self._key_sums)

    def value_slopes(self, weights: Array, gradient: Array) -> Array:
        """(..., m, n)^T @ (..., m, Dv) -> (n, Dv), without what rides in the gradient."""
        return _transposed_product(weights, gradient, self._value_sums)

    def _whole(self, scores: Array) -> Array:
        """Return the scores: their lines lie side by side."""
        return scores

    def silence(self, slopes: Array, allowed: Array, mixed: Bounds) -> Array:
        """Put 0 where pairs are not allowed, unless the weights of 0 have done so."""
        if not self.is_finite:
            np.copyto(slopes[..., slice(*mixed), :], 0.0, where=allowed == 0)
        return slopes

    def summed(self, slopes: Array, shape: tuple[int, ...]) -> Array:
        """Return the slopes summed to a shape, in memory that stays as it is."""
        sums = super().summed(slopes, shape)
        return np.array(sums) if self._has_pull and np.may_share_memory(sums, slopes) else sums


def _transposed_product(weights: Array, rows: Array, sums: Array) -> Array:
    m, n = weights.shape[-2:]
    W = sums.shape[1]
    return np.matmul(weights.reshape(m, n).T, rows.reshape(m, -1)[:, :W], out=sums[:n])
