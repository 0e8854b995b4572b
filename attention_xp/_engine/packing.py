"""Packed sequences whose bounds are known to the device alone: which sequence a row or a key is of."""

from dataclasses import dataclass
from typing import Any

from attention_xp._backend.libraries import device
from attention_xp._backend.shapes import filled_up
from attention_xp._backend.values import as_int32, within
from attention_xp._engine.region import Region, Span
from attention_xp._typing import Array, Namespace
from attention_xp.masks import Mask

__all__ = ["PackedMask", "Packing", "pack"]


@dataclass(frozen=True)
class Packing:
    """For each row and each key, (T,) int32: the number of its sequence and its position there."""

    q_item: Array
    k_item: Array
    q_position: Array
    k_position: Array
    same: bool  # whether rows and keys are packed alike, so that row - key is the difference of positions


def pack(xp: Namespace, rows: int, keys: int, cu_q: Array, cu_k: Array, offset: Any, *, same: bool) -> Packing:
    """Return where each row and key belongs; what comes after the last sequence belongs nowhere."""
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


@dataclass(frozen=True, eq=False)
class PackedMask(Mask):
    """A query attends the keys of its own sequence."""

    q_item: Array
    k_item: Array

    def allowed(self, region: Region) -> Array:
        """Compare the numbers of the sequences."""
        xp, ndim = region.problem.xp, region.problem.ndim
        rows, keys = filled_up(xp, self.q_item, ndim, behind=1), filled_up(xp, self.k_item, ndim)
        return region.look_up(rows) == region.look_up(keys)

    def reach(self, span: Span) -> tuple[Any, Any]:
        """Compare first and last: the numbers do not decrease."""
        if span.xp is None or isinstance(span.row_lo, int):
            return True, False
        q_lo, q_hi = self.q_item[span.row_lo], self.q_item[span.row_hi]
        k_lo, k_hi = self.k_item[span.k_lo], self.k_item[span.k_hi]
        k_hi = span.xp.where(k_hi < 0, self.k_item.shape[0], k_hi)  # behind the last sequence
        return (k_lo <= q_hi) & (q_lo <= k_hi), (q_lo == q_hi) & (k_lo == k_hi) & (q_lo == k_lo)
