"""How arrays lie in memory on NumPy: rows as products read them fastest, and keys seen through moving windows."""

import math

import numpy as np
from numpy.lib.stride_tricks import as_strided

from attention_xp._typing import Array

__all__ = ["APART", "apart", "beside", "length_beside", "turned", "windows"]

APART = 16  # numbers that keep lines apart which would compete for the same places in a cache
_CROWDED = 64  # lines of a multiple of so many numbers, few dozens of them, compete


def apart(length: int, crowded: int) -> int:
    """Return how long lines are made, of which those of a multiple of so many numbers would compete."""
    return length + APART if length % crowded == 0 else length


def beside(buffer: Array, shape: tuple[int, ...]) -> Array:
    """Return a view (..., m, W) of a buffer, in whose memory the numbers of one column follow each other."""
    *lead, m, width = shape
    lines = *lead, width, apart(m, _CROWDED)
    return buffer[: math.prod(lines)].reshape(lines)[..., :m].mT


def length_beside(heads: int, m: int, width: int) -> int:
    """Return how many numbers such a buffer holds."""
    return heads * width * (m + APART)


def turned(rows: Array, buffer: Array) -> Array:
    """Return a copy of rows (..., m, W) that lie so."""
    copy = beside(buffer, rows.shape)
    np.copyto(copy, rows)
    return copy


def windows(keys: Array, step: int, n: int) -> Array:
    """Return a view (K, C, n, W) of keys (K, S, W) through C windows of n keys, each a step further on than the last.

    The last window ends with the keys: ``S = (C - 1) * step + n``.
    """
    K, S, width = keys.shape
    per_head, per_key, per_number = keys.strides
    shape = K, (S - n) // step + 1, n, width
    return as_strided(keys, shape, (per_head, step * per_key, per_key, per_number), writeable=False)
