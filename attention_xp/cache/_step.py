"""A step of decoding: what a query attends in each kind of cache."""

import math
from typing import Any

from attention_xp._attention import flash_attention
from attention_xp._backend.dtypes import as_dtype
from attention_xp._backend.libraries import is_jax_namespace
from attention_xp._backend.values import known_integers, within
from attention_xp._checks.numbers import check_flag, check_window
from attention_xp._typing import Array, Namespace
from attention_xp.cache._append import appended
from attention_xp.cache._by_position import Given
from attention_xp.cache._caches import DenseCache, PagedCache, RollingCache, StaticCache, positions_of
from attention_xp.cache._checked import checked
from attention_xp.cache._counts import Step, batch_integers, known_lengths, most_of
from attention_xp.cache._pages import missing
from attention_xp.cache._plain import looks_at_positions, plain
from attention_xp.cache._reading import attend_pages
from attention_xp.cache._usual import usual_step

__all__ = ["appended_and_attended", "attended"]

_OF_CACHE = ("key_offset", "key_positions")  # which the cache says


def attended(cache: Any, query: Array, mask: Any, how: dict[str, Any]) -> Array:
    """Return the output over what a cache holds."""
    _refuse_positions(how)
    _refuse_window(cache, how)
    xp = checked(cache, query=query)
    known = known_lengths(xp, cache)
    return _attended(xp, cache, query, mask, _at_offset(xp, cache, query, how, known, 0), known)


def appended_and_attended(
    cache: Any, query: Array, key: Array, value: Array, mask: Any, lengths: Any, how: dict[str, Any]
) -> tuple[Array, Any]:
    """Return the output over what a cache and new rows hold, and the cache with these rows."""
    usual = usual_step(cache, query, key, value, how) if mask is None and lengths is None else None
    if usual is not None:
        return usual
    _refuse_positions(how)
    _refuse_window(cache, how)
    xp = checked(cache, query=query, key=key, value=value)
    step = Step.of(xp, cache, key, lengths)
    after = appended(cache, step, key, value)
    how = _at_offset(xp, cache, query, how, None if step.known is None else step.known[0], key.shape[2])
    if lengths is not None:
        rows = step.counts + (query.shape[2] - key.shape[2])
        how["query_lengths"] = _least(xp, cache, "query_lengths", within(xp, rows, 0, query.shape[2]), how)
    if not isinstance(cache, RollingCache) or key.shape[2] == 1:
        return _attended(xp, after, query, mask, how, step.known_new), after
    given = Given.of(xp, query, mask, how.get("bias"))
    wrong = _wrong(xp, after, given, step.known_new)
    position, counts = step.positions()
    positions = xp.concat([positions_of(xp, cache), xp.where(counts, position, -1)], axis=1)
    both = [as_dtype(xp, xp.concat([a, b], axis=2), a.dtype) for a, b in ((cache.key, key), (cache.value, value))]
    left, right = (None, None) if how.get("window") is None else check_window(how["window"])
    C = cache.key.shape[2]
    how |= {"window": (C - 1 if left is None else min(left, C - 1), right), "key_positions": positions}
    output = _attend(query, both[0], both[1], given.at(xp, positions), how)
    return output if wrong is None else xp.where(wrong[:, None, None, None], math.nan, output), after


def _attended(
    xp: Namespace, cache: Any, query: Array, mask: Any, how: dict[str, Any], known: list[int] | None
) -> Array:
    """Return the output over a cache with these lengths, of a query with its place."""
    given = Given.of(xp, query, mask, how.get("bias"))
    wrong = _wrong(xp, cache, given, known)
    if isinstance(cache, RollingCache):
        output = _attend_round(xp, cache, query, given, how, known)
    elif isinstance(cache, PagedCache):
        output = attend_pages(xp, query, cache[:4], given, how, known)[0]
    else:
        output = _attend_columns(xp, cache, query, given, how, known)
    return output if wrong is None else xp.where(wrong[:, None, None, None], math.nan, output)


def _attend_round(
    xp: Namespace, cache: RollingCache[Any], query: Array, given: Given, how: dict[str, Any], known: list[int] | None
) -> Array:
    """Attend a cache in which columns are positions modulo their number, which are looked up where anything looks at them."""
    C, has_arrays = cache.key.shape[2], given.mask is not None or given.bias is not None
    if not has_arrays and how.get("key_lengths") is None and not looks_at_positions(how):
        held = cache._replace(lengths=xp.where(cache.lengths > C, C, cache.lengths))
        return _attend_columns(
            xp, held, query, given, how, None if known is None else [min(length, C) for length in known]
        )
    positions = positions_of(xp, cache)
    return _attend(query, cache.key, cache.value, given.at(xp, positions), {**how, "key_positions": positions})


