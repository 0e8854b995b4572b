"""The tiles that each block of rows visits on NumPy: rules are asked about many blocks together, and plans are kept."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from attention_xp._engine.plan.answers import Answers, Grid, Item, answers_about, span_of
from attention_xp._engine.plan.bands import Band, band_of
from attention_xp._engine.plan.plan import Bounds, Tile, bounds, plan, touching
from attention_xp._scores.identity import identity
from attention_xp.masks import BlockMask, GlobalMask, Mask, SegmentMask
from attention_xp.masks._look_up import kept_by
from attention_xp.masks._pairs import parts_of

__all__ = ["Plans"]

_ASKED = 2**18  # rectangles that rules are asked about together
_FIXED = BlockMask, GlobalMask, SegmentMask  # rules with arrays whose summaries are made once and kept
_KEPT_BY_A_MASK = 4  # plans, one for each size
_MOST_PLANS = 64  # for rules without arrays, which many calls share
# Bytes of arrays that walkers make of the tiles of a plan: flags of pairs grow with queries times keys.
_MOST_MADE = 2**21
_MOST_OFFSETS = 256  # of the queries, which grow from call to call while tokens are generated

_PLANS: dict[object, "Plans"] = {}  # by the identity of the rules, whose own equality may be coarser


class Plans:
    """The tiles of all blocks of rows of one call, planned when they are first asked for.

    Where rules depend on the difference of positions alone, plans serve other calls as well. The plans of a mask that holds
    arrays are kept with that mask, as are the summaries of its arrays.
    """

    @classmethod
    def of(cls, rules: tuple[Mask, ...], rows: int, grid: Grid) -> "Plans":
        """Return the plans for some rules, which may be those of an earlier call."""
        holders = [rule for rule in rules if not rule.shift_invariant]
        if len(holders) == 0:
            kept, most = _PLANS, _MOST_PLANS
        elif len(holders) == 1 and all(isinstance(leaf, _FIXED) or leaf.shift_invariant for leaf in _leaves(*holders)):
            kept, most = kept_by(holders[0]).setdefault("plans", {}), _KEPT_BY_A_MASK
        else:
            return cls(rules, rows, grid)
        name = identity(rules), rows, grid
        known = kept.get(name)
        if known is not None:
            return known
        if len(kept) >= most:
            kept.clear()
        return kept.setdefault(name, cls(rules, rows, grid))

    def __init__(self, rules: tuple[Mask, ...], rows: int, grid: Grid) -> None:
        self.rules, self.grid = rules, grid
        self._blocks = bounds(0, rows, grid.rows)
        self._is_of_positions = all(rule.shift_invariant for rule in rules)
        self._answers: dict[tuple[Item, int], Answers] = {}
        self._tiles: dict[tuple[Item, Bounds], list[Tile]] = {}
        self._order: dict[Item, list[Bounds]] = {}
        self.made: dict[tuple[Item, Bounds], Any] = {}  # what a walker made of the tiles of a block, for later calls
        self._held: set[int] = set()  # addresses of the arrays that it holds
        self._bytes = 0  # of these
        self._offsets: set[int] = set()

    def tiles(self, item: Item, rows: Bounds) -> list[Tile]:
        """Return the tiles of a block that are not empty."""
        known = self._tiles.get((item, rows))
        if known is None:
            self._make_room(item)
            known = self._tiles[item, rows] = self._planned(item, rows)
        return known

    def keep(self, item: Item, rows: Bounds, made: Any, arrays: Iterable[np.ndarray[Any, Any]]) -> None:
        """Keep what a walker made of the tiles of a block, and the arrays that it holds, while all of them are small."""
        sizes = {array.__array_interface__["data"][0]: array.nbytes for array in arrays}
        if sum(sizes.values()) > _MOST_MADE:
            return
        if self._bytes + self._size_of_others(sizes) > _MOST_MADE:
            self._forget_made()
        self._bytes += self._size_of_others(sizes)
        self._held.update(sizes)
        self.made[item, rows] = made

    def _size_of_others(self, sizes: dict[int, int]) -> int:
        return sum(size for address, size in sizes.items() if address not in self._held)

    def _forget_made(self) -> None:
        self.made.clear()
        self._held, self._bytes = set(), 0

    def _make_room(self, item: Item) -> None:
        """Forget the plans of other offsets where there are too many; a thread that looks for one makes it anew."""
        if item.offset not in self._offsets:
            if len(self._offsets) >= _MOST_OFFSETS:
                for known in (self._offsets, self._tiles, self._answers, self._order):
                    known.clear()
                self._forget_made()
            self._offsets.add(item.offset)

    def _planned(self, item: Item, rows: Bounds) -> list[Tile]:
        if len(self.rules) == 0:
            return [
                Tile(rows, (columns,), (rows[0], rows[0]), ())
                for columns in bounds(0, self.grid.keys, self.grid.columns)
            ]
        return _planned(self.rules, self.grid, item, self._answers_about(item, rows), rows)

    def latest_first(self) -> list[Bounds]:
        """Return the blocks of rows, last ones first: under a causal mask these have the most work."""
        return self._blocks[::-1]

    def longest_first(self, item: Item) -> list[Bounds]:
        """Return the blocks of rows, those with the most work first."""
        if self._is_of_positions or len(self._blocks) > self._at_once():
            return self.latest_first()
        known = self._order.get(item)
        if known is None:
            self._make_room(item)
            area = self._areas(item)
            known = self._order[item] = sorted(self.latest_first(), key=area.__getitem__, reverse=True)
        return known

    def _areas(self, item: Item) -> dict[Bounds, int]:
        """Return the approximate number of pairs that each block of rows visits."""
        answers = self._answers_about(item, self._blocks[0])
        visited = np.all(answers.possible, axis=0) @ np.asarray([end - start for start, end in answers.strips])
        ends = np.cumsum([len(chunks) for chunks in answers.chunks])
        of_parts = dict(zip(answers.parts, map(np.sum, np.split(visited, ends[:-1])), strict=True))
        return {rows: sum(of_parts[part] for part in bounds(*rows, self.grid.part)) for rows in self._blocks}

    def _answers_about(self, item: Item, rows: Bounds) -> Answers:
        """Return the answers about a block and its neighbours."""
        if self._is_of_positions:  # asked for each block alone, whose strips then have their corners on the diagonal
            return answers_about(self.rules, self.grid, item, [rows])
        size = self._at_once()
        batch = rows[0] // self.grid.rows // size
        known = self._answers.get((item, batch))
        if known is None:
            blocks = self._blocks[batch * size : (batch + 1) * size]
            known = self._answers[item, batch] = answers_about(self.rules, self.grid, item, blocks)
        return known

    def _at_once(self) -> int:
        """Return the number of blocks that rules are asked about together."""
        grid = self.grid
        strips, chunks = -(-grid.keys // grid.strip), -(-grid.rows // grid.chunk)
        return max(1, _ASKED // max(1, strips * chunks))


def _leaves(rule: Mask) -> Iterator[Mask]:
    """Yield the rules that a rule is made of."""
    parts = parts_of(rule)
    for part in parts:
        yield from _leaves(part)
    if not parts:
        yield rule


def _planned(rules: tuple[Mask, ...], grid: Grid, item: Item, answers: Answers, rows: Bounds) -> list[Tile]:
    """Return the tiles of one block: its bands, and the tiles of the parts that belong to no band."""
    tiles: list[Tile] = []
    parts = bounds(*rows, grid.part)
    for band, some in itertools.groupby(parts, lambda part: band_of(rules, grid, item, answers, part)):
        together = list(some)
        if band is not None:
            tiles += _of_band(band, grid, item, (together[0][0], together[-1][1]))
        else:
            tiles += [tile for part in together for tile in _of_part(rules, grid, item, answers, part)]
    return tiles


def _of_band(band: Band, grid: Grid, item: Item, rows: Bounds) -> list[Tile]:
    """Return a band as one tile, with the keys that all rows attend as further columns where these are few."""
    (row, stop), (first, last) = rows, band.near
    at, step = row + item.offset - item.key_offset, (row, row + grid.step)
    near = Tile(rows, ((at + first, at + last),), step, band.rules, (stop - row) // grid.step)
    if last - first + sum(end - start for start, end in band.far) <= grid.width:
        return [near._replace(columns=(*near.columns, *band.far))]
    strips = [strip for stretch in band.far for strip in bounds(*stretch, grid.strip)]
    return [near, *plan([rows], strips, [], grid.width, may_skip=grid.may_skip)]


def _of_part(rules: tuple[Mask, ...], grid: Grid, item: Item, answers: Answers, rows: Bounds) -> list[Tile]:
    """Return the tiles of some rows; strips that are empty for all of them are left out first."""
    chunks, possible, certain = answers.about(rows)
    visited = np.flatnonzero(np.any(np.all(possible, axis=0), axis=0))
    about = zip(rules, possible[..., visited].tolist(), certain[..., visited].tolist(), strict=True)
    strips = [answers.strips[j] for j in visited.tolist()]
    tiles = plan(chunks, strips, list(about), grid.columns, may_skip=grid.may_skip, widest=grid.widest)
    tiles = [_simplified(tile, item) for tile in tiles]
    one = _as_one(tiles, grid, item, rows)
    return tiles if one is None else [one]


def _simplified(tile: Tile, item: Item) -> Tile:
    """Drop the parts of rules that do not decide about the pairs of a tile."""
    if not tile.rules:
        return tile
    span = span_of(tile.mixed, (tile.columns[0][0], tile.columns[-1][1]), item)
    return tile._replace(rules=tuple(rule.undecided(span) for rule in tile.rules))


def _as_one(tiles: list[Tile], grid: Grid, item: Item, rows: Bounds) -> Tile | None:
    """Return the tiles of a block joined into one, where they are small and their rules depend on distances alone.

    Inside a window only the strips along its two edges are mixed. The flags of such rules are the same in every call and
    kept, so that applying them to the full strips in between costs little, and one large operation is faster than a few
    small ones.
    """
    rules = tuple({id(rule): rule for tile in tiles for rule in tile.rules}.values())
    keys = sum(end - start for tile in tiles for start, end in tile.columns)
    is_small = len(tiles) > 1 and keys <= grid.together and all(tile.rows == rows for tile in tiles)
    if not rules or not is_small or not all(rule.shift_invariant for rule in rules):
        return None
    near, far = list[Bounds](), list[Bounds]()
    for tile in tiles:
        for stretch in tile.columns:
            span = span_of(rows, stretch, item)
            if all(any(rule is own for own in tile.rules) or rule.reach(span)[1] for rule in rules):
                near.append(stretch)
            elif not tile.rules:
                far.append(stretch)
        if tile.rules and (tile.mixed != rows or tile.columns[-1] not in near):
            return None
    near, far = touching(near), touching(far)
    return Tile(rows, (*near, *far), rows, rules) if len(near) == 1 and (grid.may_skip or not far) else None
