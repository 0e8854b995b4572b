"""Attention with the signature of ``jax.nn.dot_product_attention``."""

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import and_
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from attention_xp import flash_attention
from attention_xp._backend.dtypes import computation_dtype
from attention_xp._checks.arrays import shapes
from attention_xp.interop._border import as_flag, as_index, check_broadcast, converted, named_as
from attention_xp.masks import ArrayMask, Mask, WindowMask

__all__ = ["dot_product_attention"]

_THEIRS = {
    "query_lengths": "query_seq_lengths",
    "key_lengths": "key_value_seq_lengths",
    "window": "local_window_size",
    "impl='fused'": "implementation='cudnn'",
    "impl='dense' and impl='tiled'": "implementation='xla'",
}
_IMPLEMENTATIONS: dict[str | None, Any] = {None: "auto", "xla": "dense", "cudnn": "fused"}


@overload
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: Literal["xla", "cudnn"] | None = None,
    return_residual: Literal[False] = False,
) -> jax.Array: ...
@overload
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: Literal["xla", "cudnn"] | None = None,
    return_residual: Literal[True],
) -> tuple[jax.Array, jax.Array]: ...
@named_as(_THEIRS)
def dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: Literal["xla", "cudnn"] | None = None,
    return_residual: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    r"""Attend as ``jax.nn.dot_product_attention`` does.

    .. math:: \mathrm{output} = \mathrm{softmax}(\mathrm{scale} \; Q K^T + \mathrm{bias}) V

    over the pairs that `mask`, `is_causal`, the lengths and the window allow all together. Positions of queries and keys both
    count from 0. It works under ``jit``, ``grad`` and ``vmap``, in memory linear in the lengths.

    Parameters
    ----------
    query : array_like
        ``(B, T, N, H)`` or ``(T, N, H)``.
    key, value : array_like
        ``(B, S, K, H)`` or ``(S, K, H)``, of the dtype of `query`. Query head ``n`` uses head ``n // (N // K)``.
    bias : array_like, optional
        Is added to the scores; broadcasts to ``(B, N, T, S)``, missing axes in front.
    mask : array_like, optional
        Boolean, True = may attend; broadcasts likewise.
    scale : float, optional
        Factor of the scores; an array without axes has its gradient. Default: ``1 / sqrt(H)``.
    is_causal : bool, default: False
        Query ``t`` attends keys up to ``t``.
    query_seq_lengths, key_value_seq_lengths : array_like, optional
        int32 ``(B,)``: rows from the first on are zero, keys from the second on are not attended.
    local_window_size : int or (int, int), optional
        ``(left, right)``: query ``t`` attends keys in ``[t - left, t + right]``; an int stands for both.
    implementation : {None, "xla", "cudnn"}, optional
        ``"xla"`` computes the formula with all scores in memory, as the original does; ``"cudnn"`` is cuDNN's kernel, and
        no other. Default: chosen by size and device.
    return_residual : bool, default: False
        Whether to return the log-sum-exp of the scores as well.

    Returns
    -------
    output : array
        Shape and dtype of `query`.
    residual : array
        ``(B, T, N)`` or ``(T, N)``, of the same dtype and without a gradient. Only with `return_residual`.

    Raises
    ------
    TypeError
        If query, key and value are no floating arrays.
    ValueError
        If a shape or dtype is not as above, there is no such `implementation`, or cuDNN cannot compute the call.

    Notes
    -----
    A row that may attend nothing is 0 with the residual ``-inf``; the original gives the mean of all values, and a large
    negative number. What is excluded never reaches the result, not even a NaN.

    References
    ----------
    ``jax.nn.dot_product_attention`` in the documentation of JAX.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from attention_xp.interop.jax import dot_product_attention
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 4, 8))
    >>> output = dot_product_attention(q, k, v, is_causal=True, local_window_size=(2, 0))
    >>> bool(jnp.allclose(output, jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=(2, 0)), atol=1e-5))
    True
    """
    chosen: Any = implementation
    if not isinstance(chosen, str | None) or chosen not in _IMPLEMENTATIONS:
        raise ValueError(f"implementation must be 'xla', 'cudnn' or None, got {implementation!r}")
    query, key, value = converted(jnp.asarray, query=query, key=key, value=value)
    q, k, v = _inputs(query, key, value)
    shape, sizes = query.shape, (len(q), *q.shape[1:3], k.shape[2])
    (bias,) = (None,) if bias is None else converted(jnp.asarray, bias=bias)
    (mask,) = (None,) if mask is None else converted(jnp.asarray, mask=mask)
    check_broadcast("(B, N, T, S)", sizes, bias=bias, mask=mask)
    wants_residual = as_flag("return_residual", return_residual)
    wide = computation_dtype(jnp, q.dtype)
    result: Any = flash_attention(
        q,
        k,
        v,
        _rule(mask, local_window_size),
        bias=None if bias is None else _with_four_axes("bias", bias).astype(wide),
        is_causal=as_flag("is_causal", is_causal),
        query_offset=0,
        query_lengths=_lengths("query_seq_lengths", query_seq_lengths, len(k)),
        key_lengths=_lengths("key_value_seq_lengths", key_value_seq_lengths, len(k)),
        scale=_factor(scale, wide),
        impl=_IMPLEMENTATIONS[implementation],
        return_lse=wants_residual,
    )
    if not wants_residual:
        return jnp.reshape(jnp.swapaxes(result, 1, 2), shape)
    output, lse = result
    residual = jax.lax.stop_gradient(jnp.swapaxes(lse, 1, 2).astype(q.dtype))  # (B, N, T) -> (B, T, N)
    return jnp.reshape(jnp.swapaxes(output, 1, 2), shape), jnp.reshape(residual, shape[:-1])


