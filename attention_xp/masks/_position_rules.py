"""Rules that compare the positions of query and key."""

from typing import Any, ClassVar

from attention_xp._backend.values import FAR
from attention_xp._checks.numbers import check_count, check_window
from attention_xp._scores.region import Region, Span
from attention_xp._typing import Array
from attention_xp.masks._length_rules import batch_and_head
from attention_xp.masks._look_up import check_counts, item_of, least_and_most, line_up
from attention_xp.masks._mask import Mask
from attention_xp.masks._pairs import Reach, rule

__all__ = ["CausalMask", "LastOfChunk", "SameChunk", "StridedMask", "WindowMask"]


@rule
class CausalMask(Mask):
    r"""A query attends keys at its own position and before: :math:`k \le q`.

    Examples
    --------
    >>> from attention_xp.masks import CausalMask
    >>> CausalMask().to_array(3, 3)
    array([[ True, False, False],
           [ True,  True, False],
           [ True,  True,  True]])
    """

    relative = True
    shift_invariant = True
    _as_band = None, 0

    def allowed(self, region: Region) -> Array:
        """Return the lower triangle, shifted by the query offset."""
        return region.kv_idx <= region.q_idx

    def reach(self, span: Span) -> Reach:
        """Compare the corners above and below the diagonal."""
        return span.k_lo <= span.q_hi, span.k_hi <= span.q_lo


@rule
class WindowMask(Mask):
    r"""A query attends keys in a window around its own position: :math:`q - l \le k \le q + r`.

    Parameters
    ----------
    left, right : int or None
        :math:`l` and :math:`r`, how far the window extends to either side; both ends are included, ``None`` opens
        a side.

    Raises
    ------
    TypeError
        If a side is neither an int nor None.
    ValueError
        If a side is negative.

    Examples
    --------
    >>> from attention_xp.masks import WindowMask
    >>> WindowMask(1, 0).to_array(3, 3)
    array([[ True, False, False],
           [ True,  True, False],
           [False,  True,  True]])
    """

    left: int | None
    right: int | None
    relative = True
    shift_invariant = True

    def __init__(self, left: int | None, right: int | None) -> None:
        self.left, self.right = check_window((left, right))

    @property
    def _as_band(self) -> tuple[int | None, int | None]:  # type: ignore[override]
        return self.left, self.right

    @property
    def _windows(self) -> list[tuple[int, int | None]]:
        return [] if self.left is None else [(self.left, self.right)]

    @property
    def extent(self) -> tuple[int, int]:  # type: ignore[override]
        """Return a size at which both edges of the window show."""
        size = min(8192, max(32, 2 * max(self.left or 0, self.right or 0)))
        return size, size

    def allowed(self, region: Region) -> Array:
        """Return a band around the diagonal."""
        q_idx, kv_idx = region.q_idx, region.kv_idx
        if self.left is None:
            if self.right is None:
                return region.xp.ones_like(kv_idx, dtype=region.xp.bool)
            return kv_idx <= q_idx + min(self.right, FAR)
        if self.right is None:
            return kv_idx >= q_idx - min(self.left, FAR)
        return (kv_idx >= q_idx - min(self.left, FAR)) & (kv_idx <= q_idx + min(self.right, FAR))

    def reach(self, span: Span) -> Reach:
        """Compare the least and the greatest distance in the rectangle with the window."""
        least, most = span.k_lo - span.q_hi, span.k_hi - span.q_lo
        possible, certain = True, True
        if self.left is not None:
            left = min(self.left, FAR)
            possible, certain = most >= -left, least >= -left
        if self.right is not None:
            right = min(self.right, FAR)
            possible, certain = possible & (least <= right), certain & (most <= right)
        return possible, certain


