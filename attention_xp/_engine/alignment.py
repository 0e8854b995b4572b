"""What has to line up with the scores: checked, cast and shaped so that it broadcasts against them."""

from numbers import Integral, Real
from typing import Any, NamedTuple

from attention_xp._backend.dtypes import computation_dtype, dtype_name, is_boolean, is_floating, is_integer
from attention_xp._backend.shapes import filled_up
from attention_xp._backend.sizes import as_number
from attention_xp._backend.values import as_int32
from attention_xp._engine.checks import check_floating, check_placement, fits, shapes
from attention_xp._engine.numbers import check_number, check_position
from attention_xp._typing import Array, DType, Namespace

__all__ = ["Alignment"]


class Alignment(NamedTuple):
    """The scores of a call, as far as their companions must know them."""

    xp: Namespace
    query: Array
    batch: tuple[int, ...]
    heads: int | None
    Sk: int

    @property
    def dtype(self) -> DType:
        """The dtype of the computation."""
        return computation_dtype(self.xp, self.query.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(..., H, Sq, Sk)``."""
        heads = () if self.heads is None else (self.heads,)
        return (*self.batch, *heads, self.query.shape[-2], self.Sk)

    def mask(self, mask: Array) -> Array:
        """Line up a boolean mask, or a floating one in the computation dtype."""
        if is_boolean(self.xp, mask.dtype):
            return self._fitted("mask", mask)
        if is_floating(self.xp, mask.dtype):
            return self.addend("mask", mask)
        raise TypeError(
            "mask must be boolean (True = may attend) or floating (added to the scores), got "
            f"{dtype_name(mask.dtype)}: one of 0 and 1 goes in as mask != 0"
        )

    def addend(self, name: str, array: Array) -> Array:
        """Line up an array that is added to the scores."""
        if is_boolean(self.xp, array.dtype):
            raise TypeError(f"{name} must be a floating array, got bool: what excludes pairs goes into mask")
        check_floating(self.xp, **{name: array})
        return self.xp.astype(self._fitted(name, array), self.dtype, copy=False)

    def sinks(self, sinks: Array) -> Array:
        """Line up one logit per head: (..., H, 1, 1), or (..., 1, 1) without heads."""
        check_floating(self.xp, sinks=sinks)
        check_placement(self.xp, query=self.query, sinks=sinks)
        expected = () if self.heads is None else (self.heads,)
        if tuple(sinks.shape) != expected:
            letters = "()" if self.heads is None else f"(H,) = {expected}"
            raise ValueError(
                f"sinks must hold one logit per head: expected sinks {letters}, {shapes(query=self.query, sinks=sinks)}"
            )
        return filled_up(self.xp, self.xp.astype(sinks, self.dtype, copy=False), len(self.shape), behind=2)

    def scale(self, given: Any) -> float | Array:
        """Return a plain float, or an array without axes in the dtype of the computation."""
        if isinstance(given, Real) or not hasattr(given, "dtype"):
            return check_number("scale", given)
        check_floating(self.xp, scale=given)
        check_placement(self.xp, query=self.query, scale=given)
        if given.ndim:
            raise ValueError(f"scale must be one number: expected a float or scale (), {shapes(scale=given)}")
        return self.xp.astype(given, self.dtype, copy=False)

    def integers(self, name: str, given: Any, *, low: int = -(2**29)) -> int | Array | None:
        """Return a plain int, from `low` on, or an int32 array of the batch shape."""
        if given is None:
            return None
        given = as_number(self.xp, given)
        if isinstance(given, int | Integral):
            return check_position(name, given, low=low)
        if not hasattr(given, "dtype") or not is_integer(self.xp, given.dtype):
            kind = dtype_name(given.dtype) if hasattr(given, "dtype") else type(given).__name__
            raise TypeError(f"{name} must be an int or an integer array, got {kind}")
        if not fits(tuple(given.shape), self.batch):
            raise ValueError(f"{name} must have the batch shape: expected {self.batch}, {shapes(**{name: given})}")
        check_placement(self.xp, query=self.query, **{name: given})
        return as_int32(self.xp, given)

    def _fitted(self, name: str, array: Array) -> Array:
        check_placement(self.xp, query=self.query, **{name: array})
        shape = self._without_surplus(tuple(array.shape))
        if not fits(shape, self.shape):
            letters = "(..., Sq, Sk)" if self.heads is None else "(..., H, Sq, Sk)"
            hint = " or (..., 1, Sq, Sk) for all heads alike," if len(shape) == len(self.shape) - 1 > 2 else ""
            if name == "mask" and shape == (*self.batch, self.Sk):  # as other libraries take a padding mask
                axes = ", ".join([":"] * len(self.batch) + ["None"] * (len(self.shape) - len(shape)))
                hint += f" or a padding mask (B, Sk) as mask[{axes}, :] or as key_lengths,"
            raise ValueError(
                f"{name} does not broadcast to the scores: expected {name} {letters} = {self.shape},{hint} "
                f"{shapes(**{name: array})}"
            )
        array = array if shape == tuple(array.shape) else self.xp.reshape(array, shape)
        return filled_up(self.xp, array, len(self.shape))

    def _without_surplus(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Drop axes of length 1 that the scores do not have, the heads axis first."""
        if self.heads is None and len(shape) > len(self.shape) and shape[-3] == 1:
            shape = (*shape[:-3], *shape[-2:])
        while len(shape) > len(self.shape) and shape[0] == 1:
            shape = shape[1:]
        return shape
