"""Append keys and values to a cache."""

from typing import Any, TypeVar

from attention_xp._backend.libraries import device
from attention_xp._public_types import Array
from attention_xp._typing import Array as AnyArray, Namespace
from attention_xp.cache._caches import DenseCache, PagedCache, RollingCache, StaticCache
from attention_xp.cache._checked import checked
from attention_xp.cache._counts import Step
from attention_xp.cache._pages import append_to_pages
from attention_xp.cache._written import Rows, in_host_memory, write, write_blocks

__all__ = ["append", "appended"]

CacheT = TypeVar("CacheT", DenseCache[Any], StaticCache[Any], RollingCache[Any], PagedCache[Any])


def append(cache: CacheT, key: Array, value: Array, *, lengths: int | Array | None = None) -> CacheT:
    """Return a cache with more positions; the given one stays what it was.

    Parameters
    ----------
    cache : DenseCache, StaticCache, RollingCache or PagedCache
        What was there before.
    key : array
        ``(B, Hkv, n, D)``, in the dtype of the cache: the keys of the next ``n`` positions.
    value : array
        ``(B, Hkv, n, Dv)``.
    lengths : int or integer array, optional
        How many of the new rows count for each batch item, ``(B,)``, from the first on; 0 is allowed. Default: all.

    Returns
    -------
    cache
        Of the same kind.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind: no cache, another library, another dtype.
    ValueError
        If a shape does not fit, or if there is no room and the lengths are known: they lie in host memory, and no trace is
        being made. Else an item without room gives NaN from then on, in `attend`, and all others what they always give.

    Notes
    -----
    Nothing is written that another cache shows. In host memory, outside of traces, NumPy and torch write into slots that no
    cache has shown yet in place; compiled programs do so where the cache is donated or not used again.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.cache import StaticCache, append, lengths
    >>> rows = np.ones((2, 8, 3, 64))
    >>> cache = append(StaticCache.empty(2, 8, 100, 64, dtype="float64"), rows, rows, lengths=np.asarray([3, 1]))
    >>> lengths(cache)
    array([3, 1], dtype=int32)
    """
    xp = checked(cache, key=key, value=value)
    return appended(cache, Step.of(xp, cache, key, lengths), key, value)


def appended(cache: CacheT, step: Step, key: AnyArray, value: AnyArray) -> CacheT:
    """Return a cache with the rows of a step that was checked."""
    if isinstance(cache, PagedCache):
        return append_to_pages(cache, step, key, value)
    if isinstance(cache, DenseCache):
        return _append_to_dense(cache, step, key, value)
    C = cache.key.shape[2]
    if isinstance(cache, StaticCache):
        step.refuse_beyond(C, "its capacity")
    blocks = step.blocks(C)
    if blocks is not None and in_host_memory(cache.key, cache.value, key, value):
        buffers = write_blocks(step.xp, cache.key, cache.value, blocks, (key, value), lambda: _shown(step.xp, cache))
        return type(cache)(buffers[0], buffers[1], step.new)
    position, counts = step.positions()
    if isinstance(cache, StaticCache):
        return _with_rows(cache, step, key, value, position, counts & (position < C))
    is_last = counts & (position >= step.new[:, None] - C)  # a slot is written once
    return _with_rows(cache, step, key, value, position % C, is_last)


def _append_to_dense(cache: DenseCache[Any], step: Step, key: AnyArray, value: AnyArray) -> DenseCache[Any]:
    """Append in a buffer that is as long as it has to be, or, where that is not known, as long as it might have to be."""
    xp, S = step.xp, cache.key.shape[2]
    if step.known is None:
        end = S + step.rows
    else:
        end = max([a + b for a, b in zip(*step.known, strict=True)], default=0)
        if all(a == S and b == step.rows for a, b in zip(*step.known, strict=True)):
            joined = [_joined(xp, a, b) for a, b in ((cache.key, key), (cache.value, value))]
            return DenseCache(joined[0], joined[1], step.new)
    if end > S:
        longer = [_joined(xp, a, _zeros(xp, a, end - S)) for a in (cache.key, cache.value)]
        cache = DenseCache(longer[0], longer[1], cache.lengths)
    return _with_rows(cache, step, key, value, *step.positions())


def _joined(xp: Namespace, first: AnyArray, second: AnyArray) -> AnyArray:
    # NumPy joins in the machine's byte order.
    return xp.astype(xp.concat([first, second], axis=2), first.dtype, copy=False)


def _zeros(xp: Namespace, like: AnyArray, count: int) -> AnyArray:
    B, heads, _, width = like.shape
    return xp.zeros((B, heads, count, width), dtype=like.dtype, device=device(like))


def _with_rows(cache: Any, step: Step, key: AnyArray, value: AnyArray, slots: AnyArray, keep: AnyArray) -> Any:
    """Return a cache with rows (B, H, n, D) at columns (B, n) of their items."""
    xp, (B, n) = step.xp, slots.shape
    item = xp.arange(B, dtype=xp.int32, device=device(slots))[:, None]
    flat = [xp.reshape(xp.broadcast_to(a, (B, n)), (B * n,)) for a in (item, slots, keep)]
    rows = Rows(flat[0], flat[1], flat[2], _by_rows(xp, key), _by_rows(xp, value))
    known = step.known is not None
    buffers = write(xp, cache.key, cache.value, rows, lambda: _shown(xp, cache), known=known)
    return type(cache)(buffers[0], buffers[1], step.new)


def _shown(xp: Namespace, cache: Any) -> AnyArray:
    """Return how many slots of each item a cache shows, (B,)."""
    C = cache.key.shape[2]
    return xp.where(cache.lengths > C, C, cache.lengths)


def _by_rows(xp: Namespace, array: AnyArray) -> AnyArray:
    """(B, H, n, D) -> (B * n, H, D)."""
    B, H, n, D = array.shape
    return xp.reshape(xp.permute_dims(array, (0, 2, 1, 3)), (B * n, H, D))
