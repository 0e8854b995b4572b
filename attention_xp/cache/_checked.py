"""What is checked about a cache and the arrays that come to it, once for all calls of the same kind.

Nothing but types, shapes and dtypes is looked at, and from one step of decoding to the next these stay the same.
"""

import sys
from typing import Any

from attention_xp._backend.dtypes import dtype_name, is_alike
from attention_xp._backend.libraries import common_namespace
from attention_xp._checks.arrays import check_floating, check_placement, shapes
from attention_xp._typing import Array, Namespace
from attention_xp.cache._caches import Cache, check_kind
from attention_xp.cache._counts import fields

__all__ = ["checked", "has_passed", "kind_of"]

_PASSED: dict[Any, Namespace] = {}  # the library of each kind of call that passed
_MOST = 512


def checked(cache: Any, **arrays: Array) -> Namespace:
    """Check a cache with a `query`, or a `key` and a `value`, or all three; return the library of all arrays."""
    kind = kind_of(cache, **arrays)
    if kind is not None and kind in _PASSED:
        return _PASSED[kind]
    check_kind(cache)
    xp = common_namespace(**arrays, **fields(cache))
    if "query" in arrays:
        _check_query(xp, cache, arrays["query"])
    if "key" in arrays:
        _check_rows(xp, cache, arrays["key"], arrays["value"])
    if kind is not None:
        if len(_PASSED) >= _MOST:
            _PASSED.clear()
        _PASSED[kind] = xp
    return xp


def has_passed(kind: Any) -> bool:
    """Whether a call of a kind has passed all checks."""
    return kind in _PASSED


def kind_of(cache: Any, **arrays: Array) -> Any:
    """Return all that is looked at; ``None`` unless all arrays are NumPy's own, of which nothing else is."""
    numpy = sys.modules.get("numpy")
    if not isinstance(cache, tuple):
        return None
    kind: list[Any] = [type(cache), *arrays]
    for array in (*cache, *arrays.values()):
        if numpy is None or type(array) is not numpy.ndarray:
            return None
        kind += array.dtype, array.shape
    return tuple(kind)


def _check_query(xp: Namespace, cache: Cache, query: Array) -> None:
    """Refuse a query that does not fit a cache."""
    check_floating(xp, query=query)
    check_placement(xp, cache=cache[0], query=query)
    B, (_, heads, _, width) = cache.lengths.shape[0], cache[0].shape
    if query.ndim != 4 or query.shape[0] != B or query.shape[3] != width or query.shape[1] % heads:
        raise ValueError(
            f"query does not fit the cache: expected (B, H, Sq, D) with B = {B}, D = {width} and H a multiple of {heads}, "
            f"{shapes(query=query)}"
        )


def _check_rows(xp: Namespace, cache: Cache, key: Array, value: Array) -> None:
    """Refuse rows that do not fit a cache."""
    check_floating(xp, key=key, value=value)
    check_placement(xp, cache=cache[0], key=key, value=value)
    B = cache.lengths.shape[0]
    rows = key.shape[2] if key.ndim == 4 else "n"
    for name, array, held in (("key", key, cache[0]), ("value", value, cache[1])):
        heads, width = held.shape[1], held.shape[3]
        if tuple(array.shape) != (B, heads, rows, width):
            raise ValueError(
                f"{name} does not fit the cache: expected {(B, heads, rows, width)}, {shapes(**{name: array})}"
            )
        if not is_alike(array.dtype, held.dtype):
            kind = dtype_name(array.dtype)
            raise TypeError(
                f"{name} is {kind} but the cache holds {dtype_name(held.dtype)}: expected one dtype; make the cache with "
                f"dtype={kind!r}, or convert the {name}"
            )
