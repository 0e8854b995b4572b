"""The short way of a usual step of decoding does what the longer way does, or leaves the step to it."""

import gc
import weakref

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp.cache import PagedCache, StaticCache, _step, _usual, append, append_and_attend, attend, reorder
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


def prompted(count=3, kind="static", pages=8, **how):
    if kind == "static":
        cache = StaticCache.empty(B, K, C, D, dtype="float32")
    else:
        cache = PagedCache.empty(B, K, pages, D, page_size=4, dtype="float32")
    return append(cache, rows(count), rows(count, seed=1), **how)


@pytest.mark.parametrize("kind", ["static", "paged"])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"dropout_rate": 0.0}])
def test_steps_are_those_of_appending_and_attending(taken, options, kind):
    cache, longer = prompted(kind=kind), prompted()
    for seed in range(5):
        query, key, value = rows(1, H, seed), rows(1, seed=seed + 50), rows(1, seed=seed + 90)
        found, cache = append_and_attend(cache, query, key, value, **options)
        longer = append(longer, key, value)
        np.testing.assert_allclose(found, attend(longer, query), rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(cache.lengths, longer.lengths)
    assert taken[1:] == [True] * 4


def seen_of(cache, b, count):
    """The first keys of an item of a paged cache, (K, count, D)."""
    return cache.key_pages[cache.block_table[b]].swapaxes(0, 1).reshape(K, -1, D)[:, :count]


@pytest.mark.parametrize("count", [3, 4], ids=["within a page", "on a new page"])
def test_an_older_cache_of_pages_keeps_what_it_shows(taken, count):
    first, before = prompted(count, "paged"), rows(count)
    one, two = (rows(1, seed=seed) for seed in (5, 6))
    _, left = append_and_attend(first, rows(1, H), one, one)
    _, right = append_and_attend(first, rows(1, H), two, two)
    for cache, row in ((left, one), (right, two)):
        for b in range(B):
            np.testing.assert_array_equal(seen_of(cache, b, count + 1), np.concat([before[b], row[b]], axis=1))
    np.testing.assert_array_equal(first.lengths, [count] * B)
    np.testing.assert_array_equal(first.references, prompted(count, "paged").references)
    assert taken[-1] is False


@pytest.mark.parametrize("count", [3, 4], ids=["within a page", "on a new page"])
def test_items_that_share_pages_write_into_their_own(taken, count):
    cache = reorder(
        append(PagedCache.empty(1, K, 8, D, page_size=4, dtype="float32"), *[rows(count)[:1]] * 2), np.zeros(B, int)
    )
    row = rows(1, seed=3)
    for _ in range(2):
        output, after = append_and_attend(cache, rows(1, H), row, row)
    for b in range(B):
        keys = np.concat([rows(count)[0], row[b]], axis=1)
        np.testing.assert_array_equal(seen_of(after, b, count + 1), keys)
        expected = flash_attention(rows(1, H)[b : b + 1], keys[None], keys[None])
        np.testing.assert_allclose(output[b : b + 1], expected, atol=1e-6)
    assert len(set(after.block_table[:, count // 4].tolist())) == B
    assert True not in taken


def test_a_page_that_is_taken_is_not_given_again(taken):
    """The items lie one behind the other, and the second one's page is behind the first one's."""
    cache = prompted(4, "paged", pages=3, lengths=np.asarray([4, 3]))
    assert cache.block_table[:, 0].tolist() == [0, 1]
    _, cache = append_and_attend(cache, rows(1, H), rows(1), rows(1))
    assert taken[-1] is False
    held = [
        page for row, n in zip(cache.block_table.tolist(), cache.lengths, strict=True) for page in row[: -(-n // 4)]
    ]
    assert len(set(held)) == len(held)
    np.testing.assert_array_equal(np.flatnonzero(cache.references), sorted(held))


def test_a_single_item_goes_on_to_its_next_page(taken):
    one = PagedCache.empty(1, K, 8, D, page_size=4, dtype="float32")
    cache = append(one, *[rows(3)[:1]] * 2)
    for seed in range(3):
        query, row = rows(1, H, seed)[:1], rows(1, seed=seed + 4)[:1]
        output, cache = append_and_attend(cache, query, row, row)
        keys = seen_of(cache, 0, 4 + seed)[None]
        np.testing.assert_allclose(output, flash_attention(query, keys, keys), atol=1e-6)
    assert taken[1:] == [True, True]


@pytest.mark.parametrize("counts", [[6, 2], [7, 2]], ids=["within their pages", "one on a new page"])
def test_paged_items_of_different_lengths(taken, counts):
    cache = prompted(7, "paged", lengths=np.asarray(counts))
    for seed in range(2):
        output, cache = append_and_attend(cache, rows(1, H, seed), rows(1, seed=seed + 4), rows(1, seed=seed + 8))
    assert taken[-1]
    held = sum(-(-n // 4) for n in cache.lengths)
    assert (cache.references == 1).sum() == (cache.block_table >= 0).sum() == held
    for b, count in enumerate(counts):
        keys, values = (
            np.concat([rows(7, seed=n)[b, :, :count], *(rows(1, seed=seed + m)[b] for seed in range(2))], axis=1)
            for n, m in ((0, 4), (1, 8))
        )
        expected = flash_attention(rows(1, H, 1)[b : b + 1], keys[None], values[None])
        np.testing.assert_allclose(output[b : b + 1], expected, atol=1e-6)


@pytest.mark.parametrize("wrong", [-1, 8])
def test_an_entry_that_is_no_page_is_told(taken, wrong):
    _, cache = append_and_attend(prompted(6, "paged"), rows(1, H), rows(1), rows(1))
    table = cache.block_table.copy()
    table[0, 0] = wrong
    output, _ = append_and_attend(cache._replace(block_table=table), rows(1, H), rows(1), rows(1))
    assert taken[-1] is False
    assert np.isnan(output[0]).all()
    assert np.isfinite(output[1]).all()


def test_an_item_without_rows_goes_the_longer_way(taken):
    append_and_attend(prompted(3, "paged"), rows(1, H), rows(1), rows(1))
    value = rows(1, seed=1)
    output, _ = append_and_attend(prompted(3, "paged", lengths=np.asarray([3, 0])), rows(1, H), rows(1), value)
    assert taken[-1] is False
    np.testing.assert_allclose(output[1], np.repeat(value[1], H // K, axis=0), rtol=1e-6)


def test_a_page_that_others_hold_is_copied(taken):
    """Whoever they are: references may be counted by the user, too."""
    _, cache = append_and_attend(prompted(2, "paged"), rows(1, H), rows(1), rows(1))
    page = cache.block_table[0, 0]
    _, after = append_and_attend(cache._replace(references=cache.references * 2), rows(1, H), rows(1), rows(1))
    assert taken[-1] is False
    assert after.block_table[0, 0] != page


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


@pytest.mark.parametrize(("kind", "room"), [("static", C), ("paged", 16)])
def test_a_full_cache_is_told(taken, kind, room):
    cache = prompted(room - 2, kind)
    for _ in range(2):
        _, cache = append_and_attend(cache, rows(1, H), rows(1), rows(1))
    with pytest.raises(ValueError, match="overflows"):
        append_and_attend(cache, rows(1, H), rows(1), rows(1))
    assert taken[-1] is False


def test_an_item_without_room_in_its_table_is_told(taken):
    cache = append(PagedCache.empty(B, K, 8, D, page_size=4, pages_per_item=1, dtype="float32"), *[rows(3)] * 2)
    _, cache = append_and_attend(cache, rows(1, H), rows(1), rows(1))
    with pytest.raises(ValueError, match="overflows"):
        append_and_attend(cache, rows(1, H), rows(1), rows(1))
    assert taken[-1] is False


def test_no_page_is_behind_the_last_one(taken):
    cache = reorder(prompted(3, "paged", pages=2), np.asarray([1, 0]))
    _, cache = append_and_attend(cache, rows(1, H), rows(1), rows(1))
    assert cache.block_table[:, 0].tolist() == [1, 0]
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


@pytest.mark.parametrize("kind", ["static", "paged"])
def test_the_memory_of_a_cache_is_given_back(taken, monkeypatch, kind):
    monkeypatch.setattr(_usual, "_PROBLEMS", {})
    cache = prompted(kind=kind)
    for seed in range(3):
        query = rows(1, H, seed)
        _, cache = append_and_attend(cache, query, rows(1, seed=seed + 50), rows(1, seed=seed + 90))
    held = [weakref.ref(array) for array in (query, *cache)]
    assert taken[-1]
    assert len(_usual._PROBLEMS) == 1
    del query, cache
    gc.collect()
    assert [reference() for reference in held] == [None] * len(held)
