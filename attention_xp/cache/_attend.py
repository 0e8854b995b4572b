"""Attend the keys of a cache, and append to it in the same step."""

from typing import Any, TypeVar, Unpack

from attention_xp._engine.problem.options import CacheOptions, check_options, with_options
from attention_xp._public_types import Array, ArrayT
from attention_xp.cache._caches import Cache, DenseCache, PagedCache, RollingCache, StaticCache
from attention_xp.cache._step import appended_and_attended, attended
from attention_xp.masks import Mask

__all__ = ["append_and_attend", "attend"]

CacheT = TypeVar("CacheT", DenseCache[Any], StaticCache[Any], RollingCache[Any], PagedCache[Any])


@with_options
def attend(
    cache: Cache,
    query: ArrayT,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    **options: Unpack[CacheOptions],
) -> ArrayT:
    """Attend with queries to what a cache holds.

    Parameters
    ----------
    cache : DenseCache, StaticCache, RollingCache or PagedCache
        Keys and values, each at its position.
    query : array
        ``(B, H, Sq, D)``. By default the rows are the last positions: `query_offset` is ``lengths - Sq``.
    mask : array or Mask, optional
        As in `flash_attention`. The columns of an array are positions: ``(..., Sq, positions)``, at least as many as there are
        in the cache.
    dropout_rate : float, default: 0.0
        Probability of dropping a weight, ``0 <= dropout_rate < 1``.
    query_offset : int or integer array of the batch shape, optional
        Position of the first query. Default: the rows are the last positions, ``lengths - Sq``.
    {options}

    Returns
    -------
    array
        ``(B, H, Sq, Dv)`` in the dtype of `query`. NaN for an item that has overflowed, or has more positions than an array
        mask or bias.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind: no cache, another library, another dtype.
    ValueError
        If a shape or a value does not fit, if `key_offset` or `key_positions` are given, or if an array mask or bias has
        fewer positions than an item that is known.

    Notes
    -----
    As everywhere, nothing is causal unless asked. A `RollingCache` holds the last positions alone: of several query rows, the
    first ones may miss keys that a later one has overwritten. `append_and_attend` gives them all they may attend.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import flash_attention
    >>> from attention_xp.cache import StaticCache, append, attend
    >>> x = np.random.default_rng(0).standard_normal((2, 8, 20, 64))
    >>> cache = append(StaticCache.empty(2, 8, 100, 64, dtype="float64"), x, x)
    >>> whole = flash_attention(x, x, x, is_causal=True)
    >>> bool(np.allclose(attend(cache, x[:, :, -3:], is_causal=True), whole[:, :, -3:]))
    True
    """
    check_options(attend, options)
    return attended(cache, query, mask, {**options, "dropout_rate": dropout_rate})  # type: ignore[no-any-return]


@with_options
def append_and_attend(
    cache: CacheT,
    query: ArrayT,
    key: Array,
    value: Array,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    *,
    lengths: int | Array | None = None,
    **options: Unpack[CacheOptions],
) -> tuple[ArrayT, CacheT]:
    """Append keys and values, and attend with the queries of the same rows: a step of decoding, or a chunk of a prompt.

    Right for any chunk, also where a `RollingCache` overwrites what the chunk still needs: there, each row attends the keys
    of the ``C`` positions that end with its own, and those after it, however the rows are cut into chunks.

    Parameters
    ----------
    cache : DenseCache, StaticCache, RollingCache or PagedCache
        What was there before.
    query : array
        ``(B, H, Sq, D)``, as a rule of as many rows as `key`: the last rows are those of the last keys, if there are fewer or more.
    key : array
        ``(B, Hkv, n, D)``, in the dtype of the cache.
    value : array
        ``(B, Hkv, n, Dv)``.
    mask : array or Mask, optional
        As in `attend`.
    dropout_rate : float, default: 0.0
        Probability of dropping a weight, ``0 <= dropout_rate < 1``.
    lengths : int or integer array, optional
        How many of the new rows count for each batch item, ``(B,)``, from the first on; 0 is allowed. The other rows are padding:
        they are not appended, and their output is 0. Default: all rows.
    query_offset : int or integer array of the batch shape, optional
        Position of the first query. Default: the rows are the last positions, ``lengths - Sq``.
    {options}

    Returns
    -------
    output : array
        ``(B, H, Sq, Dv)`` in the dtype of `query`. NaN for an item that has overflowed.
    cache
        Of the same kind; the given one stays what it was.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind: no cache, another library, another dtype.
    ValueError
        As in `append` and `attend`.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import flash_attention
    >>> from attention_xp.cache import RollingCache, append_and_attend
    >>> x = np.random.default_rng(0).standard_normal((2, 8, 20, 64))
    >>> cache, parts = RollingCache.empty(2, 8, 4, 64, dtype="float64"), []
    >>> for chunk in np.split(x, (9, 19), axis=2):  # longer than the buffer
    ...     output, cache = append_and_attend(cache, chunk, chunk, chunk, is_causal=True)
    ...     parts.append(output)
    >>> whole = flash_attention(x, x, x, is_causal=True, window=(3, 0))
    >>> bool(np.allclose(np.concat(parts, axis=2), whole))
    True
    """
    check_options(append_and_attend, options)
    how = {**options, "dropout_rate": dropout_rate}
    return appended_and_attended(cache, query, key, value, mask, lengths, how)
