"""Values that are not finite reach the rows that attend them, also those of a tile that the rules leave full."""

import numpy as np
import pytest

from attention_xp import flash_attention
from tests._backends import to_numpy
from tests._inputs import normal

pytestmark = [pytest.mark.backends("jax"), pytest.mark.with_nan]


@pytest.mark.parametrize("bad", [(np.inf,), (np.inf, -np.inf), (np.nan, -np.inf)], ids=str)
def test_values_that_are_not_finite_act_as_in_the_formula(make, bad):
    query, key, value = (normal(4, n, 83, 8) for n in (4, 2, 2))
    for column, number in enumerate((*bad, *bad)):
        value[:, column % 2, 10 + 23 * column, column // 2] = number
    arrays = [make(x) for x in (query, key, value)]
    expected = to_numpy(flash_attention(*arrays, is_causal=True, impl="dense"))
    actual = to_numpy(flash_attention(*arrays, is_causal=True, impl="tiled", tile=(16, 24)))
    assert 0.0 < np.mean(np.isfinite(expected)) < 1.0
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_mapped_arrays_take_as_many_turns_as_one_of_them_needs(make):
    jax = pytest.importorskip("jax")
    query, key, value = (normal(3, 2, 40, 8) for _ in range(3))
    value[1, 0, 5, 3], value[1, 1, 30, 2] = np.inf, np.nan
    arrays = [make(x) for x in (query, key, value)]

    def attend(*arrays):
        return flash_attention(*arrays, is_causal=True, impl="tiled", tile=(16, 16))

    expected = to_numpy(flash_attention(*arrays, is_causal=True, impl="dense"))
    np.testing.assert_allclose(to_numpy(jax.vmap(attend)(*arrays)), expected, rtol=1e-4, atol=1e-5)
