"""Some pages of a pool at a time, and their products with the rows, or weights, of the items that they belong to.

Items get pages in turns, so that the pages of one item mostly follow each other in the pool at equal distances. Such a run is
one strided view, which `matmul` reads without a copy. What it reads and writes beside is made contiguous, for the distances
of long rows are powers of two, with which a cache serves badly. Tables that are cut into short runs are visited in the
order of the pool, the pages of all items together, and what comes out is put in order.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from attention_xp._typing import Array

__all__ = ["Piece", "Pieces", "cut"]

_PIECE = 2**20  # numbers of the pages of a piece, about
_SHORT = 8  # pages of a run below which runs take longer than putting in order, and runs that may be shorter
_LARGEST_PRODUCT = 2**17  # multiplications for which BLAS calls no other threads


@dataclass(frozen=True)
class _Run:
    """Pages of one item, in its order, at equal distances; a page that is not full is a run of its own."""

    item: int
    column: int  # the position of the first key
    pages: slice | Array
    count: int  # of the pages
    keys: int  # of each page

    @property
    def items(self) -> slice:
        """The items that the outputs belong to."""
        return slice(self.item, self.item + 1)

    def _read(self, pool: Array, like: Array) -> Array:
        return pool[self.pages, :, : self.keys].astype(like.dtype, copy=False)

    def _place(self, columns: Array) -> Array:
        """Return a view of (B, Hkv, m, n), (pages, Hkv, m, keys)."""
        mine = columns[self.item, :, :, self.column : self.column + self.count * self.keys]
        return mine.reshape(*mine.shape[:2], self.count, self.keys).transpose(2, 0, 1, 3)

    def scores(self, pool: Array, rows: Array, scores: Array) -> None:
        """Write the products of rows (B, Hkv, m, D) and keys to their places in (B, Hkv, m, pages of an item, size)."""
        place = self._place(scores.reshape(*scores.shape[:3], -1))
        place[...] = rows[self.item] @ self._read(pool, scores).swapaxes(-1, -2)

    def outputs(self, pool: Array, weights: Array) -> Array:
        """Return the products of weights (B, Hkv, m, Sk) and values, (1, Hkv, m, D)."""
        of_pages = self._place(weights).copy() @ self._read(pool, weights)
        return of_pages.sum(axis=0, keepdims=True)


@dataclass(frozen=True)
class _Scattered:
    """Pages of any items in the order of the pool: all between two bounds, or those with some numbers."""

    pages: slice | Array
    owner: Array  # the item of each
    index: Array  # which page of its item it is
    wanted: Array | slice  # which of them are asked for

    @property
    def count(self) -> int:
        return len(self.owner)

    def scores(self, pool: Array, rows: Array, scores: Array) -> None:
        keys = pool[self.pages].astype(scores.dtype, copy=False)
        products = keys @ rows[self.owner].swapaxes(-1, -2)
        at = self.owner[self.wanted], slice(None), slice(None), self.index[self.wanted]
        scores[at] = products[self.wanted].swapaxes(-1, -2)

    @property
    def items(self) -> slice:
        return slice(None)

    def outputs(self, pool: Array, weights: Array) -> Array:
        """Return the same as a run, for all items: (B, Hkv, m, D)."""
        by_pages = weights.reshape(*weights.shape[:3], -1, pool.shape[2])[self.owner, :, :, self.index]
        of_pages = by_pages @ pool[self.pages].astype(weights.dtype, copy=False)
        return self._added_up(of_pages.reshape(self.count, -1), len(weights)).reshape(-1, *of_pages.shape[1:])

    def _added_up(self, of_pages: Array, items: int) -> Array:
        """Return the totals of items (B, W) of what pages give (pages, W), by products that BLAS gives to no other threads."""
        belongs = self.owner[None, :] == np.arange(items)[:, None]
        if not isinstance(self.wanted, slice):
            belongs &= self.wanted
        shares = belongs.astype(of_pages.dtype)
        total = np.zeros((items, of_pages.shape[1]), of_pages.dtype)
        step = max(1, _LARGEST_PRODUCT // max(total.size, 1))
        for i in range(0, len(of_pages), step):
            total += shares[:, i : i + step] @ of_pages[i : i + step]
        return total


Piece = _Run | _Scattered


class Pieces(NamedTuple):
    """Pieces that hold all pages of all items."""

    all: list[Piece]
    are_scattered: bool
    pages: int  # of all

    @classmethod
    def of(cls, pieces: Sequence[Piece], *, are_scattered: bool) -> Self:
        return cls(list(pieces), are_scattered, sum(piece.count for piece in pieces))


def cut(table: Array, lengths: list[int], size: int, numbers: int) -> Pieces:
    """Return the pieces of a table (B, pages of an item) as far as lengths reach; a page has so many numbers."""
    most = max(1, _PIECE // max(numbers, 1))
    limit = _SHORT + sum(-(-length // size) for length in lengths) // _SHORT
    found = list(itertools.islice(_runs(table, lengths, size, most), limit + 1))
    if len(found) <= limit:
        return Pieces.of(found, are_scattered=False)
    is_reached = np.arange(table.shape[1])[None, :] * size < np.asarray(lengths, np.int64)[:, None]
    return Pieces.of(list(_scattered(np.where(is_reached, table, -1), most)), are_scattered=True)


def _runs(table: Array, lengths: list[int], size: int, most: int) -> Iterator[_Run]:
    for item, length in enumerate(lengths):
        full, rest = divmod(length, size)
        row = table[item]
        for start, end in _progressions(row[:full]):
            step = int(row[end - 1]) - int(row[end - 2]) if end - start > 1 else 1
            for i in range(start, end, most):
                count = min(most, end - i)
                pages = _strided(int(row[i]), count, step) if step else row[i : i + count]
                yield _Run(item, i * size, pages, count, size)
        if rest:
            yield _Run(item, full * size, _strided(int(row[full]), 1, 1), 1, rest)


def _progressions(pages: Array) -> Iterator[tuple[int, int]]:
    """Yield the bounds of runs of numbers at equal distances."""
    start, steps = 0, pages[1:] - pages[:-1]
    for last in [*(np.flatnonzero(steps[1:] != steps[:-1]) + 1).tolist(), len(pages) - 1]:
        if last > start or (last == start and last == len(pages) - 1):  # where a run begins, the distance may change
            yield start, last + 1
            start = last + 1


def _strided(first: int, count: int, step: int) -> slice:
    stop = first + count * step
    return slice(first, stop if stop >= 0 else None, step)


def _scattered(table: Array, most: int) -> Iterator[_Scattered]:
    """Yield pieces in the order of the pool; what several items have is read several times."""
    owner, index = np.nonzero(table >= 0)
    pages = table[owner, index]
    order = np.argsort(pages, kind="stable")
    owner, index, pages = owner[order], index[order], pages[order]
    for i in range(0, len(pages), most):
        some, of, at = (a[i : i + most] for a in (pages, owner, index))
        first, last = int(some[0]), int(some[-1]) + 1
        if last - first > 2 * len(some) or np.any(some[1:] == some[:-1]):
            yield _Scattered(some, of, at, slice(None))  # copied, piece by piece
        elif last - first == len(some):
            yield _Scattered(slice(first, last), of, at, slice(None))
        else:
            yield _with_gaps(some, of, at)


def _with_gaps(pages: Array, owner: Array, index: Array) -> _Scattered:
    """Return the stretch of the pool that some pages lie in, where the others are multiplied as well."""
    first, last = int(pages[0]), int(pages[-1]) + 1
    wanted, places = np.zeros(last - first, bool), np.zeros((2, last - first), np.intp)
    wanted[pages - first] = True
    places[:, pages - first] = owner, index
    return _Scattered(slice(first, last), places[0], places[1], wanted)
