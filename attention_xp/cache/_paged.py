"""Attention over keys and values that lie in pages of a pool, some pages at a time."""

import math
from typing import Any, Literal, Unpack, overload

from attention_xp._backend.libraries import common_namespace
from attention_xp._backend.shapes import filled_up
from attention_xp._backend.values import as_int32, known_integers
from attention_xp._checks.numbers import check_flag
from attention_xp._engine.problem.options import CacheOptions, check_options, with_options
from attention_xp._public_types import Array, ArrayT
from attention_xp._typing import Namespace
from attention_xp.cache._by_position import Given
from attention_xp.cache._counts import batch_integers
from attention_xp.cache._pages import missing
from attention_xp.cache._reading import attend_pages, check_pages
from attention_xp.masks import Mask

__all__ = ["paged_attention"]


@overload
def paged_attention(
    query: ArrayT,
    key_pages: ArrayT,
    value_pages: ArrayT,
    block_table: Array,
    lengths: int | Array,
    *,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    return_lse: Literal[False] = False,
    **options: Unpack[CacheOptions],
) -> ArrayT: ...
@overload
def paged_attention(
    query: ArrayT,
    key_pages: ArrayT,
    value_pages: ArrayT,
    block_table: Array,
    lengths: int | Array,
    *,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    return_lse: Literal[True],
    **options: Unpack[CacheOptions],
) -> tuple[ArrayT, ArrayT]: ...
@with_options
def paged_attention(
    query: Array,
    key_pages: Array,
    value_pages: Array,
    block_table: Array,
    lengths: int | Array,
    *,
    mask: Array | Mask | None = None,
    dropout_rate: float = 0.0,
    return_lse: bool = False,
    **options: Unpack[CacheOptions],
) -> Any:
    r"""Attend keys and values that lie in pages, which are read where they lie.

    The key of item ``b`` at position ``p`` is ``key_pages[block_table[b, p // page_size], :, p % page_size]``. Some pages are
    read at a time, and what they give is merged: memory does not grow with the lengths.

    Parameters
    ----------
    query : array
        ``(B, H, Sq, D)``. By default the rows are the last positions: `query_offset` is ``lengths - Sq``.
    key_pages : array
        ``(num_pages, Hkv, page_size, D)``. Pages ``(num_pages, page_size, Hkv, D)`` go in as ``pages.swapaxes(1, 2)``, a view.
    value_pages : array
        ``(num_pages, Hkv, page_size, Dv)``.
    block_table : array
        ``(B, any)`` integers: the pages of each item. Entries that no length reaches are not read, whatever they are.
    lengths : int or integer array
        ``(B,)``: how many positions each item has.
    mask : array or Mask, optional
        As in `flash_attention`. The columns of an array are positions: ``(..., Sq, positions)``.
    dropout_rate : float, default: 0.0
        Probability of dropping a weight, ``0 <= dropout_rate < 1``.
    return_lse : bool, default: False
        Whether to return the log-sum-exp as well.
    query_offset : int or integer array of the batch shape, optional
        Position of the first query. Default: the rows are the last positions, ``lengths - Sq``.
    {options}

    Returns
    -------
    output : array
        ``(B, H, Sq, Dv)`` in the dtype of `query`.
    lse : array
        ``(B, H, Sq)``, as in `flash_attention`. Only with `return_lse`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind: no array, another library, another dtype.
    ValueError
        If a shape or a value does not fit, or if a length is negative, or reaches an entry that is no page, or positions that the
        table or an array mask does not have, and the numbers are known: they lie in host memory, and no trace is being made.
        Else the item gives NaN.

    References
    ----------
    Kwon, Li, Zhuang, Sheng, Zheng, Yu, Gonzalez, Zhang and Stoica, "Efficient memory management for large language model
    serving with PagedAttention", SOSP 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp import flash_attention
    >>> from attention_xp.cache import paged_attention
    >>> rng = np.random.default_rng(0)
    >>> q, pages = rng.standard_normal((1, 8, 2, 64)), rng.standard_normal((10, 8, 16, 64))
    >>> output = paged_attention(q, pages, pages, np.asarray([[7, 2, -1]]), 20)
    >>> keys = np.concat([pages[7:8], pages[2:3]], axis=2)[:, :, :20]
    >>> bool(np.allclose(output, flash_attention(q, keys, keys)))
    True
    """
    check_options(paged_attention, options)
    check_flag("return_lse", return_lse)
    for name in ("key_offset", "key_positions"):
        if options.get(name) is not None:
            raise ValueError(f"{name} cannot be given: block_table says where keys stand")
    xp = common_namespace(query=query, key_pages=key_pages, value_pages=value_pages, block_table=block_table)
    check_pages(xp, query, key_pages, value_pages, block_table)
    table = as_int32(xp, block_table)
    limit = batch_integers(xp, table, "lengths", lengths)
    numbers = known_integers(xp, limit)
    if numbers and min(numbers) < 0:
        raise ValueError(f"lengths must not be negative, got {numbers}")
    given = Given.of(xp, query, mask, options.get("bias"))
    wrong = missing(xp, table, limit, key_pages.shape[2], key_pages.shape[0]) | (limit < 0)
    if given.reach is not None:
        wrong = wrong | (limit > given.reach)
    known = known_integers(xp, xp.astype(wrong, xp.int32))
    if known is not None and numbers is not None and 1 in known:
        item = known.index(1)
        _refuse(xp, item, numbers[item], given, table, key_pages)
    pages = key_pages, value_pages, table, limit
    how = {**options, "dropout_rate": dropout_rate}
    output, lse = attend_pages(xp, query, pages, given, how, numbers, lse=return_lse)
    if known is None:
        output, lse = (xp.where(filled_up(xp, wrong, 1, behind=a.ndim - 1), math.nan, a) for a in (output, lse))
    return (output, lse) if return_lse else output


def _refuse(xp: Namespace, item: int, length: int, given: Given, table: Array, key: Array) -> None:
    """Say why an item of some length cannot be attended, of which that is known."""
    count, room = key.shape[0], table.shape[1] * key.shape[2]
    if length > room:
        raise ValueError(f"lengths[{item}] is {length}, but block_table {tuple(table.shape)} has room for {room}")
    given.refuse_beyond(length, f"lengths[{item}]")
    pages = known_integers(xp, table[item, ...]) or []
    i = next(i for i, page in enumerate(pages) if not 0 <= page < count)
    raise ValueError(
        f"block_table[{item}, {i}] is no page: expected numbers from 0 to {count - 1} where lengths reach, got {pages[i : i + 1]}"
    )
