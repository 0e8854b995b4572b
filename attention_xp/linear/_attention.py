"""Linear attention: memory of a fixed size in place of all keys and values."""

import inspect
from typing import Any, Literal, TypedDict, Unpack, overload

from attention_xp._checks.numbers import check_flag
from attention_xp._engine.problem.options import check_options
from attention_xp._public_types import Array, ArrayT, Generic, HeldT
from attention_xp.linear._compute import forward, run
from attention_xp.linear._feature_maps import FeatureMap
from attention_xp.linear._problem import LinearProblem, LinearState

__all__ = ["linear_attention"]


class _Options(TypedDict, Generic[HeldT], total=False):
    """Keyword arguments of linear attention, beside the one that its result depends on."""

    feature_map: Literal["elu", "relu"] | FeatureMap | None
    normalize: bool | None
    is_causal: bool
    update_rule: Literal["linear", "gated", "delta", "gated_delta"]
    decay: Array | None
    beta: Array | None
    scale: float | None
    state: LinearState[HeldT] | None
    chunk_size: int
    impl: Literal["auto", "recurrent", "chunked"]


@overload
def linear_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    *,
    return_state: Literal[False] = False,
    **options: Unpack[_Options[ArrayT]],
) -> ArrayT: ...
@overload
def linear_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    *,
    return_state: Literal[True],
    **options: Unpack[_Options[ArrayT]],
) -> tuple[ArrayT, LinearState[ArrayT]]: ...
@overload
def linear_attention(
    query: ArrayT,
    key: ArrayT,
    value: ArrayT,
    *,
    return_state: bool,
    **options: Unpack[_Options[ArrayT]],
) -> ArrayT | tuple[ArrayT, LinearState[ArrayT]]: ...
def linear_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    return_state: bool = False,
    **options: Unpack[_Options],
) -> Any:
    r"""Attend in time and memory linear in the length, by keeping a matrix instead of all keys and values.

    In causal order, for each position t and key/value head, with queries and keys already mapped:

    .. math::

        M &\leftarrow e^{\mathrm{decay}_t} M && \text{gated, gated\_delta} \\
        u &= \mathrm{beta}_t (v_t - M^T k_t) && \text{delta, gated\_delta; else } u = v_t \\
        M &\leftarrow M + k_t u^T \\
        o_t &= \mathrm{scale} \cdot M^T q_t \;\big/\; q_t \cdot \textstyle\sum_{s \le t} k_s
            && \text{the divisor with normalize}

    Without causal order, every query uses the memory and the sum of all keys.

    Parameters
    ----------
    query : array
        ``(..., H, Sq, D)``, or ``(B, Sq, D)`` or ``(Sq, D)`` without heads. float16 and bfloat16 are
        computed in float32.
    key : array
        ``(..., Hkv, Sk, D)`` with as many axes as `query`. Where ``H != Hkv``, query head ``h`` uses
        key/value head ``h // (H // Hkv)``.
    value : array
        ``(..., Hkv, Sk, Dv)``. Leading axes of all three broadcast.
    feature_map : {"elu", "relu"}, callable or None, default: "elu"
        What queries and keys become first: ``elu(x) + 1``, ``max(x, 0)``, what
        `performer_features` made, or a function of the whole array that may change its last axis.
    normalize : bool, optional
        Whether to divide by the product of query and sum of keys so far. Where that is 0, so is the
        output. Default: whether there is a feature map.
    is_causal : bool, default: False
        A query at position ``p`` attends keys at positions ``<= p`` only, and ``Sq = Sk``. Rules other than
        "linear", and a `state`, imply it.
    update_rule : {"linear", "gated", "delta", "gated_delta"}, default: "linear"
        How memory changes: it may decay ("gated"), and the value stored under a key may be replaced ("delta").
    decay : array, optional
        Log-decay for "gated" and "gated_delta", ``(..., Hkv, S, 1)`` or ``(..., Hkv, S, D)``, usually not
        positive. Leading axes and S may be 1.
    beta : array, optional
        Write strength for "delta" and "gated_delta", ``(..., Hkv, S, 1)``. Leading axes and S may be 1.
    scale : float, optional
        Factor of the output. Default: 1 with a feature map and ``1 / sqrt(D)`` without.
    state : LinearState, optional
        The state that an earlier call returned: two calls in a row equal one call.
    return_state : bool, default: False
        Whether to return the state after the last key as well.
    chunk_size : int, default: 64
        Number of positions that are computed together, by matrix products. Changes speed and memory, never the
        result beyond rounding.
    impl : {"auto", "recurrent", "chunked"}, default: "auto"
        "recurrent" goes position by position.

    Returns
    -------
    output : array
        ``(..., H, Sq, Dv)``, with dtype, library and device of `query`.
    state : LinearState
        ``memory`` ``(..., Hkv, D, Dv)`` and ``normalizer`` ``(..., Hkv, D)``, at least float32. Only with
        `return_state`.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind: no array, another library, another dtype.
    ValueError
        If a shape or a value does not fit, or `decay` or `beta` are missing or have no place.

    See Also
    --------
    linear_attention_vjp : Output and gradients, also on libraries that do not differentiate.

    References
    ----------
    Katharopoulos, Vyas, Pappas and Fleuret, "Transformers are RNNs", ICML 2020. Yang, Wang, Shen, Panda and
    Kim, "Gated linear attention transformers with hardware-efficient training", ICML 2024. Yang, Wang, Zhang,
    Shen and Kim, "Parallelizing linear transformers with the delta rule over sequence length", NeurIPS 2024.
    Yang, Kautz and Hatamizadeh, "Gated delta networks", ICLR 2025.

    Examples
    --------
    >>> import numpy as np
    >>> from attention_xp.linear import linear_attention
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 2, 4, 100, 8))
    >>> output = linear_attention(query, key, value, is_causal=True)
    >>> first, state = linear_attention(
    ...     query[:, :, :60], key[:, :, :60], value[:, :, :60], is_causal=True, return_state=True
    ... )
    >>> second = linear_attention(query[:, :, 60:], key[:, :, 60:], value[:, :, 60:], state=state)
    >>> bool(np.allclose(output, np.concat([first, second], axis=2)))
    True
    """
    if options:
        check_options(linear_attention, options, _Options.__annotations__)
    check_flag("return_state", return_state)
    problem = LinearProblem.of(query, key, value, **options)
    output, carry = run(forward, problem)
    output = problem.grouping.join(output)
    return (output, problem.state(carry)) if return_state else output


# The options are shown with the defaults that they have where they are checked.
_own = inspect.signature(linear_attention)
_options = inspect.signature(LinearProblem.of).parameters
linear_attention.__signature__ = _own.replace(  # type: ignore[attr-defined]
    parameters=[
        *[p for p in _own.parameters.values() if p.kind is not p.VAR_KEYWORD],
        *[_options[name].replace(annotation=kind) for name, kind in _Options.__annotations__.items()],
    ]
)
