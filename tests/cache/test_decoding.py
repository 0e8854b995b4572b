"""Decoding with a cache gives what one causal call gives."""

import numpy as np
import pytest

from attention_xp.biases import AlibiBias
from attention_xp.cache import append, append_and_attend, attend, lengths
from attention_xp.masks import CausalMask, SegmentMask
from tests import reference
from tests._backends import to_numpy
from tests._inputs import normal
from tests.cache._decoding import (
    DV,
    HKV,
    KEY,
    KINDS,
    QUERY,
    ROLLING,
    ROWS,
    STEPS,
    TOTALS,
    VALUE,
    B,
    D,
    H,
    decode,
    empty,
    expected,
    rows_of,
)

SLOPES = np.asarray([0.5, 0.25, 0.125, 0.0625])
DISTANCES = -np.abs(np.arange(ROWS)[:, None] - np.arange(ROWS))[None, None]


def window(kind):
    """The window that a cache of a kind has by itself."""
    return (ROLLING - 1, 0) if kind == "rolling" else (None, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_ragged_steps_equal_one_call(library, kind):
    found, cache = decode(library, empty(library, kind), is_causal=True)
    np.testing.assert_allclose(found, expected(window=window(kind)), atol=2e-6)
    np.testing.assert_array_equal(to_numpy(lengths(cache)), TOTALS)


@pytest.mark.parametrize("window", [(5, 0), (ROLLING - 1, 2), (0, 0)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_single_rows_attend_their_windows(library, kind, window):
    """Items that are equally long: what their windows leave is known without a look at positions."""
    make, cache = library.array, empty(library, kind)
    whole = reference.attention(QUERY, KEY, VALUE, is_causal=True, window=window).output
    for i in range(ROWS):
        rows = [make(a[:, :, i : i + 1]) for a in (QUERY, KEY, VALUE)]
        output, cache = append_and_attend(cache, *rows, is_causal=i % 2 == 0, window=window)
        np.testing.assert_allclose(to_numpy(output), whole[:, :, i : i + 1], atol=2e-6)
        if i in (3, ROWS - 1):
            np.testing.assert_allclose(to_numpy(attend(cache, rows[0], window=window)), to_numpy(output), atol=1e-6)
    if kind != "rolling":
        earlier = attend(cache, make(QUERY[:, :, 7:8]), window=window, query_offset=7, is_causal=True)
        np.testing.assert_allclose(to_numpy(earlier), whole[:, :, 7:8], atol=2e-6)


@pytest.mark.parametrize("kind", ["rolling", "paged"])
def test_alibi_and_windows_go_by_position(library, kind):
    bias = AlibiBias(library.array(SLOPES))
    found, _ = decode(library, empty(library, kind), window=(5, 0), bias=bias)
    whole = expected(window=(5, 0), bias=SLOPES[None, :, None, None] * DISTANCES)
    np.testing.assert_allclose(found, whole, atol=1e-6)


@pytest.mark.parametrize("kind", ["static", "rolling", "paged"])
def test_array_masks_and_biases_go_by_position(library, kind):
    keep, bias = normal(B, 1, ROWS, ROWS, seed=5) > -0.8, normal(1, H, ROWS, ROWS, seed=6)
    cache, found, starts = empty(library, kind), np.full((B, H, ROWS, DV), np.nan), np.zeros(B, int)
    for n, counts in STEPS:
        rows = [library.array(np.nan_to_num(rows_of(a, starts, n))) for a in (QUERY, KEY, VALUE)]
        mine, added = (
            np.nan_to_num(rows_of(np.broadcast_to(a, (B, *a.shape[1:])).astype(float), starts, n)) for a in (keep, bias)
        )
        given = {"bias": library.array(added), "is_causal": True, "lengths": library.array(np.asarray(counts))}
        output, cache = append_and_attend(cache, *rows, library.array(mine > 0.0), **given)
        for b, count in enumerate(counts):
            found[b, :, starts[b] : starts[b] + count] = to_numpy(output)[b, :, :count]
        starts += counts
    np.testing.assert_allclose(found, expected(keep, bias, window=window(kind)), atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_last_positions_unless_told_otherwise(library, kind):
    _, cache = decode(library, empty(library, kind), is_causal=True)
    query = library.array(rows_of(QUERY, TOTALS - 2, 2))
    output = to_numpy(attend(cache, query, is_causal=True, window=(3, None)))
    whole = expected(window=(3, 0))
    np.testing.assert_allclose(output, rows_of(whole, TOTALS - 2, 2), atol=2e-6)
    same = attend(cache, query, is_causal=True, window=(3, 0), query_offset=library.array(TOTALS - 2))
    np.testing.assert_array_equal(to_numpy(same), output)
    short = attend(cache, query, is_causal=True, window=(3, 0), key_lengths=library.array(TOTALS - 1))
    np.testing.assert_allclose(to_numpy(short)[:, :, 0], output[:, :, 0], atol=2e-6)
    assert np.abs(to_numpy(short)[:, :, 1] - output[:, :, 1]).max() > 1e-2


@pytest.mark.parametrize("kind", ["static", "rolling", "paged"])
def test_rules_with_an_array_look_it_up_at_positions(library, kind):
    words = np.repeat(np.arange(4), 5)[None, :ROWS].repeat(B, axis=0)
    mask = CausalMask() & SegmentMask(library.array(words))
    found, _ = decode(library, empty(library, kind), mask=mask)
    whole = expected((words[:, :, None] == words[:, None, :])[:, None], window=window(kind))
    np.testing.assert_allclose(found, whole, atol=2e-6)


def test_sinks_and_padding_rows_of_pages(library):
    sinks = normal(H, seed=7)
    found, _ = decode(library, empty(library, "paged"), is_causal=True, sinks=library.array(sinks))
    np.testing.assert_allclose(found, expected(window=(None, 0), sinks=sinks), atol=2e-6)


@pytest.mark.backends("torch", "numpy", "cupy")
@pytest.mark.parametrize("kind", ["rolling", "paged"])
def test_half_precision_is_rounded_once(library, kind):
    cache, rows = empty(library, kind, dtype="float16"), [library.array(a, "float16") for a in (QUERY, KEY, VALUE)]
    output, _ = append_and_attend(cache, *rows, is_causal=True)
    whole = [to_numpy(a).astype(np.float64) for a in rows]
    exact = reference.attention(*whole, is_causal=True, window=window(kind)).output
    np.testing.assert_allclose(to_numpy(output), exact, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_cache_gives_zeros(library, kind):
    cache = empty(library, kind)
    query = library.array(normal(B, H, 1, D))
    assert not to_numpy(attend(cache, query)).any()
    nothing = [library.array(np.ones((B, HKV, 0, width))) for width in (D, DV)]
    assert not to_numpy(lengths(append(cache, *nothing))).any()
