"""The answers of rules about many rectangles, chunks of rows by strips of keys, in arrays of NumPy."""

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

_SEAMS = 16  # positions for each seam, at least: cutting at more of them costs more than it saves


class Item(NamedTuple):
    """A batch item and a head; ``None`` where all of them have the same mask."""

    offset: int  # from rows to positions
    b: int | None
    h: int | None
    keys: int | Positions = 0  # from columns to positions: an offset, or the positions themselves

    @property
    def key_offset(self) -> int:
        """From columns to positions, where keys count up."""
        return self.keys if isinstance(self.keys, int) else 0


class Grid(NamedTuple):
    """The sizes of the pieces that rows and keys are cut into."""

    keys: int  # of the call
    rows: int  # of a block
    part: int  # rows of a block that are planned together
    step: int  # rows of a step of a band; 0 where there are no bands
    width: int  # keys of a step, at most, and of any tile of all rows of a block
    chunk: int  # rows of a chunk of a part
    columns: int  # keys of a tile, at most
    widest: int  # likewise, where it has few rows
    may_skip: bool  # whether full tiles may be joined over gaps between their keys
    together: int  # keys of a block up to which its tiles are joined into one, rules and all

    @property
    def strip(self) -> int:
        """Keys of a strip: as many as rows of a chunk, unless chunks are small because there are few rows."""
        return min(STRIP, self.columns, self.chunk if self.chunk >= FEWEST_ROWS else STRIP)


class Answers(NamedTuple):
    """The answers of rules about all chunks of some blocks and all strips."""

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
    """Ask rules about some blocks of rows; chunks and strips are cut at the seams of the rules."""
    chunk_cuts, strip_cuts = _seams(rules, blocks[-1][1], grid.keys, item)
    parts = [part for rows in blocks for part in bounds(*rows, grid.part)]
    chunks = [_cut(bounds(*part, grid.chunk), chunk_cuts) for part in parts]
    # A diagonal through the first row of a block meets a corner of a strip.
    first = min((blocks[0][0] + item.offset - item.key_offset) % grid.strip, grid.keys)
    strips = _cut([*bounds(0, first, grid.strip), *bounds(first, grid.keys, grid.strip)], strip_cuts)
    answers = np.stack(asked(rules, [chunk for some in chunks for chunk in some], strips, item))
    return Answers(parts, chunks, strips, answers[:, 0], answers[:, 1])


def _seams(rules: tuple[Mask, ...], rows: int, keys: int, item: Item) -> tuple[list[int], list[int]]:
    """Return the seams of all rules as rows and as columns; none for keys that are in another order than their columns."""
    chunks, strips = set[int](), set[int]()
    for rule in rules:
        queries, columns = rule.seams(rows + item.offset, keys + item.key_offset)
        chunks |= {position - item.offset for position in queries} if len(queries) * _SEAMS <= rows else set()
        if isinstance(item.keys, int) and len(columns) * _SEAMS <= keys:
            strips |= {position - item.keys for position in columns}
    return sorted(chunks), sorted(strips)


def _cut(pieces: list[Bounds], cuts: list[int]) -> list[Bounds]:
    """Cut adjacent pieces at some more places."""
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
