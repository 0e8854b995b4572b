"""The tiles of NumPy's walker: they visit what a mask allows, each pair once, and know where they need not ask."""

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp._engine.planning.answers import Grid, Item
from attention_xp._engine.planning.plan import bounds
from attention_xp._engine.planning.plans import Plans
from attention_xp.masks import (
    BlockMask,
    CausalMask,
    GlobalMask,
    LengthMask,
    Mask,
    SegmentMask,
    WindowMask,
    longformer_mask,
    sparse_transformer_mask,
)

LENGTH = 700
HERE = Item(offset=0, b=0, h=None)


def _blocks(size: int) -> BlockMask:
    count = -(-LENGTH // size)
    return BlockMask(np.random.default_rng(0).random((count, count)) < 0.3, size)


MASKS = [
    CausalMask(),
    CausalMask() & WindowMask(100, 0),
    _blocks(128),
    _blocks(48),
    _blocks(64) & CausalMask(),
    GlobalMask(np.arange(LENGTH) % 97 == 5),
    SegmentMask(np.arange(LENGTH) // 150),
    longformer_mask(60, np.arange(LENGTH) < 9),
    sparse_transformer_mask(50, "fixed"),
]


def _plans(mask: Mask, **options: int | bool) -> Plans:
    grid = Grid(
        **{"keys": LENGTH, "rows": 256, "chunk": 128, "columns": 384, "widest": 2048, "may_skip": True} | options
    )
    return Plans((mask,), LENGTH, grid)


@pytest.mark.parametrize("may_skip", [True, False])
@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_tiles_visit_each_allowed_pair_once(mask: Mask, may_skip: bool) -> None:
    allowed = mask.to_array(LENGTH, LENGTH)
    visits, decided = np.zeros((LENGTH, LENGTH), int), np.zeros((LENGTH, LENGTH), bool)
    plans = _plans(mask, may_skip=may_skip)
    for block in bounds(0, LENGTH, 256):
        for tile in plans.tiles(HERE, block):
            assert block[0] <= tile.rows[0] < tile.rows[1] <= block[1]
            keys = sum(end - start for start, end in tile.columns)
            assert (tile.rows[1] - tile.rows[0]) * keys <= 256 * 384
            for i, (start, end) in enumerate(tile.columns):
                visits[slice(*tile.rows), start:end] += 1
                decided[slice(*tile.rows), start:end] = True
                if tile.rules and i == 0:
                    part = slice(*tile.mixed), slice(start, end)
                    decided[part] = False
                    told = np.all([rule.to_array(LENGTH, LENGTH) for rule in tile.rules], axis=0)
                    assert np.array_equal(told[part], allowed[part])
    assert visits.max() <= 1
    assert np.all(visits[allowed] == 1)
    assert np.all(allowed[decided])


def test_tiles_are_cut_where_blocks_and_global_positions_begin() -> None:
    assert not any(tile.rules for block in bounds(0, LENGTH, 256) for tile in _plans(_blocks(48)).tiles(HERE, block))
    few = longformer_mask(60, np.arange(LENGTH) < 9)
    tiles = _plans(few).tiles(HERE, (0, 256))
    assert [tile.columns for tile in tiles if tile.rows == (0, 9)] == [((256, 700),)]


def test_only_the_part_of_a_union_that_is_undecided_is_evaluated() -> None:
    few = longformer_mask(60, np.arange(LENGTH) < 9)
    rules = [tile.rules for tile in _plans(few).tiles(HERE, (256, 512)) if tile.rules]
    assert rules
    assert all(isinstance(rule, WindowMask) for some in rules for rule in some)


def test_too_many_seams_are_left_aside() -> None:
    every_other = GlobalMask(np.arange(LENGTH) % 2 == 0)
    starts = {tile.columns[0][0] for tile in _plans(every_other).tiles(HERE, (0, 256))}
    assert all(start % 128 == 0 for start in starts)


def test_a_mask_keeps_its_plans_for_a_few_sizes() -> None:
    mask, causal = _blocks(128), CausalMask()
    grid = Grid(keys=LENGTH, rows=256, chunk=128, columns=384, widest=2048, may_skip=True)
    kept = Plans.of((mask, causal), LENGTH, grid)
    assert Plans.of((mask, CausalMask()), LENGTH, grid) is kept
    assert Plans.of((mask,), LENGTH, grid) is not kept
    assert Plans.of((_blocks(128), causal), LENGTH, grid) is not kept
    for columns in range(100, 110):
        Plans.of((mask,), LENGTH, grid._replace(columns=columns))
    assert Plans.of((mask, causal), LENGTH, grid) is not kept


def test_plans_are_not_kept_where_lengths_may_be_changed() -> None:
    mask = LengthMask(np.asarray([5, 9]))
    grid = Grid(keys=LENGTH, rows=256, chunk=128, columns=384, widest=2048, may_skip=True)
    assert Plans.of((mask,), LENGTH, grid) is not Plans.of((mask,), LENGTH, grid)


def test_blocks_that_visit_much_come_first() -> None:
    layout = np.zeros((6, 6), bool)
    layout[2], layout[4, :3] = True, True
    order = _plans(BlockMask(layout, 128), rows=128).longest_first(HERE)
    assert order[:2] == [(256, 384), (512, 640)]


def test_under_a_causal_mask_the_last_block_comes_first() -> None:
    assert _plans(CausalMask()).longest_first(HERE) == [(512, 700), (256, 512), (0, 256)]


def test_a_narrow_window_is_met_as_one_tile() -> None:
    grid = {"rows": 64, "chunk": 64, "columns": 640}
    few = longformer_mask(60, np.arange(LENGTH) < 9)
    (tile,) = _plans(few, **grid).tiles(HERE, (256, 320))
    assert tile.columns == ((192, 384), (0, 9))
    assert tile.rules == (WindowMask(60, 60),)
    assert len(_plans(few, **grid | {"may_skip": False}).tiles(HERE, (256, 320))) > 1
    assert len(_plans(few, **grid | {"columns": 192}).tiles(HERE, (256, 320))) > 1


def test_global_positions_beside_a_window_are_not_held_against_it() -> None:
    beside = longformer_mask(60, np.arange(LENGTH) // 64 == 2)
    allowed, visited = beside.to_array(LENGTH, LENGTH), np.zeros(LENGTH, bool)
    for tile in _plans(beside, rows=64, chunk=64, columns=640).tiles(HERE, (256, 320)):
        for i, stretch in enumerate(tile.columns):
            visited[slice(*stretch)] = True
            rules = tile.rules if i == 0 else ()
            told = np.all([rule.to_array(LENGTH, LENGTH) for rule in rules], axis=0) if rules else np.True_
            part = slice(*tile.rows), slice(*stretch)
            assert np.array_equal(np.broadcast_to(told, (LENGTH, LENGTH))[part], allowed[part])
    assert np.array_equal(visited, visited | allowed[256:320].any(axis=0))


def test_the_triangles_of_one_call_do_not_serve_another_offset() -> None:
    query = np.random.default_rng(0).standard_normal((1, 300, 8))
    for offset in (0, 7, 0, 150):
        for mask in (CausalMask(), WindowMask(40, 3), WindowMask(41, 3)):
            tiled, dense = (
                flash_attention(query, query, query, mask, query_offset=offset, impl=impl)
                for impl in ("tiled", "dense")
            )
            np.testing.assert_allclose(tiled, dense, rtol=1e-10, atol=1e-12)
