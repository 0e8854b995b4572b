"""Masks as rules, and their combinations by ``&``, ``|`` and ``~``, also with boolean arrays."""

from collections.abc import Callable
from typing import Any

from attention_xp._backend.dtypes import dtype_name, is_boolean, is_floating
from attention_xp._backend.libraries import common_namespace
from attention_xp._scores.attributes import with_parts
from attention_xp._scores.region import Region, Span
from attention_xp._scores.rule import check_library_and_place
from attention_xp._typing import Array, Namespace
from attention_xp.masks._pairs import Reach, parts_of, rule
from attention_xp.masks._shown import Shown

__all__ = ["ArrayMask", "Both", "Either", "Mask", "Not", "conjuncts", "holds_array", "with_arrays"]


class Mask(Shown):
    """A rule that allows or forbids (query, key) pairs; combine rules with ``&``, ``|`` and ``~``.

    To write one, subclass and define `allowed`. Define `reach` as well where it can be known that a whole rectangle is empty
    or full, so that attention skips it, or does not evaluate the mask there. A mask is a value: its answers must not change
    once it is made, because plans and summaries of it are kept. Two masks are equal where their numbers are equal and their
    arrays are the same objects; a dataclass keeps that with ``eq=False``.

    Attributes
    ----------
    relative : bool
        Whether the answer depends on how queries and keys are aligned, so that attention asks for a
        ``query_offset`` where ``Sq != Sk`` and none is given.
    shift_invariant : bool
        Whether the answer depends on ``q_idx - kv_idx`` alone. What NumPy finds out about such a mask serves all heads, batch
        items and later calls. It is not checked: where the answer depends on anything else, the output is wrong.
    lead : tuple of int
        The leading axes ``(..., H)`` that the answer depends on, the heads last; ``()`` where it depends on none.
    extent : tuple of int
        A size ``(Sq, Sk)`` at which the pattern shows; ``str(mask)`` draws that much.

    Examples
    --------
    >>> from attention_xp.masks import Mask
    >>> class Parity(Mask):
    ...     shift_invariant = True
    ...
    ...     def allowed(self, region):
    ...         return (region.q_idx - region.kv_idx) % 2 == 0
    >>> (~Parity()).to_array(2, 3)
    array([[False,  True, False],
           [ True, False,  True]])
    """

    # NumPy's operators return NotImplemented for a mask, so that those of the mask are called.
    __array_ufunc__ = None
    __array_priority__ = 1000

    def undecided(self, span: Span) -> "Mask":  # noqa: ARG002
        """Return the part of this rule that decides all pairs of a rectangle: a simpler rule, or this one."""
        return self

    def __and__(self, other: Any) -> "Mask":
        return _combined(Both, self, other)

    def __rand__(self, other: Any) -> "Mask":
        return _combined(Both, other, self)

    def __or__(self, other: Any) -> "Mask":
        return _combined(Either, self, other)

    def __ror__(self, other: Any) -> "Mask":
        return _combined(Either, other, self)

    def __invert__(self) -> "Mask":
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} is neither true nor false: combine masks with &, | and ~, not with and, or and not")


@rule
class _Pair(Mask):
    """Two masks combined; the pair depends on all that one of them depends on."""

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


def _combined(kind: type[_Pair], left: Any, right: Any) -> Mask:
    """Return the combination of two masks, of which one may be an array; for anything else Python raises an error."""
    one, other = _as_mask(left), _as_mask(right)
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
    """Return the masks of which all have to allow a pair, so that each can be planned for itself."""
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

    # The opposite of a window, or of a pattern of blocks, is none.
    _windows = ()  # type: ignore[assignment]
    _blocks = ()  # type: ignore[assignment]

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


@rule
class ArrayMask(Mask):
    """A boolean array as a rule, so that it combines with others; ``mask & array`` and ``array & mask`` make it.

    Parameters
    ----------
    array : array
        Boolean (True = may attend). It broadcasts to the scores ``(..., H, Sq, Sk)`` of the call, as the option `mask`
        does, and is aligned with the rows and keys of the call, not with positions.

    Raises
    ------
    TypeError
        If `array` is no boolean array.
    ValueError
        When it is used, if it does not broadcast to the scores.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.masks import CausalMask
    >>> is_token = np.asarray([True, False, True])
    >>> (CausalMask() & is_token).to_array(3, 3)
    array([[ True, False, False],
           [ True, False, False],
           [ True, False,  True]])
    """

    array: Array

    def __init__(self, array: Array) -> None:
        xp = common_namespace(array=array)
        if not is_boolean(xp, array.dtype):
            hint = (
                "what is added to the scores goes into bias, and array != -inf says where it allows"
                if is_floating(xp, array.dtype)
                else "one of 0 and 1 goes in as array != 0"
            )
            raise TypeError(f"array must be boolean to be a rule, got {dtype_name(array.dtype)}: {hint}")
        self.array = array

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        """Return the leading axes of the array."""
        return tuple(self.array.shape[:-2])

    @property
    def extent(self) -> tuple[int, int]:  # type: ignore[override]
        """Return the size of the array; along an axis that it does not vary along, that of the other."""
        rows, columns = (1, 1, *self.array.shape)[-2:]
        most = max(rows, columns)
        return (most if rows == 1 else rows), (most if columns == 1 else columns)

    @property
    def is_sized(self) -> bool:  # type: ignore[override]
        """Return whether the array varies along rows or keys."""
        return any(n != 1 for n in self.array.shape[-2:])

    def check(self, xp: Namespace, query: Array, batch: tuple[int, ...], heads: int | None) -> None:  # noqa: ARG002
        """Check library and device; shapes are checked where the array is aligned with the scores."""
        check_library_and_place(xp, query, "array", self.array)

    def allowed(self, region: Region) -> Array:
        """Return the piece of the array that covers the region."""
        for axis, n in zip((-2, -1), (1, 1, *self.array.shape)[-2:], strict=True):
            if n != 1 and region.starts[axis] + region.sizes[axis] > n:
                padding = ": a padding mask (B, Sk) goes in as mask[:, None, None, :]" if self.array.ndim == 2 else ""
                raise ValueError(f"{self!r} says nothing of pairs beyond its {n} {('rows', 'keys')[axis]}{padding}")
        return region.look_up(region.own(self.array))


def _as_mask(thing: Any) -> Mask | None:
    """Return a mask, or an array as one; ``None`` for what is neither."""
    if isinstance(thing, Mask):
        return thing
    return ArrayMask(thing) if hasattr(thing, "dtype") and hasattr(thing, "shape") else None


def holds_array(mask: Mask) -> bool:
    """Whether a mask is an array of pairs, or is made of one."""
    return isinstance(mask, ArrayMask) or any(map(holds_array, parts_of(mask)))


def with_arrays(given: Any, change: Callable[[Array], Array]) -> Any:
    """Return a mask or a bias with its arrays of pairs changed; rules go by position of themselves."""
    if isinstance(given, ArrayMask):
        return ArrayMask(change(given.array))
    if isinstance(given, Mask):
        return with_parts(given, lambda part: with_arrays(part, change)) if holds_array(given) else given
    return change(given) if hasattr(given, "dtype") else given
