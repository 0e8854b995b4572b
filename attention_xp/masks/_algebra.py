"""Masks made of masks: both, either, not."""

from typing import Any

from attention_xp._scores.region import Region, Span
from attention_xp._typing import Array
from attention_xp.masks._array_rule import as_mask
from attention_xp.masks._mask import Mask, Reach, rule

__all__ = ["Both", "Either", "Not", "combined", "conjuncts"]


@rule
class _Pair(Mask):
    """Two masks as one; what one of them depends on, both do."""

    left: Mask
    right: Mask

    def __init__(self, left: Mask, right: Mask) -> None:
        self.left = left
        self.right = right

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return self.left.relative or self.right.relative

    @property
    def shift_invariant(self) -> bool:  # type: ignore[override]
        return self.left.shift_invariant and self.right.shift_invariant

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        one, other = sorted((self.left.lead, self.right.lead), key=len)
        one = (1,) * (len(other) - len(one)) + one
        for n, m in zip(one, other, strict=True):
            if n != m and 1 not in (n, m):
                raise ValueError(f"leading axes {self.left.lead} and {self.right.lead} of {self!r} do not broadcast")
        return tuple(m if n == 1 else n for n, m in zip(one, other, strict=True))

    @property
    def extent(self) -> tuple[int, int]:  # type: ignore[override]
        if self.left.is_sized != self.right.is_sized:
            return self.left.extent if self.left.is_sized else self.right.extent
        (Sq, Sk), (Tq, Tk) = self.left.extent, self.right.extent
        return max(Sq, Tq), max(Sk, Tk)

    @property
    def is_sized(self) -> bool:  # type: ignore[override]
        return self.left.is_sized or self.right.is_sized

    def seams(self, q_stop: int, k_stop: int) -> tuple[list[int], list[int]]:
        (queries, keys), (others, other_keys) = (part.seams(q_stop, k_stop) for part in (self.left, self.right))
        return queries + others, keys + other_keys


def combined(kind: type[_Pair], left: Any, right: Any) -> Mask:
    """Return two masks as one of a kind, also where one of them is an array; what is neither Python refuses."""
    one, other = as_mask(left), as_mask(right)
    return NotImplemented if one is None or other is None else kind(one, other)


class Both(_Pair):
    """Pairs that both masks allow."""

    def allowed(self, region: Region) -> Array:
        return self.left.pairs(region) & self.right.pairs(region)

    def reach(self, span: Span) -> Reach:
        (possible, certain), (other_possible, other_certain) = self.left.reach(span), self.right.reach(span)
        return possible & other_possible, certain & other_certain

    def undecided(self, span: Span) -> Mask:
        if self.left.reach(span)[1]:
            return self.right.undecided(span)
        return self.left.undecided(span) if self.right.reach(span)[1] else self

    def __repr__(self) -> str:
        return f"({self.left!r} & {self.right!r})"


def conjuncts(mask: Mask) -> list[Mask]:
    """Return the masks that all have to allow a pair: each can be asked for itself."""
    return [*conjuncts(mask.left), *conjuncts(mask.right)] if isinstance(mask, Both) else [mask]


class Either(_Pair):
    """Pairs that one of the masks allows."""

    def allowed(self, region: Region) -> Array:
        return self.left.pairs(region) | self.right.pairs(region)

    def reach(self, span: Span) -> Reach:
        (possible, certain), (other_possible, other_certain) = self.left.reach(span), self.right.reach(span)
        return possible | other_possible, certain | other_certain

    def undecided(self, span: Span) -> Mask:
        if not self.left.reach(span)[0]:
            return self.right.undecided(span)
        return self.left.undecided(span) if not self.right.reach(span)[0] else self

    def __repr__(self) -> str:
        return f"({self.left!r} | {self.right!r})"


@rule
class Not(Mask):
    """Pairs that a mask forbids."""

    inner: Mask

    def __init__(self, inner: Mask) -> None:
        self.inner = inner

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return self.inner.relative

    @property
    def shift_invariant(self) -> bool:  # type: ignore[override]
        return self.inner.shift_invariant

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.inner.lead

    @property
    def extent(self) -> tuple[int, int]:  # type: ignore[override]
        return self.inner.extent

    @property
    def is_sized(self) -> bool:  # type: ignore[override]
        return self.inner.is_sized

    def seams(self, q_stop: int, k_stop: int) -> tuple[list[int], list[int]]:
        return self.inner.seams(q_stop, k_stop)

    def allowed(self, region: Region) -> Array:
        return ~self.inner.pairs(region)

    def reach(self, span: Span) -> Reach:
        possible, certain = self.inner.reach(span)
        return _opposite(certain), _opposite(possible)

    def __repr__(self) -> str:
        return f"~{self.inner!r}"


def _opposite(answer: Any) -> Any:
    return not answer if isinstance(answer, bool) else ~answer
