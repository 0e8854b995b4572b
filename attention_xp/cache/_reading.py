"""Pages that are read where they lie, some at a time, and what they give merged."""

import math
from typing import Any

from attention_xp._attention import flash_attention
from attention_xp._backend.dtypes import as_dtype, computation_dtype
from attention_xp._backend.libraries import device, is_numpy_namespace, is_tensor
from attention_xp._backend.loops import fold_parts
from attention_xp._backend.values import known_integers, within
from attention_xp._checks.arrays import check_floating, check_integers, check_placement, shapes
from attention_xp._merge import merge_attention
from attention_xp._typing import Array, Namespace
from attention_xp.cache._by_position import Given
from attention_xp.cache._counts import batch_integers
from attention_xp.cache._pages import readable

__all__ = ["attend_pages", "check_pages"]

_NUMBERS = 2**20  # of keys that are read at a time, about
_FEW = 16  # rows that share keys, up to which pages are multiplied where they lie: NumPy


def attend_pages(
    xp: Namespace,
    query: Array,
    pages: tuple[Array, Array, Array, Array],
    given: Given,
    how: dict[str, Any],
    known: list[int] | None,
    *,
    lse: bool = False,
) -> tuple[Array, Array]:
    """Return output and log-sum-exp over pages: keys, values, table and lengths; ``known`` are these lengths as ints."""
    key, value, table, lengths = pages
    Sq, size = query.shape[2], key.shape[2]
    how = {"query_offset": lengths - Sq, **{name: option for name, option in how.items() if option is not None}}
    if "key_lengths" in how:
        asked = batch_integers(xp, table, "key_lengths", how["key_lengths"])
        lengths = xp.where(asked < lengths, asked, lengths)
    most = table.shape[1] * size
    if known is None or "key_lengths" in how or not all(0 <= length <= most for length in known):
        lengths = within(xp, lengths, 0, most)  # an item that has overflowed has no more than all others
        known = None if known is None else known_integers(xp, lengths)
    if known is not None and is_numpy_namespace(xp) and _has_few_rows(query, key, how):
        from attention_xp.cache._where_they_lie import attend_where_they_lie  # noqa: PLC0415  # imports NumPy

        return attend_where_they_lie(xp, query, (key, value, table, lengths), given, how, known, lse=lse)
    reader = _Reader(xp, query, (key, value, table, lengths))
    most = table.shape[1] if known is None else -(-max(known, default=0) // size)
    wide = computation_dtype(xp, query.dtype)
    sinks = how.pop("sinks", None)
    name = "float64" if wide == xp.float64 else "float32"

    def step(i: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        start = i * reader.keys
        columns = given if given.reach is None else reader.columns(given, start)
        part = flash_attention(
            query,
            *reader.read(i),
            columns.mask,
            **{**how, "bias": columns.bias, "key_offset": start, "key_lengths": lengths},
            return_lse=True,
            output_dtype=name,
        )
        return merge_attention(*zip(state, part, strict=True))

    longest = xp.max(lengths) if lengths.shape[0] else 0
    state = _nothing(xp, query, value.shape[3], sinks, wide)
    state = fold_parts(xp, 0, -(-most // reader.count), step, state, lambda i: i * reader.keys < longest)
    output = as_dtype(xp, state[0], query.dtype)
    return output, _of_real_rows(xp, state[1], table, how) if lse else state[1]


def _has_few_rows(query: Array, key: Array, how: dict[str, Any]) -> bool:
    """Whether scores take no more memory than keys, so that the formula may compute them at once."""
    rows = query.shape[2] * (query.shape[1] // max(key.shape[1], 1))  # that share a key
    return 0 < rows <= _FEW and query.shape[0] > 0 and how.get("impl", "auto") in ("auto", "dense")


class _Reader:
    """Reads pages of all items, a number at a time."""

    def __init__(self, xp: Namespace, query: Array, pages: tuple[Array, ...]) -> None:
        self.xp, (self.key, self.value, table, lengths) = xp, pages
        B, most = table.shape
        P, heads, size, width = self.key.shape
        self.count = max(1, min(most, _NUMBERS // max(B * heads * size * width, 1)))
        self.keys = self.count * size
        table = readable(xp, table, lengths, size, P)
        rest = -most % self.count
        if rest:
            table = xp.concat([table, xp.zeros((B, rest), dtype=table.dtype, device=device(table))], axis=1)
        self.table, self.like = table, query

    def read(self, i: Any) -> tuple[Array, Array]:
        """Return keys and values of the pages from ``i * count`` on, each (B, Hkv, keys, D)."""
        xp, at = self.xp, _count(self.xp, self.count, self.table) + i * self.count
        table = xp.take(self.table, at, axis=1)  # (B, g)
        return self._of_pages(self.key, table), self._of_pages(self.value, table)

    def _of_pages(self, pool: Array, table: Array) -> Array:
        xp, (B, g), (P, heads, size, width) = self.xp, table.shape, pool.shape
        if _lies_in_order(pool):  # then pages of a head can be read into their places
            head = _count(xp, heads, table)[None, :, None]
            at = xp.reshape(table[:, None, :] * heads + head, (-1,))
            return xp.reshape(
                xp.take(xp.reshape(pool, (P * heads, size, width)), at, axis=0), (B, heads, g * size, width)
            )
        by_heads = xp.permute_dims(pool, (1, 0, 2, 3))
        if _lies_in_order(by_heads):
            read = xp.reshape(xp.take(by_heads, xp.reshape(table, (-1,)), axis=1), (heads, B, g * size, width))
            return xp.permute_dims(read, (1, 0, 2, 3))
        read = xp.reshape(xp.take(pool, xp.reshape(table, (-1,)), axis=0), (B, g, heads, size, width))
        return xp.reshape(xp.permute_dims(read, (0, 2, 1, 3, 4)), (B, heads, g * size, width))

    def columns(self, given: Given, start: Any) -> Given:
        """Return the columns of a mask at the positions that are read."""
        if isinstance(start, int):
            return given.columns(self.xp, start, start + self.keys)
        return given.at(self.xp, _count(self.xp, self.keys, self.table) + start)


def _count(xp: Namespace, count: int, like: Array) -> Array:
    """Return the first integers, on the device of an array."""
    return xp.arange(count, dtype=xp.int32, device=device(like))


def _lies_in_order(pool: Array) -> bool:
    """Whether a pool can be reshaped without a copy."""
    if is_tensor(pool):
        return bool(pool.is_contiguous())
    return not hasattr(pool, "flags") or bool(pool.flags.c_contiguous)


def _nothing(xp: Namespace, query: Array, width: int, sinks: Array | None, wide: Any) -> tuple[Array, Array]:
    """Return output and log-sum-exp before the first page: those of the sinks."""
    B, H, Sq, _ = query.shape
    output = xp.zeros((B, H, Sq, width), dtype=wide, device=device(query))
    if sinks is None:
        return output, xp.full((B, H, Sq), -math.inf, dtype=wide, device=device(query))
    check_floating(xp, sinks=sinks)
    if tuple(sinks.shape) != (H,):
        raise ValueError(f"sinks must hold one logit per head: expected sinks (H,) = ({H},), {shapes(sinks=sinks)}")
    return output, xp.broadcast_to(as_dtype(xp, sinks, wide)[None, :, None], (B, H, Sq))


def _of_real_rows(xp: Namespace, lse: Array, table: Array, how: dict[str, Any]) -> Array:
    """Return the log-sum-exp with minus infinity in rows of padding, sinks or not."""
    if "query_lengths" not in how:
        return lse
    limit = batch_integers(xp, table, "query_lengths", how["query_lengths"])[:, None, None]
    return xp.where(_count(xp, lse.shape[2], table)[None, None, :] < limit, lse, -math.inf)


def check_pages(xp: Namespace, query: Array, key: Array, value: Array, table: Array) -> None:
    check_floating(xp, query=query, key_pages=key, value_pages=value)
    check_integers(xp, "block_table", table)
    check_placement(xp, query=query, key_pages=key, value_pages=value, block_table=table)
    if query.ndim != 4 or key.ndim != 4 or value.ndim != 4 or tuple(value.shape[:3]) != tuple(key.shape[:3]):
        raise ValueError(
            "expected query (B, H, Sq, D), key_pages (num_pages, Hkv, page_size, D) and value_pages (num_pages, Hkv, page_size, "
            f"Dv), {shapes(query=query, key_pages=key, value_pages=value)}"
        )
    if key.shape[2] == 0:
        raise ValueError(f"pages must hold at least one position, {shapes(key_pages=key)}")
    if table.ndim != 2 or table.shape[0] != query.shape[0]:
        raise ValueError(
            f"block_table must hold the pages of each item: expected (B, any) with B = {query.shape[0]}, "
            f"{shapes(block_table=table)}"
        )
    if query.shape[3] != key.shape[3] or (query.shape[1] % key.shape[1] if key.shape[1] else query.shape[1]):
        raise ValueError(
            f"query does not fit the pages, (num_pages, Hkv, page_size, D): expected D = {key.shape[3]} and H a multiple of "
            f"{key.shape[1]}, {shapes(query=query, key_pages=key)}"
        )
