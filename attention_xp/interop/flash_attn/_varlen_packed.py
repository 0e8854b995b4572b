"""flash-attn's functions for packed sequences whose keys and values, or all three, lie in one array."""

from typing import Any

from attention_xp.interop._border import named_as
from attention_xp.interop.flash_attn._layout import taken_apart
from attention_xp.interop.flash_attn._varlen import flash_attn_varlen_func

__all__ = ["flash_attn_varlen_kvpacked_func", "flash_attn_varlen_qkvpacked_func"]


@named_as({"k": "kv[:, 0]", "v": "kv[:, 1]"})
def flash_attn_varlen_kvpacked_func(
    q: Any,
    kv: Any,
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
    *,
    rng: Any = None,
) -> Any:
    """Attend as ``flash_attn.flash_attn_varlen_kvpacked_func`` does: `flash_attn_varlen_func` with key and value in one array.

    Parameters
    ----------
    q : array
        ``(total_q, H, D)``.
    kv : array
        ``(total_k, 2, Hkv, D)``.
    cu_seqlens_q, cu_seqlens_k : array
        ``(B + 1,)`` integers: where each sequence begins and ends in `q`, and in `kv`.
    max_seqlen_q, max_seqlen_k : int
        The greatest lengths, or more.
    dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs, rng
        As in `flash_attn_varlen_func`.

    Returns
    -------
    out : array
        As in `flash_attn_varlen_func`; likewise `softmax_lse` and `S_dmask`.

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
    >>> from attention_xp.interop.flash_attn import flash_attn_varlen_kvpacked_func
    >>> bounds = np.asarray([0, 3, 10], dtype=np.int32)
    >>> flash_attn_varlen_kvpacked_func(np.ones((10, 4, 8)), np.ones((10, 2, 2, 8)), bounds, bounds, 7, 7, causal=True).shape
    (10, 4, 8)
    """
    k, v = taken_apart("kv", kv, "(total_k, 2, Hkv, D)")
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
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


@named_as(
    {
        "q": "qkv[:, 0]",
        "k": "qkv[:, 1]",
        "v": "qkv[:, 2]",
        "cu_seqlens_q": "cu_seqlens",
        "cu_seqlens_k": "cu_seqlens",
        "max_seqlen_q": "max_seqlen",
        "max_seqlen_k": "max_seqlen",
    }
)
def flash_attn_varlen_qkvpacked_func(
    qkv: Any,
    cu_seqlens: Any,
    max_seqlen: int,
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
    """Attend as ``flash_attn.flash_attn_varlen_qkvpacked_func`` does: `flash_attn_varlen_func` with all three in one array.

    Parameters
    ----------
    qkv : array
        ``(total, 3, H, D)``.
    cu_seqlens : array
        ``(B + 1,)`` integers: where each sequence begins and ends.
    max_seqlen : int
        The greatest length, or more.
    dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs, rng
        As in `flash_attn_varlen_func`.

    Returns
    -------
    out : array
        As in `flash_attn_varlen_func`; likewise `softmax_lse` and `S_dmask`.

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
    >>> from attention_xp.interop.flash_attn import flash_attn_varlen_qkvpacked_func
    >>> bounds = np.asarray([0, 3, 10], dtype=np.int32)
    >>> flash_attn_varlen_qkvpacked_func(np.ones((10, 3, 4, 8)), bounds, 7, window_size=(2, 2)).shape
    (10, 4, 8)
    """
    q, k, v = taken_apart("qkv", qkv, "(total, 3, H, D)")
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
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
