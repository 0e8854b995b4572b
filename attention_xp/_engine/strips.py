"""The tiles that a block of rows visits on NumPy: rules are asked about all its chunks and strips at once."""

import functools
from typing import NamedTuple

import numpy as np

from attention_xp._engine.plan import Bounds, Tile, bounds, plan
from attention_xp._engine.region import Span
from attention_xp._engine.tile_sizes import STRIP
from attention_xp._typing import Array
from attention_xp.masks import Mask

__all__ = ["Place", "asked", "tiles"]


class Place(NamedTuple):
    """A block of rows under all keys, and how finely it is cut."""

    rows: Bounds
    keys: int
    offset: int  # from rows to positions
    b: int
    h: int | None  # None: all heads
    chunk: int  # rows of a chunk
    columns: int  # keys of a tile
    may_skip: bool  # whether full tiles are joined over gaps


def tiles(rules: tuple[Mask, ...], place: Place) -> list[Tile]:
    """Return the tiles that are not empty; kept where positions alone decide."""
    if len(rules) == 0:
        row, stop = place.rows
        return [Tile((row, stop), (columns,), (row, row), ()) for columns in bounds(0, place.keys, place.columns)]
    return (_kept if all(rule.shift_invariant for rule in rules) else _planned)(rules, place)


def _planned(rules: tuple[Mask, ...], place: Place) -> list[Tile]:
    chunks = bounds(*place.rows, place.chunk)
    strips = _strips(place.keys, min(STRIP, place.columns), phase=place.rows[0] + place.offset)
    answers = [
        (rule, *both.tolist())
        for rule, both in zip(rules, asked(rules, chunks, strips, place.offset, place.b, place.h), strict=True)
    ]
    return plan(chunks, strips, answers, place.columns, may_skip=place.may_skip)


def asked(
    rules: tuple[Mask, ...], chunks: list[Bounds], strips: list[Bounds], offset: int, b: int, h: int | None
) -> list[Array]:
    """Return for each rule whether it possibly and certainly allows each chunk and strip: (2, chunks, strips)."""
    (row_lo, row_hi), (k_lo, k_hi) = (np.asarray(pairs).reshape(-1, 2).T for pairs in (chunks, strips))
    first, last = row_lo[:, None], row_hi[:, None] - 1
    span = Span(np, first, last, first + offset, last + offset, k_lo, k_hi - 1, b, h)
    grid = (len(chunks), len(strips))
    return [np.stack([np.broadcast_to(answer, grid) for answer in rule.reach(span)]) for rule in rules]


_kept = functools.lru_cache(maxsize=1024)(_planned)


def _strips(length: int, size: int, *, phase: int) -> list[Bounds]:
    """Cut the keys so that a diagonal through the first row of a block meets a corner of a strip."""
    first = min(phase % size, length)
    return [*bounds(0, first, size), *bounds(first, length, size)]
