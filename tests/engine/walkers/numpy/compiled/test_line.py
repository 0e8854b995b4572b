"""What is done to one line of scores, against NumPy."""

import numpy as np
import pytest

from attention_xp._engine.walkers.numpy.compiled import line
from attention_xp._engine.walkers.numpy.compiled.constants import LEAST, LEAST_FORWARD
from attention_xp._engine.walkers.numpy.compiled.registers import WIDTH
from tests.engine.walkers.numpy.compiled._memory import address, amid, both_dtypes, looped

both_dtypes = pytest.mark.parametrize(*both_dtypes)
KEYS = line.KEYS


@looped
def largest(scores, one):
    return line.largest_of_line(scores, one)


@looped
def above(scores, limit):
    return line.is_above(scores, limit)


@looped
def raised(scores, shift, sums):
    line.raise_line(scores, shift, sums, LEAST_FORWARD)


@looped
def weighed(scores, shift):
    line.weigh_line(scores, shift, LEAST)


@looped
def bounded(scores, one):
    line.bound_line(scores, one)


@looped
def bent(scores, cap):
    line.bend_line(scores, cap)


@looped
def added(scores, more, factor, least):
    line.add_line(scores, more, factor, least)


@looped
def kept(scores, flags, other):
    line.keep_line(scores, flags, other)


@looped
def told(flags, step, rows):
    return line.verdict(flags, step, rows)


def scores_of(dtype, scale=9.0):
    """A line, and the memory around it."""
    return amid(np.random.default_rng(0).normal(scale=scale, size=KEYS).astype(dtype), np.nan)


def assert_nothing_around(memory, number=np.nan):
    np.testing.assert_array_equal(np.concatenate([memory[:32], memory[-32:]]), np.full(64, number))


@both_dtypes
def test_the_largest_score_wherever_it_stands(dtype):
    one = dtype(1.0)
    for i in range(KEYS):
        scores, _ = scores_of(dtype)
        scores[i] = 99.0
        assert largest(address(scores), one) == 99.0
        scores[i], scores[(i + 17) % KEYS] = np.nan, 77.0
        assert largest(address(scores), one) == 77.0
    for number in (np.nan, -np.inf):
        assert largest(address(np.full(KEYS, number, dtype)), one) == -np.inf
    assert largest(address(np.full(KEYS, -7.0, dtype)), one) == -7.0


@both_dtypes
def test_a_score_above_a_limit_wherever_it_stands(dtype):
    for i in range(KEYS):
        scores, _ = amid(np.full(KEYS, -3.0, dtype), 99.0)
        scores[i], scores[(i + 17) % KEYS] = 2.0, np.nan
        assert above(address(scores), dtype(1.5))
        assert not above(address(scores), dtype(2.0))
        assert above(address(scores), dtype(-np.inf))
    for number in (np.nan, -np.inf):
        assert not above(address(np.full(KEYS, number, dtype)), dtype(-np.inf))


@both_dtypes
@pytest.mark.parametrize("shift", [0.0, -30.5, 12.25])
def test_powers_of_a_line_and_their_sum(dtype, shift):
    scores, memory = scores_of(dtype)
    scores[5], scores[6] = -np.inf, np.finfo(dtype).min
    lanes = WIDTH // scores.itemsize
    sums, around = amid(np.arange(lanes, dtype=dtype), -1.0)
    expected = np.exp2(scores.astype(np.float64) - shift)
    raised(address(scores), dtype(shift), address(sums))
    eps = 4.0 * np.finfo(dtype).eps
    np.testing.assert_allclose(scores, expected, rtol=eps * 64)  # of the difference of scores, a unit is so much
    np.testing.assert_allclose(sums, np.arange(lanes) + expected.reshape(-1, lanes).sum(axis=0), rtol=eps * 64)
    assert_nothing_around(memory)
    assert_nothing_around(around, -1.0)
    assert scores[5] == scores[6] == 0.0


@both_dtypes
def test_powers_of_nan_are_nan(dtype):
    scores, _ = scores_of(dtype)
    scores[9] = np.nan
    sums = np.zeros(WIDTH // scores.itemsize, dtype)
    raised(address(scores), dtype(0.0), address(sums))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(scores)), [9])
    assert np.isnan(sums).sum() == 1


@both_dtypes
def test_each_power_is_within_a_unit_in_the_last_place(dtype):
    limit = LEAST if dtype == np.float32 else 1022
    for first in np.linspace(0.51 - limit, 8.0, 400):
        scores, memory = amid(np.linspace(first, first + 1.0, KEYS).astype(dtype), np.nan)
        expected = np.exp2(scores.astype(np.longdouble))
        weighed(address(scores), dtype(0.0))
        assert (np.abs(scores - expected) / np.spacing(expected.astype(dtype))).max() <= 1.01
        assert_nothing_around(memory)


