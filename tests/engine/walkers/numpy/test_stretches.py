"""The tiles of a block of rows as tables of numbers."""

import ctypes

import numpy as np
import pytest

from attention_xp._engine.plan.tile_sizes import TileShape
from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.walkers.numpy.place import Place
from attention_xp._engine.walkers.numpy.route import Route
from attention_xp._engine.walkers.numpy.stretches import StretchesOf
from attention_xp._scores.region import Region
from attention_xp.biases import AlibiBias

B, H, Sq, Sk, ROWS = 2, 4, 200, 300, 100


def stretches(mask=None, rows=(100, 200), place=Place((1, 0), H), **options):  # noqa: B008  # a tuple
    """Those of some rows of the heads of an item, and what makes them."""
    query, key = np.zeros((B, H, Sq, 8), np.float32), np.zeros((B, H, Sk, 8), np.float32)
    problem = Problem.of(query, key, key, mask, 0.0, {"query_offset": 0, **options, "impl": "tiled"})
    shape = TileShape(H, ROWS, Sk, folded=False)
    made = StretchesOf(problem, Route(problem, shape, widest=Sk, together=0))
    region = Region(problem, (*place.starts, rows[0], 0), (*place.sizes, rows[1] - rows[0], Sk))
    return made.of(region, place, rows), lambda: made.of(region, place, rows)


def allowed_by(table, heads=1, m=ROWS):
    """Read the flags of a table as the loops do, (heads, m, Sk), and check that no pair stands in it twice."""
    flags = np.zeros((heads, m, Sk), np.int64)
    for first, last, left, right, address, of_row, of_head in table.tolist():
        assert 0 <= first < last <= m
        assert 0 <= left < right <= Sk
        for g in range(heads):
            for row in range(first, last):
                at = address + g * of_head + (row - first) * of_row
                some = np.frombuffer(ctypes.string_at(at, right - left), np.uint8) if address else 1
                flags[g, row, left:right] += 1 + some  # 1: visited, 2: allowed
    assert flags.max(initial=0) <= 2
    return flags == 2


ROW, COLUMN = np.arange(100, 200)[:, None], np.arange(Sk)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, COLUMN >= 0),
        ({"is_causal": True}, COLUMN <= ROW),
        ({"is_causal": True, "query_offset": -150}, COLUMN <= ROW - 150),
        ({"window": (20, 5)}, (COLUMN >= ROW - 20) & (COLUMN <= ROW + 5)),
        ({"key_lengths": np.asarray([0, 130])}, COLUMN < 130),
        ({"query_lengths": np.asarray([0, 130])}, ROW < 130),
    ],
    ids=str,
)
def test_a_table_tells_which_pairs_are_allowed(options, expected):
    found, _ = stretches(**options)
    np.testing.assert_array_equal(allowed_by(found.table)[0], np.broadcast_to(expected, (ROWS, Sk)))


def test_keys_that_all_rows_attend_have_no_flags_and_others_are_left_out():
    assert stretches()[0].table.tolist() == [[0, ROWS, 0, Sk, 0, 0, 0]]
    table = stretches(is_causal=True)[0].table
    assert table[:, 3].max() == 200
    assert sum(row[3] - row[2] for row in table.tolist() if row[4] == 0) == 100


@pytest.mark.parametrize("axes", ["bhqk", "bhk", "hqk", "bqk", "bq", "bk", "hk", "qk", "q", "k"])
def test_a_mask_is_read_along_the_axes_that_it_has(axes):
    shape = tuple(n if axis in axes else 1 for axis, n in zip("bhqk", (B, H, Sq, Sk), strict=True))
    mask = np.random.default_rng(0).random(shape) < 0.5
    whole = np.broadcast_to(mask, (B, H, Sq, Sk))
    one_by_one = (Place((1, h), 1) for h in range(H))
    places = one_by_one if "h" in axes else [Place((1, 0), H)]
    for place in places:
        at = slice(place.starts[1], place.starts[1] + place.heads)
        found, _ = stretches(mask, place=place)
        np.testing.assert_array_equal(allowed_by(found.table, place.heads), whole[1, at, 100:])


@pytest.mark.parametrize("axes", ["bhqk", "bhk", "hqk", "bqk", "hq", "h", "b", "q", "k", ""])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_added_is_read_along_the_axes_that_it_has(axes, dtype):
    shape = tuple(n if axis in axes else 1 for axis, n in zip("bhqk", (B, H, Sq, Sk), strict=True))
    bias = np.random.default_rng(0).standard_normal(shape).astype(dtype).T.copy().T  # in another order
    found, _ = stretches(bias=bias)
    ((address, of_head, of_row),) = found.addends.tolist()
    rows = [ctypes.string_at(address + g * of_head + i * of_row, Sk * 4) for g in range(H) for i in range(ROWS)]
    numbers = np.frombuffer(b"".join(rows), np.float32).reshape(H, ROWS, Sk)
    np.testing.assert_array_equal(numbers, np.broadcast_to(bias, (B, H, Sq, Sk))[1, :, 100:].astype(np.float32))


def test_a_mask_of_numbers_and_a_rule_are_added_in_turn():
    found, _ = stretches(np.zeros((Sq, Sk), np.float32), bias=AlibiBias(np.ones(H, np.float32)))
    assert found.addends.shape == (2, 3)


@pytest.mark.parametrize(
    ("mask", "options", "is_known"),
    [
        (None, {"is_causal": True}, True),
        (None, {"window": 30, "bias": np.zeros((Sq, 1), np.float32)}, True),
        (np.eye(Sq, Sk, dtype=bool), {}, False),
    ],
    ids=["causal", "bias", "mask"],
)
def test_what_is_the_same_for_all_heads_is_made_once(mask, options, is_known):
    first, again = stretches(mask, **options)
    assert (again().table is first.table) is is_known


@pytest.mark.parametrize(
    ("mask", "options"),
    [(np.ones((Sq, Sk), bool)[:, ::-1] & (np.arange(Sk) > 3), {}), (None, {"bias": np.zeros((Sk, Sq)).T})],
)
def test_each_array_to_which_an_address_points_is_held(mask, options):
    found, _ = stretches(mask, **options)
    addresses = {row[4] for row in found.table.tolist()} | {row[0] for row in found.addends.tolist()}
    assert addresses - {0} == {array.__array_interface__["data"][0] for array in found.held} != set()


@pytest.mark.parametrize("options", [{"is_causal": True}, {"window": (20, 5)}], ids=str)
def test_a_later_call_has_the_same_table_and_its_own_addends(options):
    first, _ = stretches(bias=np.ones((Sq, Sk), np.float32), **options)
    later, _ = stretches(bias=AlibiBias(np.ones(H, np.float32)), **options)
    assert later.table is first.table
    assert len(first.addends) == len(later.addends) == 1
    assert first.addends[0, 0] != later.addends[0, 0]


def test_flags_that_depend_on_more_than_positions_are_made_anew():
    masks = (np.random.default_rng(seed).random((Sq, Sk)) < 0.5 for seed in range(2))
    for mask in masks:
        found, _ = stretches(mask)
        np.testing.assert_array_equal(allowed_by(found.table)[0], mask[100:200])
