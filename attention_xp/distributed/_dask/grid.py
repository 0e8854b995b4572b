"""The arrays of a call in chunks that line up with a grid over the scores ``(..., H, Sq, Sk)``."""

import math
from collections.abc import Sequence
from itertools import accumulate, product
from typing import Any, NamedTuple

import dask.array as da
from dask.array.utils import meta_from_array
from dask.task_spec import TaskRef

from attention_xp._backend.dtypes import computation_dtype, is_floating
from attention_xp._backend.libraries import array_namespace, common_namespace, is_array, is_numpy
from attention_xp._scores.alignment import without_surplus
from attention_xp._scores.frame import Frame
from attention_xp._typing import Array

__all__ = ["Aligned", "Grid", "Index", "as_dask", "stand_in"]

Index = tuple[int, ...]


def as_dask(name: str, given: Any) -> da.Array:
    """Return an array of Dask, or one that is made of an array of NumPy or CuPy or of a file such as that of zarr."""
    if isinstance(given, da.Array):
        if any(math.isnan(n) for n in given.shape):
            raise ValueError(
                f"the lengths of {name} must be known, got {given.shape}: {name}.compute_chunk_sizes() finds them"
            )
        return given
    if not hasattr(given, "dtype") or not hasattr(given, "shape"):
        raise TypeError(f"{name} must be an array of dask, or one that it can be made of, got {type(given).__name__}")
    if is_array(given):
        common_namespace(**{name: given})
        if "cupy" not in type(given).__module__ and not is_numpy(given):
            raise TypeError(f"{name} must be an array of dask, or one that it can be made of, got one of {type(given)}")
    return da.from_array(given)


def stand_in(array: da.Array, query: da.Array | None = None) -> Array:
    """Return an array of the library of the blocks, in the shape of the whole, which takes no memory.

    With a query, floats are in the dtype of its computation, to which they need not be cast.
    """
    xp = array_namespace(meta_from_array(array))
    dtype = array.dtype
    if query is not None and is_floating(xp, dtype):
        dtype = computation_dtype(xp, query.dtype)
    return xp.broadcast_to(xp.zeros((), dtype=dtype), array.shape)


class Aligned(NamedTuple):
    """An array whose axes are some of those of the scores, and perhaps one more, which is a single chunk."""

    array: da.Array
    axes: tuple[int, ...]

    def at(self, index: Index) -> Index:
        """Return the index of the chunk that belongs to a chunk of the scores."""
        own = tuple(0 if self.array.shape[i] == 1 else index[axis] for i, axis in enumerate(self.axes))
        return (*own, *(0,) * (self.array.ndim - len(own)))

    def ref(self, index: Index) -> TaskRef:
        """Refer to that chunk in a graph."""
        return TaskRef((self.array.name, *self.at(index)))


class Grid(NamedTuple):
    """The chunks of the scores."""

    chunks: tuple[tuple[int, ...], ...]  # along each axis
    batch: tuple[int, ...]
    heads: int | None
    group: int  # query heads per key/value head

    @classmethod
    def of(cls, frame: Frame, group: int, query: da.Array, key: da.Array, value: da.Array) -> "Grid":
        """Return the chunks of batch items, heads and rows of a query, and of keys."""
        n = len(frame.batch)
        batch = [
            next((x.chunks[i] for x in (query, key, value) if x.shape[i] == length), (length,))
            for i, length in enumerate(frame.batch)
        ]
        heads = () if frame.heads is None else (query.chunks[n],)
        return cls((*batch, *heads, query.chunks[-2], key.chunks[-2]), frame.batch, frame.heads, group)

    @property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """Where the chunks begin."""
        return tuple(tuple(accumulate(sizes, initial=0))[:-1] for sizes in self.chunks)

    @property
    def of_heads_and_keys(self) -> tuple[int, ...]:
        """The axes of batch items, heads and keys."""
        last = len(self.chunks) - 1
        return (*range(last - 1), last)

    @property
    def lead(self) -> list[Index]:
        """The indices of chunks of batch items and heads."""
        return list(product(*(range(len(sizes)) for sizes in self.chunks[:-2])))

    def aligned(self, array: da.Array, axes: Sequence[int]) -> Aligned:
        """Cut an array into the chunks of the grid along some of its axes; axes that are left are one chunk."""
        chunks = {i: self.chunks[axis] for i, axis in enumerate(axes) if array.shape[i] != 1}
        rest = {i: -1 for i in range(array.ndim) if i not in chunks}
        return Aligned(array.rechunk(chunks | rest), tuple(axes))

    def rows(self, array: da.Array) -> Aligned:
        """Align what has a line for each row of the scores, or a number."""
        return self.aligned(array, range(len(self.chunks) - 1))

    def of_keys(self, array: da.Array) -> Aligned:
        """Align keys or values: each chunk of query heads meets those that it shares."""
        if self.heads is not None and self.taken_heads != list(range(array.shape[-3])):
            array = da.take(array, self.taken_heads, axis=-3)
        axes = self.of_heads_and_keys
        chunks = {i: self.chunks[axis] for i, axis in enumerate(axes) if array.shape[i] != 1}
        if self.heads is not None:
            chunks[array.ndim - 3] = tuple(map(len, self.shared_heads))
        rest = {i: -1 for i in range(array.ndim) if i not in chunks}
        return Aligned(array.rechunk(chunks | rest), axes)

    def of_given_heads(self, array: da.Array, given: da.Array) -> da.Array:
        """Sum up what belongs to the key/value heads that `of_keys` took more than once."""
        if self.heads is not None and self.taken_heads != list(range(given.shape[-3])):
            places = [[i for i, h in enumerate(self.taken_heads) if h == head] for head in range(given.shape[-3])]
            array = da.stack([da.take(array, own, axis=-3).sum(axis=-3) for own in places], axis=-3)
        return array

    @property
    def shared_heads(self) -> list[list[int]]:
        """The key/value heads of each chunk of query heads; one for each of these where groups are cut in pieces."""
        found = []
        for start, size in zip(self.starts[-3], self.chunks[-3], strict=True):
            each = [h // self.group for h in range(start, start + size)]
            few = sorted(set(each))
            whole_groups = bool(few) and each == [h for h in few for _ in range(size // len(few))]
            found.append(few if whole_groups else each)
        return found

    @property
    def taken_heads(self) -> list[int]:
        """These of all chunks, one behind the other."""
        return [h for heads in self.shared_heads for h in heads]

    def option(self, name: str, array: da.Array) -> Aligned:
        """Align an array that is an option."""
        n, last = len(self.batch), len(self.chunks) - 1
        axes: Sequence[int]
        if name in ("mask", "bias"):
            array = array.reshape(without_surplus(array.shape, len(self.chunks), self.heads))
            axes = range(last + 1)
        elif name in ("sinks", "head_ids"):
            axes = range(n, last - 1)
        elif name == "key_positions":
            axes = (*range(n), last)
        else:
            axes = range(n if name != "scale" else 0)
        return self.aligned(array, axes[len(axes) - array.ndim :])
