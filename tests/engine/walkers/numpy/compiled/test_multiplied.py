"""Products of a few rows with a matrix against NumPy's, whatever the memory they lie in."""

import itertools

import numpy as np
import pytest

from attention_xp._engine.walkers.numpy.compiled.multiplied import multiply_rows
from attention_xp._engine.walkers.numpy.compiled.registers import ROWS, VECTORS, WIDTH
from tests.engine.walkers.numpy.compiled._memory import address, amid, both_dtypes

CANARY = 12345.0


def laid(array, layout):
    """Return the same numbers in another layout; what lies between them and around them is NaN."""
    rows, columns = array.shape
    if layout == "columns":
        return amid(array.T, np.nan)[0].T
    gap = {"rows": 0, "wide rows": 5}[layout]
    wide = np.full((rows, columns + gap), np.nan, array.dtype)
    wide[:, :columns] = array
    return amid(wide, np.nan)[0][:, :columns]


def product(out, x, y, *, goes_on):
    strides = out.strides[0], *x.strides, y.strides[0]
    sizes = len(out), x.shape[1], out.shape[1] * out.itemsize
    multiply_rows(tuple(map(address, (out, x, y))), strides, sizes, goes_on, x.dtype.type(0.0))


@pytest.mark.parametrize(*both_dtypes)
@pytest.mark.parametrize("layout", ["rows", "wide rows", "columns"])
def test_any_number_of_rows_and_columns(dtype, layout):
    rng, lanes = np.random.default_rng(0), WIDTH // np.dtype(dtype).itemsize
    for rows, count, vectors in itertools.product(range(1, 2 * ROWS + 2), (1, 2, 3, 20, 64), range(1, 2 * VECTORS + 2)):
        x, y = (
            rng.standard_normal((rows, count)).astype(dtype),
            rng.standard_normal((count, vectors * lanes)).astype(dtype),
        )
        memory = np.full((rows + 2, vectors * lanes + lanes), CANARY, dtype)
        out, canaries = memory[1:-1, : vectors * lanes], memory.copy()
        canaries[1:-1, : vectors * lanes] = 0.0
        x_laid, y_laid = laid(x, layout), laid(y, "rows" if layout == "columns" else layout)
        expected, bound = x.astype(np.float64) @ y, 2.0 * count * np.finfo(dtype).eps * (np.abs(x) @ np.abs(y)).max()
        product(out, x_laid, y_laid, goes_on=False)
        np.testing.assert_allclose(out, expected, rtol=0, atol=bound)
        product(out, x_laid, y_laid, goes_on=True)
        np.testing.assert_allclose(out, 2.0 * expected, rtol=0, atol=2.0 * bound)
        out[...] = 0.0
        np.testing.assert_array_equal(memory, canaries)


def test_a_long_sum_keeps_its_digits():
    """Sums of equal products err always to the same side, the more the larger they are: each part is summed up by itself."""
    x, y = np.ones((ROWS + 1, 64), np.float32), np.full((64, WIDTH // 4), 1.1, np.float32)
    out = np.zeros((ROWS + 1, WIDTH // 4), np.float32)
    for _ in range(512):
        product(out, x, y, goes_on=True)
    np.testing.assert_allclose(out, 512 * 64 * np.float64(np.float32(1.1)), rtol=1e-5)


def test_no_columns_are_no_work():
    memory = np.full((3, 16), CANARY, np.float32)
    product(memory[:, :0], np.ones((3, 4), np.float32), np.ones((4, 0), np.float32), goes_on=False)
    assert (memory == CANARY).all()


def test_rows_do_not_depend_on_those_beside_them():
    x, y = (np.random.default_rng(i).standard_normal((13, 64)).astype(np.float32) for i in range(2))
    y = np.tile(y, (5, 1))[:64]
    whole = np.empty((13, 64), np.float32)
    product(whole, x, y, goes_on=False)
    for row in range(13):
        alone = np.empty((1, 64), np.float32)
        product(alone, x[row : row + 1], y, goes_on=False)
        np.testing.assert_array_equal(alone[0], whole[row])
