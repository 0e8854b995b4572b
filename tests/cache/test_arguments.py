"""Older caches show what they showed, and what does not fit is refused."""

import importlib

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp._backend.libraries import array_namespace
from attention_xp.cache import (
    RollingCache,
    StaticCache,
    append,
    append_and_attend,
    attend,
    free,
    lengths as seen,
    paged_attention,
    reorder,
)
from tests._backends import to_numpy
from tests._inputs import normal
from tests.cache._decoding import DV, HKV, KEY, KINDS, QUERY, VALUE, B, D, H, empty


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_shows_what_it_showed(library, kind):
    if library.like("jax"):
        pytest.skip("its arrays are never written")
    make, query = library.array, library.array(QUERY[:, :, :1])
    steps = [[make(a[:, :, i : i + 3]) for a in (KEY, VALUE)] for i in range(0, 15, 3)]
    caches = [empty(library, kind)]
    for rows in steps:
        caches.append(append(caches[-1], *rows))
    caches += [append(caches[2], *steps[4]), free(caches[-1], make(np.asarray([True, False, True])))]
    caches += [append(caches[-1], *steps[0]), append(caches[-2], *steps[1])]
    caches += [append(caches[1]._replace(lengths=caches[1].lengths - 1), *steps[3])]
    one, two = ([to_numpy(attend(cache, query)) for cache in caches] for _ in range(2))
    copies = [type(cache)(*(library.namespace().asarray(a, copy=True) for a in cache)) for cache in caches]
    alone = [to_numpy(attend(cache, query)) for cache in copies]
    fresh = [empty(library, kind)]
    for rows in steps:
        fresh.append(append(fresh[-1], *rows))
    for i, (first, second, third) in enumerate(zip(one, two, alone, strict=True)):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, third, atol=1e-6)
        if i < len(fresh):
            np.testing.assert_allclose(first, to_numpy(attend(fresh[i], query)), atol=1e-6)


@pytest.mark.backends("numpy", "torch")
def test_what_no_cache_shows_is_written_in_place(library):
    rows = [library.array(a[:, :, :1]) for a in (KEY, VALUE)]
    first = append(empty(library, "static"), *rows)
    second, third = append(first, *rows), append(first, *rows)
    assert second.key is first.key
    assert third.key is not first.key
    assert append(third, *rows).key is third.key


@pytest.mark.backends("numpy", "torch")
@pytest.mark.parametrize("first", range(1, 9))
def test_a_rolling_cache_is_not_overwritten_when_it_has_come_round(library, first):
    key, value = (library.array(a) for a in (KEY, VALUE))
    cache = empty(library, "rolling")
    for rows in (slice(0, first), slice(first, 10)):
        cache = append(cache, key[:, :, rows], value[:, :, rows])
    query = library.array(QUERY[:, :, :1])
    before = to_numpy(attend(cache, query))
    for rows in (slice(10, 11), slice(11, 14)):
        append(cache, key[:, :, rows], value[:, :, rows])
        np.testing.assert_array_equal(to_numpy(attend(cache, query)), before)


