"""The rule that is a boolean array."""

from typing import Any

from attention_xp._backend.dtypes import dtype_name, is_boolean, is_floating
from attention_xp._backend.libraries import common_namespace
from attention_xp._scores.region import Region
from attention_xp._typing import Array, Namespace
from attention_xp.masks._look_up import check_library_and_place, fetched
from attention_xp.masks._mask import Mask, rule

__all__ = ["ArrayMask", "as_mask"]


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
        """Check library and device; shapes are checked where the array is lined up with the scores."""
        check_library_and_place(xp, query, "array", self.array)

    def allowed(self, region: Region) -> Array:
        """Return the piece of the array that covers the region."""
        for axis, n in zip((-2, -1), (1, 1, *self.array.shape)[-2:], strict=True):
            if n != 1 and region.starts[axis] + region.sizes[axis] > n:
                padding = ": a padding mask (B, Sk) goes in as mask[:, None, None, :]" if self.array.ndim == 2 else ""
                raise ValueError(f"{self!r} says nothing of pairs beyond its {n} {('rows', 'keys')[axis]}{padding}")
        return region.look_up(fetched(region, self.array))


def as_mask(thing: Any) -> Mask | None:
    """Return a mask, or an array as one; ``None`` for what is neither."""
    if isinstance(thing, Mask):
        return thing
    return ArrayMask(thing) if hasattr(thing, "dtype") and hasattr(thing, "shape") else None
