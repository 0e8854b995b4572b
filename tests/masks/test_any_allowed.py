"""Whether anything is allowed in a rectangle: exactly for ints, cautiously for arrays."""

import numpy as np
import pytest

from attention_xp.masks import (
    ArrayMask,
    BlockMask,
    CausalMask,
    FunctionMask,
    LengthMask,
    SegmentMask,
    WindowMask,
    _drawing,
)
from tests._backends import to_numpy
from tests._quick import some_rare
from tests.masks._cases import ALIKE, CASES, EXACT

RANGES = [(0, 1), (0, 4), (3, 5), (5, 12), (2, 2), (4, 3)]
OFFSETS = [(0, 0), (5, 2), (-3, 6)]


def table_of(case):
    """What a case allows in any item, by positions from -10 on."""
    positions = range(-10, 30)
    return case.table(*(case.lead or (1, 1)), positions, positions).any(axis=(0, 1))


def inside(table, rows, keys, offsets):
    """Whether anything is allowed in a rectangle of a table."""
    (a, b), (c, d) = (
        (start + o + 10, max(stop, start) + o + 10) for (start, stop), o in zip((rows, keys), offsets, strict=True)
    )
    return bool(table[a:b, c:d].any())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_exact_for_ints(make, case):
    mask, table = case.build(make), table_of(case)
    for q, k in OFFSETS:
        for rows in RANGES:
            for keys in RANGES:
                found = mask.any_allowed(rows, keys, query_offset=q, key_offset=k)
                assert found is inside(table, rows, keys, (q, k))


@pytest.mark.parametrize("name", some_rare({n: n for n in CASES}, ALIKE.__contains__))
def test_cautious_for_arrays(library, make, name):
    mask, table = CASES[name].build(make), table_of(CASES[name])
    rows, keys = ([r for r in RANGES for _ in RANGES], RANGES * len(RANGES))
    q, k = OFFSETS[1]
    bounds = [[make(np.asarray(ends)) for ends in zip(*pairs, strict=True)] for pairs in (rows, keys)]
    found = mask.any_allowed(*bounds, query_offset=make(np.asarray(q)), key_offset=k)
    expected = np.asarray([inside(table, *pair, (q, k)) for pair in zip(rows, keys, strict=True)])
    assert not np.any(~to_numpy(found) & expected)
    assert not np.any(to_numpy(found)[[start >= stop for start, stop in rows]])
    if name in EXACT and not CASES[name].lead:
        np.testing.assert_array_equal(to_numpy(found), expected)


@pytest.mark.backends("jax")
def test_bounds_may_be_traced():
    jax = pytest.importorskip("jax")
    mask = CausalMask() & WindowMask(3, None) & SegmentMask(np.arange(64) // 16)
    told = jax.jit(lambda i, j: mask.any_allowed((8 * i, 8 * i + 8), (j, j + 8)))
    for i, j in ((2, 0), (2, 8), (2, 16), (3, 16), (1, 16)):
        assert bool(told(i, j)) is mask.any_allowed((8 * i, 8 * i + 8), (j, j + 8))


def test_blocks_are_looked_into(monkeypatch):
    monkeypatch.setattr(_drawing, "_BLOCK", 16)
    one = FunctionMask(lambda b, h, q, k: (q == 70) & (k == 90), heads=2)
    assert one.any_allowed((40, 71), (3, 91)) is True
    assert one.any_allowed((40, 70), (3, 91)) is False
    assert one.any_allowed((0, 1), (20, 21), query_offset=70, key_offset=70) is True


def test_a_function_whose_items_are_not_announced_may_allow_anything():
    of_the_second = FunctionMask(lambda b, h, q, k: (b == 1) & (q >= k))
    assert of_the_second.any_allowed((0, 4), (0, 4)) is True
    assert (of_the_second & CausalMask()).any_allowed((0, 4), (4, 8)) is False
    assert FunctionMask(of_the_second.mask_mod, batch=1, heads=2).any_allowed((0, 4), (0, 4)) is False


def test_an_array_is_of_rows_and_columns():
    array = np.zeros((6, 6), bool)
    array[4, 5] = True
    mask = ArrayMask(array)
    assert mask.any_allowed((4, 6), (5, 6), query_offset=20, key_offset=7) is True
    assert (mask & CausalMask()).any_allowed((4, 6), (5, 6), key_offset=7) is False


def test_long_ranges_are_not_looked_at_pair_by_pair():
    S = 2**28
    assert not (CausalMask() & WindowMask(255, 0)).any_allowed((S // 2, S // 2 + 1024), (0, S // 2 - 255))
    assert LengthMask(7).any_allowed((0, 4096), (6, 2**20))
    assert not BlockMask(np.eye(64, dtype=bool), 1024).any_allowed((0, 2048), (4096, 2**16))


@pytest.mark.parametrize(
    ("error", "text", "change"),
    [
        (TypeError, r"rows must be a pair \(start, stop\), got int", {"rows": 3}),
        (ValueError, r"keys must be a pair \(start, stop\), got 3 numbers", {"keys": (1, 2, 3)}),
        (ValueError, "keys must lie between 0", {"keys": (-1, 2)}),
        (TypeError, "rows must be an int, got float", {"rows": (0, 2.5)}),
        (TypeError, "query_offset must be ints or integer arrays, got float64", {"query_offset": np.asarray(0.5)}),
    ],
)
def test_wrong_calls(error, text, change):
    with pytest.raises(error, match=text):
        CausalMask().any_allowed(**{"rows": (0, 1), "keys": (0, 1)} | change)
