"""The compiled products, and their powers, against NumPy's, whatever the memory they lie in."""

import itertools

import numpy as np
import pytest

from attention_xp._engine.walkers.numpy.compiled import loops, multiplied
from attention_xp._engine.walkers.numpy.compiled.passes import Passes, Tile
from tests.engine.walkers.numpy.test_products import numbers

both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def passes(dtype, *, is_natural=False):
    return Passes(loops, multiplied, dtype, 0.0, is_natural=is_natural)


@both_dtypes
@pytest.mark.parametrize("shape", [(6, 6, 16), (7, 65, 150), (61, 130, 128), (15, 64, 83), (128, 7, 48)])
@pytest.mark.parametrize("lead", [((), ()), ((2, 1, 3), (2, 1, 1)), ((2, 3), (1, 3))])
def test_products(dtype, shape, lead):
    (M, K, N), rng = shape, np.random.default_rng(0)
    for by_x, by_y in itertools.product(("rows", "columns", "part"), ("rows", "part")):
        x, y = numbers(rng, (*lead[0], M, K), by_x), numbers(rng, (*lead[1], K, N), by_y)
        x, y = (np.multiply(a, 1.0, dtype=dtype, order="K") for a in (x, y))
        out = numbers(rng, (*lead[0], M, N + 3), "rows").astype(dtype)
        gap = out[..., N:].copy()
        assert passes(dtype).multiply(out[..., :N], x, y)
        np.testing.assert_allclose(out[..., :N], x @ y, rtol=0, atol=1e3 * np.finfo(dtype).eps)
        np.testing.assert_array_equal(out[..., N:], gap)


def test_products_that_are_left_to_blas():
    x, y = np.ones((2, 40, 40), np.float32)
    out = np.zeros((40, 40), np.float32)
    for some in ((out[:5], x[:5], y), (out, x[:, :5], y[:5]), (out[:, :7], x, y[:, :7]), (out, x, y.T), (out.T, x, y)):
        assert not passes(np.float32).multiply(*some)
    assert not passes(np.float64).multiply(out, x, y)
    assert not out.any()


@both_dtypes
@pytest.mark.parametrize("is_natural", [False, True])
@pytest.mark.parametrize(("n", "m", "D"), [(130, 96, 64), (67, 112, 80)])
def test_powers_of_products(dtype, is_natural, n, m, D):
    rng, G = np.random.default_rng(0), 2
    keys, rows = rng.standard_normal((G, 1, n, D)).astype(dtype), rng.standard_normal((G, 1, D, m)).astype(dtype)
    lines = np.full((G, n, m + 16), 7.0, dtype)
    out = lines[:, None, :, :m]
    sums = passes(dtype, is_natural=is_natural).powers_of_products(Tile(lines, m, across=True), out, keys, rows)
    expected = (np.exp if is_natural else np.exp2)(keys.astype(np.float64) @ rows)
    np.testing.assert_allclose(out, expected, rtol=1e3 * np.finfo(dtype).eps)
    np.testing.assert_allclose(sums, expected[:, 0].sum(axis=-2), rtol=1e3 * np.finfo(dtype).eps)
    assert (lines[..., m:] == 7.0).all()


def test_powers_of_products_need_whole_vectors():
    lines, keys, rows = np.zeros((1, 32, 41), np.float32), np.ones((32, 32), np.float32), np.ones((32, 41), np.float32)
    assert passes(np.float32).powers_of_products(Tile(lines, 41, across=True), lines[0], keys, rows) is None
    assert not lines.any()
