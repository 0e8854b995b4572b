"""ONNX's ``Attention``."""

import sys
from typing import Any

from attention_xp._attention import flash_attention, scaled_dot_product_attention
from attention_xp._attention_scores import attention_scores
from attention_xp._backend.dtypes import as_dtype, dtype_name, is_alike, is_boolean, is_floating
from attention_xp._backend.libraries import device as device_of, is_jax_namespace
from attention_xp._checks.arrays import check_floating, check_integers, fits, shapes
from attention_xp._checks.numbers import check_count, check_int, check_number
from attention_xp._heads import join
from attention_xp._public_types import Array as PublicArray, ArrayT
from attention_xp._typing import Array, DType, Namespace
from attention_xp.interop._border import named_as
from attention_xp.interop.onnx._inputs import check_axes, flag, heads_first, namespace_of

__all__ = ["attention"]

_SCORES: Any = ("product", "capped", "masked")  # the stages of qk_matmul_output_mode 0 to 2
_WEIGHTS = 3
_PRECISIONS = {1: "FLOAT", 10: "FLOAT16", 11: "DOUBLE", 16: "BFLOAT16"}  # as onnx.TensorProto numbers them


@named_as({"query": "Q", "key": "K", "value": "V", "mask": "attn_mask", "key_lengths": "nonpad_kv_seqlen"})
def attention(
    Q: ArrayT,
    K: ArrayT,
    V: ArrayT,
    attn_mask: PublicArray | None = None,
    past_key: ArrayT | None = None,
    past_value: ArrayT | None = None,
    nonpad_kv_seqlen: PublicArray | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    num_outputs: int = 4,
) -> tuple[ArrayT, ...]:
    r"""Attend as ONNX's ``Attention`` does, and return all of its outputs.

    .. math::

        Y = \mathrm{softmax}\left(c \tanh\left(\mathrm{scale}\; Q K^T / c\right) + \mathrm{bias}\right) V

    with :math:`c` for `softcap`; the bias is `attn_mask`, and ``-inf`` where `is_causal`, a window or `nonpad_kv_seqlen`
    excludes a key. The position of the first query is the number of past keys; that is the length of `past_key`, or
    ``nonpad_kv_seqlen - Sq``, or 0.

    Parameters
    ----------
    Q : array
        ``(B, H, Sq, D)``, or ``(B, Sq, H * D)`` with `q_num_heads`.
    K : array
        ``(B, Hkv, Sk, D)``, or ``(B, Sk, Hkv * D)`` with `kv_num_heads`.
    V : array
        ``(B, Hkv, Sk, Dv)``, or ``(B, Sk, Hkv * Dv)``; its dtype may be another than that of `Q`.
    attn_mask : array, optional
        Boolean (True = may attend) or floating (added to the scores), of one to four axes; broadcasts to
        ``(B, H, Sq, P + Sk)``. Keys from its last column on are excluded: a last axis of 1 is the first key.
    past_key, past_value : array, optional
        ``(B, Hkv, P, D)`` and ``(B, Hkv, P, Dv)``, which come before the keys and values.
    nonpad_kv_seqlen : integer array, optional
        ``(B,)``: how many keys count, where `K` and `V` are a buffer. Not together with `past_key`.
    is_causal : int, default: 0
        1 excludes keys behind the position of a query.
    kv_num_heads, q_num_heads : int, optional
        ``Hkv`` and ``H``, required with three axes; with four they must agree with the shapes.
    left_window_size, right_window_size : int, default: -1
        How many keys before and after its position a query attends; -1 leaves a side open.
    qk_matmul_output_mode : int, default: 0
        What the fourth output is: the scores as they are (0), after the soft cap (1), with the bias (2), or the
        weights (3).
    scale : float, optional
        Default: ``1 / sqrt(D)``.
    softcap : float, default: 0.0
        0 means none.
    softmax_precision : int, optional
        A number of ``onnx.TensorProto``: FLOAT (1), FLOAT16 (10), DOUBLE (11) or BFLOAT16 (16). At least that is
        computed in: all of the call in float64 for DOUBLE, and no softmax in 16 bits.
    num_outputs : int, default: 4
        Ours: how many of the outputs are wanted, 1 to 4. The fourth alone has the size of all scores, and where it is
        not wanted the memory that is needed grows with the lengths and not with their product.

    Returns
    -------
    Y : array
        ``(B, H, Sq, Dv)``, or ``(B, Sq, H * Dv)``, with the dtype of `Q`; 0 in rows that may attend nothing.
    present_key, present_value : array
        ``(B, Hkv, P + Sk, D)`` and ``(B, Hkv, P + Sk, Dv)``.
    qk_matmul_output : array
        ``(B, H, Sq, P + Sk)``, with the dtype of `Q`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind, such as an `attn_mask` of integers.
    ValueError
        If a shape or a value does not fit.
    NotImplementedError
        If `softmax_precision` is DOUBLE, and JAX is not told to have 64 bits.

    References
    ----------
    Attention-23, Attention-24 and Attention-25 of ONNX 1.23.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.interop.onnx import attention
    >>> x = np.ones((2, 4, 8, 16), dtype=np.float32)
    >>> Y, present_key, present_value, scores = attention(x[:, :, :1], x[:, :, :1], x[:, :, :1], None, x, x, is_causal=1)
    >>> Y.shape, present_key.shape, scores.shape
    ((2, 4, 1, 16), (2, 4, 9, 16), (2, 4, 1, 9))
    """
    caches = {"past_key": past_key, "past_value": past_value, "nonpad_kv_seqlen": nonpad_kv_seqlen}
    xp = namespace_of({"Q": Q, "K": K, "V": V}, attn_mask=attn_mask, **caches)
    check_floating(xp, Q=Q, K=K, V=V)
    check_axes((3, 4), "Q (B, H, Sq, D) or (B, Sq, H * D)", Q=Q, K=K, V=V)
    if not is_alike(K.dtype, Q.dtype):
        raise TypeError(f"K is {dtype_name(K.dtype)} but Q is {dtype_name(Q.dtype)}: expected one dtype")
    _check_caches(**caches)
    _check_wanted(num_outputs, qk_matmul_output_mode)
    query = _with_heads(xp, "Q", Q, "q_num_heads", q_num_heads)
    key = _appended(xp, "past_key", past_key, _with_heads(xp, "K", K, "kv_num_heads", kv_num_heads))
    value = _appended(xp, "past_value", past_value, _with_heads(xp, "V", V, "kv_num_heads", kv_num_heads))

    sizes = (*query.shape[:3], key.shape[2])
    options: dict[str, Any] = {"scale": scale, "softcap": _cap(softcap)}
    if nonpad_kv_seqlen is not None:
        options["key_lengths"] = _lengths(xp, nonpad_kv_seqlen, sizes[0])
    options |= _order(is_causal, left_window_size, right_window_size, sizes, past_key, nonpad_kv_seqlen)
    mask = _mask(xp, attn_mask, sizes)
    dtype = _dtype(xp, Q, V, softmax_precision)
    q, k, v = (as_dtype(xp, a, dtype) for a in (query, key, value))
    output, *scores = _attended(q, k, v, mask, options, qk_matmul_output_mode if num_outputs == 4 else None)
    output = as_dtype(xp, output if Q.ndim == 4 else join(output, xp), Q.dtype)
    return (output, key, value, *(as_dtype(xp, a, Q.dtype) for a in scores))[:num_outputs]


