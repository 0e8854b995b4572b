"""Batch items of a cache: put in another order, and emptied."""

from typing import Any, TypeVar

from attention_xp._backend.dtypes import is_boolean
from attention_xp._backend.libraries import common_namespace
from attention_xp._backend.values import as_int32, known_integers, within
from attention_xp._checks.arrays import check_integers, check_placement, shapes
from attention_xp._public_types import Array
from attention_xp.cache._caches import DenseCache, PagedCache, RollingCache, StaticCache, check_cache
from attention_xp.cache._pages import recounted

__all__ = ["free", "reorder"]

_NO_ITEM = -(2**30)  # the length of an item that there is not: it stays negative, whatever is appended

CacheT = TypeVar("CacheT", DenseCache[Any], StaticCache[Any], RollingCache[Any], PagedCache[Any])


def reorder(cache: CacheT, items: Array) -> CacheT:
    """Return a cache whose item ``b`` is item ``items[b]`` of the given one: what a beam search does in each step.

    Items may be left out, and may be given several times, also more of them than there are: with a `PagedCache`, these share
    their pages, such as those of a common prefix, until one of them writes. All others are copied.

    Parameters
    ----------
    cache : DenseCache, StaticCache, RollingCache or PagedCache
        A cache of ``B`` items.
    items : array
        ``(any,)`` integers from 0 to ``B - 1``.

    Returns
    -------
    cache
        Of the same kind, with as many items as there are numbers.

    Raises
    ------
    TypeError
        If `cache` is none, or `items` holds no integers.
    ValueError
        If `items` has not one axis, or holds an item that there is not. Inside ``jax.jit`` and ``torch.compile``, where nobody can
        look, such an item gives NaN from then on in compiled steps, and all others what they always give; outside, the next call
        refuses its length, which is negative. `free` makes the item as good as new.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.cache import PagedCache, append, reorder
    >>> rows = np.ones((1, 8, 20, 64))
    >>> cache = append(PagedCache.empty(1, 8, 10, 64, dtype="float64"), rows, rows)
    >>> reorder(cache, np.asarray([0, 0, 0])).references[:3]  # three beams, two pages
    array([3, 3, 0], dtype=int32)
    """
    check_cache(cache)
    xp = common_namespace(cache=cache.lengths, items=items)
    check_integers(xp, "items", items)
    check_placement(xp, cache=cache.lengths, items=items)
    if items.ndim != 1:
        raise ValueError(f"items must hold one number for each new item: expected (any,), {shapes(items=items)}")
    B, known = cache.lengths.shape[0], known_integers(xp, items)
    if known is not None and not all(0 <= b < B for b in known):
        raise ValueError(f"items must lie between 0 and {B - 1}, got {known}")
    items = as_int32(xp, items)
    at = items if known is not None else within(xp, items, 0, B - 1)
    lengths = xp.take(cache.lengths, at, axis=0)
    if known is None:  # within a trace, nobody can look: an item that there is not has a length that none has
        lengths = xp.where(at == items, lengths, _NO_ITEM)
    if isinstance(cache, PagedCache):
        table = xp.take(cache.block_table, at, axis=0)
        count, _, size, _ = cache.key_pages.shape
        references = recounted(xp, table, lengths, size, count)
        return PagedCache(cache.key_pages, cache.value_pages, table, lengths, references)
    return cache._replace(key=xp.take(cache.key, at, axis=0), value=xp.take(cache.value, at, axis=0), lengths=lengths)


def free(cache: CacheT, finished: Array) -> CacheT:
    """Return a cache in which some batch items are empty again; pages that nobody else has can be given to others.

    Parameters
    ----------
    cache : DenseCache, StaticCache, RollingCache or PagedCache
        A cache of ``B`` items.
    finished : array
        ``(B,)`` booleans: which items are emptied.

    Returns
    -------
    cache
        Of the same kind, with a length of 0 for these items. An item that had overflowed is then as good as new.

    Raises
    ------
    TypeError
        If `cache` is none, or `finished` holds no booleans.
    ValueError
        If `finished` is not ``(B,)``.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.cache import StaticCache, append, free, lengths
    >>> rows = np.ones((2, 8, 5, 64))
    >>> cache = append(StaticCache.empty(2, 8, 10, 64, dtype="float64"), rows, rows)
    >>> lengths(free(cache, np.asarray([True, False])))
    array([0, 5], dtype=int32)
    """
    check_cache(cache)
    xp = common_namespace(cache=cache.lengths, finished=finished)
    check_placement(xp, cache=cache.lengths, finished=finished)
    if not is_boolean(xp, finished.dtype):
        raise TypeError(f"finished must be boolean, (B,), got {finished.dtype}")
    if finished.shape != cache.lengths.shape:
        raise ValueError(
            f"finished must say of each batch item whether it is: expected {tuple(cache.lengths.shape)}, "
            f"{shapes(finished=finished)}"
        )
    lengths = xp.where(finished, 0, cache.lengths)
    if not isinstance(cache, PagedCache):
        return cache._replace(lengths=lengths)
    table = xp.where(finished[:, None], -1, cache.block_table)
    count, _, size, _ = cache.key_pages.shape
    return cache._replace(block_table=table, lengths=lengths, references=recounted(xp, table, lengths, size, count))
