"""The products of a few rows with many keys or values, cut into blocks of keys that BLAS computes without copying them.

OpenBLAS has kernels for small products, which read the factors where they lie, and otherwise copies the keys into a packed order
first, which takes longer than to multiply them by a few rows. For a product with transposed keys it chooses these kernels up to
1024 products of a row and a key: the scores of 4 rows with 4096 keys then take 0.3 of the time. One row alone is a product of a
matrix and a vector, for which nothing is copied.
"""

import numpy as np

from attention_xp._engine.walkers.numpy.pool import has_small_kernels
from attention_xp._typing import Array

__all__ = ["is_in_blocks", "scores_into", "weighted"]

_PAIRS = 1024  # of a row and a key
_MOST_KEYS, _STEP = 256, 16


def is_in_blocks(rows: int) -> bool:
    """Whether keys are cut for so many rows."""
    return 1 < rows <= _PAIRS // _STEP and has_small_kernels()


def scores_into(out: Array, rows: Array, keys: Array) -> None:
    """Write rows (H, m, D) @ keys (H, n, D)^T to an array (H, m, n)."""
    size, full = _block(rows.shape[1], keys.shape[1])
    if full:
        blocks = _blocks(keys[:, :full], size).swapaxes(-1, -2)  # (H, n / size, D, size)
        np.matmul(rows[:, None], blocks, out=_columns(out[..., :full], size))
    if full < keys.shape[1]:
        np.matmul(rows, keys[:, full:].swapaxes(-1, -2), out=out[..., full:])


def weighted(weights: Array, values: Array) -> Array:
    """Return weights (H, m, n) @ values (H, n, D)."""
    size, full = _block(weights.shape[1], values.shape[1])
    total = weights[..., full:] @ values[:, full:]  # zeros where nothing is left
    if full:
        total += (_columns(weights[..., :full], size) @ _blocks(values[:, :full], size)).sum(axis=1)
    return total


def _block(rows: int, keys: int) -> tuple[int, int]:
    """Return the keys of a block, and how many keys there are in full blocks."""
    if not is_in_blocks(rows):
        return keys, 0
    size = min(_PAIRS // rows // _STEP * _STEP, _MOST_KEYS)
    return size, keys - keys % size


def _blocks(keys: Array, size: int) -> Array:
    """(H, n, D) -> (H, n / size, size, D)."""
    return keys.reshape(len(keys), -1, size, keys.shape[-1])


def _columns(array: Array, size: int) -> Array:
    """Return a view of an array (H, m, n), (H, n / size, m, size)."""
    return array.reshape(*array.shape[:2], -1, size).swapaxes(1, 2)
