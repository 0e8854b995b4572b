"""flash-attn's function for packed sequences."""

import math
from typing import Any

from attention_xp._backend.libraries import common_namespace, device
from attention_xp._backend.values import as_int32, known_integers, within
from attention_xp._checks.arrays import check_integers, check_placement, shapes
from attention_xp._checks.numbers import check_count, check_flag
from attention_xp._typing import Array, Namespace
from attention_xp._varlen import varlen_attention
from attention_xp.cache._pages import laid_out, missing, readable
from attention_xp.interop._border import named_as
from attention_xp.interop.flash_attn._layout import (
    THEIR_NAMES,
    as_theirs,
    known_draw,
    signed_weights,
    swapped,
    their_lse,
    with_offset,
    without_weights,
)
from attention_xp.interop.flash_attn._options import check_arrays, check_axes, options_of
from attention_xp.masks import LengthMask

__all__ = ["flash_attn_varlen_func"]


@named_as(THEIR_NAMES)
def flash_attn_varlen_func(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Any = None,
    *,
    rng: Any = None,
) -> Any:
    r"""Attend within packed sequences as ``flash_attn.flash_attn_varlen_func`` does.

    .. math:: \mathrm{out}_{c_i : c_{i+1}} = \mathrm{attention}(Q_{c_i : c_{i+1}}, K_{c'_i : c'_{i+1}}, V_{c'_i : c'_{i+1}})

    The last query of each sequence is aligned with its last key.

    Parameters
    ----------
    q : array
        ``(total_q, H, D)``.
    k : array
        ``(total_k, Hkv, D)``; with `block_table` a pool of pages ``(num_blocks, page_block_size, Hkv, D)``.
    v : array
        As `k`, with a width of its own.
    cu_seqlens_q : array
        ``(B + 1,)`` integers: sequence ``i`` is rows ``cu_seqlens_q[i]:cu_seqlens_q[i + 1]``.
    cu_seqlens_k : array
        The same for the keys; with `block_table` only the differences count.
    max_seqlen_q, max_seqlen_k : int
        The greatest lengths, or more. They are the sizes of `S_dmask`, and `max_seqlen_k` is as far as `block_table` is read.
    dropout_p, softmax_scale, causal, window_size, softcap, deterministic, return_attn_probs, rng
        As in `flash_attn_func`.
    alibi_slopes : array, optional
        ``(H,)``, or ``(B, H)`` with one row for each sequence.
    block_table : array, optional
        ``(B, any)`` integers: which pages hold the keys of each sequence, in order; of any size. Entries that no length reaches are
        not read. The pages are copied together, once for each call; `flash_attn_with_kvcache` reads them where they lie.

    Returns
    -------
    out : array
        ``(total_q, H, Dv)``; 0 in rows without keys, and behind the last sequence.
    softmax_lse : array
        ``(H, total_q)``, natural logarithm, at least float32; plus infinity in rows without keys. Only with
        `return_attn_probs`.
    S_dmask : array
        ``(B, H, max_seqlen_q, max_seqlen_k)``: the softmax, with a minus where a weight is dropped. Without dropout it is empty,
        ``(0,)``. Only with `return_attn_probs`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a shape or a value does not fit: also lengths beyond `max_seqlen_q` and `max_seqlen_k` and entries of `block_table` that
        are no page, where the numbers lie in host memory. Elsewhere a sequence without its pages gives NaN.

    References
    ----------
    ``flash_attn/flash_attn_interface.py`` of flash-attn 2.8.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.interop.flash_attn import flash_attn_varlen_func
    >>> x, bounds = np.ones((10, 4, 8)), np.asarray([0, 3, 10], dtype=np.int32)
    >>> flash_attn_varlen_func(x, x, x, bounds, bounds, 7, 7, causal=True).shape
    (10, 4, 8)
    """
    xp = common_namespace(q=q, k=k, v=v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    _check(xp, q, k, v, block_table)
    bounds = [_bounds(xp, q, *given) for given in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k))]
    if bounds[0].shape != bounds[1].shape:
        raise ValueError(
            f"cu_seqlens_k must bound as many sequences as cu_seqlens_q, "
            f"{shapes(cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)}"
        )
    lengths = [a[1:] - a[:-1] for a in bounds]
    most = [
        _most(xp, name, given, n)
        for name, given, n in zip(("max_seqlen_q", "max_seqlen_k"), (max_seqlen_q, max_seqlen_k), lengths, strict=True)
    ]
    how = options_of(
        xp,
        q,
        lengths[0].shape[0],
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        deterministic=deterministic,
        dropout_p=dropout_p,
        rng=rng,
    )
    wants = check_flag("return_attn_probs", return_attn_probs)
    how = with_offset(known_draw(xp, q, how) if wants else how, lengths[1] - lengths[0])
    mask, wrong = None, None
    if block_table is not None:
        k, v, bounds[1], wrong = _read(xp, k, v, block_table, lengths[1], most[1])
        mask = LengthMask(lengths[1])
    found = varlen_attention(q, k, v, *bounds, mask=mask, return_lse=wants, **how)
    out, lse = found if wants else (found, None)
    if wrong is not None:
        is_wrong = _by_row(xp, wrong, bounds[0], q.shape[0])
        out = xp.where(is_wrong[:, None, None], math.nan, out)
        lse = None if lse is None else xp.where(is_wrong[:, None], math.nan, lse)
    if lse is None:
        return as_theirs(out)
    weights = without_weights(xp, q)
    if "dropout_rate" in how:
        query, key, value = (_padded(xp, a, bounds[i], most[i]) for a, i in ((q, 0), (k, 1), (v, 1)))
        how = {**how, "query_lengths": lengths[0], "key_lengths": lengths[1]}
        weights = signed_weights(xp, query, key, value, how)
    return as_theirs(out), their_lse(xp, xp.permute_dims(lse, (1, 0))), weights


