"""Attention for the modules of Flax, linen and nnx: an ``attention_fn``, and the parameters of a module."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.nnx.nn import dtypes

from attention_xp import MultiHeadParams, flash_attention, scaled_dot_product_attention
from attention_xp._backend.dtypes import computation_dtype
from attention_xp._checks.numbers import check_number
from attention_xp.interop._border import as_flag, converted, named_as

__all__ = ["attention_fn", "multi_head_params"]


@named_as({"rng": "dropout_rng"})
def attention_fn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: jax.Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
    *,
    force_fp32_for_softmax: bool = False,
    einsum_dot_general: Callable[..., jax.Array] | None = None,
    qk_attn_weights_einsum: Callable[..., jax.Array] | None = None,
    attn_weights_value_einsum: Callable[..., jax.Array] | None = None,
    promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
    is_causal: bool = False,
) -> jax.Array:
    r"""Attend as ``dot_product_attention`` of ``flax.linen`` and of ``flax.nnx`` does.

    .. math:: \mathrm{output} = \mathrm{softmax}\left(\frac{Q K^T}{\sqrt{D}} + \mathrm{bias}\right) V

    It goes into a module as its `attention_fn`, with a decoding cache or without. The two originals have the arguments up
    to `module` in common, in this order; those of only one of them are given by keyword.

    Parameters
    ----------
    query : array
        ``(..., Sq, H, D)``, with any number of batch axes or none.
    key, value : array
        ``(..., Sk, Hkv, D)`` and ``(..., Sk, Hkv, Dv)``; ``Hkv`` divides ``H``.
    bias : array, optional
        Is added to the scores; broadcasts to ``(..., H, Sq, Sk)``.
    mask : array, optional
        Broadcasts likewise. Of whatever dtype it is, what is not 0 may be attended: the masks that Flax makes, and those
        of its caches, are floats of 0 and 1.
    broadcast_dropout : bool, default: True
        Whether all batch items and heads drop the same pairs.
    dropout_rng : JAX key, optional
        Source of the dropout, required where there is any.
    dropout_rate : float, default: 0.0
        Probability of dropping a weight, ``0 <= dropout_rate < 1``.
    deterministic : bool, default: False
        Whether nothing is dropped.
    dtype : dtype, optional
        To which query, key and value are cast. Default: what these promote to.
    precision : str or jax.lax.Precision, optional
        Of the products, or two equal ones. The scores are then materialised, so that gradients have it as well.
    module : Module, optional
        Where to sow the weights, before dropout, as ``attention_weights``. They are then materialised.
    force_fp32_for_softmax : bool, default: False
        Of linen. The softmax of 16-bit inputs is computed in float32 in any case; with this, output and sown weights stay in
        it.
    einsum_dot_general, qk_attn_weights_einsum, attn_weights_value_einsum : None
        Of linen; they replace the products and are refused.
    promote_dtype : callable, optional
        Of nnx: ``promote_dtype((query, key, value), dtype=dtype)`` gives all three one dtype.
    is_causal : bool, default: False
        Of nnx: a query attends keys up to its own row; rows and keys both count from 0.

    Returns
    -------
    array
        ``(..., Sq, H, Dv)``.

    Raises
    ------
    NotImplementedError
        If products are replaced, or `precision` is another for each factor or an algorithm.
    TypeError, ValueError
        If an array does not fit, or `dropout_rng` is missing.

    Notes
    -----
    A row that may attend nothing is 0; the originals give the mean of all values. The dropout has the distribution of the
    originals but draws other pairs from the same key, in memory linear in the lengths.

    References
    ----------
    ``flax.linen.dot_product_attention`` and ``flax.nnx.dot_product_attention`` in the documentation of Flax.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> from attention_xp.interop.flax import attention_fn
    >>> make = lambda **options: nnx.MultiHeadAttention(4, 16, decode=False, rngs=nnx.Rngs(0), **options)
    >>> x = jax.random.normal(jax.random.key(0), (2, 6, 16))
    >>> mask = nnx.make_causal_mask(x[..., 0])
    >>> bool(jnp.allclose(make(attention_fn=attention_fn)(x, mask=mask), make()(x, mask=mask), atol=1e-5))
    True
    """
    if module is not None and not hasattr(module, "sow"):
        raise TypeError(f"module must be a module of linen or nnx, got {type(module).__name__}")
    _refuse(
        einsum_dot_general=einsum_dot_general,
        qk_attn_weights_einsum=qk_attn_weights_einsum,
        attn_weights_value_einsum=attn_weights_value_einsum,
    )
    query, key, value = converted(jnp.asarray, query=query, key=key, value=value)
    drops = not as_flag("deterministic", deterministic) and check_number("dropout_rate", dropout_rate) > 0.0
    if drops and dropout_rng is None:
        raise ValueError(f"dropout_rng is required where dropout_rate is {dropout_rate} and not deterministic")
    if dtype is not None:
        (dtype,) = converted(jnp.dtype, dtype=dtype)
    q, k, v = _heads_first(*promote_dtype((query, key, value), dtype=dtype))
    if as_flag("force_fp32_for_softmax", force_fp32_for_softmax):  # and keeps what follows in that dtype, as in linen
        q, k, v = (a.astype(computation_dtype(jnp, q.dtype)) for a in (q, k, v))
    (allowed,) = (None,) if mask is None else converted(lambda a: jnp.asarray(a).astype(bool), mask=mask)
    (added,) = (None,) if bias is None else converted(jnp.asarray, bias=bias)
    options: dict[str, Any] = {
        "bias": None if added is None else added.astype(computation_dtype(jnp, q.dtype)),
        "is_causal": as_flag("is_causal", is_causal),
        "query_offset": 0,
        "impl": "auto" if precision is None else "dense",  # whose products are differentiated with their precision
    }
    with _precision(precision):
        if module is not None:
            output, weights = scaled_dot_product_attention(q, k, v, allowed, **options)
            _sow(module, weights if jnp.ndim(query) > 3 else weights[0])
        if drops or module is None:
            options |= _dropout(q, dropout_rng, as_flag("broadcast_dropout", broadcast_dropout)) if drops else {}
            output = flash_attention(q, k, v, allowed, dropout_rate if drops else 0.0, **options)
    output = jnp.swapaxes(output, -3, -2)  # (..., H, Sq, Dv) -> (..., Sq, H, Dv)
    return output if jnp.ndim(query) > 3 else output[0]


def _heads_first(query: Any, key: Any, value: Any) -> tuple[Any, ...]:
    """Exchange ``(..., S, H, D)`` for ``(..., H, S, D)`` with at least one batch axis."""
    if not (
        query.ndim == key.ndim == value.ndim >= 3
        and key.shape[-3:-1] == value.shape[-3:-1]
        and key.shape[-1] == query.shape[-1]
        and query.shape[-2] % max(key.shape[-2], 1) == 0
        and _join(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    ):
        raise ValueError(
            "query, key and value do not fit: expected (..., Sq, H, D), (..., Sk, Hkv, D) and (..., Sk, Hkv, Dv), H a "
            f"multiple of Hkv, got {query.shape}, {key.shape} and {value.shape}"
        )
    return tuple(jnp.swapaxes(a if a.ndim > 3 else a[None], -3, -2) for a in (query, key, value))


def _join(*batches: tuple[int, ...]) -> bool:
    """Whether batch axes broadcast."""
    return all(len({n for n in sizes if n != 1}) < 2 for sizes in zip(*batches, strict=True))


def _dropout(query: Any, rng: Any, is_broadcast: bool) -> dict[str, Any]:
    """Return the options of dropout; a draw is one of item, head and pair, which are all of one number where they share."""
    if not is_broadcast:
        return {"rng": rng}
    return {"rng": rng, "item_ids": 0, "head_ids": jnp.zeros(query.shape[-3], jnp.int32)}


def _sow(module: Any, weights: Any) -> None:
    """Hand the weights to a module of linen or of nnx."""
    collection = "intermediates" if isinstance(module, linen.Module) else nnx.Intermediate
    module.sow(collection, "attention_weights", weights)


def _precision(given: Any) -> AbstractContextManager[Any]:
    """Return the context in which products have a precision."""
    if given is None:
        return nullcontext()
    try:
        (precision,) = set(map(jax.lax.Precision, given if isinstance(given, tuple) else (given,)))
    except (TypeError, ValueError):
        raise NotImplementedError(
            f"precision must be one jax.lax.Precision, or its name, for both factors, got {given!r}"
        ) from None
    return jax.default_matmul_precision(precision.name.lower())  # type: ignore[no-any-return]


def _refuse(**replaced: Any) -> None:
    """Refuse functions in place of the products."""
    for name, given in replaced.items():
        if given is not None:
            raise NotImplementedError(
                f"{name} replaces a product, which is computed inside the kernels here: leave it None"
            )


def multi_head_params(module: nnx.MultiHeadAttention) -> MultiHeadParams[Any]:
    """Return the projections of ``nnx.MultiHeadAttention`` for `attention_xp.multi_head_attention`.

    What else the module does is said in that call: `num_heads`, `num_kv_heads`, masks and dropout. The arrays are those of the
    module at the time of the call, in the dtype in which it computes, which is that of the inputs as well.

    Parameters
    ----------
    module : nnx.MultiHeadAttention
        With grouped heads or without.

    Returns
    -------
    MultiHeadParams
        `w_q` is ``(in_features, H * D)``, `w_k` and `w_v` are ``(in_kv_features, Hkv * D)`` and `w_o` is
        ``(H * D, out_features)``; biases are ``None`` without `use_bias`.

    Raises
    ------
    TypeError
        If `module` is of another class.
    NotImplementedError
        If it has a layer between projections and attention, a product of its own, or another ``attention_fn``.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> from attention_xp import multi_head_attention
    >>> from attention_xp.interop.flax import multi_head_params
    >>> module = nnx.MultiHeadAttention(4, 16, num_kv_heads=2, decode=False, rngs=nnx.Rngs(0))
    >>> x = jax.random.normal(jax.random.key(0), (2, 6, 16), jnp.float32)
    >>> output, _ = multi_head_attention(x, x, x, 4, 16, num_kv_heads=2, params=multi_head_params(module))
    >>> bool(jnp.allclose(output, module(x), atol=1e-5))
    True
    """
    if not isinstance(module, nnx.MultiHeadAttention):
        raise TypeError(f"module must be a flax.nnx.MultiHeadAttention, got {type(module).__name__}")
    _refuse_module(module)
    (w_q, b_q), (w_k, b_k), (w_v, b_v) = (
        _arrays(layer, module.dtype) for layer in (module.query, module.key, module.value)
    )
    w_o, b_o = _arrays(module.out, module.dtype)
    w_q, w_k, w_v = (jnp.reshape(w, (len(w), -1)) for w in (w_q, w_k, w_v))  # (in, H, D) -> (in, H * D)
    w_o = jnp.reshape(w_o, (-1, w_o.shape[-1]))  # (H, D, out) -> (H * D, out)
    b_q, b_k, b_v = (b if b is None else jnp.ravel(b) for b in (b_q, b_k, b_v))
    return MultiHeadParams(w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o)


def _arrays(layer: Any, dtype: Any) -> tuple[Any, Any]:
    """Return kernel and bias of a layer in the dtype of the computation; without one, in their own."""
    arrays = (
        None if variable is None else jnp.asarray(variable[...], dtype) for variable in (layer.kernel, layer.bias)
    )
    return tuple(arrays)  # type: ignore[return-value]


def _refuse_module(module: Any) -> None:
    """Refuse modules whose output does not follow from their projections."""
    if module.normalize_qk:
        raise NotImplementedError(
            "normalize_qk puts a layer between projections and attention, which parameters do not hold"
        )
    for name in ("qkv_dot_general", "out_dot_general", "qkv_dot_general_cls", "out_dot_general_cls"):
        if getattr(module, name) is not None:
            raise NotImplementedError(f"{name} replaces a product of the module, which parameters do not hold")
    if module.attention_fn not in (attention_fn, nnx.dot_product_attention):
        raise NotImplementedError("attention_fn of the module is neither that of flax.nnx nor that of attention_xp")
