"""Copies of rows in the order that compiled loops want."""

import numpy as np
import pytest

from attention_xp._engine.walkers.numpy.compiled import copies
from attention_xp._engine.walkers.numpy.compiled.line import KEYS
from attention_xp._engine.walkers.numpy.compiled.registers import WIDTH
from tests.engine.walkers.numpy.compiled._memory import address, amid, both_dtypes, looped

both_dtypes = pytest.mark.parametrize(*both_dtypes)


@looped
def copied(to, of, count, item, factor):
    copies.copy_row(to, of, count, item, factor)


def numbers(*shape, dtype=np.float64):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


LAYOUTS = {
    "rows": lambda a: a,
    "columns": lambda a: np.ascontiguousarray(a.mT).mT,
    "backwards": lambda a: np.ascontiguousarray(a[..., ::-1, ::-1])[..., ::-1, ::-1],
    "every other": lambda a: np.repeat(np.repeat(a, 2, axis=-1), 3, axis=-2)[..., ::3, ::2],
    "one key for all": lambda a: np.broadcast_to(a[..., :1, :], a.shape),
}


@both_dtypes
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("length", [1, KEYS - 1, KEYS, KEYS + 1, 3 * KEYS - 5])
@pytest.mark.parametrize("D", [5, 37])
def test_keys_are_packed_and_rows_copied_as_they_lie(dtype, layout, length, D):
    K, width = 2, -(-D // WIDTH) * WIDTH
    keys = layout(numbers(K, length, D, dtype=dtype))
    chunks = -(-length // KEYS)
    packed, memory = amid(np.full((K, chunks, D, KEYS), 9.0, dtype), np.nan)
    copies.pack_head(address(keys[1]), keys.strides[1:], length, dtype(-0.7), packed[1])
    expected = np.full((K, chunks * KEYS, D), 9.0, dtype)
    expected[1, :length], expected[1, length:] = dtype(-0.7) * keys[1], 0.0
    np.testing.assert_array_equal(packed, expected.reshape(K, chunks, KEYS, D).mT)
    rows, around = amid(np.full((length + 2, width), 9.0, dtype), np.nan)
    copies.copy_head(address(keys[1]), keys.strides[1:], length, D, rows)
    np.testing.assert_array_equal(rows[:length, :D], keys[1])
    assert not rows[:length, D:].any()
    assert (rows[length:] == 9.0).all()
    assert np.isnan(memory).sum() == np.isnan(around).sum() == 64


@both_dtypes
@pytest.mark.parametrize("count", [1, 15, 16, 37, 64])
@pytest.mark.parametrize("steps", [(1, 1), (2, 1), (1, 3)])
def test_a_row_is_copied_times_a_factor(dtype, count, steps):
    item = np.dtype(dtype).itemsize
    to, of = (amid(numbers(count, step, dtype=dtype), np.nan) for step in steps)
    expected = to[0].copy()
    expected[:, 0] = of[0][:, 0] * dtype(-0.7)
    places = ((address(a), step * item) for (a, _), step in zip((to, of), steps, strict=True))
    copied(*places, count, item, dtype(-0.7))
    np.testing.assert_array_equal(to[0], expected)
    assert np.isnan(to[1]).sum() == 64
