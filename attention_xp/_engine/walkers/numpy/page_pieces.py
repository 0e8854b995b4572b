"""Some pages of a pool at a time, and their products with the rows, or weights, of the items that they belong to.

The pages of one item mostly follow each other in the pool at equal distances. Such a run is one strided view, which `matmul`
reads without a copy. Where pages of a head follow each other in memory, neighbours are a single page with many keys, and the
products are those of an array. Else there is a product for each page and head, and what it reads and writes beside is made
contiguous, for the distances of long rows are powers of two, with which a cache serves badly. Tables that are cut into short
runs are visited in the order of the pool, the pages of all items together, and what comes out is put in order.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from attention_xp._engine.walkers.numpy.few_rows import scores_into, weighted
from attention_xp._typing import Array

__all__ = ["Piece", "Pieces", "are_neighbours", "cut", "lie_by_heads", "neighbours"]

_PIECE = 2**20  # numbers of the pages of a piece, about
_SHORT = 8  # pages of a run below which runs take longer than putting in order, and runs that may be shorter
_LARGEST_PRODUCT = 2**17  # multiplications for which BLAS calls no other threads


@dataclass(frozen=True)
class _Run:
    """Full pages of one item, in its order, at equal distances."""

    item: int
    column: int  # the position of the first key
    pages: slice | Array
    count: int  # of the pages

    @property
    def items(self) -> slice:
        """The items that the outputs belong to."""
        return slice(self.item, self.item + 1)

    def _read(self, pool: Array, like: Array) -> Array:
        return pool[self.pages].astype(like.dtype, copy=False)

    def _place(self, columns: Array, size: int) -> Array:
        """Return a view of (B, Hkv, m, n), (pages, Hkv, m, size)."""
        mine = columns[self.item, :, :, self.column : self.column + self.count * size]
        return mine.reshape(*mine.shape[:2], self.count, size).transpose(2, 0, 1, 3)

    def scores(self, pool: Array, rows: Array, scores: Array) -> None:
        """Write the products of rows (B, Hkv, m, D) and keys to their places in (B, Hkv, m, n)."""
        self._place(scores, pool.shape[2])[...] = rows[self.item] @ self._read(pool, scores).swapaxes(-1, -2)

    def outputs(self, pool: Array, weights: Array) -> Array:
        """Return the products of weights (B, Hkv, m, Sk) and values, (1, Hkv, m, D)."""
        of_pages = self._place(weights, pool.shape[2]).copy() @ self._read(pool, weights)
        return of_pages.sum(axis=0, keepdims=True)


@dataclass(frozen=True)
class _Stretch:
    """Keys of one item up to the last of some neighbouring pages, of which those of a head follow each other in memory."""

    item: int
    column: int
    pages: slice
    count: int
    keys: int  # of all pages

    @property
    def items(self) -> slice:
        return slice(self.item, self.item + 1)

    def _read(self, pool: Array, like: Array) -> Array:
        return neighbours(pool, self.pages, self.keys).astype(like.dtype, copy=False)

    def _place(self, columns: Array) -> Array:
        mine: Array = columns[self.item, :, :, self.column : self.column + self.keys]
        return mine

    def scores(self, pool: Array, rows: Array, scores: Array) -> None:
        scores_into(self._place(scores), rows[self.item], self._read(pool, scores))

    def outputs(self, pool: Array, weights: Array) -> Array:
        return weighted(self._place(weights), self._read(pool, weights))[None]


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
        by_pages = scores.reshape(*scores.shape[:3], -1, pool.shape[2])
        by_pages[at] = products[self.wanted].swapaxes(-1, -2)

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


Piece = _Run | _Stretch | _Scattered


class Pieces(NamedTuple):
    """Pieces that hold all pages of all items."""

    all: list[Piece]
    are_scattered: bool
    pages: int  # of all

    @classmethod
    def of(cls, pieces: Sequence[Piece], *, are_scattered: bool) -> Self:
        return cls(list(pieces), are_scattered, sum(piece.count for piece in pieces))


def lie_by_heads(*pools: Array) -> bool:
    """Whether the pages of a head follow each other in memory."""
    return all(pool.strides[0] == pool.shape[2] * pool.strides[2] for pool in pools)


def are_neighbours(pages: list[int]) -> bool:
    """Whether pages, one at least, follow each other in the pool."""
    return pages == list(range(pages[0], pages[0] + len(pages)))


def neighbours(pool: Array, pages: slice, keys: int) -> Array:
    """Return the first keys of neighbouring pages, of which those of a head follow each other in memory: a view (Hkv, keys, D)."""
    by_heads = pool[pages].swapaxes(0, 1)
    heads, count, size, width = by_heads.shape
    found: Array = by_heads.reshape(heads, count * size, width)[:, :keys]
    return found


def cut(table: Array, lengths: list[int], size: int, numbers: int, *, by_heads: bool, at_once: bool) -> Pieces:
    """Return the pieces of a table (B, pages of an item) as far as lengths reach; a page has so many numbers.

    `by_heads` says that pages of a head follow each other in memory, and `at_once` that neighbours among these are read by one
    product, however many they are.
    """
    most = max(1, _PIECE // max(numbers, 1))
    limit = _SHORT + sum(-(-length // size) for length in lengths) // _SHORT
    stretch = 0 if not by_heads else table.shape[1] if at_once else most
    found = list(itertools.islice(_runs(table, lengths, size, (most, stretch)), limit + 1))
    if len(found) <= limit:
        return Pieces.of(found, are_scattered=False)
    is_reached = np.arange(table.shape[1])[None, :] * size < np.asarray(lengths, np.int64)[:, None]
    return Pieces.of(list(_scattered(np.where(is_reached, table, -1), most)), are_scattered=True)


def _runs(table: Array, lengths: list[int], size: int, most: tuple[int, int]) -> Iterator[_Run | _Stretch]:
    """Yield runs of at most so many pages, and stretches of at most so many; 0 where pages of a head do not follow each other."""
    for item, length in enumerate(lengths):
        row = table[item, : -(-length // size)]
        numbers = row.tolist() if 0 < len(row) <= most[1] else []
        if numbers and are_neighbours(numbers):  # what most items are
            yield _stretch(item, 0, numbers[0], len(numbers), size, length)
            continue
        for start, end in _progressions(row):
            step = int(row[end - 1]) - int(row[end - 2]) if end - start > 1 else 1
            is_stretch = step == 1 and most[1] > 0
            full = end if is_stretch else min(end, length // size)
            for i in range(start, full, most[is_stretch]):
                count = min(most[is_stretch], full - i)
                if is_stretch or count == 1:
                    yield _stretch(item, i, int(row[i]), count, size, length)
                else:
                    pages = _strided(int(row[i]), count, step) if step else row[i : i + count]
                    yield _Run(item, i * size, pages, count)
            if full < end:
                yield _stretch(item, full, int(row[full]), 1, size, length)


def _stretch(item: int, index: int, page: int, count: int, size: int, length: int) -> _Stretch:
    return _Stretch(item, index * size, slice(page, page + count), count, min(count * size, length - index * size))


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
