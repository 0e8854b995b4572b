"""Products of a few rows with a matrix, which copy neither factor: numbers are read where they lie.

BLAS first copies both factors into a packed order, which took 0.3 of the time of weights times values on one Xeon. The innermost
loop is in `registers`.
"""

from attention_xp._engine.walkers.numpy.compiled.compiling import compiled
from attention_xp._engine.walkers.numpy.compiled.registers import FEW, ROWS, VECTORS, WIDTH, add_products

__all__ = ["multiply_rows"]


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


@compiled()
def _width_from(column, N):
    """Return of how many columns the next sums are, in bytes."""
    return VECTORS * WIDTH if column + VECTORS * WIDTH <= N else WIDTH
