"""The query heads of a job: their indices, and their keys, values and masks."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np

from attention_xp._engine.plan.answers import Item
from attention_xp._engine.plan.positions import Positions
from attention_xp._engine.problem.problem import Problem
from attention_xp._typing import Array

__all__ = ["Place", "for_heads", "item_of"]


class Place(NamedTuple):
    """Adjacent query heads along the last leading axis."""

    starts: tuple[int, ...]  # the leading index of the first
    heads: int

    @classmethod
    def every(cls, lead: tuple[int, ...], heads: int) -> Iterator[Self]:
        """Yield all places of at most so many heads: the last ones of an item may have fewer."""
        steps = (1,) * len(lead[:-1]) + (heads,) * len(lead[-1:])
        firsts = itertools.product(*(range(0, length, step) for length, step in zip(lead, steps, strict=True)))
        return (cls(starts, min(heads, lead[-1] - starts[-1]) if lead else 1) for starts in firsts)

    @property
    def at(self) -> tuple[slice, ...]:
        """The leading index of their rows."""
        return tuple(slice(start, start + size) for start, size in zip(self.starts, self.sizes, strict=True))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths of their leading axes."""
        return (1,) * len(self.starts[:-1]) + (self.heads,) * len(self.starts[-1:])

    def cut(self, size: int) -> list[Self]:
        """Return the same in pieces of at most so many heads."""
        if self.heads <= size:
            return [self]
        *outer, first = self.starts
        return [
            self._replace(starts=(*outer, first + i), heads=min(size, self.heads - i))
            for i in range(0, self.heads, size)
        ]

    def shared(self, problem: Problem, array: Array) -> Array:
        """Return the keys or values of these query heads, with all axes kept."""
        at = self.at
        if problem.heads is not None:
            group = problem.group
            at = (*at[:-1], slice(at[-1].start // group, (at[-1].stop - 1) // group + 1))
        return array[tuple(slice(0, 1) if n == 1 else part for part, n in zip(at, array.shape[:-2], strict=True))]

    def by_head(self, problem: Problem, array: Array) -> Array:
        """Return the keys or values of these query heads, (K, n, W), or (1, n, W) where batch items share them."""
        return self.shared(problem, array).reshape(-1, *array.shape[-2:])

    def item(self, problem: Problem) -> Item:
        """Return the batch item, and the head if it is a single one, for which rules are asked."""
        starts = self.starts
        b = int(np.ravel_multi_index(starts[: len(problem.batch)], problem.batch)) if problem.batch else 0
        h = None if problem.heads is None or self.heads > 1 else starts[-1]
        return item_of(problem, b, h)


def for_heads(array: Array, K: int) -> Array:
    """(K or 1, n, W) -> (K, n, W): batch items may share keys, or values, alone."""
    return array if len(array) == K else np.broadcast_to(array, (K, *array.shape[1:]))


def item_of(problem: Problem, b: int, h: int | None) -> Item:
    """Return a batch item and a head with the positions of rows and keys."""
    offset, keys = problem.query_offset, problem.key_positions
    if not isinstance(offset, int | None):
        offset = int(np.broadcast_to(offset, problem.batch).reshape(-1)[b])
    if keys is None:
        return Item(offset or 0, b, h, problem.key_offset or 0)
    of_all = np.broadcast_to(keys, (*problem.batch, *keys.shape[len(problem.batch) :])).reshape(-1, keys.shape[-1])
    return Item(offset or 0, b, h, Positions(of_all[b]))
