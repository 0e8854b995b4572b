"""Look-ups in the arrays of masks, for regions of the scores and for bounds of rectangles."""

import math
import sys
from collections.abc import Callable
from numbers import Integral
from typing import Any

from attention_xp._backend.dtypes import dtype_name
from attention_xp._backend.libraries import (
    common_namespace,
    device,
    is_numpy,
    is_tensor,
    is_torch_namespace,
    library_name,
)
from attention_xp._backend.shapes import filled_up
from attention_xp._backend.sizes import as_number
from attention_xp._backend.values import FAR, as_int32, host_view, within
from attention_xp._checks.arrays import check_integers
from attention_xp._checks.numbers import check_count
from attention_xp._scores.attributes import KEPT
from attention_xp._scores.region import Region, Span
from attention_xp._typing import Array, Namespace

__all__ = [
    "at",
    "by_position",
    "changes",
    "check_counts",
    "clipped",
    "item_of",
    "items",
    "kept_by",
    "least_and_most",
    "line_up",
    "remembered",
    "summable",
    "taken",
]


def check_counts(name: str, given: Any) -> int | Array:
    """Return a plain int that is not negative, or an integer array."""
    if isinstance(given, Integral) or not hasattr(given, "dtype"):
        return check_count(name, given, low=0)
    check_integers(common_namespace(**{name: given}), name, given, "an int or an integer array")
    return given


def changes(values: Array) -> list[int]:
    """Return the indices before which the value in a 1-D array changes; none where the values are not on the host."""
    if not is_numpy(values):
        return []
    import numpy as np  # noqa: PLC0415

    return [*(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]


def line_up(region: Region, counts: int | Array) -> int | Array:
    """Return one number per batch item, aligned with the scores."""
    if isinstance(counts, int):
        return min(counts, FAR)
    return region.per_batch(as_int32(region.xp, region.own(counts)))


def items(region: Region, lead: tuple[int, ...]) -> int | Array:
    """Return the flat index into the leading axes ``(..., H)`` of an array, aligned with the scores."""
    if math.prod(lead) == 1:
        return 0
    xp = region.xp
    if region.frame.packing is not None and math.prod(lead[:-1]) > 1:
        return region.in_packed(math.prod(lead[:-1]), lead[-1])
    numbers = xp.arange(math.prod(lead), dtype=xp.int32, device=device(region.frame.query))
    if region.frame.heads is None:
        lead = lead[:-1]
    return region.look_up(filled_up(xp, xp.reshape(numbers, lead), region.frame.ndim, behind=2))


def by_position(region: Region, values: Array, position: Array) -> tuple[Array, Array]:
    """Look up the last axis of ``(..., S)`` by position; also return which positions lie in ``[0, S)``."""
    xp, length = region.xp, as_number(region.xp, values.shape[-1])
    inside = (position >= 0) & (position < length)
    values = region.own(values)
    if values.shape[-1] == 0:
        return xp.zeros(inside.shape, dtype=values.dtype, device=device(inside)), inside
    item = items(region, (*values.shape[:-1], 1))
    return taken(xp, xp.reshape(values, (-1,)), item * length + within(xp, position, 0, length - 1)), inside


def taken(xp: Namespace, flat: Array, index: Array) -> Array:
    """Return the entries of a flat array at indices of any shape."""
    if is_torch_namespace(xp) and dtype_name(flat.dtype) in ("uint16", "uint32", "uint64"):
        flat = xp.astype(flat, xp.int64)  # torch looks up no such numbers
    return xp.reshape(xp.take(flat, xp.reshape(index, (-1,)), axis=0), index.shape)


def summable(span: Span, array: Array) -> tuple[Namespace, Array] | None:
    """Return an array whose values can be summarised for rectangles, and its library: NumPy where it can be read in place.

    ``None`` where its values cannot be read: while torch compiles, NumPy arrays, too, are tensors without values.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.compiler.is_compiling() and (is_numpy(array) or is_tensor(array)):
        return None
    owner = common_namespace(array=array)
    plain = all(isinstance(bound, int) for bound in span[1:7])
    if not plain and library_name(owner) == library_name(span.xp):
        return owner, array
    seen = host_view(array)
    return None if seen is None else (common_namespace(array=seen), seen)


def kept_by(mask: Any) -> dict[str, Any]:
    """Return what is kept with a mask, such as summaries of its arrays; it is not part of the mask's value."""
    kept: dict[str, Any] = vars(mask).setdefault(KEPT, {})
    return kept


def remembered(mask: Any, name: str, xp: Namespace, make: Callable[[], Any]) -> Any:
    """Make a summary, once for arrays of NumPy, and each time for those of other libraries, which may belong to a trace."""
    if library_name(xp) != "numpy":
        return make()
    kept = kept_by(mask)
    if name not in kept:
        kept[name] = make()
    return kept[name]


def at(span: Span, table: Array, index: Any) -> Any:
    """Return entries of a flat summary: a plain int for an int index into NumPy's, else an array of the span's library."""
    on_host = is_numpy(table)
    if not hasattr(index, "shape"):
        return int(table[index]) if on_host else table[index]
    return taken(span.xp, span.xp.asarray(table, device=device(index)) if on_host else table, index)


def clipped(span: Span, bound: Any, high: int) -> Any:
    """Return a bound, or an array of bounds, within ``[0, high]``."""
    return span.xp.clip(bound, 0, high) if hasattr(bound, "shape") else max(0, min(bound, high))


def item_of(span: Span, lead: tuple[int, ...]) -> Any:
    """Return the flat index of a span into the leading axes ``(..., H)``, ``None`` where it is not known."""
    heads, batch = (lead[-1], lead[:-1]) if lead else (1, ())
    while batch and batch[0] == 1:
        batch = batch[1:]
    items_of_batch = math.prod(batch)
    h = 0 if heads == 1 else span.h
    # Behind other axes, one of length 1 may be broadcast, and the flat batch index does not fit then.
    b = 0 if items_of_batch == 1 else None if 1 in batch or span.b is None else span.b % items_of_batch
    return None if b is None or h is None else b * heads + h


def least_and_most(span: Span, counts: Array, item: Any) -> tuple[Any, Any] | None:
    """Return the least and the greatest number among the batch items of a span, ``None`` where they are not known."""
    found = summable(span, counts)
    if found is None or 0 in counts.shape:
        return None
    xp, counts = found
    flat = as_int32(xp, xp.reshape(counts, (-1,)))  # as the bounds of a span
    if item is not None:
        count = at(span, flat, item)
        return count, count
    least, most = xp.min(flat), xp.max(flat)
    return (int(least), int(most)) if library_name(xp) == "numpy" else (least, most)
