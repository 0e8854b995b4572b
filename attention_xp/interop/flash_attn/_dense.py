"""flash-attn's functions for a batch of sequences of one length."""

from typing import Any

from attention_xp._attention import flash_attention
from attention_xp._backend.libraries import common_namespace
from attention_xp._checks.arrays import shapes
from attention_xp._checks.numbers import check_flag
from attention_xp.interop._border import named_as
from attention_xp.interop.flash_attn._layout import (
    THEIR_NAMES,
    as_theirs,
    known_draw,
    signed_weights,
    swapped,
    taken_apart,
    their_lse,
    with_offset,
    without_weights,
)
from attention_xp.interop.flash_attn._options import check_arrays, check_axes, options_of

__all__ = ["flash_attn_func", "flash_attn_kvpacked_func", "flash_attn_qkvpacked_func"]


@named_as(THEIR_NAMES)
def flash_attn_func(
    q: Any,
    k: Any,
    v: Any,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    rng: Any = None,
) -> Any:
    r"""Attend as ``flash_attn.flash_attn_func`` does, on arrays of any library, of any floating dtype, on any device.

    .. math::

        \mathrm{out} = \mathrm{dropout}(\mathrm{softmax}(s))\, V, \qquad
        s_{ij} = \mathrm{cap}(\mathrm{softmax\_scale}\; q_i \cdot k_j) - m_h\, |p_i - j|, \qquad p_i = i + S_k - S_q

    The last query is aligned with the last key: :math:`p_i` is the position of query :math:`i`.

    Parameters
    ----------
    q : array
        ``(B, Sq, H, D)``.
    k : array
        ``(B, Sk, Hkv, D)``; query head ``h`` uses head ``h // (H // Hkv)``.
    v : array
        ``(B, Sk, Hkv, Dv)``.
    dropout_p : float, default: 0.0
        Probability of dropping a weight, ``0 <= dropout_p < 1``.
    softmax_scale : float, optional
        Default: ``1 / sqrt(D)``.
    causal : bool, default: False
        Whether query :math:`i` attends keys up to :math:`p_i` alone.
    window_size : (int, int), default: (-1, -1)
        Query :math:`i` attends keys in ``[p - left, p + right]``; a negative number leaves a side open. With `causal` the
        right one is 0.
    softcap : float, default: 0.0
        Above 0: scores are ``softcap * tanh(score / softcap)``.
    alibi_slopes : array, optional
        :math:`m`, ``(H,)`` or ``(B, H)``, of any floating dtype.
    deterministic : bool, default: False
        Whether gradients have to be the same bits in each call; kernels of other libraries are then not used.
    return_attn_probs : bool, default: False
        Whether to return the log-sum-exp and `S_dmask` as well.
    rng : int, random generator or JAX key, optional
        Source of the dropout: a seed, or a generator of the library of `q`. Default: fresh entropy, in torch its global
        generator; required with JAX. The weights that are dropped are not those that flash-attn drops.

    Returns
    -------
    out : array
        ``(B, Sq, H, Dv)``; 0 in rows without keys.
    softmax_lse : array
        ``(B, H, Sq)``, natural logarithm, at least float32; plus infinity in rows without keys. Only with
        `return_attn_probs`.
    S_dmask : array
        ``(B, H, Sq, Sk)``: the softmax, with a minus where a weight is dropped. Without dropout it is empty, ``(0,)``. Only
        with `return_attn_probs`; it materialises the scores.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a shape or a value does not fit.

    References
    ----------
    Dao, "FlashAttention-2: faster attention with better parallelism and work partitioning", 2023;
    ``flash_attn/flash_attn_interface.py`` of flash-attn 2.8.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.interop.flash_attn import flash_attn_func
    >>> q, kv = np.ones((2, 3, 8, 64)), np.ones((2, 5, 2, 64))
    >>> out, softmax_lse, _ = flash_attn_func(q, kv, kv, causal=True, window_size=(1, 0), return_attn_probs=True)
    >>> out.shape, np.exp(softmax_lse[0, 0] - 8.0).round()  # two keys each
    ((2, 3, 8, 64), array([2., 2., 2.]))
    """
    xp = common_namespace(q=q, k=k, v=v)
    for name, array, letters in (("q", q, "(B, Sq, H, D)"), ("k", k, "(B, Sk, Hkv, D)"), ("v", v, "(B, Sk, Hkv, Dv)")):
        check_axes(name, array, letters)
    check_arrays(xp, q, k, v)
    if k.shape[0] != q.shape[0]:
        raise ValueError(f"k has {k.shape[0]} batch items but q has {q.shape[0]}: {shapes(q=q, k=k)}")
    how = options_of(
        xp,
        q,
        q.shape[0],
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        deterministic=deterministic,
        dropout_p=dropout_p,
        rng=rng,
        rows=q.shape[1],
    )
    if q.shape[1] != k.shape[1]:
        how = with_offset(how, k.shape[1] - q.shape[1])
    query, key, value = (swapped(xp, a) for a in (q, k, v))
    if not check_flag("return_attn_probs", return_attn_probs):
        return as_theirs(swapped(xp, flash_attention(query, key, value, **how)))
    how = known_draw(xp, q, how)
    out, lse = flash_attention(query, key, value, return_lse=True, **how)
    weights = signed_weights(xp, query, key, value, how) if "dropout_rate" in how else without_weights(xp, q)
    return as_theirs(swapped(xp, out)), their_lse(xp, lse), weights