def _factor(scale: Any, dtype: Any) -> Any:
    """Return the factor of the scores; one that is no plain number is an array without axes."""
    if scale is None or isinstance(scale, int | float):
        return scale
    return converted(jnp.asarray, scale=scale)[0].astype(dtype)


def _inputs(query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    """Return query, key and value ``(B, K, S, H)``, as alike as the original wants them."""
    q, k, v = (_with_four_axes(name, a) for name, a in (("query", query), ("key", key), ("value", value)))
    if v.shape != k.shape:
        raise ValueError(f"value must have the shape of key, {shapes(key=key, value=value)}")
    if len(q) != len(k) or q.shape[-1] != k.shape[-1] or q.shape[2] % max(k.shape[2], 1):
        raise ValueError(
            "query does not fit key: expected query (B, T, N, H), key (B, S, K, H), N a multiple of K, "
            f"{shapes(query=query, key=key)}"
        )
    for name, a in (("query", q), ("value", v)):
        if a.dtype != k.dtype:
            raise ValueError(f"{name} must have the dtype of key: expected {k.dtype}, got {a.dtype}")
    return jnp.swapaxes(q, 1, 2), jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)  # (B, S, K, H) -> (B, K, S, H)


def _with_four_axes(name: str, given: Any) -> Any:
    """Return an array with axes of length 1 in front."""
    (array,) = converted(jnp.asarray, **{name: given})
    if array.ndim > 4:
        raise ValueError(f"{name} must have at most 4 axes, got {name} {array.shape}")
    return jnp.reshape(array, (1,) * (4 - array.ndim) + array.shape)


def _lengths(name: str, given: Any, batch: int) -> Any:
    """Return lengths as the original wants them."""
    if given is None:
        return None
    (lengths,) = converted(jnp.asarray, **{name: given})
    if lengths.shape != (batch,) or lengths.dtype != jnp.int32:
        raise ValueError(f"{name} must be int32 (B,) = ({batch},), got {lengths.dtype} {lengths.shape}")
    return lengths


def _rule(mask: Any, window: Any) -> Mask | None:
    """Return what `mask` and `local_window_size` allow."""
    rules: list[Mask] = []
    if mask is not None:
        array = _with_four_axes("mask", mask)
        if array.dtype != bool:
            raise ValueError(f"mask must be boolean, got {array.dtype}: what is added to the scores goes into bias")
        rules.append(ArrayMask(array))
    if window is not None:
        sides = window if isinstance(window, Sequence) else (window, window)
        if len(sides) != 2:
            raise ValueError(f"local_window_size must be an int or a pair (left, right), got {window!r}")
        rules += _window(*(as_index("local_window_size", side) for side in sides))
    return reduce(and_, rules) if rules else None


def _window(left: int, right: int) -> Iterator[Mask]:
    """Yield a rule for each bound of ``[t - left, t + right]``, or for both; negative ones are legal to the original."""
    if left >= 0 and right >= 0:
        yield WindowMask(left, right)
        return
    yield WindowMask(left, None) if left >= 0 else ~WindowMask(None, -left - 1)
    yield WindowMask(None, right) if right >= 0 else ~WindowMask(-right - 1, None)