def _attended(
    query: Array, key: Array, value: Array, mask: Any, options: Any, mode: int | None
) -> tuple[Array] | tuple[Array, Array]:
    """Return the output, and in a mode the scores that it asks for."""
    if mode == _WEIGHTS:
        return scaled_dot_product_attention(query, key, value, mask, **options)
    output = flash_attention(query, key, value, mask, **options)
    if mode is None:
        return (output,)
    return output, attention_scores(query, key, mask, stage=_SCORES[mode], **options)


def _check_caches(past_key: Any, past_value: Any, nonpad_kv_seqlen: Any) -> None:
    if (past_key is None) != (past_value is None):
        raise ValueError("past_key and past_value must be given together")
    if past_key is not None and nonpad_kv_seqlen is not None:
        raise ValueError("nonpad_kv_seqlen cannot be given together with past_key: the cache is one or the other")


def _check_wanted(outputs: Any, mode: Any) -> None:
    if not 1 <= check_int("num_outputs", outputs) <= 4:
        raise ValueError(f"num_outputs must be 1, 2, 3 or 4, got {outputs}")
    if not 0 <= check_int("qk_matmul_output_mode", mode) <= _WEIGHTS:
        raise ValueError(f"qk_matmul_output_mode must be 0, 1, 2 or 3, got {mode}")


def _with_heads(xp: Namespace, name: str, a: Array, attribute: str, heads: Any) -> Array:
    """Return an array (B, heads, S, width)."""
    if a.ndim == 3:
        return heads_first(xp, name, a, attribute, heads)
    if heads is not None and check_count(attribute, heads) != a.shape[1]:
        raise ValueError(f"{attribute} is {heads}: expected {name} (B, {heads}, S, width), {shapes(**{name: a})}")
    return a