CASES = {
    "no cache": (lambda c, x: append((1, 2), x, x), TypeError, "cache must be one of DenseCache, StaticCache"),
    "heads": (lambda c, x: append(c, x[:, :1], x), ValueError, r"key does not fit the cache: expected \(3, 2, 1, 8\)"),
    "rows": (lambda c, x: append(c, x, x[:, :, :0]), ValueError, "value does not fit the cache"),
    "dtype": (
        lambda c, x: append(c, x.astype("float64"), x),
        TypeError,
        "float32: .* make the cache with dtype='float64'",
    ),
    "many": (lambda c, x: append(c, x, x, lengths=2), ValueError, "lengths must lie between 0 and the 1 rows of key"),
    "counts": (lambda c, x: append(c, x, x, lengths=np.ones(2, int)), ValueError, r"expected \(3,\)"),
    "floats": (
        lambda c, x: append(c, x, x, lengths=np.ones(3)),
        TypeError,
        "lengths must be an int or an integer array",
    ),
    "lists": (
        lambda c, x: append(c, x, x, lengths=[1, 1, 0]),
        TypeError,
        r"got list: np.asarray\(lengths\), torch.as_tensor\(lengths\) or",
    ),
    "query": (lambda c, x: attend(c, x[:2]), ValueError, "query does not fit the cache"),
    "positions": (lambda c, x: attend(c, x, key_offset=1), ValueError, "key_offset cannot be given"),
    "option": (lambda c, x: attend(c, x, causal=True), TypeError, "causal"),
    "short mask": (
        lambda c, x: attend(append(c, *[np.concat([x] * 4, axis=2)] * 2), x, np.ones((1, 3), bool)),
        ValueError,
        "expected at least 4 columns",
    ),
    "items": (lambda c, x: reorder(c, np.asarray([3])), ValueError, "items must lie between 0 and 2"),
    "item floats": (lambda c, x: reorder(c, np.ones(3)), TypeError, "items"),
    "finished": (lambda c, x: free(c, np.ones(3, int)), TypeError, "finished must be boolean"),
    "table": (lambda c, x: paged_attention(x, x, x, np.zeros((2, 1), int), 1), ValueError, "block_table must hold"),
    "pages of nothing": (
        lambda c, x: paged_attention(x, x[:, :, :0], x[:, :, :0], np.zeros((3, 1), int), 0),
        ValueError,
        "at least one position",
    ),
    "pages without heads": (
        lambda c, x: paged_attention(x, x[:, :0], x[:, :0], np.zeros((3, 1), int), 0),
        ValueError,
        "H a multiple of 0",
    ),
    "no page": (
        lambda c, x: paged_attention(x, x, x, np.full((3, 1), 7), np.asarray([0, 1, 1])),
        ValueError,
        r"block_table\[1, 0\] is no page: expected numbers from 0 to 2 where lengths reach, got \[7\]",
    ),
    "no room": (
        lambda c, x: paged_attention(x, x, x, np.zeros((3, 1), int), np.asarray([0, 1, 2])),
        ValueError,
        r"lengths\[2\] is 2, but block_table \(3, 1\) has room for 1",
    ),
    "columns": (
        lambda c, x: paged_attention(
            x, *[np.repeat(x, 4, 2)] * 2, np.zeros((3, 1), int), 4, mask=np.ones((1, 3), bool)
        ),
        ValueError,
        r"at least 4 columns, as many as lengths\[0\], got 3",
    ),
    "negative": (
        lambda c, x: paged_attention(x, x, x, np.zeros((3, 1), int), np.asarray([1, -1, 1])),
        ValueError,
        "negative",
    ),
    "capacity": (lambda c, x: StaticCache.empty(1, 1, 0, 4), ValueError, "capacity must be at least 1"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_refused(case):
    call, error, text = CASES[case]
    cache = StaticCache.empty(B, HKV, 8, D, dtype="float32")
    with pytest.raises(error, match=text):
        call(cache, normal(B, HKV, 1, D).astype("float32"))


@pytest.mark.backends("torch")
def test_arrays_of_another_library_than_that_of_the_cache(library):
    cache, x = StaticCache.empty(B, HKV, 8, D), library.array(normal(B, HKV, 1, D))
    for call in (lambda: append(cache, x, x), lambda: append_and_attend(cache, x, x, x)):
        with pytest.raises(TypeError, match=r"cache\.key numpy\.ndarray.* make the cache with xp="):
            call()


@pytest.mark.backends("numpy", "torch")
def test_dropout_is_drawn_at_positions(library):
    """A seed drops the same weights whatever the kind of cache, and in whatever chunks."""
    make = library.array
    rows = [make(a[:, :, :6]) for a in (QUERY, KEY, VALUE)]
    outputs = []
    for kind in KINDS:
        cache, parts = empty(library, kind), []
        for part in (slice(0, 3), slice(3, 4), slice(4, 6)):
            found, cache = append_and_attend(cache, *(a[:, :, part] for a in rows), None, 0.5, is_causal=True, rng=3)
            parts.append(to_numpy(found))
        outputs.append(np.concatenate(parts, axis=2))
    for other in outputs[1:]:
        np.testing.assert_allclose(other, outputs[0], atol=2e-6)


def test_the_last_positions_of_a_rolling_cache_are_where_they_should_be():
    cache = RollingCache.empty(1, 1, 4, 1, dtype="float64")
    numbers = np.arange(11.0).reshape(1, 1, 11, 1)
    for chunk in np.split(numbers, (3, 4, 10), axis=2):
        cache = append(cache, chunk, chunk)
        end = int(seen(cache)[0])
        held = {p % 4: p for p in range(max(0, end - 4), end)}
        assert all(cache.key[0, 0, slot, 0] == p for slot, p in held.items())
    assert DV != D  # widths differ in the other tests
    assert H != HKV


def test_a_window_beyond_a_rolling_cache_is_refused(library):
    x = library.array(normal(1, 1, 2, 4))
    cache = RollingCache.empty(1, 1, 3, 4, xp=library.namespace(), dtype="float32", device=x.device)
    _, cache = append_and_attend(cache, x, x, x, is_causal=True, window=(2, 0))
    text = "window reaches 3 keys to the left, and a RollingCache of capacity 3 holds 2"
    with pytest.raises(ValueError, match=text):
        attend(cache, x, window=(3, 0))
    with pytest.raises(ValueError, match=text):
        append_and_attend(cache, x, x, x, window=3)


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_and_no_items(library, kind):
    make = library.array
    cache = append(empty(library, kind), *(make(a[:, :, :3]) for a in (KEY, VALUE)))
    nothing = make(QUERY[:, :, :0])
    assert attend(cache, nothing).shape == (B, H, 0, DV)
    output, same = append_and_attend(cache, nothing, make(KEY[:, :, :0]), make(VALUE[:, :, :0]))
    assert output.shape == (B, H, 0, DV)
    np.testing.assert_array_equal(to_numpy(seen(same)), to_numpy(seen(cache)))
    no_items = reorder(cache, make(np.zeros(0, int)))
    assert attend(no_items, make(QUERY[:0, :, :1])).shape == (0, H, 1, DV)


def test_a_mask_of_no_positions_on_an_empty_cache(library):
    x = library.array(normal(1, 1, 1, 4))
    cache = RollingCache.empty(1, 1, 3, 4, xp=library.namespace(), dtype="float32", device=x.device)
    output = attend(cache, x, library.array(np.ones((1, 0), bool)))
    assert not to_numpy(output).any()


@pytest.mark.backends("numpy", "strict")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64])
def test_tables_may_be_unsigned(library, dtype):
    query, pages = library.array(normal(1, 1, 1, 4)), library.array(normal(3, 1, 2, 4))
    table, lengths = np.asarray([[2, 0]]), np.asarray([3])
    found = paged_attention(
        query, pages, pages, library.array(table.astype(dtype)), library.array(lengths.astype(dtype))
    )
    expected = paged_attention(query, pages, pages, library.array(table), library.array(lengths))
    np.testing.assert_array_equal(to_numpy(found), to_numpy(expected))


