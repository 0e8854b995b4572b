"""Arrays that belong to the scores: checked, cast and shaped so that they broadcast against them."""

from numbers import Integral, Real
from typing import Any

from attention_xp._backend.dtypes import as_dtype, dtype_name, is_boolean, is_floating
from attention_xp._backend.libraries import device, is_torch_namespace
from attention_xp._backend.shapes import filled_up
from attention_xp._backend.sizes import as_number
from attention_xp._backend.values import as_int32
from attention_xp._checks.arrays import check_floating, check_integers, check_placement, fits, shapes
from attention_xp._checks.numbers import check_number, check_position, check_positive
from attention_xp._scores.frame import Frame
from attention_xp._typing import Array

__all__ = [
    "aligned_addend",
    "aligned_head_ids",
    "aligned_integers",
    "aligned_item_ids",
    "aligned_mask",
    "aligned_positions",
    "aligned_sinks",
    "checked_scale",
    "checked_softcap",
    "positions_from",
    "without_surplus",
]


def aligned_mask(frame: Frame, mask: Array) -> Array:
    """Align a boolean mask, or a floating one in the computation dtype."""
    if is_boolean(frame.xp, mask.dtype):
        return _fitted(frame, "mask", mask)
    if is_floating(frame.xp, mask.dtype):
        return aligned_addend(frame, "mask", mask)
    raise TypeError(
        "mask must be boolean (True = may attend) or floating (added to the scores), got "
        f"{dtype_name(mask.dtype)}: one of 0 and 1 goes in as mask != 0"
    )


def aligned_addend(frame: Frame, name: str, array: Array) -> Array:
    """Align an array that is added to the scores; torch's kernel takes one in the dtype of the query as it is."""
    if is_boolean(frame.xp, array.dtype):
        raise TypeError(f"{name} must be a floating array, got bool: what excludes pairs goes into mask")
    check_floating(frame.xp, **{name: array})
    fitted = _fitted(frame, name, array)
    is_taken = is_torch_namespace(frame.xp) and fitted.dtype == frame.query.dtype
    return fitted if is_taken else as_dtype(frame.xp, fitted, frame.dtype)


def aligned_sinks(frame: Frame, sinks: Array) -> Array:
    """Align one logit per head: (..., H, 1, 1), or (..., 1, 1) without heads."""
    check_floating(frame.xp, sinks=sinks)
    check_placement(frame.xp, query=frame.query, sinks=sinks)
    expected = () if frame.heads is None else (frame.heads,)
    if tuple(sinks.shape) != expected:
        letters = "()" if frame.heads is None else f"(H,) = {expected}"
        raise ValueError(
            f"sinks must hold one logit per head: expected sinks {letters}, {shapes(query=frame.query, sinks=sinks)}"
        )
    return filled_up(frame.xp, as_dtype(frame.xp, sinks, frame.dtype), len(frame.shape), behind=2)


def checked_softcap(frame: Frame, given: Any) -> float:
    """Return a plain float that the dtype of the computation can hold, and divide by."""
    softcap, info = check_positive("softcap", given), frame.xp.finfo(frame.dtype)
    if not float(info.smallest_normal) <= softcap <= float(info.max):
        raise ValueError(
            f"softcap must be a number that {dtype_name(frame.dtype)} can hold: expected {float(info.smallest_normal):.3g} to "
            f"{float(info.max):.3g}, got {given}; without one, scores have no cap"
        )
    return softcap


def checked_scale(frame: Frame, given: Any) -> float | Array:
    """Return a plain float that the dtype of the computation can hold, or an array without axes in it."""
    if isinstance(given, Real) or not hasattr(given, "dtype"):
        scale, most = check_number("scale", given), float(frame.xp.finfo(frame.dtype).max)
        if abs(scale) > most:
            raise ValueError(
                f"scale must be a number that {dtype_name(frame.dtype)} can hold: expected {most:.3g} at most, got {given}"
            )
        return scale
    check_floating(frame.xp, scale=given)
    check_placement(frame.xp, query=frame.query, scale=given)
    if given.ndim:
        raise ValueError(f"scale must be one number: expected a float or scale (), {shapes(scale=given)}")
    return as_dtype(frame.xp, given, frame.dtype)


def aligned_integers(frame: Frame, name: str, given: Any, *, low: int = -(2**29)) -> int | Array | None:
    """Return a plain int, from `low` on, or an int32 array of the batch shape."""
    if given is None:
        return None
    given = as_number(frame.xp, given)
    if isinstance(given, int | Integral):
        return check_position(name, given, low=low)
    check_integers(frame.xp, name, given, "an int or an integer array")
    if not fits(tuple(given.shape), frame.batch):
        of_rows = name == "query_offset" and tuple(given.shape) == (frame.query.shape[-2],)
        remedy = "; rows at positions of their own are batch items, query (Sq, H, 1, D)" if of_rows else ""
        raise ValueError(f"{name} must have the batch shape: expected {frame.batch}, {shapes(**{name: given})}{remedy}")
    check_placement(frame.xp, query=frame.query, **{name: given})
    return as_int32(frame.xp, given)


