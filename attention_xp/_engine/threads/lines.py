"""How rows lie in memory on NumPy: beside each other, where that is how a product packs them fastest."""

import math

import numpy as np

from attention_xp._typing import Array

__all__ = ["APART", "beside", "length_beside", "turned"]

APART = 16  # numbers that keep lines apart which would compete for the same places in a cache
_CROWDED = 64  # lines of a multiple of so many numbers, few dozens of them, compete


def beside(buffer: Array, shape: tuple[int, ...]) -> Array:
    """Return a view (..., m, W) of a buffer, in whose memory the numbers of one column follow each other."""
    *lead, m, width = shape
    lines = *lead, width, _line(m)
    return buffer[: math.prod(lines)].reshape(lines)[..., :m].mT


def length_beside(heads: int, m: int, width: int) -> int:
    """Return how many numbers such a buffer holds."""
    return heads * width * (m + APART)


def turned(rows: Array, buffer: Array) -> Array:
    """Return a copy of rows (..., m, W) that lie so."""
    copy = beside(buffer, rows.shape)
    np.copyto(copy, rows)
    return copy


def _line(m: int) -> int:
    return m + APART if m % _CROWDED == 0 else m
