"""Products with pages, whatever their order in the pool, are those of the keys in the order of the items."""

import numpy as np
import pytest

from attention_xp._engine.walkers.numpy import few_rows, page_pieces, pages
from tests._inputs import normal

SIZE, WIDTH, MOST = 4, 6, 12
RNG = np.random.default_rng(0)
TABLES = {
    "one behind the other": np.arange(24).reshape(2, 12),
    "in turns": np.arange(24).reshape(12, 2).T,
    "backwards": np.arange(23, -1, -1).reshape(2, 12),
    "in two stretches": np.asarray([[*range(5), *range(30, 37)], [*range(40, 18, -2), 7]]),
    "one page throughout": np.full((2, 12), 3),
    "at random": np.stack([RNG.permutation(48)[:12] for _ in range(2)]),
}
RUNS = {"one behind the other": 2, "in turns": 2, "backwards": 2, "in two stretches": 4, "one page throughout": 2}


def in_order(pool, table, lengths):
    """(B, Hkv, Sk, WIDTH), zeros behind the end of an item."""
    whole = np.zeros((len(table), pool.shape[1], max(lengths), WIDTH))
    for b, length in enumerate(lengths):
        for i in range(length):
            whole[b, :, i] = pool[table[b, i // SIZE], :, i % SIZE]
    return whole


@pytest.mark.parametrize("layout", ["by pages", "by heads", "by heads, copied"])
@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("lengths", [[48, 48], [47, 13], [4, 30], [0, 5]], ids=str)
@pytest.mark.parametrize("order", TABLES)
def test_products_with_pages(order, lengths, m, threads, layout, monkeypatch):
    monkeypatch.setattr(page_pieces, "_PIECE", 5 * SIZE * WIDTH)
    monkeypatch.setattr(few_rows, "has_small_kernels", lambda: True)
    monkeypatch.setattr(few_rows, "_MOST_KEYS", 16)
    if threads:
        monkeypatch.setattr(pages, "_MANY", 1)
    table, pool = (
        TABLES[order].copy(),
        normal(50, 2, SIZE, WIDTH).astype("float32" if "copied" in layout else "float64"),
    )
    if "by heads" in layout:
        pool = np.ascontiguousarray(pool.swapaxes(0, 1)).swapaxes(0, 1)
    for b, length in enumerate(lengths):
        table[b, -(-length // SIZE) :] = 99  # entries that no length reaches may be anything
    given = table[:, : -(-max(lengths) // SIZE)]
    keys, values = pages.Pages.of(pool, pool, given, lengths, np.dtype("float64"), rows=m)
    whole, rows, weights = in_order(pool, table, lengths), normal(2, 2, m, WIDTH), normal(2, 2, m, max(lengths))
    is_there = np.arange(max(lengths)) < np.asarray(lengths)[:, None, None, None]
    weights = np.where(is_there, weights, 0.0)
    scores = np.where(is_there, keys.scores(rows), 0.0)
    np.testing.assert_allclose(scores, rows @ whole.swapaxes(-1, -2), atol=1e-12)
    np.testing.assert_allclose(values.outputs(weights), weights @ whole, atol=1e-12)
    np.testing.assert_array_equal(values.gathered(), whole)


@pytest.mark.parametrize("order", TABLES)
def test_pages_at_equal_distances_are_read_as_one(order):
    pieces = page_pieces.cut(TABLES[order], [48, 48], SIZE, SIZE * WIDTH, by_heads=False, at_once=True)
    assert pieces.are_scattered == (order not in RUNS)
    if order in RUNS:
        assert len(pieces.all) == RUNS[order]
        assert all(isinstance(piece.pages, slice) for piece in pieces.all) == (order != "one page throughout")


def test_neighbours_whose_heads_lie_together_are_read_by_one_product():
    table = TABLES["one behind the other"]
    pieces = page_pieces.cut(table, [48, 13], SIZE, SIZE * WIDTH, by_heads=True, at_once=True)
    assert [(piece.count, piece.keys) for piece in pieces.all] == [(12, 48), (4, 13)]


def test_what_is_read_as_one_lies_where_it_lay():
    """No gathered copy: what is written into the pool afterwards shows in the products."""
    pool = np.zeros((2, 50, SIZE, WIDTH)).swapaxes(0, 1)
    keys, _ = pages.Pages.of(pool, pool, TABLES["one behind the other"], [48, 48], pool.dtype, rows=1)
    pool[...] = 1.0
    np.testing.assert_array_equal(keys.scores(np.ones((2, 2, 1, WIDTH))), np.full((2, 2, 1, 48), WIDTH))
