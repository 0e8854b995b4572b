"""Pages: read where they lie, shared, copied when written, freed; the pool neither leaks nor lends a page twice."""

import math

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp._engine.walkers.numpy import pages_in_place
from attention_xp._engine.walkers.numpy.compiled import found as loops
from attention_xp.biases import AlibiBias
from attention_xp.cache import (
    PagedCache,
    _where_they_lie,
    append,
    append_and_attend,
    attend,
    free,
    lengths,
    paged_attention,
    reorder,
)
from attention_xp.masks import CausalMask, LengthMask
from tests._backends import to_numpy
from tests._inputs import normal
from tests.cache._decoding import DV, HKV, KEY, PAGE, PAGES, QUERY, VALUE, B, D, H, decode, empty

TABLE = np.asarray([[7, 2, 11, 99], [5, -1, -7, 2**20], [0, 9, -1, 3]])
LENGTHS = np.asarray([11, 4, 8])
OUTSIDE = np.setdiff1d(np.arange(12), [7, 2, 11, 5, 0, 9])


def pool():
    """Keys and values in pages, NaN where no length reaches."""
    keys, values = normal(12, HKV, PAGE, D), normal(12, HKV, PAGE, DV, seed=1)
    for a in (keys, values):
        a[OUTSIDE] = math.nan
        a[11, :, 3] = math.inf
    return keys, values


