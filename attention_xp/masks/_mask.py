"""What every mask can do: combine with others, become an array, be measured and drawn."""

from dataclasses import dataclass
from typing import Any

from attention_xp._backend.dtypes import dtype_name
from attention_xp._backend.shapes import filled_up
from attention_xp._engine.checks import check_result
from attention_xp._engine.region import Region, Span
from attention_xp._typing import Array, Device, DType, Namespace
from attention_xp.masks._look_up import KEPT, check_arrays

__all__ = ["Mask", "Reach", "rule"]

Reach = tuple[Any, Any]
"""Whether a rectangle possibly, and whether it certainly, allows pairs: bools, or boolean arrays."""


# The fields of a rule are those of a dataclass; its constructor checks them.
rule = dataclass(init=False, repr=False, eq=False)

_REQUIRED = object()  # a field without a default


class Mask:
    """A rule that allows or forbids (query, key) pairs; combine rules with ``&``, ``|`` and ``~``.

    To write one, subclass and define `allowed`; define `reach` as well where whole rectangles can be told to be
    empty or full, so that attention skips them. A mask is a value: what it says must not change once it is made, for what
    has been found out about it is kept.

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

    def allowed(self, region: Region) -> Array:
        """Return a boolean array that broadcasts against the scores of a region.

        Parameters
        ----------
        region : Region
            A rectangle of the scores: index arrays ``b``, ``h``, ``q_idx``, ``kv_idx`` and ``row``, which
            broadcast against its scores, and the array library ``problem.xp``.

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
        keep = self.allowed(region)
        check_result(region.problem.xp, self._author, keep, region.sizes, "boolean")
        return filled_up(region.problem.xp, keep, len(region.sizes))

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
        parts = [value for value in vars(self).values() if isinstance(value, Mask)]
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
        for value in vars(self).values():
            if isinstance(value, Mask):
                value.check(xp, query, batch, heads)

    def to_array(
        self,
        Sq: int,
        Sk: int,
        query_offset: int = 0,
        *,
        xp: Namespace | None = None,
        device: Device | None = None,
        dtype: DType | str = "bool",
    ) -> Array:
        """Return the mask as an array.

        Parameters
        ----------
        Sq, Sk : int
            Number of queries and keys.
        query_offset : int, default: 0
            Position of the first query.
        xp : module, optional
            The array library, such as ``cupy``, ``torch`` or ``jax.numpy``. Default: the library of the arrays
            that the mask holds, NumPy where it holds none.
        device : device, optional
            Where to place the array. Default: where the arrays of the mask lie, else the default device of `xp`.
        dtype : dtype or str, default: "bool"
            ``"bool"`` (True keeps), or a floating dtype for an additive mask (0 keeps, ``-inf`` excludes).

        Returns
        -------
        array
            ``(Sq, Sk)``, or ``(B, H, Sq, Sk)`` with axes of length 1 where the mask depends on batch or head.

        Raises
        ------
        TypeError
            If a size or the offset is no int, or the mask holds arrays of another library than `xp`.
        ValueError
            If a size is negative, or `dtype` is neither floating nor boolean.

        Examples
        --------
        >>> from attention_xp.masks import CausalMask
        >>> CausalMask().to_array(2, 4, query_offset=2, dtype="float32")
        array([[  0.,   0.,   0., -inf],
               [  0.,   0.,   0.,   0.]], dtype=float32)
        """
        from attention_xp.masks._drawing import to_array  # noqa: PLC0415  # it needs masks itself

        return to_array(self, Sq, Sk, query_offset, xp, device, dtype)

    def density(self, Sq: int, Sk: int, query_offset: int = 0) -> float:
        """Return the exact share of allowed pairs, over all batch items and heads that the mask depends on.

        Parameters
        ----------
        Sq, Sk : int
            Number of queries and keys.
        query_offset : int, default: 0
            Position of the first query.

        Returns
        -------
        float
            Between 0 and 1; 0 where there are no pairs.

        Raises
        ------
        TypeError
            If a size or the offset is no int.
        ValueError
            If a size is negative.

        Notes
        -----
        The pairs are counted on the host with NumPy, and only in blocks that `reach` cannot decide.

        Examples
        --------
        >>> from attention_xp.masks import CausalMask
        >>> CausalMask().density(4, 4)
        0.625
        """
        from attention_xp.masks._drawing import density  # noqa: PLC0415

        return density(self, Sq, Sk, query_offset)

    def __and__(self, other: Any) -> "Mask":
        from attention_xp.masks._algebra import Both  # noqa: PLC0415  # a mask itself

        return Both(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: Any) -> "Mask":
        from attention_xp.masks._algebra import Either  # noqa: PLC0415  # likewise

        return Either(self, other) if isinstance(other, Mask) else NotImplemented

    def __invert__(self) -> "Mask":
        from attention_xp.masks._algebra import Not  # noqa: PLC0415  # likewise

        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} is neither true nor false: combine masks with &, | and ~, not with and, or and not")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._told() == other._told()

    def __hash__(self) -> int:
        return hash((type(self), self._told()))

    def _told(self) -> tuple[Any, ...]:
        """Return what makes this rule: numbers, functions and rules by value, arrays and lists by identity."""
        given = (value for name, value in vars(self).items() if name != KEPT)
        return tuple(value if _is_value(value) else id(value) for value in given)

    def __repr__(self) -> str:
        given = [
            _short(value)
            for name, value in vars(self).items()
            if not name.startswith("_") and value is not getattr(type(self), name, _REQUIRED)
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    def __str__(self) -> str:
        from attention_xp.masks._drawing import drawn  # noqa: PLC0415

        return drawn(self)


def _is_value(value: Any) -> bool:
    """Whether something can be told from another by what it is.

    A mask always can, and is not asked: it would ask its own parts, and be asked again for its hash, level by level.
    """
    if isinstance(value, Mask):
        return True
    try:
        hash(value)
    except TypeError:
        return False
    return not hasattr(value, "shape")


def _short(value: Any) -> str:
    """Name a field of a mask: arrays by dtype and shape, functions by name."""
    if hasattr(value, "shape"):
        return f"{dtype_name(value.dtype)}{list(value.shape)}"
    return value.__name__ if hasattr(value, "__name__") else repr(value)
