"""The answers of every mask: about pairs of query and key, and about whole rectangles of pairs."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from attention_xp._backend.shapes import filled_up
from attention_xp._checks.arrays import check_result, fits
from attention_xp._scores.attributes import attributes, parts_of_kind
from attention_xp._scores.region import Region, Span
from attention_xp._scores.rule import Rule, arrays_of, forget_promises, short
from attention_xp._typing import Array, Namespace

__all__ = ["Pairs", "Reach", "parts_of", "rule"]

Reach = tuple[Any, Any]
"""Whether a rule possibly allows a pair of a rectangle, and whether it certainly allows all: bools, or boolean arrays."""


# A rule is a dataclass with a constructor of its own, which checks the fields.
rule = dataclass(init=False, repr=False, eq=False)

# The errors of libraries where Python's `and`, `or`, `not` or `if` ask for the truth of an array.
_TRUTH = re.compile(
    "truth value of an array|Boolean value of Tensor|boolean conversion of traced|bool is only allowed|data-dependent control",
    re.IGNORECASE,
)

# What the planner of tiles takes from a rule in place of asking for its pairs.
_PROMISES = {
    *("shift_invariant", "reach", "seams", "undecided", "_as_band", "_as_lengths", "_as_array"),
    *("_is_of_rows", "_is_of_places", "_windows", "_blocks"),
}
_REQUIRED = object()  # a field without a default


class Pairs(Rule):
    """A rule on (query, key) pairs; see `Mask` for how to write one."""

    relative: bool = False
    shift_invariant: bool = False
    lead: tuple[int, ...] = ()
    extent: tuple[int, int] = (32, 32)
    is_sized: bool = False  # whether the rule is defined up to the extent only
    _numbers: ClassVar[tuple[str, ...]] = ()  # the fields that may be a number or an array; see `freeze`

    # What planner and fused kernels ask of rules, in place of testing their classes.
    _as_band: tuple[int | None, int | None] | None = None  # (left, right): it allows the keys in [q - left, q + right]
    _as_lengths: int | Array | None = None  # it allows the keys before these positions
    _as_array: Array | None = None  # it allows the pairs for which this array, aligned with the scores, is True
    _is_of_rows: bool = False  # it depends on rows alone
    _is_of_places: bool = False  # it depends on rows and columns, and not on positions

    def __init_subclass__(cls, **given: Any) -> None:
        """Keep no promise of another class for pairs that a class allows anew."""
        super().__init_subclass__(**given)
        forget_promises(cls, "allowed", _PROMISES)

    @property
    def _windows(self) -> list[tuple[int, int | None]]:
        """The windows ``(left, right)`` that the rule is made of, those with an end to the left."""
        return [window for part in parts_of(self) for window in part._windows]

    @property
    def _blocks(self) -> list[tuple[int, int]]:
        """The sizes of the blocks that the rule is made of."""
        return [block for part in parts_of(self) for block in part._blocks]

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
        """Return `allowed` for a region, checked.

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
            mistake = self._mistake(error)
            if mistake is None:
                raise
            raise TypeError(mistake) from error
        check_result(region.xp, self._author, keep, region.sizes, "boolean")
        return filled_up(region.xp, keep, len(region.sizes))

    def _mistake(self, error: Exception) -> str | None:
        """Return what is wrong with `allowed` where an error that it raised is one of those that are often made."""
        if _TRUTH.search(str(error)) is None:
            return None
        return (
            f"{self._author} asks whether an array is true: combine conditions on arrays with &, | and ~, each in "
            "parentheses, not with and, or, not, if or a chain such as 0 <= x < n"
        )

    @property
    def _author(self) -> str:
        """The name of what has returned a wrong answer, in errors."""
        return f"{type(self).__name__}.allowed"

    def reach(self, span: Span) -> Reach:  # noqa: ARG002
        """Return whether rectangles are empty, full or mixed, without evaluating their pairs.

        Parameters
        ----------
        span : Span
            Bounds of one rectangle as ints, or of many as arrays that broadcast.

        Returns
        -------
        possible : bool or array
            False where a rectangle is certainly empty.
        certain : bool or array
            True where a rectangle is certainly full. ``(True, False)``, "not known", is always right.
        """
        return True, False

    def seams(self, q_stop: int, k_stop: int) -> tuple[list[int], list[int]]:  # noqa: ARG002
        """Return the positions at which the mask changes for many pairs, so that tiles are cut there.

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

    @property
    def tells(self) -> bool:
        """Whether `reach` is defined, here and in all rules that this one is made of."""
        parts = parts_of(self)
        return all(part.tells for part in parts) if parts else type(self).reach is not Pairs.reach

    def check(self, xp: Namespace, query: Array, batch: tuple[int, ...], heads: int | None) -> None:
        """Check that the arrays of a mask suit a query, before anything is computed.

        Parameters
        ----------
        xp : module
            The array library of the query.
        query : array
            For the device.
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
        super().check(xp, query, batch, heads)
        expected = (*batch, 1 if heads is None else heads)
        for name, _ in arrays_of(self):
            if not fits(self.lead, expected):
                raise ValueError(
                    f"leading axes of {name} do not broadcast to batch and heads: expected {expected}, got {self.lead} "
                    f"from {self!r}"
                )
        for part in parts_of(self):
            part.check(xp, query, batch, heads)

    def __repr__(self) -> str:
        given = [
            short(value)
            for name, value in attributes(self).items()
            if not name.startswith("_") and value is not getattr(type(self), name, _REQUIRED)
        ]
        return f"{type(self).__name__}({', '.join(given)})"


def parts_of(rule: "Pairs") -> list[Any]:
    """Return the rules on pairs that a rule is made of."""
    return parts_of_kind(rule, Pairs)