def in_order(pages, b):
    used = pages[TABLE[b, : -(-LENGTHS[b] // PAGE)]]
    return np.concatenate(list(used), axis=1)[None, :, : LENGTHS[b]]


def is_consistent(cache):
    """Whether references count the entries of the table that lengths reach, each of which is a page."""
    table, size = to_numpy(cache.block_table), cache.key_pages.shape[2]
    held = [row[: -(-int(n) // size)] for row, n in zip(table, to_numpy(cache.lengths), strict=True)]
    assert all((row >= 0).all() for row in held)
    counts = np.bincount(np.concatenate(held).astype(int), minlength=cache.references.shape[0])
    return np.array_equal(counts, to_numpy(cache.references))


@pytest.mark.backends("numpy")
def test_what_memory_held_before_is_in_no_score(monkeypatch):
    empty_of_numpy = np.empty

    def signalling(shape, *more, **how):
        made = empty_of_numpy(shape, *more, **how)
        if made.dtype == np.float32:
            made.view(np.int32)[...] = 0x7FA00000  # a NaN that complains when it is added to anything
        return made

    query, (keys, values) = normal(B, H, 1, D, seed=2).astype("float32"), (a.astype("float32") for a in pool())
    monkeypatch.setattr(np, "empty", signalling)
    output = paged_attention(query, keys, values, TABLE, LENGTHS, bias=AlibiBias(np.ones(H, "float32")))
    assert np.isfinite(output).all()


@pytest.mark.with_nan
@pytest.mark.parametrize("limits", [3, 0, [5, 2, 1], [9, 4, 3]], ids=str)
@pytest.mark.parametrize("is_combined", [False, True])
@pytest.mark.parametrize("impl", ["auto", "tiled"])
def test_a_mask_of_lengths_cuts_off_pages(make, limits, is_combined, impl):
    """Where no item attends the last keys, no product reads them, and the rule may have nothing left to say."""
    query, (keys, values) = normal(B, H, 1, D, seed=2), pool()
    mask = LengthMask(limits if isinstance(limits, int) else make(np.asarray(limits)))
    mask = mask & CausalMask() if is_combined else mask
    output = paged_attention(*map(make, (query, keys, values, TABLE, LENGTHS)), mask=mask, impl=impl)
    for b, limit in enumerate(np.minimum(limits, LENGTHS)):
        k, v = (in_order(a, b)[:, :, :limit] for a in (keys, values))
        expected = flash_attention(query[b : b + 1], k, v)
        np.testing.assert_allclose(to_numpy(output)[b : b + 1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("outside", [np.nan, np.inf])
@pytest.mark.backends("numpy")
def test_what_lies_behind_an_end_warns_of_nothing(outside):
    query, (keys, values) = normal(B, H, 1, D, seed=2), pool()
    keys[11, :, 3] = outside
    bias = np.where(np.arange(TABLE.shape[1] * PAGE) < LENGTHS[:, None], 0.0, -np.inf)[:, None, None]
    with np.errstate(all="raise"):
        output = paged_attention(query, keys, values, TABLE, LENGTHS, bias=bias)
    assert np.isfinite(output).all()


@pytest.mark.with_nan
@pytest.mark.parametrize("Sq", [1, 9])
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True, "window": (3, 0), "softcap": 2.0}], ids=["plain", "window"]
)
def test_paged_attention_reads_what_lengths_reach_and_no_more(library, xp, Sq, options):
    make, query = library.array, normal(B, H, Sq, D, seed=2)
    pages = pool()
    given = [make(a) for a in (query, *pages)]
    output, lse = paged_attention(*given, make(TABLE), make(LENGTHS), return_lse=True, **options)
    for b in range(B):
        k, v = (in_order(a, b) for a in pages)
        expected = flash_attention(
            query[b : b + 1], k, v, query_offset=int(LENGTHS[b]) - Sq, return_lse=True, **options
        )
        for found, whole in zip((output, lse), expected, strict=True):
            np.testing.assert_allclose(to_numpy(found)[b : b + 1], whole, atol=2e-6)


def test_paged_attention_refuses_entries_that_are_no_page(library):
    given = [library.array(a) for a in (normal(B, H, 1, D), *pool())]
    wrong = library.array(LENGTHS + 1)  # the second item then reaches -1
    if library.like("cupy"):
        output = to_numpy(paged_attention(*given, library.array(TABLE), wrong))
        assert np.isnan(output[1:]).all()
        return
    with pytest.raises(ValueError, match=r"block_table\[1, 1\] is no page: expected numbers from 0 to 11"):
        paged_attention(*given, library.array(TABLE), wrong)


@pytest.mark.backends("numpy", "strict", "torch", "cupy")  # JAX decodes beams in test_compiled.py
def test_beams_share_pages_until_they_write(library):
    make = library.array
    rows = [make(a[:1, :, :6]) for a in (KEY, VALUE)]
    one = PagedCache.empty(1, HKV, 7, D, page_size=PAGE, value_width=DV, **where(library))
    one = append(one, *rows)
    beams = reorder(one, make(np.asarray([0, 0, 0])))
    assert sorted(to_numpy(beams.references)) == [0, 0, 0, 0, 0, 3, 3]
    new = [make(a[:, :, 6:8]) for a in (KEY, VALUE)]
    grown = append(beams, *new)  # the full page is shared still, of the other each has one, and the last one the first
    assert sorted(to_numpy(grown.references)) == [0, 0, 0, 1, 1, 1, 3]
    assert is_consistent(grown)
    query = make(QUERY[:, :, 7:8])
    output = to_numpy(attend(grown, query))
    for b in range(B):
        k, v = (np.concatenate([a[:1, :, :6], a[b : b + 1, :, 6:8]], axis=2) for a in (KEY, VALUE))
        np.testing.assert_allclose(output[b : b + 1], flash_attention(QUERY[b : b + 1, :, 7:8], k, v), atol=2e-6)
    chosen = reorder(grown, make(np.asarray([2, 2, 0])))
    same = make(np.broadcast_to(QUERY[:1, :, 7:8], (B, H, 1, D)))
    np.testing.assert_allclose(to_numpy(attend(chosen, same)), to_numpy(attend(grown, same))[[2, 2, 0]], atol=1e-6)
    assert is_consistent(chosen)
    before = flash_attention(QUERY[:, :, 7:8], *(np.repeat(a[:1, :, :6], B, axis=0) for a in (KEY, VALUE)))
    np.testing.assert_allclose(to_numpy(attend(beams, query)), before, atol=2e-6)  # it shows what it showed


def where(library):
    return {"xp": library.namespace(), "dtype": "float32", "device": library.device()}


@pytest.mark.backends("numpy", "torch")
def test_many_appends_leak_no_page(library):
    rng, make = np.random.default_rng(0), library.array
    cache = PagedCache.empty(4, 1, 24, 2, page_size=2, **where(library))
    kept = [[] for _ in range(4)]
    for step in range(400):
        full = np.asarray([len(words) > 8 for words in kept]) & (rng.random(4) < 0.7)
        if full.any():
            cache = free(cache, make(full))
            kept = [[] if done else words for done, words in zip(full, kept, strict=True)]
        if step % 7 == 3:
            items = rng.integers(0, 4, 4)
            cache, kept = reorder(cache, make(items)), [list(kept[b]) for b in items]
        counts = np.where([len(words) < 11 for words in kept], rng.integers(0, 2, 4), 0)
        rows = rng.standard_normal((4, 1, 1, 2)).astype("float32")
        cache = append(cache, make(rows), make(rows), lengths=make(counts))
        for b, count in enumerate(counts):
            kept[b] += [rows[b, 0, 0]] * count
        assert is_consistent(cache)
        if step % 10 == 0:
            keys = to_numpy(cache.key_pages)[:, 0]
            for b, words in enumerate(kept):
                table = to_numpy(cache.block_table)[b]
                found = [keys[table[p // 2], p % 2] for p in range(len(words))]
                np.testing.assert_array_equal(np.asarray(found).reshape(-1, 2), np.asarray(words).reshape(-1, 2))
    everyone = free(cache, make(np.ones(4, bool)))
    assert not to_numpy(everyone.references).any()
    assert (to_numpy(everyone.block_table) == -1).all()


@pytest.mark.backends("numpy", "strict", "torch", "cupy")
def test_freed_pages_are_given_to_others(library):
    _, cache = decode(library, empty(library, "paged"))
    used = int((to_numpy(cache.references) > 0).sum())
    cache = free(cache, library.array(np.asarray([True, False, True])))
    assert int((to_numpy(cache.references) > 0).sum()) < used
    np.testing.assert_array_equal(to_numpy(lengths(cache)), [0, 12, 0])
    rows = [library.array(a) for a in (QUERY, KEY, VALUE)]
    counts = library.array(np.asarray([19, 0, 19]))
    output, cache = append_and_attend(cache, *rows, is_causal=True, lengths=counts)
    assert is_consistent(cache)
    whole = flash_attention(QUERY, KEY, VALUE, is_causal=True)
    np.testing.assert_allclose(to_numpy(output)[[0, 2]], whole[[0, 2]], atol=2e-6)
    assert int((to_numpy(cache.references) > 0).sum()) <= PAGES


ORDERS = {
    "neighbours": [[2, 3, 4, 5]],
    "neighbours at equal distances": [[2, 3, 4, 5], [8, 9, 10, 11], [14, 15, 16, 17]],
    "the same pages": [[2, 3, 4, 5], [2, 3, 4, 5]],
    "a shared prefix": [[2, 3, 4, 5], [2, 3, 9, 10]],
    "neighbours at other distances": [[2, 3, 4, 5], [8, 9, 10, 11], [13, 14, 15, 16]],
    "backwards": [[5, 4, 3, 2], [11, 10, 9, 8]],
    "scattered": [[17, 3, 9, 4], [0, 16, 1, 8], [12, 7, 15, 2]],
}
AS_ARRAYS = "neighbours", "neighbours at equal distances", "the same pages"
IN_PLACE = {
    "plain": {},
    "sinks": {"sinks": np.asarray([0.5, -0.5, 1.0, 2.0])},
    "softcap": {"softcap": 2.0},
    "causal": {"is_causal": True},
    "window": {"window": (9, 0)},
    "bias": {"bias": AlibiBias(np.linspace(0.1, 0.5, H))},
}
LIMITS = {"of all items": 7, "of each": [5, 0, 9], "of nothing": 0, "behind all ends": [99, 30, 99]}


def pools_with_nan(layout, table, lengths, size):
    """Pools of keys and values, NaN outside of what the items read, and all items in order."""
    pools, found = [], []
    for width in (32, 64):
        shape = (HKV, 18, size, width) if "heads" in layout else (18, HKV, size, width)
        pool = normal(*shape, seed=width).astype(np.float32)
        pools.append(pool.swapaxes(0, 1) if "heads" in layout else pool)
    is_read = np.zeros((18, size), bool)
    for row, length in zip(table, lengths, strict=True):
        for i in range(length):
            is_read[row[i // size], i % size] = True
    for pool in pools:
        pool.swapaxes(1, 2)[~is_read] = np.nan
        rows = [pool[row].swapaxes(0, 1).reshape(HKV, -1, pool.shape[3]) for row in table]
        found.append([items[None, :, :n] for items, n in zip(rows, lengths, strict=True)])
    return pools, found


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("layout", ["by heads", "by pages"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("options", IN_PLACE)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("is_ragged", [False, True])
@pytest.mark.parametrize("size", [6, 64])
def test_pages_are_read_where_they_lie(monkeypatch, order, options, rows, layout, is_ragged, size):
    """As arrays, by compiled loops where there is numba, or by pieces; what lies outside changes nothing."""
    monkeypatch.setattr(loops, "FEWEST_PAIRS", 0)
    monkeypatch.setattr(pages_in_place, "_LONG", 0 if size == 6 else 512)
    table = np.asarray(ORDERS[order])
    lengths = [3 * size + 2] * len(table) if not is_ragged else [4 * size, size, 2 * size - 3][: len(table)]
    pools, items = pools_with_nan(layout, table, lengths, size)
    query = normal(len(table), H, rows, 32).astype(np.float32)
    how = dict(IN_PLACE[options])
    output, lse = paged_attention(query, *pools, table, np.asarray(lengths), return_lse=True, **how)
    for b, (length, key, value) in enumerate(zip(lengths, *items, strict=True)):
        place = {"query_offset": length - rows, "impl": "dense", "return_lse": True}
        expected, expected_lse = flash_attention(query[b : b + 1], key, value, **place, **how)
        np.testing.assert_allclose(output[b : b + 1], expected, atol=2e-6)
        np.testing.assert_allclose(lse[b : b + 1], expected_lse, atol=2e-6)


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("order", ORDERS)
def test_pages_that_lie_like_an_array_are_one(order):
    """A step then costs what it costs on slices."""
    table, size = np.asarray(ORDERS[order]), 6
    pools, _ = pools_with_nan("by heads", table, [20] * len(table), size)
    views = pages_in_place.as_arrays(*pools, table.tolist(), [20] * len(table))
    assert (views is not None) == (order in AS_ARRAYS)
    assert views is None or all(np.shares_memory(a, pool) for a, pool in zip(views, pools, strict=True))
    assert pages_in_place.as_arrays(*(pool.copy() for pool in pools), table.tolist(), [20] * len(table)) is None


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("layout", ["by heads", "by pages"])
@pytest.mark.parametrize("order", ORDERS)
def test_compiled_loops_read_all_pages(monkeypatch, order, layout):
    """Whatever their order, and of items of any lengths, those without keys as well."""
    monkeypatch.setattr(loops, "FEWEST_PAIRS", 0)
    seen = []
    attend_compiled = _where_they_lie.attend_compiled
    monkeypatch.setattr(
        _where_they_lie, "attend_compiled", lambda *given: seen.append(attend_compiled(*given)) or seen[-1]
    )
    table = np.asarray([*ORDERS[order], [0, 0, 0, 0]])
    lengths = [*[20, 13, 1][: len(table) - 1], 0]
    pools, items = pools_with_nan(layout, table, lengths, 6)
    query = normal(len(table), H, 1, 32).astype(np.float32)
    output = paged_attention(query, *pools, table, np.asarray(lengths))
    assert [found is not None for found in seen] == [loops.loops() is not None]
    for b, (key, value) in enumerate(zip(*items, strict=True)):
        np.testing.assert_allclose(output[b : b + 1], flash_attention(query[b : b + 1], key, value), atol=2e-6)
    assert not output[-1].any()


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("order", ["neighbours at equal distances", "scattered"])
def test_a_mask_of_lengths_is_seen_by_compiled_loops(monkeypatch, order, rows, limits):
    monkeypatch.setattr(loops, "FEWEST_PAIRS", 0)
    table, lengths = np.asarray(ORDERS[order]), [20, 20, 13]
    pools, items = pools_with_nan("by heads", table, lengths, 6)
    query, limit = normal(3, H, rows, 32).astype(np.float32), np.asarray(LIMITS[limits])
    output = paged_attention(
        query, *pools, table, np.asarray(lengths), mask=LengthMask(limit if limit.ndim else int(limit))
    )
    for b, (key, value) in enumerate(zip(*items, strict=True)):
        end = min(np.broadcast_to(limit, 3)[b], lengths[b])
        expected = flash_attention(query[b : b + 1], key[:, :, :end], value[:, :, :end])
        np.testing.assert_allclose(output[b : b + 1], expected, atol=2e-6)
