"""flash-attn's function for decoding with a key/value cache."""

import math
from typing import Any

from attention_xp._attention import flash_attention
from attention_xp._backend.derivatives import constant
from attention_xp._backend.libraries import common_namespace, is_jax_namespace, is_torch_namespace
from attention_xp._checks.arrays import check_floating, check_one_dtype, check_placement, shapes
from attention_xp._checks.numbers import check_count, check_flag
from attention_xp._rotary.cache import RotaryCache
from attention_xp._rotary.embedding import rotary_embedding
from attention_xp._typing import Array, Namespace
from attention_xp.cache._paged import paged_attention
from attention_xp.interop._border import named_as
from attention_xp.interop.flash_attn._layout import THEIR_NAMES, as_theirs, swapped, their_lse, with_offset
from attention_xp.interop.flash_attn._options import check_arrays, check_axes, options_of
from attention_xp.interop.flash_attn._places import Places, item_integers
from attention_xp.masks import LengthMask

__all__ = ["flash_attn_with_kvcache"]


@named_as({**THEIR_NAMES, "key": "k_cache", "value": "v_cache"})
def flash_attn_with_kvcache(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    k: Any = None,
    v: Any = None,
    rotary_cos: Any = None,
    rotary_sin: Any = None,
    cache_seqlens: Any = None,
    cache_batch_idx: Any = None,
    cache_leftpad: Any = None,
    block_table: Any = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Any = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    r"""Append to a key/value cache and attend it, as ``flash_attn.flash_attn_with_kvcache`` does.

    .. math:: \mathrm{out} = \mathrm{softmax}(s)\, V, \qquad
        s_{ij} = \mathrm{cap}(\mathrm{softmax\_scale}\; q_i \cdot k_j) - m_h\, |p_i - j|, \qquad p_i = i + n_b - S_q

    where :math:`n_b` is the number of keys of item :math:`b` in the cache, the new ones included: the last query is aligned with
    the last of them.

    **NumPy, torch and CuPy: the caches are written in place, as by flash-attn. JAX: where `k` and `v` are given, the caches come
    back behind all else**: ``(out, k_cache, v_cache)``, or ``(out, softmax_lse, k_cache, v_cache)``. Donate them to ``jax.jit``,
    and nothing is copied. Without `k` and `v`, what is returned is the same everywhere.

    Parameters
    ----------
    q : array
        ``(B, Sq, H, D)``.
    k_cache : array
        ``(B or more, capacity, Hkv, D)``; with `block_table` a pool of pages ``(num_blocks, page_block_size, Hkv, D)``.
    v_cache : array
        As `k_cache`, with a width of its own.
    k, v : array, optional
        ``(B, n, Hkv, D)`` and ``(B, n, Hkv, Dv)``: written at positions ``cache_seqlens`` and following.
    rotary_cos, rotary_sin : array, optional
        ``(capacity or more, R / 2)``: `k` is rotated by the rows at its positions before it is written. So are the rows of `q`, by
        those at ``cache_seqlens + i`` with `causal` or a window, and otherwise all by that at ``cache_seqlens``.
    cache_seqlens : int or array, optional
        ``(B,)``: how many keys there are before. Default: as many as there is room for; required with `k`.
    cache_batch_idx : array, optional
        ``(B,)`` integers: which item of the cache belongs to each of `q`. Default: the first ones, in order.
    cache_leftpad : array, optional
        ``(B,)`` integers: so many keys at the beginning of the cache are padding.
    block_table : array, optional
        ``(B, any)`` integers: which pages hold the keys of each item, in order; of any size. Entries that no length reaches are not
        read, and pages are read where they lie.
    softmax_scale, causal, window_size, softcap, alibi_slopes
        As in `flash_attn_func`.
    rotary_interleaved : bool, default: True
        Whether features 0 and 1, 2 and 3, ... are rotated together, instead of 0 and ``R / 2``, ...
    num_splits : int, default: 0
        How many workers of flash-attn share the keys of an item; the result does not depend on it, and nothing does here.
    return_softmax_lse : bool, default: False
        Whether to return the log-sum-exp as well.

    Returns
    -------
    out : array
        ``(B, Sq, H, Dv)``; 0 in rows without keys. In torch it has no gradient, as in the original.
    softmax_lse : array
        ``(B, H, Sq)``, natural logarithm, at least float32; plus infinity in rows without keys. Only with
        `return_softmax_lse`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a shape or a value does not fit: also where there is no room for the new keys, a page is missing, or `cache_batch_idx` points
        to none, and the numbers lie in host memory; nothing is written then. Elsewhere such an item gives NaN, and is not written.

    References
    ----------
    ``flash_attn/flash_attn_interface.py`` of flash-attn 2.8.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.interop.flash_attn import flash_attn_with_kvcache
    >>> k_cache, v_cache = np.zeros((2, 2, 100, 4, 64))
    >>> q, kv, seqlens = np.ones((2, 1, 8, 64)), np.ones((2, 1, 4, 64)), np.asarray([0, 7], dtype=np.int32)
    >>> flash_attn_with_kvcache(q, k_cache, v_cache, kv, kv, cache_seqlens=seqlens, causal=True).shape
    (2, 1, 8, 64)
    >>> k_cache[:, 6:9, 0, 0]  # the second item has a key at position 7 now
    array([[0., 0., 0.],
           [0., 1., 0.]])
    """
    xp = common_namespace(q=q, k_cache=k_cache, v_cache=v_cache)
    for name, array, letters in (
        ("q", q, "(B, Sq, H, D)"),
        ("k_cache", k_cache, "(B, capacity, Hkv, D)"),
        ("v_cache", v_cache, "(B, capacity, Hkv, Dv)"),
    ):
        check_axes(name, array, letters)
    check_arrays(xp, q, k_cache, v_cache, ("k_cache", "v_cache"))
    B, Sq = q.shape[:2]
    given = {"softmax_scale": softmax_scale, "causal": causal, "window_size": window_size, "softcap": softcap}
    how = options_of(xp, q, B, **given, alibi_slopes=alibi_slopes, rows=Sq)
    wants_lse = check_flag("return_softmax_lse", return_softmax_lse)
    check_count("num_splits", num_splits, low=0)
    _check_new(xp, q, k_cache, v_cache, k, v, cache_seqlens)
    places = Places.of(k_cache, B, cache_seqlens, cache_batch_idx, block_table, 0 if k is None else k.shape[1], xp=xp)
    if cache_leftpad is not None:
        how["mask"] = ~LengthMask(item_integers(xp, k_cache, B, "cache_leftpad", cache_leftpad))
    table = _rotary_table(xp, q, rotary_cos, rotary_sin, places.room, has_new=k is not None)
    is_interleaved = check_flag("rotary_interleaved", rotary_interleaved)
    if is_torch_namespace(xp):  # the next step overwrites what a gradient would have to read
        q, k_cache, v_cache, k, v = (None if a is None else constant(xp, a) for a in (q, k_cache, v_cache, k, v))
    if table is not None:
        in_order = "is_causal" in how or "window" in how
        at = places.positions(Sq) if in_order else xp.broadcast_to(places.old[:, None], (B, Sq))
        q, k = (
            swapped(xp, rotary_embedding(swapped(xp, a), p, interleaved=is_interleaved, cache=table))
            for a, p in ((q, at), (k, places.positions(k.shape[1])))
        )
    if k is not None:
        k_cache, v_cache = places.write(k_cache, k), places.write(v_cache, v)
    found = list(_attended(places, swapped(xp, q), k_cache, v_cache, how, lse=wants_lse))
    found += [k_cache, v_cache] if k is not None and is_jax_namespace(xp) else []
    return tuple(found) if len(found) > 1 else found[0]


def _attended(
    places: Places, q: Array, k_cache: Array, v_cache: Array, how: dict[str, Any], *, lse: bool
) -> tuple[Array, ...]:
    """Return the output over a cache in the layout of flash-attn, and if wanted the log-sum-exp."""
    xp, (B, _, Sq, _) = places.xp, q.shape
    key, value = (swapped(xp, a) for a in (k_cache, v_cache))
    found: Any
    if places.is_plain:
        ends = places.ends
        how = {**with_offset(how, ends - Sq), "key_lengths": ends}
        found = flash_attention(q, key[:B, ...], value[:B, ...], return_lse=lse, **how)
        found = found if lse else (found,)
        if places.wrong is not None:
            wrong = places.wrong[:, None, None]
            found = [xp.where(wrong if a.ndim == 3 else wrong[..., None], math.nan, a) for a in found]
    else:
        attend: Any = paged_attention
        found = attend(q, key, value, places.table, places.new, return_lse=lse, **how)
        found = found if lse else (found,)
    return (as_theirs(swapped(xp, found[0])), *(their_lse(xp, a) for a in found[1:]))


def _check_new(xp: Namespace, q: Array, k_cache: Array, v_cache: Array, k: Any, v: Any, seqlens: Any) -> None:
    """Check the new keys and values."""
    if k is None and v is None:
        return
    for name, missing in (("k", k), ("v", v), ("cache_seqlens", seqlens)):
        if missing is None:
            raise ValueError(f"{name} is required where new keys are written: expected k, v and cache_seqlens")
    common_namespace(q=q, k=k, v=v)
    check_one_dtype(xp, query=q, k=k, v=v)
    check_placement(xp, q=q, k=k, v=v)
    rows = k.shape[1] if k.ndim == 4 else "n"
    for name, array, cache in (("k", k, k_cache), ("v", v, v_cache)):
        if tuple(array.shape) != (q.shape[0], rows, *cache.shape[2:]):
            expected = (q.shape[0], rows, *cache.shape[2:])
            raise ValueError(
                f"{name} does not fit q and the cache: expected {name} {expected}, {shapes(**{name: array})}"
            )


def _rotary_table(xp: Namespace, q: Array, cos: Any, sin: Any, room: int, *, has_new: bool) -> RotaryCache | None:
    """Check the cosines and sines."""
    if cos is None and sin is None:
        return None
    if cos is None or sin is None or not has_new:
        raise ValueError("rotary_cos and rotary_sin need each other, and k and v, which they rotate")
    common_namespace(q=q, rotary_cos=cos, rotary_sin=sin)
    check_floating(xp, rotary_cos=cos, rotary_sin=sin)
    check_placement(xp, q=q, rotary_cos=cos, rotary_sin=sin)
    if (
        cos.ndim != 2
        or tuple(sin.shape) != tuple(cos.shape)
        or not 0 < 2 * cos.shape[1] <= q.shape[3]
        or cos.shape[0] < room
    ):
        raise ValueError(
            f"rotary_cos and rotary_sin must have a row for each of the {room} positions of the cache: expected ({room} or more, R / 2) "
            f"with R <= D = {q.shape[3]}, {shapes(rotary_cos=cos, rotary_sin=sin)}"
        )
    return RotaryCache(cos, sin)