def _check(xp: Namespace, q: Array, k: Array, v: Array, table: Any) -> None:
    key = "(total_k, Hkv, D)" if table is None else "(num_blocks, page_block_size, Hkv, D)"
    for name, array, letters in (("q", q, "(total_q, H, D)"), ("k", k, key), ("v", v, key[:-2] + "Dv)")):
        check_axes(name, array, letters)
    check_arrays(xp, q, k, v)
    if table is not None:
        common_namespace(q=q, block_table=table)
        check_integers(xp, "block_table", table)
        check_placement(xp, q=q, block_table=table)
        check_axes("block_table", table, "(B, any)")


def _bounds(xp: Namespace, q: Array, name: str, given: Array) -> Array:
    check_integers(xp, name, given)
    check_placement(xp, q=q, **{name: given})
    if given.ndim != 1 or given.shape[0] < 2:
        raise ValueError(
            f"{name} must hold the bounds of B sequences: expected {name} (B + 1,), {shapes(**{name: given})}"
        )
    return as_int32(xp, given)


def _most(xp: Namespace, name: str, given: Any, lengths: Array) -> int:
    """Return the greatest length that is allowed."""
    most = check_count(name, given, low=0)
    known = known_integers(xp, lengths)
    if known is not None and max(known) > most:
        raise ValueError(f"{name} is {most}, but a sequence has length {max(known)}")
    return most


def _read(
    xp: Namespace, k: Array, v: Array, table: Array, lengths: Array, most: int
) -> tuple[Array, Array, Array, Array | None]:
    """Return keys and values of all sequences one behind the other, their bounds, and which sequences have not all pages."""
    N, size = lengths.shape[0], k.shape[1]
    if table.shape[0] != N:
        raise ValueError(
            f"block_table must hold the pages of each sequence: expected ({N}, any), {shapes(block_table=table)}"
        )
    table = as_int32(xp, table)[:, : min(-(-most // max(size, 1)), table.shape[1])]
    wrong = missing(xp, table, lengths, size, k.shape[0])
    known = known_integers(xp, xp.astype(wrong, xp.int32))
    if known is not None and 1 in known:
        raise ValueError(
            f"sequence {known.index(1)} reaches an entry of block_table that is none of {k.shape[0]} pages, or that it does not have"
        )
    laid = laid_out(xp, k, v, readable(xp, table, lengths, size, k.shape[0]))
    return *laid, wrong if known is None else None


def _by_row(xp: Namespace, flags: Array, bounds: Array, rows: int) -> Array:
    """Return for each packed row the flag of its sequence; False behind the last one."""
    row = xp.arange(rows, dtype=xp.int32, device=device(bounds))[:, None]
    return xp.any((row >= bounds[None, :-1]) & (row < bounds[None, 1:]) & flags[None, :], axis=1)


def _padded(xp: Namespace, array: Array, bounds: Array, most: int) -> Array:
    """(T, H, D) -> (B, H, most, D): the rows of each sequence, and behind its end any."""
    at = bounds[:-1, None] + xp.arange(most, dtype=xp.int32, device=device(array))[None, :]
    at = xp.reshape(within(xp, at, 0, max(array.shape[0] - 1, 0)), (-1,))
    return swapped(xp, xp.reshape(xp.take(array, at, axis=0), (bounds.shape[0] - 1, most, *array.shape[1:])))
