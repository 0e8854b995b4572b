"""Rows written into a buffer at places that arrays say, also where nothing may be read: into a copy, or in place."""

import sys
from typing import Any

from attention_xp._backend.derivatives import constant
from attention_xp._backend.dtypes import as_dtype
from attention_xp._backend.libraries import (
    device,
    is_cupy_namespace,
    is_jax_namespace,
    is_numpy_namespace,
    is_torch_namespace,
)
from attention_xp._typing import Array, Namespace

__all__ = ["along", "counted", "put_rows", "with_rows"]


def with_rows(xp: Namespace, buffer: Array, units: Array, slots: Array, keep: Array, rows: Array) -> Array:
    """Return a copy of a buffer (N, H, P, D) in which ``[units[i], :, slots[i]]`` is ``rows[i]`` where ``keep[i]``.

    `units`, `slots` and `keep` are ``(m,)``, `rows` is ``(m, H, D)``. Places that are kept differ from each other; those that
    are not may be anything.
    """
    if rows.shape[0] == 0:
        return buffer
    if is_jax_namespace(xp):
        nowhere = xp.where(keep, units, buffer.shape[0])
        return buffer.at[nowhere, :, xp.where(keep, slots, 0)].set(rows, mode="drop")
    if is_torch_namespace(xp):
        return _put(xp, buffer, *_repeated(xp, buffer, units, slots, keep, rows))
    if is_cupy_namespace(xp) or is_numpy_namespace(xp):
        units, slots, rows = _repeated(xp, buffer, units, slots, keep, rows)
        written = xp.asarray(buffer, copy=True)
        written[units, :, slots] = rows
        return written
    return _chosen(xp, buffer, units, slots, keep, rows)


def put_rows(xp: Namespace, buffer: Array, units: Array, slots: Array, keep: Array | None, rows: Array) -> Array:
    """Do the same in the buffer itself, and return it; on JAX, return a copy. `keep` is None where all rows are kept."""
    if rows.shape[0] == 0:
        return buffer
    if not (is_torch_namespace(xp) or is_cupy_namespace(xp) or is_numpy_namespace(xp)):
        keep = xp.ones_like(units, dtype=xp.bool) if keep is None else keep
        written = with_rows(xp, buffer, units, slots, keep, rows)
        if is_jax_namespace(xp):
            return written
        buffer[...] = written  # the standard writes to no places that arrays say
        return buffer
    if keep is not None:
        units, slots, rows = _repeated(xp, buffer, units, slots, keep, rows)
    index = xp.int64 if is_torch_namespace(xp) else units.dtype
    buffer[as_dtype(xp, units, index), :, as_dtype(xp, slots, index)] = rows
    return buffer


def along(xp: Namespace, array: Array, index: Array, axis: int) -> Array:
    """Return ``take_along_axis``, for which torch wants wide indices."""
    return xp.take_along_axis(array, xp.astype(index, xp.int64) if is_torch_namespace(xp) else index, axis=axis)


def counted(xp: Namespace, numbers: Array, keep: Array, size: int) -> Array:
    """Return how often each of the numbers below `size` occurs among those that are kept, (size,) int32."""
    flat = xp.sort(xp.reshape(xp.where(keep, numbers, size), (-1,)))
    every = xp.arange(size, dtype=flat.dtype, device=device(numbers))
    left, right = (xp.searchsorted(flat, every, side=side) for side in ("left", "right"))
    return xp.astype(right - left, xp.int32)


def _repeated(
    xp: Namespace, buffer: Array, units: Array, slots: Array, keep: Array, rows: Array
) -> tuple[Array, Array, Array]:
    """Return units, slots and rows in which those that are not kept repeat the first kept one.

    Where none is kept, all of them write to the first place what is there already. To write the same numbers twice changes
    nothing; the repeated ones are constants, so that only one of them has a gradient.
    """
    none = ~xp.any(keep)
    first = xp.argmax(xp.astype(keep, xp.int32), axis=0, keepdims=True)  # 0 where none is kept
    units, slots = (xp.where(keep, a, xp.where(none, 0, xp.take(a, first, axis=0))) for a in (units, slots))
    units, slots = (xp.astype(a, xp.int64) for a in (units, slots))
    there = buffer[:1, :, 0, :]  # (1, H, D)
    other = xp.where(none, there, xp.take(rows, first, axis=0))
    is_first = xp.arange(keep.shape[0], dtype=xp.int32, device=device(rows)) == 0
    other = xp.where((none & is_first)[:, None, None], there, constant(xp, other))
    return units, slots, xp.where(keep[:, None, None], rows, other)


def _put(xp: Namespace, buffer: Array, units: Array, slots: Array, rows: Array) -> Array:
    """Write rows into a tensor of torch, out of place."""
    torch: Any = sys.modules["torch"]
    by_slots = xp.permute_dims(buffer, (0, 2, 1, 3))
    return xp.permute_dims(torch.index_put(by_slots, (units, slots), rows), (0, 2, 1, 3))


def _chosen(xp: Namespace, buffer: Array, units: Array, slots: Array, keep: Array, rows: Array) -> Array:
    """Do the same with what the standard has: each place looks for its row."""
    N, H, P, D = buffer.shape
    place = xp.where(keep, units * P + slots, -1)
    every = xp.arange(N * P, dtype=place.dtype, device=device(buffer))
    is_here = every[:, None] == place[None, :]  # (N * P, m)
    chosen = xp.take(rows, xp.argmax(xp.astype(is_here, xp.int32), axis=1), axis=0)
    chosen = xp.permute_dims(xp.reshape(chosen, (N, P, H, D)), (0, 2, 1, 3))
    return xp.where(xp.reshape(xp.any(is_here, axis=1), (N, 1, P, 1)), chosen, buffer)
