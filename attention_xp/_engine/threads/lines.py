"""How rows lie in memory on NumPy: beside each other, where that is how a product packs them fastest."""

import math

import numpy as np

from attention_xp._typing import Array

__all__ = ["APART", "apart", "beside", "length_beside", "turned"]

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
