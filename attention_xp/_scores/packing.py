"""Packed sequences whose bounds only the device knows: which sequence each row and key belongs to."""

from dataclasses import dataclass
from typing import Any

from attention_xp._backend.libraries import device
from attention_xp._backend.values import as_int32, within
from attention_xp._typing import Array, Namespace

__all__ = ["Packing", "pack"]


@dataclass(frozen=True)
class Packing:
    """For each row and each key, (T,) int32: the number of its sequence and its position there."""

    q_item: Array
    k_item: Array
    q_position: Array
    k_position: Array
    same: bool  # whether rows and keys have the same bounds and no offset, so that row - key is the difference of positions


def pack(xp: Namespace, rows: int, keys: int, cu_q: Array, cu_k: Array, offset: Any, *, same: bool) -> Packing:
    """Return the packing of rows and keys; those after the last sequence belong to none."""
    q_item, q_position = _places(xp, rows, cu_q)
    k_item, k_position = _places(xp, keys, cu_k)
    if not isinstance(offset, int):
        index = within(xp, q_item, 0, offset.shape[0] - 1)
        offset = xp.take(as_int32(xp, offset), index, axis=0)
    k_item = xp.where(k_item < cu_k.shape[0] - 1, k_item, -1)
    return Packing(q_item, k_item, q_position + offset, k_position, same)


def _places(xp: Namespace, count: int, cu_seqlens: Array) -> tuple[Array, Array]:
    index = xp.arange(count, dtype=xp.int32, device=device(cu_seqlens))
    bounds = xp.astype(cu_seqlens, xp.int32, copy=False)
    item = xp.astype(xp.searchsorted(bounds[1:], index, side="right"), xp.int32, copy=False)
    return item, index - xp.take(bounds, item, axis=0)
