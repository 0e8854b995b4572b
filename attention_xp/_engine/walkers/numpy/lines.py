"""Layouts in memory on NumPy: rows in the order that is fast for products, and strided views of windows of keys."""

import math

import numpy as np
from numpy.lib.stride_tricks import as_strided

from attention_xp._typing import Array

__all__ = ["APART", "apart", "beside", "length_beside", "turned", "windows"]

APART = 16  # numbers of padding behind lines that would compete for the same cache sets
_CROWDED = 64  # a few dozen lines compete if their length is a multiple of so many numbers


def apart(length: int, crowded: int) -> int:
    """Return the length of lines, with padding if it is a multiple of `crowded`."""
    return length + APART if length % crowded == 0 else length


def beside(buffer: Array, shape: tuple[int, ...]) -> Array:
    """Return a view (..., m, W) of a buffer in column order: the numbers of one column are adjacent in memory."""
    *lead, m, width = shape
    lines = *lead, width, apart(m, _CROWDED)
    return buffer[: math.prod(lines)].reshape(lines)[..., :m].mT


def length_beside(heads: int, m: int, width: int) -> int:
    """Return how many numbers such a buffer holds."""
    return heads * width * (m + APART)


def turned(rows: Array, buffer: Array) -> Array:
    """Return a copy of rows (..., m, W) in column order."""
    copy = beside(buffer, rows.shape)
    np.copyto(copy, rows)
    return copy


def windows(keys: Array, step: int, n: int) -> Array:
    """Return a strided view (K, C, n, W) of keys (K, S, W): C windows of n keys, each `step` keys after the one before.

    The last window ends with the keys: ``S = (C - 1) * step + n``.
    """
    K, S, width = keys.shape
    per_head, per_key, per_number = keys.strides
    shape = K, (S - n) // step + 1, n, width
    return as_strided(keys, shape, (per_head, step * per_key, per_key, per_number), writeable=False)
