"""The four caches: what they hold, and how an empty one is made."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from attention_xp._backend.creation import Place, place_of
from attention_xp._backend.libraries import common_namespace, device as device_of, is_numpy_namespace
from attention_xp._checks.numbers import check_count
from attention_xp._public_types import Generic, HeldT
from attention_xp._typing import Array, Device, DType, Namespace
from attention_xp.cache._parts import check_parts

__all__ = [
    "Cache",
    "DenseCache",
    "PagedCache",
    "RollingCache",
    "StaticCache",
    "check_cache",
    "check_kind",
    "lengths",
    "page_bounds",
    "positions_of",
]


class DenseCache(NamedTuple, Generic[HeldT]):
    """A cache that grows with what is appended: the key at position ``p`` is in column ``p``.

    `key` is ``(B, Hkv, S, D)``, `value` is ``(B, Hkv, S, Dv)``, and of batch item ``b`` the first ``lengths[b]`` columns count;
    `lengths` is ``(B,)`` int32. Being a named tuple, it is a pytree to JAX.

    Examples
    --------
    >>> from attention_xp.cache import DenseCache
    >>> DenseCache.empty(2, 8, 64).key.shape
    (2, 8, 0, 64)
    """

    key: HeldT
    value: HeldT
    lengths: HeldT

    @classmethod
    def empty(
        cls,
        batch: int,
        num_kv_heads: int,
        width: int,
        *,
        value_width: int | None = None,
        xp: Namespace | None = None,
        dtype: DType | str | None = None,
        device: Device | None = None,
    ) -> "DenseCache[Any]":
        """Return a cache that holds nothing.

        Parameters
        ----------
        batch, num_kv_heads, width : int
            ``B``, ``Hkv`` and ``D``.
        value_width : int, optional
            ``Dv``. Default: `width`.
        xp : module, optional
            Array library, such as ``torch``. Default: NumPy.
        dtype : dtype or str, optional
            Floating dtype. Default: that of the library.
        device : device, optional
            Default: that of the library.

        Returns
        -------
        DenseCache
            With room for no position, and lengths of 0.
        """
        return cls(
            *_zeros((batch, num_kv_heads, 0), width, value_width, xp, dtype, device), *_no_lengths(batch, xp, device)
        )


class StaticCache(NamedTuple, Generic[HeldT]):
    """A cache with room for a fixed number ``C`` of positions, so that a compiled step serves all lengths.

    `key` is ``(B, Hkv, C, D)``, `value` is ``(B, Hkv, C, Dv)`` and `lengths` is ``(B,)`` int32: the key at position ``p`` is in
    column ``p``. A length beyond ``C`` marks an item that has overflowed.

    Examples
    --------
    >>> from attention_xp.cache import StaticCache
    >>> StaticCache.empty(2, 8, 100, 64, dtype="float32").key.shape
    (2, 8, 100, 64)
    """

    key: HeldT
    value: HeldT
    lengths: HeldT

    @classmethod
    def empty(
        cls,
        batch: int,
        num_kv_heads: int,
        capacity: int,
        width: int,
        *,
        value_width: int | None = None,
        xp: Namespace | None = None,
        dtype: DType | str | None = None,
        device: Device | None = None,
    ) -> "StaticCache[Any]":
        """Return a cache that holds nothing, with room for `capacity` positions; see `DenseCache.empty`."""
        shape = batch, num_kv_heads, check_count("capacity", capacity)
        return cls(*_zeros(shape, width, value_width, xp, dtype, device), *_no_lengths(batch, xp, device))


class RollingCache(NamedTuple, Generic[HeldT]):
    """A cache of the last ``C`` positions, for sliding windows of up to ``C`` keys, the query's own included.

    `key` is ``(B, Hkv, C, D)``, `value` is ``(B, Hkv, C, Dv)`` and `lengths` is ``(B,)`` int32: the key at position ``p`` is in
    column ``p % C``, until that at ``p + C`` takes its place.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.cache import RollingCache, append, lengths
    >>> cache = append(RollingCache.empty(1, 1, 4, 2, dtype="float64"), *np.ones((2, 1, 1, 7, 2)))
    >>> cache.key.shape, int(lengths(cache)[0])
    ((1, 1, 4, 2), 7)
    """

    key: HeldT
    value: HeldT
    lengths: HeldT

    @classmethod
    def empty(
        cls,
        batch: int,
        num_kv_heads: int,
        capacity: int,
        width: int,
        *,
        value_width: int | None = None,
        xp: Namespace | None = None,
        dtype: DType | str | None = None,
        device: Device | None = None,
    ) -> "RollingCache[Any]":
        """Return a cache that holds nothing, for the last `capacity` positions; see `DenseCache.empty`."""
        shape = batch, num_kv_heads, check_count("capacity", capacity)
        return cls(*_zeros(shape, width, value_width, xp, dtype, device), *_no_lengths(batch, xp, device))


class PagedCache(NamedTuple, Generic[HeldT]):
    """A cache in pages of one pool, which items take as they grow, and share where they have a prefix in common.

    `key_pages` is ``(num_pages, Hkv, page_size, D)`` and `value_pages` ``(num_pages, Hkv, page_size, Dv)``. The key of item
    ``b`` at position ``p`` is in page ``block_table[b, p // page_size]``, slot ``p % page_size``; `block_table` is ``(B, pages
    of an item)`` int32, -1 where there is no page. `lengths` is ``(B,)`` and `references` ``(num_pages,)``, both int32: how
    many items have a page in their table; 0 is a free page. An item for which there was no page has overflowed: an entry
    that its length reaches is then -1.

    Examples
    --------
    >>> from attention_xp.cache import PagedCache
    >>> cache = PagedCache.empty(2, 8, 100, 64, page_size=32, dtype="float32")
    >>> cache.key_pages.shape, cache.block_table.shape
    ((100, 8, 32, 64), (2, 100))
    """

    key_pages: HeldT
    value_pages: HeldT
    block_table: HeldT
    lengths: HeldT
    references: HeldT

    @classmethod
    def empty(
        cls,
        batch: int,
        num_kv_heads: int,
        num_pages: int,
        width: int,
        *,
        page_size: int = 16,
        pages_per_item: int | None = None,
        value_width: int | None = None,
        xp: Namespace | None = None,
        dtype: DType | str | None = None,
        device: Device | None = None,
    ) -> "PagedCache[Any]":
        """Return a cache that holds nothing, with a pool of `num_pages` pages of `page_size` positions.

        `pages_per_item` bounds what one item may take, by default all pages: a compiled step looks at so many. For the others
        see `DenseCache.empty`.
        """
        shape = check_count("num_pages", num_pages), num_kv_heads, check_count("page_size", page_size)
        most = num_pages if pages_per_item is None else check_count("pages_per_item", pages_per_item)
        (counts,) = _no_lengths(batch, xp, device)
        place = place_of(xp, None, device, None)
        table = place.xp.full((batch, most), -1, dtype=place.xp.int32, device=place.device)
        references = place.xp.zeros((num_pages,), dtype=place.xp.int32, device=place.device)
        keys, values = _zeros(shape, width, value_width, xp, dtype, device, heads_first=is_numpy_namespace(place.xp))
        return cls(keys, values, table, counts, references)


Cache: TypeAlias = DenseCache[Any] | StaticCache[Any] | RollingCache[Any] | PagedCache[Any]

_KINDS = DenseCache, StaticCache, RollingCache, PagedCache


def lengths(cache: Cache) -> Any:
    """Return how many positions each batch item has seen, also beyond what a `RollingCache` keeps.

    Parameters
    ----------
    cache : DenseCache, StaticCache, RollingCache or PagedCache
        A cache.

    Returns
    -------
    array
        ``(B,)`` int32.

    Raises
    ------
    TypeError
        If `cache` is none.

    Examples
    --------
    >>> from attention_xp.cache import RollingCache, lengths
    >>> lengths(RollingCache.empty(3, 8, 128, 64))
    array([0, 0, 0], dtype=int32)
    """
    check_cache(cache)
    return cache.lengths


def check_kind(cache: Any) -> None:
    """Refuse what is no cache, and one whose arrays do not fit each other."""
    if not isinstance(cache, _KINDS):
        names = ", ".join(kind.__name__ for kind in _KINDS)
        raise TypeError(f"cache must be one of {names}, got {type(cache).__name__}")
    check_parts(cache)


def check_cache(cache: Any) -> Namespace:
    """Return the array library of a cache; refuse what is none."""
    check_kind(cache)
    return common_namespace(**cache._asdict())


def positions_of(xp: Namespace, cache: RollingCache[Any]) -> Array:
    """Return the positions of the columns of a rolling cache, (B, C) int32, -1 of empty ones."""
    C = cache.key.shape[-2]
    last = cache.lengths[:, None] - 1
    column = xp.arange(C, dtype=xp.int32, device=device_of(cache.lengths))[None, :]
    position = last - (last - column) % C
    return xp.where(position < 0, -1, position)


def page_bounds(xp: Namespace, cache: PagedCache[Any]) -> tuple[int, int, Array]:
    """Return pages of an item, positions of a page, and the columns of the table, (1, pages of an item) int32."""
    most = cache.block_table.shape[1]
    columns = xp.arange(most, dtype=xp.int32, device=device_of(cache.lengths))[None, :]
    return most, cache.key_pages.shape[2], columns


def _zeros(
    shape: tuple[int, int, int],
    width: int,
    value_width: int | None,
    xp: Namespace | None,
    dtype: DType | str | None,
    device: Device | None,
    *,
    heads_first: bool = False,
) -> tuple[Any, Any]:
    """Return arrays of zeros for keys and values.

    With `heads_first`, the second axis is the slowest in memory: the pages of a head follow each other, and neighbours are
    one stretch of keys, which a single product reads. That is of use where arrays may lie in any order, in NumPy.
    """
    check_count("batch", shape[0])
    check_count("num_kv_heads", shape[1])
    widths = check_count("width", width), width if value_width is None else check_count("value_width", value_width)
    place: Place = place_of(xp, dtype, device, None)
    make: Callable[..., Any] = place.xp.zeros
    if heads_first:
        shape = shape[1], shape[0], shape[2]
    key, value = (make((*shape, D), dtype=place.dtype, device=place.device) for D in widths)
    return (key.swapaxes(0, 1), value.swapaxes(0, 1)) if heads_first else (key, value)


def _no_lengths(batch: int, xp: Namespace | None, device: Device | None) -> tuple[Any]:
    place = place_of(xp, None, device, None)
    return (place.xp.zeros((check_count("batch", batch),), dtype=place.xp.int32, device=place.device),)