def _appended(xp: Namespace, name: str, past: Array | None, new: Array) -> Array:
    """Return what came before, and behind it what is new."""
    if past is None:
        return new
    expected = tuple("P" if i == 2 else n for i, n in enumerate(new.shape))
    if past.ndim != 4 or any(n not in ("P", m) for n, m in zip(expected, past.shape, strict=True)):
        letters = ", ".join(map(str, expected))
        raise ValueError(
            f"{name} must hold the heads and the width of what comes in: expected ({letters}), {shapes(**{name: past})}"
        )
    if not is_alike(past.dtype, new.dtype):
        raise TypeError(
            f"{name} is {dtype_name(past.dtype)} but what comes in is {dtype_name(new.dtype)}: expected one dtype"
        )
    return xp.concat([past, new], axis=2)


def _cap(softcap: Any) -> float | None:
    """Return the soft cap, which 0 says that there is none."""
    cap = check_number("softcap", softcap)
    if cap < 0.0:
        raise ValueError(f"softcap must be positive, or 0 for none, got {softcap}")
    return cap or None


def _lengths(xp: Namespace, given: Any, batch: int) -> Array:
    """Return the checked numbers of keys."""
    check_integers(xp, "nonpad_kv_seqlen", given)
    if tuple(given.shape) != (batch,):
        raise ValueError(
            f"nonpad_kv_seqlen must hold a number for each item: expected (B,) = ({batch},), {shapes(nonpad_kv_seqlen=given)}"
        )
    return given


def _order(causal: Any, left: Any, right: Any, sizes: tuple[int, ...], past: Any, lengths: Any) -> dict[str, Any]:
    """Return the options that say which keys a query attends by its position."""
    bounds = []
    for name, bound in (("left_window_size", left), ("right_window_size", right)):
        if check_int(name, bound) < -1:
            raise ValueError(f"{name} must be -1 or more, got {bound}")
        bounds.append(None if bound == -1 else bound)
    options: dict[str, Any] = {"is_causal": True} if flag("is_causal", causal) else {}
    if bounds != [None, None]:
        options["window"] = tuple(bounds)
    if options:
        *_, Sq, total = sizes
        options["query_offset"] = lengths - Sq if lengths is not None else 0 if past is None else past.shape[2]
        if past is lengths is None and Sq == total:  # a plain call is known again
            del options["query_offset"]
    return options


def _mask(xp: Namespace, mask: Any, sizes: tuple[int, ...]) -> Array | None:
    """Return a mask of all keys: those that it does not name are excluded."""
    if mask is None:
        return None
    boolean = is_boolean(xp, mask.dtype)
    if not boolean and not is_floating(xp, mask.dtype):
        raise TypeError(
            "attn_mask must be boolean (True = may attend) or floating (added to the scores), got "
            f"{dtype_name(mask.dtype)}: one of 0 and 1 goes in as attn_mask != 0"
        )
    missing = sizes[-1] - mask.shape[-1] if mask.ndim else 0
    if mask.ndim == 0 or missing < 0 or not fits(tuple(mask.shape[:-1]), sizes[:-1]):
        raise ValueError(
            "attn_mask does not broadcast to the scores: expected (B, H, Sq, P + Sk) = "
            f"{sizes}, or fewer keys, {shapes(attn_mask=mask)}"
        )
    if not missing:
        return mask
    rest = xp.full(
        (*mask.shape[:-1], missing), False if boolean else -float("inf"), dtype=mask.dtype, device=device_of(mask)
    )
    return xp.concat([mask, rest], axis=-1)


def _dtype(xp: Namespace, Q: Array, V: Array, precision: Any) -> DType:
    """Return the dtype of a call: one for query and value, and no narrower than the precision that was asked for."""
    if precision is not None and check_int("softmax_precision", precision) not in _PRECISIONS:
        known = ", ".join(f"{number} ({name})" for number, name in _PRECISIONS.items())
        raise ValueError(f"softmax_precision must be one of {known}, got {precision}")
    names = {dtype_name(Q.dtype), dtype_name(V.dtype)}
    if precision == 11 and is_jax_namespace(xp) and not sys.modules["jax"].config.jax_enable_x64:
        raise NotImplementedError(
            "softmax_precision=11 (DOUBLE) needs 64 bits, which JAX has only with jax.config.update('jax_enable_x64', True)"
        )
    if precision == 11 or (len(names) > 1 and "float64" in names):
        return xp.float64
    return Q.dtype if len(names) == 1 else xp.float32
