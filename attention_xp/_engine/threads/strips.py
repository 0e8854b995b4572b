"""The tiles that a block of rows visits on NumPy: rules are asked about many chunks and strips at once."""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from attention_xp._engine.plan import Bounds, Tile, bounds, plan
from attention_xp._engine.region import Span
from attention_xp._engine.tile_sizes import FEWEST_ROWS, STRIP
from attention_xp._typing import Array
from attention_xp.masks import BlockMask, GlobalMask, Mask, SegmentMask

__all__ = ["Grid", "Item", "Plans", "asked"]

_ASKED = 2**18  # rectangles that rules are asked about at once
_FIXED = BlockMask, GlobalMask, SegmentMask  # rules that sum their arrays up but once
_KEPT_PLANS = 4  # of a mask, for other sizes
_WIDEST = 2048  # keys of a tile of few rows
_SEAMS = 16  # positions for each seam, at least: more seams would cost more than they bring


class Item(NamedTuple):
    """A batch item and a head, whose scores are masked alike."""

    offset: int  # from rows to positions
    b: int
    h: int | None  # None: all heads


class Grid(NamedTuple):
    """How finely rows and keys are cut."""

    keys: int
    rows: int  # of a block
    chunk: int  # rows of a chunk of a block
    columns: int  # keys of a tile
    may_skip: bool  # whether full tiles are joined over gaps

    @property
    def strip(self) -> int:
        """Keys of a strip: as fine as the chunks, unless these are that small for want of rows."""
        return min(STRIP, self.columns, self.chunk if self.chunk >= FEWEST_ROWS else STRIP)


class _Cuts(NamedTuple):
    """Where rows and keys are cut, wherever that is."""

    chunks: list[int]
    strips: list[int]


class _Answers(NamedTuple):
    """What rules answered about the chunks of some blocks, under all strips."""

    blocks: list[Bounds]
    chunks: list[list[Bounds]]  # of each block
    strips: list[Bounds]
    possible: Array  # (rules, chunks of all blocks, strips)
    certain: Array


