"""Products on NumPy by pieces: the same as the whole, whatever their shapes and the memory they lie in."""

import itertools

import numpy as np
import pytest

from attention_xp._engine.walkers.numpy import products
from attention_xp._engine.walkers.numpy.products import multiply_into


def numbers(rng, shape, by):
    """Return an array that lies by rows, by columns, or as a part of a larger one."""
    *lead, m, n = shape
    if by == "columns":
        return rng.standard_normal((*lead, n, m)).mT
    return rng.standard_normal((*lead, m, n + (by == "part")))[..., :n]


@pytest.mark.parametrize("is_small", [True, False])
@pytest.mark.parametrize(
    "shape", [(64, 48, 512), (40, 65, 700), (15, 64, 33), (16, 4000, 16), (129, 128, 528), (33, 7, 1)]
)
def test_pieces_make_up_the_whole(monkeypatch, shape, is_small):
    monkeypatch.setattr(products, "has_small_kernels", lambda: is_small)
    (M, K, N), rng = shape, np.random.default_rng(0)
    for by_x, by_y, by_out in itertools.product(("rows", "columns", "part"), repeat=3):
        x, y = numbers(rng, (2, 3, M, K), by_x), numbers(rng, (2, 1, K, N), by_y)
        out = numbers(rng, (2, 3, M, N), by_out)
        multiply_into(out, x, y)
        np.testing.assert_allclose(out, x @ y, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_nothing_is_multiplied(monkeypatch, axis):
    monkeypatch.setattr(products, "has_small_kernels", lambda: True)
    sizes = [32, 32, 32]
    sizes[axis] = 0
    M, K, N = sizes
    out = np.ones((M, N))
    np.testing.assert_array_equal(multiply_into(out, np.ones((M, K)), np.ones((K, N))), np.zeros((M, N)))