@named_as({"k": "kv[:, :, 0]", "v": "kv[:, :, 1]"})
def flash_attn_kvpacked_func(
    q: Any,
    kv: Any,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    rng: Any = None,
) -> Any:
    """Attend as ``flash_attn.flash_attn_kvpacked_func`` does: `flash_attn_func` with key and value in one array.

    Parameters
    ----------
    q : array
        ``(B, Sq, H, D)``.
    kv : array
        ``(B, Sk, 2, Hkv, D)``.
    dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs, rng
        As in `flash_attn_func`.

    Returns
    -------
    out : array
        As in `flash_attn_func`; likewise `softmax_lse` and `S_dmask`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a shape or a value does not fit.

    References
    ----------
    ``flash_attn/flash_attn_interface.py`` of flash-attn 2.8.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.interop.flash_attn import flash_attn_kvpacked_func
    >>> flash_attn_kvpacked_func(np.ones((2, 3, 8, 64)), np.ones((2, 5, 2, 4, 64)), causal=True).shape
    (2, 3, 8, 64)
    """
    k, v = taken_apart("kv", kv, "(B, Sk, 2, Hkv, D)")
    return flash_attn_func(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
        rng=rng,
    )


@named_as({"q": "qkv[:, :, 0]", "k": "qkv[:, :, 1]", "v": "qkv[:, :, 2]"})
def flash_attn_qkvpacked_func(
    qkv: Any,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    rng: Any = None,
) -> Any:
    """Attend as ``flash_attn.flash_attn_qkvpacked_func`` does: `flash_attn_func` with all three in one array.

    Parameters
    ----------
    qkv : array
        ``(B, S, 3, H, D)``.
    dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs, rng
        As in `flash_attn_func`.

    Returns
    -------
    out : array
        As in `flash_attn_func`; likewise `softmax_lse` and `S_dmask`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a shape or a value does not fit.

    References
    ----------
    ``flash_attn/flash_attn_interface.py`` of flash-attn 2.8.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.interop.flash_attn import flash_attn_qkvpacked_func
    >>> flash_attn_qkvpacked_func(np.ones((2, 5, 3, 8, 64)), window_size=(2, 2)).shape
    (2, 5, 8, 64)
    """
    q, k, v = taken_apart("qkv", qkv, "(B, S, 3, H, D)")
    return flash_attn_func(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
        rng=rng,
    )
