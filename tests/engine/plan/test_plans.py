"""The tiles of NumPy's walker: they visit what a mask allows, each pair once, and know where they need not ask."""

from collections.abc import Iterator

import numpy as np
import pytest

from attention_xp import flash_attention
from attention_xp._engine.plan.answers import Grid, Item
from attention_xp._engine.plan.plan import Tile, bounds
from attention_xp._engine.plan.plans import Plans
from attention_xp._scores.region import Region
from attention_xp._typing import Array
from attention_xp.masks import (
    BlockMask,
    CausalMask,
    GlobalMask,
    LengthMask,
    Mask,
    SegmentMask,
    StridedMask,
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
    longformer_mask(61, np.arange(LENGTH) // 9 == 40),
    longformer_mask(62, np.arange(LENGTH) < 450),
    sparse_transformer_mask(50, "fixed"),
    WindowMask(40, 10) & SegmentMask(np.arange(LENGTH) // 150),
    WindowMask(90, 33) & StridedMask(3),
    WindowMask(37, 5) & LengthMask(LENGTH - 130),
    WindowMask(5, 5) | WindowMask(100, 0) & StridedMask(4),
]


WHOLE = Grid(
    keys=LENGTH, rows=256, part=256, step=0, width=384, chunk=128, columns=384, widest=2048, may_skip=True, together=384
)
IN_BANDS = WHOLE._replace(part=64, step=16, chunk=64)


def _plans(mask: Mask, grid: Grid = WHOLE, **options: int | bool) -> Plans:
    return Plans((mask,), LENGTH, grid._replace(**options))


def _steps(tile: Tile) -> Iterator[Tile]:
    """Yield the steps of a tile, each as a tile of its own."""
    for i in range(tile.steps):
        by = i * tile.step
        rows = tile.rows[0] + by, tile.rows[0] + by + tile.step
        (start, end), *others = tile.columns
        columns = ((start + by, end + by), *others)
        yield Tile(rows, columns, (tile.mixed[0] + by, tile.mixed[1] + by), tile.rules)


@pytest.mark.parametrize("grid", [WHOLE, WHOLE._replace(may_skip=False), IN_BANDS], ids=["whole", "no gaps", "bands"])
@pytest.mark.parametrize("offset", [0, 60])
@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_tiles_visit_each_allowed_pair_once(mask: Mask, offset: int, grid: Grid) -> None:
    allowed = mask.to_array(LENGTH - offset, LENGTH, offset)
    visits, decided = np.zeros(allowed.shape, int), np.zeros(allowed.shape, bool)
    plans, here = Plans((mask,), LENGTH - offset, grid), HERE._replace(offset=offset)
    for block in bounds(0, LENGTH - offset, 256):
        for tile in plans.tiles(here, block):
            assert block[0] <= tile.rows[0] < tile.rows[1] <= block[1]
            keys = sum(end - start for start, end in tile.columns)
            assert (tile.rows[1] - tile.rows[0]) * keys <= 256 * 384
            for step in _steps(tile):
                _visit(step, offset, allowed, visits, decided)
    assert visits.max() <= 1
    assert np.all(visits[allowed] == 1)
    assert np.all(allowed[decided])


def _visit(tile: Tile, offset: int, allowed: Array, visits: Array, decided: Array) -> None:
    """Count what a tile visits, and note what no rule of it is asked about; where one is, all pairs are decided right."""
    for i, (start, end) in enumerate(tile.columns):
        visits[slice(*tile.rows), start:end] += 1
        decided[slice(*tile.rows), start:end] = True
        if tile.rules and i == 0:
            part = slice(*tile.mixed), slice(start, end)
            decided[part] = False
            told = np.all([rule.to_array(*allowed.shape, offset) for rule in tile.rules], axis=0)
            assert np.array_equal(told[part], allowed[part])


@pytest.mark.parametrize(
    ("mask", "visited"),
    [
        (WindowMask(100, 0), 116),
        (CausalMask() & WindowMask(33, 70), 49),
        (longformer_mask(60, np.arange(LENGTH) < 9), 136),
        (WindowMask(100, 20) & StridedMask(3), 136),
        (WindowMask(40, 3) & SegmentMask(np.arange(LENGTH) // 600), 59),
    ],
    ids=repr,
)
def test_rows_along_the_diagonal_are_met_in_steps(mask: Mask, visited: int) -> None:
    """Each step visits as many keys as the window is wide, and as many more as it has other rows; and those far away."""
    (band,) = _plans(mask, IN_BANDS).tiles(HERE, (256, 512))
    assert (band.rows, band.steps) == ((256, 512), 16)
    (start, end), *others = band.columns
    assert end - start == visited
    assert others == ([(0, 9)] if "Global" in repr(mask) else [])
    assert all(rule.shift_invariant for rule in band.rules)


def test_much_that_the_rows_of_a_band_see_far_away_has_tiles_of_its_own() -> None:
    mask = longformer_mask(60, np.arange(LENGTH) < 150)  # together with a window of 136 more than a tile has
    band, other = _plans(mask, IN_BANDS._replace(width=256)).tiles(HERE, (256, 512))
    assert (band.steps, len(band.columns)) == (16, 1)
    assert (other.rows, other.columns, other.steps) == ((256, 512), ((0, 150),), 1)


def test_there_is_no_band_of_a_rule_that_allows_more_far_away() -> None:
    """A window is looked for some thousand keys to either side: what may be allowed beyond is no part of it."""
    keys, at = 12000, Item(offset=11000, b=0, h=None)
    mask = CausalMask() & (WindowMask(40, 0) | StridedMask(5000))
    tiles = Plans((mask,), 256, IN_BANDS._replace(keys=keys)).tiles(at, (0, 256))
    allowed, visited = mask.to_array(256, keys, 11000), np.zeros((256, keys), bool)
    for tile in tiles:
        assert tile.steps == 1
        for stretch in tile.columns:
            visited[slice(*tile.rows), slice(*stretch)] = True
    assert np.all(visited[allowed])


@pytest.mark.parametrize(
    "mask",
    [
        CausalMask(),
        StridedMask(7),
        WindowMask(40, 3) & SegmentMask(np.arange(LENGTH) // 30),
        WindowMask(400, 0),  # wider than a tile
        _blocks(64),
    ],
    ids=repr,
)
def test_there_is_no_band_where_no_window_ends_or_another_rule_has_a_say(mask: Mask) -> None:
    assert all(tile.steps == 1 for tile in _plans(mask, IN_BANDS).tiles(HERE, (256, 512)))


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
    kept = Plans.of((mask, causal), LENGTH, WHOLE)
    assert Plans.of((mask, CausalMask()), LENGTH, WHOLE) is kept
    assert Plans.of((mask,), LENGTH, WHOLE) is not kept
    assert Plans.of((_blocks(128), causal), LENGTH, WHOLE) is not kept
    for columns in range(100, 110):
        Plans.of((mask,), LENGTH, WHOLE._replace(columns=columns))
    assert Plans.of((mask, causal), LENGTH, WHOLE) is not kept


def test_plans_are_not_kept_where_lengths_may_be_changed() -> None:
    mask = LengthMask(np.asarray([5, 9]))
    assert Plans.of((mask,), LENGTH, WHOLE) is not Plans.of((mask,), LENGTH, WHOLE)


def test_blocks_that_visit_much_come_first() -> None:
    layout = np.zeros((6, 6), bool)
    layout[2], layout[4, :3] = True, True
    order = _plans(BlockMask(layout, 128), rows=128, part=128).longest_first(HERE)
    assert order[:2] == [(256, 384), (512, 640)]


def test_under_a_causal_mask_the_last_block_comes_first() -> None:
    assert _plans(CausalMask()).longest_first(HERE) == [(512, 700), (256, 512), (0, 256)]


def test_a_narrow_window_is_met_as_one_tile() -> None:
    grid = {"rows": 64, "part": 64, "chunk": 64, "columns": 640, "together": 640}
    few = longformer_mask(60, np.arange(LENGTH) < 9)
    (tile,) = _plans(few, **grid).tiles(HERE, (256, 320))
    assert tile.columns == ((192, 384), (0, 9))
    assert tile.rules == (WindowMask(60, 60),)
    assert len(_plans(few, **grid | {"may_skip": False}).tiles(HERE, (256, 320))) > 1
    assert len(_plans(few, **grid | {"columns": 192, "together": 192}).tiles(HERE, (256, 320))) > 1


def test_global_positions_beside_a_window_are_not_held_against_it() -> None:
    beside = longformer_mask(60, np.arange(LENGTH) // 64 == 2)
    allowed, visited = beside.to_array(LENGTH, LENGTH), np.zeros(LENGTH, bool)
    for tile in _plans(beside, rows=64, part=64, chunk=64, columns=640, together=640).tiles(HERE, (256, 320)):
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


def test_plans_of_positions_are_kept_for_other_calls() -> None:
    assert Plans.of((WindowMask(40, 3),), LENGTH, IN_BANDS) is Plans.of((WindowMask(40, 3),), LENGTH, IN_BANDS)
    assert Plans.of((WindowMask(40, 4),), LENGTH, IN_BANDS) is not Plans.of((WindowMask(40, 3),), LENGTH, IN_BANDS)


def test_what_is_kept_does_not_grow_with_the_tokens_that_are_generated() -> None:
    plans, sizes = Plans((_blocks(64),), 1, WHOLE._replace(rows=1, part=1)), []
    for offset in range(LENGTH):
        at = HERE._replace(offset=offset)
        assert plans.tiles(at, (0, 1)) == plans.tiles(at, (0, 1))
        plans.longest_first(at)
        sizes.append(max(map(len, (plans._tiles, plans._answers, plans._order))))
    assert 1 < max(sizes) < LENGTH / 2


def test_masks_of_your_own_are_told_apart_by_all_that_they_hold() -> None:
    class Near(Mask):
        shift_invariant = True

        def __init__(self, size: int, far: list[int]) -> None:
            self._size, self._far = size, far

        def allowed(self, region: Region) -> Array:
            distance = abs(region.q_idx - region.kv_idx)
            return (distance < self._size) | np.isin(distance, self._far)

    x = np.random.default_rng(0).standard_normal((300, 8))
    for mask in (Near(3, []), Near(200, []), Near(3, [100])):
        tiled, dense = (flash_attention(x, x, x, mask, impl=impl) for impl in ("tiled", "dense"))
        np.testing.assert_allclose(tiled, dense, rtol=1e-9, atol=1e-12)


def test_what_is_made_of_tiles_is_kept_while_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags of pairs grow with queries times keys, and are kept for many offsets."""
    monkeypatch.setattr("attention_xp._engine.plan.plans._MOST_MADE", 100)
    plans, shared = _plans(CausalMask()), np.zeros(60, np.uint8)
    at = [HERE._replace(offset=offset) for offset in range(4)]
    some = [[shared[:], np.zeros(20, np.uint8)], [shared[:], np.zeros(20, np.uint8)], [np.zeros(20, np.uint8)]]
    kept = []
    for item, arrays in zip(at, [*some, [np.zeros(101, np.uint8)]], strict=True):
        plans.keep(item, (0, 8), arrays, arrays)
        kept.append([of.offset for of, _ in plans.made])
    assert kept == [[0], [0, 1], [2], [2]]  # a view counts once; what is too large alone is not kept
