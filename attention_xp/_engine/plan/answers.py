"""What rules answer about many chunks of rows and strips of keys at once, on NumPy."""

import itertools
from typing import Any, NamedTuple

import numpy as np

from attention_xp._engine.plan.patterns import FEWEST_ROWS
from attention_xp._engine.plan.plan import Bounds, bounds
from attention_xp._engine.plan.positions import Positions
from attention_xp._engine.plan.tile_sizes import STRIP
from attention_xp._scores.region import Span, span_between
from attention_xp._typing import Array
from attention_xp.masks import Mask

__all__ = ["Answers", "Grid", "Item", "answers_about", "asked", "span_of"]

_SEAMS = 16  # positions for each seam, at least: more seams would cost more than they bring


class Item(NamedTuple):
    """A batch item and a head, whose scores are masked alike; ``None`` for all of them."""

    offset: int  # from rows to positions
    b: int | None
    h: int | None
    keys: int | Positions = 0  # from columns to positions: an offset, or the positions themselves

    @property
    def key_offset(self) -> int:
        """From columns to positions, where keys count up."""
        return self.keys if isinstance(self.keys, int) else 0


class Grid(NamedTuple):
    """How finely rows and keys are cut."""

    keys: int
    rows: int  # of a block
    part: int  # rows of a block that are planned as one
    step: int  # rows of a step of a band; 0 where there are no bands
    width: int  # keys of a step, at most, and of any tile of all rows of a block
    chunk: int  # rows of a chunk of a part
    columns: int  # keys of a tile
    widest: int  # likewise, of few rows
    may_skip: bool  # whether full tiles are joined over gaps

    @property
    def strip(self) -> int:
        """Keys of a strip: as fine as the chunks, unless these are that small for want of rows."""
        return min(STRIP, self.columns, self.chunk if self.chunk >= FEWEST_ROWS else STRIP)


class _Cuts(NamedTuple):
    """Where rows and keys are cut, wherever that is."""

    chunks: list[int]
    strips: list[int]


class Answers(NamedTuple):
    """What rules answered about the chunks of some blocks, under all strips."""

    parts: list[Bounds]  # of all blocks
    chunks: list[list[Bounds]]  # of each part
    strips: list[Bounds]
    possible: Array  # (rules, chunks of all parts, strips)
    certain: Array

    def about(self, part: Bounds) -> tuple[list[Bounds], Array, Array]:
        """Return the chunks of a part, and the answers about these, (rules, chunks, strips)."""
        at = self.parts.index(part)
        first = sum(map(len, self.chunks[:at]))
        here = slice(first, first + len(self.chunks[at]))
        return self.chunks[at], self.possible[:, here], self.certain[:, here]


def span_of(rows: tuple[Any, Any], columns: tuple[Any, Any], item: Item) -> Span:
    """Return the bounds of a rectangle, or of many that broadcast, both ends included."""
    span = span_between(np, rows, columns, (item.offset, item.key_offset), item.b, item.h)
    if not isinstance(item.keys, Positions):
        return span
    k_lo, k_hi = item.keys.between(*columns)
    return span._replace(k_lo=k_lo, k_hi=k_hi)


def answers_about(rules: tuple[Mask, ...], grid: Grid, item: Item, blocks: list[Bounds]) -> Answers:
    """Ask rules about some blocks, cut where a rule has a seam."""
    cuts = _seams(rules, blocks[-1][1], grid.keys, item)
    parts = [part for rows in blocks for part in bounds(*rows, grid.part)]
    chunks = [_cut(bounds(*part, grid.chunk), cuts.chunks) for part in parts]
    strips = _cut(
        _strips(grid.keys, grid.strip, phase=blocks[0][0] + item.offset - item.key_offset),
        cuts.strips,
    )
    answers = np.stack(asked(rules, [chunk for some in chunks for chunk in some], strips, item))
    return Answers(parts, chunks, strips, answers[:, 0], answers[:, 1])


def _seams(rules: tuple[Mask, ...], rows: int, keys: int, item: Item) -> _Cuts:
    """Return the seams of all rules, in rows and in keys; those of keys that do not count up are nowhere."""
    chunks, strips = set[int](), set[int]()
    for rule in rules:
        queries, columns = rule.seams(rows + item.offset, keys + item.key_offset)
        chunks |= {position - item.offset for position in queries} if len(queries) * _SEAMS <= rows else set()
        if isinstance(item.keys, int) and len(columns) * _SEAMS <= keys:
            strips |= {position - item.keys for position in columns}
    return _Cuts(sorted(chunks), sorted(strips))


def _cut(pieces: list[Bounds], cuts: list[int]) -> list[Bounds]:
    """Cut pieces that follow each other once more."""
    if not pieces or not cuts:
        return pieces
    first, last = pieces[0][0], pieces[-1][1]
    edges = sorted({last, *(start for start, _ in pieces), *(cut for cut in cuts if first < cut < last)})
    return list(itertools.pairwise(edges))


def asked(rules: tuple[Mask, ...], chunks: list[Bounds], strips: list[Bounds], item: Item) -> list[Array]:
    """Return for each rule whether it possibly and certainly allows each chunk and strip: (2, chunks, strips)."""
    (row_lo, row_hi), (k_lo, k_hi) = (np.asarray(pairs).reshape(-1, 2).T for pairs in (chunks, strips))
    span = span_of((row_lo[:, None], row_hi[:, None]), (k_lo, k_hi), item)
    grid = (len(chunks), len(strips))
    return [np.stack([np.broadcast_to(answer, grid) for answer in rule.reach(span)]) for rule in rules]


def _strips(length: int, size: int, *, phase: int) -> list[Bounds]:
    """Cut the keys so that a diagonal through the first row of a block meets a corner of a strip."""
    first = min(phase % size, length)
    return [*bounds(0, first, size), *bounds(first, length, size)]
