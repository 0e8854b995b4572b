"""Packed sequences whose bounds only the device knows: which sequence each row and key belongs to."""

from dataclasses import dataclass

from attention_xp._backend.dtypes import as_dtype
from attention_xp._backend.libraries import device
from attention_xp._backend.values import as_int32, within
from attention_xp._typing import Array, Namespace

__all__ = ["Packing", "pack"]


@dataclass(frozen=True)
class Packing:
    """For each row and each key, (T,) int32: its sequence, counted from 0, and its position there."""

    q_item: Array
    k_item: Array
    q_id: Array  # the number of the sequence that functions and dropout see
    q_position: Array
    k_position: Array
    same: bool  # whether rows and keys have the same bounds and no offset, so that row - key is the difference of positions


def pack(
    xp: Namespace,
    rows: int,
    keys: int,
    bounds: tuple[Array, Array],
    offsets: tuple[int | Array, int | Array],
    key_positions: Array | None,
    ids: int | Array | None,
    *,
    same: bool,
) -> Packing:
    """Return the packing of rows and keys; those after the last sequence belong to none."""
    q_item, q_position = _places(xp, rows, bounds[0])
    k_item, k_position = _places(xp, keys, bounds[1])
    q_position = q_position + _of_each(xp, offsets[0], q_item)
    k_position = k_position + _of_each(xp, offsets[1], k_item) if key_positions is None else as_int32(xp, key_positions)
    q_id = q_item if ids is None else xp.zeros_like(q_item) + _of_each(xp, ids, q_item)
    k_item = xp.where(k_item < bounds[1].shape[0] - 1, k_item, -1)
    return Packing(q_item, k_item, q_id, q_position, k_position, same)


def _of_each(xp: Namespace, numbers: int | Array, item: Array) -> int | Array:
    """Return numbers (N,) of sequences for each row or key; one is for all."""
    if isinstance(numbers, int):
        return numbers
    return xp.take(as_int32(xp, numbers), within(xp, item, 0, numbers.shape[0] - 1), axis=0)


def _places(xp: Namespace, count: int, cu_seqlens: Array) -> tuple[Array, Array]:
    index = xp.arange(count, dtype=xp.int32, device=device(cu_seqlens))
    bounds = as_dtype(xp, cu_seqlens, xp.int32)
    item = as_dtype(xp, xp.searchsorted(bounds[1:], index, side="right"), xp.int32)
    return item, index - xp.take(bounds, item, axis=0)
