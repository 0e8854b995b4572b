"""Products of a few rows with a matrix, which copy neither factor: numbers are read where they lie.

BLAS first copies both factors into a packed order, which took 0.3 of the time of weights times values on one Xeon. The innermost
loop is in `registers`.
"""

from attention_xp._engine.walkers.numpy.compiled.compiling import compiled, inlined
from attention_xp._engine.walkers.numpy.compiled.registers import FEW, PAIR, ROWS, VECTORS, WIDTH, add_products

__all__ = ["multiply_rows"]

# Bytes of columns that are summed up at once; without long registers, both are the same.
_WIDE, _HALF = VECTORS * WIDTH, PAIR * WIDTH


@compiled()
def multiply_rows(addresses, strides, sizes, goes_on, one):
    """Write ``x @ y`` of some rows to out, or add it where it `goes_on`; the last of the sizes is in bytes, whole vectors."""
    out, x, y = addresses
    rows, count, N = sizes
    column = 0
    while column < N:
        width = _width_from(column, N)
        right = y + column
        i = 0
        while i < rows:
            to, of = out + i * strides[0] + column, x + i * strides[1]
            if i + ROWS <= rows:
                _add(to, of, right, strides, count, goes_on, ROWS, width, one)
                i += ROWS
            elif i + FEW <= rows:
                _add(to, of, right, strides, count, goes_on, FEW, width, one)
                i += FEW
            else:
                _add(to, of, right, strides, count, goes_on, 1, width, one)
                i += 1
        column += width


@inlined
def _add(to, of, right, strides, count, goes_on, rows, width, one):
    """Write or add the products of so many rows and of columns of some width; both become literals, as registers want them."""
    if width == _WIDE:
        add_products(to, of, right, strides, count, goes_on, rows, VECTORS, one)
    elif width == _HALF:
        add_products(to, of, right, strides, count, goes_on, rows, PAIR, one)
    else:
        add_products(to, of, right, strides, count, goes_on, rows, 1, one)


@compiled()
def _width_from(column, N):
    """Return of how many columns the next sums are, in bytes."""
    if column + _WIDE <= N:
        return _WIDE
    return _HALF if column + _HALF <= N else WIDTH
