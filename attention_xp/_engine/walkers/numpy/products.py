"""Products on NumPy, cut into pieces that BLAS computes without copying the factors.

OpenBLAS first copies both factors of a product into a packed order. Where it has kernels for small matrices, it does not do
so for products of few multiplications, and these are faster: as many small products, which NumPy passes to BLAS one by one
in a single call, a product takes 0.87 of the time. On Intel's processors this holds for queries times keys alone, with few
numbers to sum for each score; pieces of weights times values take 1.2 times as long.
"""

import numpy as np

from attention_xp._backend.processor import is_intel
from attention_xp._engine.plan.tile_sizes import SMALL_PRODUCT
from attention_xp._engine.walkers.numpy.pool import has_small_kernels
from attention_xp._typing import Array

__all__ = ["multiply_into"]

_VECTOR = 16  # numbers in a vector register: a piece has so many rows, and a multiple of it as columns
_NARROW = 32  # columns of a piece, at most, where the first factor is in column order


def multiply_into(out: Array, x: Array, y: Array) -> Array:
    """Write x (..., M, K) @ y (..., K, N) to an array (..., M, N)."""
    M, N = out.shape[-2:]
    width = _width(x, y) if has_small_kernels() else 0
    if width == 0:
        return np.matmul(x, y, out=out)
    rows, columns = M - M % _VECTOR, N - N % width
    for first, last, piece in ((0, columns, width), (columns, N, N - columns)):
        if first < last:
            at, left, right = _pieces(out[..., :rows, first:last], x[..., :rows, :], y[..., first:last], piece)
            np.matmul(left, right, out=at)
    if rows < M:
        np.matmul(x[..., rows:, :], y, out=out[..., rows:, :])
    return out


def _width(x: Array, y: Array) -> int:
    """Return the number of columns of a piece, for about equal pieces; 0 where the whole product is faster."""
    K, N, item = int(y.shape[-2]), int(y.shape[-1]), y.itemsize
    if x.shape[-2] < _VECTOR or y.strides[-1] != item or 0 in (K, N):  # the kernels want the second factor in row order
        return 0
    if x.shape[-2] * K * N <= SMALL_PRODUCT:  # already small
        return 0
    if K > N and is_intel():
        return 0
    most = SMALL_PRODUCT // (_VECTOR * K) if x.strides[-1] == item else min(SMALL_PRODUCT // (_VECTOR * K), _NARROW)
    most -= most % _VECTOR
    if most == 0 or most >= N:
        return min(N, most)
    return _VECTOR * -(-N // (_VECTOR * -(-N // most)))


def _pieces(out: Array, x: Array, y: Array, width: int) -> tuple[Array, Array, Array]:
    """Return views of a product and its factors: pieces of some rows of x, and of so many columns of y."""
    (*lead, M, K), N = x.shape, y.shape[-1]
    rows = x.reshape(*lead, M // _VECTOR, 1, _VECTOR, K)
    columns = y.reshape(*y.shape[:-2], 1, K, N // width, width).swapaxes(-2, -3)
    pieces = out.reshape(*out.shape[:-2], M // _VECTOR, _VECTOR, N // width, width)
    return pieces.swapaxes(-2, -3), rows, columns