def _attend_columns(
    xp: Namespace, cache: Any, query: Array, given: Given, how: dict[str, Any], known: list[int] | None
) -> Array:
    """Attend a cache in which columns are positions; where lengths are known, no further than the longest."""
    S, key, value = cache.key.shape[2], cache.key, cache.value
    if known is not None and not is_jax_namespace(xp):
        S = min(S, max(known, default=0))
        first, S, how = _seen(query, given, how, known, S)
        key, value = key[:, :, first:S, :], value[:, :, first:S, :]
    if known is None or min(known, default=0) < S or how.get("key_lengths") is not None:
        how = {**how, "key_lengths": _least(xp, cache, "key_lengths", cache.lengths, how)}
    return _attend(query, key, value, given.columns(xp, 0, S), how)


def _seen(query: Array, given: Given, how: dict[str, Any], known: list[int], S: int) -> tuple[int, int, dict[str, Any]]:
    """Return which columns the window of a single row leaves, where nothing else looks at positions, and the other options."""
    if how.get("window") is None or query.shape[2] != 1:
        return 0, S, how
    rest, offset = {**how, "window": None}, how.get("query_offset")
    is_plain = given.mask is None and given.bias is None and how.get("key_lengths") is None
    if not is_plain or looks_at_positions(rest):
        return 0, S, how
    if type(offset) is not int or min(known, default=0) < S:
        return 0, S, how
    left, right = check_window(how["window"])
    first = 0 if left is None else max(0, offset - left)
    last = S if right is None else min(S, offset + right + 1)
    return (first, last, rest) if first < last else (0, S, how)


def _attend(query: Array, key: Array, value: Array, given: Given, how: dict[str, Any]) -> Array:
    if given.mask is None and given.bias is None:
        return flash_attention(query, key, value, **plain(how))
    return flash_attention(query, key, value, given.mask, **{**how, "bias": given.bias})


def _at_offset(
    xp: Namespace, cache: Any, query: Array, how: dict[str, Any], known: list[int] | None, rows: int
) -> dict[str, Any]:
    """Return options with where the first query stands: by default, the rows are the last ones of all, or of the chunk."""
    if how.get("query_offset") is not None:
        return dict(how)
    # One int where all lengths are known to be that, which is cheaper; JAX computes with arrays.
    is_one = known and not is_jax_namespace(xp) and known.count(known[0]) == len(known)
    lengths = known[0] if known and is_one else cache.lengths
    how = {**how, "query_offset": lengths + (rows - query.shape[2])}
    is_causal = check_flag("is_causal", how.get("is_causal", False))
    if query.shape[2] == 1:  # no key stands behind a single row, nor any before those that a cache holds
        is_causal = False
        if isinstance(cache, RollingCache) and _left(how) in (None, cache.key.shape[2] - 1):
            how["window"] = None
    return {**how, "is_causal": is_causal}


def _left(how: dict[str, Any]) -> int | None:
    """Return how many earlier keys a window reaches."""
    return None if how.get("window") is None else check_window(how["window"])[0]


def _least(xp: Namespace, cache: Any, name: str, limit: Array, how: dict[str, Any]) -> Array:
    """Return the smaller one of a limit and that of an option, (B,)."""
    if how.get(name) is None:
        return limit
    asked = batch_integers(xp, cache.lengths, name, how[name])
    return xp.where(asked < limit, asked, limit)


def _wrong(xp: Namespace, cache: Any, given: Given, known: list[int] | None) -> Array | None:
    """Return which items have overflowed or go beyond an array mask, ``None`` where it is known that none does."""
    if known is not None:
        given.refuse_beyond(max(known, default=0), "the longest item has positions")
    lengths, most = cache.lengths, most_of(cache)
    if known is not None and max(known, default=0) <= most and not isinstance(cache, PagedCache):
        return None
    if isinstance(cache, PagedCache):
        size, count = cache.key_pages.shape[2], cache.key_pages.shape[0]
        table = cache.block_table if known is None else cache.block_table[:, : -(-max(known, default=0) // size)]
        if known is not None and max(known, default=0) <= most and not xp.any((table < 0) | (table >= count)):
            return None
        wrong = missing(xp, table, lengths, size, count) | (lengths < 0)
    else:
        wrong = lengths < 0
        if isinstance(cache, StaticCache | DenseCache):
            wrong = wrong | (lengths > most)
    if given.reach is not None:
        wrong = wrong | (lengths > given.reach)
    if known is None:
        return wrong
    return wrong if 1 in (known_integers(xp, xp.astype(wrong, xp.int32)) or ()) else None


def _refuse_positions(options: Any) -> None:
    for name in _OF_CACHE:
        if options.get(name) is not None:
            raise ValueError(f"{name} cannot be given: the cache says where its keys stand")


def _refuse_window(cache: Any, options: Any) -> None:
    """Refuse a window of more positions than a rolling cache holds."""
    window = options.get("window")
    if window is None or not isinstance(cache, RollingCache):
        return
    left, _ = check_window(window)
    capacity = cache.key.shape[2]
    if left is not None and left >= capacity:
        raise ValueError(
            f"window reaches {left} keys to the left, and a RollingCache of capacity {capacity} holds {capacity - 1} beside a "
            "row's own: make it larger, or the window smaller"
        )
