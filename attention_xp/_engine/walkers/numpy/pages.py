"""Keys or values that lie in pages of a pool, in the place of an array: the formula asks them for its two products.

In a product with few rows, reading the pages takes the time. They are therefore read where they lie: each page is multiplied by
the rows of the item that it belongs to, as if pages were batch items, and what comes out, which is small, is put in order.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from attention_xp._engine.tile.products import Paged
from attention_xp._engine.walkers.numpy.pool import run_jobs, with_blas_held_to_one
from attention_xp._engine.walkers.numpy.scratch import lent
from attention_xp._typing import Array, DType

__all__ = ["Pages"]

_PIECE = 2**20  # numbers of the pages of a job, about
_MANY = 2**23  # numbers of all pages from which threads pay
_LARGEST_PRODUCT = 2**17  # multiplications for which BLAS calls no other threads

_Worker = Callable[[], AbstractContextManager[Callable[[int], None]]]


class _Piece(NamedTuple):
    """Some pages, in the order of the pool: all between two bounds, or those with some numbers."""

    pages: slice | Array
    owner: Array  # the item of each
    index: Array  # which page of its item it is
    wanted: Array | slice  # which of them are asked for


@dataclass(frozen=True, eq=False)
class Pages(Paged):
    """Keys ``(B, Hkv, Sk, D)`` in NumPy's pages ``(num_pages, Hkv, size, D)``."""

    pool: Array
    table: Array  # (B, pages of an item), -1 where an item has no more
    pieces: list[_Piece]
    Sk: int
    width: DType  # of the computation

    @classmethod
    def of(cls, key: Array, value: Array, table: Array, Sk: int, width: DType) -> tuple["Pages", "Pages"]:
        """Return keys and values in the same pages."""
        pieces = list(_cut(table, math.prod(key.shape[1:])))
        return cls(key, table, pieces, Sk, width), cls(value, table, pieces, Sk, width)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(B, Hkv, Sk, D)``."""
        return len(self.table), self.pool.shape[1], self.Sk, self.pool.shape[3]

    def scores(self, rows: Array) -> Array:
        """(B, Hkv, m, D) x (B, Hkv, Sk, D) -> (B, Hkv, m, Sk); behind the last page of an item it is 0."""
        B, heads, m, _ = rows.shape
        size, most = self.pool.shape[2], self.table.shape[1]
        scores = np.zeros((B, heads, m, most, size), self.width)  # sums with what memory held before may warn

        @contextmanager
        def worker() -> Iterator[Callable[[int], None]]:
            with lent([self._longest * heads * size * m], self.width) as (buffer,):

                def do(i: int) -> None:
                    piece = self.pieces[i]
                    products = buffer[: len(piece.owner) * heads * size * m].reshape(-1, heads, size, m)
                    np.matmul(self._read(piece), rows[piece.owner].swapaxes(-1, -2), out=products)
                    at = piece.owner[piece.wanted], slice(None), slice(None), piece.index[piece.wanted]
                    scores[at] = products[piece.wanted].swapaxes(-1, -2)

                yield do

        self._visit(worker)
        return scores.reshape(B, heads, m, most * size)[..., : self.Sk]

    def outputs(self, weights: Array) -> Array:
        """(B, Hkv, m, Sk) @ (B, Hkv, Sk, D) -> (B, Hkv, m, D)."""
        B, heads, m, _ = weights.shape
        size, most, width = self.pool.shape[2], self.table.shape[1], heads * m * self.pool.shape[3]
        if self.Sk < most * size:
            weights = np.concat([weights, np.zeros((B, heads, m, most * size - self.Sk), weights.dtype)], axis=-1)
        weights = weights.reshape(B, heads, m, most, size)
        totals = []  # of each thread

        @contextmanager
        def worker() -> Iterator[Callable[[int], None]]:
            total = np.zeros((B, width), self.width)
            totals.append(total)
            with lent([self._longest * width], self.width) as (buffer,):

                def do(i: int) -> None:
                    piece = self.pieces[i]
                    of_pages = buffer[: len(piece.owner) * width].reshape(-1, heads, m, self.pool.shape[3])
                    np.matmul(weights[piece.owner, :, :, piece.index], self._read(piece), out=of_pages)
                    _add_up(piece, of_pages.reshape(-1, width), total)

                yield do

        self._visit(worker)
        return sum(totals, start=totals.pop()).reshape(B, heads, m, -1)

    def gathered(self) -> Array:
        """Return a copy as one array, (B, Hkv, Sk, D), with zeros behind the end of an item."""
        B, heads, _, width = self.shape
        size, most = self.pool.shape[2], self.table.shape[1]
        copied = self.pool[np.maximum(self.table, 0)].swapaxes(1, 2)
        copied = np.where((self.table >= 0)[:, None, :, None, None], copied, 0.0)
        return copied.reshape(B, heads, most * size, width)[:, :, : self.Sk].astype(self.width)

    def _visit(self, worker: _Worker) -> None:
        """Let a worker do all pieces, or several, each on a thread of its own, some of them."""
        with np.errstate(all="ignore"):  # nobody has asked for what lies behind the end
            if self._longest * len(self.pieces) * math.prod(self.pool.shape[1:]) >= _MANY:
                with_blas_held_to_one(lambda threads: run_jobs(len(self.pieces), worker, threads))
                return
            with worker() as do:
                for i in range(len(self.pieces)):
                    do(i)

    def _read(self, piece: _Piece) -> Array:
        return self.pool[piece.pages].astype(self.width, copy=False)

    @cached_property
    def _longest(self) -> int:
        return max((len(piece.owner) for piece in self.pieces), default=0)  # pages of a piece


def _cut(table: Array, numbers: int) -> Iterator[_Piece]:
    """Yield pieces that hold all pages of all items, of so many numbers each; what several items have is read several times."""
    owner, index = np.nonzero(table >= 0)
    pages = table[owner, index]
    order = np.argsort(pages, kind="stable")
    owner, index, pages = owner[order], index[order], pages[order]
    count, every = max(1, _PIECE // max(numbers, 1)), slice(None)
    for i in range(0, len(pages), count):
        some, of, at = (a[i : i + count] for a in (pages, owner, index))
        first, last = int(some[0]), int(some[-1]) + 1
        if last - first > 2 * len(some) or np.any(some[1:] == some[:-1]):
            yield _Piece(some, of, at, every)  # copied, piece by piece
        elif last - first == len(some):
            yield _Piece(slice(first, last), of, at, every)
        else:
            yield _with_gaps(some, of, at)


def _with_gaps(pages: Array, owner: Array, index: Array) -> _Piece:
    """Return the stretch of the pool that some pages lie in, where the others are multiplied as well."""
    first, last = int(pages[0]), int(pages[-1]) + 1
    wanted, places = np.zeros(last - first, bool), np.zeros((2, last - first), np.intp)
    wanted[pages - first] = True
    places[:, pages - first] = owner, index
    return _Piece(slice(first, last), places[0], places[1], wanted)


def _add_up(piece: _Piece, of_pages: Array, total: Array) -> None:
    """Add what pages (pages, W) give to the totals of their items (B, W), as products that BLAS gives to no other threads."""
    belongs = piece.owner[None, :] == np.arange(len(total))[:, None]
    if not isinstance(piece.wanted, slice):
        belongs &= piece.wanted
    shares = belongs.astype(total.dtype)
    step = max(1, _LARGEST_PRODUCT // max(total.size, 1))
    for i in range(0, len(of_pages), step):
        total += shares[:, i : i + step] @ of_pages[i : i + step]
