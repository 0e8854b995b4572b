"""The rules of packed sequences: sequences do not attend each other, and rules with an item for each sequence."""

import math
from dataclasses import dataclass
from typing import Any

from attention_xp._backend.shapes import filled_up
from attention_xp._scores.attributes import with_parts
from attention_xp._scores.region import Region, Span
from attention_xp._typing import Array, Namespace
from attention_xp.masks._mask import Mask
from attention_xp.masks._pairs import Reach, parts_of

__all__ = ["PackedMask", "SequenceMask", "of_sequence"]


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
        """Compare first and last numbers, which do not decrease."""
        if span.xp is None or isinstance(span.row_lo, int):
            return True, False
        q_lo, q_hi = self.q_item[span.row_lo], self.q_item[span.row_hi]
        k_lo, k_hi = self.k_item[span.col_lo], self.k_item[span.col_hi]
        k_hi = span.xp.where(k_hi < 0, self.k_item.shape[0], k_hi)  # behind the last sequence
        return (k_lo <= q_hi) & (q_lo <= k_hi), (q_lo == q_hi) & (k_lo == k_hi) & (q_lo == k_lo)


@dataclass(frozen=True, eq=False)
class SequenceMask(Mask):
    """A rule for a batch of sequences, applied to one of them, or to packed ones: each row by its own sequence."""

    inner: Mask
    count: int
    item: int | None  # None: packed

    @property
    def relative(self) -> bool:  # type: ignore[override]
        """Whether the inner rule is relative."""
        return self.inner.relative

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        """The heads that the rule depends on."""
        return self.inner.lead[-1:]

    def check(self, xp: Namespace, query: Array, batch: tuple[int, ...], heads: int | None) -> None:  # noqa: ARG002
        """Check the rule as one for a batch of all sequences."""
        self.inner.check(xp, query, (self.count,), heads)

    def allowed(self, region: Region) -> Array:
        """Evaluate the inner rule on the scores of the sequence, as an item of a batch of all sequences."""
        return self.inner.pairs(region if self.item is None else region.in_sequence(self.item, self.count))

    def seams(self, q_stop: int, k_stop: int) -> tuple[list[int], list[int]]:
        """Return the seams of the inner rule."""
        return self.inner.seams(q_stop, k_stop)

    def reach(self, span: Span) -> Reach:
        """Ask the inner rule about the sequence; of packed rows, which belong to several, nothing is known."""
        return (True, False) if self.item is None else self.inner.reach(span._replace(b=self.item))


def of_sequence(mask: Mask, count: int, item: int | None = None) -> Mask:
    """Return a mask in which rules that differ between batch items are applied to one sequence, or to each row's own."""
    if parts_of(mask) and mask._is_ours:
        return with_parts(mask, lambda part: of_sequence(part, count, item) if isinstance(part, Mask) else part)  # type: ignore[no-any-return]
    if math.prod(mask.lead[:-1]) == 1 and mask._is_ours:
        return mask
    return SequenceMask(mask, count, item)
