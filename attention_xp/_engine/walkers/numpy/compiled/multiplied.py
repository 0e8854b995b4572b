"""Compiled products, which copy neither factor: ``x @ y``, and its powers while they lie in the nearest cache.

BLAS first copies both factors into a packed order, which took 0.3 of the time of weights times values on one Xeon.
Here the numbers are read where they lie, a few rows at a time; the innermost loop is in `registers`.
"""

from attention_xp._engine.walkers.numpy.compiled.compiling import compiled
from attention_xp._engine.walkers.numpy.compiled.registers import FEW, ROWS, VECTORS, WIDTH, add_products, raise_columns

__all__ = ["ROWS", "WIDTH", "multiply", "multiply_rows", "powers_of_products"]

_DEPTH = 64  # columns of x, and rows of y, that are met before the next rows of x
_TALL = 10 * ROWS  # rows of x that meet the same numbers of y while these are in the nearest cache


@compiled()
def multiply(addresses, shape, out_strides, x_strides, y_strides, one):
    """Write x (..., M, K) @ y (..., K, N) to out, for three leading axes; strides and N are in bytes, N whole vectors."""
    first, second, third, M, N, K = shape
    strides = out_strides[3], x_strides[3], x_strides[4], y_strides[3]
    for g in range(first * second * third):
        matrices = _matrices(addresses, g, shape, out_strides, x_strides, y_strides)
        column = 0
        while column < N:
            width = _width_from(column, N)
            _multiply_some(matrices, strides, (0, column), (M, K, width), one)
            column += width


@compiled()
def powers_of_products(addresses, shape, out_strides, x_strides, y_strides, scores, shift, constants, sums):
    """Write powers of ``x @ y - shift`` to out, which is the memory of `scores`, and sum them up over its lines."""
    first, second, third, M, N, K = shape
    strides, one = (out_strides[3], x_strides[3], x_strides[4], y_strides[3]), shift[0, 0]
    for g in range(first * second * third):
        matrices = _matrices(addresses, g, shape, out_strides, x_strides, y_strides)
        column = 0
        while column < N:
            width = _width_from(column, N)
            for i in range(column // scores.itemsize, (column + width) // scores.itemsize):
                sums[g, i] = 0.0
            for row in range(0, M, _TALL):
                rows = min(_TALL, M - row)
                _multiply_some(matrices, strides, (row, column), (rows, K, width), one)
                line = matrices[0] + row * out_strides[3] + column
                at = shift.ctypes.data + g * N + column, sums.ctypes.data + g * N + column
                if width > WIDTH:
                    raise_columns(line, out_strides[3], rows, at[0], at[1], constants, VECTORS, one)
                else:
                    raise_columns(line, out_strides[3], rows, at[0], at[1], constants, 1, one)
            column += width


@compiled()
def _width_from(column, N):
    """Return of how many columns the next sums are, in bytes."""
    return VECTORS * WIDTH if column + VECTORS * WIDTH <= N else WIDTH


@compiled()
def _matrices(addresses, g, shape, out_strides, x_strides, y_strides):
    """Return the addresses of the matrices with a number, counted along three leading axes."""
    out, x, y = addresses
    a, b, c = g // (shape[1] * shape[2]), g // shape[2] % shape[1], g % shape[2]
    out += a * out_strides[0] + b * out_strides[1] + c * out_strides[2]
    x += a * x_strides[0] + b * x_strides[1] + c * x_strides[2]
    y += a * y_strides[0] + b * y_strides[1] + c * y_strides[2]
    return out, x, y


@compiled()
def _multiply_some(addresses, strides, at, sizes, one):
    """Multiply some rows of x and as many columns of y as one row of sums has."""
    (row, column), (rows, K, width) = at, sizes
    out_row, x_row, x_column, y_row = strides
    out = addresses[0] + row * out_row + column
    x = addresses[1] + row * x_row
    y = addresses[2] + column
    for start in range(0, K, _DEPTH):
        some = out, x + start * x_column, y + start * y_row
        multiply_rows(some, strides, (rows, min(_DEPTH, K - start), width), start > 0, one)


@compiled()
def multiply_rows(addresses, strides, sizes, goes_on, one):
    """Write ``x @ y`` of some rows to out, or add it where it `goes_on`; the last of the sizes is in bytes, whole vectors."""
    out, x, y = addresses
    rows, count, N = sizes
    column = 0
    while column < N:
        width = _width_from(column, N)
        is_wide, right = width > WIDTH, y + column
        i = 0
        while i < rows:
            to, of = out + i * strides[0] + column, x + i * strides[1]
            if i + ROWS <= rows:
                if is_wide:
                    add_products(to, of, right, strides, count, goes_on, ROWS, VECTORS, one)
                else:
                    add_products(to, of, right, strides, count, goes_on, ROWS, 1, one)
                i += ROWS
            elif i + FEW <= rows:
                if is_wide:
                    add_products(to, of, right, strides, count, goes_on, FEW, VECTORS, one)
                else:
                    add_products(to, of, right, strides, count, goes_on, FEW, 1, one)
                i += FEW
            else:
                if is_wide:
                    add_products(to, of, right, strides, count, goes_on, 1, VECTORS, one)
                else:
                    add_products(to, of, right, strides, count, goes_on, 1, 1, one)
                i += 1
        column += width
