"""The products of a few rows with many keys or values, cut into blocks of keys that BLAS computes without copying them.

OpenBLAS has kernels for small products, which read the factors where they lie, and otherwise copies the keys into a packed order
first, which takes longer than to multiply them by a few rows. For a product with transposed keys it chooses these kernels up to
1024 products of a row and a key, and otherwise up to a million multiplications: the scores of 4 rows with 4096 keys then take 0.3
of the time, and the sums of their values 0.6. One row alone is a product of a matrix and a vector, for which nothing is copied.
"""

import numpy as np

from attention_xp._engine.plan.tile_sizes import FOLD, SMALL_PRODUCT
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.tile.arithmetic import Arithmetic
from attention_xp._engine.tile.products import query_key, weights_value
from attention_xp._engine.walkers.numpy.pool import has_small_kernels
from attention_xp._typing import Array, Namespace

__all__ = ["MOST_ROWS", "FewRows", "is_in_blocks", "rows_of_keys", "scores_into", "weighted"]

_PAIRS = 1024  # of a row and a key
_MOST_KEYS, _STEP = 256, 16
MOST_ROWS = 16  # with more, whole products are as fast


def rows_of_keys(problem: Problem) -> int:
    """Return how many rows are multiplied by the same keys in one product."""
    Sq: int = problem.query.shape[-2]
    return problem.group * Sq if Sq <= FOLD else Sq


def is_in_blocks(rows: int) -> bool:
    """Whether keys are cut for so many rows."""
    return 1 < rows <= MOST_ROWS and has_small_kernels()


def scores_into(out: Array, rows: Array, keys: Array) -> None:
    """Write rows (..., m, D) @ keys (..., n, D)^T to an array (..., m, n)."""
    m, n = rows.shape[-2], keys.shape[-2]
    size = min(_PAIRS // m // _STEP * _STEP, _MOST_KEYS) if m * n > _PAIRS and is_in_blocks(m) else 0
    full = n - n % size if size else 0
    if full:
        blocks = _blocks(keys[..., :full, :], size).swapaxes(-1, -2)  # (..., n / size, D, size)
        np.matmul(rows[..., None, :, :], blocks, out=_columns(out[..., :full], size))
    if full < n:
        np.matmul(rows, keys[..., full:, :].swapaxes(-1, -2), out=out[..., full:])


def weighted(weights: Array, values: Array) -> Array:
    """Return weights (..., m, n) @ values (..., n, D)."""
    (m, n), D = weights.shape[-2:], values.shape[-1]
    if m * n * D <= SMALL_PRODUCT or not is_in_blocks(m):
        return weights @ values
    size = max(min(SMALL_PRODUCT // (m * D) // _STEP * _STEP, _MOST_KEYS), _STEP)
    full = n - n % size
    total = (_columns(weights[..., :full], size) @ _blocks(values[..., :full, :], size)).sum(axis=-3)
    return total if full == n else total + weights[..., full:] @ values[..., full:, :]


def _blocks(keys: Array, size: int) -> Array:
    """(..., n, D) -> (..., n / size, size, D)."""
    return keys.reshape(*keys.shape[:-2], -1, size, keys.shape[-1])


def _columns(array: Array, size: int) -> Array:
    """Return a view of an array (..., m, n), (..., n / size, m, size)."""
    return array.reshape(*array.shape[:-1], -1, size).swapaxes(-2, -3)


class FewRows(Arithmetic):
    """Primitives for few rows, which read keys and values once: what comes out tells whether they were finite."""

    def query_key(self, query: Array, key: Array, *, exclusive: bool) -> Array:
        """(..., H, m, D) @ (..., Hkv, n, D)^T -> (..., H, m, n)."""
        if not exclusive:
            return query_key(self.problem, query, key, exclusive=False, product=_scores)
        with np.errstate(invalid="ignore", over="ignore"):  # a score is made of one key alone, which may be excluded
            scores = query_key(self.problem, query, key, exclusive=False, product=_scores)
        return scores if np.isfinite(scores).all() else super().query_key(query, key, exclusive=True)

    def weights_value(self, weights: Array, value: Array, *, exclusive: bool) -> Array:
        """(..., H, m, n) @ (..., Hkv, n, Dv) -> (..., H, m, Dv)."""
        if not exclusive:
            return weights_value(self.problem, weights, value, exclusive=False, product=_outputs)
        with np.errstate(invalid="ignore", over="ignore"):
            output = weights_value(self.problem, weights, value, exclusive=False, product=_outputs)
        return output if np.isfinite(output).all() else super().weights_value(weights, value, exclusive=True)


def _scores(rows: Array, keys: Array) -> Array:
    m, n = rows.shape[-2], keys.shape[-2]
    if m * n <= _PAIRS or not is_in_blocks(m):
        return rows @ keys.swapaxes(-1, -2)
    out = np.empty((*np.broadcast_shapes(rows.shape[:-2], keys.shape[:-2]), m, n), rows.dtype)
    scores_into(out, rows, keys)
    return out


def _outputs(weights: Array, values: Array, xp: Namespace) -> Array:  # noqa: ARG001
    return weighted(weights, values)
