"""What the compiled steps do to a band of rows before its scores become weights."""

import numpy as np
import pytest

from attention_xp._engine.walkers.numpy.compiled import bands
from attention_xp._engine.walkers.numpy.compiled.registers import ROWS, WIDTH
from tests.engine.walkers.numpy.compiled._memory import address, amid, both_dtypes, looped

both_dtypes = pytest.mark.parametrize(*both_dtypes)
BAND, KEYS = bands.BAND, bands.KEYS
NONE, SOME, EVERY, STRIPS = bands.NONE, bands.SOME, bands.EVERY, bands.STRIPS


@looped
def looked(seen, edge, flags, rows, keys):
    return bands.look(seen, edge, flags, rows, keys)


@looped
def scored(given, chunk, scores, seen, rows, is_narrow):
    bands.score(given, chunk, scores, seen, rows, is_narrow)


@looped
def bent(scores, count, cap):
    bands.bend(scores, count, cap)


@looped
def added(scores, addends, factors, rows, keys):
    bands.add(scores, addends, factors, rows, keys)


def numbers(*shape, dtype=np.float64):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def bounds_of(strip, begin, end):
    """The keys of the eighths of a line in which some flag of a strip is true."""
    eighths, size = np.flatnonzero(strip.reshape(-1, 8, KEYS // 8).any(axis=(0, 2))), KEYS // 8
    return max(eighths[0] * size, begin), min((eighths[-1] + 1) * size, end)


def strips_of(flags):
    """What is to be seen of the strips of some rows."""
    strips = [flags[i : i + ROWS] for i in range(0, len(flags), ROWS)]
    return [EVERY if strip.all() else SOME if strip.any() else NONE for strip in strips]


@pytest.mark.parametrize("count", [1, ROWS, ROWS + 1, BAND])
@pytest.mark.parametrize(("begin", "end"), [(0, KEYS), (3, KEYS), (0, 11), (20, 21)])
def test_strips_are_seen_as_what_their_flags_allow(count, begin, end):
    rng = np.random.default_rng(0)
    for density in (0.0, 0.5, 1.0, None):
        lines = rng.random((BAND, 100)) < 0.5  # what lies around is anything
        inner = lines[:count, 10 + begin : 10 + end]
        inner[...] = rng.random(inner.shape) < density if density is not None else np.arange(count)[:, None] // ROWS % 2
        seen, edge = np.full(BAND, 9, np.uint8), np.full((BAND, KEYS), 9, np.uint8)
        place, step = looked(seen, edge, (address(lines) + 10, 100), (5, 5 + count), (0, begin, end))
        whole = np.zeros((count, KEYS), bool)
        whole[:, begin:end] = inner
        np.testing.assert_array_equal(seen[: -(-count // ROWS)], strips_of(whole))
        for i in np.flatnonzero(strips_of(whole)):
            bounds = bounds_of(whole[i * ROWS : (i + 1) * ROWS], begin, end)
            assert (seen[STRIPS + i], seen[2 * STRIPS + i]) == bounds
        if end - begin < KEYS:
            assert (place, step) == (address(edge), KEYS)
            np.testing.assert_array_equal(edge[:count], whole)
        else:
            assert (place, step) == (address(lines) + 10, 100)
        np.testing.assert_array_equal(edge[count:], 9)


def test_without_flags_all_pairs_are_allowed():
    seen, edge = np.full(BAND, 9, np.uint8), np.full((BAND, KEYS), 9, np.uint8)
    assert looked(seen, edge, (0, 0), (0, 13), (0, 3, 20)) == (0, 0)
    np.testing.assert_array_equal(seen[: 3 * STRIPS].reshape(3, -1).T, [(EVERY, 3, 20)] * STRIPS)


@both_dtypes
def test_a_strip_without_pairs_is_not_scored(dtype):
    D, (row, last_row) = 7, (2, 2 + 3 * ROWS + 1)
    rows, chunk = numbers(30, D + 3, dtype=dtype), numbers(D, KEYS, dtype=dtype)
    scores, seen = np.full((BAND, KEYS), 9.0, dtype), np.asarray([SOME, NONE, EVERY, SOME] + [NONE] * 4, np.uint8)
    scored((address(rows), rows.strides[0], D), address(chunk), scores, seen, (row, last_row), False)
    expected = np.full((BAND, KEYS), 9.0)
    products = rows[row:last_row, :D].astype(np.float64) @ chunk
    expected[: last_row - row] = np.where(np.repeat(seen, ROWS)[: last_row - row, None] != NONE, products, 9.0)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=50 * np.finfo(dtype).eps)


@both_dtypes
@pytest.mark.parametrize(("begin", "end"), [(0, KEYS), (8, 16), (11, 40), (20, 21), (30, KEYS)])
def test_a_strip_is_scored_where_it_attends(dtype, begin, end):
    D, count = 7, ROWS + 1
    rows, chunk = numbers(count, D, dtype=dtype), numbers(D, KEYS, dtype=dtype)
    scores, memory = amid(np.full((BAND, KEYS), 9.0, dtype), np.nan)
    seen = np.repeat(np.asarray([SOME, begin, end], np.uint8), STRIPS)
    scored((address(rows), rows.strides[0], D), address(chunk), scores, seen, (0, count), True)
    products = rows.astype(np.float64) @ chunk
    np.testing.assert_allclose(scores[:count, begin:end], products[:, begin:end], rtol=0, atol=50 * np.finfo(dtype).eps)
    beside = np.delete(scores[:count], np.s_[begin:end], axis=1) == 9.0
    assert beside.any() or end - begin > WIDTH // np.dtype(dtype).itemsize  # one vector alone, or more of them
    assert (scores[count:] == 9.0).all()
    assert np.isnan(memory).sum() == 64


@both_dtypes
@pytest.mark.parametrize("cap", [0.0, 2.5])
def test_scores_are_bent_where_there_is_a_cap(dtype, cap):
    scores = numbers(BAND, KEYS, dtype=dtype)
    expected = scores.astype(np.float64)
    expected[:11] = cap * np.tanh(expected[:11]) if cap else expected[:11]
    bent(scores, 11, dtype(cap))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=8 * np.finfo(dtype).eps)


@both_dtypes
@pytest.mark.parametrize(("begin", "end"), [(0, KEYS), (3, KEYS), (0, 11), (20, 21)])
def test_addends_are_added_and_other_columns_excluded(dtype, begin, end):
    (row, last_row), left, g, (G, Sq) = (4, 4 + 9), KEYS, 1, (2, 20)
    wide, of_keys = numbers(G, Sq, 2 * KEYS, dtype=dtype), numbers(2 * KEYS, dtype=dtype)
    wide[g, row, left + begin], wide[g, row + 1, left + begin] = np.finfo(dtype).min, np.nan
    addends = np.asarray([(address(wide), *wide.strides[:2]), (address(of_keys), 0, 0)], np.int64)
    factor, least = dtype(1.4427), -np.finfo(dtype).max / dtype(16.0)
    before = numbers(BAND, KEYS, dtype=dtype)
    scores = before.copy()
    added(scores, (addends, g), (dtype(0.0), factor, least, dtype(8.0)), (row, last_row), (left, begin, end))
    expected, columns = before.copy(), slice(left + begin, left + end)
    inner = expected[: last_row - row]
    for more in (wide[g, row:last_row, columns], of_keys[columns]):
        inner[:, begin:end] += factor * np.maximum(more, least)
    inner[:, :begin] = inner[:, end:] = -np.inf
    np.testing.assert_allclose(scores, expected, rtol=0, atol=8 * np.finfo(dtype).eps)
    assert np.isfinite(scores[0, begin])
    assert np.isnan(scores[1, begin])
