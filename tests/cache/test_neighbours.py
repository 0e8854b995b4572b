"""Where lengths are known, items get pages behind their own, so that what they hold lies in few stretches."""

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp.cache import PagedCache, append, append_and_attend, attend, free, reorder
from attention_xp.cache._neighbours import in_stretches
from tests._backends import to_numpy
from tests._inputs import normal


def stretches(row):
    """How many stretches of neighbours the pages of an item lie in."""
    return 1 + int(np.count_nonzero(np.diff(row[row >= 0]) != 1))


@pytest.mark.parametrize(
    ("used", "items", "expected"),
    [
        ([], [(-1, 3)], [0, 1, 2]),
        ([], [(-1, 4), (-1, 4)], [0, 1, 2, 3, 8, 9, 10, 11]),  # four pages are left to each
        ([], [(-1, 1), (-1, 0), (-1, 2), (-1, 1), (-1, 1)], [0, 4, 5, 8, 12]),  # who needs nothing has no place
        ([0, 1], [(1, 1), (-1, 2), (-1, 1)], [2, 6, 7, 10]),  # and room for the one before
        ([], [(-1, 1), (-1, 15)], [0, 1, *range(2, 16)]),  # no room for equal parts
        ([0, 1, 8, 9], [(1, 2), (9, 1)], [2, 3, 10]),
        ([0, 1, 2, 8], [(0, 2)], [11, 12]),  # the next one is taken: in the middle of 9 to 15
        ([*range(6), 8, *range(10, 16)], [(5, 3)], [6, 7, 9]),
        ([15], [(15, 1)], [0]),
    ],
)
def test_pages_follow_those_that_an_item_has(used, items, expected):
    rank = np.zeros(16, int)
    rank[used] = 2
    order = in_stretches(rank, items)
    assert order[: len(expected)].tolist() == expected
    assert sorted(order) == list(range(16))


def test_pages_that_were_written_come_last():
    rank = np.asarray([1, 1, 0, 0, 3, 2])
    assert in_stretches(rank, [(-1, 2)])[:2].tolist() == [2, 3]
    assert in_stretches(rank, [(-1, 3)])[:3].tolist() == [0, 1, 2]
    assert sorted(in_stretches(rank, [(-1, 5)])) == list(range(6))  # too many: who is left out is told by `append`


@pytest.mark.backends("numpy", "torch")
def test_items_that_grow_in_turns_keep_their_neighbours(library):
    make, where = library.array, {"xp": library.namespace(), "dtype": "float32", "device": library.device()}
    x = normal(4, 2, 100, 8).astype("float32")
    cache = append(PagedCache.empty(4, 2, 4 * 32, 8, page_size=4, **where), *[make(x[:, :, :60])] * 2)
    for i in range(60, 100):
        cache = append(cache, *[make(x[:, :, i : i + 1])] * 2)
    assert [stretches(row) for row in to_numpy(cache.block_table)] == [1] * 4
    beams = reorder(cache, make(np.asarray([1, 1, 1, 1])))
    for i in range(12):
        beams = append(beams, *[make(x[:, :, i : i + 1])] * 2)
    assert max(stretches(row) for row in to_numpy(beams.block_table)) <= 3
    assert np.unique(to_numpy(beams.block_table)[:, 25:28]).size == 4 * 3
    again = append(free(beams, make(np.asarray([True, False, True, False]))), *[make(x[:, :, :9])] * 2)
    assert max(stretches(row) for row in to_numpy(again.block_table)) <= 4


@pytest.mark.backends("numpy")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("Sq", [1, 9])
def test_pages_of_a_head_follow_each_other_in_numpys_memory(Sq, dtype):
    cache = PagedCache.empty(2, 3, 40, 8, page_size=4, value_width=6, dtype=dtype)
    key, value = normal(2, 3, 50, 8).astype(dtype), normal(2, 3, 50, 6, seed=1).astype(dtype)
    query = normal(2, 6, 50, 8, seed=2).astype(dtype)
    old = append(cache, key[:, :, :20], value[:, :, :20])
    for now in (old, append(old, key[:, :, 20:30], value[:, :, 20:30])):
        again = append(now, key[:, :, :10], value[:, :, :10])  # the second time, slots are written that others show
        for grown in (now, again):
            assert grown.key_pages.swapaxes(0, 1).flags.c_contiguous
            assert grown.value_pages.swapaxes(0, 1).flags.c_contiguous
    rest = [a[:, :, 20:] for a in (query, key, value)]
    _, grown = append_and_attend(old, *rest, is_causal=True)
    whole = flash_attention(query, key, value, is_causal=True)
    found = attend(grown, query[:, :, -Sq:], is_causal=True)
    np.testing.assert_allclose(found, whole[:, :, -Sq:], atol=2e-6 if dtype == "float32" else 2e-3)
