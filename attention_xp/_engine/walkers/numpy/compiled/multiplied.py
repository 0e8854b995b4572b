"""Products of a few rows with a matrix, which copy neither factor: numbers are read where they lie.

BLAS first copies both factors into a packed order, which took 0.3 of the time of weights times values on one Xeon. The innermost
loop is in `registers`.
"""

from attention_xp._engine.walkers.numpy.compiled.compiling import compiled, inlined
from attention_xp._engine.walkers.numpy.compiled.registers import FEW, PAIR, ROWS, VECTORS, WIDTH, add_products

__all__ = ["multiply_rows"]

# Bytes of columns that are summed up at once; without long registers, both are the same, and nothing is done by halves.
_WIDE, _HALF = VECTORS * WIDTH, PAIR * WIDTH


@compiled()
def multiply_rows(addresses, strides, sizes, goes_on, one):
    """Write ``x @ y`` of some rows to out, or add it where it `goes_on`; the last of the sizes is in bytes, whole vectors."""
    out, x, y = addresses
    rows, count, width = sizes
    i = 0
    while i < rows:
        to, of = out + i * strides[0], x + i * strides[1]
        if i + ROWS <= rows:
            _add(to, of, y, strides, count, goes_on, ROWS, width, one)
            i += ROWS
        elif i + FEW <= rows:
            _add(to, of, y, strides, count, goes_on, FEW, width, one)
            i += FEW
        else:
            _add(to, of, y, strides, count, goes_on, 1, width, one)
            i += 1


@inlined
def _add(to, of, right, strides, count, goes_on, rows, width, one):
    """Write or add the products of so many rows, which become a literal, as registers want them, and columns of a width."""
    blocks = width // _WIDE
    done = blocks * _WIDE
    if blocks:
        add_products(to, of, right, strides, count, goes_on, blocks, rows, VECTORS, one)
    if _HALF < _WIDE and done + _HALF <= width:
        add_products(to + done, of, right + done, strides, count, goes_on, 1, rows, PAIR, one)
        done += _HALF
    if done < width:
        add_products(to + done, of, right + done, strides, count, goes_on, 1, rows, 1, one)
