"""The compiled loops against NumPy's operations."""

import math

import numba
import numpy as np
import pytest

from attention_xp._engine.walkers.numpy.compiled import loops
from attention_xp._engine.walkers.numpy.compiled.constants import Constants
from attention_xp._random.in_place import Survivors
from attention_xp._random.threefry import schedule_of

both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
G, LINES, LENGTH, ROOM = 3, 37, 41, 48


def lines_of(dtype, seed=0):
    return np.random.default_rng(seed).normal(scale=9.0, size=(G, LINES, ROOM)).astype(dtype)


def powers(x, dtype, *, is_natural):
    """Powers of single numbers by the loops."""
    lines = np.array(x, dtype)[None, None]
    shape = 1, lines.shape[-1]
    constants = tuple(Constants.of(dtype, is_natural=is_natural))
    loops.powers_across_lines(lines, shape[1], np.zeros(shape, dtype), constants, np.empty(shape, dtype))
    return lines[0, 0]


@both_dtypes
@pytest.mark.parametrize("is_natural", [False, True])
def test_powers_are_exact_to_a_unit_and_a_half_in_the_last_place(dtype, is_natural):
    limits = np.finfo(dtype)
    unit = math.log(2.0) if is_natural else 1.0
    x = np.linspace(unit * limits.minexp, unit * (limits.maxexp - 1), 1_000_003).astype(dtype)
    expected = (np.exp if is_natural else np.exp2)(x.astype(np.longdouble))
    error = np.abs(powers(x, dtype, is_natural=is_natural) - expected) / np.spacing(expected.astype(dtype))
    assert float(error.max()) < 1.5


@both_dtypes
@pytest.mark.parametrize("is_natural", [False, True])
def test_powers_beyond_the_range(dtype, is_natural):
    x = [np.nan, np.inf, -np.inf, np.finfo(dtype).max, np.finfo(dtype).min, 0.0]
    np.testing.assert_array_equal(powers(x, dtype, is_natural=is_natural), [np.nan, np.inf, 0.0, np.inf, 0.0, 1.0])


@both_dtypes
def test_powers_and_sums_of_lines_leave_the_gaps_alone(dtype):
    constants = tuple(Constants.of(dtype, is_natural=False))
    for loop, axis, rows in (
        (loops.powers_across_lines, 1, LENGTH),
        (loops.powers_along_lines, 2, LINES),
    ):
        lines = lines_of(dtype)
        before, sums = lines.copy(), np.empty((G, rows), dtype)
        shift = lines[..., :LENGTH].max(axis=axis)
        loop(lines, LENGTH, np.ascontiguousarray(shift), constants, sums)
        expected = np.exp2(before[..., :LENGTH].astype(np.float64) - np.expand_dims(shift, axis))
        tolerance = 1e-5 if dtype == np.float32 else 1e-14
        np.testing.assert_allclose(lines[..., :LENGTH], expected, rtol=tolerance, atol=0)
        np.testing.assert_allclose(sums, expected.sum(axis=axis), rtol=tolerance)
        np.testing.assert_array_equal(lines[..., LENGTH:], before[..., LENGTH:])


def tangents(x, dtype):
    """Hyperbolic tangents of single numbers by the loop."""
    lines = np.array(x, dtype)[None, None]
    loops.hyperbolic_tangents(lines, lines.shape[-1])
    return lines[0, 0]


@both_dtypes
def test_tangents_are_exact_to_three_units_in_the_last_place(dtype):
    x = np.concatenate([size * np.linspace(-1.0, 1.0, 200_000) for size in (1e-6, 0.1, 0.6, 3.0, 30.0)]).astype(dtype)
    expected = np.tanh(x.astype(np.longdouble))
    error = np.abs(tangents(x, dtype) - expected) / np.spacing(np.abs(expected.astype(dtype)))
    assert float(error.max()) < 3.0


@both_dtypes
def test_tangents_beyond_the_range(dtype):
    x = [np.nan, np.inf, -np.inf, np.finfo(dtype).max, np.finfo(dtype).min, 0.0, np.finfo(dtype).tiny]
    np.testing.assert_array_equal(tangents(x, dtype), [np.nan, 1.0, -1.0, 1.0, -1.0, 0.0, np.finfo(dtype).tiny])


@both_dtypes
def test_tangents_leave_the_gaps_alone(dtype):
    lines = lines_of(dtype)
    before = lines.copy()
    loops.hyperbolic_tangents(lines, LENGTH)
    np.testing.assert_allclose(lines[..., :LENGTH], np.tanh(before[..., :LENGTH]), rtol=1e-6)
    np.testing.assert_array_equal(lines[..., LENGTH:], before[..., LENGTH:])


@both_dtypes
def test_the_largest_score_counts_those_before_and_no_nan(dtype):
    lines = lines_of(dtype)
    lines[0, 3, 5] = np.nan
    lines[..., LENGTH:] = np.inf
    before = np.full((G, LENGTH), 20.0, dtype)
    found = before.copy()
    loops.largest_across_lines(lines, LENGTH, found)
    np.testing.assert_array_equal(found, np.fmax(before, np.nanmax(lines[..., :LENGTH], axis=1)))


@both_dtypes
@pytest.mark.parametrize("heads", [1, G])
def test_keep_if_writes_to_a_part_alone(dtype, heads):
    tile = lines_of(dtype)
    flags = np.random.default_rng(1).random((heads, 9, 20)) < 0.5
    expected = tile.copy()
    part = expected[:, 4:13, 7:27]
    part[np.broadcast_to(~flags, part.shape)] = -np.inf
    loops.keep_if(tile, flags, 4, 7, tile.dtype.type(-np.inf))
    np.testing.assert_array_equal(tile, expected)


@pytest.mark.parametrize("first", [(0, 0), (5, 8), (4, 3), (7, 7)])
@pytest.mark.parametrize("sizes", [(40, 31), (1, 2), (33, 1)])
def test_survivors_are_those_of_numpy(first, sizes):
    key, rate, (m, n) = (2**32 - 5, 77), 0.3, sizes
    keep, words = np.empty((n, m), bool), np.empty((2, m // 2 + 1), np.dtype("<u4"))
    schedule = tuple(np.uint32(word) for word in schedule_of(key))
    loops.survivors(keep, schedule, first, round(rate * 2**16), words, words.view("<u2"))
    np.testing.assert_array_equal(keep.T, Survivors(rate).of_tile([key], first, sizes)[0])


def test_loops_are_kept_on_the_disk_and_let_other_threads_run():
    assert loops.powers_across_lines.targetoptions["nogil"]
    assert isinstance(loops.powers_across_lines, numba.core.dispatcher.Dispatcher)
    assert loops.powers_across_lines.stats.cache_path is not None