@pytest.mark.backends("torch")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_tangents_of_forward_mode_are_kept(library, kind):
    torch = importlib.import_module("torch")
    forward = torch.autograd.forward_ad
    query, key, value = (library.array(a[:, :, :2]) for a in (QUERY, KEY, VALUE))
    with forward.dual_level():
        key, value = (forward.make_dual(a, torch.ones_like(a)) for a in (key, value))
        cache = append(empty(library, kind), key, value)
        found = forward.unpack_dual(attend(cache, query)).tangent
        expected = forward.unpack_dual(flash_attention(query, key, value)).tangent
    torch.testing.assert_close(found, expected)


def as_int8(array):
    xp = array_namespace(array)
    return xp.astype(array, xp.int8)


WRONG_PARTS = {
    "value_of_other_items": ("static", "value", lambda a: a[:1, ...]),
    "value_of_other_length": ("rolling", "value", lambda a: a[:, :, :-1, :]),
    "key_without_heads": ("dense", "key", lambda a: a[:, 0, ...]),
    "lengths_of_one_item": ("static", "lengths", lambda a: a[:1, ...]),
    "a_number_of_booleans": ("static", "lengths", lambda a: a > 0),
    "lengths_in_eight_bits": ("static", "lengths", as_int8),
    "pages_in_eight_bits": ("paged", "block_table", as_int8),
    "references_in_eight_bits": ("paged", "references", as_int8),
    "fewer_pages_of_values": ("paged", "value_pages", lambda a: a[:-1, ...]),
    "a_table_of_one_item": ("paged", "block_table", lambda a: a[:1, ...]),
    "fewer_references": ("paged", "references", lambda a: a[:-1, ...]),
}


