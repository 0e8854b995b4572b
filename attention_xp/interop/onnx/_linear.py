"""ONNX's ``LinearAttention``."""

from typing import Any, Literal

from attention_xp._backend.dtypes import as_dtype
from attention_xp._checks.arrays import shapes
from attention_xp._checks.numbers import check_number
from attention_xp._heads import join
from attention_xp._public_types import Array, ArrayT
from attention_xp._typing import Namespace
from attention_xp.interop._border import named_as
from attention_xp.interop.onnx._inputs import check_axes, heads_first, namespace_of
from attention_xp.linear import LinearState, linear_attention as attend

__all__ = ["linear_attention"]


@named_as({"state.memory": "past_state", "state": "past_state"})
def linear_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    past_state: ArrayT | None = None,
    decay: Array | None = None,
    beta: Array | None = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: Literal["linear", "gated", "delta", "gated_delta"] = "gated_delta",
) -> tuple[ArrayT, ArrayT]:
    r"""Attend as ONNX's ``LinearAttention`` does.

    .. math::

        M \leftarrow e^{\mathrm{decay}_t} M, \quad
        M \leftarrow M + k_t \, \mathrm{beta}_t (v_t - M^T k_t)^T, \quad
        o_t = \mathrm{scale} \cdot M^T q_t

    with the decay in "gated" and "gated_delta", and :math:`v_t` in place of :math:`\mathrm{beta}_t (v_t - M^T k_t)` in "linear"
    and "gated".

    Parameters
    ----------
    query : array
        ``(B, S, H * D)``.
    key : array
        ``(B, S, Hkv * D)``.
    value : array
        ``(B, S, Hkv * Dv)``.
    past_state : array, optional
        ``(B, Hkv, D, Dv)``: the state that an earlier call returned.
    decay : array, optional
        ``(B, S, Hkv * D)`` or ``(B, S, Hkv)``, logarithms; required in "gated" and "gated_delta", and refused elsewhere.
    beta : array, optional
        ``(B, S, Hkv)`` or ``(B, S, 1)``; required in "delta" and "gated_delta", and refused elsewhere.
    chunk_size : int, default: 64
        Changes speed and memory, never the result beyond rounding.
    kv_num_heads, q_num_heads : int
        ``Hkv`` and ``H``, a multiple of it.
    scale : float, default: 0.0
        Factor of the output; 0 means ``1 / sqrt(D)``.
    update_rule : {"gated_delta", "linear", "gated", "delta"}, default: "gated_delta"
        How the state changes.

    Returns
    -------
    output : array
        ``(B, S, H * Dv)``, with the dtype of `query`.
    present_state : array
        ``(B, Hkv, D, Dv)``, with the dtype of `past_state`, or else of `query`. 16 bits are computed in float32, but a state
        that is handed on in 16 is rounded at each call; zeros of float32 as the first `past_state` keep it in 32.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If a shape or a value does not fit, or `decay` or `beta` are missing or have no place.

    References
    ----------
    LinearAttention-27 of ONNX 1.23.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.interop.onnx import linear_attention
    >>> x = np.ones((2, 5, 12))
    >>> output, state = linear_attention(x, x, x, update_rule="linear", q_num_heads=3, kv_num_heads=3)
    >>> output.shape, state.shape
    ((2, 5, 12), (2, 3, 4, 4))
    """
    xp = namespace_of({"query": query, "key": key, "value": value}, past_state=past_state, decay=decay, beta=beta)
    check_axes(
        (3,), "query (B, S, H * D), key (B, S, Hkv * D), value (B, S, Hkv * Dv)", query=query, key=key, value=value
    )
    for name, a in (("key", key), ("value", value)):
        if a.shape[1] != query.shape[1]:
            raise ValueError(f"{name} must have the length of query, {shapes(query=query, **{name: a})}")
    found, state = attend(
        heads_first(xp, "query", query, "q_num_heads", q_num_heads),
        heads_first(xp, "key", key, "kv_num_heads", kv_num_heads),
        heads_first(xp, "value", value, "kv_num_heads", kv_num_heads),
        feature_map=None,
        is_causal=True,
        update_rule=update_rule,
        scale=check_number("scale", scale) or None,
        state=None if past_state is None else LinearState(past_state),
        return_state=True,
        chunk_size=chunk_size,
        decay=_gate(xp, "decay", decay, kv_num_heads),
        beta=_gate(xp, "beta", beta, kv_num_heads),
    )
    like: Any = query if past_state is None else past_state
    return join(found, xp), as_dtype(xp, state.memory, like.dtype)


def _gate(xp: Namespace, name: str, gate: Any, heads: int) -> Any:
    """(B, S, Hkv * width) -> (B, Hkv, S, width); of (B, S, 1), which is for all heads, (B, 1, S, 1)."""
    if gate is None:
        return None
    check_axes((3,), f"{name} (B, S, Hkv), or for decay (B, S, Hkv * D) and for beta (B, S, 1)", **{name: gate})
    if name == "beta" and gate.shape[-1] == 1:
        return xp.expand_dims(gate, axis=1)
    return heads_first(xp, name, gate, "kv_num_heads", heads)
