"""Summaries of arrays, from which counts and extremes of any range follow in constant time."""

import math
from typing import Any, NamedTuple, Self

from attention_xp._backend.libraries import cumulative_sum
from attention_xp._scores.region import Span
from attention_xp._typing import Array, Namespace
from attention_xp.masks._look_up import at, clipped, item_of

__all__ = ["Counts", "Extremes"]


class Counts(NamedTuple):
    """Number of true entries in the rectangle before each corner: a summed-area table."""

    table: Array  # (items * (rows + 1) * (columns + 1),)
    rows: int
    columns: int

    @classmethod
    def of(cls, xp: Namespace, flags: Array) -> Self:
        """Sum up boolean ``(items, rows, columns)``."""
        table = xp.astype(flags, xp.int32)
        for axis in (-2, -1):
            table = cumulative_sum(xp, table, axis=axis, dtype=xp.int32, include_initial=True)
        return cls(xp.reshape(table, (-1,)), *flags.shape[-2:])

    def between(self, span: Span, item: Any, rows: tuple[Any, Any], columns: tuple[Any, Any]) -> Any:
        """Count in a range of rows and columns, both ends included; outside of the table nothing is true."""
        top, bottom = (self._corner(item, clipped(span, r, self.rows)) for r in (rows[0], rows[1] + 1))
        left, right = (clipped(span, c, self.columns) for c in (columns[0], columns[1] + 1))
        one, two, three, four = (at(span, self.table, r + c) for r in (top, bottom) for c in (left, right))
        return four - three - two + one

    def _corner(self, item: Any, row: Any) -> Any:
        return (item * (self.rows + 1) + row) * (self.columns + 1)


class Extremes(NamedTuple):
    """The least and the greatest of every stretch whose length is a power of two: a sparse table.

    After the batch items there is one more, with the extremes over all of them.
    """

    least: Array  # (levels * (items + 1) * length,)
    most: Array
    lead: tuple[int, ...]
    length: int

    @classmethod
    def of(cls, xp: Namespace, values: Array) -> Self:
        """Sum up integers ``(..., length)``."""
        flat = xp.reshape(values, (-1, values.shape[-1]))
        least = xp.concat([flat, xp.min(flat, axis=0, keepdims=True)], axis=0)
        most = xp.concat([flat, xp.max(flat, axis=0, keepdims=True)], axis=0)
        lead = (*values.shape[:-1], 1)
        return cls(_doubled(xp, least, xp.minimum), _doubled(xp, most, xp.maximum), lead, values.shape[-1])

    def between(self, span: Span, lo: Any, hi: Any) -> tuple[Any, Any, Any, Any]:
        """Return least and greatest in a range, both ends included, and whether some and all of it exists."""
        some, everything = (hi >= 0) & (lo < self.length), (lo >= 0) & (hi < self.length)
        lo, hi = clipped(span, lo, self.length - 1), clipped(span, hi, self.length - 1)
        level, items, item = _level(span, hi - lo + 1, self.length), math.prod(self.lead), item_of(span, self.lead)
        start = (level * (items + 1) + (items if item is None else item)) * self.length
        first, last = start + lo, start + hi - 2**level + 1
        least = [at(span, self.least, edge) for edge in (first, last)]
        most = [at(span, self.most, edge) for edge in (first, last)]
        if not hasattr(first, "shape"):
            return min(least), max(most), some, everything
        return span.xp.minimum(*least), span.xp.maximum(*most), some, everything


def _doubled(xp: Namespace, values: Array, op: Any) -> Array:
    """Return the extremes of stretches of 1, 2, 4, ... entries from each entry on, one level after another."""
    levels, width = [values], 1
    while 2 * width <= values.shape[-1]:
        last = levels[-1]
        # Stretches beyond the end are never read.
        levels.append(xp.concat([op(last[:, :-width], last[:, width:]), last[:, -width:]], axis=-1))
        width *= 2
    return xp.reshape(xp.stack(levels), (-1,))


def _level(span: Span, width: Any, longest: int) -> Any:
    """Return the whole part of the binary logarithm of a width."""
    if not hasattr(width, "shape"):
        return width.bit_length() - 1
    level = 0 * width
    for k in range(1, longest.bit_length()):
        level = level + span.xp.astype(width >= 2**k, width.dtype)
    return level
