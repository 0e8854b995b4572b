"""What every mask can do: combine with others, become an array, be measured and drawn."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from attention_xp._backend.dtypes import dtype_name
from attention_xp._backend.shapes import filled_up
from attention_xp._checks.arrays import check_result
from attention_xp._scores.identity import identity
from attention_xp._scores.region import Region, Span
from attention_xp._scores.rule import attributes, parts_of as rules_in
from attention_xp._typing import Array, Namespace
from attention_xp.masks._look_up import check_arrays
from attention_xp.masks._shown import Shown

__all__ = ["Mask", "Reach", "parts_of", "rule"]

Reach = tuple[Any, Any]
"""Whether a rectangle possibly, and whether it certainly, allows pairs: bools, or boolean arrays."""


# The fields of a rule are those of a dataclass; its constructor checks them.
rule = dataclass(init=False, repr=False, eq=False)

# What libraries complain about when Python asks whether an array is true.
_TRUTH = re.compile(
    "truth value of an array|Boolean value of Tensor|boolean conversion of traced|bool is only allowed|data-dependent control",
    re.IGNORECASE,
)

_REQUIRED = object()  # a field without a default


class Mask(Shown):
    """A rule that allows or forbids (query, key) pairs; combine rules with ``&``, ``|`` and ``~``.

    To write one, subclass and define `allowed`; define `reach` as well where whole rectangles can be told to be
    empty or full, so that attention skips them. A mask is a value: what it says must not change once it is made, for what
    has been found out about it is kept. Two masks are equal where their numbers are equal and their arrays are the same
    objects; a dataclass keeps that with ``eq=False``.

    Attributes
    ----------
    relative : bool
        Whether the answer depends on how queries and keys are aligned, so that attention asks for a
        ``query_offset`` where ``Sq != Sk`` and none is given.
    shift_invariant : bool
        Whether the answer depends on ``q_idx - kv_idx`` alone.
    lead : tuple of int
        The leading axes ``(..., H)`` that the answer depends on, the heads last; ``()`` where it depends on none.
    extent : tuple of int
        A size ``(Sq, Sk)`` at which the pattern shows; ``str(mask)`` draws that much.

    Examples
    --------
    >>> from attention_xp.masks import Mask
    >>> class Parity(Mask):
    ...     def allowed(self, region):
    ...         return (region.q_idx - region.kv_idx) % 2 == 0
    >>> (~Parity()).to_array(2, 3)
    array([[False,  True, False],
           [ True, False,  True]])
    """

    relative: bool = False
    shift_invariant: bool = False
    lead: tuple[int, ...] = ()
    extent: tuple[int, int] = (32, 32)
    is_sized: bool = False  # whether nothing is said beyond the extent
    _numbers: ClassVar[tuple[str, ...]] = ()  # the fields that may be a number or an array; see `freeze`

    # Arrays leave what they are combined with to the mask.
    __array_ufunc__ = None
    __array_priority__ = 1000

    def allowed(self, region: Region) -> Array:
        """Return a boolean array that broadcasts against the scores of a region.

        Parameters
        ----------
        region : Region
            A rectangle of the scores: index arrays ``b``, ``h``, ``q_idx``, ``kv_idx`` and ``row``, which
            broadcast against its scores, and the array library ``xp``.

        Returns
        -------
        array
            True where the query may attend the key.
        """
        raise NotImplementedError(f"{type(self).__name__} must define allowed(region)")

    def pairs(self, region: Region) -> Array:
        """Return what `allowed` says of a region, checked.

        Parameters
        ----------
        region : Region
            A rectangle of the scores.

        Returns
        -------
        array
            True where the query may attend the key.

        Raises
        ------
        TypeError
            If `allowed` returned no boolean array.
        ValueError
            If what it returned does not broadcast to the scores of the region.
        """
        try:
            keep = self.allowed(region)
        except (RuntimeError, TypeError, ValueError) as error:
            if _TRUTH.search(str(error)) is None:
                raise
            raise TypeError(
                f"{self._author} asks whether an array is true: combine conditions on arrays with &, | and ~, each in "
                "parentheses, not with and, or, not, if or a chain such as 0 <= x < n"
            ) from error
        check_result(region.xp, self._author, keep, region.sizes, "boolean")
        return filled_up(region.xp, keep, len(region.sizes))

    @property
    def _author(self) -> str:
        """What to name in a complaint about an answer."""
        return f"{type(self).__name__}.allowed"

    def reach(self, span: Span) -> Reach:  # noqa: ARG002
        """Tell whether rectangles are empty, full or mixed, without looking at their pairs.

        Parameters
        ----------
        span : Span
            Bounds of one rectangle as ints, or of many as arrays that broadcast.

        Returns
        -------
        possible : bool or array
            False where a rectangle is certainly empty.
        certain : bool or array
            True where a rectangle is certainly full. ``(True, False)``, which says nothing, is always right.
        """
        return True, False

    def seams(self, q_stop: int, k_stop: int) -> tuple[list[int], list[int]]:  # noqa: ARG002
        """Tell at which positions the mask changes for many pairs at once, so that tiles are cut there.

        Parameters
        ----------
        q_stop, k_stop : int
            Positions of queries and keys are below these.

        Returns
        -------
        queries, keys : list of int
            Positions before which to cut. Only speed depends on them; ``([], [])`` is always right.
        """
        return [], []

    def undecided(self, span: Span) -> "Mask":  # noqa: ARG002
        """Return the part of this rule that decides all pairs of a rectangle: a simpler rule, or this one."""
        return self

    @property
    def tells(self) -> bool:
        """Whether `reach` says anything, here and in all rules that this one is made of."""
        parts = parts_of(self)
        return all(part.tells for part in parts) if parts else type(self).reach is not Mask.reach

    def check(self, xp: Namespace, query: Array, batch: tuple[int, ...], heads: int | None) -> None:
        """Check that the arrays of a mask suit a query, before anything is computed.

        Parameters
        ----------
        xp : module
            The array library of the query.
        query : array
            Tells the device.
        batch : tuple of int
            The batch shape of the scores.
        heads : int or None
            Number of query heads; None where there is no heads axis.

        Raises
        ------
        TypeError
            If an array belongs to another library, other than NumPy.
        ValueError
            If an array lies on another device, or its leading axes do not broadcast to batch and heads.
        """
        check_arrays(self, xp, query, batch, heads)
        for part in parts_of(self):
            part.check(xp, query, batch, heads)

    def __and__(self, other: Any) -> "Mask":
        from attention_xp.masks._algebra import Both, combined  # noqa: PLC0415  # masks themselves

        return combined(Both, self, other)

    def __rand__(self, other: Any) -> "Mask":
        from attention_xp.masks._algebra import Both, combined  # noqa: PLC0415  # likewise

        return combined(Both, other, self)

    def __or__(self, other: Any) -> "Mask":
        from attention_xp.masks._algebra import Either, combined  # noqa: PLC0415  # likewise

        return combined(Either, self, other)

    def __ror__(self, other: Any) -> "Mask":
        from attention_xp.masks._algebra import Either, combined  # noqa: PLC0415  # likewise

        return combined(Either, other, self)

    def __invert__(self) -> "Mask":
        from attention_xp.masks._algebra import Not  # noqa: PLC0415  # likewise

        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} is neither true nor false: combine masks with &, | and ~, not with and, or and not")

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and identity(self) == identity(other))

    def __hash__(self) -> int:
        return hash(identity(self))

    def __repr__(self) -> str:
        given = [
            _short(value)
            for name, value in attributes(self).items()
            if not name.startswith("_") and value is not getattr(type(self), name, _REQUIRED)
        ]
        return f"{type(self).__name__}({', '.join(given)})"


def parts_of(mask: Mask) -> list[Mask]:
    """Return the masks that a mask is made of."""
    return rules_in(mask, Mask)


def _short(value: Any) -> str:
    """Name a field of a mask: arrays by dtype and shape, functions by name."""
    if hasattr(value, "shape"):
        return f"{dtype_name(value.dtype)}{list(value.shape)}"
    return value.__name__ if hasattr(value, "__name__") else repr(value)