@both_dtypes
def test_powers_at_both_ends(dtype):
    """Below a limit they are 0 and not subnormal, and above the largest number infinity."""
    least, least_forward, most = (LEAST, LEAST_FORWARD, 128) if dtype == np.float32 else (1022, 1022, 1024)
    scores, _ = scores_of(dtype)
    scores[:6] = -least, -least - 1, -np.inf, np.finfo(dtype).min, 1 - least, most
    weighed(address(scores), dtype(0.0))
    np.testing.assert_array_equal(scores[:6], [0.0, 0.0, 0.0, 0.0, 2.0 ** (1 - least), np.inf])
    scores[:5] = -least_forward, -least_forward - 1, -np.inf, 1 - least_forward, most
    raised(address(scores), dtype(0.0), address(np.zeros(WIDTH // scores.itemsize, dtype)))
    np.testing.assert_array_equal(scores[:5], [0.0, 0.0, 0.0, 2.0 ** (1 - least_forward), np.inf])


@both_dtypes
def test_scores_far_above_the_shift_have_the_power_infinity(dtype):
    scores, memory = scores_of(dtype)
    scores[:4] = np.inf, np.finfo(dtype).max, 2e4, np.nan
    bound = scores.copy()
    bounded(address(bound), dtype(1.0))
    most = 128 if dtype == np.float32 else 1024
    np.testing.assert_array_equal(bound, np.minimum(scores, most))
    weighed(address(scores), dtype(0.0))
    np.testing.assert_array_equal(scores[:4], [np.inf, np.inf, np.inf, np.nan])
    assert_nothing_around(memory)


@both_dtypes
@pytest.mark.parametrize("size", [1e-6, 0.1, 0.6, 3.0, 30.0])
def test_tangents_of_a_line(dtype, size):
    for seed in range(20):
        scores, memory = amid(np.random.default_rng(seed).uniform(-size, size, KEYS).astype(dtype), np.nan)
        scores[:5] = np.nan, np.inf, -np.inf, 0.0, np.finfo(dtype).max
        expected = 4.0 * np.tanh(scores.astype(np.longdouble))
        bent(address(scores), dtype(4.0))
        error = np.abs(scores - expected) / np.spacing(np.abs(expected.astype(dtype)))
        assert np.isnan(scores[0])
        assert float(error[1:].max()) < 3.0
        assert_nothing_around(memory)


@both_dtypes
def test_what_is_added_is_no_less_than_the_least(dtype):
    scores, memory = scores_of(dtype)
    more, before = np.random.default_rng(1).normal(size=KEYS).astype(dtype), scores.copy()
    factor, least = dtype(1.4427), -np.finfo(dtype).max / dtype(16.0)
    more[3], more[4], more[5], more[6] = np.finfo(dtype).min, -np.inf, np.nan, np.inf
    added(address(scores), address(more), factor, least)
    expected = before + factor * np.maximum(more, least)  # which keeps NaN
    np.testing.assert_allclose(scores, expected, rtol=4.0 * np.finfo(dtype).eps, atol=40.0 * np.finfo(dtype).eps)
    assert np.isfinite(scores[3:5]).all()
    assert_nothing_around(memory)


@both_dtypes
@pytest.mark.parametrize("other", [-np.inf, 0.0])
def test_scores_are_kept_where_flags_say_so(dtype, other):
    scores, memory = scores_of(dtype)
    flags = np.random.default_rng(2).random(KEYS + 1) < 0.5
    scores[7] = np.nan
    expected = np.where(flags[1:], scores, dtype(other))
    kept(address(scores), address(flags) + 1, dtype(other))
    np.testing.assert_array_equal(scores, expected)
    assert_nothing_around(memory)


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_the_verdict_on_some_lines(rows):
    for start in (False, True):  # a single flag that is not like all others
        for i in range(rows * KEYS):
            memory = np.full((rows, KEYS + 9), not start)
            memory[:, 1 : KEYS + 1] = start
            memory[i // KEYS, 1 + i % KEYS] = not start
            eighth = i % KEYS // (KEYS // 8)
            some = (0, 8) if start else (eighth, eighth + 1)
            assert told(address(memory) + 1, KEYS + 9, rows) == (*some, False)
        memory[:, 1 : KEYS + 1] = start
        assert told(address(memory) + 1, KEYS + 9, rows) == ((0, 8, True) if start else (8, 0, False))
