"""NumPy's primitives for the backward tile step, in the buffers of one thread.

Keys and values are (K, 1, n, W), queries and gradients (K, G, m, W) for the G query heads of each key/value head. Gradients
and values may have a further column: ``[gradient, -delta] @ [value, 1]^T`` is ``gradient @ value^T - delta``. Tiles are
laid out as in `InPlace`, so that no product needs a transposed copy.
"""

import math
from collections.abc import Sequence

import numpy as np

from attention_xp._engine.plan.plan import Bounds
from attention_xp._engine.plan.tile_sizes import TileShape
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.products import clean, quarantined_key, silenced_rows
from attention_xp._engine.tile.scores import is_bent
from attention_xp._engine.walkers.numpy.compiled.constants import LEAST
from attention_xp._engine.walkers.numpy.in_place import InPlace, Patches, by_key_head
from attention_xp._engine.walkers.numpy.products import multiply_into
from attention_xp._scores.region import Region
from attention_xp._typing import Array
from attention_xp.biases import Bias

__all__ = ["InPlaceBackward"]


class InPlaceBackward(InPlace):
    """Primitives that allocate no arrays of the size of a tile."""

    least = LEAST

    @staticmethod
    def lengths(problem: Problem, shape: TileShape) -> tuple[int, ...]:
        """Return how many numbers each buffer holds."""
        D, Dv = problem.query.shape[-1], problem.value.shape[-1]
        heads, rows, columns, *_ = shape
        scores = heads * rows * columns
        return scores, scores, heads * rows * D, heads * columns * D, heads * columns * Dv

    def __init__(self, problem: Problem, buffers: Sequence[Array]) -> None:
        super().__init__(problem)
        self._scores, self._grad_scores, self._row_sums, self._key_sums, self._value_sums = buffers
        self._has_pull = is_bent(problem)
        self.is_finite: bool  # whether all rows and keys at hand are

    def query_key(self, query: Array, key: Array, *, exclusive: bool) -> Array:
        """(K, G, m, W) and (K, 1, n, W) -> (..., K * G, m, n)."""
        return self._joint(self._scores, query, key, poisoned=exclusive and not self.magnitudes.keys)

    def gradient_value(self, gradient: Array, value: Array, *, exclusive: bool) -> Array:
        """(K, G, m, W) and (K, 1, n, W) -> (..., K * G, m, n)."""
        return self._joint(self._grad_scores, gradient, value, poisoned=exclusive and not self.magnitudes.values)

    def _joint(self, buffer: Array, rows: Array, keys: Array, *, poisoned: bool) -> Array:
        """(K, G, m, W) and (K, 1, n, W) -> (..., K * G, m, n), in the memory order of the tile."""
        (K, G, m, _), n = rows.shape, keys.shape[-2]
        keys, poison = quarantined_key(keys) if poisoned else (keys, None)
        buffer = buffer[: K * G * m * n]
        if self.by_keys:
            tile = multiply_into(buffer.reshape(K, G, n, m), keys, rows.mT).mT
        else:
            tile = np.matmul(rows, keys.mT, out=buffer.reshape(K, G, m, n))
        if poison is not None:
            tile += poison[..., None, :]
        return tile.reshape(*self._lead, K * G, m, n)

    def query_gradients(self, grad_scores: Array, key: Array, *, exclusive: bool) -> Array:
        """(..., K * G, m, n) @ (K, 1, n, D) -> (K, G, m, D)."""
        key = key[..., : self.problem.query.shape[-1]]
        if exclusive and not self.magnitudes.keys:
            key = clean(key)
        return self._product(by_key_head(grad_scores, key), key, self._row_sums)

    def key_gradients(self, grad_scores: Array, query: Array) -> Array:
        """(..., K * G, m, n)^T @ (K, G, m, D) -> (K, n, D)."""
        return self._transposed_product(grad_scores, query, self._key_sums, self.problem.query.shape[-1])

    def value_gradients(self, weights: Array, gradient: Array, *, exclusive: bool) -> Array:
        """(..., K * G, m, n)^T @ (K, G, m, Dv) -> (K, n, Dv), without the further column of the gradient."""
        width = self.problem.value.shape[-1]
        if exclusive and not self.is_finite:
            columns = by_key_head(weights, gradient).mT
            return _summed(silenced_rows(columns, gradient[..., :width], self.problem.xp))
        return self._transposed_product(weights, gradient, self._value_sums, width)

    def _transposed_product(self, weights: Array, rows: Array, buffer: Array, width: int) -> Array:
        return _summed(self._product(by_key_head(weights, rows).mT, rows[..., :width], buffer))

    def _product(self, x: Array, y: Array, buffer: Array) -> Array:
        """(K, G, m, n) @ (K, G or 1, n, W) -> (K, G, m, W), in a buffer."""
        shape = *x.shape[:-1], y.shape[-1]
        return multiply_into(buffer[: math.prod(shape)].reshape(shape), x, y)

    def silence(self, grad_scores: Array, allowed: Patches, mixed: Bounds) -> Array:
        """Put 0 where pairs are not allowed, unless the product with weights of 0 already has."""
        if not self.is_finite:
            for columns, pairs in allowed:
                np.copyto(grad_scores[..., slice(*mixed), columns], 0.0, where=pairs == 0)
        return grad_scores

    def bias_gradients(self, bias: Bias, region: Region, grad_scores: Array) -> tuple[Array, ...]:
        """Return what gradients of scores add to those of the arrays of a rule, in memory that is not overwritten later."""
        pieces = super().bias_gradients(bias, region, grad_scores)
        return tuple(np.array(piece) if np.may_share_memory(piece, grad_scores) else piece for piece in pieces)

    def summed(self, grad_scores: Array, shape: tuple[int, ...]) -> Array:
        """Return gradients summed to a shape, in memory that is not overwritten later."""
        sums = super().summed(grad_scores, shape)
        return np.array(sums) if self._has_pull and np.may_share_memory(sums, grad_scores) else sums


def _summed(grad_scores: Array) -> Array:
    """(K, G, n, W) -> (K, n, W)."""
    return grad_scores[:, 0] if grad_scores.shape[1] == 1 else np.sum(grad_scores, axis=1)