@rule
class StridedMask(Mask):
    r"""A query attends every ``stride``-th key, counted from its own position: :math:`(q - k) \bmod s = 0`.

    Parameters
    ----------
    stride : int
        :math:`s`, at least 1.

    Raises
    ------
    TypeError
        If `stride` is no int.
    ValueError
        If `stride` is below 1.

    Examples
    --------
    >>> from attention_xp.masks import StridedMask
    >>> StridedMask(2).to_array(2, 4)
    array([[ True, False,  True, False],
           [False,  True, False,  True]])
    """

    stride: int
    shift_invariant = True

    def __init__(self, stride: int) -> None:
        self.stride = check_count("stride", stride)

    @property
    def extent(self) -> tuple[int, int]:  # type: ignore[override]
        """Return a size at which some diagonals show."""
        size = min(8192, max(32, 4 * self.stride))
        return size, size

    def allowed(self, region: Region) -> Array:
        """Return equally spaced diagonals."""
        return (region.q_idx - region.kv_idx) % min(self.stride, FAR) == 0

    def reach(self, span: Span) -> Reach:
        """Look for a multiple of the stride between the least and the greatest distance."""
        return _multiple_between(span.q_lo - span.k_hi, span.q_hi - span.k_lo, min(self.stride, FAR))


@rule
class SameChunk(Mask):
    """Chunks of equal size attend themselves; one begins at `start`, an int that is not negative or an array of the batch shape."""

    size: int
    start: int | Array = 0
    _numbers = ("start",)
    _axes: ClassVar = {"start": "b"}

    def __init__(self, size: int, start: int | Array = 0) -> None:
        self.size = min(size, FAR)
        self.start = check_counts("start", start)

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        """Return the batch shape and a head."""
        return batch_and_head(self.start)

    def allowed(self, region: Region) -> Array:
        """Compare the chunks of query and key."""
        start = line_up(region, self.start)
        return (region.q_idx - start) // self.size == (region.kv_idx - start) // self.size

    def seams(self, q_stop: int, k_stop: int) -> tuple[list[int], list[int]]:
        """Return where chunks begin, where that is the same for all batch items."""
        if not isinstance(self.start, int):
            return [], []
        first = self.start % self.size or self.size
        return list(range(first, q_stop, self.size)), list(range(first, k_stop, self.size))

    def reach(self, span: Span) -> Reach:
        """Compare the first and the last chunks, for the least and the greatest start."""
        starts = (self.start, self.start) if isinstance(self.start, int) else self._starts(span)
        if starts is None:
            return True, False
        least, most = starts
        q_first, k_first = ((x - most) // self.size for x in (span.q_lo, span.k_lo))
        q_last, k_last = ((x - least) // self.size for x in (span.q_hi, span.k_hi))
        possible = (q_first <= k_last) & (k_first <= q_last)
        return possible, (q_first == k_last) & (k_first == q_last) & (least == most)

    def _starts(self, span: Span) -> tuple[Any, Any] | None:
        return least_and_most(span, self.start, item_of(span, self.lead))


@rule
class LastOfChunk(Mask):
    """The last keys of chunks of equal size are attended by every query."""

    size: int

    def __init__(self, size: int) -> None:
        self.size = min(size, FAR)

    def allowed(self, region: Region) -> Array:
        """Return equally spaced columns."""
        return (region.kv_idx + 1) % self.size == 0

    def seams(self, q_stop: int, k_stop: int) -> tuple[list[int], list[int]]:  # noqa: ARG002
        """Return where the last keys begin and end."""
        return [], [edge for end in range(self.size, k_stop + 1, self.size) for edge in (end - 1, end)]

    def reach(self, span: Span) -> Reach:
        """Look for a multiple of the size among the columns."""
        return _multiple_between(span.k_lo + 1, span.k_hi + 1, self.size)


def _multiple_between(least: Any, most: Any, step: int) -> Reach:
    """Return whether some number, and whether every number, in a range is a multiple of a step."""
    possible = most // step * step >= least
    return possible, possible & ((least == most) | (step == 1))
