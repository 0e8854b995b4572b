"""Masks as rules: which query may attend which key, answered from positions alone."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attention_xp._engine.numbers import check_window
from attention_xp._typing import Array

if TYPE_CHECKING:
    from attention_xp._engine.region import Region

__all__ = ["CausalMask", "LengthMask", "Mask", "WindowMask"]


class Mask:
    """A rule that allows or forbids (query, key) pairs; combine rules with ``&``, ``|`` and ``~``.

    A rule is never materialised beyond the region of the scores that is being computed. To write
    one, subclass and define `allowed`; set `relative` where the answer depends on how query
    and key positions are aligned, so that nobody has to guess the alignment.
    """

    relative: bool = False

    def allowed(self, region: "Region") -> Array:
        """Return a boolean array that broadcasts against the scores of `region`."""
        raise NotImplementedError(f"{type(self).__name__} must define allowed(region)")

    def __and__(self, other: Any) -> "Mask":
        return _Both(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: Any) -> "Mask":
        return _Either(self, other) if isinstance(other, Mask) else NotImplemented

    def __invert__(self) -> "Mask":
        return _Not(self)


@dataclass(frozen=True)
class _Both(Mask):
    left: Mask
    right: Mask

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return self.left.relative or self.right.relative

    def allowed(self, region: "Region") -> Array:
        return self.left.allowed(region) & self.right.allowed(region)


@dataclass(frozen=True)
class _Either(Mask):
    left: Mask
    right: Mask

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return self.left.relative or self.right.relative

    def allowed(self, region: "Region") -> Array:
        return self.left.allowed(region) | self.right.allowed(region)


@dataclass(frozen=True)
class _Not(Mask):
    inner: Mask

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return self.inner.relative

    def allowed(self, region: "Region") -> Array:
        return ~self.inner.allowed(region)


@dataclass(frozen=True)
class CausalMask(Mask):
    """A query at position ``p`` attends keys at positions ``<= p``."""

    relative = True

    def allowed(self, region: "Region") -> Array:
        """Return the lower triangle, shifted by the query offset."""
        return region.kv_idx <= region.q_idx


@dataclass(frozen=True)
class WindowMask(Mask):
    """A query at position ``p`` attends keys in ``[p - left, p + right]``; ``None`` opens a side."""

    left: int | None
    right: int | None
    relative = True

    def __post_init__(self) -> None:
        check_window((self.left, self.right))

    def allowed(self, region: "Region") -> Array:
        """Return a band around the diagonal."""
        q_idx, kv_idx = region.q_idx, region.kv_idx
        if self.left is None:
            return kv_idx >= 0 if self.right is None else kv_idx <= q_idx + self.right
        if self.right is None:
            return kv_idx >= q_idx - self.left
        return (kv_idx >= q_idx - self.left) & (kv_idx <= q_idx + self.right)


@dataclass(frozen=True, eq=False)
class LengthMask(Mask):
    """Keys before ``lengths[b]``: an int for all, or an integer array of the batch shape."""

    lengths: int | Array

    def allowed(self, region: "Region") -> Array:
        """Return True for the keys that are no padding."""
        return region.kv_idx < region.per_batch(self.lengths)
