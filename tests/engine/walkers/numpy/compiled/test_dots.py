"""Products with keys that are read where they lie, against NumPy's."""

import itertools

import numpy as np
import pytest

from attention_xp._engine.walkers.numpy.compiled.dots import FEW_KEYS, multiply_keys
from attention_xp._engine.walkers.numpy.compiled.registers import WIDTH
from tests.engine.walkers.numpy.compiled._memory import address, amid, both_dtypes, looped


@looped
def multiplied(addresses, strides, sizes, item, one, ahead):
    multiply_keys(addresses, strides, sizes, item, one, ahead)


@pytest.mark.parametrize(*both_dtypes)
@pytest.mark.parametrize("gap", [0, 3])
def test_any_number_of_rows_and_keys(dtype, gap):
    """What lies between keys and behind them is not read, and what lies beside the products is not written."""
    rng, lanes, item = np.random.default_rng(0), WIDTH // np.dtype(dtype).itemsize, np.dtype(dtype).itemsize
    for rows, keys, vectors in itertools.product((1, 2, 3, 4, 7, 16), (1, 2, 4, 5, 63), (1, 3)):
        D = vectors * lanes
        x, y = (amid(rng.standard_normal((n, D + gap)).astype(dtype), np.nan)[0][:, :D] for n in (rows, keys))
        room = -(-keys // FEW_KEYS) * FEW_KEYS
        out, memory = amid(np.full((rows, room), np.nan, dtype), 7.0)
        sizes, strides = (rows, keys, D * item), (out.strides[0], x.strides[0], y.strides[0])
        ahead = address(y), y.strides[0], D * item
        multiplied(tuple(map(address, (out, x, y))), strides, sizes, item, dtype(0.0), ahead)
        bound = 2.0 * D * np.finfo(dtype).eps * (np.abs(x) @ np.abs(y.T)).max()
        np.testing.assert_allclose(out[:, :keys], x.astype(np.float64) @ y.T, rtol=0, atol=bound)
        assert (memory[:32] == 7.0).all()
        assert (memory[-32:] == 7.0).all()
