"""Numbers that are read and written at addresses, against NumPy."""

import numpy as np
import pytest

from attention_xp._engine.walkers.numpy.compiled import memory
from attention_xp._engine.walkers.numpy.compiled.registers import WIDTH
from tests.engine.walkers.numpy.compiled._memory import address, amid, both_dtypes, looped

both_dtypes = pytest.mark.parametrize(*both_dtypes)


@looped
def multiplied(target, source, factor):
    memory.multiply_vector(target, source, factor)


@looped
def cleared(target, one):
    memory.clear_vector(target, one)


@looped
def moved(target, source, one):
    memory.fetch_row(source, 1)
    memory.put_at(target, memory.number_at(source, one))


@both_dtypes
def test_one_vector_is_multiplied(dtype):
    source = np.random.default_rng(0).normal(size=2 * WIDTH // dtype().itemsize).astype(dtype)
    expected = source[: len(source) // 2] * dtype(0.3)
    target, around = amid(np.zeros_like(expected), np.nan)
    multiplied(address(target), address(source), dtype(0.3))
    np.testing.assert_array_equal(target, expected)
    assert np.isnan(around).sum() == 64
    multiplied(address(source), address(source), dtype(0.3))
    np.testing.assert_array_equal(source[: len(expected)], expected)


@both_dtypes
def test_one_vector_is_cleared(dtype):
    target, around = amid(np.full(WIDTH // dtype().itemsize, 3.0, dtype), np.nan)
    cleared(address(target), dtype(1.0))
    np.testing.assert_array_equal(target, np.zeros_like(target))
    assert np.isnan(around).sum() == 64


@both_dtypes
def test_numbers_are_moved(dtype):
    source, (target, around) = np.asarray([1.0, np.pi], dtype), amid(np.zeros(1, dtype), 7.0)
    moved(address(target), address(source) + source.itemsize, dtype(1.0))
    assert target[0] == source[1]
    np.testing.assert_array_equal(np.concatenate([around[:32], around[-32:]]), np.full(64, 7.0))
