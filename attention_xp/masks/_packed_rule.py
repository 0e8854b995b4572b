"""The rule of packed sequences whose bounds the device alone knows."""

from dataclasses import dataclass
from typing import Any

from attention_xp._backend.shapes import filled_up
from attention_xp._scores.region import Region, Span
from attention_xp._typing import Array
from attention_xp.masks._mask import Mask

__all__ = ["PackedMask"]


@dataclass(frozen=True, eq=False)
class PackedMask(Mask):
    """A query attends the keys of its own sequence."""

    q_item: Array
    k_item: Array
    _is_of_places = True

    def allowed(self, region: Region) -> Array:
        """Compare the numbers of the sequences."""
        xp, ndim = region.xp, region.frame.ndim
        rows, keys = filled_up(xp, self.q_item, ndim, behind=1), filled_up(xp, self.k_item, ndim)
        return region.look_up(rows) == region.look_up(keys)

    def reach(self, span: Span) -> tuple[Any, Any]:
        """Compare first and last: the numbers do not decrease."""
        if span.xp is None or isinstance(span.row_lo, int):
            return True, False
        q_lo, q_hi = self.q_item[span.row_lo], self.q_item[span.row_hi]
        k_lo, k_hi = self.k_item[span.col_lo], self.k_item[span.col_hi]
        k_hi = span.xp.where(k_hi < 0, self.k_item.shape[0], k_hi)  # behind the last sequence
        return (k_lo <= q_hi) & (q_lo <= k_hi), (q_lo == q_hi) & (k_lo == k_hi) & (q_lo == k_lo)
