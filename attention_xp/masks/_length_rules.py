"""Rules that allow the keys before a length: a prefix, or sequences of different lengths."""

from typing import Any, ClassVar

from attention_xp._backend.values import FAR
from attention_xp._scores.region import Region, Span
from attention_xp._typing import Array
from attention_xp.masks._look_up import check_counts, item_of, least_and_most, line_up
from attention_xp.masks._mask import Mask
from attention_xp.masks._pairs import Reach, rule

__all__ = ["LengthMask", "PrefixMask", "batch_and_head", "before"]


@rule
class PrefixMask(Mask):
    r"""Every query attends the keys of a prefix: :math:`k < n_b`.

    Together with a causal mask it is the prefix language model of Raffel et al., "Exploring the Limits of Transfer
    Learning with a Unified Text-to-Text Transformer", 2020: ``CausalMask() | PrefixMask(n)``.

    Parameters
    ----------
    length : int or array
        :math:`n`, for all batch items, or an integer array of the batch shape.

    Raises
    ------
    TypeError
        If `length` is neither an int nor an integer array.
    ValueError
        If an int `length` is negative.

    Examples
    --------
    >>> from attention_xp.masks import CausalMask, PrefixMask
    >>> (CausalMask() | PrefixMask(2)).to_array(3, 3)
    array([[ True,  True, False],
           [ True,  True, False],
           [ True,  True,  True]])
    """

    length: int | Array
    _numbers = ("length",)
    _axes: ClassVar = {"length": "b"}

    def __init__(self, length: int | Array) -> None:
        self.length = check_counts("length", length)

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        """Return the batch shape and a head."""
        return batch_and_head(self.length)

    @property
    def extent(self) -> tuple[int, int]:  # type: ignore[override]
        """Return a size at which the end of the prefix shows."""
        size = min(8192, max(32, 2 * self.length)) if isinstance(self.length, int) else 32
        return size, size

    def allowed(self, region: Region) -> Array:
        """Return True for the keys of the prefix."""
        return region.kv_idx < line_up(region, self.length)

    def reach(self, span: Span) -> Reach:
        """Compare the first and the last key with the length."""
        return before(span, (span.k_lo, span.k_hi), self.length)


@rule
class LengthMask(Mask):
    r"""Sequences of a batch end early: :math:`k < n_b`; the keys from there on are padding.

    Parameters
    ----------
    lengths : int or array
        :math:`n`, for all batch items, or an integer array of the batch shape.

    Raises
    ------
    TypeError
        If `lengths` is neither an int nor an integer array.
    ValueError
        If an int `lengths` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.masks import LengthMask
    >>> LengthMask(np.asarray([1, 3])).to_array(1, 4)[:, 0, 0]
    array([[ True, False, False, False],
           [ True,  True,  True, False]])
    """

    lengths: int | Array
    _numbers = ("lengths",)
    _axes: ClassVar = {"lengths": "b"}

    @property
    def _as_lengths(self) -> int | Array:  # type: ignore[override]
        return self.lengths

    def __init__(self, lengths: int | Array) -> None:
        self.lengths = check_counts("lengths", lengths)

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        """Return the batch shape and a head."""
        return batch_and_head(self.lengths)

    @property
    def extent(self) -> tuple[int, int]:  # type: ignore[override]
        """Return a size at which the end of the sequence shows."""
        size = min(8192, max(32, self.lengths + self.lengths // 3)) if isinstance(self.lengths, int) else 32
        return size, size

    def allowed(self, region: Region) -> Array:
        """Return True for the keys that are no padding."""
        return region.kv_idx < line_up(region, self.lengths)

    def reach(self, span: Span) -> Reach:
        """Compare the first and the last key with the length."""
        return before(span, (span.k_lo, span.k_hi), self.lengths)


def batch_and_head(values: int | Array) -> tuple[int, ...]:
    """Return the leading axes that a rule depends on with one value, or with one for each batch item."""
    return () if isinstance(values, int) or values.ndim == 0 else (*values.shape, 1)


def before(span: Span, ends: tuple[Any, Any], lengths: int | Array) -> Reach:
    """Return whether the first, and whether the last, of some rows or keys lies before the length."""
    first, last = ends
    if isinstance(lengths, int):
        return first < min(lengths, FAR), last < min(lengths, FAR)
    limits = least_and_most(span, lengths, item_of(span, batch_and_head(lengths)))
    return (True, False) if limits is None else (first < limits[1], last < limits[0])
