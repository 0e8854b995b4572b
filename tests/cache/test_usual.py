"""The short way of a usual step of decoding does what the longer way does, or leaves the step to it."""

import gc
import weakref

import numpy as np
import pytest

from attention_xp.cache import StaticCache, _step, _usual, append, append_and_attend, attend
from tests._inputs import normal

B, H, K, D, C = 2, 6, 2, 8, 12


def rows(count, heads=K, seed=0):
    return normal(B, heads, count, D, seed=seed).astype(np.float32)


@pytest.fixture
def taken(monkeypatch):
    """Tell of each step whether it went the short way."""
    seen = []

    def usual_step(*arguments):
        found = usual(*arguments)
        seen.append(found is not None)
        return found

    usual = _step.usual_step
    monkeypatch.setattr(_step, "usual_step", usual_step)
    return seen


def prompted(count=3):
    return append(StaticCache.empty(B, K, C, D, dtype="float32"), rows(count), rows(count, seed=1))


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"dropout_rate": 0.0}])
def test_steps_are_those_of_appending_and_attending(taken, options):
    cache = longer = prompted()
    for seed in range(5):
        query, key, value = rows(1, H, seed), rows(1, seed=seed + 50), rows(1, seed=seed + 90)
        found, cache = append_and_attend(cache, query, key, value, **options)
        longer = append(longer, key, value)
        np.testing.assert_allclose(found, attend(longer, query), rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(cache.lengths, longer.lengths)
    assert taken[1:] == [True] * 4


def test_an_older_cache_keeps_what_it_shows(taken):
    first = prompted()
    one, two = (rows(1, seed=seed) for seed in (5, 6))
    append_and_attend(first, rows(1, H), one, one)
    _, left = append_and_attend(first, rows(1, H), one, one)
    _, right = append_and_attend(first, rows(1, H), two, two)
    for cache, row in ((left, one), (right, two)):
        np.testing.assert_array_equal(cache.key[:, :, 3:4], row)
        np.testing.assert_array_equal(cache.key[:, :, :3], rows(3))
    assert taken[1:] == [False, False]  # its slots were given away by the first step


def test_a_full_cache_is_told(taken):
    cache = prompted(C - 2)
    for _ in range(2):
        _, cache = append_and_attend(cache, rows(1, H), rows(1), rows(1))
    with pytest.raises(ValueError, match="overflows"):
        append_and_attend(cache, rows(1, H), rows(1), rows(1))
    assert taken[-1] is False


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (1, {"softcap": 2.0}),
        (1, {"window": (3, 0)}),
        (1, {"query_offset": 9}),
        (2, {"is_causal": True}),
        (1, {"is_causal": 1}),
    ],
)
def test_other_steps_go_the_longer_way(taken, count, options):
    cache = prompted()
    for _ in range(2):
        try:
            _, cache = append_and_attend(cache, rows(count, H), rows(count), rows(count), **options)
        except TypeError:
            assert options == {"is_causal": 1}
    assert True not in taken


def test_items_of_different_lengths_go_the_longer_way(taken):
    cache = append(StaticCache.empty(B, K, C, D, dtype="float32"), rows(4), rows(4), lengths=np.asarray([2, 4]))
    for _ in range(2):
        _, cache = append_and_attend(cache, rows(1, H), rows(1), rows(1))
    np.testing.assert_array_equal(cache.lengths, [4, 6])
    assert taken == [False, False]


def test_wrong_rows_are_refused_after_right_ones(taken):
    _, cache = append_and_attend(prompted(), rows(1, H), rows(1), rows(1))
    for wrong in (rows(1, 3), rows(1).astype(np.float64), rows(1)[:, :, :, :4]):
        with pytest.raises((TypeError, ValueError)):
            append_and_attend(cache, rows(1, H), wrong, rows(1))
    assert taken[1:] == [False, False, False]  # the first step may have been made by other tests before


def test_the_memory_of_a_cache_is_given_back(taken, monkeypatch):
    monkeypatch.setattr(_usual, "_PROBLEMS", {})
    cache = prompted()
    for seed in range(3):
        query = rows(1, H, seed)
        _, cache = append_and_attend(cache, query, rows(1, seed=seed + 50), rows(1, seed=seed + 90))
    held = [weakref.ref(array) for array in (query, *cache)]
    assert taken[-1]
    assert len(_usual._PROBLEMS) == 1
    del query, cache
    gc.collect()
    assert [reference() for reference in held] == [None] * 4