@pytest.mark.parametrize(("kind", "name", "change"), WRONG_PARTS.values(), ids=WRONG_PARTS)
def test_arrays_that_do_not_fit_each_other_are_refused(library, kind, name, change):
    rows = [library.array(a[:, :, :3]) for a in (KEY, VALUE)]
    query, cache = library.array(QUERY[:, :, :1]), append(empty(library, kind), *rows)
    wrong = cache._replace(**{name: change(getattr(cache, name))})
    for call in (lambda: append(wrong, *rows), lambda: attend(wrong, query), lambda: seen(wrong)):
        with pytest.raises((TypeError, ValueError), match=rf"{name} (\(|must be int32 or int64)"):
            call()


GOOD = normal(1, 2, 1, 4), normal(1, 1, 1, 4), normal(1, 1, 1, 4)


@pytest.mark.backends("numpy")
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"query": np.ma.masked_array(GOOD[0])}, TypeError, "query must be a plain array"),
        ({"value": np.ma.masked_array(GOOD[2])}, TypeError, "value must be a plain array"),
        ({"key": GOOD[1].astype("float32")}, TypeError, "key is float32 but the cache holds float64"),
        ({"value": GOOD[2].astype("int64")}, TypeError, "value must be a floating array"),
        ({"value": GOOD[2].tolist()}, TypeError, "value must be an array"),
        ({"query": GOOD[0][..., :3]}, ValueError, "query does not fit the cache"),
        ({"key": normal(1, 1, 2, 4)}, ValueError, "value does not fit the cache"),
        ({"is_causal": 0}, TypeError, "is_causal"),
        ({"is_causal": 0, "query_offset": 1}, TypeError, "is_causal"),
        ({"dropout_rate": 1.5, "rng": 0}, ValueError, "dropout_rate"),
        ({"scale": "1"}, TypeError, "scale"),
    ],
)
def test_what_is_known_of_other_steps_lets_nothing_pass(library, change, error, words):
    cache, good = (
        StaticCache.empty(1, 1, 8, 4, dtype="float64"),
        dict(zip(("query", "key", "value"), GOOD, strict=True)),
    )
    for _ in range(2):
        _, cache = append_and_attend(cache, **good, is_causal=True)
    with pytest.raises(error, match=words):
        append_and_attend(cache, **{**good, **change})
    assert append_and_attend(cache, **good)[0].shape == (1, 2, 1, 4)


def test_a_negative_length_is_refused_where_it_is_seen(library):
    if library.like("jax") or library.needs_gpu:
        pytest.skip("lengths are read in host memory alone, and not from arrays that may be traced")
    cache, rows = empty(library, "static"), [library.array(a[:, :, :1]) for a in (KEY, VALUE)]
    cache = cache._replace(lengths=cache.lengths - 2)
    with pytest.raises(ValueError, match="must not be negative"):
        append(cache, *rows)
    with pytest.raises(ValueError, match="must not be negative"):
        attend(cache, library.array(QUERY[:, :, :1]))


def test_a_dense_cache_has_no_more_positions_than_keys(library):
    if library.like("jax") or library.needs_gpu:
        pytest.skip("lengths are read in host memory alone, and not from arrays that may be traced")
    cache = append(empty(library, "dense"), *(library.array(a[:, :, :3]) for a in (KEY, VALUE)))
    found = to_numpy(attend(cache._replace(lengths=cache.lengths + 2), library.array(QUERY[:, :, :1])))
    assert np.isnan(found).all()
