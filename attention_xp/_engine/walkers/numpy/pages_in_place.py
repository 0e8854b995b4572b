"""Pages of a pool without a copy: as one array where they lie like one, and else as stretches of rows for compiled loops."""

import numpy as np

from attention_xp._engine.problem.problem import Problem
from attention_xp._engine.problem.result import Attended, Wanted
from attention_xp._engine.walkers.numpy import at_once
from attention_xp._engine.walkers.numpy.compiled.found import are_read_in_place, lengths_of
from attention_xp._engine.walkers.numpy.compiled_few_rows import KeyRanges
from attention_xp._engine.walkers.numpy.few_rows import MOST_ROWS, rows_of_keys
from attention_xp._engine.walkers.numpy.page_pieces import are_neighbours, lie_by_heads, neighbours
from attention_xp._typing import Array

__all__ = ["as_arrays", "attend_compiled"]

_LONG = 512  # keys of a stretch, on average, from which BLAS multiplies a single row by it as fast


def as_arrays(key: Array, value: Array, pages: list[list[int]], lengths: list[int]) -> tuple[Array, Array] | None:
    """Return keys and values (B, Hkv, Sk, D) of items of one length in some pages each, without a copy.

    ``None`` unless the pages of a head follow each other, and items lie at equal distances.
    """
    length = lengths[0] if lengths else 0
    if length == 0 or lengths.count(length) != len(lengths) or not lie_by_heads(key, value):
        return None
    if not all(map(are_neighbours, pages)):
        return None
    if len(pages) == 1:
        some = slice(pages[0][0], pages[0][-1] + 1)
        return neighbours(key, some, length)[None], neighbours(value, some, length)[None]
    first, distance = pages[0][0], pages[1][0] - pages[0][0]
    if any(own[0] != first + i * distance for i, own in enumerate(pages)):
        return None
    shape = len(pages), key.shape[1], length
    of_key, of_value = (_view(a[first:], (*shape, a.shape[3]), distance * a.strides[0]) for a in (key, value))
    return of_key, of_value


def attend_compiled(
    problem: Problem, key: Array, value: Array, pages: list[list[int]], lengths: list[int], wanted: Wanted
) -> Attended | None:
    """Return what compiled loops find for items of some lengths; ``None`` where they do not compute it, or would be slower.

    The problem was stated with other keys, as many as the longest item has.
    """
    step, size = _rows_of_a_page(key), key.shape[2]
    if step < size or step != _rows_of_a_page(value):
        return None
    rows = rows_of_keys(problem)
    if rows > MOST_ROWS or not are_read_in_place(problem):
        return None
    # A mask of lengths may end before an item does.
    ends = [min(n, end) for n, end in zip(lengths, lengths_of(problem), strict=True)]
    some = [np.asarray(own[: -(-end // size)], np.int64) for own, end in zip(pages, ends, strict=True)]
    stretches = [_stretches(own, end, size, step) for own, end in zip(some, ends, strict=True)]
    if rows == 1 and sum(ends) >= _LONG * sum(map(len, stretches)):
        return None
    return at_once.attend(problem.with_keys(_as_rows(key), _as_rows(value)), wanted, stretches=stretches)


def _rows_of_a_page(pool: Array) -> int:
    """Return how many rows of a head there are from one page to the next; 0 where loops cannot read rows."""
    page, _, row, column = pool.strides
    is_read = column == pool.itemsize and pool.flags.aligned and row > 0
    return int(page // row) if is_read and page % row == 0 else 0


def _as_rows(pool: Array) -> Array:
    """Return a view (1, Hkv, rows, D) of all that lies from the first row of a head to its last: slot s of page p is row p * step + s."""
    count, heads, size, width = pool.shape
    return _view(pool, (1, heads, (count - 1) * _rows_of_a_page(pool) + size, width), 0)


def _view(pool: Array, shape: tuple[int, ...], step: int) -> Array:
    """Return a view of a shape (B, Hkv, Sk, D) that begins where a pool does, with so many bytes from item to item.

    All other distances are those of a page.
    """
    return np.lib.stride_tricks.as_strided(pool, shape, (step, *pool.strides[1:]), writeable=False)


def _stretches(pages: Array, length: int, size: int, step: int) -> KeyRanges:
    """Return the rows of an item, `step` of which lie from page to page.

    Where these are no more than a page has, pages that follow each other are one stretch.
    """
    if length == 0:
        return ()
    ends = np.flatnonzero(pages[1:] - pages[:-1] != 1) if step == size else np.arange(len(pages) - 1)
    firsts, lasts = pages[[0, *(ends + 1)]] * step, pages[[*ends, -1]] * step + size
    lasts[-1] -= len(pages) * size - length
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))