def aligned_positions(frame: Frame, given: Any) -> Array:
    """Align the positions of the keys, (..., 1, 1, Sk) int32."""
    check_integers(frame.xp, "key_positions", given)
    check_placement(frame.xp, query=frame.query, key_positions=given)
    expected = (*frame.batch, frame.Sk)
    if given.ndim == 0 or given.shape[-1] != frame.Sk or not fits(tuple(given.shape), expected):
        raise ValueError(
            f"key_positions must say where each key stands: expected (Sk,) = ({frame.Sk},) or batch shape + (Sk,) = "
            f"{expected}, {shapes(key_positions=given)}"
        )
    return _behind_batch(frame, as_int32(frame.xp, given))


def positions_from(frame: Frame, offset: Array) -> Array:
    """Return the positions of keys that count up from an offset of each batch item, (..., 1, 1, Sk) int32."""
    count = frame.xp.arange(frame.Sk, dtype=frame.xp.int32, device=device(frame.query))
    return _behind_batch(frame, offset[..., None] + filled_up(frame.xp, count, offset.ndim + 1))


def _behind_batch(frame: Frame, numbers: Array) -> Array:
    """Give numbers (..., Sk) of batch items all the axes of the scores."""
    ndim, shape = len(frame.lead) - len(frame.batch) + 1, tuple(numbers.shape)
    return filled_up(frame.xp, frame.xp.reshape(numbers, (*shape[:-1], *(1,) * ndim, shape[-1])), frame.ndim)


def aligned_item_ids(frame: Frame, given: Any) -> Array | None:
    """Align the numbers of batch items, (..., 1, 1, 1) int32; an int is that of all of them."""
    numbers = aligned_integers(frame, "item_ids", given)
    if numbers is None:
        return None
    if isinstance(numbers, int):
        return frame.xp.full((1,) * frame.ndim, numbers, dtype=frame.xp.int32, device=device(frame.query))
    return filled_up(frame.xp, numbers, frame.ndim, behind=frame.ndim - len(frame.batch))


def aligned_head_ids(frame: Frame, given: Any) -> Array | None:
    """Align the numbers of heads, (H, 1, 1) int32; without a heads axis there is one, which may be an int."""
    if given is None:
        return None
    if frame.heads is None and isinstance(given, Integral):
        number = check_position("head_ids", given)
        return frame.xp.full((1, 1), number, dtype=frame.xp.int32, device=device(frame.query))
    axes = "()" if frame.heads is None else f"(H,) = ({frame.heads},)"
    check_integers(frame.xp, "head_ids", given, f"an integer array {axes}{' or an int' if frame.heads is None else ''}")
    check_placement(frame.xp, query=frame.query, head_ids=given)
    expected = () if frame.heads is None else (frame.heads,)
    if tuple(given.shape) != expected:
        raise ValueError(f"head_ids must hold one number per head: expected head_ids {axes}, {shapes(head_ids=given)}")
    return filled_up(frame.xp, as_int32(frame.xp, given), len(expected) + 2, behind=2)


def _fitted(frame: Frame, name: str, array: Array) -> Array:
    check_placement(frame.xp, query=frame.query, **{name: array})
    scores = frame.shape
    shape = without_surplus(tuple(array.shape), len(scores), frame.heads)
    if not fits(shape, scores):
        letters = "(..., Sq, Sk)" if frame.heads is None else "(..., H, Sq, Sk)"
        hint = " or (..., 1, Sq, Sk) for all heads alike," if len(shape) == len(scores) - 1 > 2 else ""
        if name == "mask" and shape == (*frame.batch, frame.Sk):  # as other libraries take a padding mask
            axes = ", ".join([":"] * len(frame.batch) + ["None"] * (len(scores) - len(shape)))
            hint += f" or a padding mask (B, Sk) as mask[{axes}, :] or as key_lengths,"
        raise ValueError(
            f"{name} does not broadcast to the scores: expected {name} {letters} = {scores},{hint} "
            f"{shapes(**{name: array})}"
        )
    array = array if shape == tuple(array.shape) else frame.xp.reshape(array, shape)
    return filled_up(frame.xp, array, len(scores))


def without_surplus(shape: tuple[int, ...], ndim: int, heads: int | None) -> tuple[int, ...]:
    """Drop axes of length 1 that scores with so many axes do not have, the heads axis first."""
    if heads is None and len(shape) > ndim and shape[-3] == 1:
        shape = (*shape[:-3], *shape[-2:])
    while len(shape) > ndim and shape[0] == 1:
        shape = shape[1:]
    return shape