class Plans:
    """The tiles of all blocks of rows of one call, planned when they are first asked for.

    A mask that holds arrays keeps the plans made for it, as it keeps what it counted in these arrays.
    """

    @classmethod
    def of(cls, rules: tuple[Mask, ...], rows: int, grid: Grid) -> "Plans":
        """Return the plans for some rules, which the one of them that holds arrays may have from an earlier call."""
        holders = [rule for rule in rules if not rule.shift_invariant]
        if len(holders) != 1 or not all(isinstance(leaf, _FIXED) or leaf.shift_invariant for leaf in _leaves(*holders)):
            return cls(rules, rows, grid)
        kept: dict[object, Plans] = vars(holders[0]).setdefault("_plans", {})
        name = (*(rule for rule in rules if rule.shift_invariant), rows, grid)
        if name not in kept and len(kept) >= _KEPT_PLANS:
            kept.clear()
        return kept.setdefault(name, cls(rules, rows, grid))

    def __init__(self, rules: tuple[Mask, ...], rows: int, grid: Grid) -> None:
        self.rules, self.grid = rules, grid
        self._blocks = bounds(0, rows, grid.rows)
        # Positions alone decide: a plan serves other calls as well.
        self._kept = all(rule.shift_invariant for rule in rules)
        self._answers: dict[tuple[Item, int], _Answers] = {}
        self._tiles: dict[tuple[Item, Bounds], list[Tile]] = {}

    def tiles(self, item: Item, rows: Bounds) -> list[Tile]:
        """Return the tiles of a block that are not empty."""
        known = self._tiles.get((item, rows))
        if known is None:
            known = self._tiles[item, rows] = self._planned(item, rows)
        return known

    def _planned(self, item: Item, rows: Bounds) -> list[Tile]:
        if len(self.rules) == 0:
            return [
                Tile(rows, (columns,), (rows[0], rows[0]), ())
                for columns in bounds(0, self.grid.keys, self.grid.columns)
            ]
        if self._kept:
            return _kept(self.rules, self.grid, item, rows)
        return _planned(self.rules, self.grid, item, self._answers_about(item, rows), rows)

    def latest_first(self) -> list[Bounds]:
        """Return the blocks of rows, last ones first: under a causal mask they visit the most."""
        return self._blocks[::-1]

    def longest_first(self, item: Item) -> list[Bounds]:
        """Return the blocks of rows, those that visit much before the others."""
        if self._kept or len(self._blocks) > self._at_once():
            return self.latest_first()
        answers = self._answers_about(item, self._blocks[0])
        visited = np.all(answers.possible, axis=0) @ np.asarray([end - start for start, end in answers.strips])
        ends = np.cumsum([len(chunks) for chunks in answers.chunks])
        area = dict(zip(answers.blocks, map(np.sum, np.split(visited, ends[:-1])), strict=True))
        return sorted(self.latest_first(), key=area.__getitem__, reverse=True)

    def _answers_about(self, item: Item, rows: Bounds) -> _Answers:
        """Return the answers about a block and its neighbours."""
        size = self._at_once()
        batch = rows[0] // self.grid.rows // size
        known = self._answers.get((item, batch))
        if known is None:
            blocks = self._blocks[batch * size : (batch + 1) * size]
            known = self._answers[item, batch] = _answers(self.rules, self.grid, item, blocks)
        return known

    def _at_once(self) -> int:
        """Return about how many blocks rules are asked at once."""
        grid = self.grid
        strips, chunks = -(-grid.keys // grid.strip), -(-grid.rows // grid.chunk)
        return max(1, _ASKED // max(1, strips * chunks))


def _leaves(rule: Mask) -> Iterator[Mask]:
    """Yield the rules that a rule is made of."""
    parts = [value for value in vars(rule).values() if isinstance(value, Mask)]
    for part in parts:
        yield from _leaves(part)
    if not parts:
        yield rule


@functools.lru_cache(maxsize=1024)
def _kept(rules: tuple[Mask, ...], grid: Grid, item: Item, rows: Bounds) -> list[Tile]:
    return _planned(rules, grid, item, _answers(rules, grid, item, [rows]), rows)


def _planned(rules: tuple[Mask, ...], grid: Grid, item: Item, answers: _Answers, rows: Bounds) -> list[Tile]:
    """Return the tiles of one block; strips that are empty for all of it are not looked at."""
    block = answers.blocks.index(rows)
    first = sum(map(len, answers.chunks[:block]))
    chunks = answers.chunks[block]
    possible, certain = (a[:, first : first + len(chunks)] for a in (answers.possible, answers.certain))
    visited = np.flatnonzero(np.any(np.all(possible, axis=0), axis=0))
    told = zip(rules, possible[..., visited].tolist(), certain[..., visited].tolist(), strict=True)
    strips = [answers.strips[j] for j in visited.tolist()]
    tiles = plan(chunks, strips, list(told), grid.columns, may_skip=grid.may_skip, widest=_WIDEST)
    tiles = [_simplified(tile, item) for tile in tiles]
    one = _as_one(tiles, grid, item, rows)
    return tiles if one is None else [one]


def _simplified(tile: Tile, item: Item) -> Tile:
    """Leave the parts of rules aside that have nothing to say about a tile."""
    if not tile.rules:
        return tile
    span = _span(tile.mixed, (tile.columns[0][0], tile.columns[-1][1]), item)
    return tile._replace(rules=tuple(rule.undecided(span) for rule in tile.rules))


def _as_one(tiles: list[Tile], grid: Grid, item: Item, rows: Bounds) -> Tile | None:
    """Return the tiles of a block as a single one where they are small, and rules of positions draw all edges.

    Inside of a window only the strips along its edges are mixed. What such rules exclude is known once and for all,
    so that to meet them on the strips between costs nothing, and one large operation is faster than some small ones.
    """
    rules = tuple(dict.fromkeys(rule for tile in tiles for rule in tile.rules))
    keys = sum(end - start for tile in tiles for start, end in tile.columns)
    is_small = len(tiles) > 1 and keys <= grid.columns and all(tile.rows == rows for tile in tiles)
    if not rules or not is_small or not all(rule.shift_invariant for rule in rules):
        return None
    near, far = list[Bounds](), list[Bounds]()
    for tile in tiles:
        for stretch in tile.columns:
            span = _span(rows, stretch, item)
            if all(rule in tile.rules or rule.reach(span)[1] for rule in rules):
                near.append(stretch)
            elif not tile.rules:
                far.append(stretch)
        if tile.rules and (tile.mixed != rows or tile.columns[-1] not in near):
            return None
    near, far = _touching(near), _touching(far)
    return Tile(rows, (*near, *far), rows, rules) if len(near) == 1 and (grid.may_skip or not far) else None


def _touching(stretches: list[Bounds]) -> list[Bounds]:
    """Return stretches in order, those that follow each other as one."""
    joined: list[Bounds] = []
    for start, end in sorted(stretches):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _span(rows: Bounds, columns: Bounds, item: Item) -> Span:
    """Return the bounds of a rectangle, both ends included."""
    first, last = rows[0], rows[1] - 1
    return Span(np, first, last, first + item.offset, last + item.offset, columns[0], columns[1] - 1, item.b, item.h)


def _answers(rules: tuple[Mask, ...], grid: Grid, item: Item, blocks: list[Bounds]) -> _Answers:
    cuts = _seams(rules, blocks[-1][1], grid.keys, item.offset)
    chunks = [_cut(bounds(*rows, grid.chunk), cuts.chunks) for rows in blocks]
    strips = _cut(_strips(grid.keys, grid.strip, phase=blocks[0][0] + item.offset), cuts.strips)
    answers = np.stack(asked(rules, [chunk for some in chunks for chunk in some], strips, *item))
    return _Answers(blocks, chunks, strips, answers[:, 0], answers[:, 1])


def _seams(rules: tuple[Mask, ...], rows: int, keys: int, offset: int) -> _Cuts:
    """Return the seams of all rules, in rows and in keys."""
    chunks, strips = set[int](), set[int]()
    for rule in rules:
        queries, columns = rule.seams(rows + offset, keys)
        chunks |= {position - offset for position in queries} if len(queries) * _SEAMS <= rows else set()
        strips |= set(columns) if len(columns) * _SEAMS <= keys else set()
    return _Cuts(sorted(chunks), sorted(strips))


def _cut(pieces: list[Bounds], cuts: list[int]) -> list[Bounds]:
    """Cut pieces that follow each other once more."""
    if not pieces or not cuts:
        return pieces
    first, last = pieces[0][0], pieces[-1][1]
    edges = sorted({last, *(start for start, _ in pieces), *(cut for cut in cuts if first < cut < last)})
    return list(itertools.pairwise(edges))


def asked(
    rules: tuple[Mask, ...], chunks: list[Bounds], strips: list[Bounds], offset: int, b: int, h: int | None
) -> list[Array]:
    """Return for each rule whether it possibly and certainly allows each chunk and strip: (2, chunks, strips)."""
    (row_lo, row_hi), (k_lo, k_hi) = (np.asarray(pairs).reshape(-1, 2).T for pairs in (chunks, strips))
    first, last = row_lo[:, None], row_hi[:, None] - 1
    span = Span(np, first, last, first + offset, last + offset, k_lo, k_hi - 1, b, h)
    grid = (len(chunks), len(strips))
    return [np.stack([np.broadcast_to(answer, grid) for answer in rule.reach(span)]) for rule in rules]


def _strips(length: int, size: int, *, phase: int) -> list[Bounds]:
    """Cut the keys so that a diagonal through the first row of a block meets a corner of a strip."""
    first = min(phase % size, length)
    return [*bounds(0, first, size), *bounds(first, length, size)]
