"""Rectangles of the scores: their index arrays, the matching pieces of other arrays, and their bounds."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Self

from attention_xp._backend.dtypes import as_dtype
from attention_xp._backend.libraries import device, library_name
from attention_xp._backend.shapes import filled_up
from attention_xp._backend.sizes import as_number
from attention_xp._backend.values import within
from attention_xp._scores.frame import Frame
from attention_xp._typing import Array, Namespace

__all__ = ["Region", "Span", "cut", "own_array", "span_between"]


class Span(NamedTuple):
    """The bounds of a rectangle of (query, key) pairs, both ends included.

    All fields but `xp` are plain ints; for many rectangles at a time, they are arrays of `xp` that broadcast against each
    other. The position of a query is its row plus the query offset, that of a key its column plus the key offset, or what
    `key_positions` says: the positions of all keys then lie between `k_lo` and `k_hi`, and perhaps those of others.
    """

    xp: Namespace
    row_lo: Any
    row_hi: Any
    q_lo: Any
    q_hi: Any
    k_lo: Any
    k_hi: Any
    b: Any
    h: Any
    col_lo: Any = None
    col_hi: Any = None


def span_between(
    xp: Namespace | None,
    rows: tuple[Any, Any],
    columns: tuple[Any, Any],
    offsets: tuple[Any, Any],
    b: Any = None,
    h: Any = None,
) -> Span:
    """Return the span of half-open bounds, or of arrays of them; offsets are added to rows and columns for positions."""
    (row, row_hi), (col, col_hi) = ((start, stop - 1) for start, stop in (rows, columns))
    q, k = offsets
    return Span(xp, row, row_hi, row + q, row_hi + q, col + k, col_hi + k, b, h, col, col_hi)


def own_array(xp: Namespace, array: Array, query: Array) -> Array:
    """Return an array of NumPy in the library and on the device of a query, and any other as it is."""
    if type(array).__module__ != "numpy" or library_name(xp) == "numpy":
        return array
    return xp.asarray(array.copy(), device=device(query))  # torch asks for memory that is writable


def cut(array: Array, starts: list[Any], sizes: list[int]) -> Array:
    """Return a rectangular piece of an array."""
    return array[tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))]


class Region(NamedTuple):
    """A rectangle of the scores ``(..., H, Sq, Sk)``, with index arrays that broadcast against it.

    Index arrays are int32 on every backend and have all the axes of the scores, so that they mix with each other under
    the strictest promotion rules and feed the counter-based random numbers directly. `starts` may be traced.
    """

    frame: Frame
    starts: tuple[Any, ...]
    sizes: tuple[int, ...]
    cut: Callable[[Array, list[Any], list[int]], Array] = cut

    @classmethod
    def whole(cls, frame: Frame) -> Self:
        """Return all of the scores."""
        sizes = frame.shape
        return cls(frame, (0,) * len(sizes), sizes)

    @property
    def xp(self) -> Namespace:
        """The array library of the scores."""
        return self.frame.xp

    def part(self, rows: tuple[int, int], columns: tuple[int, int]) -> "Region":
        """Return half-open rows and columns of this region."""
        starts = (*self.starts[:-2], self.starts[-2] + rows[0], self.starts[-1] + columns[0])
        return self._replace(starts=starts, sizes=(*self.sizes[:-2], rows[1] - rows[0], columns[1] - columns[0]))

    def of_rows(self, start: int, stop: int) -> "Region":
        """Return some rows of this region."""
        if stop - start == self.sizes[-2]:
            return self
        return self.part((start, stop), (0, self.sizes[-1]))

    @property
    def row(self) -> Array:
        """Rows of the query, counted from 0: ``(..., 1, Sq, 1)``."""
        return self._count(-2)

    @property
    def column(self) -> Array:
        """Key columns, counted from 0: ``(..., 1, 1, Sk)``."""
        return self._count(-1)

    @property
    def q_idx(self) -> Array:
        """Query positions: rows plus the query offset."""
        packing, offset = self.frame.packing, self.frame.query_offset
        if packing is not None:
            return self._packed(packing.q_position, 1)
        return self.row if offset is None else self.row + self.per_batch(offset)

    @property
    def kv_idx(self) -> Array:
        """Key positions: columns plus the key offset, or the `key_positions` of the call, ``(..., 1, 1, Sk)``."""
        frame = self.frame
        if frame.packing is not None:
            return self._packed(frame.packing.k_position, 0)
        if frame.key_positions is not None:
            return self.look_up(frame.key_positions)
        return self.column if frame.key_offset is None else self.column + frame.key_offset

    @property
    def h(self) -> Array:
        """Head indices, or the `head_ids` of the call: ``(..., H, 1, 1)``, zero without a heads axis."""
        frame = self.frame
        return self.head if frame.head_ids is None else self.look_up(filled_up(self.xp, frame.head_ids, frame.ndim))

    @property
    def head(self) -> Array:
        """Heads, counted from 0 also where there are `head_ids`: ``(..., H, 1, 1)``, or zero without a heads axis."""
        return self._zero() if self.frame.heads is None else self._count(-3)

    @property
    def b(self) -> Array:
        """Flat index over the batch axes, or the `item_ids` of the call, ``(..., 1, 1, 1)``; packed, of a row's sequence."""
        if self.frame.packing is not None:
            return self._packed(self.frame.packing.q_id, 1)
        return self.item if self.frame.item_ids is None else self.look_up(self.frame.item_ids)

    @property
    def item(self) -> Array:
        """Batch items, counted from 0 over the batch axes also where there are `item_ids`: ``(..., 1, 1, 1)``."""
        flat = self._zero()
        for axis, length in enumerate(self.frame.batch):
            flat = flat * as_number(self.xp, length) + self._count(axis - self.frame.ndim)
        return flat

    def per_batch(self, values: int | Array) -> int | Array:
        """Align one value per batch item with the scores; a plain int is returned as it is."""
        if isinstance(values, int):
            return values
        ndim = self.frame.ndim
        if self.frame.packing is not None and values.ndim and values.shape[-1] != 1:
            return self._at(values, self.in_packed(values.shape[-1], 1))
        return self.look_up(filled_up(self.xp, values, ndim, behind=ndim - len(self.frame.batch)))

    def per_head(self, values: Array | float) -> Array:
        """Align numbers ``(H,)`` or ``(B, H)`` with the scores, in their dtype; an axis of length 1, or one number, is for all.

        Where there are no heads, the last axis has that length.
        """
        numbers = self.floating(values)
        if self.frame.heads is None and numbers.ndim > 0:
            numbers = numbers[..., 0]
        elif self.frame.packing is not None and numbers.ndim > 1 and numbers.shape[0] != 1:
            return self._at(numbers, self.in_packed(*numbers.shape))
        return self.look_up(filled_up(self.xp, numbers, self.frame.ndim, behind=2 if numbers.ndim > 0 else 0))

    def floating(self, numbers: Array | float) -> Array:
        """Return numbers of any kind, also those of a NumPy array or a single one of Python, in the dtype of the scores."""
        frame = self.frame
        if isinstance(numbers, int | float):
            return frame.xp.asarray(numbers, dtype=frame.dtype, device=device(frame.query))
        return as_dtype(frame.xp, self.own(numbers), frame.dtype)

    def own(self, array: Array) -> Array:
        """Return an array in the library and on the device of the query; NumPy arrays serve every library."""
        return own_array(self.xp, array, self.frame.query)

    def look_up(self, aligned: Array) -> Array:
        """Return the piece of an array, aligned with the scores, that covers this region."""
        shape = tuple(aligned.shape)
        first = len(self.sizes) - len(shape)
        starts = [0 if length == 1 else start for start, length in zip(self.starts[first:], shape, strict=True)]
        sizes = [1 if length == 1 else size for size, length in zip(self.sizes[first:], shape, strict=True)]
        return aligned if tuple(sizes) == shape else self.cut(aligned, starts, sizes)

    def in_packed(self, items: int, heads: int) -> Array:
        """Return the flat index into numbers ``(N, H)`` of packed sequences: each row has those of its own."""
        packing: Any = self.frame.packing
        item = within(self.xp, self._packed(packing.q_item, 1), 0, items - 1)  # rows behind the last attend nothing
        return item if heads == 1 else item * heads + self.head

    def in_sequence(self, item: int, count: int) -> "Region":
        """Return the region of a batch of one as that of an item of a batch of `count`."""
        return self._replace(frame=replace(self.frame, batch=(count,)), starts=(item, *self.starts[1:]))

    def _at(self, numbers: Array, index: Array) -> Array:
        """Return numbers by their flat index."""
        xp = self.xp
        return xp.reshape(xp.take(xp.reshape(numbers, (-1,)), xp.reshape(index, (-1,)), axis=0), index.shape)

    def _count(self, axis: int) -> Array:
        """Return the indices of this region along an axis."""
        xp, frame = self.xp, self.frame
        index = xp.arange(self.sizes[axis], dtype=xp.int32, device=device(frame.query)) + self.starts[axis]
        return filled_up(xp, index, frame.ndim, behind=-axis - 1)

    def _zero(self) -> Array:
        frame = self.frame
        return frame.xp.zeros((1,) * frame.ndim, dtype=frame.xp.int32, device=device(frame.query))

    def _packed(self, numbers: Array, behind: int) -> Array:
        """Align numbers of packed rows or keys, ``(T,)``, with the scores."""
        return self.look_up(filled_up(self.xp, numbers, self.frame.ndim, behind=behind))
