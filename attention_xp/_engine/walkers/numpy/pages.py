"""Keys or values that lie in pages of a pool, in the place of an array: the formula asks them for its two products.

In a product with few rows, reading the pages takes the time. They are therefore read where they lie: each page is multiplied by
the rows of the item that it belongs to, as if pages were batch items.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from attention_xp._engine.tile.products import Paged
from attention_xp._engine.walkers.numpy.few_rows import is_in_blocks
from attention_xp._engine.walkers.numpy.page_pieces import Pieces, cut, lie_by_heads
from attention_xp._engine.walkers.numpy.pool import run_jobs, with_blas_held_to_one
from attention_xp._typing import Array, DType

__all__ = ["Pages"]

_MANY = 2**21  # numbers of all pages from which threads pay


@dataclass(frozen=True, eq=False)
class Pages(Paged):
    """Keys ``(B, Hkv, Sk, D)`` in NumPy's pages ``(num_pages, Hkv, size, D)``."""

    pool: Array
    table: Array  # (B, pages of an item)
    lengths: list[int]
    pieces: Pieces
    width: DType  # of the computation

    @classmethod
    def of(
        cls, key: Array, value: Array, table: Array, lengths: list[int], width: DType, *, rows: int
    ) -> tuple["Pages", "Pages"]:
        """Return keys and values in the same pages, as many as the longest item has.

        They will be multiplied by so many rows of each key/value head.
        """
        at_once = not is_in_blocks(rows) and all(a.dtype == width for a in (key, value))
        size, numbers = key.shape[2], math.prod(key.shape[1:])
        pieces = cut(table, lengths, size, numbers, by_heads=lie_by_heads(key, value), at_once=at_once)
        keys, values = (cls(a, table, lengths, pieces, width) for a in (key, value))
        return keys, values

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(B, Hkv, Sk, D)``."""
        return len(self.table), self.pool.shape[1], max(self.lengths, default=0), self.pool.shape[3]

    def scores(self, rows: Array) -> Array:
        """(B, Hkv, m, D) x (B, Hkv, Sk, D) -> (B, Hkv, m, Sk); behind the last page of an item it is 0."""
        Sk = self.shape[2]
        count = self.table.shape[1] * self.pool.shape[2] if self.pieces.are_scattered else Sk
        is_full = not self.pieces.are_scattered and min(self.lengths, default=0) == Sk
        make = np.empty if is_full else np.zeros  # sums with what memory held before may warn
        scores = make((*rows.shape[:3], count), self.width)

        def do(i: int) -> None:
            self.pieces.all[i].scores(self.pool, rows, scores)

        self._visit(do)
        return scores[..., :Sk]

    def outputs(self, weights: Array) -> Array:
        """(B, Hkv, m, Sk) @ (B, Hkv, Sk, D) -> (B, Hkv, m, D)."""
        B, heads, m, Sk = weights.shape
        behind = self.table.shape[1] * self.pool.shape[2] - Sk
        if self.pieces.are_scattered and behind:
            weights = np.concat([weights, np.zeros((B, heads, m, behind), weights.dtype)], axis=-1)
        parts: list[Any] = [None] * len(self.pieces.all)

        def do(i: int) -> None:
            parts[i] = self.pieces.all[i].outputs(self.pool, weights)

        self._visit(do)
        total = np.zeros((B, heads, m, self.pool.shape[3]), self.width)
        for piece, part in zip(self.pieces.all, parts, strict=True):
            total[piece.items] += part
        return total

    def gathered(self) -> Array:
        """Return a copy as one array, (B, Hkv, Sk, D), with zeros behind the end of an item."""
        B, heads, Sk, width = self.shape
        size, most = self.pool.shape[2], self.table.shape[1]
        copied = self.pool[np.clip(self.table, 0, len(self.pool) - 1)].swapaxes(1, 2).reshape(B, heads, -1, width)
        is_read = np.arange(most * size)[None, :] < np.asarray(self.lengths)[:, None]
        return np.where(is_read[:, None, :, None], copied, 0.0)[:, :, :Sk].astype(self.width)

    def _visit(self, do: Callable[[int], None]) -> None:
        """Do all pieces, or let several threads do some of them each."""
        count = len(self.pieces.all)
        with np.errstate(all="ignore"):  # nobody has asked for what lies behind the end
            if count > 1 and self.pieces.pages * math.prod(self.pool.shape[1:]) >= _MANY:
                with_blas_held_to_one(lambda threads: run_jobs(count, lambda: nullcontext(do), threads))
                return
            for i in range(count):
                do(i)
