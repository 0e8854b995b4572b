"""Triangles by halves: the inverse against NumPy's, and blocks that are split and joined."""

import numpy as np
import pytest

from attention_xp._backend.libraries import device
from attention_xp.linear._triangles import joined, split, triangle, unit_lower_inverse
from tests._assertions import assert_close, assert_equal
from tests._inputs import normal


def parts_of(library, C, x):
    return triangle(C, ndim=x.ndim, split=True, xp=library.namespace(), dtype=x.dtype, device=device(x))


@pytest.mark.parametrize("C", [1, 2, 3, 16, 17, 37, 64])
def test_inverse(library, C):
    """Also with parts for more rows, and whatever lies on and above the diagonal."""
    full = 0.3 * normal(2, 3, C, C, seed=C)
    expected = np.linalg.inv(np.eye(C) + np.tril(full, k=-1))
    x = library.array(full)
    xp = library.namespace()
    for rows in (C, 64):
        inverse = unit_lower_inverse(x, parts_of(library, rows, x), xp=xp)
        assert_close(xp.broadcast_to(inverse, x.shape), expected, library)  # that of one row is 1 for all heads


def test_blocks_are_split_and_joined(library):
    xp = library.namespace()
    square = np.tril(normal(2, 1, 8, 8))
    x = library.array(square)
    blocks, squares = split(x, xp)
    for half in (0, 1):
        rows = slice(4 * half, 4 * half + 4)
        assert_equal(blocks[:, half, ...], square[:, 0, rows, rows], library, dtype="float32")
    assert_equal(squares[:, 0, ...], square[:, 0, 4:, :4], library, dtype="float32")
    assert_equal(joined(blocks, squares, xp), square, library, dtype="float32")
    of_first = joined(blocks[:1, ...], squares, xp)  # along an axis that only the squares have
    assert_equal(of_first[1, 0, :4, :], square[0, 0, :4, :], library, dtype="float32")
